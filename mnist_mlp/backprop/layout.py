"""Where the nodes and edges of a computational graph are drawn.

The layout is the usual one of layered drawings (Sugiyama, Tagawa and Toda, 1981). A node stands right of everything it
is computed from. A long edge has a stop in every layer that it passes. The order within a layer follows the mean of
the neighbours, so that few edges cross. The same graph is always drawn the same. Lengths are in inches.

A deep graph is wrapped like a long line of text: it is drawn in bands, one below the other. A value that another band
needs stands there again, as a copy.
"""

from functools import cache
from itertools import pairwise
from random import Random
from statistics import fmean
from typing import NamedTuple

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from mnist_mlp.backprop.derivation import Derivation, Notation
from mnist_mlp.backprop.expression import Node
from mnist_mlp.backprop.passes import Passes

SYMBOLS = {"+": "+", "-": "−", "*": "×", "/": "÷", "**": "pow", "neg": "−"}
SIZE, LINE, PADDING = 11, 0.23, 0.1  # font size in points, height of a line of text, space around text
ARROW = 0.06  # between the end of an edge and its box, where the arrow's head is
SEPARATION = 0.2  # between the boxes of a layer
BETWEEN = 0.6  # the bands of a deep graph
MARGIN, TITLE = 0.3, 0.5
LEGEND = "On an edge: the gradient that arrives · the local derivative = what is passed on"
LEGEND_OF_COPIES = " · Dashed: a value from a row above"
DEPTH = 4  # operations from left to right at most; a deeper graph is wrapped
STARTS = 10  # random orders from which the search for few crossings begins
SWEEPS = 12  # over all layers, from each start

Point = tuple[float, float]
Edge = tuple[int, int]  # (the node that uses another, which operand that is)
Link = tuple[int, int, int]  # (operand, the node that uses it, which operand it is)


class Rectangle(NamedTuple):
    """By its centre and its extent."""

    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: "Rectangle") -> bool:
        return (
            abs(self.x - other.x) * 2 < self.width + other.width
            and abs(self.y - other.y) * 2 < self.height + other.height
        )


class Layout:
    """Where everything stands.

    Attributes:
        nodes: those of the graph, then the copies.
        items: for each of these its position in the graph.
        boxes: of the nodes, operator included.
        symbols: width of each node's operator, at its box's left end; 0 for inputs and constants.
        curves: for each edge the points of its cubic Bézier curves, 3n + 1 of them.
        labels: for each edge that carries a gradient, the box of its text.
        width, height: of the picture.
    """

    def __init__(self, passes: Passes) -> None:
        self.passes, self.derivation = passes, Derivation(passes, Notation())
        self._layers(passes.graph.nodes)
        self.texts = [self._lines(index) for index in range(len(self.nodes))]
        self.symbols = [
            max(0.42, _text_width(SYMBOLS.get(node.operation, node.operation)) + 0.24) if node.operands else 0.0
            for node in self.nodes
        ]
        self._order()
        for stretch in (1.0, 1.25, 1.5):  # longer edges, until their labels find room
            self._place(stretch)
            if self._label():
                break

    def edge_text(self, user: int, slot: int) -> str:
        """What an edge says: the gradient that reaches the node, times the local derivative, is what it passes on."""
        number = self.derivation.notation.number
        gradient, slope = self.passes.gradients[user] or 0.0, self.passes.slopes[user][slot] or 0.0
        product = self.derivation.notation.product([number(gradient), number(slope)])
        return f"{product}\n= {number(gradient * slope)}"

    def _lines(self, index: int) -> list[str]:
        """The lines of a box: formula, value, gradient."""
        node, number, item = self.nodes[index], self.derivation.notation.number, self.items[index]
        name = self.derivation.names[item]
        if node.operation == "constant":
            return [name]
        value, gradient = number(self.passes.values[item]), self.passes.gradients[item]
        lines = [f"{name} = {self.derivation.formula(item)}", f"= {value}"] if node.operands else [f"{name} = {value}"]
        if gradient is not None and node.operation != "copy":
            lines.append(f"{self.derivation.gradient(index)} = {number(gradient)}")
        return lines

    def _layers(self, graph: list[Node]) -> None:
        """Gives every node a layer and every edge its route: its operand, a stop in each layer it passes, its user.

        The graph's nodes are followed by the copies, and these by the stops; `depth` and the layers hold all three.
        """
        used = [(operand, user, slot) for user, node in enumerate(graph) for slot, operand in enumerate(node.operands)]
        depth = self._operations_before(used)
        self.bands = max(1, -(-max(depth) // DEPTH))
        width = max(1, -(-max(depth) // self.bands))  # operations side by side, about as many in each band
        bands = [(operations - 1) // width if operations else self.bands for operations in depth]
        for operand, user, _ in used:  # the first band that uses it, for what is not computed
            bands[operand] = min(bands[operand], bands[user])
        self._copy_between_bands(graph, used, bands)
        # A band begins with a layer for what is not computed there.
        self.depth = [operations + bands[index] for index, operations in enumerate(depth)]
        self.depth += [0] * (len(self.nodes) - len(graph))
        for index, node in enumerate(self.nodes):
            if not node.operands:  # next to its first use, not at the far left
                self.depth[index] = min((self.depth[u] for o, u, _ in self.edges if o == index), default=1) - 1
        self.band_of = [d // (width + 1) for d in range(max(self.depth) + 1)]
        self.routes: dict[Edge, list[int]] = {}
        for operand, user, slot in self.edges:
            between = range(self.depth[operand] + 1, self.depth[user])
            stops = range(len(self.depth), len(self.depth) + len(between))
            self.depth += between
            self.routes[user, slot] = [operand, *stops, user]

    def _operations_before(self, used: list[Link]) -> list[int]:
        """Of each node the operations on the longest way to it; of one that nothing computed goes into, as many as put
        it next to its first use."""
        uses = self.passes.uses()
        depth = [0] * len(uses)
        for operand, user, _ in used:
            depth[user] = max(depth[user], depth[operand] + 1)
        for index in reversed(range(len(uses))):
            if depth[index] == 1 and uses[index]:
                depth[index] = min(depth[user] for user, _ in uses[index]) - 1
        return depth

    def _copy_between_bands(self, graph: list[Node], used: list[Link], bands: list[int]) -> None:
        """Gives each band that uses a node of another one a copy of it; `items` says of what."""
        self.nodes, self.items = list(graph), list(range(len(graph)))
        shown = {(index, band): index for index, band in enumerate(bands)}
        self.edges: list[Link] = []
        for operand, user, slot in used:
            if (operand, bands[user]) not in shown:
                shown[operand, bands[user]] = len(self.nodes)
                node = graph[operand]
                self.nodes.append(
                    node if node.operation == "constant" else node._replace(operation="copy", operands=())
                )
                self.items.append(operand)
            self.edges.append((shown[operand, bands[user]], user, slot))

    def _order(self) -> None:
        """Orders each layer: as a walk from the result meets things, or by the mean of neighbours if less crosses."""
        self.layers = self._in_order_of_a_walk()
        self.left: list[list[int]] = [[] for _ in self.depth]
        self.right: list[list[int]] = [[] for _ in self.depth]
        links = [link for route in self.routes.values() for link in pairwise(route)]
        for left, right in links:
            self.right[left].append(right)
            self.left[right].append(left)
        best, fewest = [list(layer) for layer in self.layers], self._crossings(links)
        for start in range(STARTS):
            for sweep in range(SWEEPS):
                self._sort_by_neighbours(leftwards=sweep % 2 == 1)
                if (crossings := self._crossings(links)) < fewest:
                    best, fewest = [list(layer) for layer in self.layers], crossings
            if not fewest:
                break
            for layer in self.layers:
                Random(start).shuffle(layer)  # seeded, so that the same graph is always drawn the same
        self.layers = best

    def _in_order_of_a_walk(self) -> list[list[int]]:
        """The layers, each in the order in which a walk from the result down the operands meets nodes and stops."""
        layers: list[list[int]] = [[] for _ in self.band_of]
        seen = set[int]()
        waiting = [*range(len(self.nodes)), self.passes.graph.output]  # nodes that the result does not need come last
        while waiting:
            index = waiting.pop()
            if index in seen:
                continue
            seen.add(index)
            layers[self.depth[index]].append(index)
            routes = [self.routes[index, slot] for slot in range(len(self.nodes[index].operands))]
            for stop in (stop for route in routes for stop in route[1:-1]):
                layers[self.depth[stop]].append(stop)
            waiting += [route[0] for route in reversed(routes)]
        return layers

    def _sort_by_neighbours(self, leftwards: bool) -> None:
        """Sorts each layer by the mean place of its neighbours in the layer before, in the direction of the sweep."""
        side = self.right if leftwards else self.left
        for layer in self.layers[::-1] if leftwards else self.layers:
            rank = {stop: number for stops in self.layers for number, stop in enumerate(stops)}
            means = {stop: fmean(rank[near] for near in side[stop] or [stop]) for stop in layer}
            layer.sort(key=means.__getitem__)

    def _crossings(self, links: list[tuple[int, int]]) -> int:
        rank = {stop: number for layer in self.layers for number, stop in enumerate(layer)}
        ends = np.array([(self.depth[left], rank[left], rank[right]) for left, right in links] or [(0, 0, 0)])
        depth, left, right = (column[:, None] - column for column in ends.T)
        return int(((depth == 0) & (left * right < 0)).sum()) // 2

    def _place(self, stretch: float) -> None:
        """Places boxes and edges.

        Args:
            stretch: of the gaps between the layers.
        """
        widths = [
            symbol + (max(map(_text_width, lines)) + 2 * PADDING)
            for symbol, lines in zip(self.symbols, self.texts, strict=True)
        ]
        heights = [len(lines) * LINE + 2 * PADDING for lines in self.texts]
        heights += [LINE] * (len(self.depth) - len(heights))
        y = self._settle(heights)
        lefts, rights = self._sides_of_layers(widths, stretch)
        self.boxes = [
            Rectangle(lefts[self.depth[index]] + width / 2, y[index], width, heights[index])
            for index, width in enumerate(widths)
        ]
        self._connect(y, lefts, rights)

    def _settle(self, heights: list[float]) -> list[float]:
        """The height at which each node and each stop is drawn; sets that of the picture."""
        y = [0.0] * len(self.depth)  # downwards, to begin with

        def settle(layer: list[int], neighbours: list[list[int]]) -> None:
            wanted = [fmean(y[near] for near in neighbours[stop] or [stop]) for stop in layer]
            for stop, place in zip(layer, _spread(wanted, [heights[stop] + SEPARATION for stop in layer]), strict=True):
                y[stop] = place

        both = [[*left, *right] for left, right in zip(self.left, self.right, strict=True)]
        for sweep in range(24):
            for layer in self.layers if sweep % 2 else self.layers[::-1]:
                settle(layer, both)
        for layer in self.layers:  # at last each in the middle of what it is computed from
            settle(layer, self.left)
        self._stack_bands(y, heights)
        return [self.height - place for place in y]

    def _stack_bands(self, y: list[float], heights: list[float]) -> None:
        """Moves each band below the one before it, in `y`, which counts downwards; sets the height of the picture."""
        self.height = TITLE + MARGIN
        for band in range(self.bands):
            stops = [stop for stop, depth in enumerate(self.depth) if self.band_of[depth] == band]
            top = min(y[stop] - heights[stop] / 2 for stop in stops)
            bottom = max(y[stop] + heights[stop] / 2 for stop in stops)
            for stop in stops:
                y[stop] += self.height - top
            self.height += bottom - top + (BETWEEN if band < self.bands - 1 else TITLE + MARGIN)

    def _sides_of_layers(self, widths: list[float], stretch: float) -> tuple[list[float], list[float]]:
        """Where each layer begins and ends, with room for the edges' texts between two; sets the picture's width."""
        lefts, rights = list[float](), list[float]()
        for depth, layer in enumerate(self.layers):
            texts = [self.edge_text(u, s) for o, u, s in self.edges if self.depth[o] < depth <= self.depth[u]]
            gap = stretch * (0.7 + max(map(_text_width, texts), default=0.0))
            begins = depth == 0 or self.band_of[depth] != self.band_of[depth - 1]
            lefts.append(MARGIN if begins else rights[-1] + gap)
            rights.append(lefts[-1] + max((widths[stop] for stop in layer if stop < len(widths)), default=0.0))
        self.legend = LEGEND + (LEGEND_OF_COPIES if len(self.nodes) > len(self.passes.values) else "")
        self.width = max(*rights, MARGIN + _text_width(self.legend)) + MARGIN
        return lefts, rights

    def _connect(self, y: list[float], lefts: list[float], rights: list[float]) -> None:
        """Draws the edges. They leave and enter a box side by side, in the order of where they go to or come from."""
        leaving: dict[int, list[tuple[float, Edge]]] = {}
        entering: dict[int, list[tuple[float, Edge]]] = {}
        for edge, route in self.routes.items():
            leaving.setdefault(route[0], []).append((-y[route[1]], edge))
            entering.setdefault(route[-1], []).append((-y[route[-2]], edge))
        self.curves: dict[Edge, list[Point]] = {}
        for edge, route in self.routes.items():
            start, end = self.boxes[route[0]], self.boxes[route[-1]]
            points = [(start.x + start.width / 2 + ARROW, start.y + _port(leaving[route[0]], edge, start.height))]
            for stop in route[1:-1]:
                depth = self.depth[stop]
                points += [(lefts[depth] - ARROW, y[stop]), (rights[depth] + ARROW, y[stop])]
            points.append((end.x - end.width / 2 - ARROW, end.y + _port(entering[route[-1]], edge, end.height)))
            parallel = [slot for operand, user, slot in self.edges if (operand, user) == (route[0], route[-1])]
            self.curves[edge] = _curve(points, 0.5 * ((len(parallel) - 1) / 2 - parallel.index(edge[1])))

    def _label(self) -> bool:
        """Places each edge's label on its edge, where it covers no box, no other label and no other edge.

        Returns:
            Whether there was such a place for every label.
        """
        self.labels: dict[Edge, Rectangle] = {}
        clear = True
        points = {edge: _points(curve) for edge, curve in self.curves.items()}
        for edge, line in points.items():
            if self.passes.slopes[edge[0]][edge[1]] is None:
                continue
            width, height = _text_width(self.edge_text(*edge)) + 0.1, 2 * LINE
            others = np.concatenate([p for e, p in points.items() if e != edge] or [np.empty((0, 2))])
            best: tuple[float, Rectangle] | None = None
            for position in np.linspace(0.15, 0.85, 29):
                x, y = line[int(position * (len(line) - 1))]
                box = Rectangle(float(x), float(y), width, height)
                inside = (abs(others[:, 0] - x) < width / 2) & (abs(others[:, 1] - y) < height / 2)
                hidden = sum(box.overlaps(other) for other in [*self.boxes, *self.labels.values()])
                cost = 1000.0 * hidden + float(inside.sum()) + abs(position - 0.5)
                if best is None or cost < best[0]:
                    best = cost, box
            assert best is not None
            clear &= best[0] < 1  # only the distance from the middle
            self.labels[edge] = best[1]
        return clear


@cache
def _text_width(text: str) -> float:
    """Of its widest line. DejaVu Sans comes with matplotlib, so that this is the same everywhere."""
    font = FontProperties(family="DejaVu Sans", size=SIZE)
    widths = [text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] for line in text.split("\n")]
    return float(max(widths)) / 72 + 0.03


def _port(edges: list[tuple[float, Edge]], edge: Edge, height: float) -> float:
    """How far above the middle of a box's side an edge ends there."""
    order = [other for _, other in sorted(edges)]
    return min(0.2, (height - 0.2) / len(order)) * ((len(order) - 1) / 2 - order.index(edge))


def _spread(wanted: list[float], extents: list[float]) -> list[float]:
    """The places nearest to those wanted (least squares) at which things of these extents do not overlap.

    Pool adjacent violators: whoever would overlap forms a group that moves as one to its mean wish.
    """
    offsets = [0.0]
    for before, after in pairwise(extents):
        offsets.append(offsets[-1] + (before + after) / 2)
    groups: list[tuple[float, int]] = []
    for place, offset in zip(wanted, offsets, strict=True):
        groups.append((place - offset, 1))
        while len(groups) > 1 and groups[-2][0] >= groups[-1][0]:
            (second, m), (first, n) = groups.pop(), groups.pop()
            groups.append(((first * n + second * m) / (n + m), n + m))
    moved = [mean for mean, count in groups for _ in range(count)]
    return [mean + offset for mean, offset in zip(moved, offsets, strict=True)]


def _curve(stops: list[Point], bow: float) -> list[Point]:
    """Cubic Bézier curves through the stops, level at each; the first bends by `bow` (edges between the same nodes)."""
    curve = [stops[0]]
    for number, ((x0, y0), (x1, y1)) in enumerate(pairwise(stops)):
        lift, reach = (bow if number == 0 else 0.0), (x1 - x0) * 0.4
        curve += [(x0 + reach, y0 + lift), (x1 - reach, y1 + lift), (x1, y1)]
    return curve


def _points(curve: list[Point]) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """Points along a curve, dense enough that no label lies between two."""
    t = np.linspace(0, 1, 60)[:, None]
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
    pieces = [
        sum(weight * np.array(point) for weight, point in zip(weights, curve[first : first + 4], strict=True))
        for first in range(0, len(curve) - 1, 3)
    ]
    return np.concatenate(pieces)
