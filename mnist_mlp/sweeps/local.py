"""`hydra/launcher=process`: the jobs of a sweep side by side on this machine, each in a fresh process."""

import contextlib
import os
import time
from collections.abc import Sequence

from mnist_mlp.run.signals import StopSignals
from mnist_mlp.settings import SettingError
from mnist_mlp.sweeps.compose import wait_for
from mnist_mlp.sweeps.jobs import Job, JobSource, end_job
from mnist_mlp.sweeps.launcher import HYDRAS_NAME, SweepLauncher
from mnist_mlp.sweeps.machine import cores, gpus, out_of_memory_kills
from mnist_mlp.sweeps.process import GRACE, LOST, ask_to_stop, cause, kill, start, start_server, wait_for_any
from mnist_mlp.sweeps.view import SweepView

# Jobs for each GPU. Their kernels take turns on it, so more at a time pay only while others start, validate and
# record. Each takes about a gigabyte of its memory.
PER_GPU = 4
POLL = 0.2  # seconds between two looks at the signals and the jobs' records; the end of a process is seen at once


class ProcessLauncher(SweepLauncher):
    """Runs jobs in processes of their own, as many at a time as the machine feeds.

    It leaves a completed job alone, resumes an unfinished one and starts a failed one again. It says at once what
    fails, and the other jobs go on.

    Args:
        jobs: how many at a time; None for the cores divided by the threads of a job, and at most four on each GPU.
        retries: how often a job that failed is started again.
        fail_fast: whether the first failure stops the others.
    """

    __module__ = HYDRAS_NAME

    def __init__(self, jobs: int | None = None, retries: int = 0, fail_fast: bool = False) -> None:
        self.jobs, self.retries, self.fail_fast = jobs, retries, fail_fast

    def run(self, source: JobSource, view: SweepView, signals: StopSignals) -> None:
        devices = gpus() if self.config.trainer.accelerator != "cpu" else []
        limit = self.jobs or self._fitting(source, devices)
        view.say(f"{os.path.relpath(view.directory)}: {source.plan()}; {limit} at a time")
        self._prepare(source)
        running: list[Job] = []
        again: list[Job] = []  # failed, to be started once more
        kills = out_of_memory_kills()
        try:
            while True:
                while len(running) < limit and not self._stopping(source, signals):
                    job = again.pop(0) if again else source.next_job()
                    if job is None:
                        break
                    job.gpu = _least_used(devices, running)
                    if self._start(job, source, view):
                        running.append(job)
                if not running:
                    return
                _stop(running, source, everything=self._stopping(source, signals))
                for job, status in wait_for_any(running, POLL):
                    before, kills = kills, out_of_memory_kills()
                    self._end(job, status, kills > before, source, view)
                again += [job for job in running if job.state == "waiting"]
                running = [job for job in running if job.state == "running"]
                view.refresh()
        finally:
            for job in running:  # an error has ended the loop; Python waits for them at the end of this process
                ask_to_stop(job)

    def _fitting(self, source: JobSource, devices: Sequence[str]) -> int:
        """How many jobs this machine feeds at a time."""
        threads = max((job.threads or cores() for job in source.jobs), default=self.config.threads or cores())
        fed = max(1, cores() // threads)
        return min(fed, PER_GPU * len(devices)) if devices else fed

    def _prepare(self, source: JobSource) -> None:
        """Starts the server of the jobs' processes, where there will be any."""
        if not source.is_over():
            waiting = (job for job in source.jobs if job.state == "waiting")
            longest = max(waiting, key=lambda job: job.work, default=self.config)  # the first to start
            start_server(self.command, longest.threads, self.config.portable)

    def _stopping(self, source: JobSource, signals: StopSignals) -> bool:
        """Whether no more jobs are started, and those that run are stopped."""
        return signals.received is not None or (self.fail_fast and any(job.state == "failed" for job in source.jobs))

    def _start(self, job: Job, source: JobSource, view: SweepView) -> bool:
        """Starts a job's process. Returns: False where the machine refuses, which is a failure of the job."""
        if job.note and not job.attempts:
            view.say(f"{job.name}: {job.note}", on_terminal=False)
        view.say(f"started {job.name}" + (f", attempt {job.attempts + 1}" if job.attempts else ""), on_terminal=False)
        job.state = "running"
        job.attempts += 1
        view.refresh()  # the first start waits for the server's imports
        try:
            start(job, self.command, *self.command_line(job))
        except (OSError, EOFError) as error:
            job.state, job.cause = "failed", f"could not be started ({error})"
            view.say(f"failed {job.name}: {job.cause}", "red")
            source.tell(job)
            return False
        return True

    def _end(self, job: Job, status: int, out_of_memory: bool, source: JobSource, view: SweepView) -> None:
        """Judges a job whose process has ended; its state is then `waiting` where it is to be started again."""
        if status == LOST:
            ask_to_stop(job)  # it may run on, unwatched
            with contextlib.suppress(SettingError):
                wait_for(job.path, time.monotonic() + GRACE)
        job.process = None
        asked, job.stop_by = job.stop_by is not None, None
        end_job(job, cause(status, out_of_memory), asked)
        retry = job.state == "failed" and not asked and job.attempts <= self.retries
        if not retry:
            source.tell(job)
        view.say_end(job, asked)
        if retry:
            job.state = "waiting"


def _least_used(devices: Sequence[str], running: Sequence[Job]) -> str | None:
    """The GPU for the next job; None where a job finds the only one by itself, or there is none."""
    used = [job.gpu for job in running]
    return min(devices, key=used.count) if len(devices) > 1 else None


def _stop(running: list[Job], source: JobSource, everything: bool) -> None:
    """Asks jobs to stop, once, because a second signal would end a run without a record; kills those that do not."""
    for job in running:
        if job.stop_by is None and (everything or source.should_stop(job)):
            ask_to_stop(job)
            job.stop_by = time.monotonic() + GRACE
        elif job.stop_by is not None and time.monotonic() > job.stop_by:
            kill(job)
