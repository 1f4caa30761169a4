import xml.etree.ElementTree as ET
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from mnist_mlp.report import figures
from mnist_mlp.report.evidence import Columns
from mnist_mlp.report.figures import BLUE, FLOOR, VERMILLION, Curve, Stated, rendered
from mnist_mlp.report.original import original_runs
from mnist_mlp.run.metrics import COLUMNS


def made(length: int = 2, **columns: list[float]) -> Columns:
    table = {name: np.full(length, 0.5) for name in COLUMNS[1:]} | {"epoch": np.arange(1.0, length + 1)}
    return table | {name: np.array(values) for name, values in columns.items()}


def test_the_range_of_the_epochs_that_all_runs_have() -> None:
    one = made(3, **{"val/loss": [1.0, 5.0, 9.0], "train/loss": [0.5, 1.0, 1.0]})
    other = made(2, **{"val/loss": [3.0, 5.0], "train/loss": [0.5, 3.0]})
    assert [values.tolist() for values in figures.ranges([one, other], "val/loss")] == [[2, 5], [1, 5], [3, 5]]
    assert [values.tolist() for values in figures.ranges([one, other], "gap")] == [[1.5, 3], [0.5, 2], [2.5, 4]]


def test_a_chart_has_our_curves_and_the_reports() -> None:
    own = original_runs()[0]
    run = made(3, **{"val/loss": [0.3, 0.25, 0.75], "train/loss": [0.5, 1e-9, 0.0]})
    figure = figures.losses_and_errors(Curve("", BLUE, [run]), "title", own.epochs, [Stated("val/loss", 3, 0.65)])
    lines = [line.get_ydata() for line in figure.axes[0].lines]
    assert any(np.array_equal(line, [0.3, 0.25, 0.75]) for line in lines)
    assert any(np.array_equal(line, [0.5, FLOOR, FLOOR]) for line in lines)  # the edge of a logarithmic scale
    assert any(np.array_equal(line, [0.65]) for line in lines)
    recorded = [line for line in lines if len(line) == 500]
    assert any(line[-1] == pytest.approx(0.711668, abs=1e-4) for line in recorded)
    errors = [line.get_ydata() for line in figure.axes[1].lines if len(line.get_ydata()) == 500]
    assert any(line[0] == 0.0335 for line in errors)


def test_a_band_has_every_extreme_of_every_seed() -> None:
    generator = np.random.default_rng(0)
    runs = [made(500, **{"val/loss": generator.uniform(0.1, 0.9, 500)}) for _ in range(3)]  # type: ignore[arg-type]
    axes = figures.by_network({"A": [Curve("a", BLUE, runs)]}, "val/loss", "title", "linear").axes[0]
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    values = np.stack([run["val/loss"] for run in runs])
    assert (heights.min(), heights.max()) == (values.min(), values.max())
    assert len(heights) < 500  # of 1,000


def test_panels_share_a_scale_that_shows_both() -> None:
    low, high = made(**{"val/loss": [0.01, 0.02]}), made(**{"val/loss": [2.0, 4.0]})
    panels = {"A": [Curve("a", BLUE, [high])], "B": [Curve("b", VERMILLION, [low])]}
    figure = figures.by_network(panels, "val/loss", "title", "linear")
    for axes in figure.axes:
        assert axes.get_ylim()[0] < 0.01
        assert axes.get_ylim()[1] > 4


@pytest.mark.parametrize(("label", "legends"), [("short", 0), ("a label that is too long for the end of a line", 1)])
def test_names_at_the_ends_of_lines_do_not_cover_each_other(label: str, legends: int) -> None:
    curves = [Curve(f"{label} {number}", BLUE, [made()]) for number in range(4)]
    figure = figures.by_network({"A": curves}, "train/loss", "title", "linear")
    heights = sorted(text.xy[1] for text in figure.axes[0].texts)  # type: ignore[attr-defined]
    assert len(figure.legends) == legends
    assert len(heights) == (0 if legends else 4)
    if heights:
        assert np.diff(heights).min() >= figures.SEPARATION - 1e-9
        assert heights[-1] <= 1


def test_a_line_that_ends_before_the_others_says_so() -> None:
    curves = [Curve("long", BLUE, [made(9)]), Curve("brief", VERMILLION, [made(4)])]
    axes = figures.by_network({"A": curves}, "val/loss", "title", "linear").axes[0]
    assert {text.get_text() for text in axes.texts} == {"brief, to 4", "long"}


def test_beside_the_accuracy_stand_the_distances_from_it() -> None:
    run = made(**{"val/accuracy": [0.9, 0.96], "val/recall": [0.9, 0.96], "val/f1": [0.91, 0.95]})
    right = figures.accuracy_and_others(Curve("", BLUE, [run]), "title", None, []).axes[1]
    assert any(np.allclose(line.get_ydata(), [1, -1]) for line in right.lines)
    assert any(np.array_equal(line.get_ydata(), [0, 0]) for line in right.lines)


def test_a_layer_is_drawn_as_high_as_it_is_wide() -> None:
    axes = figures.networks({"A": (784, 64, 10), "B": (784, 256, 10)}, "title").axes
    assert [[bar.get_height() for bar in place.patches[-3:]] for place in axes] == [[784, 64, 10], [784, 256, 10]]
    assert axes[0].get_title(loc="left") or axes[0].get_title() == "A: 50,890 parameters"  # 785·64 + 65·10


def test_the_same_runs_give_the_same_bytes_in_either_form() -> None:
    runs = [made(3, **{"val/accuracy": [0.9, 0.95 + seed / 100, 1.0]}) for seed in range(3)]

    def build() -> figures.Figure:
        return figures.by_network({"N": [Curve("a < b & c", BLUE, runs)]}, "val/accuracy", "Accuracy", "linear")

    png, svg = rendered(build)
    assert rendered(build) == (png, svg)
    assert Image.open(BytesIO(png)).size == (figures.WIDTH * figures.DPI, figures.HEIGHT * figures.DPI)
    texts = [element.text for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert "a < b & c" in texts
    assert "95" in texts  # a tick
    assert b"date" not in svg


@pytest.mark.parametrize("column", figures.charted())
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_every_metric_can_be_drawn_where_it_does_not_change_and_where_it_is_0(column: str, value: float) -> None:
    run = made(1, **{name: [value] for name in COLUMNS[1:]})
    figures.by_network({"A": [Curve("a", BLUE, [run])]}, column, "title", "log").draw_without_rendering()
