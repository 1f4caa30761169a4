import csv
import json
import re
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from helpers import ON_TERMINAL, Command, write_run
from rich.console import Console

from mnist_mlp.run.metrics import COLUMNS
from mnist_mlp.run.records import read_runs
from mnist_mlp.sweeps.table import result, results, view

TEST = dict.fromkeys(("accuracy", "precision", "recall", "f1", "loss"), 0.5)


def make_run(
    path: Path, accuracy: float = 0.5, seed: int = 0, model: str = "network_a", lr: float = 0.1, **entries: Any
) -> None:
    """A run directory with two epochs, the first of them the best."""
    rows = [dict.fromkeys(COLUMNS, 0.5) | {"epoch": epoch, "val/accuracy": accuracy} for epoch in (1, 2)]
    config = {"experiment": "baseline", "network": model, "seed": seed, "optimizer": {"lr": lr}, "run_dir": str(path)}
    config |= {"data": {}, "model": {}, "trainer": {"max_epochs": 2}}
    record = {"experiment": "baseline", "model": model, "seed": seed, "best": {"epoch": 1}, "wall_seconds": 1.0}
    record |= {"weights_sha256": f"{model}{seed}", "test": {"last": TEST, "best": TEST}}
    write_run(path, rows, config, record | entries)


def test_the_row_of_a_run_holds_its_last_and_best_epoch(finished: tuple[Path, dict[str, Any]]) -> None:
    run_dir, record = finished
    (found,) = read_runs(run_dir.parent)
    row = result(found, {"optimizer.lr": "0.1"})
    rows = list(csv.DictReader((run_dir / "metrics.csv").read_text().splitlines()))
    best = rows[record["best"]["epoch"] - 1]
    assert row["run"] == run_dir.name
    assert row["optimizer.lr"] == "0.1"
    assert row["best/val/f1"] == best["val/f1"]
    assert row["final/val/loss"] == record["final"]["val/loss"]
    assert row["test/best/accuracy"] == record["test"]["best"]["accuracy"]
    assert row["weights_sha256"] == record["weights_sha256"]


def test_runs_are_grouped_over_their_seeds(command: Command, tmp_path: Path) -> None:
    # Of 90, 92 and 97: mean 93, squares of the differences 9 + 1 + 16 = 26, over n - 1 = 2 is 13, its root 3.61.
    for seed, accuracy in enumerate((0.90, 0.92, 0.97)):
        make_run(tmp_path / f"lr=0.1,seed={seed}", accuracy, seed)
    for seed, accuracy in ((2, 0.90), (10, 0.94)):
        make_run(tmp_path / f"lr=1,seed={seed}", accuracy, seed, lr=1)
    make_run(tmp_path / "again" / "seed=0", 0.90)  # the same run in a second directory is no second seed
    make_run(tmp_path / "b", 0.925, model="network_b", lr=0.3)
    done = command("mnist-report", ".", "--table")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    first, third, second = re.split(r"^baseline", done.stdout, flags=re.MULTILINE)[1:]
    assert first.split()[:3] == ["last", "2", "93.00*"]
    assert first.splitlines()[1].split()[:2] == ["network_a", "±3.61"]
    assert {"lr=0.1", "best"} <= set(first.splitlines()[2].split())
    assert first.splitlines()[3].split()[:3] == ["n", "=", "3"]
    assert second.split()[:3] == ["last", "2", "92.00"]
    assert "±2.83" in second  # of 90 and 94: the root of 2 * 2² / 1
    assert third.split()[:3] == ["last", "2", "92.50"]
    assert "network_b, seed 0" in third
    assert "±" not in third
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [row["run"] for row in rows][-3:] == ["lr=0.1,seed=2", "lr=1,seed=2", "lr=1,seed=10"]  # by number
    assert [row["optimizer.lr"] for row in rows] == ["0.1", "0.3", "0.1", "0.1", "0.1", "1", "1"]
    assert list(rows[0])[:6] == ["run", "status", "experiment", "model", "seed", "optimizer.lr"]


def test_what_does_not_vary_is_no_column(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", model="network_b", lr=1)  # follows from the model
    assert "optimizer.lr" not in results(read_runs(tmp_path))[0]


def test_a_table_with_both_readings_of_experiment_2_says_which_is_which(tmp_path: Path) -> None:
    for number, experiment in enumerate(("baseline", "dropout_scheduler", "dropout_as_run")):
        make_run(tmp_path / experiment, experiment=experiment)
        shown = Console(width=200, file=StringIO())
        shown.print(view(read_runs(tmp_path)))
        text = shown.file.getvalue()  # type: ignore[attr-defined]
        assert ("dropout_as_run repeats the original report's Experiment 2 as its code ran" in text) == (number == 2)


def test_runs_that_are_not_complete_are_shown_as_what_they_are(command: Command, tmp_path: Path) -> None:
    for name, status in (("a", "running"), ("b", "failed")):
        (tmp_path / name).mkdir()
        record = {"status": status, "experiment": "baseline", "model": "network_a", "seed": 0}
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    make_run(tmp_path / "c", seed=1)
    make_run(tmp_path / "d", seed=2, status="failed", error="RuntimeError: first\nsecond")
    done = command("mnist-report", ".", "--table")
    assert done.returncode == 0, done.stderr
    assert "4 runs: 2 failed, 1 running, 1 completed" in done.stdout
    assert "network_a, seed 1" in done.stdout  # the only one that is averaged
    assert "max_epochs" not in done.stdout  # those that never began are of no length
    assert "  d: RuntimeError: first second\n" in done.stdout
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [(row["run"], row["status"], row["epochs"]) for row in rows] == [
        ("a", "running", "0"),
        ("b", "failed", "0"),
        ("c", "completed", "2"),
        ("d", "failed", "2"),
    ]


def test_watch_shows_what_is_new_until_it_is_interrupted(tmp_path: Path) -> None:
    make_run(tmp_path / "a", accuracy=0.25)
    output = tmp_path / "output"
    with output.open("w") as file:
        script = Path(sys.executable).with_name("mnist-report")
        process = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, script, tmp_path, "--watch"],
            stdout=file,
            env={"FORCE_COLOR": "1", "COLUMNS": "80"},
        )
        try:
            for accuracy in ("25.00", "87.50"):
                deadline = time.monotonic() + 30
                while accuracy not in output.read_text():
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                if accuracy == "25.00":
                    make_run(tmp_path / "b", accuracy=0.875, model="network_b")
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 130
        finally:
            process.kill()
            process.wait()
    assert not (tmp_path / "results.csv").exists()


@pytest.mark.parametrize("arguments", [[], ["--watch"]])
def test_a_directory_without_runs_is_one_sentence(command: Command, tmp_path: Path, arguments: list[str]) -> None:
    done = command("mnist-report", ".", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "DIR=.: holds no runs: give a directory with a run.json somewhere under it\n"
    assert not list(tmp_path.iterdir())
