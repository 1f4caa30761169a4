"""`hydra/launcher=submitit_slurm`: the jobs of a sweep as one job array of Slurm."""

import logging
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mnist_mlp.run.records import read_record
from mnist_mlp.run.signals import STOP_SIGNALS
from mnist_mlp.settings import SettingError
from mnist_mlp.surroundings import one_line
from mnist_mlp.sweeps.cluster import ClusterLauncher, is_installed, refused
from mnist_mlp.sweeps.jobs import Job
from mnist_mlp.sweeps.launcher import HYDRAS_NAME
from mnist_mlp.sweeps.process import run_here, users_environment

SLURM_POLL = 5.0  # seconds between two questions to Slurm, which serves others too
SHARED_DISK = 60.0  # seconds until what a node has written is surely seen from here
SLURM_COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol")
SLURM_RUNS = ("PENDING", "RUNNING", "REQUEUED", "COMPLETING", "SUSPENDED", "RESIZING", "PREEMPTED")  # not ended yet


class SlurmLauncher(ClusterLauncher):
    """Submits the jobs as one array, with submitit. A job that Slurm preempts or that runs out of time is queued again.

    Args:
        submitit_folder: where submitit keeps its own files and the output of each job's Slurm step.
        max_num_timeout: how often a job that runs out of time is queued again.
        parameters: of submitit's executor.
    """

    __module__ = HYDRAS_NAME

    def __init__(self, submitit_folder: str, max_num_timeout: int, **parameters: Any) -> None:
        super().__init__()
        self.executor = _executor(submitit_folder, max_num_timeout, parameters)
        self.ids: dict[str, str] = {}  # a job's name -> Slurm's
        self.unseen: dict[str, float] = {}  # a job's name -> since when it has ended well without a record of that
        self.looked = 0.0

    @staticmethod
    def check(config: DictConfig) -> None:
        """Raises: SettingError, where Slurm could not run the jobs of a sweep, or still has some of them."""
        gpus = config.hydra.launcher.gpus_per_node
        if gpus is None and config.trainer.accelerator in ("gpu", "cuda"):
            problem = "Slurm hides every GPU from a job that has not asked for it: give 1, or 0 where yours does not"
            raise SettingError("hydra.launcher.gpus_per_node", gpus, problem)
        if not is_installed("submitit"):
            raise refused("submitit_slurm", "needs another package: pip install 'mnist-mlp[slurm]'")
        for command in SLURM_COMMANDS:
            if shutil.which(command) is None:
                problem = f"there is no {command} on this machine: start the sweep where Slurm's commands are"
                raise refused("submitit_slurm", problem)
        accounting = _ask("sacct", "--noheader", "--allocations", "--starttime=now")
        if accounting.returncode:
            problem = f"Slurm's accounting is off or out of reach ({_said(accounting)}): without it nothing tells of a "
            raise refused("submitit_slurm", f"{problem}job that was killed; have slurmdbd running, or leave this out")
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
            raise refused("submitit_slurm", problem)
        queued = set(_ask("squeue", "--me", "--noheader", "--format=%F").stdout.split())
        if ours := sorted({path.name.partition("_")[0] for path in folder.parent.glob("*")} & queued):
            problem = f"its jobs are in Slurm's queue: wait for them, or scancel {' '.join(ours)}"
            raise SettingError("sweep", config.sweep, problem)

    def submit(self, jobs: list[Job]) -> str:
        arguments, logs = zip(*(self.command_line(job) for job in jobs), strict=True)
        try:
            with users_environment():
                handles = self.executor.map_array(SlurmJob(self.command), arguments, logs)
        except Exception as error:  # submitit's own, with what sbatch printed
            raise refused("submitit_slurm", f"Slurm refuses the jobs ({one_line(error)})") from error
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
    """What Slurm runs: a job, which is queued again where a signal stops it, unless Slurm itself takes it away."""

    def __init__(self, command: Callable[[], None]) -> None:
        self.command = command

    def __call__(self, arguments: Sequence[str], log: Path) -> None:
        from submitit import JobEnvironment  # here, because it may not be installed

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
        """What submitit runs in the job's next turn: the same job, which goes on where this turn stopped."""
        from submitit.helpers import DelayedSubmission  # as above

        return DelayedSubmission(self, arguments, log)


def _executor(folder: str, max_num_timeout: int, parameters: dict[str, Any]) -> Any:
    """submitit's executor for Slurm. A parameter has the name that it has on every cluster, or Slurm's own."""
    from submitit import SlurmExecutor  # here, because it may not be installed

    executor = SlurmExecutor(folder, max_num_timeout=max_num_timeout)
    given = {name: value for name, value in parameters.items() if value is not None}
    executor.update_parameters(**executor._convert_parameters(given))
    return executor


def _ask(*command: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def _said(done: "subprocess.CompletedProcess[str]") -> str:
    """The last line of what a command said went wrong, without the name of the command."""
    *_, last = (done.stderr or done.stdout).splitlines() or [f"exit status {done.returncode}"]
    return re.sub(r"^(\w+: error: |allocation failure: )+", "", last.strip())
