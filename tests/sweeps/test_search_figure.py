from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from optuna import create_study
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from mnist_mlp.drawing.figure import png
from mnist_mlp.sweeps.search_figure import draw

SPACE: dict[str, Any] = {
    "optimizer.lr": FloatDistribution(1e-4, 1e-2, log=True),
    "data.batch_size": CategoricalDistribution([32, 64]),
}


def trial(lr: float, batch_size: int, value: float | None, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    params = {"optimizer.lr": lr, "data.batch_size": batch_size}
    return create_trial(state=state, params=params, distributions=SPACE, value=value)


def points(axes: Axes) -> dict[str, list[list[float]]]:
    return {str(drawn.get_label()): np.asarray(drawn.get_offsets()).tolist() for drawn in axes.collections}


def test_every_trial_is_where_its_values_are() -> None:
    trials = [
        trial(1e-3, 32, 0.9),
        trial(2e-3, 64, None, TrialState.FAIL),
        trial(3e-3, 64, 0.8, TrialState.PRUNED),
        trial(4e-3, 32, None, TrialState.RUNNING),  # has not come to an end
        trial(5e-3, 64, 0.95),
        trial(6e-3, 64, 0.91),
        trial(7e-3, 64, 0.1),  # far from the others
    ]
    history, rate, batch_size = draw(create_study(direction="maximize"), "val/accuracy", trials).axes
    edge, _ = history.get_ylim()
    assert edge == pytest.approx(0.95 - 1.06 * 1.5 * (0.95 - 0.8))
    assert points(history) == {
        "complete": [[0, 0.9], [4, 0.95], [5, 0.91]],
        "failed": [[1, edge]],
        "pruned": [[2, 0.8]],
        "complete, further off": [[6, edge]],
    }
    assert points(rate)["complete"] == [[1e-3, 0.9], [5e-3, 0.95], [6e-3, 0.91]]
    assert points(batch_size)["complete"] == [[0, 0.9], [1, 0.95], [1, 0.91]]
    assert [label.get_text() for label in batch_size.get_xticklabels()] == ["32", "64"]
    (best,) = history.lines
    assert np.asarray(best.get_xydata()).tolist() == [[0, 0.9], [4, 0.95], [5, 0.95], [6, 0.95], [6, 0.95]]


def test_a_search_without_results_is_a_picture_too() -> None:
    for trials in ([], [trial(1e-3, 32, None, TrialState.FAIL)]):
        assert png(draw(create_study(), "val/loss", trials))
