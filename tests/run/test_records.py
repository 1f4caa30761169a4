import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_mlp.run.directory import metrics_csv
from mnist_mlp.run.metrics import COLUMNS
from mnist_mlp.run.records import read_runs
from mnist_mlp.settings import SettingError


def test_a_run_is_what_its_files_say(finished: tuple[Path, dict[str, Any]]) -> None:
    run_dir, record = finished
    (run,) = read_runs(run_dir.parent)
    assert (run.path, run.name, run.record) == (run_dir, "run", record)
    assert (run.experiment, run.model, run.seed, run.completed) == ("dropout_as_run", "network_a", 0, True)
    assert run.settings["optimizer.lr"] == 0.001  # a number, not a text
    assert run.settings["model.hidden"] == [64, 128, 64]
    assert run.settings["data.root"] is not None
    assert tuple(run.epochs) == COLUMNS
    assert run.epochs["epoch"].tolist() == [1, 2, 3]
    assert all(values.dtype == np.float64 for values in run.epochs.values())
    for column, values in run.epochs.items():
        assert values[-1] == record["final"][column]  # to the last bit


def test_runs_come_in_the_order_of_their_numbers_and_none_is_inside_another(tmp_path: Path) -> None:
    for name in ("seed=10", "seed=9", "seed=9/checkpoints/x"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text('{"status": "running"}')
    (tmp_path / "multirun.yaml").touch()  # makes no run of what holds it
    first, second = read_runs(tmp_path)
    assert (first.name, second.name) == ("seed=9", "seed=10")
    assert (first.settings, first.epochs, first.lines(), first.completed) == ({}, {}, [], False)


def test_a_run_before_its_first_epoch_has_no_epochs(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "metrics.csv").write_text(metrics_csv([]))
    assert read_runs(tmp_path)[0].epochs == {}


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("run.json", "{", "has a damaged run.json"),
        ("config.yaml", "a: [", "config.yaml: cannot be read"),
        ("config.yaml", "a", "config.yaml: holds no settings"),
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
        _ = read_runs(tmp_path)[0].epochs
    assert "\n" not in str(caught.value)


def test_a_directory_without_runs_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="holds no runs"):
        read_runs(tmp_path)
