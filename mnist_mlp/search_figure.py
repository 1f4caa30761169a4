"""Draws a search: what each trial reached, and how that goes with each setting."""

import statistics
from collections.abc import Sequence
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import CategoricalDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mnist_mlp.search import trials_of

# Of each end that a trial can come to: what the legend calls it, colour and marker.
ENDS = {
    TrialState.COMPLETE: ("complete", "#1a4f9c", "o"),
    TrialState.PRUNED: ("pruned", "#8a8a8a", "D"),
    TrialState.FAIL: ("failed", "#b3261e", "X"),
}
BEST = "#d97706"
COLUMNS = 4  # pictures of settings in a row
ROOM = 4.0  # how many times as far from the best as the median a trial is still shown in its place


def draw(study: Study) -> Figure:
    """The objective by trial with the best so far, and under it the objective by each setting.

    A pruned trial stands at the value of its last epoch. A failed one has none and stands on the edge; so does, as an
    arrow, one so far off that the others could not be told apart.
    """
    trials = [trial for trial in trials_of(study).values() if trial.state in ENDS]
    settings = list(trials[0].params) if trials else []
    rows = -(-len(settings) // COLUMNS)
    figure = Figure(figsize=(3 * COLUMNS, 3.6 + 2.8 * rows), layout="constrained", dpi=120)
    grid = figure.add_gridspec(1 + rows, COLUMNS, height_ratios=[1.2] + [1] * rows)
    objective = study.user_attrs["settings"]["search.objective"]
    higher = study.direction == StudyDirection.MAXIMIZE
    history = figure.add_subplot(grid[0, :])
    history.set(xlabel="trial", ylabel=objective)
    history.xaxis.set_major_locator(MaxNLocator(integer=True))
    complete = [(at, trial.value) for at, trial in enumerate(trials) if trial.state == TrialState.COMPLETE]
    if complete:
        best = list(accumulate((value for _, value in complete if value is not None), max if higher else min))
        history.step(
            [*(at for at, _ in complete), len(trials) - 1],
            [*best, best[-1]],
            where="post",
            color=BEST,
            label="best so far",
        )
    _points(history, trials, range(len(trials)), higher)
    figure.legend(*history.get_legend_handles_labels(), loc="outside upper right", ncols=5, frameon=False)
    for index, setting in enumerate(settings):
        axes = figure.add_subplot(grid[1 + index // COLUMNS, index % COLUMNS], sharey=history)
        axes.set_xlabel(setting)
        distribution = trials[0].distributions[setting]
        values = [trial.params[setting] for trial in trials]
        if isinstance(distribution, CategoricalDistribution):
            values = [distribution.choices.index(value) for value in values]
            axes.set_xticks(range(len(distribution.choices)), [str(choice) for choice in distribution.choices])
            axes.set_xlim(-0.5, len(distribution.choices) - 0.5)
        elif getattr(distribution, "log", False):
            axes.set_xscale("log")
        _points(axes, trials, values, higher)
        if index % COLUMNS:
            axes.tick_params(labelleft=False)
        else:
            axes.set_ylabel(objective)
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _points(axes: Axes, trials: list[FrozenTrial], places: Sequence[float], higher: bool) -> None:
    complete = [trial.value for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    known = complete or [trial.value for trial in trials if trial.value is not None] or [0.0]
    best = max(known) if higher else min(known)
    edge = best + ROOM * (statistics.median(known) - best)
    margin = 0.06 * (best - edge) or 0.01
    axes.set_ylim(*sorted([edge - margin, best + margin]))
    for state, (name, colour, marker) in ENDS.items():
        placed = [
            (place, edge if trial.value is None else trial.value)
            for place, trial in zip(places, trials, strict=True)
            if trial.state == state
        ]
        near = [(x, y) for x, y in placed if (y >= edge if higher else y <= edge)]
        far = [(x, edge) for x, y in placed if (y < edge if higher else y > edge)]
        for points, shape, label in ((near, marker, name), (far, "v" if higher else "^", None)):
            if points:
                x, y = zip(*points, strict=True)
                axes.scatter(x, y, s=30, c=colour, marker=shape, label=label, zorder=3)
