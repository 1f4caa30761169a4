"""`mnist-rerun RUN_DIR`: repeats a run from its own record and says whether it came out bit for bit the same."""

import argparse
import logging
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from mnist_mlp.run.identity import other_settings
from mnist_mlp.run.metrics import COLUMNS
from mnist_mlp.run.process import prepare_process
from mnist_mlp.run.records import Epochs, read_record
from mnist_mlp.run.signals import InterruptionError
from mnist_mlp.settings import (
    DERIVED,
    OUR_BACKBONE,
    OUR_DATA,
    RULES,
    SettingError,
    check,
    flatten,
    load_yaml,
    one_sentence,
    spelled,
)
from mnist_mlp.surroundings import import_from_here

# What an epoch must repeat, causes first: a changed rate is named as such, not by the loss that it led to.
REPEATED = ("lr", *(column for column in COLUMNS if column not in ("epoch", "lr", "seconds")))
RESULTS = ("epochs", "best", "weights_sha256", "test")
# What a recorded configuration may have built unasked: parts of PyTorch and of this package, and callbacks that take no
# path. A user's own classes, which may do anything, take --trust.
TRUSTED = (
    f"{re.escape(OUR_BACKBONE)}|{re.escape(OUR_DATA)}"
    r"|torch\.nn\.[A-Z]\w*|torch\.optim\.[A-Z]\w*|torch\.optim\.lr_scheduler\.[A-Z]\w*"
    r"|lightning\.pytorch\.callbacks\.(EarlyStopping|LearningRateMonitor|StochasticWeightAveraging)"
)
CIRCUMSTANCES = ("data_sha256", "versions", "device", "threads", "git")


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
    config, record, rows = load_yaml(run / "config.yaml", "RUN_DIR"), read_record(run), _texts(run)
    if not trust:
        refuse_untrusted(config, run)
    check(config)
    if place.resolve().is_relative_to(run.resolve()):
        raise SettingError("--run-dir", place, f"must lie outside {run}, which is only read")
    if not rows:
        raise SettingError("RUN_DIR", run, "has no complete epoch to compare with")
    if epochs is not None and not 1 <= epochs <= len(rows):
        raise SettingError("--epochs", epochs, f"must lie between 1 and {len(rows)}, the epochs of {run}")
    whole = record.get("status") == "completed" and epochs in (None, len(rows))
    if not whole:
        # Nothing else changes with it: what was computed from the number of epochs is in config.yaml as a number.
        config.trainer.max_epochs = epochs or len(rows)
    _override(config, overrides or [], run)
    config.run_dir = str(place)
    there = read_record(place)
    if there.get("status") == "completed" and there["epochs"] >= config.trainer.max_epochs:
        raise SettingError("--run-dir", place, "holds a complete run, so nothing would be repeated: give another")

    prepare_process(config.get("threads"))
    from mnist_mlp.train import train  # here, because it imports PyTorch, which takes seconds

    again = train(config)
    difference = _first_difference(rows[:epochs], _texts(place))
    if whole and difference is None:
        difference = next(_differences(record, again, RESULTS), None)
    compared = _compared(len(rows[:epochs]), whole)
    lines = [f"identical: {compared}" if difference is None else f"different: {difference}"]
    lines += [f"  the rerun is in {place}"]
    lines += [
        f"  {name}: {spelled(before)}, now {spelled(now)}" for name, (before, now) in _settings(run, place, whole)
    ]
    lines += [f"  {line}" for line in _differences(record, again, CIRCUMSTANCES)]
    lines += _uncommitted(run, place, record)
    return difference is None, list(dict.fromkeys(lines))  # `threads` is a setting and a circumstance


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


def _compared(count: int, whole: bool) -> str:
    """What was compared, in words."""
    if whole:
        return f"every epoch ({count}), the best one, the weights and the test results"
    return f"the first {count} epochs" if count > 1 else "the first epoch"


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


def _texts(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv as text, which is the same where the bits are."""
    epochs = Epochs(run)
    return [epochs.texts(number) for number in range(1, len(epochs) + 1)]


def _first_difference(before: list[dict[str, str]], now: list[dict[str, str]]) -> str | None:
    for one, other in zip(before, now, strict=False):
        for column in REPEATED:
            if one.get(column) != other.get(column):
                return f"in epoch {one.get('epoch')}, {column} was {one.get(column)}, now {other.get(column)}"
    return None if len(before) == len(now) else f"{len(before)} epochs, now {len(now)}"


def _differences(before: dict[str, Any], now: dict[str, Any], keys: tuple[str, ...]) -> Iterator[str]:
    """One line for each value under `keys` that both have and that is not the same."""
    now = flatten(now)
    for name, value in flatten(before).items():
        if name.partition(".")[0] in keys and name in now and value != now[name]:
            yield f"{name}: {spelled(value)}, now {spelled(now[name])}"


def _settings(run: Path, place: Path, whole: bool) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The settings that differ from those that Hydra noted, if it did: config.yaml may have been edited since."""
    noted = run / ".hydra" / "config.yaml"
    before = load_yaml(noted if noted.exists() else run / "config.yaml", "RUN_DIR")
    for name, values in other_settings(before, load_yaml(place / "config.yaml", "--run-dir")).items():
        if whole or name != "trainer.max_epochs":
            yield name, values


def _uncommitted(run: Path, place: Path, record: dict[str, Any]) -> list[str]:
    """What to say of changes that no commit holds."""
    before, now = ((path / "uncommitted.diff") for path in (run, place))
    if record.get("git", {}).get("dirty") and not before.exists():
        return ["  the run had uncommitted changes, and its uncommitted.diff is not there"]
    texts = [path.read_bytes() if path.exists() else b"" for path in (before, now)]
    return [] if texts[0] == texts[1] else [f"  uncommitted changes: compare {before} with {now}"]


if __name__ == "__main__":
    main()
