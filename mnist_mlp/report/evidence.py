"""Which runs speak for an experiment, and what they say with what uncertainty."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from mnist_mlp.run.groups import EXPERIMENTS
from mnist_mlp.run.records import Run
from mnist_mlp.settings import compose_config, flatten

MODELS = {"A": "network_a", "B": "network_b"}
TAIL = 5  # epochs at a run's end that are averaged where seeds are compared: from one to the next there is much noise
# What makes an experiment what it is; the rest is how it is computed, for how long, and where it lies.
GROUPS = ("model.", "optimizer.", "scheduler.")
SETTINGS = ("average", "data.batch_size", "data.dataset", "data.mean", "data.std", "trainer.max_steps")
COMPUTED = ("optimizer.fused",)

Measure = Callable[[Sequence[Run]], "np.ndarray"]  # of runs over several seeds: one number each


class Case(NamedTuple):
    """An experiment and a network, A or B."""

    experiment: str
    network: str

    def __str__(self) -> str:
        return f"{self.experiment} {self.network}"


class Interval(NamedTuple):
    """A mean with its 95 % t-interval, and the two-sided p-value of its being 0."""

    mean: float
    low: float
    high: float
    p: float


class Comparison(NamedTuple):
    """A measure of one case and of another, or of itself alone, over the seeds that are there of both.

    Args:
        epochs: the length of the runs.
        ones: the measure of each run of the first case.
        others: and of the second, seed by seed; zeros where there is none.
        difference: the mean of `ones - others`, with its interval.
    """

    epochs: int
    ones: np.ndarray
    others: np.ndarray
    difference: Interval


class Evidence:
    """The completed runs whose settings are those of their experiment, one for each length and seed.

    Args:
        runs: any runs; a run that lies in two directories counts once.

    Raises:
        SettingError: a `metrics.csv` is damaged.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs: dict[Case, dict[int, dict[int, Run]]] = {
            Case(experiment, network): {} for experiment in EXPERIMENTS for network in MODELS
        }
        networks = {model: network for network, model in MODELS.items()}
        for run in runs:
            case = Case(run.experiment, networks.get(run.model, ""))
            if case in self._runs and run.completed and run.epochs and not deviations(run):
                length = len(run.epochs["epoch"])
                self._runs[case].setdefault(length, {}).setdefault(run.seed, run)

    def all(self, case: Case) -> list[Run]:
        """Every run of the case."""
        return [run for seeds in self._runs[case].values() for run in seeds.values()]

    def longest(self, case: Case) -> Run | None:
        """Of the longest runs the one with the lowest seed."""
        lengths = self._runs[case]
        if not lengths:
            return None
        seeds = lengths[max(lengths)]
        return seeds[min(seeds)]

    def seeds(self, *cases: Case) -> tuple[list[Run], ...] | None:
        """The runs of each case over the seeds that all have, at the length at which there are most of them (the
        longest of these); None where there are not two."""
        best: tuple[int, int] = (1, 0)
        for length in set.intersection(*(set(self._runs[case]) for case in cases)):
            best = max(best, (len(self._common(length, cases)), length))
        if best[0] < 2:
            return None
        common = self._common(best[1], cases)
        return tuple([self._runs[case][best[1]][seed] for seed in common] for case in cases)

    def _common(self, length: int, cases: Sequence[Case]) -> list[int]:
        return sorted(set.intersection(*(set(self._runs[case][length]) for case in cases)))

    def compare(self, one: Case, other: Case | None, measure: Measure) -> Comparison | None:
        """The measure of `one`, less that of `other`, paired over the seeds; None where there are not two of them."""
        found = self.seeds(one, other) if other else self.seeds(one)
        if found is None:
            return None
        ones = measure(found[0])
        others = measure(found[1]) if other else np.zeros_like(ones)
        return Comparison(len(found[0][0].epochs["epoch"]), ones, others, t_interval(ones - others))


def deviations(run: Run) -> dict[str, object]:
    """The run's settings that make it another experiment than the one whose name it has.

    Empty where it is what it is called; so a run with another rate is no evidence for or against the report.
    """
    if run.experiment not in EXPERIMENTS or run.model not in MODELS.values():
        return {}
    expected = _settings(run.experiment, run.model)
    names = {name for name in expected | run.settings if name.startswith(GROUPS)} - set(COMPUTED) | set(SETTINGS)
    found = {name: run.settings.get(name) for name in sorted(names) if run.settings.get(name) != expected.get(name)}
    if run.settings.get("data.seed") != run.settings.get("seed"):
        found["data.seed"] = run.settings.get("data.seed")
    return found


@cache
def _settings(experiment: str, model: str) -> dict[str, object]:
    # A list of widths is one in YAML, and a ListConfig in OmegaConf; they compare as equal.
    return flatten(compose_config([f"experiment={experiment}", f"model={model}"]))


def t_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """The mean of two values or more with its 95 % interval by Student's t; of equal values an interval of no width."""
    from scipy import stats

    array = np.asarray(values, np.float64)
    mean, freedom = float(array.mean()), len(array) - 1
    error = float(array.std(ddof=1)) / len(array) ** 0.5
    half = float(stats.t.ppf(0.975, freedom)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    return Interval(mean, mean - half, mean + half, p)


def tail(column: str) -> Measure:
    """The mean of a column of `metrics.csv` over the last `TAIL` epochs."""
    return lambda runs: np.array([run.epochs[column][-TAIL:].mean() for run in runs])


def highest(column: str) -> Measure:
    """The highest value of a column of `metrics.csv`."""
    return lambda runs: np.array([run.epochs[column].max() for run in runs])


def gap(runs: Sequence[Run]) -> np.ndarray:
    """Validation loss less training loss, over the last `TAIL` epochs: the generalisation gap."""
    return tail("val/loss")(runs) - tail("train/loss")(runs)


def rise(runs: Sequence[Run]) -> np.ndarray:
    """How far the validation loss ends above where it is lowest, both as means of `TAIL` epochs.

    The lowest of many noisy values is low by luck, and the end would lie above it even if nothing rose. So where the
    lowest is, the mean curve of the *other* seeds says.
    """
    losses = np.array([run.epochs["val/loss"] for run in runs])
    smooth = np.lib.stride_tricks.sliding_window_view(losses, min(TAIL, losses.shape[1]), axis=1).mean(axis=-1)
    lowest = [int(np.delete(smooth, seed, axis=0).mean(axis=0).argmin()) for seed in range(len(smooth))]
    return np.array([curve[-1] - curve[epoch] for curve, epoch in zip(smooth, lowest, strict=True)])


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's, in -1..1; 0 where either does not vary."""
    from scipy import stats

    return float(stats.spearmanr(one, other).statistic) if np.ptp(one) and np.ptp(other) else 0.0
