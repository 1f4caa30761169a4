import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_mlp.run.directory import metrics_csv
from mnist_mlp.run.metrics import COLUMNS
from mnist_mlp.run.records import last_row, read_runs
from mnist_mlp.settings import SettingError


def test_a_run_is_what_its_files_say(finished: tuple[Path, dict[str, Any]]) -> None:
    run_dir, record = finished
    (run,) = read_runs(run_dir.parent)
    assert (run.path, run.name, run.record) == (run_dir, "run", record)
    assert (run.experiment, run.model, run.seed, run.completed) == ("dropout_as_run", "network_a", 0, True)
    assert run.settings["optimizer.lr"] == 0.001  # a number, not a text
    assert run.settings["model.hidden"] == [64, 128, 64]
    assert run.settings["data.root"] is not None
    assert run.epochs.columns == COLUMNS
    assert run.length == run.planned == 3
    assert run.epochs["epoch"].tolist() == [1, 2, 3]
    assert all(values.dtype == np.float64 for values in run.epochs.table.values())
    for column, values in run.epochs.table.items():
        assert values[-1] == record["final"][column]  # to the last bit


def test_runs_come_in_the_order_of_their_numbers_and_none_is_inside_another(tmp_path: Path) -> None:
    for name in ("seed=10", "seed=9", "seed=9/checkpoints/x"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text('{"status": "running"}')
    (tmp_path / "multirun.yaml").touch()  # makes no run of what holds it
    first, second = read_runs(tmp_path)
    assert (first.name, second.name) == ("seed=9", "seed=10")
    assert (first.settings, first.epochs.table, first.epochs.columns, first.completed) == ({}, {}, (), False)
    assert len(first.epochs) == first.length == first.planned == 0


def test_a_run_before_its_first_epoch_has_no_epochs(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "metrics.csv").write_text(metrics_csv([]))
    assert read_runs(tmp_path)[0].epochs.table == {}


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("run.json", "{", "has a damaged run.json"),
        ("run.json", '{"seed": 1, "seed": 2}', r"has a damaged run.json \(it has 'seed' twice\)"),
        ("config.yaml", "a:\n  b: 1\n  b: 2\n", r"config.yaml: cannot be read \(it has 'b' twice\)"),
        ("config.yaml", "a: [", "config.yaml: cannot be read"),
        ("config.yaml", "a", "config.yaml: holds no settings"),
        ("config.yaml", "a: ${b}", r"config.yaml: holds what cannot be used \(Interpolation key 'b' not found\)"),
        ("config.yaml", b"\xff\xfe\x00", "config.yaml: cannot be read"),
        ("metrics.csv", "epoch,lr\n1,0.5\n2", "metrics.csv: is damaged"),
        ("metrics.csv", "epoch,lr\n1,0.5,3\n", "metrics.csv: is damaged"),
        ("metrics.csv", "epoch,lr\n1,x\n", "metrics.csv: is damaged"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, file: str, content: str | bytes, problem: str) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"status": "completed"}))
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingError, match=problem) as caught:
        _ = read_runs(tmp_path)[0].epochs.table
    assert "\n" not in str(caught.value)


def test_a_directory_without_runs_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="holds no runs"):
        read_runs(tmp_path)


def test_columns_may_be_in_another_order_and_more_or_fewer(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"status": "running"}')
    (tmp_path / "metrics.csv").write_text("val/new,lr,epoch\n0.5,0.1,1\n0.25,0.2,2\n")
    (run,) = read_runs(tmp_path)
    assert run.epochs["lr"].tolist() == [0.1, 0.2]
    assert run.epochs.row(-1) == {"val/new": 0.25, "lr": 0.2, "epoch": 2}
    assert run.epochs.texts(1) == {"val/new": "0.5", "lr": "0.1", "epoch": "1"}
    assert last_row(tmp_path) == run.epochs.row(2)
    assert run.has(["lr", "val/new"])
    assert not run.has(["lr", "val/f1"])
    with pytest.raises(SettingError, match="it has no column val/f1"):
        _ = run.epochs["val/f1"]
