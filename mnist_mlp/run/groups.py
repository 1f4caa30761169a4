"""Which runs belong together: those of one experiment, network and settings, whatever their seeds and lengths."""

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from mnist_mlp.run.identity import PLACES
from mnist_mlp.run.metrics import COLUMNS
from mnist_mlp.run.records import Run
from mnist_mlp.settings import SettingError, compose_config, flatten, spelled

EXPERIMENTS = ("baseline", "dropout_scheduler", "dropout_as_run", "dropout_as_intended")  # in the order to show them
LENGTH = "trainer.max_epochs"
NAMED = ("experiment", "network", "seed", "data.seed")


@dataclass(frozen=True)
class Variant:
    """Runs that differ in nothing but their seeds and lengths.

    Args:
        experiment, model: by name.
        settings: those that other runs of this experiment and model have otherwise, as the command line writes them.
        runs: finished or not; a run that lies in two directories is here twice.
    """

    experiment: str
    model: str
    settings: Mapping[str, str]
    runs: Sequence[Run]

    @property
    def label(self) -> str:
        """Such as `baseline, A` or `baseline, A, lr=0.1`."""
        model = self.model.removeprefix("network_").upper() if self.model.startswith("network_") else self.model
        settings = (f"{name.rpartition('.')[2]}={value}" for name, value in self.settings.items())
        return ", ".join((self.experiment, model, *settings))

    def longest(self) -> Run | None:
        """The run with the most epochs that can be read, a completed one first; None where there is none."""
        in_order = sorted(self.runs, key=lambda run: (-length(run), not run.completed))
        return next((run for run in in_order if length(run) and not damage(run)), None)

    def over_seeds(self) -> list[Run]:
        """The completed runs of one length, one for each seed: of the length with the most seeds, the longer one of a
        tie; [] where no length has two."""
        lengths: dict[int, dict[Any, Run]] = defaultdict(dict)
        for run in self.runs:
            if run.completed:
                lengths[length(run)].setdefault(run.seed, run)
        most = max(lengths, key=lambda epochs: (len(lengths[epochs]), epochs), default=0)
        found = list(lengths[most].values())
        return found if len(found) > 1 else []


def variants(runs: Iterable[Run], varied: Mapping[str, Mapping[str, Any]]) -> list[Variant]:
    """The runs in variants: of the report's experiments first, in its order, then of others as they come.

    Args:
        runs: in any order.
        varied: of each run by name the settings that vary.
    """
    together: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        settings = {name: value for name, value in varied[run.name].items() if name != LENGTH and value is not None}
        together[str(run.experiment), str(run.model), tuple(settings.items())].append(run)
    several: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for experiment, model, settings in together:
        for name, value in settings:
            several[experiment, model, name].add(value)
    found = [
        Variant(
            experiment,
            model,
            {name: value for name, value in settings if len(several[experiment, model, name]) > 1},
            of_it,
        )
        for (experiment, model, settings), of_it in together.items()
    ]
    order = {experiment: place for place, experiment in enumerate(EXPERIMENTS)}
    return sorted(found, key=lambda variant: order.get(variant.experiment, len(order)))


def length(run: Run) -> int:
    """How many epochs it has."""
    return int(run.record.get("epochs", 0)) if run.completed else run.length


def damage(run: Run) -> str | None:
    """What is wrong with its metrics.csv; None where it can be used."""
    try:
        epochs = run.epochs.table
    except SettingError:
        return "its metrics.csv is damaged"
    if not epochs:
        return "it has no metrics.csv, or one without epochs"
    if not set(COLUMNS) <= set(epochs):
        return f"its metrics.csv has no column {', '.join(sorted(set(COLUMNS) - set(epochs)))}"
    if run.completed and len(epochs["epoch"]) != run.record.get("epochs"):
        return f"its metrics.csv has {len(epochs['epoch'])} epochs, its run.json {run.record.get('epochs')}"
    return None


@cache
def configured(experiment: str, model: str) -> Mapping[str, Any] | None:
    """The settings, flat, of `mnist-train experiment=... model=...`; None where there is none of that name."""
    if not all(re.fullmatch(r"\w+", name) for name in (experiment, model)):
        return None  # a record may say anything; as an override it would be Hydra's to read
    try:
        config = compose_config([f"experiment={experiment}", f"model={model}"])
    except (SettingError, HydraException, OmegaConfBaseException):
        return None
    return flatten(config)


def changed(run: Run) -> dict[str, Any] | None:
    """The settings that differ from those of its experiment and model, less its seed and place; None where that is no
    experiment or model of this project's, or where the run lacks one of their settings; one that is newer than the run
    is null by default, and so was the run."""
    given = configured(str(run.experiment), str(run.model))
    if given is None or not run.settings or any(given[name] is not None for name in given.keys() - run.settings.keys()):
        return None
    return {
        name: value
        for name, value in run.settings.items()
        if name not in (*PLACES, *NAMED) and (name not in given or given[name] != value)
    }


def command(runs: Sequence[Run]) -> str | None:
    """The `mnist-train` command that makes these again, which differ in their seeds; None where that takes a
    configuration of the user's own."""
    run = runs[0]
    others, given = changed(run), configured(str(run.experiment), str(run.model))
    if others is None or given is None:
        return None
    seeds = ",".join(str(other.seed) for other in runs)
    words = ["mnist-train", *(["-m"] if len(runs) > 1 else [])]
    words += [f"experiment={run.experiment}", f"model={run.model}", f"seed={seeds}"]
    if run.settings.get("data.seed") != run.seed:
        words.append(f"data.seed={run.settings.get('data.seed')}")
    words += [f"{'' if name in given else '+'}{name}={_spelled(value)}" for name, value in others.items()]
    return shlex.join(words)


def _spelled(value: Any) -> str:
    return f"[{','.join(map(str, map(spelled, value)))}]" if isinstance(value, list) else str(spelled(value))
