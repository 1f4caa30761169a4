import io
import random
import subprocess
import sys
from itertools import combinations, pairwise

import numpy as np
import pytest
from backprop.expressions import random_expression
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from mnist_mlp.backprop.expression import parse
from mnist_mlp.backprop.graph import final, frame_figure, frames
from mnist_mlp.backprop.layout import Layout
from mnist_mlp.backprop.passes import Passes, work
from mnist_mlp.drawing.figure import png, svg
from mnist_mlp.settings import compose_config

EXPRESSIONS = {
    "x*x": {"x": 3.0},
    "tanh(a*b + c)**2": {"a": 0.5, "b": -2.0, "c": 0.1},
    "x*x + sin(x)/y - max(x,y)*relu(2-x)": {"x": 1.2, "y": 2.0},
    "exp(-sigmoid(sqrt(x*x + y*y)) / (1 + exp(-x)))*y": {"x": 1.2, "y": 2.0},
    "q = x*y; f = x + 1": {"x": 1.0, "y": 2.0},
    "x": {"x": 1.0},
    "2 + 3": {},
}


@pytest.fixture(scope="module")
def report() -> Passes:
    config = compose_config([], "backprop")
    return work(parse(config.expression), dict(config["values"]))


def passes_of(text: str) -> Passes:
    return work(parse(text), EXPRESSIONS[text])


def test_the_reports_figures_1_to_7(report: Passes) -> None:
    assert [frame.title for frame in frames(report)] == [
        "Forward: q and t",
        "Forward: s and g",
        "Forward: p and r",
        "Forward: f",
        "Backward: df/dp, df/dr",
        "Backward: df/dq, df/dt, df/ds, df/dg",
        "Backward: df/dx1, df/dw1, df/dx2, df/dw2, df/dx3, df/dw3, df/dx4, df/dw4",
    ]


def test_a_title_names_no_more_than_it_has_room_for() -> None:
    text = "(({}+{})*({}+{}))*(({}+{})*({}+{}))"
    doubled = f"({text})*({text})".format(*(f"x{i}" for i in range(16)))
    passes = work(parse(doubled), {f"x{i}": 1.0 for i in range(16)})
    assert frames(passes)[-1].title == f"Backward: {', '.join(f'df/dx{i}' for i in range(8))}, …"


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_frames_add_up_to_the_final_picture(text: str) -> None:
    passes = passes_of(text)
    shown = frames(passes)
    for before, after in pairwise(shown):
        assert before.values <= after.values
        assert before.gradients <= after.gradients
        assert before.edges <= after.edges
        # A node's gradient comes when all of its terms are there.
        for index in after.gradients:
            assert set(passes.uses()[index]) <= after.edges
    if len(shown) > 1:
        assert shown[-1][1:4] == final(passes)[1:4]


def texts_of(passes: Passes, last: bool = True) -> list[str]:
    figure = frame_figure(Layout(passes), final(passes) if last else frames(passes)[0])
    return [text.get_text() for text in figure.axes[0].texts]


def test_the_final_picture_has_every_number_of_the_report(report: Passes) -> None:
    texts = texts_of(report)
    for expected in (
        *("x1 = 0.7", "df/dx1 = 0.345", "q = x1 · w1", "= −1.05", "df/dp = −0.23", "df/dr = −1.169", "= 0.26887"),
        *("df/dw1 = −0.161", "df/dx2 = 0.0805", "df/dw2 = −0.0782", "df/dx3 = 0.29225", "df/dw3 = −0.2338"),
        *("df/dx4 = −0.2338", "df/dw4 = 1.0521", "(−0.23) · (−1.5)\n= 0.345"),
    ):
        assert expected in texts
    first = texts_of(report, last=False)
    assert {"q = x1 · w1", "= −1.05", "= −0.119", "f = p · r"} <= set(first)
    assert not {"= −0.05", "= 0.26887"} & set(first)
    assert not [text for text in first if "df" in text]


def overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def corners(box: object) -> tuple[float, float, float, float]:
    x, y, width, height = box  # type: ignore[misc]
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def check_nothing_collides(passes: Passes) -> None:
    layout = Layout(passes)
    boxes = [corners(box) for box in layout.boxes]
    for a, b in combinations(boxes, 2):
        assert not overlap(a, b)
    assert all(boxes[operand][2] < boxes[user][0] for operand, user, _ in layout.edges)  # left to right
    for box in boxes:
        assert box[0] > 0
        assert box[1] > 0
        assert box[2] < layout.width
        assert box[3] < layout.height
    # As matplotlib measures the text: within its box, or on its edge clear of every box and of every other text.
    figure = frame_figure(layout, final(passes))
    renderer = FigureCanvasAgg(figure).get_renderer()
    dpi = figure.dpi
    extents = {}
    for number, text in enumerate(figure.axes[0].texts):
        left, bottom, right, top = text.get_window_extent(renderer).extents / dpi
        extents[number, text.get_text()] = (left, bottom, right, top)
    for a, b in combinations(extents, 2):
        assert not overlap(extents[a], extents[b]), (a, b)
    for (_, text), (left, bottom, right, top) in extents.items():
        assert left > 0
        assert right < layout.width
        inside = [box for box in boxes if overlap((left, bottom, right, top), box)]
        if "\n" in text:
            assert not inside, text
        for box in inside:
            assert box[0] <= left, text
            assert right <= box[2], text
            assert box[1] <= bottom + 0.05, text
            assert top - 0.05 <= box[3], text


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_nothing_collides(text: str) -> None:
    check_nothing_collides(passes_of(text))


def test_nothing_collides_in_the_reports_picture(report: Passes) -> None:
    check_nothing_collides(report)


def test_boxes_of_random_graphs_stand_apart_from_left_to_right() -> None:
    generator = random.Random(3)
    for _ in range(12):
        text, values = random_expression(generator)
        passes = work(parse(text), values)
        layout = Layout(passes)
        boxes = [corners(box) for box in layout.boxes]
        assert not [pair for pair in combinations(boxes, 2) if overlap(*pair)]
        assert all(boxes[operand][2] < boxes[user][0] for operand, user, _ in layout.edges)


def test_a_deep_graph_is_wrapped() -> None:
    text = "h0 = x; " + "; ".join(f"h{i + 1} = tanh(h{i}*w)" for i in range(14))
    passes = work(parse(text), {"x": 0.5, "w": 1.2})
    layout = Layout(passes)
    assert layout.width < 30  # inches; 28 operations in a row take 150
    nodes = passes.graph.nodes
    assert {(layout.items[operand], user, slot) for operand, user, slot in layout.edges} == {
        (operand, user, slot) for user, node in enumerate(nodes) for slot, operand in enumerate(node.operands)
    }
    shown = layout.nodes[len(nodes) :]
    assert {node.name for node in shown} == {"w", "h2", "h4", "h6", "h8", "h10", "h12"}
    for operand, user, _ in layout.edges:  # no edge goes from one row to another
        assert abs(layout.boxes[operand].y - layout.boxes[user].y) < 1.5
    tops = [layout.boxes[user].y for _, user, _ in layout.edges]
    assert tops == pytest.approx(sorted(tops, reverse=True), abs=1.0)
    check_nothing_collides(passes)
    texts = texts_of(passes)
    assert sum(text.startswith("w = ") for text in texts) == 7
    assert sum(text.startswith("dh14/dw = ") for text in texts) == 1
    assert "Dashed: a value from a row above" in "".join(texts)
    assert "Dashed" not in "".join(texts_of(passes_of("x*x")))


def test_a_square_has_two_edges_drawn_apart() -> None:
    layout = Layout(passes_of("x*x"))
    upper, lower = (np.array(layout.curves[1, slot]) for slot in (0, 1))
    assert (upper[:, 1] - lower[:, 1] > 0.15).all()
    assert not overlap(corners(layout.labels[1, 0]), corners(layout.labels[1, 1]))


def test_a_tree_is_drawn_without_crossings(report: Passes) -> None:
    layout = Layout(report)
    assert layout._crossings([link for route in layout.routes.values() for link in pairwise(route)]) == 0
    # In the order in which the expression names them.
    inputs = sorted(report.inputs(), key=lambda index: -layout.boxes[index].y)
    assert inputs == report.inputs()


def test_pictures_are_whole_and_the_same_every_time(report: Passes) -> None:
    with Image.open(io.BytesIO(png(frame_figure(Layout(report), final(report))))) as image:
        image.load()
        assert image.width > 1000
    code = (
        "import hashlib\n"
        "from mnist_mlp.backprop.expression import parse; from mnist_mlp.backprop.passes import work\n"
        "from mnist_mlp.backprop.graph import final, frame_figure; from mnist_mlp.backprop.layout import Layout\n"
        "from mnist_mlp.drawing.figure import svg\n"
        "passes = work(parse('x*x + sin(x)/y - max(x,y)*relu(2-x)'), {'x': 1.2, 'y': 2})\n"
        "print(hashlib.sha256(svg(frame_figure(Layout(passes), final(passes)))).hexdigest())\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert svg(frame_figure(Layout(report), final(report))).startswith(b"<?xml")
