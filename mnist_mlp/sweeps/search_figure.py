"""Draws a search: what each trial reached, and how that goes with each setting."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mnist_mlp.drawing.figure import defaults
from mnist_mlp.settings import as_override

# Of each end that a trial can come to: what the legend calls it, colour and marker.
ENDS = {
    TrialState.COMPLETE: ("complete", "#1a4f9c", "o"),
    TrialState.PRUNED: ("pruned", "#8a8a8a", "D"),
    TrialState.FAIL: ("failed", "#b3261e", "X"),
}
BEST = "#d97706"
COLUMNS = 4  # pictures of settings in a row
ROOM = 1.5  # how many times as far from the best as the worst quarter begins a trial still has its place


@defaults()
def draw(study: Study, objective: str, trials: Sequence[FrozenTrial]) -> Figure:
    """The objective by trial with the best so far, and under it the objective by each setting.

    A pruned trial stands at the value of its last epoch. A failed one has none and stands on the edge; so does, as an
    arrow, one so far off that the others could not be told apart.

    Args:
        study: of the search.
        objective: its name.
        trials: in their order, also those that have not ended, which are left out.
    """
    higher = study.direction == StudyDirection.MAXIMIZE
    ended = {number: trial for number, trial in enumerate(trials) if trial.state in ENDS}
    distributions = next((trial.distributions for trial in ended.values()), {})
    rows = math.ceil(len(distributions) / COLUMNS)
    figure = Figure(figsize=(3 * COLUMNS, 3.6 + 2.8 * rows), layout="constrained", dpi=120)
    grid = figure.add_gridspec(1 + rows, COLUMNS, height_ratios=[1.2] + [1] * rows, wspace=0.08)
    history = figure.add_subplot(grid[0, :])
    history.set(xlabel="trial", ylabel=objective)
    history.xaxis.set_major_locator(MaxNLocator(integer=True))
    complete = {
        at: trial.value for at, trial in ended.items() if trial.state == TrialState.COMPLETE and trial.value is not None
    }
    best = list(accumulate(complete.values(), max if higher else min))
    if best:
        history.step([*complete, max(ended)], [*best, best[-1]], where="post", color=BEST, label="best so far")
    _points(history, ended, list(ended), higher)
    handles, labels = history.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper right", ncols=len(handles), frameon=False)
    for index, (setting, distribution) in enumerate(distributions.items()):
        axes = figure.add_subplot(grid[1 + index // COLUMNS, index % COLUMNS])
        axes.set_xlabel(setting)
        if index % COLUMNS:
            axes.tick_params(labelleft=False)
        else:
            axes.set_ylabel(objective)
        values = [trial.params[setting] for trial in ended.values()]
        _points(axes, ended, _scale(axes, distribution, values), higher)
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _scale(axes: Axes, distribution: BaseDistribution, values: Sequence[object]) -> list[float]:
    """Gives the axis the whole range of what was searched; returns where the values are on it."""
    if isinstance(distribution, CategoricalDistribution):
        choices = list(distribution.choices)
        axes.set_xticks(range(len(choices)), [as_override(choice) for choice in choices])
        axes.set_xlim(-0.5, len(choices) - 0.5)
        return [choices.index(value) for value in values]  # type: ignore[arg-type]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    ticks = [low, math.sqrt(low * high) if distribution.log else (low + high) / 2, high]
    axes.set_xscale("log" if distribution.log else "linear")
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(low, high)
    return [float(str(value)) for value in values]


def _points(axes: Axes, trials: Mapping[int, FrozenTrial], places: Sequence[float], higher: bool) -> None:
    """Each trial at its place and its value."""
    sign = 1 if higher else -1
    known = sorted(sign * trial.value for trial in trials.values() if trial.value is not None) or [0.0]
    best, worst = known[-1], max(known[0], known[-1] - ROOM * (known[-1] - known[len(known) // 4]))
    margin = 0.06 * (best - worst) or 0.01
    axes.set_ylim(*sorted([sign * (worst - margin), sign * (best + margin)]))
    points: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for place, trial in zip(places, trials.values(), strict=True):
        name, colour, marker = ENDS[trial.state]
        value = worst - margin if trial.value is None else sign * trial.value  # on the edge, which is no value
        if trial.value is not None and value < worst:
            name, marker, value = f"{name}, further off", "v" if higher else "^", worst - margin
        points.setdefault((name, colour, marker), []).append((place, sign * value))
    for (name, colour, marker), positions in points.items():
        x, y = zip(*positions, strict=True)
        axes.scatter(x, y, s=30, c=colour, marker=marker, label=name, zorder=3, clip_on=False)
