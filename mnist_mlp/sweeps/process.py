"""The process of a job on this machine: how it is started and stopped, and what it runs.

The processes are forked, one for each job, from a server that has imported what a run needs and has done nothing else:
the seconds that PyTorch and Lightning take to import are spent once.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path

from mnist_mlp.run.process import prepare_process
from mnist_mlp.run.signals import STOP_SIGNALS
from mnist_mlp.settings import FULL_ERROR
from mnist_mlp.sweeps.jobs import Job

GRACE = 10.0  # seconds that a job which was asked to stop may take for its current optimizer step
LOST = 255  # what multiprocessing gives for the exit status of a process whose server has gone
HELD_BACK = set(STOP_SIGNALS) - {signal.SIGINT}  # from the server
PRELOADED = ["mnist_mlp.tensorboard.events", "mnist_mlp.run.provenance"]

Command = Callable[[], None]


def start_server(command: Command, threads: int | None, portable: bool) -> None:
    """Starts the server, which imports meanwhile what the jobs need; `command` is what they will run. The others are as
    `prepare_process` takes them."""
    prepare_process(threads, portable)
    with users_environment():
        # A killed job leaves a lock of tqdm's, which Python would tell the user of at the end.
        ignored = ["ignore:resource_tracker:UserWarning", *filter(None, [os.environ.get("PYTHONWARNINGS")])]
        os.environ["PYTHONWARNINGS"] = ",".join(reversed(ignored))
        # Whether there is a GPU is asked of its driver's library: CUDA itself, once started here, fails in every fork.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        os.environ["PYTHONSAFEPATH"] = "1"  # the server would import a random.py of the working directory's
        multiprocessing.get_context("forkserver").set_forkserver_preload([*PRELOADED, command.__module__])
        # The server outlives what stops the sweep and reaches it as well, from a terminal or `timeout`: only it knows
        # how the jobs end. It ignores Ctrl-C; the others wait, so that none is lost to this process or to a job.
        resource_tracker.ensure_running()  # else the server starts it, and it lets signals through again
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        forkserver.ensure_running()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
        signal.signal(signal.SIGINT, interrupt)


@contextlib.contextmanager
def users_environment() -> Iterator[None]:
    """While this is open, `os.environ` is what the user gave, without what this process has added for itself."""
    environment = dict(os.environ)
    if not FULL_ERROR:
        os.environ.pop("HYDRA_FULL_ERROR", None)  # of `one_sentence`
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)


def start(job: Job, command: Command, arguments: list[str], log: Path) -> None:
    """Starts the process of a job.

    Raises:
        OSError, EOFError: the machine has no room for it, or the server was killed.
    """
    processes = multiprocessing.get_context("forkserver")
    job.process = processes.Process(target=_run_job, args=(command, arguments, log, job.gpu), name=job.name)
    job.process.start()


def wait_for_any(jobs: Sequence[Job], timeout: float) -> list[tuple[Job, int]]:
    """Waits until the process of one of the jobs ends, or the timeout is over.

    Returns:
        Each job whose process has ended, with the exit status.
    """
    processes = [(job, job.process) for job in jobs if job.process is not None]
    connection.wait([process.sentinel for _, process in processes], timeout)
    return [(job, process.exitcode) for job, process in processes if process.exitcode is not None]


def ask_to_stop(job: Job) -> None:
    """Stops a job as Ctrl-C stops a run: it ends at its next optimizer step, and can be resumed."""
    assert job.process is not None
    assert job.process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.kill(job.process.pid, signal.SIGTERM)


def kill(job: Job) -> None:
    """Ends a job's process and what it has started, at once."""
    assert job.process is not None
    assert job.process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.process.pid, signal.SIGKILL)


def cause(status: int, out_of_memory: bool) -> str:
    """What ended a process with this exit status.

    Args:
        status: minus the signal's number where a signal ended it.
        out_of_memory: whether the system has killed processes meanwhile for lack of memory.
    """
    if status >= 0:
        return f"exit status {status}"
    by_system = " by the system, which was out of memory" if -status == signal.SIGKILL and out_of_memory else ""
    return f"killed by {signal.Signals(-status).name}{by_system}"


def _run_job(command: Command, arguments: list[str], log: Path, gpu: str | None) -> None:
    """One job, in its own process: `mnist-train` with these arguments."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C then reaches the sweep's process only, which asks the jobs to stop
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    threading.Thread(target=_stop_without_parent, daemon=True).start()
    run_here(command, arguments, log)


def run_here(command: Command, arguments: list[str], log: Path) -> None:
    """`mnist-train` with these arguments, in this process, which does nothing else; its output goes to `log`."""
    # At the level of the system: train.log then has also what no handler of Python's catches.
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for descriptor, stream in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(descriptor, stream)
    sys.argv[1:] = arguments
    command()


def _stop_without_parent() -> None:
    """Ends this process, resumably, when the sweep's process has gone, however that ended."""
    sweep = multiprocessing.parent_process()
    assert sweep is not None
    sweep.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)
