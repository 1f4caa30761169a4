"""`hydra/launcher=submitit_slurm` and `hydra/launcher=ray`: a sweep's jobs on a cluster.

A job is what it is in a sweep on one machine, `mnist-train` in a process of its own with a directory of its own; what
differs is who starts it. Hydra's plugins of these names run jobs inside the sweep's own Hydra, give up at the first
one that leaves no result, and are loaded by every Hydra application of the environment: only their engines are used.
"""

import importlib.util
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mnist_mlp.run.records import read_record
from mnist_mlp.run.signals import STOP_SIGNALS, StopSignals
from mnist_mlp.settings import SettingError
from mnist_mlp.sweeps.launcher import ProcessLauncher, end_job, run_here, say_end, users_environment
from mnist_mlp.sweeps.search import Search
from mnist_mlp.sweeps.view import Job, SweepView

POLL = 0.5  # seconds between two looks at the signals and the jobs' records
SLURM_POLL = 5.0  # seconds between two questions to Slurm, which serves others too
SHARED_DISK = 60.0  # seconds until what a node has written is surely seen from here
SLURM_COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol")
SLURM_RUNS = ("PENDING", "RUNNING", "REQUEUED", "COMPLETING", "SUSPENDED", "RESIZING", "PREEMPTED")  # not ended yet


class ClusterLauncher(ProcessLauncher):
    """Hands the jobs of a sweep to a cluster, which has its own queue, and waits for them."""

    __module__ = ProcessLauncher.__module__

    @abstractmethod
    def submit(self, jobs: list[Job], directory: Path) -> str:
        """Hands the jobs over; what to tell of that.

        Raises:
            SettingError: the cluster refuses them.
        """

    @abstractmethod
    def ended(self, jobs: list[Job]) -> Iterable[tuple[Job, str]]:
        """Those that are not on the cluster any more, each with what the cluster says of its end."""

    @abstractmethod
    def cancel(self, jobs: list[Job]) -> None:
        """Stops those that run at their next optimizer step, and takes the others out of the queue."""

    def _run(self, jobs: list[Job], directory: Path, search: Search | None) -> None:
        assert search is None  # `settings` refuses one here, because a cluster's queue would have to be fed as it goes
        left = [job for job in jobs if job.state != "completed"]
        with StopSignals() as signals, SweepView(jobs, directory) as view:
            view.say(f"{os.path.relpath(directory)}: {len(jobs)} jobs, {len(jobs) - len(left)} of them completed")
            if left:
                view.say(self.submit(left, directory))
            stopping = False
            while left:
                if signals.received and not stopping:
                    stopping = True
                    self.cancel(left)
                for job, cause in self.ended(left):
                    end_job(job, cause, stopping)
                    say_end(job, stopping, view)
                    ProcessLauncher.failed |= job.state == "failed"
                left = [job for job in left if job.state in ("waiting", "running")]
                for job in left:
                    job.state = "running" if read_record(job.path).get("status") == "running" else "waiting"
                view.refresh()
                time.sleep(POLL)
            self._summarise(jobs, view, signals, None)
        if signals.received:
            sys.exit(128 + signals.received)


class SlurmLauncher(ClusterLauncher):
    """Submits the jobs as one array, with submitit, which queues again what Slurm preempts or what runs out of time.

    Args:
        submitit_folder: where submitit keeps its own files and the output of each job's Slurm step.
        max_num_timeout: how often a job that runs out of time is queued again.
        parameters: of submitit's executor.
    """

    __module__ = ProcessLauncher.__module__

    def __init__(self, submitit_folder: str, max_num_timeout: int, **parameters: Any) -> None:
        super().__init__()
        self.executor = _executor(submitit_folder, max_num_timeout, parameters)
        self.ids: dict[str, str] = {}  # a job's name -> Slurm's
        self.unseen: dict[str, float] = {}  # a job's name -> since when it has ended well without a record of that
        self.looked = 0.0

    @staticmethod
    def check(config: DictConfig) -> None:
        """Raises: SettingError, where Slurm could not run the jobs of a sweep, or still has some of it."""
        if importlib.util.find_spec("submitit") is None:
            raise _refused("submitit_slurm", "needs another package: pip install 'mnist-mlp[slurm]'")
        for command in SLURM_COMMANDS:
            if shutil.which(command) is None:
                problem = f"there is no {command} on this machine: start the sweep where Slurm's commands are"
                raise _refused("submitit_slurm", problem)
        accounting = _ask("sacct", "--noheader", "--allocations", "--starttime=now")
        if accounting.returncode:
            problem = f"Slurm's accounting is off or out of reach ({_said(accounting)}): without it nothing tells of a "
            raise _refused("submitit_slurm", f"{problem}job that was killed; have slurmdbd running, or leave this out")
        parameters: Any = OmegaConf.to_container(config.hydra.launcher, resolve=True)
        del parameters["_target_"]
        folder = Path(parameters.pop("submitit_folder"))
        executor = _executor(str(folder), parameters.pop("max_num_timeout"), parameters)
        # What Slurm knows better: partitions, accounts, limits, and how many devices there are.
        script = executor._make_submission_file_text("true", "check")
        test = _ask("sbatch", "--test-only", stdin=script)
        if test.returncode:
            if "partition" in test.stderr and parameters["partition"] is not None:
                there = ", ".join(_ask("sinfo", "--noheader", "--format=%R").stdout.split())
                problem = f"Slurm refuses it ({_said(test)}): choose one of {there}"
                raise SettingError("hydra.launcher.partition", parameters["partition"], problem)
            problem = f"Slurm refuses such a job ({_said(test)}): change the hydra.launcher setting that asks for it"
            raise _refused("submitit_slurm", problem)
        queued = set(_ask("squeue", "--me", "--noheader", "--format=%F").stdout.split())
        if ours := sorted({path.name.partition("_")[0] for path in folder.parent.glob("*")} & queued):
            problem = f"its jobs are in Slurm's queue: wait for them, or scancel {' '.join(ours)}"
            raise SettingError("sweep", config.sweep, problem)

    def submit(self, jobs: list[Job], directory: Path) -> str:
        arguments, logs = zip(*(self.command_line(job) for job in jobs), strict=True)
        try:
            with users_environment():
                handles = self.executor.map_array(SlurmJob(self.command), arguments, logs)
        except Exception as error:  # submitit's own, with what sbatch printed
            raise _refused("submitit_slurm", f"Slurm refuses the jobs ({' '.join(str(error).split())})") from error
        self.ids = {job.name: handle.job_id for job, handle in zip(jobs, handles, strict=True)}
        array = handles[0].job_id.partition("_")[0]
        return f"submitted to Slurm as job {array}; they go on there when this process is killed"

    def ended(self, jobs: list[Job]) -> Iterable[tuple[Job, str]]:
        if time.monotonic() - self.looked < SLURM_POLL:
            return
        self.looked = time.monotonic()
        queue = _ask("squeue", "--me", "--noheader", "--array", "--format=%i")
        gone = [job for job in jobs if self.ids[job.name] not in queue.stdout.split()]
        if queue.returncode or not gone:  # Slurm may be restarting
            return
        asked = f"--jobs={','.join(self.ids[job.name] for job in gone)}"
        answer = _ask("sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State", asked)
        states = dict(line.split("|") for line in answer.stdout.splitlines())
        for job in gone:
            state = states.get(self.ids[job.name], "RUNNING")  # accounting comes some seconds later
            if state.partition(" ")[0] in SLURM_RUNS:
                continue
            unseen = state == "COMPLETED" and read_record(job.path).get("status") != "completed"
            if unseen and time.monotonic() - self.unseen.setdefault(job.name, time.monotonic()) < SHARED_DISK:
                continue
            yield job, f"Slurm says {state}"

    def cancel(self, jobs: list[Job]) -> None:
        _ask("scancel", *(self.ids[job.name] for job in jobs))


class SlurmJob:
    """What Slurm runs: a job that, stopped by a signal, is queued again, unless it is Slurm that takes it away."""

    def __init__(self, command: Callable[[], None]) -> None:
        self.command = command

    def __call__(self, arguments: Sequence[str], log: Path) -> None:
        from submitit import JobEnvironment

        logging.getLogger("submitit").propagate = False  # it has a handler of its own: train.log says it once
        try:
            run_here(self.command, list(arguments), log)
        except SystemExit as end:
            # A job that is cancelled, or that Slurm itself queues again, is COMPLETING by now. One that Slurm asks to
            # go, since its time is almost up or another needs its place, is RUNNING, and would be FAILED by leaving.
            state = _ask("squeue", "--noheader", f"--jobs={JobEnvironment().job_id}", "--format=%T").stdout.strip()
            if end.code in [128 + signum for signum in STOP_SIGNALS] and state == "RUNNING":
                signal.raise_signal(signal.Signals[f"SIG{JobEnvironment.USR_SIG}"])  # submitit's handler queues it
            raise

    def checkpoint(self, arguments: Sequence[str], log: Path) -> Any:
        """What submitit runs in the job's next turn: the same, which goes on where this stopped."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, arguments, log)


class RayLauncher(ClusterLauncher):
    """Runs each job as a task of Ray.

    Args:
        ray: the arguments of `ray.init` under `init`, those of `ray.remote` under `remote`.
    """

    __module__ = ProcessLauncher.__module__

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
        if importlib.util.find_spec("ray") is None:
            raise _refused("ray", "needs another package: pip install 'mnist-mlp[ray]'")
        import ray

        arguments: Any = OmegaConf.to_container(config.hydra.launcher.ray, resolve=True)
        address = arguments["init"].get("address")
        try:
            if port := re.search(r"([^/:]+):(\d+)$", address or ""):  # Ray itself would try for many minutes
                socket.create_connection((port[1], int(port[2])), timeout=10).close()
            with users_environment():
                ray.init(**arguments["init"])
        except Exception as error:  # ConnectionError, ValueError and others
            said = " ".join(str(error).split())
            problem = f"Ray is out of reach ({said}): give the address of a running head, or null"
            raise SettingError("hydra.launcher.ray.init.address", address, problem) from error
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for setting, resource in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
            wanted, most = arguments["remote"].get(setting) or 0, max(node.get(resource, 0) for node in nodes)
            if wanted > most:
                raise SettingError(f"hydra.launcher.ray.remote.{setting}", wanted, f"no node of Ray has over {most:g}")

    def submit(self, jobs: list[Job], directory: Path) -> str:
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
    """One job, in a worker of Ray's, which takes no other. Returns: its exit status."""
    os.chdir(directory)
    try:
        run_here(command, arguments, log)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _executor(folder: str, max_num_timeout: int, parameters: dict[str, Any]) -> Any:
    """submitit's, for Slurm. Its parameters have one name on every cluster, or are Slurm's own."""
    from submitit import SlurmExecutor

    executor = SlurmExecutor(folder, max_num_timeout=max_num_timeout)
    given = {name: value for name, value in parameters.items() if value is not None}
    executor.update_parameters(**executor._convert_parameters(given))
    return executor


def _ask(*command: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def _said(done: "subprocess.CompletedProcess[str]") -> str:
    """The last line of what went wrong, less who says so."""
    *_, last = (done.stderr or done.stdout).splitlines() or [f"exit status {done.returncode}"]
    return re.sub(r"^(\w+: error: |allocation failure: )+", "", last.strip())


def _refused(launcher: str, problem: str) -> SettingError:
    return SettingError("hydra/launcher", launcher, problem)
