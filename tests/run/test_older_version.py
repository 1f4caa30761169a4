"""A run directory of version 0.1.0, when the package was flat, is read, reported, evaluated, repeated and resumed.

`fixtures/run_of_0_1_0` is what this command left, the working directory's name aside:
mnist-train experiment=dropout_as_run model=tiny data.test_size=58800 trainer.max_epochs=2 tensorboard.images_every=null
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import steps
from omegaconf import OmegaConf

from mnist_mlp.evaluate import evaluate, load_classifier
from mnist_mlp.rerun import rerun
from mnist_mlp.run.records import Epochs, read_runs
from mnist_mlp.sweeps.table import results
from mnist_mlp.train import train

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run_of_0_1_0"
# Another processor's bits; after some twenty steps of so small a network they agree to this.
CLOSE = {"rel": 1e-3, "abs": 2e-3}


@pytest.fixture
def older(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "older"))


@pytest.fixture
def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FIXTURE / "run.json").read_text())
    return found


def test_it_is_read_and_reported(older: Path, record: dict[str, Any]) -> None:
    runs = read_runs(older.parent)
    assert [(run.experiment, run.model, run.seed, run.completed, run.length) for run in runs] == [
        ("dropout_as_run", "tiny", 0, True, 2)
    ]
    assert runs[0].epochs.row(-1) == record["final"]
    (row,) = results(runs)
    assert (row["status"], row["epochs"]) == ("completed", 2)
    assert row["test/last/accuracy"] == record["test"]["last"]["accuracy"]


def test_its_checkpoint_is_evaluated(older: Path, record: dict[str, Any]) -> None:
    metrics = evaluate(load_classifier(older / "checkpoints" / "best.ckpt"))
    assert metrics == pytest.approx(record["test"]["best"], abs=1e-4)


def test_it_is_repeated(older: Path, tmp_path: Path) -> None:
    rerun(older, tmp_path / "again")
    before, now = Epochs(older), Epochs(tmp_path / "again")
    assert now.columns == before.columns
    for column in before.columns[1:-1]:
        assert now[column] == pytest.approx(before[column], **CLOSE), column


def test_it_goes_on(older: Path) -> None:
    config = OmegaConf.load(older / "config.yaml")
    before = (older / "metrics.csv").read_text()
    config.run_dir = str(older)
    config.trainer.max_epochs = 3
    found = train(config)
    assert (found["status"], found["epochs"]) == ("completed", 3)
    assert (older / "metrics.csv").read_text().startswith(before)
    assert steps(older)["val/loss"] == [1, 2, 3]
