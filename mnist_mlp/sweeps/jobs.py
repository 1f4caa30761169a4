"""A job of a sweep, the source that a launcher gets jobs from, and how the end of a job is judged and recorded."""

import contextlib
import re
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from mnist_mlp.run.directory import RunDirectory
from mnist_mlp.run.records import last_row, read_record
from mnist_mlp.settings import SettingError, counted


@dataclass
class Job:
    """One job of a sweep: what to run, and how far it is.

    Args:
        name: the overrides that it varies; its directory has this name.
        path: its run directory.
        overrides: the command line of its process, without `run_dir`.
        epochs: how many it takes.
        threads: how many CPU threads it uses; None for as many as there are cores.
        work: multiplications that it takes, up to a factor that all jobs share.
        note: what `sweep.log` says of it before its first start.
    """

    name: str
    path: Path
    overrides: list[str]
    epochs: int
    threads: int | None
    work: float
    note: str = ""
    labels: dict[str, Any] = field(default_factory=dict)  # experiment, model and seed, as its run.json calls them
    state: str = "waiting"  # then running, completed, failed, interrupted or, in a search, pruned
    cause: str = ""  # of a failure
    attempts: int = 0
    gpu: str | None = None
    stop_by: float | None = None  # when it is killed; None until it is asked to stop
    process: BaseProcess | None = None  # while it runs on this machine
    record_time: int | None = None  # when run.json was last written before the job's process started
    log_start: int = 0  # where in train.log the process began to write


class JobSource(Protocol):
    """Where a launcher gets its jobs from: a list that is known from the start, or a search."""

    jobs: list[Job]  # all that are known so far

    def next_job(self) -> Job | None:
        """The next job to start; None where there is none, or none yet."""

    def should_stop(self, job: Job) -> bool:
        """Whether a running job is to be stopped, because its result will not matter."""

    def tell(self, job: Job) -> None:
        """Takes note of a job that has ended, and may change its state."""

    def plan(self) -> str:
        """What there is to do, in a line."""

    def result(self) -> str:
        """What came of it, in a line."""

    def is_over(self) -> bool:
        """Whether the same command would have nothing to do."""


class JobList:
    """A source of jobs that are all known from the start. The longest is the first to start, because a long one that is
    left for the end keeps only one core busy."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self._left = sorted((job for job in jobs if job.state != "completed"), key=lambda job: -job.work)

    def next_job(self) -> Job | None:
        return self._left.pop(0) if self._left else None

    def should_stop(self, job: Job) -> bool:
        return False

    def tell(self, job: Job) -> None:
        pass

    def plan(self) -> str:
        completed = sum(job.state == "completed" for job in self.jobs)
        return f"{counted(len(self.jobs), 'job')}, {completed} of them completed"

    def result(self) -> str:
        states = [job.state for job in self.jobs]
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(["completed", *sorted(states)]))

    def is_over(self) -> bool:
        return all(job.state == "completed" for job in self.jobs)


def end_job(job: Job, cause: str, stopping: bool) -> None:
    """Sets the state and the cause of a job that has ended, and writes its `run.json` where the job could not.

    The state becomes `completed`, `interrupted` or `failed`.

    Args:
        job: the one that has ended.
        cause: why it ended, which is used where it is not completed.
        stopping: whether it was asked to stop.
    """
    job.state = "interrupted" if stopping else "failed"
    try:
        record = read_record(job.path)
    except SettingError as error:
        job.cause = str(error)
        return
    if record.get("status") == "completed":
        job.state = "completed"
        return
    last = _last_line(job)
    job.cause = f"{cause}; train.log ends with: {last}" if last else f"{cause}; nothing in train.log"
    told = record.get("status") in ("failed", "interrupted") and record_time(job) != job.record_time
    if not told and (record or not stopping):  # a job that was stopped before it began its run leaves no record
        with contextlib.suppress(SettingError, OSError), RunDirectory(job.path) as run:
            run.update_record(**job.labels | {"status": job.state, "error": job.cause, "epochs": run.epochs_written()})


def record_time(job: Job) -> int | None:
    """When the job's `run.json` was last written; None where there is none."""
    record = job.path / "run.json"
    return record.stat().st_mtime_ns if record.exists() else None


def last_epoch(job: Job) -> str:
    """How far a job came, as the end of a sentence; empty where it has no epoch."""
    row = last_row(job.path)
    return f" after epoch {row['epoch']:.0f}, validation accuracy {row['val/accuracy']:.2%}" if row else ""


def _last_line(job: Job) -> str:
    """The last line that the job's process wrote to `train.log`, without its date."""
    with contextlib.suppress(OSError), (job.path / "train.log").open("rb") as log:
        log.seek(max(job.log_start, log.seek(0, 2) - 10_000))
        lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        if lines:
            return re.sub(r"^[\d-]+ [\d:,]+ [A-Z]+ [\w.]+: ", "", lines[-1]).strip()
    return ""
