from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from mnist_mlp.run.directory import metrics_csv
from mnist_mlp.run.metrics import COLUMNS
from mnist_mlp.run.records import last_row
from mnist_mlp.sweeps.jobs import Job
from mnist_mlp.sweeps.view import SweepView


def job(path: Path, number: int, state: str, epochs: int = 0) -> Job:
    name = f"experiment=dropout_scheduler,model.hidden=[64,128,64],seed={number}"
    run = path / name
    run.mkdir()
    rows = [dict.fromkeys(COLUMNS, 0.5) | {"epoch": n + 1, "seconds": 2.0, "val/accuracy": 0.9} for n in range(epochs)]
    (run / "metrics.csv").write_text(metrics_csv(rows))
    return Job(name, run, [], 500, 1, 1.0, state=state)


def shown(view: SweepView, height: int) -> list[str]:
    view.console = Console(file=StringIO(), width=80, height=height)
    with view.console.capture() as captured:
        view.console.print(view._table())
    return captured.get().splitlines()


def test_the_last_row_is_read_from_the_end(tmp_path: Path) -> None:
    run = job(tmp_path, 0, "running", epochs=200).path
    row = last_row(run)
    assert row is not None
    assert (row["epoch"], row["val/accuracy"]) == (200, 0.9)
    assert last_row(job(tmp_path, 1, "running").path) is None
    assert last_row(tmp_path) is None


def test_the_table_fits_the_terminal(tmp_path: Path) -> None:
    jobs = [job(tmp_path, number, "running", epochs=10) for number in range(30)]
    jobs += [job(tmp_path, 30, "failed"), *(job(tmp_path, number, "waiting") for number in range(31, 40))]
    lines = shown(SweepView(jobs, tmp_path), 24)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert lines[0].split()[:3] == ["experiment,", "model.hidden,", "seed"]
    assert lines[1].split() == [
        "dropout_scheduler,",
        "[64,128,64],",
        "0",
        "running",
        "10/500",
        "0.5000",
        "90.00%",
        "0:16:20",
    ]
    assert "1 failed, 30 running, 9 waiting" in lines[-1]


def test_elsewhere_than_on_a_terminal_there_are_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with SweepView([job(tmp_path, 0, "running")], tmp_path) as view:
        view.refresh()
        view.say("failed x: [cause]")
    assert capsys.readouterr().err == "failed x: [cause]\n"
    assert (tmp_path / "sweep.log").read_text().endswith(" failed x: [cause]\n")
