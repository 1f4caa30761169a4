"""`hydra/launcher=ray`: the jobs of a sweep as tasks of Ray."""

import os
import re
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mnist_mlp.settings import SettingError
from mnist_mlp.surroundings import one_line
from mnist_mlp.sweeps.cluster import ClusterLauncher, is_installed, refused
from mnist_mlp.sweeps.jobs import Job
from mnist_mlp.sweeps.launcher import HYDRAS_NAME
from mnist_mlp.sweeps.process import run_here, users_environment

# Ray itself is imported inside functions: it takes a second, and may not be installed.


class RayLauncher(ClusterLauncher):
    """Runs each job as a task of Ray.

    Args:
        ray: the arguments of `ray.init` under `init`, those of `ray.remote` under `remote`.
    """

    __module__ = HYDRAS_NAME

    def __init__(self, ray: DictConfig) -> None:
        super().__init__()
        self.remote: Any = OmegaConf.to_container(ray.remote, resolve=True)
        self.tasks: dict[str, Any] = {}  # a job's name -> the reference of its task

    @staticmethod
    def check(config: DictConfig) -> None:
        """Connects to Ray, or starts it on this machine.

        Raises:
            SettingError: it is out of reach, or has no node for a job.
        """
        gpus = config.hydra.launcher.ray.remote.num_gpus
        if not gpus and config.trainer.accelerator in ("gpu", "cuda"):
            problem = "Ray hides every GPU from a job that has not asked for it: give 1, or less to share one"
            raise SettingError("hydra.launcher.ray.remote.num_gpus", gpus, problem)
        if not is_installed("ray"):
            raise refused("ray", "needs another package: pip install 'mnist-mlp[ray]'")
        import ray

        arguments: Any = OmegaConf.to_container(config.hydra.launcher.ray, resolve=True)
        address = arguments["init"].get("address")
        try:
            if port := re.search(r"([^/:]+):(\d+)$", address or ""):  # Ray itself would try for many minutes
                socket.create_connection((port[1], int(port[2])), timeout=10).close()
            with users_environment():
                ray.init(**arguments["init"])
        except Exception as error:  # ConnectionError, ValueError and others
            said = one_line(error)
            problem = f"Ray is out of reach ({said}): give the address of a running head, or null"
            raise SettingError("hydra.launcher.ray.init.address", address, problem) from error
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for setting, resource in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
            wanted, most = arguments["remote"].get(setting) or 0, max(node.get(resource, 0) for node in nodes)
            if wanted > most:
                raise SettingError(f"hydra.launcher.ray.remote.{setting}", wanted, f"no node of Ray has over {most:g}")

    def submit(self, jobs: list[Job]) -> str:
        import ray

        task = ray.remote(**self.remote)(_ray_task)
        self.tasks = {job.name: task.remote(self.command, *self.command_line(job), os.getcwd()) for job in jobs}
        return "handed to Ray"

    def ended(self, jobs: list[Job]) -> Iterable[tuple[Job, str]]:
        import ray

        tasks = [self.tasks[job.name] for job in jobs]
        ready, _ = ray.wait(tasks, num_returns=len(tasks), timeout=0)
        for job in jobs:
            if self.tasks[job.name] in ready:
                try:
                    yield job, f"exit status {ray.get(self.tasks[job.name])}"
                except ray.exceptions.RayError as error:
                    yield job, f"Ray says {type(error).__name__}"

    def cancel(self, jobs: list[Job]) -> None:
        import ray

        for job in jobs:
            ray.cancel(self.tasks[job.name])  # as Ctrl-C does


def _ray_task(command: Callable[[], None], arguments: list[str], log: Path, directory: str) -> int:
    """One job, in a worker of Ray's, which takes no other job. Returns: its exit status."""
    os.chdir(directory)
    try:
        run_here(command, arguments, log)
    except SystemExit as end:
        return int(end.code or 0)
    return 0
