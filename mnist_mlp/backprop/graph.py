"""Draws a computational graph, frame by frame: values forward, then gradients backward on the edges."""

from collections.abc import Iterator
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path

from mnist_mlp.backprop.layout import LINE, MARGIN, PADDING, SIZE, SYMBOLS, TITLE, Edge, Layout
from mnist_mlp.backprop.passes import Passes
from mnist_mlp.drawing.figure import defaults

FORWARD, BACKWARD, PLAIN, FAINT = "#1a4f9c", "#b3261e", "#222222", "#a8a8a8"
DPI, WIDEST = 120, 12000  # pixels
NAMED = 8  # gradients that a title names


class Frame(NamedTuple):
    """What a picture shows: the nodes (by position) whose values and gradients are known, and those that are new."""

    title: str
    values: set[int]
    gradients: set[int]
    edges: set[Edge]
    new: set[int]


def frames(passes: Passes) -> list[Frame]:
    """The passes in steps: forward the values that one node waits for, backward one distance from the result at a time.

    For the original report's function these are its Figures 1 to 7.
    """
    return [*_forward(passes), *_backward(passes)]


def _forward(passes: Passes) -> Iterator[Frame]:
    nodes = passes.graph.nodes
    values = {index for index, node in enumerate(nodes) if not node.operands}
    for group in _waited_for(passes):
        values = values | set(group)
        named = " and ".join(nodes[index].name for index in group)
        yield Frame(f"Forward: {named}", values, set(), set(), set(group))


def _waited_for(passes: Passes) -> list[list[int]]:
    """The computed nodes in groups: those in a row that the same node uses first and that do not use each other."""
    nodes = passes.graph.nodes
    first_user = {operand: i for i, node in reversed(list(enumerate(nodes))) for operand in node.operands}
    groups: list[list[int]] = []
    for index, node in enumerate(nodes):
        if not node.operands:
            continue
        together = groups and index in first_user and first_user[index] == first_user.get(groups[-1][0])
        if together and not set(groups[-1]) & set(node.operands):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _backward(passes: Passes) -> Iterator[Frame]:
    nodes, output = passes.graph.nodes, passes.graph.output
    uses, distances = passes.uses(), passes.distances()
    values, gradients, edges = set(range(len(nodes))), {output}, set[Edge]()
    for distance in range(1, max(distances, default=0) + 1):
        new = {index for index in range(len(nodes)) if uses[index] and distances[index] == distance}
        edges = edges | {use for of in uses for use in of if distances[use[0]] == distance - 1}
        gradients = gradients | new
        slopes = [f"d{nodes[output].name}/d{nodes[index].name}" for index in sorted(new)]
        named = ", ".join(slopes if len(slopes) <= NAMED else [*slopes[:NAMED], "…"])
        yield Frame(f"Backward: {named}", values, gradients, edges, new)


def final(passes: Passes) -> Frame:
    """Everything, nothing of it new."""
    edges = {use for uses in passes.uses() for use in uses}
    every = set(range(len(passes.values)))
    gradients = {index for index in every if passes.gradients[index] is not None}
    return Frame("Values forward, gradients backward", every, gradients, edges, set())


@defaults()
def frame_figure(layout: Layout, frame: Frame) -> Figure:
    """One picture."""
    figure = Figure(figsize=(layout.width, layout.height), dpi=min(DPI, WIDEST / layout.width))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, layout.width), ylim=(0, layout.height))
    axes.axis("off")
    axes.text(MARGIN, layout.height - TITLE / 2 - 0.1, frame.title, size=SIZE + 3, va="center", color=PLAIN)
    if frame.gradients:
        axes.text(MARGIN, MARGIN, layout.legend, size=SIZE, va="center", color=BACKWARD)
    for edge, curve in layout.curves.items():
        color = PLAIN if edge[0] in frame.values else FAINT
        axes.plot(*curve[-1], marker=">", markersize=6, color=color, zorder=1)
        if edge in frame.edges:
            color = BACKWARD
            axes.plot(*curve[0], marker="<", markersize=6, color=color, zorder=1)
            box, text = layout.labels[edge], layout.edge_text(*edge)
            white = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
            axes.text(box.x, box.y, text, size=SIZE, ha="center", va="center", color=color, bbox=white, zorder=2)
        path = Path(curve, [Path.MOVETO, *[Path.CURVE4] * (len(curve) - 1)])
        axes.add_patch(PathPatch(path, facecolor="none", edgecolor=color, linewidth=1.2, zorder=1))
    for index in range(len(layout.nodes)):
        _draw_node(axes, layout, frame, index)
    return figure


def _draw_node(axes: Axes, layout: Layout, frame: Frame, index: int) -> None:
    box, node, symbol = layout.boxes[index], layout.nodes[index], layout.symbols[index]
    copied, item = node.operation == "copy", layout.items[index]
    known, new, reached = item in frame.values, item in frame.new and not copied, item in frame.gradients
    plain = PLAIN if known else FAINT
    edge = plain if not new else BACKWARD if reached else FORWARD
    left, bottom = box.x - box.width / 2, box.y - box.height / 2
    shape = FancyBboxPatch(
        (left, bottom),
        box.width,
        box.height,
        f"round,pad=0,rounding_size={0.08 if node.operands or node.operation == 'constant' else 0.2}",
        facecolor="#f2f2f2" if node.operation == "constant" else "white",
        edgecolor=edge,
        linewidth=2.4 if new else 1.0,
        linestyle="dashed" if copied else "solid",
        zorder=3,
    )
    axes.add_patch(shape)
    lines = [(plain, True), (FORWARD, known), (BACKWARD, reached)]  # colour of a line of the box, and whether it shows
    if node.operands:
        sign = SYMBOLS.get(node.operation, node.operation)
        size = SIZE + (3 if len(sign) == 1 else 0)
        axes.plot([left + symbol] * 2, [bottom, bottom + box.height], color=edge, linewidth=1.0, zorder=4)
        axes.text(
            left + symbol / 2, box.y, sign, size=size, weight="bold", ha="center", va="center", color=plain, zorder=4
        )
    elif node.operation != "constant":
        lines = lines[1:]
    for number, (text, (color, shown)) in enumerate(zip(layout.texts[index], lines, strict=False)):
        if shown:
            height = bottom + box.height - PADDING - (number + 0.5) * LINE
            axes.text(left + symbol + PADDING, height, text, size=SIZE, va="center", color=color, zorder=4)
