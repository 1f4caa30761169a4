"""Sweeps whose jobs raise, are killed or stopped, and the processes that they leave: none."""

import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from helpers import Command, deterministic, epochs, files, processes, started, statuses, until

from mnist_mlp.sweeps.compose import directory_name

BACKBONE = """
import pathlib, time
from torch import nn

class Flagged(nn.Sequential):
    "Raises as long as a file says so, or once."
    def __init__(self, units, dropout=0.0, init="default"):
        super().__init__(nn.Flatten(), nn.Linear(784, units), nn.ReLU(), nn.Linear(units, 10))
        once = pathlib.Path(f"once{units}")
        if pathlib.Path(f"raise{units}").exists() or once.exists():
            once.unlink(missing_ok=True)
            raise RuntimeError("the flag is there")
"""
MODEL = "_target_: flagged.Flagged\nunits: 8\n"
FLAGS = ["--config-dir", "my_conf"]
Sweep = Callable[..., list[str]]


@pytest.fixture
def sweep(tmp_path: Path, tiny: list[str]) -> Sweep:
    """The arguments of `mnist-train -m` for a sweep of a user's own backbone, which lies in the current directory."""
    (tmp_path / "flagged.py").write_text(BACKBONE)
    (tmp_path / "my_conf" / "model").mkdir(parents=True)
    (tmp_path / "my_conf" / "model" / "flagged.yaml").write_text(MODEL)
    return lambda *overrides: [*FLAGS, "-m", "sweep=s", "model=flagged", *tiny, *overrides]


def jobs_of(process: "subprocess.Popen[str]", tmp_path: Path) -> list[int]:
    """The processes of a sweep's jobs: children of its server, in sessions of their own."""
    return [pid for pid, parent in processes(tmp_path).items() if parent != process.pid and os.getsid(pid) == pid]


def starts(directory: Path) -> list[str]:
    """The jobs that `sweep.log` says were started, in order."""
    return re.findall(r"^\S+ \S+ started (.*)", (directory / "sweep.log").read_text(), re.MULTILINE)


def test_jobs_that_raise_are_told_of_and_are_all_that_runs_again(
    command: Command, sweep: Sweep, tmp_path: Path
) -> None:
    (tmp_path / "raise16").touch()
    arguments = sweep("model.units=8,16", "seed=0,1")
    done = command("mnist-train", *arguments)
    directory = tmp_path / "logs" / "sweeps" / "s"
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    names = [f"model.units={units},seed={seed}" for units in (8, 16) for seed in (0, 1)]
    assert statuses(directory) == {name: "failed" if "16" in name else "completed" for name in names}
    for name in names[2:]:
        (line,) = re.findall(rf"^failed {re.escape(name)}: (.*)", done.stderr, re.MULTILINE)
        assert line.startswith("exit status 1; train.log ends with: ")
        assert "the flag is there" in line
        assert "the flag is there" in (directory / name / "train.log").read_text()
        assert re.search(rf"^  {re.escape(name)}: .*", done.stdout, re.MULTILINE)
    assert "4 runs: 2 completed, 2 failed" in done.stdout
    assert sorted(starts(directory)) == sorted(names)

    (tmp_path / "raise16").unlink()
    kept = {name: files(directory / name) for name in names[:2]}
    done = command("mnist-train", *arguments)
    assert (done.returncode, set(statuses(directory).values())) == (0, {"completed"})
    assert sorted(starts(directory)[4:]) == names[2:]
    assert {name: files(directory / name) for name in kept} == kept
    assert not any("error" in json.loads(path.read_text()) for path in directory.glob("*/run.json"))

    # What would change a job is refused before anything is written, more epochs too.
    before = {path: time for path, time in files(directory).items() if path.name not in (".lock", "multirun.yaml")}
    for changed in ("optimizer.lr=0.5", "trainer.max_epochs=4"):
        refused = command("mnist-train", *arguments, changed)
        setting, _, value = changed.partition("=")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert re.fullmatch(
            rf"run_dir=logs/sweeps/s/\S+: was run with {setting}=[\d.]+ \(not {value}\): keep that, or give another "
            r"sweep\n",
            refused.stderr,
        )
    assert {path: files(directory)[path] for path in before} == before

    # A job keeps its directory when another command varies fewer settings, or more; only what is new runs.
    (tmp_path / "raise8").touch()  # nothing is run again
    fewer = command("mnist-train", *sweep("model.units=8", "seed=0,1"))
    assert "2 jobs, 2 of them completed" in fewer.stderr
    (tmp_path / "raise8").unlink()
    # One of them as a sweep that was stopped early leaves it: it goes on where it lies.
    (directory / names[1] / "run.json").write_text(json.dumps({"status": "interrupted"}))
    more = command("mnist-train", *sweep("model.units=8", "seed=0,1", "optimizer.lr=0.001,0.01"))
    assert more.returncode == 0, more.stderr
    assert "4 jobs, 1 of them completed" in more.stderr
    assert len(starts(directory)) == 6 + 3
    assert len(statuses(directory)) == 4 + 2
    assert set(statuses(directory).values()) == {"completed"}
    assert files(directory / names[0]) == kept[names[0]]


@pytest.mark.timeout(1200)  # for --kills 20
def test_stopped_and_killed_sweeps_end_like_one_that_was_left_alone(
    command: Command, tiny: list[str], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """One sweep, in turn: Ctrl-C, SIGTERM and SIGKILL to it, then SIGKILL to a job, at random moments. Hydra's own
    launcher gives the same bits."""
    seed = pytestconfig.getoption("kill_seed")
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    print(f"--kill-seed {seed}")
    moments = random.Random(seed)
    times = max(1, pytestconfig.getoption("kills") // 4)
    common = ["-m", *tiny, "experiment=dropout_scheduler", "seed=0,1,2", f"trainer.max_epochs={80 * times}"]
    directory = tmp_path / "logs" / "sweeps" / "killed"
    arguments = [*common, "sweep=killed", "hydra.launcher.jobs=2"]

    def total() -> int:
        return sum(map(epochs, directory.glob("*")))

    def run_some_epochs() -> None:
        target = total() + moments.randrange(1, 15)
        until(lambda: total() >= target, "epochs")

    for signum, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with started(arguments, tmp_path) as process:
            until(lambda: all(epochs(directory / f"seed={seed}") for seed in (0, 1)), "an epoch of each")
            run_some_epochs()
            group = processes(tmp_path).keys() - jobs_of(process, tmp_path)
            process.send_signal(signum)
            for pid in group if signum == signal.SIGTERM else ():  # `timeout` has its child's group follow
                os.kill(pid, signum)
            _, told = process.communicate(timeout=120)
            assert process.returncode == status
            assert not processes(tmp_path)
        assert statuses(directory) == {"seed=0": "interrupted", "seed=1": "interrupted"}
        assert f"stopped by {signum.name}: 0 completed, 2 interrupted, 1 waiting; the same command" in told
        assert all((directory / f"seed={seed}" / "checkpoints" / "last.ckpt").exists() for seed in (0, 1))

    for _ in range(times):
        with started(arguments, tmp_path) as process:
            run_some_epochs()
            process.kill()
            until(lambda: not processes(tmp_path), "every process has gone with the sweep")

    with started(arguments, tmp_path) as process:
        run_some_epochs()
        os.kill(moments.choice(jobs_of(process, tmp_path)), signal.SIGKILL)
        _, told = process.communicate(timeout=240)
        assert process.returncode == 1
    (name,) = re.findall(r"^failed (\S+): killed by SIGKILL", told, re.MULTILINE)
    assert statuses(directory) == {f"seed={n}": "failed" if f"seed={n}" == name else "completed" for n in range(3)}
    assert json.loads((directory / name / "run.json").read_text())["error"].startswith("killed by SIGKILL")

    done = command("mnist-train", *arguments)
    assert done.returncode == 0, done.stderr
    alone = command("mnist-train", *common, "sweep=alone", "hydra/launcher=basic")
    assert alone.returncode == 0, alone.stderr
    assert deterministic(directory) == deterministic(tmp_path / "logs" / "sweeps" / "alone")
    assert not list(directory.rglob("*.tmp"))


def test_a_job_is_tried_again_and_the_first_failure_can_stop_the_others(
    command: Command, sweep: Sweep, tmp_path: Path
) -> None:
    (tmp_path / "once8").touch()
    done = command("mnist-train", *sweep("model.units=8,16", "hydra.launcher.retries=1"))
    assert done.returncode == 0, done.stderr
    assert "failed model.units=8: exit status 1" in done.stderr
    assert "started model.units=8, attempt 2" in done.stderr
    assert "completed model.units=8 after epoch 3" in done.stderr

    (tmp_path / "raise32").touch()
    fast = ["hydra.launcher.fail_fast=true", "hydra.launcher.jobs=2", "trainer.max_epochs=100000", "sweep=fast"]
    done = command("mnist-train", *sweep("model.units=8,32,16", *fast))
    assert done.returncode == 1
    assert "0 completed, 1 failed, 1 interrupted, 1 waiting" in done.stderr
    assert sorted(set(starts(tmp_path / "logs" / "sweeps" / "fast"))) == ["model.units=32", "model.units=8"]


def test_a_job_that_never_began_has_its_name_in_the_table(command: Command, sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "raise16").touch()
    done = command("mnist-train", *sweep("model.units=16", "seed=3"))
    assert done.returncode == 1
    record = json.loads(next(tmp_path.rglob("run.json")).read_text())
    assert {name: record[name] for name in ("status", "experiment", "model", "seed")} == {
        "status": "failed",
        "experiment": "baseline",
        "model": "flagged",
        "seed": 3,
    }
    assert re.search(r"^baseline\s*\nflagged\s*\n1 failed", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("hydra.launcher.jobs=0", "hydra.launcher.jobs=0: must be a whole number of at least 1, or null"),
        ("hydra.launcher.retries=-1", "hydra.launcher.retries=-1: must be a whole number of at least 0"),
        ("hydra.launcher.fail_fast=1", "hydra.launcher.fail_fast=1: must be true or false"),
        ("model=network_a,c", "model=c: there is no such model; choose one of network_a, network_b, tiny"),
        ("seed=0,0", "sweep=logs/sweeps/s: two jobs have the same directory: give each value once"),
        ("optimizer.lr=0.1,-1", "optimizer.lr=-1: must be a number above 0 and at most 3.4e+38"),
    ],
)
def test_a_sweep_that_cannot_be_run_starts_nothing(
    command: Command, tiny: list[str], tmp_path: Path, setting: str, sentence: str
) -> None:
    seeds = [] if setting.startswith("seed=") else ["seed=0,1"]
    done = command("mnist-train", "-m", "sweep=s", *seeds, *tiny, setting)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{sentence}\n")
    assert not list(tmp_path.iterdir())


def test_a_sweep_belongs_to_one_process(command: Command, tiny: list[str], tmp_path: Path) -> None:
    directory = tmp_path / "logs" / "sweeps" / "s"
    directory.mkdir(parents=True)
    with FileLock(directory / ".lock"):
        done = command("mnist-train", "-m", "sweep=s", "seed=0,1", *tiny)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"sweep={directory}: is in use by another process: wait, or give another name\n"


def test_a_name_is_one_directory_and_names_stay_apart() -> None:
    assert directory_name("model.hidden=[64,128],seed=0") == "model.hidden=[64,128],seed=0"
    assert directory_name("data.root=../a/b") == "data.root=.._a_b"
    long = [directory_name(f"model.hidden=[{','.join(['64'] * 200)},{last}]") for last in (1, 2)]
    assert long[0] != long[1]
    assert all(len(name.encode()) <= 255 for name in long)
