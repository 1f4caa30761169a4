import multiprocessing
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mnist_mlp.run.directory import RunDirectory, durable_write, metrics_csv
from mnist_mlp.run.identity import fingerprint, other_settings
from mnist_mlp.run.records import read_record
from mnist_mlp.settings import SettingError


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable_write(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with an OSError, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            durable_write(path, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_replaced_not_rewritten(tmp_path: Path) -> None:
    path, reader = tmp_path / "file", tmp_path / "reader"
    durable_write(path, b"old")
    reader.hardlink_to(path)
    durable_write(path, b"new")
    assert (path.read_bytes(), reader.read_bytes()) == (b"new", b"old")


def _claim(path: Path) -> str:
    try:
        with RunDirectory(path):
            return "claimed"
    except SettingError as error:
        return str(error)


def test_a_second_process_is_refused_until_the_first_has_gone(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        with RunDirectory(tmp_path):
            assert "is in use by another process" in pool.apply(_claim, (tmp_path,))
        assert pool.apply(_claim, (tmp_path,)) == "claimed"


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    for name in (
        ".run.json.12.tmp",
        "checkpoints/.last.ckpt.12.tmp",
        "tensorboard/.events.out.tfevents.1.epochs.12.tmp",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with RunDirectory(tmp_path):
        assert not list(tmp_path.rglob("*.tmp"))


def test_the_record_is_merged(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        assert run.read_record() == {}
        run.update_record(status="running", epochs=0)
        run.update_record(status="completed")
    assert read_record(tmp_path) == {"status": "completed", "epochs": 0}


def test_numbers_read_back_as_the_same_bits() -> None:
    row: dict[str, Any] = {"epoch": 1, "train/loss": 0.1 + 0.2}
    header, line = metrics_csv([row]).splitlines()
    read = dict(zip(header.split(","), line.split(","), strict=True))
    assert float(read["train/loss"]) == 0.1 + 0.2
    assert read["epoch"] == "1"


def test_a_damaged_record_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"status": ')
    with pytest.raises(SettingError, match=r"run_dir=.*: has a damaged run\.json"):
        read_record(tmp_path)


def test_a_setting_that_came_after_a_run_is_as_null() -> None:
    older = OmegaConf.create({"seed": 0, "data": {"batch_size": 64}})
    newer = OmegaConf.create({"seed": 0, "data": {"batch_size": 64, "validation_size": None}, "search": {}})
    other = OmegaConf.create({"seed": 0, "data": {"batch_size": 64, "validation_size": 100}})
    assert other_settings(older, newer) == {}
    assert other_settings(older, other) == {"data.validation_size": (None, 100)}
    assert fingerprint(older) == fingerprint(newer) != fingerprint(other)
