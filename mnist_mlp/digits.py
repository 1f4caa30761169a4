"""From a picture of a digit to the 28x28 pixels that a network was trained on: found, cleaned, and made as MNIST was.

`read_image` reads the file. `field_of` does the rest: `find_sheet` cuts away what is around the paper, `find_ink` tells
ink from paper, `one_digit` chooses the marks that are the digit, and `mnist_form` brings those to MNIST's size, place,
ink and width of stroke. Nobody learned these numbers: they were chosen by looking at the pictures that
tests/drawn_digits.py draws.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from mnist_mlp.settings import SettingError

MAX_PIXELS = 50_000_000  # of a file; decoded, that is 200 MB
LONGEST_SIDE, SHORTEST_SIDE = 512, 160  # what a larger picture is reduced to, and a smaller one enlarged to
FAINTEST = 16  # of 255: less contrast than this is no ink
CLEAREST = 6  # times the noise that is left after smoothing: less than this is no ink
BOX, FIELD = 20, 28  # sides in pixels of what the digit fills, and of the whole
THINNEST = 0.1  # of the digit's longer side: what a thinner stroke is widened to; MNIST's median is 0.12

Grey = np.ndarray[tuple[int, int], np.dtype[np.float32]]
Mask = np.ndarray[tuple[int, int], np.dtype[np.bool_]]
Array = np.ndarray[Any, Any]


class NoDigitError(ValueError):
    """Nothing in the picture can be one digit; the message goes on from the picture's name: what it has instead."""


def read_image(path: Path) -> Array:
    """The colours of a PNG or JPEG, turned as its camera says: (height, width, 3) float, 0..255.

    Transparent pixels are black or white, whichever is farther from what is drawn.

    Raises:
        SettingError: the file cannot be read, is no such image, or is too large.
    """
    if path.exists() and not path.is_file():
        raise SettingError("IMAGE", path, "is not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of sizes that are checked below and of oddities in metadata
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                size = image.width * image.height
                pixels = _colours(image) if size <= MAX_PIXELS else None
    except FileNotFoundError as error:
        raise SettingError("IMAGE", path, "there is no such file") from error
    except Image.DecompressionBombError:
        pixels = None
    except Exception as error:  # Pillow raises almost anything for a damaged or hostile file
        raise SettingError("IMAGE", path, "cannot be read as PNG or JPEG: it is damaged or something else") from error
    if pixels is None:
        raise SettingError("IMAGE", path, f"has more than {MAX_PIXELS:,} pixels: make it smaller")
    return pixels


def _colours(image: Image.Image) -> Array:
    if image.mode.startswith(("I", "F")):  # 16 bits of grey
        grey = Image.fromarray(np.asarray(image, dtype=np.float32) / 257)
        grey.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        return np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)
    if image.mode in ("1", "P") or "transparency" in image.info:
        image = image.convert("RGBA")  # these could not be scaled smoothly
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGBA"), dtype=np.float32)
    colours, opacity = pixels[:, :, :3], pixels[:, :, 3:] / 255
    drawn = (colours * opacity).sum() / max(3 * opacity.sum(), 1)
    return colours * opacity + (255 if drawn < 128 else 0) * (1 - opacity)


def field_of(colours: Array) -> Grey:
    """What a network is given for a picture: (28, 28), 0..255, ink on nothing, as MNIST's own.

    Args:
        colours: as from `read_image`.

    Raises:
        NoDigitError: there is no ink, or no one digit.
    """
    grey = main_contrast(colours)
    for _ in range(3):  # a frame on a sheet on a table
        if (already := as_mnist(grey)) is not None:
            return already
        if (sheet := find_sheet(grey)) is None:
            break
        grey = sheet
    grey = resized(grey, max(1, -(-SHORTEST_SIDE // max(grey.shape))), Image.Resampling.BICUBIC)
    return mnist_form(one_digit(find_ink(grey)))


def main_contrast(colours: Array) -> Grey:
    """The colours along the one line through their space on which the picture has most contrast: (height, width), in
    their own unit, so that black and white are 255 apart.

    It is that of what changes within a fifth of the picture: light that is uneven has no say in it.
    """
    changes = (colours - mean_near(colours, max(colours.shape) / 5)).reshape(-1, 3)
    axis = np.linalg.eigh(changes.T @ changes)[1][:, -1]
    axis = axis * (1 if axis.sum() >= 0 else -1) / max(np.abs(axis).sum(), 1e-9)
    grey: Grey = (colours @ axis).astype(np.float32)
    return grey


def mean_near(values: Array, reach: float) -> Array:
    """Nearly a Gaussian's mean with the standard deviation `reach`, in a time that does not depend on it."""
    size = 2 * round(reach) + 1
    for _ in range(3):
        values = ndimage.uniform_filter(values, (size, size, 1)[: values.ndim])
    return values


def as_mnist(grey: Grey) -> Grey | None:
    """The picture itself where it has MNIST's form, in its black or in white; None where it has not."""
    if grey.shape != (FIELD, FIELD):
        return None
    for ink in (grey, 255 - grey):
        ink = np.clip(ink, 0, 255).round().astype(np.float32)
        edge = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
        if edge.max() < FAINTEST and ink.max() > 128:
            centre = ndimage.center_of_mass(ink)
            if max(abs(at - FIELD / 2) for at in centre) < 1.5:
                return ink
    return None


def otsu(values: Array) -> tuple[float, float]:
    """The threshold that divides values into the two most different groups (N. Otsu, 1979), and the share of their
    variance that it explains. Where they hardly differ: the greatest of all, and 0."""
    if np.ptp(values) < 1:
        return float(values.max()), 0.0
    counts, edges = np.histogram(values, 128)
    middles = (edges[:-1] + edges[1:]) / 2
    below, sums = np.cumsum(counts)[:-1], np.cumsum(counts * middles)
    above = counts.sum() - below
    between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2 / counts.sum() ** 2
    best = int(np.argmax(between))
    return float(edges[best + 1]), float(between[best] / values.var())


def find_sheet(grey: Grey) -> Grey | None:
    """The sheet that the digit is on, where the picture shows what is around it too: a table, a frame, a margin.

    A sheet is a large area with straight sides and marks of the other shade on it.

    Returns:
        The picture cut to it, with the paper's shade beyond its edge; None where there is no such sheet.
    """
    smooth = ndimage.gaussian_filter(grey, max(grey.shape) / 300)
    light = smooth > otsu(smooth)[0]
    found, size = None, 0.1 * light.size
    for side in (light, ~light):
        labels, _ = ndimage.label(side)
        for number, box in enumerate(ndimage.find_objects(labels), start=1):
            if (part := labels[box] == number).size < size:
                continue
            whole = ndimage.binary_fill_holes(part)
            fits = size < whole.sum() < 0.97 * light.size and _is_rectangle(whole)
            if fits and _is_sheet(whole, whole & ~part, smooth[box]):
                found, size = (box, whole), whole.sum()
    if found is None:
        return None
    box, whole = found
    sheet: Grey = grey[box]
    if whole.all():
        return sheet
    within = ndimage.binary_erosion(whole, iterations=2 + max(grey.shape) // 100)
    nearest = ndimage.distance_transform_edt(~within, return_distances=False, return_indices=True)
    return np.where(within, sheet, smooth[box][tuple(nearest)]).astype(np.float32)


def _is_sheet(whole: Mask, marks: Mask, grey: Grey) -> bool:
    """Whether a rectangle is no digit (a 1, or a 0 with corners): what is within it, and not of its shade, can be what
    somebody wrote on it; or nothing is, and there are shades within it that differ less than it does from the rest."""
    share = marks.sum() / whole.sum()
    if share < 0.002:
        within = ndimage.binary_erosion(whole, iterations=3)
        return bool(max(whole.shape) < 2 * min(whole.shape) and within.any() and np.ptp(grey[within]) > 2 * FAINTEST)
    labels, _ = ndimage.label(marks)
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    mark = labels[ndimage.find_objects(labels)[largest - 1]] == largest
    if share > 0.6 or max(mark.shape) < 0.1 * max(whole.shape):
        return False
    return max(mark.shape) > 2.5 * min(mark.shape) or not _is_rectangle(mark)


def _is_rectangle(mask: Mask) -> bool:
    """Whether a mask fills the smallest rectangle, at any angle, around it."""
    outline = np.argwhere(mask & ~ndimage.binary_erosion(mask))
    angles = np.arange(0, 90, 3) * np.pi / 180
    along, across = np.stack([np.cos(angles), np.sin(angles)]), np.stack([-np.sin(angles), np.cos(angles)])
    areas = (np.ptp(outline @ along, axis=0) + 1) * (np.ptp(outline @ across, axis=0) + 1)
    return bool(mask.sum() > 0.88 * areas.min())


def find_ink(grey: Grey) -> Grey:
    """How much ink is on each pixel, 0..1: how far its shade is from the paper's there, on the side that has more.

    Raises:
        NoDigitError: nothing stands out from paper and noise.
    """
    difference = grey - paper_of(grey)
    smooth = ndimage.gaussian_filter(difference, 1)
    noise = spread(np.abs(difference - smooth)) / 0.85  # what the smoothing leaves of it
    # Smoothed no more than the noise asks for, since smoothing fades thin strokes.
    contrast = float(np.percentile(np.abs(smooth), 99.5))
    if noise > contrast / 25:
        difference = ndimage.gaussian_filter(difference, min(2.0, 20 * noise / max(contrast, 1)))
    least = max(FAINTEST, CLEAREST * float(np.percentile(np.abs(difference), 25)) / 0.32)  # what is left of the noise
    # Ink is what is narrower than a third of the picture: a shadow with a sharp edge is wider.
    width = max(grey.shape) // 3
    sides = [
        ndimage.white_tophat(np.clip(sign * difference - least / 2, 0, None), width, mode="constant")
        for sign in (-1, 1)
    ]
    ink: Grey = max(sides, key=lambda side: float((side**2).sum()))
    strong = ink[ink > least / 2]
    if not strong.size:
        raise NoDigitError("has no digit on it: nothing stands out from its background")
    full = float(np.percentile(strong[strong >= otsu(strong)[0]], 60))
    full_ink: Grey = np.clip(ink / full, 0, 1)
    return full_ink


def paper_of(grey: Grey) -> Grey:
    """The shade that the paper has at each pixel, under the ink too; worked out at a size where that is quick.

    First a surface of the third degree through what most of the picture agrees on, starting from its edge, where paper
    is; then, where there is no ink, the mean of what is near.
    """
    small = resized(grey, min(1, 128 / max(grey.shape)), Image.Resampling.BOX)
    height, width = small.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    powers = [(i, j) for degree in range(4) for i in range(degree + 1) for j in [degree - i]]
    terms = np.stack([y**i * x**j for i, j in powers], axis=-1)
    few, shades = terms[::2, ::2].reshape(-1, len(powers)), ndimage.uniform_filter(small, 2)[::2, ::2].ravel()
    surface = np.full(shades.shape, np.median(shades[np.abs(few[:, 1:3]).max(axis=1) > 0.93]))
    for count in (1, 3, 6, 6, 6, 6, 10, 10, 10):  # terms: the surface bends only as far as it is sure of its paper
        apart = np.abs(shades - surface)
        scale = max(3.0, 2.5 * spread(apart))
        weighted = few[:, :count] / ((1 + (apart / scale) ** 2) ** 2)[:, None]  # what is far off has nearly no say
        factors = np.linalg.solve(weighted.T @ few[:, :count] + 1e-6 * np.eye(count), weighted.T @ shades)
        surface = few[:, :count] @ factors
    smooth: Array = terms @ factors
    apart = np.abs(ndimage.gaussian_filter(small, 0.7) - smooth)
    inked = apart > max(FAINTEST, 3 * spread(apart))
    threshold, certainty = otsu(small)
    light = small > threshold
    edge, edge_light = (np.concatenate([some[0], some[-1], some[:, 0], some[:, -1]]) for some in (small, light))
    flat = float((np.abs(edge - np.median(edge)) < FAINTEST).mean())
    if certainty > 0.9 or (certainty > 0.75 and flat > 0.55):
        # Two shades, of which the paper has more of the edge: right also where there is more ink than paper.
        inked = light == (edge_light.mean() < 0.5)
        smooth = np.full(small.shape, np.median(small[~inked]))
    paper = ~ndimage.binary_dilation(inked, iterations=3)
    reach = max(small.shape) / 12
    near = mean_near(paper.astype(np.float64), reach)
    mean = mean_near(np.where(paper, small - smooth, 0), reach) / np.maximum(near, 1e-3)
    found = (smooth + mean * np.clip(near / 0.02, 0, 1)).astype(np.float32)
    return np.asarray(Image.fromarray(found).resize(grey.shape[::-1], Image.Resampling.BICUBIC))


def spread(distances: Array) -> float:
    """The standard deviation of normal numbers whose absolute values have this median: outliers have no say."""
    return 1.4826 * float(np.median(distances))


def resized(grey: Grey, times: float, how: Image.Resampling) -> Grey:
    height, width = (max(1, round(times * side)) for side in grey.shape)
    return grey if times == 1 else np.asarray(Image.fromarray(grey).resize((width, height), how))


def one_digit(ink: Grey) -> Grey:
    """The ink of the marks that are the digit, cut to them: without ruled lines, specks, dashes, and what comes in from
    the picture's edge.

    Raises:
        NoDigitError: no mark is large enough to be a digit, or several are.
    """
    mask = without_lines(ndimage.binary_propagation(ink > 0.5, mask=ink > 0.3))
    joined = ndimage.binary_dilation(mask, np.ones((3, 3)), max(1, max(mask.shape) // 150))  # across a gap in a stroke
    labels, count = ndimage.label(joined)
    labels *= mask
    boxes = ndimage.find_objects(labels)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    longest = np.array([max(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in boxes])
    weights = areas * longest
    inside = np.array([not _at_edge(box, mask.shape) for box in boxes])
    if (weights * inside).max() > 0.02 * weights.max():
        weights *= inside
    main = int(np.argmax(weights))
    size, (rows, columns) = int(longest[main]), boxes[main]
    if size < max(8, 0.03 * max(mask.shape)):
        raise NoDigitError("has no digit on it: what is there is too small")
    if not inside[main] and size < 0.6 * max(mask.shape):
        raise NoDigitError("has no digit on it that lies within the picture")
    heights = np.array([box[0].stop - box[0].start for box in boxes])
    alike = (weights > 0) & (heights > 0.6 * heights[main]) & (areas > 0.35 * areas[main])
    if alike.sum() > 1:
        raise NoDigitError(f"has {alike.sum()} marks of a digit's size on it: cut it to one digit")
    digit = labels == main + 1
    distance = ndimage.distance_transform_edt(~digit)
    for number in np.flatnonzero((weights > 0) & (areas > 0.02 * areas[main]) & (np.arange(count) != main)):
        box, piece = boxes[number], labels[boxes[number]] == number + 1
        # A stroke set apart, as a 5's uppermost, lies above or among the others; a dash beside or a line below not.
        beside = box[0].start > rows.stop - 2 or not _overlap(box[1], columns)
        if distance[box][piece].min() < (0.03 if beside else 0.12) * size:
            digit[box] |= piece
    box = _around(digit)
    if digit[box].mean() > 0.7 and max(digit[box].shape) < 2 * min(digit[box].shape):
        raise NoDigitError("has no digit on it: a blot, and no strokes")
    return np.where(ndimage.binary_dilation(digit, np.ones((3, 3)), 2), ink, 0)[box].astype(np.float32)


def _around(mask: Mask) -> tuple[slice, slice]:
    """The rows and columns of what is marked, and two more on each side."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(max(0, rows[0] - 2), rows[-1] + 3), slice(max(0, columns[0] - 2), columns[-1] + 3)


def _overlap(first: slice, second: slice) -> bool:
    return bool(first.start < second.stop and second.start < first.stop)


def _at_edge(box: tuple[slice, slice], shape: tuple[int, ...]) -> bool:
    return any(part.start <= 1 or part.stop >= length - 1 for part, length in zip(box, shape, strict=True))


def without_lines(mask: Mask) -> Mask:
    """Ink without the lines of ruled and squared paper: straight, thin, from one edge to the other.

    Raises:
        NoDigitError: there is nothing else.
    """
    cleaned: Mask = mask & ~_ruling(mask) & ~_ruling(mask.T).T
    if cleaned.any():
        return cleaned
    if ndimage.label(mask)[1] > 1:
        raise NoDigitError("has no digit on it: lines, and nothing else")
    return mask  # a 1 that is as high as the picture


def _ruling(mask: Mask) -> Mask:
    """Where horizontal lines are that cross the picture, but not where a stroke crosses them."""
    height, width = mask.shape
    lines = np.zeros_like(mask)
    columns = np.arange(width)
    few = columns[:: max(1, width // 60)]
    best, found = 0.0, None
    if mask.any(axis=0).mean() < 0.7:
        return lines
    for slope in np.linspace(-0.08, 0.08, 17):
        rows = np.arange(height)[:, None] + np.rint(slope * (few - width / 2)).astype(int)
        share = (mask[np.clip(rows, 0, height - 1), few] & (rows >= 0) & (rows < height)).mean(axis=1)
        if (score := float((share[share > 0.7] ** 4).sum())) > best:
            best, found = score, slope
    if found is None:
        return lines
    rows = np.arange(height)[:, None] + np.rint(found * (columns - width / 2)).astype(int)
    sheared = mask[np.clip(rows, 0, height - 1), columns] & (rows >= 0) & (rows < height)
    # Of each column's runs of ink, those as thin as a line that lie on one.
    labels, count = ndimage.label(sheared, [[0, 1, 0], [0, 1, 0], [0, 1, 0]])
    thin = np.bincount(labels.ravel()) <= max(3, height // 40)
    on_line = np.zeros(count + 1, dtype=bool)
    on_line[labels[sheared.mean(axis=1) > 0.6]] = True
    at = np.nonzero((thin & on_line)[labels] & sheared)
    lines[rows[at], at[1]] = True
    return lines


def mnist_form(ink: Grey) -> Grey:
    """Brings the ink of a digit, 0..1, cut to it, to (28, 28), 0..255, the way MNIST was made.

    The box around the ink is scaled to fit 20x20 pixels with its proportions kept, antialiased, and placed so that its
    centre of mass is the centre of 28x28 (Y. LeCun, C. Cortes, C. Burges: The MNIST database). Before that, strokes
    thinner than MNIST's are widened; after it, the ink is made as dark as MNIST's.
    """
    ink = np.pad(ink, 2 + max(ink.shape) // 10)
    mask = ink > 0.5
    inside = ndimage.distance_transform_edt(mask)
    ridge = mask & (inside >= ndimage.maximum_filter(inside, 3))
    stroke = 2 * float(np.median(inside[ridge])) - 0.5
    longer = max(np.ptp(np.flatnonzero(mask.any(axis=axis))) + 1 for axis in (0, 1))
    if (wider := (THINNEST * longer - stroke) / 2) > 0:
        ink = np.maximum(ink, np.clip(wider + 1 - ndimage.distance_transform_edt(~mask), 0, 1))
    rows, columns = (np.flatnonzero((ink > 0.2).any(axis=axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    scale = BOX / max(bottom - top, right - left)
    width, height = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    box = Image.fromarray(ink[top:bottom, left:right].astype(np.float32))
    digit = np.asarray(box.resize((width, height), Image.Resampling.BILINEAR))
    digit = np.clip(255 * digit / max(0.05, float(np.percentile(digit[digit > 0.2], 80))), 0, 255)
    field = np.zeros((FIELD, FIELD), dtype=np.float32)
    first = [_offset(digit.sum(axis=1)), _offset(digit.sum(axis=0))]
    field[first[0] : first[0] + height, first[1] : first[1] + width] = digit
    return field


def _offset(mass: Array) -> int:
    """Where a line of these masses begins, so that their centre lies in pixel 14 of 0..27, as it does in MNIST."""
    centre = float((mass * (np.arange(len(mass)) + 0.5)).sum() / mass.sum())
    return int(np.clip(round(FIELD / 2 + 0.5 - centre), 0, FIELD - len(mass)))
