"""Sweeps that no cluster can run, and sweeps on Ray (`make test-ray`). On Slurm: test_slurm.py."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Command, deterministic, epochs, holder, processes, started, statuses, until

from mnist_mlp.sweeps.slurm import SLURM_COMMANDS

SWEEP = ["-m", "sweep=s", "seed=0,1"]


@pytest.mark.parametrize(("launcher", "extra"), [("submitit_slurm", "slurm"), ("ray", "ray")])
def test_a_launcher_whose_package_is_not_there_names_the_extra(tmp_path: Path, launcher: str, extra: str) -> None:
    code = (
        "from mnist_mlp.sweeps import cluster, ray, slurm; from mnist_mlp.cli import main; "
        "cluster.metadata.Distribution.discover = lambda **_: iter(()); main()"
    )
    arguments = [sys.executable, "-c", code, *SWEEP, f"hydra/launcher={launcher}"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    sentence = f"hydra/launcher={launcher}: needs another package: pip install 'mnist-mlp[{extra}]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence)
    assert not list(tmp_path.iterdir())


def test_a_machine_without_slurms_commands_or_accounting_starts_nothing(command: Command, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    path = {"PATH": str(tmp_path / "bin")}
    done = command("mnist-train", *SWEEP, "hydra/launcher=submitit_slurm", **path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "hydra/launcher=submitit_slurm: there is no sbatch on this machine: start the sweep where Slurm's commands "
        "are\n"
    )
    for name in SLURM_COMMANDS:  # each says what Slurm's own do without accounting
        (tmp_path / "bin" / name).write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n")
        (tmp_path / "bin" / name).chmod(0o755)
    done = command("mnist-train", *SWEEP, "hydra/launcher=submitit_slurm", **path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "hydra/launcher=submitit_slurm: Slurm's accounting is off or out of reach (Slurm accounting storage is "
        "disabled): without it nothing tells of a job that was killed; have slurmdbd running, or leave this out\n"
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["bin"]


ONE_DEVICE = "a run uses one device; a sweep puts its runs on several"
UNUSABLE = {
    ("trainer.devices=2", "trainer.strategy=ddp"): f"trainer.devices=2: must be 1: {ONE_DEVICE}\n",
    ("trainer.strategy=ddp",): f"trainer.strategy=ddp: must be auto: {ONE_DEVICE}\n",
    ("trainer.accelerator=gpu",): "trainer.accelerator=gpu: PyTorch finds no such device on this machine: use cpu, "
    "or auto\n",
}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        *(((f"hydra/launcher={name}", *bad), said) for name in ("process", "basic") for bad, said in UNUSABLE.items()),
        (("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=0"), "hydra.launcher.timeout_min=0: must be a "),
    ],
)
def test_what_no_job_can_use_starts_nothing(
    command: Command, tmp_path: Path, settings: tuple[str, ...], sentence: str
) -> None:
    done = command("mnist-train", *SWEEP, *settings, CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_sweep_on_ray_with_a_killed_and_a_stopped_job_ends_like_a_local_one(
    command: Command, tiny: list[str], tmp_path: Path
) -> None:
    arguments = ["-m", "experiment=dropout_scheduler", "seed=0,1,2", *tiny, "trainer.max_epochs=150"]
    local = command("mnist-train", *arguments, "sweep=local")
    assert local.returncode == 0, local.stderr
    on_ray = [*arguments, "sweep=ray", "hydra/launcher=ray"]
    directory = tmp_path / "logs" / "sweeps" / "ray"

    with started(on_ray, tmp_path) as process:
        until(lambda: sum(epochs(directory / f"seed={seed}") > 10 for seed in range(3)) >= 1, "ten epochs")
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=120)
        assert process.returncode == 130, told
        assert set(statuses(directory).values()) == {"interrupted"}
        until(lambda: not processes(tmp_path), "Ray has gone with the sweep")

    with started(on_ray, tmp_path) as process:
        until(lambda: "seed=2" in statuses(directory) and epochs(directory / "seed=2") > 10, "ten epochs of one")
        os.kill(holder(directory / "seed=2"), signal.SIGKILL)
        _, told = process.communicate(timeout=240)
        assert process.returncode == 1, told
    assert statuses(directory) == {"seed=0": "completed", "seed=1": "completed", "seed=2": "failed"}
    assert "failed seed=2: Ray says WorkerCrashedError" in told

    again = command("mnist-train", *on_ray)
    assert again.returncode == 0, again.stderr
    assert "3 jobs, 2 of them completed" in again.stderr
    assert deterministic(directory) == deterministic(tmp_path / "logs" / "sweeps" / "local")


@pytest.mark.ray
@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("init.address=127.0.0.1:9", "hydra.launcher.ray.init.address=127.0.0.1:9: Ray is out of reach ("),
        ("remote.num_gpus=1", "hydra.launcher.ray.remote.num_gpus=1: no node of Ray has over 0\n"),
    ],
)
def test_what_ray_cannot_run_starts_nothing(command: Command, tmp_path: Path, setting: str, sentence: str) -> None:
    done = command("mnist-train", *SWEEP, "hydra/launcher=ray", f"hydra.launcher.ray.{setting}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(sentence.strip())
    assert not list(tmp_path.iterdir())
