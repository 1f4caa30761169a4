"""Records written by somebody who means harm: what they say is refused, and nothing is touched."""

import json
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Command
from omegaconf import OmegaConf

from mnist_mlp.datamodule import MNISTDataModule
from mnist_mlp.rerun import rerun
from mnist_mlp.run.groups import configured
from mnist_mlp.run.records import read_runs
from mnist_mlp.settings import DATA_FILES, SettingError
from mnist_mlp.sweeps.study import STUDY, close, open_study, trials_of

Finished = tuple[Path, dict[str, Any]]
ZEROS = dict.fromkeys(DATA_FILES, 64 * "0")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "thesis.txt"
    path.write_text("three years of work")
    return path


@pytest.fixture
def hostile(finished: Finished, tmp_path: Path) -> Path:
    """A copy of a run's record, for a test to change."""
    path = tmp_path / "hostile"
    path.mkdir()
    for name in ("config.yaml", "run.json", "metrics.csv"):
        shutil.copy(finished[0] / name, path)
    return path


@pytest.mark.parametrize("command_name", ["mnist-evaluate", "mnist-predict"])
@pytest.mark.parametrize("relative", [False, True])
def test_a_checkpoint_deletes_no_file(
    command: Command, finished: Finished, victim: Path, tmp_path: Path, command_name: str, relative: bool
) -> None:
    checkpoint = torch.load(finished[0] / "checkpoints" / "best.ckpt", weights_only=True)
    name = f"{20 * '../'}{str(victim).lstrip('/')}" if relative else str(victim)
    checkpoint["hyper_parameters"]["data"]["sha256"] = {name: "x"}
    torch.save(checkpoint, tmp_path / "c.ckpt")
    done = command(command_name, "c.ckpt", *(["image.png"] if command_name == "mnist-predict" else []))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    if command_name == "mnist-evaluate":
        assert "which must be the SHA-256 of each of t10k-images-idx3-ubyte" in done.stderr
    assert victim.exists()


@pytest.mark.parametrize("value", [{"/etc/passwd": "x"}, {**ZEROS, "x": "0"}, {"t10k-images-idx3-ubyte": "0"}, 0, ""])
def test_the_data_module_takes_the_four_names_only(value: Any) -> None:
    with pytest.raises(SettingError, match=r"data\.sha256=.*: must be the SHA-256 of each of .*, or null"):
        MNISTDataModule(sha256=value)
    MNISTDataModule(sha256=ZEROS)


def test_a_hash_that_is_not_the_packages_is_refused_and_the_cache_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(SettingError, match="is truncated or altered"):
        MNISTDataModule(sha256=ZEROS).setup()
    MNISTDataModule().setup()
    assert {path.name for path in (tmp_path / "mnist-mlp" / "MNIST" / "raw").iterdir()} == set(DATA_FILES)


def test_overrides_and_a_recorded_configuration_delete_no_file(
    command: Command, hostile: Path, victim: Path, tmp_path: Path
) -> None:
    given = command("mnist-train", f"data.sha256={{{victim}:x}}", "run_dir=r")
    assert given.returncode == 1
    assert given.stderr.startswith("data.sha256={")
    assert not (tmp_path / "r").exists()
    config = OmegaConf.load(hostile / "config.yaml")
    config.data.sha256 = {str(victim): "x"}
    config.data.root = None
    OmegaConf.save(config, hostile / "config.yaml")
    repeated = command("mnist-rerun", str(hostile), "--trust")
    assert repeated.returncode == 1
    assert repeated.stderr.startswith("data.sha256={")
    assert victim.exists()


RECORDED: dict[str, tuple[str, Any, str]] = {
    "a function as a callback": ("callbacks.x", {"_target_": "os.mkdir", "path": "executed"}, "builds os.mkdir"),
    "a callback that writes": (
        "callbacks.x",
        {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "executed"},
        "builds lightning.pytorch.callbacks.ModelCheckpoint",
    ),
    "a function as a backbone": ("model", {"_target_": "os.mkdir", "path": "executed"}, "builds os.mkdir"),
    "one inside of a backbone": (
        "model",
        {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "os.mkdir", "path": "executed"}]},
        "builds os.mkdir",
    ),
    "a module's module": (
        "model",
        {"_target_": "torch.nn.modules.module.warnings.os.mkdir", "path": "executed"},
        "builds torch.nn.modules",
    ),
    "a module in the current directory": ("model", {"_target_": "evil.Net"}, "builds evil.Net"),
    "an optimizer": ("optimizer._target_", "os.mkdir", "builds os.mkdir"),
    "a data module": ("data", {"_target_": "os.mkdir", "path": "executed"}, "builds os.mkdir"),
    "a setting of the Trainer's": ("trainer.default_root_dir", "executed", "has trainer.default_root_dir=executed"),
    "a place to download to": ("data.download", True, "has images downloaded"),
    "a place to download from": ("data.mirror", "file:///etc", "has images downloaded"),
    "the environment": ("average", "${oc.env:HOME}", "has average="),
}


@pytest.mark.parametrize("what", RECORDED)
def test_a_recorded_configuration_does_nothing_but_train(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil.py").write_text("import os\nos.mkdir('executed')\n")
    setting, value, problem = RECORDED[what]
    config = OmegaConf.load(hostile / "config.yaml")
    OmegaConf.update(config, setting, value, merge=False, force_add=True)
    OmegaConf.save(config, hostile / "config.yaml")
    with pytest.raises(SettingError, match=rf"RUN_DIR=.*: its config.yaml {re.escape(problem)}.*add --trust"):
        rerun(hostile, tmp_path / "again")
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "again").exists()


def test_what_the_user_trusts_is_built(command: Command, hostile: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n"
        "    def __init__(self):\n        super().__init__(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    config = OmegaConf.load(hostile / "config.yaml")
    config.model, config.trainer.steps = {"_target_": "own.Net"}, "auto"
    OmegaConf.save(config, hostile / "config.yaml")
    assert command("mnist-rerun", str(hostile), "--epochs", "1").returncode == 1
    done = command("mnist-rerun", str(hostile), "--epochs", "1", "--trust")
    assert done.stdout.startswith("different: in epoch 1"), done.stderr


def test_a_study_does_not_lead_out_of_its_sweep(tmp_path: Path) -> None:
    study, storage = open_study(tmp_path / STUDY, "maximize")
    study.ask()
    close(storage)
    for name in ("../../home", "/etc", "trial=0/../..", "trial=0\n"):
        with sqlite3.connect(tmp_path / STUDY) as database:
            database.execute("delete from trial_user_attributes")
            database.execute(
                "insert into trial_user_attributes (trial_id, key, value_json) values (1, 'directory', ?)",
                (json.dumps(name),),
            )
        study, storage = open_study(tmp_path / STUDY)
        with pytest.raises(SettingError, match=r"sweep=study\.db: is damaged"):
            trials_of(study)
        close(storage)


@pytest.mark.parametrize("name", ["baseline model=tiny", "../../../tmp/evil", "${oc.env:HOME}", "a,b", ""])
def test_a_recorded_name_is_not_an_override(name: str) -> None:
    assert configured(name, "network_a") is None
    assert configured("baseline", name) is None
    assert configured("baseline", "network_a") is not None


def test_a_run_that_is_called_another_network_is_named_for_what_was_built(hostile: Path) -> None:
    record = json.loads((hostile / "run.json").read_text())
    (hostile / "run.json").write_text(json.dumps(record | {"model": "network_b"}))
    (run,) = read_runs(hostile.parent)
    assert run.model == "MLP 64-128-64"
    (hostile / "run.json").write_text(json.dumps(record))
    (run,) = read_runs(hostile.parent)
    assert run.model == "network_a"
