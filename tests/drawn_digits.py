"""Pictures of digits as people make them, drawn by program: the same ones everywhere and every time.

`python tests/drawn_digits.py [CHECKPOINT]` says how many of them all a network reads, and which it misreads: that in a
checkpoint, or each of the package's.
"""

import gzip
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from itertools import pairwise
from math import cos, pi, sin
from pathlib import Path

import numpy as np
from helpers import PACKAGE_FILES
from PIL import Image, ImageDraw
from scipy import ndimage

from mnist_mlp.digits import NoDigitError, field_of, read_image
from mnist_mlp.predict import predict

SIDE = 180  # pixels of a page; a digit on it is 0.6 of that high
Array = np.ndarray
Stroke = list[tuple[float, float]]


def arc(x: float, y: float, rx: float, ry: float, first: float, last: float) -> Stroke:
    """Of an ellipse, from one angle to another, in degrees: 0 is right, 90 is down."""
    angles = np.linspace(first, last, 40) * pi / 180
    return [(x + rx * cos(angle), y + ry * sin(angle)) for angle in angles]


# Two hands; x to the right and y down, the digit between 0 and 1 in height.
HANDS: list[dict[int, list[Stroke]]] = [
    {
        0: [arc(0.35, 0.5, 0.33, 0.5, -80, 285)],
        1: [[(0.15, 0.22), (0.38, 0.0), (0.36, 1.0)]],
        2: [[*arc(0.33, 0.28, 0.3, 0.28, -165, 35), (0.02, 0.98), (0.68, 0.96)]],
        3: [[*arc(0.3, 0.25, 0.29, 0.25, -150, 90), *arc(0.3, 0.74, 0.33, 0.26, -90, 150)]],
        4: [[(0.22, 0.0), (0.02, 0.6), (0.68, 0.58)], [(0.5, 0.2), (0.47, 1.0)]],
        5: [[(0.62, 0.02), (0.12, 0.0), (0.08, 0.42), *arc(0.28, 0.68, 0.32, 0.31, -115, 140)]],
        6: [[(0.5, 0.0), (0.2, 0.3), (0.04, 0.68), *arc(0.31, 0.73, 0.28, 0.27, 190, -185)]],
        7: [[(0.0, 0.04), (0.62, 0.0), (0.38, 0.5), (0.24, 1.0)]],
        8: [[*arc(0.32, 0.24, 0.25, 0.24, 90, 450), *arc(0.32, 0.74, 0.3, 0.26, -90, 270)]],
        9: [[*arc(0.3, 0.28, 0.27, 0.28, -20, -370), (0.56, 0.3), (0.5, 1.0)]],
    },
    {
        0: [arc(0.3, 0.5, 0.27, 0.5, -100, 258)],
        1: [[(0.24, 0.0), (0.2, 1.0)]],
        2: [[*arc(0.3, 0.25, 0.26, 0.25, -180, 50), (0.18, 0.8), *arc(0.12, 0.89, 0.1, 0.08, 0, -270), (0.68, 0.95)]],
        3: [[*arc(0.28, 0.24, 0.25, 0.24, -130, 75), (0.2, 0.47), *arc(0.26, 0.73, 0.3, 0.27, -75, 140)]],
        4: [[(0.04, 0.05), (0.04, 0.5), (0.54, 0.48)], [(0.56, 0.0), (0.5, 1.0)]],
        5: [[(0.12, 0.03), (0.1, 0.4), *arc(0.25, 0.68, 0.31, 0.3, -110, 130)], [(0.12, 0.03), (0.6, 0.0)]],
        6: [[(0.36, 0.0), (0.12, 0.4), *arc(0.27, 0.74, 0.24, 0.25, 200, -165)]],
        7: [[(0.0, 0.02), (0.56, 0.02), (0.2, 1.0)]],
        8: [[*arc(0.3, 0.22, 0.21, 0.22, -40, -230), *arc(0.3, 0.72, 0.26, 0.28, -60, 240), (0.46, 0.08)]],
        9: [[*arc(0.28, 0.26, 0.25, 0.25, -10, -365), (0.53, 0.28), (0.44, 0.7), *arc(0.24, 0.8, 0.22, 0.2, 20, 130)]],
    },
]


@cache
def inked(
    digit: int,
    hand: int,
    pen: float = 14,
    height: float = 0.6,
    middle: tuple[float, float] = (0.5, 0.5),
    turn: float = 0,
    side: int = SIDE,
) -> Array:
    """How much of each pixel of a square page a pen covers: (side, side), 0..1.

    Args:
        pen: width in pixels of a page of `SIDE`.
        height: of the digit, between the middles of its strokes; a share of the page's.
        middle: where the digit's box has its own, x and y, as shares.
        turn: clockwise, in degrees.
    """
    scale = 4
    strokes = [np.array(stroke) for stroke in HANDS[hand][digit]]
    points = np.concatenate(strokes)
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    angle = turn * pi / 180
    rotation = np.array([[cos(angle), sin(angle)], [-sin(angle), cos(angle)]])
    page = Image.new("L", (scale * side, scale * side))
    canvas = ImageDraw.Draw(page)
    radius = scale * side * pen / SIDE / 2
    for stroke in strokes:
        placed = ((stroke - centre) @ rotation * height + np.array(middle)) * scale * side
        for (x0, y0), (x1, y1) in pairwise(placed):
            canvas.line((x0, y0, x1, y1), fill=255, width=max(1, round(2 * radius)))
        for x, y in placed:
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return np.asarray(page.resize((side, side), Image.Resampling.BOX), dtype=float) / 255


def picture(pixels: Array) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def on_paper(ink: Array, colour: object = 40, paper: object = 235) -> Array:
    """Grey (side, side), or (side, side, 3) where a colour is given as three."""
    dark, light = np.asarray(colour, dtype=float), np.asarray(paper, dtype=float)
    cover = ink if dark.ndim == light.ndim == 0 else ink[:, :, None]
    return light + (dark - light) * cover


def light(strength: float, kind: str) -> Array:
    """A factor for each pixel: 1 where it is brightest, 1 - strength where it is darkest."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    if kind == "vignette":
        return 1 - strength * ((x - 0.5) ** 2 + (y - 0.5) ** 2) * 2
    if kind == "gradient":
        return 1 - strength * (0.7 * x + 0.3 * y)
    return 1 - strength / (1 + np.exp(-(x + 0.4 * y - 0.75) * 30))  # a shadow with a soft edge


def noise(sigma: float, seed: int, shape: tuple[int, ...] = (SIDE, SIDE)) -> Array:
    return np.random.default_rng(seed).normal(0, sigma, shape)


def photo(digit: int, hand: int, pen: float = 12) -> Array:
    page = on_paper(inked(digit, hand, pen), (45, 50, 95), (215, 208, 196))
    page = ndimage.gaussian_filter(page * light(0.35, "vignette")[:, :, None], (1.2, 1.2, 0))
    return page + noise(6, digit, page.shape)


def on_table(digit: int, hand: int, turn: float = 4, paper: float = 225, table: float = 50) -> Array:
    """A sheet on a dark table, turned a little, with a grain."""
    sheet = Image.new("L", (SIDE, SIDE), 0)
    ImageDraw.Draw(sheet).rectangle((34, 28, 148, 154), fill=255)
    cover = np.asarray(sheet.rotate(turn, Image.Resampling.BICUBIC), dtype=float) / 255
    page = on_paper(inked(digit, hand, 9, 0.42), 45, paper)
    return table + (page - table) * cover + noise(4, digit)


def ruling(step: int, squared: bool, colour: float, width: int = 1, turn: float = 0) -> Array:
    page = Image.new("L", (2 * SIDE, 2 * SIDE), 0)
    canvas = ImageDraw.Draw(page)
    for at in range(7, 2 * SIDE, step):
        canvas.rectangle((0, at, 2 * SIDE, at + width - 1), fill=255)
        if squared:
            canvas.rectangle((at, 0, at + width - 1, 2 * SIDE), fill=255)
    turned = page.rotate(turn, Image.Resampling.BICUBIC).crop((SIDE // 2, SIDE // 2, 3 * SIDE // 2, 3 * SIDE // 2))
    return on_paper(np.asarray(turned, dtype=float) / 255, colour)


def ruled(digit: int, hand: int, step: int, squared: bool, colour: float, width: int = 1, turn: float = 0) -> Array:
    return np.minimum(on_paper(inked(digit, hand, 11)), ruling(step, squared, colour, width, turn))


def with_marks(page: Array, *boxes: tuple[int, int, int, int], colour: int = 50) -> Array:
    """With rectangles of ink."""
    marked = picture(page)
    for box in boxes:
        ImageDraw.Draw(marked).rectangle(box, fill=colour)
    return np.asarray(marked, dtype=float)


def marked(digit: int, hand: int, box: tuple[int, int, int, int]) -> Array:
    return with_marks(on_paper(inked(digit, hand)), box)


def framed(digit: int, hand: int, inset: int, width: int) -> Array:
    page = picture(on_paper(inked(digit, hand, 12)))
    ImageDraw.Draw(page).rectangle((inset, inset, SIDE - 1 - inset, SIDE - 1 - inset), outline=60, width=width)
    return np.asarray(page, dtype=float)


def peppered(digit: int, hand: int) -> Array:
    page = on_paper(inked(digit, hand))
    rng = np.random.default_rng(100 * hand + digit)
    for y, x in rng.integers(3, SIDE - 3, (25, 2)):
        page[y : y + 2, x : x + 2] = 60
    return page


def in_hard_shadow(digit: int, hand: int) -> Array:
    """The shadow's edge runs across the digit."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    return on_paper(inked(digit, hand, 9)) * np.where(x + y > 190, 0.7, 1)


def at_a_table(digit: int, hand: int) -> Array:
    """The sheet is larger than the picture to the right and below."""
    page = on_paper(inked(digit, hand, 10, 0.5, (0.6, 0.6)), 45, 225)
    page[:25], page[:, :30] = 60, 60
    return page + noise(4, digit)


def in_a_notebook(digit: int, hand: int) -> Array:
    page = np.repeat(ruled(digit, hand, 22, False, 170)[:, :, None], 3, axis=2)
    page[:, 28:30] = np.minimum(page[:, 28:30], [230, 90, 90])
    return page


def on_kraft(digit: int, hand: int) -> Array:
    grain = ndimage.gaussian_filter(noise(40, digit), 1.5)
    return on_paper(inked(digit, hand, 9), 60, 170) + grain


def cut_to_its_ink(digit: int, hand: int, pen: float) -> Array:
    ink = inked(digit, hand, pen)
    rows, columns = (np.flatnonzero((ink > 0.1).any(axis=axis)) for axis in (1, 0))
    return on_paper(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def broken(digit: int, hand: int) -> Array:
    """A pen that fails: a gap of 2 pixels in every 23."""
    ink = inked(digit, hand, 9).copy()
    ink[::23], ink[1::23] = 0, 0
    return on_paper(ink)


def transparent(digit: int, hand: int, ink: int) -> Image.Image:
    page = Image.new("LA", (SIDE, SIDE), (ink, 0))
    page.putalpha(picture(255 * inked(digit, hand)))
    return page


@cache
def of_mnist() -> tuple[Array, Array]:
    """Twenty of the official test images, two of each digit, and their digits in the order of `KINDS`."""
    raw = [
        np.frombuffer(gzip.decompress((PACKAGE_FILES / f"t10k-{name}-ubyte.gz").read_bytes()), np.uint8, offset=offset)
        for name, offset in (("images-idx3", 16), ("labels-idx1", 8))
    ]
    images, labels = raw[0].reshape(-1, 28, 28), raw[1]
    return images, np.array([[np.flatnonzero(labels == digit)[hand + 3] for digit in range(10)] for hand in range(2)])


def mnist_image(digit: int, hand: int, margin: int = 0, enlarged: int = 1) -> Array:
    images, chosen = of_mnist()
    image = np.kron(images[chosen[hand, digit]], np.ones((enlarged, enlarged)))
    return np.pad(image, margin * enlarged, constant_values=255)


Draw = Callable[[int, int], Array | Image.Image]
Drawing = tuple[str, int, int]  # kind, digit, hand
# Of each kind: how a digit by a hand is drawn.
KINDS: dict[str, Draw] = {
    **{f"a pen of {pen}": lambda d, h, pen=pen: on_paper(inked(d, h, pen)) for pen in (2, 3, 4, 5, 6, 8, 20)},
    "a pen of 30": lambda d, h: on_paper(inked(d, h, 30)),  # the holes of an 8 begin to close
    "light ink": lambda d, h: on_paper(inked(d, h), 200),
    "pencil, thin and light": lambda d, h: on_paper(inked(d, h, 3), 170) + noise(3, d),
    "blue on yellow": lambda d, h: on_paper(inked(d, h), (30, 60, 200), (250, 240, 110)),
    "red on a green as light": lambda d, h: on_paper(inked(d, h), (200, 0, 0), (0, 102, 0)),
    "chalk on a board": lambda d, h: on_paper(inked(d, h, 9), 210, 45) + noise(8, d),
    "white on black": lambda d, h: on_paper(inked(d, h), 255, 0),
    "black on transparent": lambda d, h: transparent(d, h, 0),
    "white on transparent": lambda d, h: transparent(d, h, 255),
    "noise of sigma 10": lambda d, h: on_paper(inked(d, h)) + noise(10, d),
    "noise of sigma 20": lambda d, h: on_paper(inked(d, h)) + noise(20, d),
    "noise of sigma 40": lambda d, h: on_paper(inked(d, h)) + noise(40, d),
    "noise of sigma 20, a pen of 4": lambda d, h: on_paper(inked(d, h, 4)) + noise(20, d),
    "blurred": lambda d, h: ndimage.gaussian_filter(on_paper(inked(d, h, 10)), 4),
    "corners 20 % darker": lambda d, h: on_paper(inked(d, h)) * light(0.2, "vignette"),
    "corners 30 % darker": lambda d, h: on_paper(inked(d, h)) * light(0.3, "vignette"),
    "corners 60 % darker": lambda d, h: on_paper(inked(d, h)) * light(0.6, "vignette"),
    "light from the left": lambda d, h: on_paper(inked(d, h)) * light(0.5, "gradient"),
    "a soft shadow": lambda d, h: on_paper(inked(d, h)) * light(0.3, "shadow"),
    "light ink under uneven light": lambda d, h: on_paper(inked(d, h), 150) * light(0.4, "gradient"),
    "a photo": photo,
    "a photo with a thin pen": lambda d, h: photo(d, h, 5),
    "a photo of a board": lambda d, h: (255 - photo(d, h)) * 0.8,
    "paper on a dark table": on_table,
    "paper on a dark table, straight": lambda d, h: on_table(d, h, 0),
    "paper on a table, turned by 12": lambda d, h: on_table(d, h, 12, table=90),
    "ruled paper": lambda d, h: ruled(d, h, 25, False, 150),
    "ruled paper, thick dark lines": lambda d, h: ruled(d, h, 40, False, 90, 2),
    "ruled paper, turned by 2": lambda d, h: ruled(d, h, 30, False, 130, 2, 2),
    "squared paper": lambda d, h: ruled(d, h, 20, True, 170),
    "squared paper, dark lines": lambda d, h: ruled(d, h, 30, True, 110),
    "a thin frame at the edge": lambda d, h: framed(d, h, 0, 2),
    "a frame": lambda d, h: framed(d, h, 12, 3),
    "a speck of 3": lambda d, h: marked(d, h, (15, 15, 17, 17)),
    "a speck of 6": lambda d, h: marked(d, h, (150, 20, 155, 25)),
    "specks": peppered,
    "a dash beside": lambda d, h: marked(d, h, (12, 86, 34, 94)),
    "a line under it": lambda d, h: marked(d, h, (45, 160, 135, 165)),
    "a shadow with a sharp edge": in_hard_shadow,
    "a table to the left and above": at_a_table,
    "a darker sheet on a light table": lambda d, h: on_table(d, h, 5, 150, 235),
    "a notebook": in_a_notebook,
    "kraft paper": on_kraft,
    "cut to its ink, a pen of 4": lambda d, h: cut_to_its_ink(d, h, 4),
    "cut to its ink, a pen of 24": lambda d, h: cut_to_its_ink(d, h, 24),  # a 1 that is all ink is refused
    "broken strokes": broken,
    "MNIST, enlarged, with noise": lambda d, h: mnist_image(d, h, enlarged=4) + noise(30, d, (112, 112)),
    "a dark corner": lambda d, h: marked(d, h, (0, 0, 30, 22)),
    "MNIST as it is": mnist_image,
    "MNIST, inverted": lambda d, h: 255 - mnist_image(d, h),
    "MNIST, enlarged": lambda d, h: mnist_image(d, h, enlarged=6),
    "MNIST in a white margin": lambda d, h: mnist_image(d, h, 5),
    "MNIST, enlarged, in a white margin": lambda d, h: mnist_image(d, h, 10, 6),
    "far from the middle": lambda d, h: on_paper(inked(d, h, 8, 0.3, (0.25, 0.72))),
    "small": lambda d, h: on_paper(inked(d, h, 4, 0.14, (0.6, 0.4))),
    "as large as the page": lambda d, h: on_paper(inked(d, h, 14, 0.9)),
    "large picture": lambda d, h: on_paper(inked(d, h, 3, 0.5, side=1400)),
    "small picture": lambda d, h: on_paper(inked(d, h, 14, side=40)),
    "turned by 10 to the left": lambda d, h: on_paper(inked(d, h, turn=-10)),
    "turned by 10 to the right": lambda d, h: on_paper(inked(d, h, turn=10)),
}


def image_of(kind: str, digit: int, hand: int) -> Image.Image:
    drawn = KINDS[kind](digit, hand)
    return drawn if isinstance(drawn, Image.Image) else picture(drawn)


def fields_of(drawings: Iterable[Drawing]) -> dict[Drawing, Array]:
    """What a network would see of each; one that is refused is left out."""
    fields = {}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "digit.png"
        for drawing in drawings:
            image_of(*drawing).save(path)
            try:
                fields[drawing] = field_of(read_image(path))
            except NoDigitError:
                continue
    return fields


def read_right(fields: dict[Drawing, Array], checkpoint: Path | None, model: str | None) -> Counter[str]:
    """How many of each kind a network reads."""
    found = np.argmax(predict(checkpoint, list(fields.values()), model), axis=1)
    return Counter(kind for (kind, digit, _), answer in zip(fields, found, strict=True) if digit == answer)


def several(*digits: int) -> Array:
    width = 0.8 / len(digits)
    return np.maximum.reduce(
        [inked(digit, 0, 9, width, (0.1 + width * (at + 0.5), 0.5)) for at, digit in enumerate(digits)]
    )


def written() -> Array:
    """Four lines of eight digits."""
    page = np.zeros((SIDE, SIDE))
    for number in range(32):
        middle = (0.1 + number % 8 * 0.11, 0.15 + number // 8 * 0.22)
        page = np.maximum(page, inked(number % 10, 0, 3, 0.12, middle))
    return on_paper(page)


def blot() -> Array:
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    return on_paper(((x - 80) ** 2 + (y - 95) ** 2 < 30**2).astype(float))


NOTHING = np.zeros((SIDE, SIDE))
# What holds no digit, or more than one.
REFUSED: dict[str, Callable[[], Array]] = {
    "blank": lambda: on_paper(NOTHING),
    "blank, black": lambda: NOTHING,
    "blank, with noise": lambda: on_paper(NOTHING) + noise(20, 1),
    "blank, with a grain": lambda: on_paper(NOTHING) + ndimage.gaussian_filter(noise(40, 2), 2),
    "a blank photo": lambda: ndimage.gaussian_filter(on_paper(NOTHING) * light(0.4, "vignette"), 1) + noise(6, 3),
    "a blank photo in the dark": lambda: 0.3 * on_paper(NOTHING) * light(0.5, "gradient") + noise(12, 4),
    "a speck": lambda: with_marks(on_paper(NOTHING), (90, 90, 92, 92)),
    "a blot": blot,
    "two digits": lambda: on_paper(several(4, 2)),
    "three digits": lambda: on_paper(several(1, 9, 8)),
    "a page of digits": written,
    "ruled paper": lambda: ruling(25, False, 150),
    "squared paper": lambda: ruling(20, True, 150),
    "a sheet on a table": lambda: np.pad(on_paper(NOTHING), 40, constant_values=50) + noise(4, 6, (260, 260)),
}


def main() -> None:
    everything = [(kind, digit, hand) for kind in KINDS for digit in range(10) for hand in range(len(HANDS))]
    drawn, fields = Counter(kind for kind, *_ in everything), fields_of(everything)
    refused = drawn - Counter(kind for kind, *_ in fields)
    print(f"{drawn.total()} drawings of {len(drawn)} kinds; refused: {dict(refused)}")
    networks = [(Path(path), None) for path in sys.argv[1:]] or [(None, "network_a"), (None, "network_b")]
    for checkpoint, model in networks:
        right = read_right(fields, checkpoint, model)
        print(f"{checkpoint or model}: {right.total()} right; misread: {dict(drawn - refused - right)}")


if __name__ == "__main__":
    main()
