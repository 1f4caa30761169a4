"""A network drawn as layers with their widths and parameter counts, as the report's Figures 8 and 9: PNG and SVG."""

import copy
from functools import partial
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from mnist_mlp.drawing import shapes as drawing
from mnist_mlp.drawing.shapes import BLUE, GREY, INK, Box, Line, Shape, Text

PITCH, HEIGHT, MARGIN = 196, 620, 104  # pixels from layer to layer, of the picture, and beside the first and the last
TOP, BOTTOM = 196, 452  # between which the units are drawn
UNITS = 9  # drawn of a wide layer, the middle one as an ellipsis
MOST_COLUMNS = 9  # of a deep network's layers, the middle ones are left out
INPUT, HIDDEN, OUTPUT = "#8a96a3", BLUE, "#c2571a"


class Layer(NamedTuple):
    """A leaf module, or one with parameters of its own; shapes are without the batch."""

    name: str  # such as layers.1
    kind: str  # its class
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    parameters: int  # of its own, those shared with an earlier layer not counted again


def layers(backbone: nn.Module) -> list[Layer]:
    """The layers of a backbone from images (N, 1, 28, 28), in the order in which they work on one; it stays as it was.

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
    total = sum(parameter.numel() for parameter in backbone.parameters())
    width = max(2 * MARGIN + PITCH * (len(columns) - 1), 720)
    left = (width - PITCH * (len(columns) - 1)) / 2
    places = [left + PITCH * number for number in range(len(columns))]
    units = [_units(column.shape) for column in columns]
    links: list[Shape] = []
    for number in range(1, len(columns)):
        for start in units[number - 1]:
            for end in units[number]:
                links.append(Line(places[number - 1], start, places[number], end, "#c3cedb", 1))
    shapes: list[Shape] = [*links]
    for column, x, heights in zip(columns, places, units, strict=True):
        shapes += _outputs(column, x, heights)
    for number, column in enumerate(columns[1:], 1):
        if column.layer is None:
            continue
        between = (places[number - 1] + places[number]) / 2
        shapes += [
            Text(between, BOTTOM + 86, column.layer.kind, 22, color=GREY),
            Text(between, BOTTOM + 115, f"{column.layer.parameters:,}", 25, bold=True),
            Text(between, BOTTOM + 141, "parameters", 17, color=GREY),
        ]
    deep = sum(layer.parameters > 0 for layer in found)
    shapes += [
        Text(28, 44, title, 34, "start", bold=True),
        Text(28, 90, f"{total:,} parameters in {deep} layer{'s' if deep != 1 else ''}", 26, "start", GREY),
    ]
    texts = (shape for shape in shapes if isinstance(shape, Text) and shape.anchor == "start")
    widest = max(28 + drawing.text_width(text.text, text.size, text.bold) for text in texts)
    return shapes, max(width, round(widest) + 28), HEIGHT


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
    """One column: its width above, its units, and below what works on them."""
    shapes: list[Shape] = []
    middle, radius = (TOP + BOTTOM) / 2, 12
    if len(column.shape) == 1:
        shapes += [Box(x - radius, y - radius, 2 * radius, 2 * radius, column.color, "white", radius) for y in heights]
        if column.shape[0] > UNITS:
            shapes += [Box(x - 3, middle + step - 3, 6, 6, column.color, None, 3) for step in (-11, 0, 11)]
    elif column.shape:
        maps = min(column.shape[0], 4) if len(column.shape) == 3 else 1
        side = 104 - 10 * (maps - 1)
        for number in range(maps):
            offset = 10 * (number - (maps - 1) / 2)
            shapes.append(Box(x - side / 2 + offset, middle - side / 2 + offset, side, side, column.color, "white", 8))
    else:
        shapes += [Box(x + step - 5, middle - 5, 10, 10, column.color, None, 5) for step in (-20, 0, 20)]
    if column.shape:
        named = "784" if column.color == INPUT else "×".join(map(str, column.shape))
        shapes.append(Text(x, TOP - 46, named, 30 if len(named) < 8 else 24, bold=True, color=column.color))
    kinds = [kind for kind in column.after if kind not in ("Flatten", "Identity")]
    said = [("28×28 image", GREY)] if column.color == INPUT else [("logits", GREY)] if column.color == OUTPUT else []
    said += [(kind, INK) for kind in dict.fromkeys(kinds)]
    for row, (text, color) in enumerate(said[:2]):
        shapes.append(Text(x, BOTTOM + 34 + 27 * row, text, 22, color=color))
    return shapes
