"""README: its commands and its configuration file work, its numbers are the records, its links lead somewhere."""

import csv
import json
import re
import shlex
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers import Command

from mnist_mlp.report.original import original_runs
from mnist_mlp.report.readme import BEGIN, END

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BY_HAND = README.partition(BEGIN)[0] + README.partition(END)[2]
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
LINES = [line.partition(" #")[0].strip() for block in BLOCKS for line in block.splitlines()]
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
    path = tmp_path / "logs" / "sweeps" / "settings" / "experiment" / "best_trial.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("# @package _global_\noptimizer:\n  lr: 0.002\n")


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("make")])
def test_make_has_the_targets(line: str) -> None:
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
        "git clone ADDRESS mnist-mlp && cd mnist-mlp",
        "mnist-report logs/sweeps/seeds --watch",
        "mnist-tensorboard logs/sweeps/seeds",
        "mnist-rerun RUN_DIR",
        "mnist-rerun RUN_DIR --epochs 3",
        "mnist-rerun RUN_DIR threads=2 --run-dir PATH",
        "mnist-compare RUN_DIR OTHER_RUN_DIR",
        "mnist-report logs/sweeps/seeds",
        "mnist-report logs/sweeps/seeds --output logs/kept",
        "mnist-report logs/sweeps/seeds --readme my_experiments.md",
        "mnist-predict IMAGE.png IMAGE.jpg",
        "mnist-predict RUN_DIR/checkpoints/best.ckpt IMAGE.png --show",
        "mnist-predict --model network_a weights.pth IMAGE.png --pictures logs/seen",
        "mnist-evaluate RUN_DIR/checkpoints/best.ckpt --split test",
    ]


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("mnist-backprop")])
def test_the_derivations_are_made(command: Command, line: str) -> None:
    done = command(*shlex.split(line), "draw=false")
    assert done.returncode == 0, done.stderr
    assert "agree with torch.autograd" in done.stdout


def test_the_readmes_backbone_trains(command: Command, backbone: None, tmp_path: Path, tiny: list[str]) -> None:
    done = command("mnist-train", "--config-dir", "my_conf", "model=convolutional", "run_dir=r", *tiny)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "r" / "run.json").read_text())["final"]["val/accuracy"] > 0.5


def test_the_files_named_exist(finished: tuple[Path, dict[str, Any]]) -> None:
    linked = [*re.findall(r"\]\(([^#)][^)]*)\)", README), *re.findall(r'src="([^"]*)"', README)]
    assert "logs/paper/report.md" in linked
    for name in [*linked, *re.findall(r"`((?:conf|mnist_mlp|tests|logs/paper)/[^`]*)`", README)]:
        assert (ROOT / name).exists(), name
    listed = README.partition("## What a run leaves")[2].partition("Metrics are")[0]
    for path in finished[0].iterdir():
        if path.name != ".lock":
            assert f"`{path.name}" in listed


def test_the_links_within_lead_somewhere() -> None:
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)", BY_HAND, re.MULTILINE)}
    targets = re.findall(r"\]\(#([^)]*)\)", BY_HAND)
    assert len(targets) > 5
    assert set(targets) <= headings


def test_every_room_is_in_the_table() -> None:
    table = README.partition("## Where things are")[2].partition("| --- |")[2].partition("##")[0]
    named = re.findall(r"`(\w+(?:\.py|/))`", "".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE)))
    package = ROOT / "mnist_mlp"
    rooms = [path.name for path in package.glob("*.py") if path.name != "__init__.py"]
    rooms += [f"{path.parent.name}/" for path in package.glob("*/__init__.py")]
    assert sorted(named) == sorted(rooms)


def test_the_first_table_is_that_of_the_records() -> None:
    """Original and here, by hand in README: the last epoch of the committed runs of 500 epochs."""
    heading, *rows = re.findall(r"^\| (.*) \|$", README.partition("## Quick start")[0], re.MULTILINE)
    count = int(re.findall(r"After 500 epochs, (\d+) seeds", heading)[0])
    with (ROOT / "logs" / "paper" / "results.csv").open() as file:
        all_runs = list(csv.DictReader(file))
    runs = [run for run in all_runs if run["epochs"] == "500"]
    experiment = ""
    assert len(rows) == 8  # one is the line under the heading, and two are of the networks at their best
    for label, *cells in (row.split(" | ") for row in rows[6:]):
        network, epochs, n = re.findall(r"At its best, ([AB]) \(`best`, (\d+) epochs, n = (\d+)\)", label)[0]
        model = f"network_{network.lower()}"
        best = [run for run in all_runs if (run["experiment"], run["model"], run["epochs"]) == ("best", model, epochs)]
        assert len(best) == int(n)
        accuracy = _spread([100 * float(run["final/val/accuracy"]) for run in best], 2)
        assert cells == ["", accuracy, "", _spread([float(run["final/val/loss"]) for run in best], 4)]
    for label, *cells in (row.split(" | ") for row in rows[1:6]):
        experiment = (re.findall(r"`(\w+)`", label) or [experiment])[0]
        number, network = re.findall(r"Experiment (\d).* ([AB])\b", label)[0]
        own = next(own for own in original_runs() if (str(own.experiment), own.network) == (number, network))
        original = own.record if experiment == own.as_run else own.text
        assert experiment in (own.as_run, own.as_told)
        ours = [run for run in runs if (run["experiment"], run["model"]) == (experiment, own.model)]
        assert len(ours) == count
        accuracy = _spread([100 * float(run["final/val/accuracy"]) for run in ours], 2)
        loss = _spread([float(run["final/val/loss"]) for run in ours], 4)
        assert cells == [str(original.final_accuracy), accuracy, str(original.val_loss), loss]


def _spread(values: list[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean}\u00a0±\u00a0{statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def test_it_is_read_in_ten_minutes() -> None:
    assert len(README.splitlines()) <= 300
    assert len(README.encode()) <= 16 * 1024
