"""What Hydra calls for a sweep: a launcher makes jobs of the overrides, runs them and shows the table at their end.

How jobs are run is a subclass's: local.py on this machine, slurm.py and ray.py on a cluster.
"""

import contextlib
import importlib
import os
import shlex
import sys
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from filelock import FileLock, Timeout
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from rich.console import Console

from mnist_mlp.run.records import read_record
from mnist_mlp.run.signals import StopSignals
from mnist_mlp.settings import SettingError, as_override, check_accelerator, in_callback
from mnist_mlp.sweeps.compose import Composer
from mnist_mlp.sweeps.jobs import Job, JobList, JobSource, record_time
from mnist_mlp.sweeps.search import Search
from mnist_mlp.sweeps.study import STUDY
from mnist_mlp.sweeps.table import summarise
from mnist_mlp.sweeps.view import SweepView

HYDRAS_NAME = "hydra_plugins.mnist_mlp"  # the module in which Hydra finds the launchers: `register` makes it


class SweepLauncher(Launcher):
    """What all launchers share. A subclass says how jobs are run; its `__module__` is `HYDRAS_NAME`."""

    command: ClassVar["staticmethod[[], None]"]  # what a job runs: `register` is given it

    @staticmethod
    def check(config: DictConfig) -> None:
        """Raises: SettingError, where the jobs of a sweep cannot run here; looked at are the settings they share."""
        check_accelerator(config.trainer.accelerator)

    @abstractmethod
    def run(self, source: JobSource, view: SweepView, signals: StopSignals) -> None:
        """Runs what the source gives, until it gives no more and each job has ended.

        Args:
            source: of the jobs.
            view: shows them, and takes what there is to say.
            signals: where one has come, jobs are stopped and no more are started.
        """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs, or the trials of a search, and prints the table.

        Returns:
            For each job its `run.json`, or None where it did not complete. Where one failed, the process exits with
            status 1 at the end of the sweep.

        Raises:
            SettingError: before anything has started: a job's setting cannot be used, or differs from those that its
                directory was run with; or another process is at work on the sweep.
            SystemExit: a signal stopped the sweep; the status is the one that a shell gives it.
        """
        directory = Path(self.config.hydra.sweep.dir).absolute()
        try:
            lock = FileLock(directory / ".lock").acquire(timeout=0)
        except Timeout as error:
            raise SettingError(
                "sweep", directory, "is in use by another process: wait, or give another name"
            ) from error
        with lock:
            source = self._source(job_overrides, initial_job_idx, directory)
            try:
                self._run(source, directory)
            finally:
                with contextlib.suppress(SettingError):  # no job has left a record
                    summarise(directory)
                    say_what_next(directory)
        if any(job.state == "failed" for job in source.jobs):
            self.hydra_context.callbacks.callbacks.insert(0, ExitAtEnd())  # Hydra ends with the first
        return [
            JobReturn(
                overrides=job.overrides,
                working_dir=str(job.path),
                task_name="train",
                status=JobStatus.COMPLETED,  # also of one that failed: Hydra would stop there
                _return_value=read_record(job.path) if job.state == "completed" else None,
            )
            for job in source.jobs
        ]

    def _source(self, job_overrides: Sequence[Sequence[str]], first: int, directory: Path) -> JobSource:
        composer = Composer(self.config, self.hydra_context.config_loader, directory)
        if self.config.get("search"):
            return Search(composer, job_overrides[0])  # a search has one list of overrides, which its trials share
        if (directory / STUDY).exists():
            raise SettingError("sweep", os.path.relpath(directory), "holds a search: give the sweep another name")
        return JobList(composer.jobs(job_overrides, first))

    def _run(self, source: JobSource, directory: Path) -> None:
        with StopSignals() as signals, SweepView(source.jobs, directory) as view:
            self.run(source, view, signals)
            why = f"stopped by {signals.received.name}: " if signals.received else ""
            goes_on = "" if source.is_over() else f"; the same command with sweep={self.config.sweep} goes on"
            view.say(f"{why}{source.result()}{goes_on}")
        if signals.received:
            sys.exit(128 + signals.received)

    def command_line(self, job: Job) -> tuple[list[str], Path]:
        """What `run_here` takes to run the job: its arguments, and its `train.log`, which this makes.

        Raises:
            OSError: the job's directory cannot be written.
        """
        sources = self.config.hydra.runtime.config_sources
        arguments = [
            *("--config-name", self.config.hydra.job.config_name),
            *(f"--config-dir={source.path}" for source in sources if source.provider == "command-line"),
            *job.overrides,
            f"run_dir={as_override(job.path)}",
        ]
        job.path.mkdir(parents=True, exist_ok=True)
        log = job.path / "train.log"
        log.touch()
        job.log_start, job.record_time = log.stat().st_size, record_time(job)
        return arguments, log


def say_what_next(directory: Path) -> None:
    """Prints the commands that show more of a sweep."""
    console = Console(highlight=False)
    for what, command in (("Watch", "mnist-tensorboard"), ("Results page", "mnist-report")):
        line = f"{what}: {shlex.join((command, os.path.relpath(directory)))}"
        console.print(line, soft_wrap=True, markup=False)


class ExitAtEnd(Callback):
    """Hydra callback: ends the process with status 1 after the sweep, which may have several batches of jobs."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        sys.exit(1)


class CheckLauncher(Callback):
    """Hydra callback: refuses a sweep that its launcher cannot run before Hydra makes its directory."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with in_callback():
            launcher = Plugins.instance().class_name_to_class.get(config.hydra.launcher._target_)
            getattr(launcher, "check", SweepLauncher.check)(config)  # another launcher's jobs run here too


def register(command: Callable[[], None], *launchers: type[SweepLauncher]) -> None:
    """Makes launchers known to Hydra, in this process; each of their jobs runs `command`.

    Hydra takes launchers only from the package `hydra_plugins`, and loads what is installed there in every Hydra
    application of the environment.
    """
    plugins = Plugins.instance()  # before the package is there, because this looks for it
    try:
        package = importlib.import_module("hydra_plugins")  # there where another plugin is installed
    except ImportError:
        package = sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    module = ModuleType(HYDRAS_NAME)
    setattr(package, HYDRAS_NAME.rpartition(".")[2], module)
    for launcher in launchers:
        plugins.register(launcher)
        setattr(module, launcher.__name__, launcher)
        launcher.command = staticmethod(command)
