"""Pictures of a network and its predictions for TensorBoard, legible at the size of a small card."""

import io
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mnist_mlp.drawing import shapes as drawing
from mnist_mlp.drawing.shapes import BLUE, GREY, INK, RED, Box, Line, Shape, Text

Numbers = NDArray[np.floating]
Counts = NDArray[np.integer]

WIDTH, MARGIN = 760, 24  # pixels
BINS = 15  # of the reliability diagram, as in Guo et al. 2017
WRONG = 25
MOST_TILES = 64  # of first-layer weights


def encoded(image: Image.Image) -> bytes:
    """The image as PNG. A coloured one gets a palette of at most 256 colours, for a third of the bytes; Pillow's
    default palette and compression take five times as long.

    Args:
        image: RGB with white in its top left corner, or L.
    """
    if image.mode != "L":
        image = image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        palette = image.getpalette() or []
        background = 3 * int(image.getpixel((0, 0)))  # type: ignore[arg-type]
        palette[background : background + 3] = [255] * 3  # the palette's own is only nearly white
        image.putpalette(palette)
    content = io.BytesIO()
    image.save(content, "png", compress_level=3)
    return content.getvalue()


def confusion_matrix(counts: Counts, title: str) -> Image.Image:
    """Counts (num_classes, num_classes), a row for each true class. A cell's colour is its share of the row: blue where
    the prediction is right, red where it is wrong."""
    classes = len(counts)
    left, top = 74, 128
    cell = (WIDTH - left - MARGIN - 78) / classes
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = shares * (1 - np.eye(classes))
    most = max(wrong.max(), 0.01)
    shapes: list[Shape] = [
        Text(MARGIN, 34, title, 28, "start", bold=True),
        Text(left + cell * classes / 2, 76, "predicted digit", 22, color=GREY),
        Text(left + cell * classes + 8, 108, "recall", 20, "start", GREY),
        Text(MARGIN, 108, "true", 22, "start", GREY),
    ]
    for row in range(classes):
        middle = top + cell * (row + 0.5)
        shapes += [
            Text(left - 20, middle, str(row), 26, bold=True),
            Text(left + cell * (row + 0.5), 108, str(row), 26, bold=True),
            Text(left + cell * classes + 8, middle, f"{shares[row, row]:.1%}", 20, "start"),
        ]
        for column in range(classes):
            right, count = row == column, int(counts[row, column])
            strength = float(shares[row, column] if right else (wrong[row, column] / most) ** 0.7)
            color = _blend("#f6f7f9", BLUE if right else "#c9463d", strength)
            x, y = left + cell * column, top + cell * row
            shapes.append(Box(x + 1, y + 1, cell - 2, cell - 2, color))
            if count:
                ink = "white" if strength > 0.55 else INK
                shapes.append(Text(x + cell / 2, middle, str(count), 22 if count < 1000 else 18, color=ink))
    note = f"colour: share of the row; the deepest red is {most:.1%}"
    height = round(top + cell * classes + 50)
    shapes.append(Text(left, height - 24, note, 18, "start", GREY))
    return drawing.png(shapes, WIDTH, height, sharpness=1, bold=True)


def most_confidently_wrong(images: Numbers, labels: Counts, probabilities: Numbers, title: str) -> Image.Image:
    """The wrong predictions of highest probability: each image with its true and its predicted class.

    Args:
        images: (at most 25, 28, 28), those that `wrongest` names, of any scale.
        labels: (N,).
        probabilities: (N, num_classes).
    """
    found = wrongest(labels, probabilities)
    columns, side, pitch, caption, top = 5, 112, 142, 34, 96
    rows = max(1, -(-len(found) // columns))
    height = top + rows * (side + caption + 8) + 12
    mistakes = int((probabilities.argmax(axis=1) != labels).sum())
    shapes: list[Shape] = [
        Text(MARGIN, 34, title, 28, "start", bold=True),
        Text(MARGIN, 72, f"true → predicted, probability; {mistakes:,} of {len(labels):,} wrong", 20, "start", GREY),
    ]
    places = []
    for number, index in enumerate(found):
        x = MARGIN + pitch * (number % columns) + (pitch - side) // 2
        y = top + (side + caption + 8) * (number // columns)
        places.append((x, y))
        guess = int(probabilities[index].argmax())
        said = f"{labels[index]} → {guess}"
        percent = f"{_floor(float(probabilities[index, guess])):.1%}"
        shapes += [
            Text(x, y + side + 17, said, 21, "start", bold=True),
            Text(x + side + 12, y + side + 17, percent, 17, "end", RED),
        ]
    picture = drawing.png(shapes, WIDTH, height, sharpness=1, bold=True)
    for image, place in zip(images, places, strict=True):
        low, high = float(image.min()), float(image.max())
        pixels = 255 - (image - low) / max(high - low, 1e-9) * 255
        picture.paste(Image.fromarray(pixels.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC), place)
    return picture


def wrongest(labels: Counts, probabilities: Numbers, count: int = WRONG) -> list[int]:
    """Indices of at most `count` wrongly predicted samples, in descending order of the prediction's probability."""
    mistakes = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(-probabilities[mistakes].max(axis=1), kind="stable")
    return [int(index) for index in mistakes[order][:count]]


def calibration(labels: Counts, probabilities: Numbers) -> tuple[Counts, Numbers, Numbers, float]:
    """How far accuracy is from confidence, which is the highest predicted probability.

    Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017: equations 1 to 3 and 5.

    Returns:
        For each of `BINS` equal bins of confidence, ((m-1)/BINS, m/BINS]: the number of samples, their accuracy and
        their mean confidence (both 0 in an empty bin). Then the expected calibration error: |accuracy - confidence| of
        a bin, averaged over all samples.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    samples = np.bincount(bins, minlength=BINS)
    accuracy = np.bincount(bins, right, BINS) / np.maximum(samples, 1)
    mean = np.bincount(bins, confidence, BINS) / np.maximum(samples, 1)
    return samples, accuracy, mean, float((samples * np.abs(accuracy - mean)).sum() / len(labels))


def reliability_diagram(labels: Counts, probabilities: Numbers, title: str) -> Image.Image:
    """Accuracy in each bin of confidence, its gap to the mean confidence, the number of samples, and the expected
    calibration error; see `calibration`."""
    samples, accuracy, confidence, error = calibration(labels, probabilities)
    left, top, side, strip = 92, 128, WIDTH - 92 - 40, 96
    bottom = top + side * 0.78
    height = round(bottom + strip + 118)
    width = side / BINS

    def up(value: float) -> float:
        return bottom - value * (bottom - top)

    shapes: list[Shape] = [Text(MARGIN, 34, title, 28, "start", bold=True)]
    summary = f"expected calibration error {100 * error:.2f} %"
    shapes.append(Text(MARGIN, 78, summary, 26, "start", RED, bold=True))
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1):
        shapes += [
            Line(left, up(tick), left + side, up(tick), "#e3e7ec"),
            Text(left - 10, up(tick), f"{tick:.1f}", 20, "end", GREY),
            Text(left + side * tick, bottom + strip + 44, f"{tick:.1f}", 20, color=GREY),
        ]
    floor = bottom + strip + 26
    for number in range(BINS):
        if not samples[number]:
            continue
        x = left + width * number + 1
        has, ought = up(float(accuracy[number])), up(float(confidence[number]))
        shapes.append(Box(x, has, width - 2, bottom - has, "#5b86c4"))
        # Narrower than the bar, whose top it would cover where accuracy is above confidence.
        shapes.append(Box(x + width / 4, min(has, ought), width / 2, max(abs(has - ought), 1), "#f0b3ae", RED))
        shapes.append(Line(x, has, x + width - 2, has, "#2f5fa5", 3))
        tall = strip * (samples[number] / len(labels)) ** 0.5
        shapes.append(Box(x, floor - tall, width - 2, max(tall, 1), "#a9b3be"))
    steps = 32
    for step in range(0, steps, 2):
        ends = [step / steps, (step + 1) / steps]
        shapes.append(Line(left + side * ends[0], up(ends[0]), left + side * ends[1], up(ends[1]), INK, 2))
    shapes += [
        Line(left, bottom, left + side, bottom, INK, 2),
        Line(left, floor, left + side, floor, INK, 2),
        Text(left + side / 2, height - 22, "confidence: the highest predicted probability", 22, color=GREY),
        Text(left + 14, top + 18, "accuracy", 22, "start", "#2f5fa5", bold=True),
        Text(left + 14, top + 48, "gap to mean confidence", 22, "start", RED),
        Text(left + 14, bottom + 36, f"{len(labels):,} images by confidence (square-root scale)", 20, "start", GREY),
    ]
    return drawing.png(shapes, WIDTH, height)


def first_layer_weights(weights: Numbers, title: str) -> Image.Image:
    """Weights (units, 784) of at most 64 units as tiles of 28x28, in colours that are symmetric about 0."""
    shown = weights[:MOST_TILES].reshape(-1, 28, 28)
    limit = float(np.quantile(np.abs(weights), 0.995)) or 1.0
    columns = min(8, len(shown))
    grid = _tiles(_diverging(shown / limit), columns, scale=3, gap=4)
    count = f"{len(shown)} of {len(weights):,} units" if len(shown) < len(weights) else f"{len(weights)} units"
    note = f"{count}; 99.5 % of the weights are within ±{limit:.2g}"
    return _with_scale(grid, title, note, -limit, limit, _diverging)


def training_images(images: Numbers, title: str) -> Image.Image:
    """Images (N, 28, 28) as the network sees them, with the scale of their normalized pixels; in grey."""
    low, high = float(images.min()), float(images.max())
    spread = max(high - low, 1e-9)
    grid = _tiles(_grey(2 * (images - low) / spread - 1), 8, scale=3, gap=4)
    mean, std = float(images.mean()), float(images.std())
    note = f"their pixels' mean {mean:.2f}, standard deviation {std:.2f}"
    return _with_scale(grid, title, note, low, high, _grey).convert("L")


def _with_scale(
    grid: NDArray[np.uint8],
    title: str,
    note: str,
    low: float,
    high: float,
    colors: Callable[[Numbers], NDArray[np.uint8]],
) -> Image.Image:
    """Tiles with a title above, and below them a bar of the colours from `low` to `high`."""
    top = 100
    floor = top + grid.shape[0] + 44
    bar = colors(np.linspace(-1, 1, 400)[None, :].repeat(26, axis=0))
    left = (WIDTH - bar.shape[1]) // 2
    shapes: list[Shape] = [
        Text(MARGIN, 34, title, 28, "start", bold=True),
        Text(MARGIN, 74, note, 20, "start", GREY),
        Box(left - 1, floor - 14, bar.shape[1] + 2, bar.shape[0] + 2, GREY),
        Text(left - 14, floor, f"{low:.2f}".replace("-", "−"), 22, "end"),
        Text(left + bar.shape[1] + 14, floor, f"{high:.2f}", 22, "start"),
    ]
    picture = drawing.png(shapes, WIDTH, floor + 36, sharpness=1, bold=True)
    picture.paste(Image.fromarray(grid), ((WIDTH - grid.shape[1]) // 2, top))
    picture.paste(Image.fromarray(bar), (left, floor - 13))
    return picture


def _tiles(tiles: NDArray[np.uint8], columns: int, scale: int, gap: int) -> NDArray[np.uint8]:
    """Tiles (N, height, width, 3) -> a grid of them on white (rows, columns, 3), each enlarged `scale` times."""
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, _ = tiles.shape
    rows = -(-count // columns)
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for number, tile in enumerate(tiles):
        y, x = number // columns * (height + gap), number % columns * (width + gap)
        grid[y : y + height, x : x + width] = tile
    return grid


def _diverging(values: Numbers) -> NDArray[np.uint8]:
    """Values (...) -> colours (..., 3): blue from -1 down, white at 0, red from 1 up."""
    strength = np.abs(np.clip(values, -1, 1))[..., None]
    ends = np.where(values[..., None] < 0, _rgb(BLUE), _rgb(RED))
    colors: NDArray[np.uint8] = (255 + strength * (ends - 255)).round().astype(np.uint8)
    return colors


def _grey(values: Numbers) -> NDArray[np.uint8]:
    """Values (...) -> greys (..., 3): black from -1 down, white from 1 up."""
    shade = ((np.clip(values, -1, 1) + 1) * 127.5).round().astype(np.uint8)
    return np.repeat(shade[..., None], 3, axis=-1)


def _rgb(color: str) -> NDArray[np.float64]:
    return np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)], dtype=np.float64)


def _blend(one: str, other: str, share: float) -> str:
    """`one` where `share` is 0, `other` where it is 1."""
    mixed = _rgb(one) + (_rgb(other) - _rgb(one)) * share
    return "#" + "".join(f"{round(value):02x}" for value in mixed.tolist())


def _floor(share: float) -> float:
    """Rounded down to a tenth of a percent, so that only certainty is 100 %."""
    return math.floor(share * 1000) / 1000
