"""Which runs belong together: those of one experiment, network and settings, whatever their seeds and lengths."""

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from mnist_mlp.run.identity import HASHES, LABELS, LENGTH, PLACES, SEEDS, differing, is_among
from mnist_mlp.run.records import Run
from mnist_mlp.settings import SettingError, as_override, compose_config, flatten, options

EXPERIMENTS = ("baseline", "dropout_scheduler", "dropout_as_run", "dropout_as_intended")  # in the order to show them


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
    def leaves(self) -> list[str]:
        """The settings in short, such as `lr=0.1`."""
        found = []
        for name, value in self.settings.items():
            group, _, leaf = name.rpartition(".")
            if leaf == "_target_":  # such as scheduler=StepLR
                found.append(f"{group}={value.rpartition('.')[2]}")
            elif leaf != "_partial_":
                found.append(f"{leaf}={value}")
        return found

    @property
    def label(self) -> str:
        """Such as `baseline, A` or `baseline, A, lr=0.1`."""
        model = self.model.removeprefix("network_").upper() if self.model.startswith("network_") else self.model
        return ", ".join((self.experiment, model, *self.leaves))

    def longest(self) -> Run | None:
        """The run with the most epochs that can be read, a completed one first; None where there is none."""
        in_order = sorted(self.runs, key=lambda run: (-run.length, not run.completed))
        return next((run for run in in_order if run.length and not damage(run)), None)

    def over_seeds(self) -> list[Run]:
        """The completed runs of one length, one for each seed: of the length with the most seeds, the longer one of a
        tie; [] where no length has two."""
        found = max((completed(runs) for runs in by_length(self.runs).values()), key=len, default=[])
        return found if len(found) > 1 else []


def by_length(runs: Iterable[Run]) -> dict[int, list[Run]]:
    """The runs by the number of epochs that they were to have, the longest first."""
    lengths: dict[int, list[Run]] = defaultdict(list)
    for run in runs:
        lengths[run.planned].append(run)
    return dict(sorted(lengths.items(), reverse=True))


def completed(runs: Iterable[Run]) -> list[Run]:
    """Of runs that differ in their seeds, the completed ones: one for each seed, as they come."""
    seeds: dict[Any, Run] = {}
    for run in runs:
        if run.completed:
            seeds.setdefault(run.seed, run)
    return list(seeds.values())


def varied(runs: Sequence[Run]) -> dict[str, dict[str, str | None]]:
    """Of each run by name its settings that differ between runs of one experiment and model, the seeds aside, as the
    command line writes them; None for one that it does not have."""
    left_out = (*PLACES, *LABELS, *SEEDS, *HASHES)
    shown = {
        run.name: {name: as_override(value) for name, value in run.settings.items() if not is_among(name, left_out)}
        for run in runs
    }
    values: dict[tuple[Any, Any, str], Counter[str]] = defaultdict(Counter)
    for run in runs:
        for name, value in shown[run.name].items():
            values[run.experiment, run.model, name][value] += 1
    counts = Counter((run.experiment, run.model) for run in runs if run.settings)  # one that never began has none
    for (experiment, model, _), seen in values.items():
        if seen.total() < counts[experiment, model]:
            seen["null"] += 1  # a run without a setting, since that is newer or of another optimizer, ran as with null
    names = sorted({name for (_, _, name), seen in values.items() if len(seen) > 1})
    return {run.name: {name: shown[run.name].get(name) for name in names} for run in runs}


def variants(runs: Sequence[Run]) -> list[Variant]:
    """The runs in variants: of the original report's experiments first, in its order, then of others as they come."""
    settings_of = varied(runs)
    together: dict[tuple[str, str, tuple[tuple[str, str], ...]], list[Run]] = defaultdict(list)
    several: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for run in runs:
        experiment, model = str(run.experiment), str(run.model)
        others = settings_of[run.name]
        settings = {name: value for name, value in others.items() if name != LENGTH and value is not None}
        together[experiment, model, tuple(settings.items())].append(run)
        for name, value in others.items() if run.settings else ():
            several[experiment, model, name].add("null" if value is None else value)
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


def damage(run: Run) -> str | None:
    """What is wrong with its files; None where they can be used, whichever columns its metrics.csv has."""
    if run.damaged:
        return str(run.problem)
    try:
        epochs = run.epochs.table
    except SettingError:
        return "its metrics.csv is damaged"
    if not epochs:
        return "it has no metrics.csv, or one without epochs"
    if "epoch" not in epochs:
        return "its metrics.csv has no column epoch"
    if run.completed and len(run.epochs) != run.record.get("epochs"):
        return f"its metrics.csv has {len(run.epochs)} epochs, its run.json {run.record.get('epochs')}"
    if run.completed and "accuracy" not in run.record.get("test", {}).get("last", {}):
        return "its run.json has no test.last.accuracy"
    return None


@cache
def configured(experiment: str, model: str) -> Mapping[str, Any] | None:
    """The settings, flat, of `mnist-train experiment=... model=...`; None where there is none of that name."""
    if experiment not in options("experiment") or model not in options("model"):
        return None  # a record may say anything; as an override it would be Hydra's to read
    try:
        config = compose_config([f"experiment={experiment}", f"model={model}"])
    except (SettingError, HydraException, OmegaConfBaseException):
        return None
    return flatten(config)


def command(runs: Sequence[Run]) -> str | None:
    """The `mnist-train` command that makes these again, which differ in their seeds; None where that takes a
    configuration of the user's own, or where they lack a setting that has a value today."""
    run = runs[0]
    given = configured(str(run.experiment), str(run.model))
    if given is None or not run.settings or any(given[name] is not None for name in given.keys() - run.settings.keys()):
        return None
    changed = differing(given, run.settings, (*PLACES, *LABELS, *SEEDS))
    seeds = ",".join(str(other.seed) for other in runs)
    words = ["mnist-train", *(["-m"] if len(runs) > 1 else [])]
    words += [f"experiment={run.experiment}", f"model={run.model}", f"seed={seeds}"]
    if run.settings.get("data.seed") != run.seed:
        words.append(f"data.seed={run.settings.get('data.seed')}")
    in_order = {name: value for name, value in run.settings.items() if name in changed}
    words += [f"{'' if name in given else '+'}{name}={as_override(value)}" for name, value in in_order.items()]
    return shlex.join(words)
