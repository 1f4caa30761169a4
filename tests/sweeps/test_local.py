"""How many jobs run at a time, and on which GPU; machines with GPUs are made up."""

from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from mnist_mlp.settings import SettingError
from mnist_mlp.sweeps import local
from mnist_mlp.sweeps.local import ProcessLauncher, _least_used
from mnist_mlp.sweeps.ray import RayLauncher
from mnist_mlp.sweeps.slurm import SlurmLauncher


@pytest.mark.parametrize(
    ("cores", "gpus", "threads", "at_a_time"),
    [(16, 0, 1, 16), (16, 0, 4, 4), (16, 1, 1, 4), (2, 1, 1, 2), (64, 8, 1, 32), (16, 8, 1, 16), (16, 1, None, 1)],
)
def test_a_gpu_takes_four_jobs_where_there_are_cores_for_them(
    monkeypatch: pytest.MonkeyPatch, cores: int, gpus: int, threads: int | None, at_a_time: int
) -> None:
    monkeypatch.setattr(local, "cores", lambda: cores)
    launcher = ProcessLauncher()
    launcher.config = OmegaConf.create({"threads": threads})
    source: Any = SimpleNamespace(jobs=[SimpleNamespace(threads=threads)])
    assert launcher._fitting(source, [f"GPU-{number}" for number in range(gpus)]) == at_a_time


def test_jobs_are_spread_over_several_gpus() -> None:
    running: list[Any] = []
    for _ in range(5):
        running.append(SimpleNamespace(gpu=_least_used(["a", "b"], running)))
    assert [job.gpu for job in running] == ["a", "b", "a", "b", "a"]
    assert _least_used(["a"], []) is None  # found without being told


def test_a_cluster_is_asked_for_the_gpu_that_a_job_needs() -> None:
    config = OmegaConf.create({"trainer": {"accelerator": "gpu"}, "hydra": {"launcher": {"gpus_per_node": None}}})
    with pytest.raises(SettingError, match=r"hydra\.launcher\.gpus_per_node=null: Slurm hides every GPU from a job"):
        SlurmLauncher.check(config)
    config.hydra.launcher = {"ray": {"remote": {"num_gpus": 0}}}
    with pytest.raises(SettingError, match=r"hydra\.launcher\.ray\.remote\.num_gpus=0: Ray hides every GPU from a job"):
        RayLauncher.check(config)
