"""Pictures made of boxes, lines and texts, as PNG (with Pillow) or SVG. They take a tenth of matplotlib's time."""

from functools import cache
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image, ImageDraw, ImageFont

INK, GREY, BLUE, RED = "#1c2733", "#6b7785", "#1a4f9c", "#b3261e"

Anchor = Literal["start", "middle", "end"]


class Box(NamedTuple):
    """A rectangle with its top left corner at (x, y); with `radius` = half its width, a circle."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    outline: str | None = None
    radius: float = 0


class Line(NamedTuple):
    x1: float
    y1: float
    x2: float
    y2: float
    color: str = INK
    width: float = 1


class Text(NamedTuple):
    """One line of text, its middle at the height y."""

    x: float
    y: float
    text: str
    size: float
    anchor: Anchor = "middle"
    color: str = INK
    bold: bool = False


Shape = Box | Line | Text


@cache
def font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which has ×, − and Greek letters; Pillow's own font has none of them.

    The file is matplotlib's, found without importing matplotlib, which takes half a second.
    """
    spec = find_spec("matplotlib")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    place = Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(place / f"DejaVuSans{'-Bold' if bold else ''}.ttf", size)


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Pixels from the first letter's left to the last one's right."""
    return font(size, bold).getlength(text)


def png(shapes: list[Shape], width: int, height: int, sharpness: int = 2, bold: bool = False) -> Image.Image:
    """The shapes, later ones over earlier ones, on white: RGB, `width` x `height` pixels.

    Args:
        sharpness: pixels drawn in each direction for one kept. At 1, slanted lines and circles are jagged.
        bold: makes every text bold. TensorBoard leaves pixels out to show a large image on a small card, and thin
            strokes of letters vanish.
    """
    image = Image.new("RGB", (width * sharpness, height * sharpness), "white")
    pen = ImageDraw.Draw(image)
    for shape in shapes:
        if isinstance(shape, Box):
            left, top = round(shape.x * sharpness), round(shape.y * sharpness)
            right, bottom = round((shape.x + shape.width) * sharpness), round((shape.y + shape.height) * sharpness)
            corners = (left, top, max(left, right - 1), max(top, bottom - 1))
            if shape.radius:
                pen.rounded_rectangle(corners, shape.radius * sharpness, shape.fill, shape.outline, sharpness)
            else:
                pen.rectangle(corners, shape.fill, shape.outline, sharpness)
        elif isinstance(shape, Line):
            ends = [coordinate * sharpness for coordinate in (shape.x1, shape.y1, shape.x2, shape.y2)]
            pen.line(ends, shape.color, max(1, round(shape.width * sharpness)))
        else:
            anchor = {"start": "lm", "middle": "mm", "end": "rm"}[shape.anchor]
            place = (shape.x * sharpness, shape.y * sharpness)
            pen.text(place, shape.text, shape.color, font(shape.size * sharpness, bold or shape.bold), anchor)
    return image.reduce(sharpness) if sharpness > 1 else image


def svg(shapes: list[Shape], width: int, height: int) -> str:
    """The same as an SVG document."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="DejaVu Sans, Verdana, sans-serif">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for shape in shapes:
        if isinstance(shape, Box):
            outline = f' stroke="{shape.outline}"' if shape.outline else ""
            lines.append(
                f'<rect x="{shape.x:g}" y="{shape.y:g}" width="{shape.width:g}" height="{shape.height:g}" '
                f'rx="{shape.radius:g}" fill="{shape.fill}"{outline}/>'
            )
        elif isinstance(shape, Line):
            lines.append(
                f'<line x1="{shape.x1:g}" y1="{shape.y1:g}" x2="{shape.x2:g}" y2="{shape.y2:g}" '
                f'stroke="{shape.color}" stroke-width="{shape.width:g}"/>'
            )
        else:
            bold = ' font-weight="bold"' if shape.bold else ""
            lines.append(
                f'<text x="{shape.x:g}" y="{shape.y:g}" font-size="{shape.size:g}" fill="{shape.color}"{bold} '
                f'text-anchor="{shape.anchor}" dominant-baseline="central">{escape(shape.text)}</text>'
            )
    return "\n".join([*lines, "</svg>", ""])
