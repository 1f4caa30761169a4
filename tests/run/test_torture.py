"""Runs that are killed, stopped or out of disk, and end bit for bit like the run that was left alone.

`make torture` is the long version: more kills.
"""

import csv
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Runner, steps

from mnist_mlp.run.metrics import COLUMNS
from mnist_mlp.run.signals import InterruptionError
from mnist_mlp.settings import SettingError, compose_config
from mnist_mlp.train import train

# Each session is forked from a process that has imported everything: kills then hit the run, not seconds of imports.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    [
        "mnist_mlp.tensorboard.events",
        "mnist_mlp.run.provenance",
        "mnist_mlp.train",
    ]
)
EVERYTHING_RANDOM = "experiment=dropout_scheduler"
EVERYTHING_SHOWN = ("tensorboard.images_every=2", "tensorboard.histograms_every=2")


def session(overrides: list[str], file_size: int | None = None) -> None:
    """What one `mnist-train` process does."""
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    try:
        train(compose_config(overrides))
    except InterruptionError as error:
        sys.exit(error.exit_status)
    except SettingError as error:
        sys.exit(str(error))  # status 1


def whole_session(overrides: list[str]) -> float:
    """Its seconds."""
    started = time.monotonic()
    process = FORK.Process(target=session, args=(overrides,))
    process.start()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - started


def rows(run_dir: Path) -> list[dict[str, str]]:
    metrics = run_dir / "metrics.csv"
    return list(csv.DictReader(metrics.read_text().splitlines())) if metrics.exists() else []


def assert_the_same(run_dir: Path, reference: Path) -> None:
    records = [json.loads((path / "run.json").read_text()) for path in (run_dir, reference)]
    for key in ("status", "epochs", "best", "test", "weights_sha256", "data_sha256"):
        assert records[0][key] == records[1][key], key
    assert "error" not in records[0]
    for row, expected in zip(rows(run_dir), rows(reference), strict=True):
        assert {**row, "seconds": ""} == {**expected, "seconds": ""}
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    for name in ("best.ckpt", "last.ckpt"):
        ours, theirs = (torch.load(path / "checkpoints" / name, weights_only=True) for path in (run_dir, reference))
        assert ours["epoch"] == theirs["epoch"]
        for key in ("state_dict", "optimizer_states", "lr_schedulers"):
            torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=0)
    assert not list(run_dir.rglob("*.tmp"))
    shown = steps(run_dir)
    assert shown == steps(reference)
    assert all(len(set(once)) == len(once) for once in shown.values())
    for tag in COLUMNS[1:]:
        assert shown[tag] == list(range(1, len(rows(reference)) + 1)), tag


def test_stopped_at_random_moments(tiny: list[str], tmp_path: Path, pytestconfig: pytest.Config) -> None:
    kills = pytestconfig.getoption("kills")
    signals = [signal.SIGKILL, signal.SIGTERM] * kills
    seed = pytestconfig.getoption("kill_seed")
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    print(f"{len(signals)} times: --kill-seed {seed}")
    moments = random.Random(seed)
    moments.shuffle(signals)
    epochs = 5 * len(signals)
    overrides = [*tiny, EVERYTHING_RANDOM, *EVERYTHING_SHOWN, f"trainer.max_epochs={epochs}"]
    reference, run_dir = tmp_path / "reference", tmp_path / "run"
    whole_session([*tiny, "trainer.max_epochs=1", f"run_dir={reference}"])  # starts the server, which takes its time
    shutil.rmtree(reference)
    total = whole_session([*overrides, f"run_dir={reference}"])
    seconds_in_epochs = sum(float(row["seconds"]) for row in rows(reference))
    stopped_after = []
    for signum in signals:
        process = FORK.Process(target=session, args=([*overrides, f"run_dir={run_dir}"],))
        process.start()
        # A third while it starts; the others within the next epochs, so few that the run outlasts the kills.
        starting = moments.random() < 0.3
        deadline = time.monotonic() + (moments.uniform(0, total - seconds_in_epochs) if starting else 60)
        target = len(rows(run_dir)) + (1 if starting else moments.randrange(3))
        while process.is_alive() and len(rows(run_dir)) < target and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 1.5 * seconds_in_epochs / epochs))
        assert process.pid is not None
        os.kill(process.pid, signum)
        process.join()
        # A run answers SIGTERM with 143; the process, before it has become one, dies of it.
        assert process.exitcode in ({-9} if signum == signal.SIGKILL else {143, -15})
        checkpoint = run_dir / "checkpoints" / "last.ckpt"
        stopped_after.append(torch.load(checkpoint, weights_only=True)["epoch"] + 1 if checkpoint.exists() else 0)
    print(f"stopped after epoch {', '.join(map(str, stopped_after))} of {epochs}")
    assert stopped_after == sorted(stopped_after)
    whole_session([*overrides, f"run_dir={run_dir}"])
    assert_the_same(run_dir, reference)


def test_killed_before_any_rename(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill leaves the files as they are: copied before each rename, they are what a kill there leaves."""
    # Without pictures, which take most of so short a run; the test above has them.
    overrides = [EVERYTHING_RANDOM, "tensorboard.images_every=null", "trainer.max_epochs=2"]
    reference, copies = tmp_path / "reference", tmp_path / "copies"
    replace, names = os.replace, []

    def copy_and_replace(source: Any, target: Any) -> None:
        if Path(target).is_relative_to(reference):
            shutil.copytree(reference, copies / str(len(names)))
            names.append(Path(target).name)
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", copy_and_replace)
        run(*overrides, f"run_dir={reference}")
    written = ["best.ckpt", "last.ckpt", "metrics.csv"]
    assert names[names.index("best.ckpt") :] == [*written, *written, "metrics.csv", "run.json"]
    for number in range(len(names)):
        assert list((copies / str(number)).rglob("*.tmp"))
        run(*overrides, f"run_dir={copies / str(number)}")
        assert_the_same(copies / str(number), reference)


def test_a_file_that_cannot_grow_ends_the_run_with_one_sentence(
    run: Runner, tiny: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What a full disk does to a save, where no disk can be mounted: checkpoints may not pass 100 kB."""
    reference, _ = run(EVERYTHING_RANDOM, "trainer.max_epochs=3")
    run_dir, _ = run(EVERYTHING_RANDOM, "trainer.max_epochs=1")
    checkpoints = {path: path.read_bytes() for path in (run_dir / "checkpoints").iterdir()}
    overrides = [*tiny, EVERYTHING_RANDOM, "trainer.max_epochs=3", f"run_dir={run_dir}"]
    process = FORK.Process(target=session, args=(overrides, 100_000))
    process.start()
    process.join()
    assert process.exitcode == 1
    assert {path: path.read_bytes() for path in (run_dir / "checkpoints").iterdir()} == checkpoints
    assert json.loads((run_dir / "run.json").read_text())["status"] == "failed"
    whole_session(overrides)
    assert_the_same(run_dir, reference)


# What is mounted is seen by this process and those that it starts.
MOUNTS = """
import os, shutil, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from forked import Server

server = Server()
for step, options in (("full", "size=2m"), ("readonly", "remount,ro"), ("again", "remount,rw,size=16m")):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", "disk"], check=True)
    process = server.start("mnist-train", sys.argv[2:], Path.cwd(), dict(os.environ))
    Path(f"{step}.err").write_text(process.communicate(timeout=120)[1])
    Path(f"{step}.status").write_text(str(process.returncode))
    if step != "readonly":
        shutil.copytree("disk/run", step)
server.close()
"""


def test_a_disk_that_fills_up_and_becomes_read_only(run: Runner, tiny: list[str], tmp_path: Path) -> None:
    """A disk of 2 MB has room for the first epoch's two checkpoints, not for a third beside them."""
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    (tmp_path / "disk").mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "none", "disk"]
        subprocess.run([*namespace, *mount], cwd=tmp_path, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine lets nobody mount a disk ({error}); the test above stands in for this one")
    reference, _ = run(EVERYTHING_RANDOM)
    arguments = [*tiny, EVERYTHING_RANDOM, "run_dir=disk/run"]
    python = [sys.executable, "-c", MOUNTS, str(Path(__file__).parents[1]), *arguments]
    subprocess.run([*namespace, *python], cwd=tmp_path, check=True, timeout=280)

    def status_and_error(step: str) -> tuple[str, str]:
        return (tmp_path / f"{step}.status").read_text(), (tmp_path / f"{step}.err").read_text()

    assert status_and_error("full") == (
        "1",
        "run_dir=disk/run: cannot be written (No space left on device): mend that, and the same command goes on where "
        "this stopped\n",
    )
    left = sorted(path.name for path in (tmp_path / "full" / "checkpoints").iterdir())
    assert left == ["best.ckpt", "last.ckpt"]
    assert torch.load(tmp_path / "full" / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 0
    assert status_and_error("readonly") == (
        "1",
        "run_dir=disk/run: cannot be written (Permission denied): choose a directory that you can write to\n",
    )
    assert status_and_error("again")[0] == "0", status_and_error("again")[1]
    assert_the_same(tmp_path / "again", reference)
