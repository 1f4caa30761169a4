import csv
import json
from pathlib import Path
from typing import Any

from conftest import Command

from mnist_mlp.report import find_runs, result


def test_the_row_of_a_run_holds_its_last_and_best_epoch(finished: tuple[Path, dict[str, Any]]) -> None:
    run_dir, record = finished
    ((path, read, rows),) = find_runs(run_dir)
    assert (path, read) == (run_dir, record)
    row = result(Path("name"), read, rows)
    best = rows[record["best"]["epoch"] - 1]
    assert row["run"] == "name"
    assert row["best/val/f1"] == best["val/f1"]
    assert row["final/val/loss"] == record["final"]["val/loss"]
    assert row["test/best/accuracy"] == record["test"]["best"]["accuracy"]
    assert row["weights_sha256"] == record["weights_sha256"]


def test_runs_that_are_not_complete_are_shown_as_what_they_are(command: Command, tmp_path: Path) -> None:
    for name, status in (("a", "running"), ("b", "failed")):
        (tmp_path / name).mkdir()
        record = {"status": status, "experiment": "baseline", "model": "network_a", "seed": 0}
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    done = command("mnist-report", ".")
    assert done.returncode == 0, done.stderr
    assert "running" in done.stdout
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [(row["run"], row["status"]) for row in rows] == [("a", "running"), ("b", "failed")]


def test_a_directory_without_runs_is_one_sentence(command: Command, tmp_path: Path) -> None:
    done = command("mnist-report", ".")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "DIR=.: holds no runs: give a directory with a run.json somewhere under it\n"
    assert not list(tmp_path.iterdir())
