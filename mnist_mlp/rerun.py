"""`mnist-rerun RUN_DIR`: repeats a run from its own record and says whether it came out bit for bit the same."""

import argparse
import logging
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from mnist_mlp.compare import Pair, Recorded
from mnist_mlp.run.identity import complete
from mnist_mlp.run.process import prepare_process
from mnist_mlp.run.records import read_record
from mnist_mlp.run.signals import InterruptionError
from mnist_mlp.settings import (
    DERIVED,
    OUR_BACKBONE,
    OUR_DATA,
    OUR_LOSS,
    RULES,
    SettingError,
    check,
    flatten,
    one_sentence,
)
from mnist_mlp.surroundings import import_from_here

# What a recorded configuration may have built unasked: parts of PyTorch and of this package, and callbacks that take no
# path. A user's own classes, which may do anything, take --trust.
TRUSTED = (
    f"{re.escape(OUR_BACKBONE)}|{re.escape(OUR_DATA)}|{re.escape(OUR_LOSS)}"
    r"|mnist_mlp\.transforms\.Warp|torchmetrics\.classification\.[A-Z]\w*"
    r"|torch\.nn\.[A-Z]\w*|torch\.optim\.[A-Z]\w*|torch\.optim\.lr_scheduler\.[A-Z]\w*"
    r"|lightning\.pytorch\.callbacks\.(EarlyStopping|LearningRateMonitor|StochasticWeightAveraging)"
)


def main() -> None:
    """Runs `mnist-rerun`. Exit status: 0 where the rerun is identical; 1 where it is not, or could not be made."""
    parser = argparse.ArgumentParser(
        prog="mnist-rerun",
        description="Repeats the run in RUN_DIR from its config.yaml, in a directory of its own, and compares the two.",
    )
    parser.add_argument("run", metavar="RUN_DIR", type=Path, help="with config.yaml, run.json and metrics.csv")
    parser.add_argument(
        "overrides", metavar="SETTING=VALUE", nargs="*", help="change a recorded setting, to see what that changes"
    )
    parser.add_argument("--epochs", metavar="N", type=int, help="repeat and compare the first N epochs only")
    parser.add_argument(
        "--run-dir", metavar="PATH", type=Path, help="of the rerun (default: under logs/runs, named for RUN_DIR)"
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="build every class that config.yaml names, not only this package's and PyTorch's, and go where it says",
    )
    arguments = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with one_sentence():
        import_from_here()
        place = arguments.run_dir or default_place(arguments.run)
        try:
            identical, lines = rerun(arguments.run, place, arguments.epochs, arguments.overrides, arguments.trust)
        except InterruptionError as error:
            print(f"{place}: {error}; the same command with --run-dir {place} continues it", file=sys.stderr)
            sys.exit(error.exit_status)
        print("\n".join(lines))
    sys.exit(0 if identical else 1)


def default_place(run: Path) -> Path:
    """Where `mnist-train` puts runs, also for a run out of a sweep: a rerun is no part of that sweep."""
    return Path("logs") / "runs" / f"{datetime.now():%Y-%m-%d_%H-%M-%S.%f}_rerun_of_{run.resolve().name}"


def rerun(
    run: Path, place: Path, epochs: int | None = None, overrides: list[str] | None = None, trust: bool = False
) -> tuple[bool, list[str]]:
    """Repeats a run as `train` would, and compares.

    Args:
        run: the run's directory, of which only config.yaml, run.json and metrics.csv are needed; it is not written to.
        place: the rerun's directory. One that holds an unfinished rerun is continued.
        epochs: how many to repeat; None for all that are complete.
        overrides: recorded settings to change; `seed` takes `data.seed` with it. What else was computed from another
            setting, such as a cosine schedule's length from `trainer.max_epochs`, stays as recorded.
        trust: build whatever the recorded configuration names, and go where it says.

    Returns:
        Whether everything compared is the same, and the lines that say so: first what was compared or the first
        difference, then what differs in settings, versions, device, threads, commit and uncommitted changes.

    Raises:
        SettingError: there is no such run, no such epoch or no such setting, or the rerun could not be made.
        InterruptionError: a signal asked the rerun to stop.
    """
    before = Recorded(run)
    config, count = before.config.copy(), len(before.epochs)
    if not trust:
        refuse_untrusted(config, run)
    complete(config)
    check(config)
    if place.resolve().is_relative_to(run.resolve()):
        raise SettingError("--run-dir", place, f"must lie outside {run}, which is only read")
    if epochs is not None and not 1 <= epochs <= count:
        raise SettingError("--epochs", epochs, f"must lie between 1 and {count}, the epochs of {run}")
    whole = before.record.get("status") == "completed" and epochs in (None, count)
    if not whole:
        # Nothing else changes with it: what was computed from the number of epochs is in config.yaml as a number.
        config.trainer.max_epochs = epochs or count
    _override(config, overrides or [], run)
    config.run_dir = str(place)
    there = read_record(place)
    if there.get("status") == "completed" and there.get("epochs", 0) >= config.trainer.max_epochs:
        raise SettingError("--run-dir", place, "holds a complete run, so nothing would be repeated: give another")

    prepare_process(config.get("threads"), config.get("portable", False))
    from mnist_mlp.train import train  # here, because it imports PyTorch, which takes seconds

    train(config)
    pair = Pair(before, Recorded(place, "--run-dir"), epochs or (None if whole else count), now="now")
    return pair.difference is None, [pair.verdict, f"  the rerun is in {place}", *pair.circumstances()]


def _override(config: DictConfig, overrides: list[str], run: Path) -> None:
    """Changes recorded settings.

    Raises:
        SettingError: the record has no such setting, or it is not to be changed so.
    """
    changed = OmegaConf.from_dotlist(overrides)
    for setting, value in flatten(changed).items():
        if setting not in flatten(config):
            raise SettingError(setting, value, f"there is no setting {setting} in {run / 'config.yaml'}")
        if setting in DERIVED:
            raise SettingError(setting, value, "is the run's name: change what it names")
        if setting == "run_dir":
            raise SettingError(setting, value, "say where the rerun goes with --run-dir")
    if "seed" in changed and config.data.get("seed") == config.seed:
        config.data.seed = changed.seed  # it was ${seed} before it was recorded as a number
    config.merge_with(changed)


def refuse_untrusted(config: DictConfig, run: Path) -> None:
    """Refuses a recorded configuration that would act beyond training a network from PyTorch's parts.

    Raises:
        SettingError: it builds something that is not on the closed list, would download to or from a place of its own,
            has text where the Trainer might take a path, or asks for the environment by an interpolation.
    """
    container: Any = OmegaConf.to_container(config, resolve=False)

    def refuse(what: str) -> NoReturn:
        problem = f"its config.yaml {what}: add --trust if you know who wrote it"
        raise SettingError("RUN_DIR", run, problem)

    def walk(node: Any, name: str) -> None:
        children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in children:
            walk(value, f"{name}.{key}".lstrip("."))
            if key == "_target_" and not re.fullmatch(TRUSTED, str(value)):
                refuse(f"builds {value}, which may do anything")
        if isinstance(node, str) and "${" in node:
            refuse(f"has {name}={node}, which a run's record does not leave open")

    walk(container, "")
    for name, value in flatten(container.get("trainer") or {}).items():
        if isinstance(value, str) and f"trainer.{name}" not in RULES:
            refuse(f"has trainer.{name}={value}, which may be a path")
    data = container.get("data") or {}
    if data.get("mirror") is not None or (data.get("download") and data.get("root") is not None):
        refuse("has images downloaded from or to a place that it names")


if __name__ == "__main__":
    main()
