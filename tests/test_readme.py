"""The README's commands and its configuration file are what they say."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers import Command

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
LINES = [
    line.partition(" #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
BACKBONE = re.search(r"```yaml\n# (my_conf/\S+)\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def backbone(tmp_path: Path) -> None:
    assert BACKBONE is not None
    path = tmp_path / BACKBONE[1]
    path.parent.mkdir(parents=True)
    path.write_text(BACKBONE[2])


@pytest.fixture
def searched(tmp_path: Path) -> None:
    """What a search would have left; that it does, and that it is repeated exactly, is tested in test_search.py."""
    path = tmp_path / "logs" / "sweeps" / "settings" / "experiment" / "best.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("# @package _global_\noptimizer:\n  lr: 0.002\n")


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("make")])
def test_make_has_the_target(line: str) -> None:
    subprocess.run([*shlex.split(line), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("mnist-train")])
def test_the_configuration_composes(command: Command, backbone: None, searched: None, line: str) -> None:
    name, *arguments = [word for word in shlex.split(line) if word != "-m"]
    # A sweep is checked by the first value of each list; what it does with all of them is tested in test_train.py.
    arguments = [re.sub(r"=(?!\[)(range\(\d)?([^,]*),.*", r"=\g<2>", word) for word in arguments]
    arguments = [re.sub(r"=$", "=0", word) for word in arguments]
    done = command(name, *arguments, *([] if {"--help", "--cfg"} & set(arguments) else ["--cfg", "job"]))
    assert done.returncode == 0, done.stderr


def test_every_other_command_is_run_somewhere() -> None:
    rest = [line for line in LINES if not line.startswith(("make", "mnist-train", "mnist-backprop", ". .venv/bin"))]
    assert rest == [
        "mnist-report logs/sweeps/seeds --table",
        "mnist-report logs/sweeps/seeds --watch",
        "mnist-report logs/sweeps/cluster --table",
        "mnist-report logs/sweeps/seeds",
        "mnist-report logs/sweeps/seeds --output logs/kept",
        "mnist-report logs/sweeps/seeds --readme my_experiments.md",
        "mnist-tensorboard logs/sweeps/seeds",
        "mnist-evaluate RUN_DIR/checkpoints/best.ckpt --split test",
        "mnist-rerun RUN_DIR",
        "mnist-rerun RUN_DIR --epochs 3",
        "mnist-rerun RUN_DIR threads=2 --run-dir PATH",
        "mnist-compare RUN_DIR OTHER_RUN_DIR",
        "mnist-predict IMAGE.png IMAGE.jpg",
        "mnist-predict RUN_DIR/checkpoints/best.ckpt IMAGE.png --show",
        "mnist-predict --model network_a weights.pth IMAGE.png --pictures logs/seen",
    ]


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("mnist-backprop")])
def test_the_derivations_are_as_shown(command: Command, line: str) -> None:
    name, *arguments = shlex.split(line)
    done = command(name, *arguments, "draw=false")
    assert done.returncode == 0, done.stderr
    if not arguments:
        shown = README.partition("among all the other steps:\n\n```text\n")[2].partition("```")[0]
        assert all(part in done.stdout for part in shown.splitlines())


def test_the_readmes_backbone_trains(command: Command, backbone: None, tmp_path: Path, tiny: list[str]) -> None:
    done = command("mnist-train", "--config-dir", "my_conf", "model=convolutional", "run_dir=r", *tiny)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "r" / "run.json").read_text())["final"]["val/accuracy"] > 0.5


def test_the_files_named_exist(finished: tuple[Path, dict[str, Any]]) -> None:
    for name in re.findall(r"`((?:conf|mnist_mlp)/[^`]*)`", README):
        assert (ROOT / name).exists(), name
    listed = README.partition("## What a run leaves")[2].partition("Metrics are")[0]
    for path in finished[0].iterdir():
        if path.name != ".lock":
            assert f"`{path.name}" in listed
