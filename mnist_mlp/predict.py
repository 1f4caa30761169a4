"""`mnist-predict CHECKPOINT IMAGE...`: digits and probabilities for image files."""

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from mnist_mlp.settings import SettingError, one_sentence
from mnist_mlp.surroundings import import_from_here

MAX_PIXELS = 50_000_000  # of a file; decoded, that is 200 MB
LONGEST_SIDE = 1000  # pixels that a larger image is first reduced to: 50 for each of the digit's 20
FAINTEST = 16  # of 255: less contrast than this is no ink
FAINT_EDGE = 25  # of 255: what JPEG leaves around a stroke does not make the box around the ink larger
BOX, FIELD = 20, 28  # sides in pixels of what the digit fills, and of the whole

Grey = np.ndarray[tuple[int, int], np.dtype[np.float32]]


def main() -> None:
    """Runs `mnist-predict`. Exit status: 0; 1 where an image or the checkpoint cannot be used."""
    parser = argparse.ArgumentParser(
        prog="mnist-predict", description="Says which digit is on each image, dark on light or light on dark."
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="such as RUN_DIR/checkpoints/best.ckpt")
    parser.add_argument("images", metavar="IMAGE", type=Path, nargs="+", help="a PNG or JPEG file of any size")
    parser.add_argument("--model", metavar="YAML", type=Path, help="the file of a backbone that is not this package's")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    arguments = parser.parse_args()
    with one_sentence():
        import_from_here()
        readable: dict[Path, Grey] = {}
        for path in dict.fromkeys(arguments.images):
            try:
                readable[path] = mnist_form(read_ink(path))
            except SettingError as error:
                print(error, file=sys.stderr)
        predictions = predict(arguments.checkpoint, list(readable.values()), arguments.model) if readable else []
    results = [
        {"image": str(path), "digit": int(np.argmax(row)), "probabilities": row}
        for path, row in zip(readable, predictions, strict=True)
    ]
    if arguments.json:
        print(json.dumps(results))
    else:
        for result in results:
            print(describe(result))
    sys.exit(0 if len(readable) == len(set(arguments.images)) else 1)


def describe(result: dict[str, Any]) -> str:
    """Such as `seven.png: 7 (99.2%); 1 (0.5%), 9 (0.2%)`: the digit, then the next two."""
    likely = sorted(enumerate(result["probabilities"]), key=lambda entry: -entry[1])[:3]
    first, *others = (f"{digit} ({probability:.1%})" for digit, probability in likely)
    return f"{result['image']}: {first}; {', '.join(others)}"


def predict(checkpoint: Path, images: list[Grey], model: Path | None = None) -> list[list[float]]:
    """The ten probabilities of each image.

    Args:
        checkpoint: written by `mnist-train`; the mean and standard deviation are those of its run.
        images: each (28, 28), 0..255, as `mnist_form` makes them.
        model: as for `load_classifier`.

    Raises:
        SettingError: the checkpoint cannot be used.
    """
    import torch

    from mnist_mlp.datamodule import normalize
    from mnist_mlp.evaluate import load_classifier

    classifier = load_classifier(checkpoint, model)
    mean, std = (classifier.hparams["data"].get(name) for name in ("mean", "std"))
    if mean is None or std is None:
        raise SettingError("CHECKPOINT", checkpoint, "does not say which mean and std its images had")
    with torch.no_grad():
        pixels = torch.from_numpy(np.stack(images)).round().to(torch.uint8)
        probabilities: list[list[float]] = classifier.predict_step(normalize(pixels, mean, std), 0).tolist()
    return probabilities


def read_ink(path: Path) -> Grey:
    """How much ink is on each pixel of a PNG or JPEG, 0..255: its colour's distance from the background's.

    The background is the median colour of the image's edge. Distances that most of the edge has too (paper, noise,
    uneven light) are no ink; the greatest is 255. Transparent pixels are background.

    Raises:
        SettingError: the file cannot be read, is no such image, is too large, or has no ink on it.
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
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = np.median(edge, axis=0)
    distance = np.linalg.norm(pixels - background, axis=2)
    strongest = distance.max()
    paper = min(np.percentile(np.linalg.norm(edge - background, axis=1), 90), strongest / 2)
    if strongest - paper < FAINTEST:
        raise SettingError("IMAGE", path, "has no digit on it: nothing stands out from its background")
    ink: Grey = (np.clip((distance - paper) / (strongest - paper), 0, 1) * 255).astype(np.float32)
    return ink


def _colours(image: Image.Image) -> np.ndarray[Any, Any]:
    """(height, width, channels), 0..255, turned as its camera says, of no more than `LONGEST_SIDE`."""
    if image.mode.startswith(("I", "F")):  # 16 bits of grey
        grey = Image.fromarray(np.asarray(image, dtype=np.float32) / 257)
        grey.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        return np.asarray(grey)[:, :, None]
    if image.mode in ("1", "P") or "transparency" in image.info:
        image = image.convert("RGBA")  # these could not be scaled smoothly
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGBA"), dtype=np.float32)
    colours, opacity = pixels[:, :, :3], pixels[:, :, 3:] / 255
    # Under transparent pixels goes black or white, whichever is farther from what is drawn.
    drawn = (colours * opacity).sum() / max(3 * opacity.sum(), 1)
    return colours * opacity + (255 if drawn < 128 else 0) * (1 - opacity)


def mnist_form(ink: Grey) -> Grey:
    """Brings ink of any size to (28, 28), 0..255, the way MNIST was made.

    The box around the ink is scaled to fit 20x20 pixels with its proportions kept, antialiased, and placed so that its
    centre of mass is the centre of 28x28 (Y. LeCun, C. Cortes, C. Burges: The MNIST database).
    """
    inked = ink > FAINT_EDGE
    # A speck of one or two pixels, such as noise leaves, is no part of the digit: it has no three inked pixels in 3x3.
    strokes = inked & np.asarray(Image.fromarray(inked.astype(np.uint8)).filter(ImageFilter.RankFilter(3, 6)), bool)
    rows, columns = (np.flatnonzero((strokes if strokes.any() else inked).any(axis=axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    scale = BOX / max(bottom - top, right - left)
    width, height = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    box = Image.fromarray(ink[top:bottom, left:right]).resize((width, height), Image.Resampling.BILINEAR)
    digit = np.asarray(box)
    field = np.zeros((FIELD, FIELD), dtype=np.float32)
    first = [_offset(digit.sum(axis=1)), _offset(digit.sum(axis=0))]
    field[first[0] : first[0] + height, first[1] : first[1] + width] = digit
    return field


def _offset(mass: np.ndarray[Any, Any]) -> int:
    """Where a line of these masses begins, so that their centre lies in pixel 14 of 0..27, as it does in MNIST."""
    centre = float((mass * (np.arange(len(mass)) + 0.5)).sum() / mass.sum())
    return int(np.clip(round(FIELD / 2 + 0.5 - centre), 0, FIELD - len(mass)))


if __name__ == "__main__":
    main()
