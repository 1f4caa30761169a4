"""Draws a network's layers with their widths and parameter counts, as Figures 8 and 9 of the original report do."""

import copy
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from mnist_mlp.drawing import shapes as drawing
from mnist_mlp.drawing.shapes import BLUE, GREY, INK, Box, Line, Shape, Text
from mnist_mlp.settings import counted

PITCH, HEIGHT, MARGIN = 196, 620, 104  # pixels: from layer to layer, of the picture, beside the outer layers
TOP, BOTTOM = 196, 452  # between which the units are drawn
UNITS = 9  # drawn at most of a layer; of a wider one, the middle one is an ellipsis
MOST_COLUMNS = 9  # drawn at most; of a deeper network, an ellipsis stands for the layers in the middle
INPUT, HIDDEN, OUTPUT = "#8a96a3", BLUE, "#c2571a"


class Layer(NamedTuple):
    """A leaf module, or one with parameters of its own; shapes are without the batch."""

    name: str  # such as layers.1
    kind: str  # its class
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    parameters: int  # of its own, those shared with an earlier layer not counted again


def layers(backbone: nn.Module) -> list[Layer]:
    """The layers of a backbone in the order in which an image passes them. The backbone stays as it was.

    Raises:
        Exception: whatever the backbone's forward raises.
    """
    found: list[Layer] = []
    counted: set[int] = set()

    def note(name: str, module: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        own = [parameter for parameter in original[name].parameters(recurse=False) if id(parameter) not in counted]
        counted.update(map(id, own))
        inputs, outputs = (
            tuple(value.shape[1:]) if isinstance(value, Tensor) else () for value in (given[0] if given else None, made)
        )
        parameters = sum(parameter.numel() for parameter in own)
        found.append(Layer(name or type(module).__name__, type(module).__name__, inputs, outputs, parameters))

    original = dict(backbone.named_modules())
    twin = copy.deepcopy(backbone).eval()
    for name, module in twin.named_modules():
        if not list(module.children()) or list(module.parameters(recurse=False)):
            module.register_forward_hook(partial(note, name))
    example = next(twin.parameters(), torch.zeros(()))
    with torch.no_grad(), torch.random.fork_rng():
        twin(torch.zeros(2, 1, 28, 28, dtype=example.dtype, device=example.device))
    return found


def png(backbone: nn.Module, title: str) -> Image.Image:
    """The network as an RGB image, `HEIGHT` pixels high and as wide as it is deep."""
    return drawing.png(*_draw(backbone, title))


def svg(backbone: nn.Module, title: str) -> str:
    """The same picture as an SVG document."""
    return drawing.svg(*_draw(backbone, title))


class _Column(NamedTuple):
    """What is drawn of one layer's outputs, or of the image."""

    shape: tuple[int, ...]
    color: str
    layer: Layer | None  # None: the image, or an ellipsis for what is left out
    after: list[str]  # kinds of the layers without parameters that follow


def _columns(found: list[Layer]) -> list[_Column]:
    columns = [_Column((1, 28, 28), INPUT, None, [])]
    for layer in found:
        if layer.parameters:
            columns.append(_Column(layer.outputs, HIDDEN, layer, []))
        else:
            columns[-1].after.append(layer.kind)
    if len(columns) > 1:
        columns[-1] = columns[-1]._replace(color=OUTPUT)
    if len(columns) > MOST_COLUMNS:
        half = MOST_COLUMNS // 2
        gap = _Column((), GREY, None, [f"{len(columns) - 2 * half} more"])
        columns = [*columns[:half], gap, *columns[-half:]]
    return columns


def _draw(backbone: nn.Module, title: str) -> tuple[list[Shape], int, int]:
    """The shapes, and the picture's width and height."""
    found = layers(backbone)
    columns = _columns(found)
    width = max(2 * MARGIN + PITCH * (len(columns) - 1), 720)
    left = (width - PITCH * (len(columns) - 1)) / 2
    places = [left + PITCH * number for number in range(len(columns))]
    units = [_units(column.shape) for column in columns]
    shapes = _links(places, units)
    for column, x, heights in zip(columns, places, units, strict=True):
        shapes += [*_outputs(column, x, heights), *_captions(column, x)]
    for number, column in enumerate(columns[1:], 1):
        if column.layer is not None:
            shapes += _parameters(column.layer, (places[number - 1] + places[number]) / 2)
    deep = sum(layer.parameters > 0 for layer in found)
    total = sum(parameter.numel() for parameter in backbone.parameters())
    headings = [
        Text(28, 44, title, 34, "start", bold=True),
        Text(28, 90, f"{total:,} parameters in {counted(deep, 'layer')}", 26, "start", GREY),
    ]
    widest = max(28 + drawing.text_width(text.text, text.size, text.bold) for text in headings)
    return [*shapes, *headings], max(width, round(widest) + 28), HEIGHT


def _links(places: list[float], units: list[list[float]]) -> list[Shape]:
    """A line from each unit to each one of the next layer."""
    return [
        Line(places[number], start, places[number + 1], end, "#c3cedb", 1)
        for number, (before, after) in enumerate(pairwise(units))
        for start in before
        for end in after
    ]


def _parameters(layer: Layer, x: float) -> list[Shape]:
    """What stands below the links into a layer: its kind and its parameters."""
    return [
        Text(x, BOTTOM + 86, layer.kind, 22, color=GREY),
        Text(x, BOTTOM + 115, f"{layer.parameters:,}", 25, bold=True),
        Text(x, BOTTOM + 141, "parameters", 17, color=GREY),
    ]


def _units(shape: tuple[int, ...]) -> list[float]:
    """Heights of the units that are drawn for a layer's outputs; of an image or of feature maps, its middle."""
    middle = (TOP + BOTTOM) / 2
    if len(shape) != 1:
        return [middle]
    count = min(shape[0], UNITS)
    pitch = (BOTTOM - TOP) / (UNITS - 1)
    heights = [middle + pitch * (number - (count - 1) / 2) for number in range(count)]
    return [*heights[: UNITS // 2], *heights[UNITS // 2 + 1 :]] if shape[0] > UNITS else heights


def _outputs(column: _Column, x: float, heights: list[float]) -> list[Shape]:
    """One column's units; of an image or of feature maps, squares."""
    middle, radius = (TOP + BOTTOM) / 2, 12
    if not column.shape:
        return [Box(x + step - 5, middle - 5, 10, 10, column.color, None, 5) for step in (-20, 0, 20)]
    if len(column.shape) != 1:
        maps = min(column.shape[0], 4) if len(column.shape) == 3 else 1
        side = 104 - 10 * (maps - 1)
        corners = [10 * (number - (maps - 1) / 2) - side / 2 for number in range(maps)]
        return [Box(x + corner, middle + corner, side, side, column.color, "white", 8) for corner in corners]
    units = [Box(x - radius, y - radius, 2 * radius, 2 * radius, column.color, "white", radius) for y in heights]
    dots = (-11, 0, 11) if column.shape[0] > UNITS else ()
    return [*units, *(Box(x - 3, middle + step - 3, 6, 6, column.color, None, 3) for step in dots)]


def _captions(column: _Column, x: float) -> list[Shape]:
    """One column's width above it, and below it what it is and what works on it."""
    shapes: list[Shape] = []
    if column.shape:
        width = "784" if column.color == INPUT else "×".join(map(str, column.shape))
        shapes.append(Text(x, TOP - 46, width, 30 if len(width) < 8 else 24, bold=True, color=column.color))
    kinds = [kind for kind in column.after if kind not in ("Flatten", "Identity")]
    names = {INPUT: [("28×28 image", GREY)], OUTPUT: [("logits", GREY)]}.get(column.color, [])
    captions = [*names, *((kind, INK) for kind in dict.fromkeys(kinds))]
    for row, (text, color) in enumerate(captions[:2]):
        shapes.append(Text(x, BOTTOM + 34 + 27 * row, text, 22, color=color))
    return shapes
