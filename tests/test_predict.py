import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import PACKAGE_FILES, Command, Payload, Runner
from PIL import Image

from mnist_mlp.digits import field_of, read_image
from mnist_mlp.evaluate import load_classifier
from mnist_mlp.predict import blocks, divide, predict
from mnist_mlp.settings import SettingError

Finished = tuple[Path, dict[str, Any]]
COUNT = 20
# The last images of the validation set, with which nothing was trained.
DIGITS = np.frombuffer(gzip.decompress((PACKAGE_FILES / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
DIGITS = DIGITS.reshape(-1, 28, 28)[-COUNT:]


def pasted(digit: Image.Image) -> Image.Image:
    """Nine times as large and far from the centre: light on dark, 500x400."""
    page = Image.new("L", (500, 400))
    page.paste(digit.resize((252, 252), Image.Resampling.BICUBIC), (230, 11))
    return page


def drawn(digit: Image.Image, ink: tuple[int, ...], paper: tuple[int, ...]) -> Image.Image:
    mask = pasted(digit)
    return Image.composite(Image.new("RGB", mask.size, ink), Image.new("RGB", mask.size, paper), mask)


def on_nothing(digit: Image.Image, ink: int) -> Image.Image:
    mask = pasted(digit)
    page = Image.new("LA", mask.size, (ink, 0))
    page.putalpha(mask)
    return page


def photographed(digit: Image.Image) -> Image.Image:
    page = np.asarray(drawn(digit, (40, 50, 90), (205, 200, 190)), dtype=float)
    light = np.linspace(-20, 20, page.shape[1])[:, None]
    noise = np.random.default_rng(0).normal(0, 5, page.shape)
    return Image.fromarray((page + light + noise).clip(0, 255).astype(np.uint8))


def turned(digit: Image.Image) -> Image.Image:
    page = pasted(digit).rotate(90, expand=True)
    page.getexif()[0x0112] = 6  # Exif's Orientation: to be turned clockwise by 90 degrees
    return page


FORMS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda digit: digit,
    "dark on light": lambda digit: digit.point(lambda value: 255 - value),
    "black and white": lambda digit: pasted(digit).point(lambda value: 255 * (value > 127)).convert("1"),
    "enlarged, off centre": pasted,
    "cut to its ink": lambda digit: pasted(digit).crop(pasted(digit).getbbox()),
    "blue on yellow": lambda digit: drawn(digit, (30, 60, 200), (250, 240, 110)),
    "red on a green as light": lambda digit: drawn(digit, (200, 0, 0), (0, 102, 0)),
    "palette": lambda digit: drawn(digit, (30, 60, 200), (250, 240, 110)).quantize(8),
    "black on transparent": lambda digit: on_nothing(digit, 0),
    "white on transparent": lambda digit: on_nothing(digit, 255),
    "16 bits": lambda digit: Image.fromarray(np.asarray(pasted(digit)).astype(np.uint16) * 257),
    "a photograph": photographed,
    "turned by the camera": turned,
}


NO_JPEG = {
    (form, "jpg") for form in ("black and white", "palette", "black on transparent", "white on transparent", "16 bits")
}


@pytest.mark.parametrize(
    ("form", "suffix"), [(form, suffix) for form in FORMS for suffix in ("png", "jpg") if (form, suffix) not in NO_JPEG]
)
def test_a_digit_is_the_same_in_every_form(tmp_path: Path, form: str, suffix: str) -> None:
    images = []
    for number, digit in enumerate(DIGITS):
        image = FORMS[form](Image.fromarray(digit))
        if suffix == "jpg":
            image.save(tmp_path / f"{number}.jpg", quality=90, exif=image.getexif())
        else:
            image.save(tmp_path / f"{number}.png", exif=image.getexif())
        images.append(field_of(read_image(tmp_path / f"{number}.{suffix}")))
    assert np.abs(np.stack(images) - DIGITS).mean() < 15  # of 255; another digit is 40 away
    direct, found = (np.argmax(predict(None, list(some)), axis=1) for some in (DIGITS.astype(np.float32), images))
    assert (direct != found).sum() <= 1


def test_the_mean_and_std_are_those_of_the_run(run: Runner) -> None:
    for overrides, mean in ((["data.mean=0.3", "data.std=0.4"], 0.3), (["data.mean=null", "data.std=null"], None)):
        run_dir, _ = run("trainer.max_epochs=1", *overrides)
        checkpoint = run_dir / "checkpoints" / "best.ckpt"
        data = torch.load(checkpoint, weights_only=True)["MNISTDataModule"]
        assert mean is None or data == {"mean": 0.3, "std": 0.4}
        pixels = torch.from_numpy(DIGITS.copy()).unsqueeze(1) / 255
        with torch.no_grad():
            expected = load_classifier(checkpoint)((pixels - data["mean"]) / data["std"]).softmax(dim=1)
        torch.testing.assert_close(torch.tensor(predict(checkpoint, list(DIGITS.astype(np.float32)))), expected)


def test_a_checkpoint_without_its_mean_is_one_sentence(finished: Finished, tmp_path: Path) -> None:
    content = torch.load(finished[0] / "checkpoints" / "best.ckpt", weights_only=True)
    content["hyper_parameters"]["data"]["mean"] = None
    content["MNISTDataModule"] = {"mean": "0", "std": 1.0}
    torch.save(content, tmp_path / "c.ckpt")
    with pytest.raises(SettingError, match="does not say which mean and std"):
        predict(tmp_path / "c.ckpt", [DIGITS[0].astype(np.float32)])


def test_nothing_in_a_checkpoint_is_executed(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = torch.load(finished[0] / "checkpoints" / "best.ckpt", weights_only=True)
    settings = content["hyper_parameters"]
    strangers = {
        "is damaged, or holds more than tensors and plain values: give a checkpoint of mnist-train": Payload(),
        "is of os.system: give that backbone's file with --model": {
            **content,
            "hyper_parameters": {**settings, "model": {"_target_": "os.system", "command": "touch executed"}},
        },
        "holds the weights of another backbone": {
            **content,
            "hyper_parameters": {**settings, "model": {**settings["model"], "hidden": [5]}},
        },
    }
    for problem, stranger in strangers.items():
        torch.save(stranger, tmp_path / "c.ckpt")
        with pytest.raises(SettingError, match=f"CHECKPOINT=c.ckpt: {problem}"):
            predict(Path("c.ckpt"), [DIGITS[0].astype(np.float32)])
    assert not (tmp_path / "executed").exists()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def test_hostile_images_are_one_sentence_each_and_do_not_stop_the_others(
    command: Command, finished: Finished, tmp_path: Path
) -> None:
    good = tmp_path / "good.png"
    Image.fromarray(DIGITS[0]).save(good)
    damaged = "cannot be read as PNG or JPEG: it is damaged or something else"
    too_large = "has more than 50,000,000 pixels: make it smaller"
    blank = "has no digit on it: nothing stands out from its background"
    zeros = zlib.compress(bytes(10**8))  # 100 MB in 97 kB
    hostile = {
        "empty.png": (b"", damaged),
        "text.png": (b"seven", damaged),
        "cut.png": (good.read_bytes()[:-40], damaged),
        "noise.jpg": (b"\xff\xd8\xff" + bytes(range(256)) * 9, damaged),
        "bomb.png": (png(60_000, 60_000, chunk(b"IDAT", zeros)), too_large),
        "large.png": (png(10_000, 9_000, chunk(b"IDAT", zeros)), too_large),  # Pillow only warns of this one
        "text_bomb.png": (
            png(28, 28, chunk(b"zTXt", b"k\0\0" + zeros), chunk(b"IDAT", zlib.compress(bytes(812)))),
            None,
        ),
        "blank.png": (png(28, 28, chunk(b"IDAT", zlib.compress(bytes(29 * 28)))), blank),
        "drawing.svg": (b"<svg/>", damaged),
        "gif.png": (b"GIF89a\x01\0\x01\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;", damaged),
    }
    for name, (content, _) in hostile.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    expected = {name: problem for name, (_, problem) in hostile.items()}
    expected |= {"directory": "is not a file", "pipe": "is not a file", "missing.png": "there is no such file"}
    checkpoint = str(finished[0] / "checkpoints" / "best.ckpt")
    done = command("mnist-predict", checkpoint, *expected, "good.png", "--json")
    assert done.returncode == 1
    (result,) = json.loads(done.stdout)
    assert result["image"] == "good.png"
    assert result["digit"] == np.argmax(result["probabilities"])
    assert sum(result["probabilities"]) == pytest.approx(1, abs=1e-6)
    said = dict(line.removeprefix("IMAGE=").split(": ", 1) for line in done.stderr.splitlines())
    assert said.keys() == expected.keys()
    for name, problem in expected.items():
        assert said[name] == problem or (problem is None and said[name] in (damaged, blank))


def test_the_command_prints_digit_and_probabilities(command: Command, finished: Finished, tmp_path: Path) -> None:
    Image.fromarray(DIGITS[0]).save(tmp_path / "a.png")
    checkpoint = str(finished[0] / "checkpoints" / "best.ckpt")
    done = command("mnist-predict", checkpoint, "a.png")
    (probabilities,) = predict(Path(checkpoint), [field_of(read_image(tmp_path / "a.png"))])
    ((first, second, third), *_) = (np.argsort(probabilities)[::-1][:3],)
    shown = [f"{digit} ({probabilities[digit]:.1%})" for digit in (first, second, third)]
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"a.png: {shown[0]}; {shown[1]}, {shown[2]}\n"
    refused = command("mnist-predict", "nowhere.ckpt", "a.png")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "CHECKPOINT=nowhere.ckpt: cannot be read (No such file or directory)\n"


def test_without_a_checkpoint_the_packages_weights_read_and_what_they_saw_is_shown(
    script: Command, tmp_path: Path
) -> None:
    (tmp_path / "b").mkdir()
    for name, digit in (("a.png", DIGITS[0]), ("b/a.png", DIGITS[1]), ("blank.png", np.full((40, 40), 200, np.uint8))):
        Image.fromarray(digit).save(tmp_path / name)
    done = script("mnist-predict", "a.png", "--show", "b/a.png", "blank.png", "--pictures", "p", PYTHONUTF8="1")
    assert done.returncode == 1
    assert done.stderr == "IMAGE=blank.png: has no digit on it: nothing stands out from its background\n"
    expected = np.argmax(predict(None, list(DIGITS[:2].astype(np.float32))), axis=1)
    lines = done.stdout.split("\n")
    assert [lines[0][:8], lines[29][:10]] == [f"a.png: {expected[0]}", f"b/a.png: {expected[1]}"]
    assert lines[1:29] == blocks(DIGITS[0].astype(np.float32), "utf-8").split("\n")
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["a.png", "a_2.png"]
    picture = np.asarray(Image.open(tmp_path / "p" / "a.png").convert("L"))
    assert np.array_equal(picture[15:290:10, 305:580:10], DIGITS[0])


def test_a_field_is_shown_with_what_the_terminal_has() -> None:
    field = np.zeros((28, 28), dtype=np.float32)
    field[1, :3] = 255, 128, 60
    assert blocks(field, "UTF-8").splitlines()[:3] == ["", "██▒▒░░", ""]
    assert blocks(field, "ANSI_X3.4-1968").splitlines()[1] == "##::.."


def test_one_path_that_is_no_image_is_one_sentence(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("a text")
    checkpoint = shutil.copy(finished[0] / "checkpoints" / "best.ckpt", tmp_path / "unnamed")
    for path, expected in (
        (Path("best.ckpt"), "IMAGE=null: give at least one PNG or JPEG after the checkpoint best.ckpt"),
        (checkpoint, f"IMAGE=null: give at least one PNG or JPEG after the checkpoint {checkpoint}"),
        (tmp_path / "README.md", f"IMAGE={tmp_path}/README.md: is neither a PNG or JPEG nor a checkpoint"),
        (tmp_path, f"IMAGE={tmp_path}: is neither a PNG or JPEG nor a checkpoint"),
        (Path("nowhere"), "IMAGE=nowhere: there is no such file"),
    ):
        with pytest.raises(SettingError) as refused:
            divide([path])
        assert str(refused.value) == expected


def test_help_does_not_import_torch() -> None:
    code = "import sys, mnist_mlp.predict; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
