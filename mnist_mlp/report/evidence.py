"""Which runs speak for an experiment, and what they say with what uncertainty."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from mnist_mlp.run.groups import EXPERIMENTS, by_length, completed, configured
from mnist_mlp.run.identity import other_experiment
from mnist_mlp.run.records import Run

MODELS = {"A": "network_a", "B": "network_b"}
TAIL = 5  # epochs at a run's end that are averaged where seeds are compared: from one to the next there is much noise

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
        SettingError: a `metrics.csv` cannot be read.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        cases: dict[Case, list[Run]] = {
            Case(experiment, network): [] for experiment in EXPERIMENTS for network in MODELS
        }
        networks = {model: network for network, model in MODELS.items()}
        for run in runs:
            case = Case(run.experiment, networks.get(run.model, ""))
            whole = run.completed and 0 < len(run.epochs) == run.planned
            if case in cases and whole and not deviations(run):
                cases[case].append(run)
        self._runs = {
            case: {length: {run.seed: run for run in completed(of_it)} for length, of_it in by_length(of_case).items()}
            for case, of_case in cases.items()
        }
        self._lacking: dict[Case, list[Run]] = {}
        self._asked: set[Case] = set()

    def having(self, columns: Collection[str]) -> "Evidence":
        """Of these runs those whose `metrics.csv` has all of these columns."""
        found = Evidence([])
        for case, lengths in self._runs.items():
            found._lacking[case] = [run for run in self.all(case) if not run.has(columns)]
            kept = {
                length: {seed: run for seed, run in seeds.items() if run.has(columns)}
                for length, seeds in lengths.items()
            }
            found._runs[case] = {length: seeds for length, seeds in kept.items() if seeds}
        return found

    def left_out(self) -> list[Run]:
        """The runs that `having` left out of the cases that were asked for since."""
        return [run for case in sorted(self._asked) for run in self._lacking.get(case, [])]

    def _lengths(self, case: Case) -> dict[int, dict[int, Run]]:
        self._asked.add(case)
        return self._runs[case]

    def all(self, case: Case) -> list[Run]:
        """Every run of the case."""
        return [run for seeds in self._lengths(case).values() for run in seeds.values()]

    def longest(self, case: Case) -> Run | None:
        """Of the longest runs the one with the lowest seed."""
        lengths = self._lengths(case)
        if not lengths:
            return None
        seeds = lengths[max(lengths)]
        return seeds[min(seeds)]

    def seeds(self, *cases: Case) -> tuple[list[Run], ...] | None:
        """The runs of each case over the seeds that all have, at the length at which there are most of them (the
        longest of these); None where there are not two."""
        best: tuple[int, int] = (1, 0)
        for length in set.intersection(*(set(self._lengths(case)) for case in cases)):
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
        return Comparison(found[0][0].length, ones, others, t_interval(ones - others))


def deviations(run: Run) -> dict[str, object]:
    """The run's settings that make it another experiment than the one whose name it has.

    Empty where it is what it is called; so a run with another rate is no evidence for or against the original report.
    """
    if run.experiment not in EXPERIMENTS or run.model not in MODELS.values():
        return {}
    expected = configured(run.experiment, run.model) or {}
    found: dict[str, object] = {name: ours for name, (_, ours) in other_experiment(expected, run.settings).items()}
    if run.settings.get("data.seed") != run.settings.get("seed"):
        found["data.seed"] = run.settings.get("data.seed")
    return found


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
