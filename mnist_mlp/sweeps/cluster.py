"""What the launchers for clusters share: they hand the jobs of a sweep over, and wait for them.

A job is what it is in a sweep on one machine: `mnist-train` in a process of its own, with a directory of its own. Only
who starts it differs. Hydra's own plugins for Slurm and Ray run jobs inside the sweep's own Hydra, give up at the first
one that leaves no result, and are loaded by every Hydra application of the environment: only their engines are used.
"""

import os
import time
from abc import abstractmethod
from collections.abc import Iterable
from importlib import metadata

from mnist_mlp.run.records import read_record
from mnist_mlp.run.signals import StopSignals
from mnist_mlp.settings import SettingError
from mnist_mlp.sweeps.jobs import Job, JobSource, end_job
from mnist_mlp.sweeps.launcher import HYDRAS_NAME, SweepLauncher
from mnist_mlp.sweeps.view import SweepView

POLL = 0.5  # seconds between two looks at the signals and the jobs' records


class ClusterLauncher(SweepLauncher):
    """Hands the jobs of a sweep to a cluster, which has its own queue, and waits for them."""

    __module__ = HYDRAS_NAME

    @abstractmethod
    def submit(self, jobs: list[Job]) -> str:
        """Hands the jobs over. Returns: a sentence about it.

        Raises:
            SettingError: the cluster refuses them.
        """

    @abstractmethod
    def ended(self, jobs: list[Job]) -> Iterable[tuple[Job, str]]:
        """Those that are not on the cluster any more, each with what the cluster says of its end."""

    @abstractmethod
    def cancel(self, jobs: list[Job]) -> None:
        """Stops those that run at their next optimizer step, and takes the others out of the queue."""

    def run(self, source: JobSource, view: SweepView, signals: StopSignals) -> None:
        view.say(f"{os.path.relpath(view.directory)}: {source.plan()}")
        # All at once: `check_search` refuses a search, because its jobs come one after the other.
        left = [job for job in source.jobs if job.state != "completed"]
        if left:
            view.say(self.submit(left))
        stopping = False
        while left:
            if signals.received and not stopping:
                stopping = True
                self.cancel(left)
            for job, cause in self.ended(left):
                end_job(job, cause, stopping)
                view.say_end(job, stopping)
            left = [job for job in left if job.state in ("waiting", "running")]
            for job in left:
                job.state = "running" if read_record(job.path).get("status") == "running" else "waiting"
            view.refresh()
            time.sleep(POLL)


def is_installed(package: str) -> bool:
    """Whether a package is there. A directory or a file of its name beside where the user works is not it."""
    return any(True for _ in metadata.Distribution.discover(name=package))


def refused(launcher: str, problem: str) -> SettingError:
    """What to raise where a launcher cannot be used."""
    return SettingError("hydra/launcher", launcher, problem)
