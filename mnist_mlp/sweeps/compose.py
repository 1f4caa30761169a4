"""Makes the jobs of a sweep of their overrides, and looks at what their directories hold before any of them starts."""

import hashlib
import os
import re
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from mnist_mlp.run.identity import PLACES, fingerprint, other_settings, was_run_with
from mnist_mlp.run.records import load_settings, read_record
from mnist_mlp.settings import SettingError, as_override, refuse_derived, settle, without_hydra
from mnist_mlp.sweeps.jobs import Job

LEFT_RUNNING = 20.0  # seconds that what a killed sweep has left running may take to stop itself
LONGEST_NAME = 200  # bytes of a directory's name; file systems take 255


class Composer:
    """Makes jobs.

    Args:
        config: of the sweep.
        loader: Hydra's, which composes the settings of each job.
        directory: of the sweep.
    """

    def __init__(self, config: DictConfig, loader: ConfigLoader, directory: Path) -> None:
        self.config, self.loader, self.directory = config, loader, directory

    def jobs(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
        """A job for each of the overrides, numbered from `first`; `completed` where it is so already.

        Raises:
            SettingError: a job's setting cannot be used, or differs from those that its directory was run with.
        """
        composed = [self._compose(overrides, number) for number, overrides in enumerate(job_overrides, first)]
        found = {job.path: (job, config) for job, config in composed}
        if len(found) < len(job_overrides):
            raise SettingError(
                "sweep", os.path.relpath(self.directory), "two jobs have the same directory: give each value once"
            )
        # A job keeps the directory that an earlier command gave it, which has another name where that command varied
        # fewer settings, or more.
        others = [path.parent for path in self.directory.glob("*/config.yaml") if path.parent not in found]
        if others and any(not path.exists() for path in found):
            places = {fingerprint(load_settings(path, "run_dir")): path for path in others}
            for job, config in found.values():
                if not job.path.exists():
                    job.path = places.get(fingerprint(config), job.path)
        deadline = time.monotonic() + LEFT_RUNNING
        for job, config in found.values():
            _look_into(job, config, deadline)
        return [job for job, _ in found.values()]

    def job(self, overrides: Sequence[str], number: int, name: str) -> Job:
        """One job, as `jobs` makes it, in a directory of this name."""
        job, config = self._compose(overrides, number, name)
        _look_into(job, config, time.monotonic() + LEFT_RUNNING)
        return job

    def _compose(self, overrides: Sequence[str], number: int, name: str | None = None) -> tuple[Job, DictConfig]:
        """A job and its settings; without a name, its directory has the name that Hydra gives it."""
        given = OmegaConf.to_container(self.config.hydra.overrides.hydra)
        assert isinstance(given, list)
        from_hydra = [override for override in given if not override.startswith("hydra.mode=")]
        config = self.loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
            config.hydra.job.override_dirname = directory_name(config.hydra.job.override_dirname)
        HydraConfig.instance().set_config(config)  # what ${hydra:...} looks at
        name = name or str(config.hydra.sweep.subdir) or "run"
        path = self.directory / name
        settings = without_hydra(config)
        refuse_derived(settings, config.hydra)
        settings.run_dir = str(path)
        settle(settings)
        widths = settings.model.get("hidden") or []
        # Without its own console handler: what the process prints goes to train.log as well.
        quiet = ["hydra.job_logging.root.handlers=[file]"]
        job = Job(
            name,
            path,
            [
                *(override for override in overrides if override.partition("=")[0] not in PLACES),
                f"sweep={as_override(settings.sweep)}",
                *from_hydra,
                "hydra.mode=RUN",  # also where an experiment asks for a sweep
                "hydra.run.dir=${run_dir}",
                *(quiet if config.hydra.runtime.choices["hydra/job_logging"] == "run" else []),
            ],
            settings.trainer.max_epochs,
            settings.threads,
            settings.trainer.max_epochs * sum(one * other for one, other in pairwise([784, *widths, 10])),
            labels={"experiment": settings.experiment, "model": settings.network, "seed": settings.seed},
        )
        return job, settings


def directory_name(name: str) -> str:
    """A name that one directory can have: no slashes, and not too long for a file system."""
    name = re.sub(r"[/\\\0\n]", "_", name)
    encoded = name.encode()
    if len(encoded) <= LONGEST_NAME:
        return name
    return f"{encoded[: LONGEST_NAME - 13].decode(errors='ignore')},{hashlib.sha256(encoded).hexdigest()[:12]}"


def _look_into(job: Job, config: DictConfig, deadline: float) -> None:
    """Sets the state of a job that is completed already.

    Raises:
        SettingError: it was run with other settings, or it is still running at the deadline.
    """
    record = read_record(job.path)
    if record.get("status") == "completed" or (job.path / "checkpoints" / "last.ckpt").exists():
        differing = other_settings(load_settings(job.path, "run_dir"), config)
        if differing:
            # More epochs too: left out of a command by mistake, they would change every completed job.
            problem = f"{was_run_with(differing)}: keep that, or give another sweep"
            raise SettingError("run_dir", os.path.relpath(job.path), problem)
    if record.get("status") == "completed":
        job.state = "completed"
    elif record.get("status") == "running":
        wait_for(job.path, deadline)


def wait_for(path: Path, deadline: float) -> None:
    """Waits until no process is at work in the run directory `path`: a job of a killed sweep stops itself.

    Raises:
        SettingError: one still is at the deadline, so nobody told it to stop.
    """
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=max(0, deadline - time.monotonic()))
    except Timeout as error:
        raise SettingError(
            "run_dir", os.path.relpath(path), "is in use by another process: stop it, or wait"
        ) from error
    lock.release()
