"""Which runs speak for an experiment, and what they say with what uncertainty."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from mnist_mlp.run.groups import EXPERIMENTS, configured
from mnist_mlp.run.identity import other_experiment
from mnist_mlp.run.records import Run

MODELS = {"A": "network_a", "B": "network_b"}
LAST = 500  # the original report's last epoch
SHORT = 100  # the length of the runs that ask what the original report did not try
TAIL = 5  # epochs at a run's end that are averaged: from one to the next there is much noise

Columns = Mapping[str, np.ndarray]  # of metrics.csv: float64, one value per epoch
Measure = Callable[[Sequence[Columns]], np.ndarray]  # of runs over several seeds: one number each


class Treatment(NamedTuple):
    """The settings in which the experiments differ from the baseline; everything else is the same in all of them."""

    dropout: float
    init: str
    scheduler: str  # none, or step: a tenth of the rate after every 10 epochs
    rate: float

    def __str__(self) -> str:
        for name, treatment in treatments().items():
            if treatment == self:
                return name
            if name == "dropout_as_run" and self.dropout and treatment._replace(dropout=self.dropout) == self:
                return f"{name} with dropout {self.dropout:g}"
        return f"dropout {self.dropout:g}, {self.init} weights, scheduler {self.scheduler}, rate {self.rate:g}"


class Case(NamedTuple):
    """A treatment and a network, A or B."""

    treatment: Treatment
    network: str

    def __str__(self) -> str:
        return f"{self.treatment} {self.network}"


def case(experiment: str, network: str, **changed: Any) -> Case:
    """One of the experiments, with some of its treatment changed."""
    return Case(treatments()[experiment]._replace(**changed), network)


@cache
def treatments() -> dict[str, Treatment]:
    """Of each experiment, by name."""
    found = {name: _treatment(configured(name, "network_a") or {}, "network_a") for name in EXPERIMENTS}
    return {name: treatment for name, treatment in found.items() if treatment}


@cache
def _step() -> dict[str, Any]:
    """The settings of the scheduler that the original report meant."""
    settings = configured("dropout_as_intended", "network_a") or {}
    return {name: value for name, value in settings.items() if name.startswith("scheduler.")}


def _treatment(settings: Mapping[str, Any], model: str) -> Treatment | None:
    """None where the settings change anything else of the baseline that is computed."""
    changed = {
        name: ours for name, (_, ours) in other_experiment(configured("baseline", model) or {}, settings).items()
    }
    scheduler = {name: changed.pop(name) for name in list(changed) if name.startswith("scheduler")}
    dropout, init = settings["model.dropout"], settings["model.init"]
    rate = changed.pop("optimizer.lr", settings["optimizer.lr"])
    for name in ("model.dropout", "model.init"):
        changed.pop(name, None)
    stepped = {name: value for name, value in scheduler.items() if value is not None} == _step()
    if changed or (scheduler and not stepped):
        return None
    return Treatment(float(dropout), str(init), "step" if scheduler else "none", float(rate))


def treatment_of(run: Run) -> Case | None:
    """What a run is evidence for, whatever it is called; None where it is none for or against the original report."""
    network = {model: network for network, model in MODELS.items()}.get(run.model)
    if network is None or not run.settings or run.settings.get("data.seed") != run.settings.get("seed"):
        return None
    try:
        treatment = _treatment(run.settings, run.model)
    except (KeyError, TypeError, ValueError):  # a network or an optimizer that has no such setting
        return None
    return treatment and Case(treatment, network)


class Interval(NamedTuple):
    """A mean with a 95 % interval, and the two-sided p-value of what the interval is compared with."""

    mean: float
    low: float
    high: float
    p: float


class Contrast(NamedTuple):
    """A weighted sum of a measure over cases, seed by seed.

    Args:
        seeds: those that all cases have.
        values: the measure of each case, one number for each seed.
        total: the weighted sum, one number for each seed.
    """

    seeds: list[int]
    values: dict[Case, np.ndarray]
    total: np.ndarray


class Evidence:
    """The completed runs that speak for or against the original report: for each case and seed the longest one.

    Args:
        runs: any runs; a run that lies in two directories counts once.

    Raises:
        SettingError: a `metrics.csv` cannot be read.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs: dict[Case, dict[Any, Run]] = {}
        self._lacking: dict[Case, list[Run]] = {}
        self._asked: set[Case] = set()
        for run in runs:
            whole = run.completed and 0 < len(run.epochs) == run.planned
            of_it = treatment_of(run) if whole else None
            if of_it:
                seeds = self._runs.setdefault(of_it, {})
                if run.seed not in seeds or seeds[run.seed].length < run.length:
                    seeds[run.seed] = run

    def __bool__(self) -> bool:
        return bool(self._runs)

    def having(self, columns: Collection[str]) -> "Evidence":
        """Of these runs those whose `metrics.csv` has all of these columns."""
        found = Evidence([])
        for of_it, seeds in self._runs.items():
            found._lacking[of_it] = [run for run in seeds.values() if not run.has(columns)]
            found._runs[of_it] = {seed: run for seed, run in seeds.items() if run.has(columns)}
        return found

    def left_out(self) -> list[Run]:
        """The runs that `having` left out of the cases that were asked for since."""
        return [run for of_it in sorted(self._asked) for run in self._lacking.get(of_it, [])]

    def runs(self, of_it: Case, epochs: int = 1) -> dict[int, Run]:
        """The runs of a case with that many epochs or more, by seed."""
        self._asked.add(of_it)
        seeds = self._runs.get(of_it, {})
        return {seed: seeds[seed] for seed in sorted(seeds) if seeds[seed].length >= epochs}

    def curves(self, of_it: Case, epochs: int) -> dict[int, Columns]:
        """The first epochs of each run that has as many, by seed."""
        return {seed: first(run.epochs.table, epochs) for seed, run in self.runs(of_it, epochs).items()}

    def contrast(self, weights: Mapping[Case, float], measure: Measure, epochs: int) -> Contrast | None:
        """The measure after so many epochs, weighted over the cases; None where not two seeds have them all."""
        curves = {of_it: self.curves(of_it, epochs) for of_it in weights}
        seeds = sorted(set.intersection(*(set(found) for found in curves.values())))
        if len(seeds) < 2:
            return None
        values = {of_it: measure([found[seed] for seed in seeds]) for of_it, found in curves.items()}
        total: np.ndarray = np.sum([weight * values[of_it] for of_it, weight in weights.items()], axis=0)
        return Contrast(seeds, values, total)


def first(columns: Columns, epochs: int) -> Columns:
    """The first epochs of a run."""
    return {name: values[:epochs] for name, values in columns.items()}


def t_interval(values: Sequence[float] | np.ndarray, told: float | None = None) -> Interval:
    """The mean of two values or more with its 95 % interval by Student's t, and the p-value of its being 0.

    With `told` the interval is that of one more value, which scatters too, and the p-value is of its being `told`. Of
    equal values the interval has no width.
    """
    from scipy import stats

    array = np.asarray(values, np.float64)
    mean, freedom = float(array.mean()), len(array) - 1
    error = float(array.std(ddof=1)) * (1 / len(array) + (told is not None)) ** 0.5
    half, away = float(stats.t.ppf(0.975, freedom)) * error, abs(mean - (told or 0))
    p = float(2 * stats.t.sf(away / error, freedom)) if error else float(away == 0)
    return Interval(mean, mean - half, mean + half, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for being several, by Holm's method (https://www.jstor.org/stable/4615733)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest_so_far = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        highest_so_far = max(highest_so_far, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest_so_far
    return adjusted


def each(read: Callable[[Columns], float]) -> Measure:
    """A measure that looks at one run at a time."""
    return lambda runs: np.array([read(run) for run in runs], np.float64)


def tail(column: str) -> Measure:
    """The mean of a column of `metrics.csv` over the last `TAIL` epochs."""
    return each(lambda run: run[column][-TAIL:].mean())


def last(column: str, epoch: int = 0) -> Measure:
    """A column in its last epoch, or in another, counted from 1."""
    return each(lambda run: run[column][epoch - 1])


def highest(column: str) -> Measure:
    """The highest value of a column of `metrics.csv`."""
    return each(lambda run: run[column].max())


def gap(runs: Sequence[Columns]) -> np.ndarray:
    """Validation loss less training loss, over the last `TAIL` epochs: the generalisation gap."""
    return tail("val/loss")(runs) - tail("train/loss")(runs)


def rise(runs: Sequence[Columns]) -> np.ndarray:
    """How far the validation loss ends above where it is lowest, both as means of `TAIL` epochs.

    The lowest of many noisy values is low by luck, and the end would lie above it even if nothing rose. So where the
    lowest is, the mean curve of the *other* seeds says; of a run alone, its own.
    """
    losses = np.array([run["val/loss"] for run in runs])
    means = np.lib.stride_tricks.sliding_window_view(losses, min(TAIL, losses.shape[1]), axis=1).mean(axis=-1)
    others = [np.delete(means, seed, axis=0) if len(means) > 1 else means for seed in range(len(means))]
    lowest = [int(curves.mean(axis=0).argmin()) for curves in others]
    return np.array([curve[-1] - curve[epoch] for curve, epoch in zip(means, lowest, strict=True)])


def window(length: int) -> int:
    """How many epochs a running median is over: 21 of 500, and one of few."""
    return 2 * (length // 50) + 1


def smooth(values: np.ndarray) -> np.ndarray:
    """The running median of a curve; towards its ends of fewer epochs, as many to each side."""
    half, end = window(len(values)) // 2, len(values) - 1
    reach = [min(half, place, end - place) for place in range(len(values))]
    return np.array([np.median(values[place - by : place + by + 1]) for place, by in enumerate(reach)])


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's, in -1..1; 0 where either does not vary."""
    from scipy import stats

    return float(stats.spearmanr(one, other).statistic) if np.ptp(one) and np.ptp(other) else 0.0
