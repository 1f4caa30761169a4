import xml.etree.ElementTree as ET
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_mlp.report import figures
from mnist_mlp.report.figures import BLUE, DASHES, FLOOR, Curve, Stated, rendered
from mnist_mlp.report.original import original_runs
from mnist_mlp.run.directory import metrics_csv
from mnist_mlp.run.metrics import COLUMNS
from mnist_mlp.run.records import Run


def make_run(path: Path, **columns: list[float]) -> Run:
    path.mkdir()
    length = len(next(iter(columns.values())))
    rows = [
        {"epoch": epoch + 1} | {name: columns.get(name, [0.5] * length)[epoch] for name in COLUMNS[1:]}
        for epoch in range(length)
    ]
    (path / "metrics.csv").write_text(metrics_csv(rows))
    return Run(path, path.name, {"status": "completed", "epochs": length}, {})


def test_mean_and_sd_of_the_epochs_that_all_runs_have(tmp_path: Path) -> None:
    one = make_run(tmp_path / "a", **{"val/loss": [1.0, 5.0, 9.0], "train/loss": [0.5, 1.0, 1.0]})
    other = make_run(tmp_path / "b", **{"val/loss": [3.0, 5.0], "train/loss": [0.5, 3.0]})
    epochs, mean, sd = figures.mean_and_sd([one, other], "val/loss")
    assert epochs.tolist() == [1, 2]
    assert mean.tolist() == [2, 5]
    assert sd.tolist() == pytest.approx([2**0.5, 0])  # of 1 and 3: the root of (1 + 1) / 1
    assert figures.mean_and_sd([one, other], "gap")[1].tolist() == pytest.approx([(0.5 + 2.5) / 2, (4 + 2) / 2])
    assert figures.mean_and_sd([one], "gap")[2].tolist() == [0, 0, 0]


def test_a_chart_has_the_curves_and_the_reports_points(tmp_path: Path) -> None:
    own = original_runs()[0]
    run = make_run(tmp_path / "a", **{"val/loss": [0.3, 0.25, 0.75], "train/loss": [0.5, 1e-9, 0.0]})
    axes = figures.loss_and_error(run, "title", own.points, [Stated("val/loss", 3, 0.65)]).axes[0]
    lines = [line.get_ydata() for line in axes.lines]
    assert any(np.array_equal(line, [0.3, 0.25, 0.75]) for line in lines)
    assert any(np.array_equal(line, [0.5, FLOOR, FLOOR]) for line in lines)  # the edge of a logarithmic scale
    assert any(np.array_equal(line, own.points["val/loss"]) for line in lines)
    assert any(np.array_equal(line, 1 - own.points["val/accuracy"]) for line in lines)
    assert any(np.array_equal(line, [0.65]) for line in lines)
    assert axes.get_title() == "title"


def test_names_at_the_ends_of_lines_do_not_cover_each_other(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", **{column: [0.5, 0.02] for column in COLUMNS[1:]})
    figure = figures.loss_and_error(run, "title")
    heights = sorted(text.xy[1] for text in figure.axes[0].texts)  # type: ignore[attr-defined]
    assert len(heights) == 4
    assert np.diff(heights).min() >= figures.SEPARATION - 1e-9
    assert heights[0] > -0.3
    assert heights[-1] <= 1


def test_below_the_metrics_stand_their_distances_from_the_accuracy(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", **{"val/accuracy": [0.9, 0.96], "val/recall": [0.9, 0.96], "val/f1": [0.91, 0.95]})
    lower = figures.classification(run, "title").axes[1]
    assert any(np.allclose(line.get_ydata(), [1, -1]) for line in lower.lines)
    assert any(np.array_equal(line.get_ydata(), [0, 0]) for line in lower.lines)


def test_the_same_runs_give_the_same_bytes_in_either_form(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), **{"val/accuracy": [0.9, 0.95 + seed / 100, 1.0]}) for seed in range(3)]
    lines = [Curve("a < b & c", BLUE, DASHES[0], runs)]

    def build() -> figures.Figure:
        return figures.together(lines, "val/accuracy", "Accuracy")

    png, svg = rendered(build)
    assert rendered(build) == (png, svg)
    assert Image.open(BytesIO(png)).size == (
        round(figures.WIDTH * figures.DPI),
        round((figures.HEIGHT + 0.2) * figures.DPI),
    )
    texts = [element.text for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert "a < b & c" in texts
    assert "95" in texts  # a tick
    assert b"date" not in svg


@pytest.mark.parametrize("column", figures.charted())
def test_every_metric_can_be_drawn_where_it_does_not_change_and_where_it_is_0(tmp_path: Path, column: str) -> None:
    for number, value in enumerate((0.0, 1.0)):
        run = make_run(tmp_path / str(number), **{name: [value] for name in COLUMNS[1:]})
        rendered(lambda run=run: figures.together([Curve("a", BLUE, "-", [run])], column, "title"))
