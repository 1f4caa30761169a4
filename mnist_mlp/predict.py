"""`mnist-predict [CHECKPOINT] IMAGE...`: digits and probabilities for image files."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mnist_mlp.digits import Grey, NoDigitError, field_of, read_image
from mnist_mlp.evaluate import CHECKPOINT_HELP, MODEL_HELP
from mnist_mlp.run.process import prepare_process
from mnist_mlp.settings import SettingError, make_directory, one_sentence
from mnist_mlp.surroundings import import_from_here

SHADES = {"utf-8": " ░▒▓█", "ascii": " .:*#"}  # of a terminal that shows a field, by what it can print
IMAGE_NAMES, CHECKPOINT_NAMES = (".png", ".jpg", ".jpeg"), (".ckpt", ".pt", ".pth", ".safetensors")
IMAGE_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff")  # what a PNG and a JPEG begin with
CHECKPOINT_SIGNATURE = b"PK\3\4"  # PyTorch's files are zip archives


def main() -> None:
    """Runs `mnist-predict`. Exit status: 0; 1 where an image or the checkpoint cannot be used."""
    parser = argparse.ArgumentParser(
        prog="mnist-predict",
        description="Says which digit is on each image, dark on light or light on dark.",
        usage="%(prog)s [-h] [--model NAME|YAML] [--show] [--pictures DIR] [--json] [CHECKPOINT] IMAGE [IMAGE ...]",
    )
    parser.add_argument("paths", metavar="CHECKPOINT", type=Path, nargs="*", help=CHECKPOINT_HELP)
    parser.add_argument("--model", metavar="NAME|YAML", help=MODEL_HELP)
    parser.add_argument("--show", action="store_true", help="also the 28x28 pixels that the network sees")
    parser.add_argument("--pictures", metavar="DIR", type=Path, help="a PNG for each image: it, these pixels, all ten")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    arguments = parser.parse_intermixed_args()
    if not arguments.paths:
        parser.error("give at least one IMAGE, a PNG or JPEG")
    prepare_process(threads=None, portable=True)
    with one_sentence():
        import_from_here()
        checkpoint, paths = divide(arguments.paths)
        readable: dict[Path, Grey] = {}
        for path in paths:
            try:
                readable[path] = field_of(read_image(path))
            except SettingError as error:
                print(error, file=sys.stderr)
            except NoDigitError as error:
                print(SettingError("IMAGE", path, str(error)), file=sys.stderr)
        predictions = predict(checkpoint, list(readable.values()), arguments.model) if readable else []
        results: list[dict[str, Any]] = [
            {"image": str(path), "digit": int(np.argmax(row)), "probabilities": row}
            for path, row in zip(readable, predictions, strict=True)
        ]
        _print(results, readable, arguments.json, arguments.show)
        if arguments.pictures is not None and results:
            make_directory(arguments.pictures, "--pictures")
            save_pictures(results, readable, arguments.pictures)
    sys.exit(0 if len(readable) == len(paths) else 1)


def _print(results: list[dict[str, Any]], readable: dict[Path, Grey], as_json: bool, show: bool) -> None:
    if as_json and show:
        results = [{**result, "field": readable[Path(result["image"])].round().tolist()} for result in results]
    if as_json:
        print(json.dumps(results))
        return
    for result in results:
        print(describe(result))
        if show:
            print(blocks(readable[Path(result["image"])], sys.stdout.encoding))


def divide(paths: list[Path]) -> tuple[Path | None, list[Path]]:
    """The checkpoint, or None where the first path is an image, and the images, each once.

    Raises:
        SettingError: there is no image, or the only path is that of neither.
    """
    first, *others = paths
    if _is_one(first, IMAGE_NAMES, IMAGE_SIGNATURES):
        return None, list(dict.fromkeys(paths))
    if not others:
        if _is_one(first, CHECKPOINT_NAMES, (CHECKPOINT_SIGNATURE,)):
            raise SettingError("IMAGE", None, f"give at least one PNG or JPEG after the checkpoint {first}")
        there = first.exists()
        raise SettingError(
            "IMAGE", first, "is neither a PNG or JPEG nor a checkpoint" if there else "there is no such file"
        )
    return first, list(dict.fromkeys(others))


def _is_one(path: Path, names: tuple[str, ...], signatures: tuple[bytes, ...]) -> bool:
    """Whether a file is of a kind: by its name, or where that says nothing, by what it begins with."""
    if path.suffix.lower() in names:
        return True
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(8).startswith(signatures)
    except OSError:  # said where it is read
        return False


def describe(result: dict[str, Any]) -> str:
    """Such as `seven.png: 7 (99.2%); 1 (0.5%), 9 (0.2%)`: the digit, then the next two."""
    likely = sorted(enumerate(result["probabilities"]), key=lambda entry: -entry[1])[:3]
    first, *others = (f"{digit} ({probability:.1%})" for digit, probability in likely)
    return f"{result['image']}: {first}; {', '.join(others)}"


def blocks(field: Grey, encoding: str) -> str:
    """The 28x28 pixels as 28 lines of twice as many characters, which a terminal shows about square."""
    shades = SHADES["utf-8" if encoding.lower().replace("-", "").startswith("utf") else "ascii"]
    levels = np.rint(field / 255 * (len(shades) - 1)).astype(int)
    return "\n".join("".join(2 * shades[level] for level in row).rstrip() for row in levels)


def save_pictures(results: list[dict[str, Any]], fields: dict[Path, Grey], directory: Path) -> None:
    """Writes DIRECTORY/NAME.png for each image: as it was read, the 28x28 pixels, and a bar for each digit.

    Raises:
        SettingError: the directory cannot be written to.
    """
    taken: set[str] = set()
    for result in results:
        path = Path(result["image"])
        name = next(name for count in range(len(results)) if (name := _numbered(path.stem, count)) not in taken)
        taken.add(name)
        try:
            picture_of(path, fields[path], result["probabilities"]).save(directory / f"{name}.png")
        except OSError as error:
            raise SettingError("--pictures", directory, f"cannot be written ({error.strerror})") from error


def _numbered(stem: str, count: int) -> str:
    return f"{stem}_{count + 1}" if count else stem


def picture_of(path: Path, field: Grey, probabilities: list[float]) -> Image.Image:
    """The image, the field ten times enlarged, and the probabilities, side by side: 860x300."""
    page = Image.new("RGB", (860, 300), "white")
    original = Image.fromarray(np.clip(read_image(path), 0, 255).astype(np.uint8))
    original.thumbnail((280, 280))
    page.paste(original, (10, 10))
    page.paste(Image.fromarray(field.round().astype(np.uint8)).resize((280, 280), Image.Resampling.NEAREST), (300, 10))
    canvas, font = ImageDraw.Draw(page), ImageFont.load_default(16)
    for digit, probability in enumerate(probabilities):
        top = 12 + 28 * digit
        canvas.text((596, top), str(digit), "black", font)
        canvas.rectangle((616, top, 616 + round(160 * probability), top + 18), "steelblue")
        canvas.text((790, top), f"{probability:.1%}", "black", font)
    return page


def predict(checkpoint: Path | None, images: list[Grey], model: str | Path | None = None) -> list[list[float]]:
    """The ten probabilities of each image.

    Args:
        checkpoint: as for `load_classifier`; the mean and standard deviation are those of its run.
        images: each (28, 28), 0..255, as `field_of` makes them.
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
        probabilities = classifier.predict_step(normalize(pixels, mean, std), 0)
    if not torch.isfinite(probabilities).all():
        raise SettingError(
            "CHECKPOINT", checkpoint, "gives probabilities that are no numbers: its values are out of range"
        )
    rows: list[list[float]] = probabilities.tolist()
    return rows


if __name__ == "__main__":
    main()
