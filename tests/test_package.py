"""The wheel: built from the sdist, installed into an environment of its own, used from another directory."""

import json
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import numpy as np
from drawn_digits import mnist_image
from PIL import Image

ROOT = Path(__file__).parents[1]


def build(kind: str, source: Path, target: Path) -> Path:
    target.mkdir()
    code = f"import sys; from setuptools.build_meta import build_{kind} as build; build(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, target], cwd=source, check=True, capture_output=True)
    (built,) = target.iterdir()
    return built


def test_a_wheel_trains_an_epoch_from_another_directory(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"  # a copy: building writes beside the sources
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in files.stdout.splitlines():
        if not name.startswith("logs/"):
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).write_bytes((ROOT / name).read_bytes())
    sdist = build("sdist", checkout, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel = build("wheel", unpacked, tmp_path / "wheel")

    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    # The dependencies come from this environment; its editable install of the checkout does not come along.
    site = next((environment / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        environment / "bin" / "python",
        "install",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*pip, wheel], check=True, capture_output=True)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    script = environment / "bin" / "mnist-train"
    done = subprocess.run([script, "trainer.max_epochs=1", "run_dir=r"], cwd=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((elsewhere / "r" / "run.json").read_text())
    assert record["final"]["val/accuracy"] > 0.91  # 0.948 ± 0.007 over seeds 0 to 4
    assert record["git"] == {"commit": None, "dirty": None}
    where = subprocess.run(
        [environment / "bin" / "python", "-c", "import mnist_mlp; print(mnist_mlp.__file__)"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(environment))
    # The weights came along: a digit is read without training.
    image = elsewhere / "digit.png"
    Image.fromarray(mnist_image(7, 0).astype(np.uint8)).save(image)
    read = subprocess.run([script.with_name("mnist-predict"), image], capture_output=True, text=True)
    assert read.stdout.startswith(f"{image}: 7 ("), read.stderr
