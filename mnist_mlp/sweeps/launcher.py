"""`hydra/launcher=process`: a sweep's jobs side by side, each in a fresh process that is watched from here.

They are forked, one for each job, from a server that has imported what a run needs and has done nothing else: the
seconds that PyTorch and Lightning take to import are spent once.
"""

import contextlib
import hashlib
import importlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from multiprocessing import forkserver
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from mnist_mlp.run.directory import RunDirectory
from mnist_mlp.run.identity import PLACES, fingerprint, other_settings, was_run_with
from mnist_mlp.run.records import last_row, read_record
from mnist_mlp.run.signals import StopSignals
from mnist_mlp.settings import (
    FULL_ERROR,
    SettingError,
    check_accelerator,
    end,
    load_yaml,
    refuse_derived,
    settle,
    without_hydra,
)
from mnist_mlp.sweeps.search import Search
from mnist_mlp.sweeps.study import STUDY
from mnist_mlp.sweeps.table import RememberSweep
from mnist_mlp.sweeps.view import Job, SweepView

GRACE = 10.0  # seconds that a job which was asked to stop may take for its current optimizer step
LOST = 255  # what multiprocessing gives for the exit status of a process whose server has gone
POLL = 0.05  # seconds between two looks at the processes
LONGEST_NAME = 200  # bytes of a directory's name; file systems take 255
PRELOADED = ["mnist_mlp.tensorboard.events", "mnist_mlp.run.provenance"]


class ProcessLauncher(Launcher):
    """Runs jobs in processes of their own, as many at a time as the machine feeds.

    A completed job is left alone, an unfinished one resumed, a failed one started again. What fails is said at once,
    and the others go on. A search for settings gives the jobs one after the other, and says which to stop.

    Args:
        jobs: how many at a time; None for the cores divided by the threads of a job, or one for each of several GPUs.
        retries: how often a job that failed is started again.
        fail_fast: whether the first failure stops the others.
    """

    __module__ = "hydra_plugins.mnist_mlp"  # where `register` puts it

    command: ClassVar["staticmethod[[], None]"]  # what a job runs: `register` is given it
    failed: ClassVar[bool] = False  # whether a job of this process's sweep did

    def __init__(self, jobs: int | None = None, retries: int = 0, fail_fast: bool = False) -> None:
        self.jobs, self.retries, self.fail_fast = jobs, retries, fail_fast
        self.processes = multiprocessing.get_context("forkserver")

    @staticmethod
    def check(config: DictConfig) -> None:
        """Raises: SettingError, where this machine cannot run the jobs of a sweep, by what they share."""
        check_accelerator(config.trainer.accelerator)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs, the largest first; or the trials of a search, whose base the only job is.

        Returns:
            For each job `run.json`, where it completed. Of the others `failed` tells: Hydra would stop at the first.

        Raises:
            SettingError: before anything has started: a job's setting cannot be used, or differs from those that its
                directory was run with; or another process is at work on the sweep.
            SystemExit: a signal stopped the sweep, with the status that a shell gives it.
        """
        directory = Path(self.config.hydra.sweep.dir).absolute()
        sweep = FileLock(directory / ".lock")
        try:
            sweep.acquire(timeout=0)
        except Timeout as error:
            raise SettingError(
                "sweep", directory, "is in use by another process: wait, or give another name"
            ) from error
        try:
            if self.config.get("search"):
                jobs = []
                search = Search(self.config, self.hydra_context.config_loader, job_overrides[0], directory)
            elif (directory / STUDY).exists():
                raise SettingError("sweep", os.path.relpath(directory), "holds a search: give the sweep another name")
            else:
                jobs = self._prepare(job_overrides, initial_job_idx, directory)
                search = None
            RememberSweep.directory = directory
            self._run(jobs, directory, search)
        finally:
            sweep.release()
        return [
            JobReturn(
                overrides=job.overrides,
                working_dir=str(job.path),
                task_name="train",
                status=JobStatus.COMPLETED,
                _return_value=read_record(job.path) if job.state == "completed" else None,
            )
            for job in jobs
        ]

    def _prepare(self, job_overrides: Sequence[Sequence[str]], first: int, directory: Path) -> list[Job]:
        """Every job with its directory, looked at before the first one starts.

        Raises:
            SettingError: as for `launch`.
        """
        composed = (
            self._compose(overrides, number, directory) for number, overrides in enumerate(job_overrides, first)
        )
        found = {job.path: (job, config) for job, config in composed}
        if len(found) < len(job_overrides):
            raise SettingError("sweep", directory, "two jobs have the same directory: give each value once")
        # A job that an earlier command called otherwise, since that one varied fewer or more settings, stays there.
        others = [path.parent for path in directory.glob("*/config.yaml") if path.parent not in found]
        if others and any(not path.exists() for path in found):
            places = {fingerprint(load_yaml(path / "config.yaml", "run_dir")): path for path in others}
            for job, config in found.values():
                if not job.path.exists():
                    job.path = places.get(fingerprint(config), job.path)
        deadline = time.monotonic() + 2 * GRACE
        for job, config in found.values():
            _look_into(job, config, deadline)
        return [job for job, _ in found.values()]

    def _compose(
        self, overrides: Sequence[str], number: int, directory: Path, name: str | None = None
    ) -> tuple[Job, DictConfig]:
        """A job and its settings; its directory has a name of its own, or the one that Hydra gives it."""
        given = OmegaConf.to_container(self.config.hydra.overrides.hydra)
        assert isinstance(given, list)
        from_hydra = [override for override in given if not override.startswith("hydra.mode=")]
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
            config.hydra.job.override_dirname = directory_name(config.hydra.job.override_dirname)
        HydraConfig.instance().set_config(config)  # what ${hydra:...} looks at
        name = name or str(config.hydra.sweep.subdir) or "run"
        path = directory / name
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
                f"sweep={_quoted(str(settings.sweep))}",
                *from_hydra,
                *(quiet if config.hydra.runtime.choices["hydra/job_logging"] == "run" else []),
            ],
            settings.trainer.max_epochs,
            settings.threads,
            settings.trainer.max_epochs * sum(one * other for one, other in pairwise([784, *widths, 10])),
        )
        return job, settings

    def _ask(self, search: Search, number: int, directory: Path, view: SweepView) -> Job | None:
        """The next trial of a search as a job, `completed` where only the search does not know it yet."""
        trial = search.ask()
        if trial is None:
            return None
        job, config = self._compose([*search.base, *trial.overrides], number, directory, trial.name)
        _look_into(job, config, time.monotonic() + 2 * GRACE)
        view.say(f"{trial.name}: {' '.join(trial.overrides)}", on_terminal=False)
        return job

    def _run(self, jobs: list[Job], directory: Path, search: Search | None) -> None:
        gpus = _gpus() if self.config.trainer.accelerator != "cpu" else []
        most_threads = max((job.threads or _cores() for job in jobs), default=self.config.threads or _cores())
        limit = self.jobs or (len(gpus) if len(gpus) > 1 else max(1, _cores() // most_threads))
        # The longest first: one that is left for the end keeps a single core busy.
        waiting = sorted((job for job in jobs if job.state != "completed"), key=lambda job: -job.work)
        running: list[Job] = []
        ooms = _oom_kills()
        if waiting or search:
            self._start_server(waiting[0].threads if waiting else self.config.threads)
        try:
            with StopSignals() as signals, SweepView(jobs, directory) as view:
                so_far = f"{len(jobs)} jobs, {len(jobs) - len(waiting)} of them completed"
                view.say(f"{os.path.relpath(directory)}: {search.progress() if search else so_far}; {limit} at a time")
                while True:
                    stopping = signals.received or (ProcessLauncher.failed and self.fail_fast)
                    if stopping:
                        waiting.clear()
                    while search and not stopping and len(running) + len(waiting) < limit:
                        trial = self._ask(search, len(jobs), directory, view)
                        if trial is None:
                            break
                        jobs.append(trial)
                        if trial.state == "completed":
                            search.tell(trial)
                        else:
                            waiting.append(trial)
                    if not running and not waiting:
                        break
                    for job in running:
                        if job.stop_by is None and (stopping or (search and search.is_hopeless(job))):
                            _send(job, signal.SIGTERM)  # once: the second one would end it without a record
                            job.stop_by = time.monotonic() + GRACE
                    while waiting and len(running) < limit and not signals.received:
                        job = waiting.pop(0)
                        if len(gpus) > 1:
                            used = [other.gpu for other in running]
                            job.gpu = min(gpus, key=used.count)
                        again = f", attempt {job.attempts + 1}" if job.attempts else ""
                        view.say(f"started {job.name}{again}", on_terminal=False)
                        job.state = "running"
                        view.refresh()  # the first start waits for the server's imports
                        if self._start(job):
                            running.append(job)
                        else:
                            ProcessLauncher.failed = True
                            view.say(f"failed {job.name}: {job.cause}", "red")
                            if search:
                                search.tell(job)
                    for job in running:
                        if job.stop_by is not None and time.monotonic() > job.stop_by:
                            _send(job, signal.SIGKILL)
                        assert job.process is not None
                        if job.process.exitcode is None:
                            continue
                        cause = _cause(job.process.exitcode, out_of_memory=_oom_kills() > ooms)
                        if job.process.exitcode == LOST:
                            _send(job, signal.SIGTERM)  # it may run on, unwatched
                            with contextlib.suppress(SettingError):
                                _wait_for(job.path, time.monotonic() + GRACE)
                        asked = job.stop_by is not None
                        end_job(job, cause, asked)
                        ooms = _oom_kills()
                        retry = job.state == "failed" and not asked and job.attempts <= self.retries
                        if search and not retry:
                            search.tell(job)
                        say_end(job, asked, view)
                        if retry:
                            job.state = "waiting"
                            waiting.insert(0, job)
                        elif job.state == "failed":
                            ProcessLauncher.failed = True
                    running = [job for job in running if job.state == "running"]
                    view.refresh()
                    time.sleep(POLL)
                self._summarise(jobs, view, signals, search)
        finally:
            for job in running:  # where an error ended the loop; at the end of this process they are waited for
                _send(job, signal.SIGTERM)
        if signals.received:
            sys.exit(128 + signals.received)

    def _start_server(self, threads: int | None) -> None:
        """Starts the process that the jobs' are forked from, which imports what they need meanwhile."""
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is first imported
        with users_environment():
            # A killed job leaves a lock of tqdm's, which Python would tell the user of at the end.
            ignored = ["ignore:resource_tracker:UserWarning", *filter(None, [os.environ.get("PYTHONWARNINGS")])]
            os.environ["PYTHONWARNINGS"] = ",".join(reversed(ignored))
            self.processes.set_forkserver_preload([*PRELOADED, self.command.__module__])
            # The server's from now on: Ctrl-C reaches it as well.
            interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
            forkserver.ensure_running()
            signal.signal(signal.SIGINT, interrupt)

    def _start(self, job: Job) -> bool:
        """Starts a job's process; False, with the job's cause, where the machine refuses."""
        job.attempts += 1
        try:
            arguments, log = self.command_line(job)
            job.process = self.processes.Process(
                target=_run_job, args=(self.command, arguments, log, job.gpu), name=job.name
            )
            job.process.start()
        except (OSError, EOFError) as error:  # no room for it, or its server was killed
            job.state, job.cause = "failed", f"could not be started ({error})"
            return False
        return True

    def command_line(self, job: Job) -> tuple[list[str], Path]:
        """What `run_here` takes to run the job: its arguments, and its `train.log`, which is there from now on.

        Raises:
            OSError: the job's directory cannot be written.
        """
        sources = {source.provider: source for source in self.config.hydra.runtime.config_sources}
        main, command_line = sources["main"], sources.get("command-line")
        arguments = [
            *("--config-path", main.path if main.schema == "file" else f"{main.schema}://{main.path}"),
            *("--config-name", self.config.hydra.job.config_name),
            *(["--config-dir", command_line.path] if command_line else []),
            *job.overrides,
            f"run_dir={_quoted(str(job.path))}",
        ]
        job.path.mkdir(parents=True, exist_ok=True)
        log = job.path / "train.log"
        log.touch()
        job.log_start, job.record_time = log.stat().st_size, _record_time(job)
        return arguments, log

    def _summarise(self, jobs: list[Job], view: SweepView, signals: StopSignals, search: Search | None) -> None:
        states = [job.state for job in jobs]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(["completed", *sorted(states)]))
        why = f"stopped by {signals.received.name}: " if signals.received else ""
        done = search.is_over() if search else set(states) == {"completed"}
        resumable = "" if done else f"; the same command with sweep={self.config.sweep} goes on"
        view.say(f"{why}{search.progress() if search else counts}{resumable}")


class CheckLauncher(Callback):
    """Hydra callback: a sweep that its launcher cannot run is refused before Hydra makes its directory."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        launcher = Plugins.instance().class_name_to_class.get(config.hydra.launcher._target_)
        try:
            getattr(launcher, "check", ProcessLauncher.check)(config)  # another launcher's jobs run here too
        except SettingError as error:
            end(error)


def register(command: Callable[[], None], *launchers: type[ProcessLauncher]) -> None:
    """Makes launchers known to Hydra, in this process; each of their jobs runs `command`.

    Hydra takes launchers from the package `hydra_plugins` alone, and one that was installed there would be loaded by
    every Hydra application of the environment.
    """
    plugins = Plugins.instance()  # before the package is there, which it looks for
    try:
        package = importlib.import_module("hydra_plugins")  # there where another plugin is installed
    except ImportError:
        package = sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    module = ModuleType(ProcessLauncher.__module__)
    setattr(package, module.__name__.rpartition(".")[2], module)
    for launcher in launchers:
        plugins.register(launcher)
        setattr(module, launcher.__name__, launcher)
        launcher.command = staticmethod(command)


def directory_name(name: str) -> str:
    """A name that is one directory's, whatever values are in it: no slashes, and not too long for a file system."""
    name = re.sub(r"[/\\\0\n]", "_", name)
    encoded = name.encode()
    if len(encoded) <= LONGEST_NAME:
        return name
    return f"{encoded[: LONGEST_NAME - 13].decode(errors='ignore')},{hashlib.sha256(encoded).hexdigest()[:12]}"


def _quoted(value: str) -> str:
    """A text as a value on Hydra's command line."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{trailing * chr(92)}'"


@contextlib.contextmanager
def users_environment() -> Iterator[None]:
    """While this is open, `os.environ` is for a job's process: without what this one has added for itself."""
    environment = dict(os.environ)
    if not FULL_ERROR:
        os.environ.pop("HYDRA_FULL_ERROR", None)  # of `one_sentence`
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)


def _look_into(job: Job, config: DictConfig, deadline: float) -> None:
    """Sets the state of a job that is completed already.

    Raises:
        SettingError: it was run with other settings, or is being run.
    """
    record = read_record(job.path)
    if record.get("status") == "completed" or (job.path / "checkpoints" / "last.ckpt").exists():
        differing = other_settings(load_yaml(job.path / "config.yaml", "run_dir"), config)
        if differing:
            # More epochs too: left out of a command by mistake, they would change every completed job.
            problem = f"{was_run_with(differing)}: keep that, or give another sweep"
            raise SettingError("run_dir", os.path.relpath(job.path), problem)
    if record.get("status") == "completed":
        job.state = "completed"
    elif record.get("status") == "running":
        _wait_for(job.path, deadline)


def _wait_for(path: Path, deadline: float) -> None:
    """Waits until what a killed sweep has left running in `path` has stopped itself.

    Raises:
        SettingError: it is still running at the deadline: nothing that was told to stop.
    """
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=max(0, deadline - time.monotonic()))
    except Timeout as error:
        raise SettingError(
            "run_dir", os.path.relpath(path), "is in use by another process: stop it, or wait"
        ) from error
    lock.release()


def _cores() -> int:
    """The processors that this process may use: its affinity, and the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError, IndexError):  # another system, an older kernel, or no quota ("max")
        group = Path("/proc/self/cgroup").read_text().partition("0::")[2].splitlines()[0]
        for path in (Path("/sys/fs/cgroup", group.strip("/")), Path("/sys/fs/cgroup")):
            if (path / "cpu.max").exists():
                quota, period = (path / "cpu.max").read_text().split()
                cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _gpus() -> list[str]:
    """The CUDA devices that PyTorch will find, without importing it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device]
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []


def _oom_kills() -> int:
    """How many processes of this machine the kernel has killed for lack of memory; 0 where it does not say."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^oom_kill (\d+)", Path("/proc/vmstat").read_text(), re.MULTILINE):
            return int(found[1])
    return 0


def _send(job: Job, signum: signal.Signals) -> None:
    """To the process alone, which stops as a run does; SIGKILL also to what it has started."""
    assert job.process is not None
    assert job.process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        if signum == signal.SIGKILL:
            os.killpg(job.process.pid, signum)
        else:
            os.kill(job.process.pid, signum)


def _record_time(job: Job) -> int | None:
    record = job.path / "run.json"
    return record.stat().st_mtime_ns if record.exists() else None


def _cause(status: int, out_of_memory: bool) -> str:
    """What ended a process with this exit status."""
    if status >= 0:
        return f"exit status {status}"
    by_system = " by the system, which was out of memory" if -status == signal.SIGKILL and out_of_memory else ""
    return f"killed by {signal.Signals(-status).name}{by_system}"


def end_job(job: Job, cause: str, stopping: bool) -> None:
    """Sets the state and the cause of a job that has ended, and its `run.json` where the job could not.

    Args:
        job: is then completed; or interrupted, where it was asked to stop; or failed.
        cause: of its end, where it is not completed.
        stopping: whether it was asked to stop.
    """
    job.state = "interrupted" if stopping else "failed"
    try:
        record = read_record(job.path)
    except SettingError as error:
        job.cause = str(error)
    else:
        if record.get("status") == "completed":
            job.state = "completed"
        else:
            last = _last_line(job)
            job.cause = f"{cause}; train.log ends with: {last}" if last else f"{cause}; nothing in train.log"
            told = record.get("status") in ("failed", "interrupted") and _record_time(job) != job.record_time
            if not told and (record or not stopping):  # a job that was stopped before it was a run leaves none
                with contextlib.suppress(SettingError, OSError), RunDirectory(job.path) as run:
                    run.update_record(status=job.state, error=job.cause, epochs=run.epochs_written())


def say_end(job: Job, stopping: bool, view: SweepView) -> None:
    """Tells of a job that has ended."""
    if job.state in ("completed", "pruned"):
        view.say(f"{job.state} {job.name}{_result(job)}", on_terminal=False)
    elif stopping:
        view.say(f"stopped {job.name}{_result(job)}", "yellow", on_terminal=False)
    else:
        view.say(f"failed {job.name}: {job.cause}", "red")


def _last_line(job: Job) -> str:
    """The last line that the job's process wrote to `train.log`, without its date."""
    with contextlib.suppress(OSError), (job.path / "train.log").open("rb") as log:
        log.seek(max(job.log_start, log.seek(0, 2) - 10_000))
        lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        if lines:
            return re.sub(r"^[\d-]+ [\d:,]+ [A-Z]+ [\w.]+: ", "", lines[-1]).strip()
    return ""


def _result(job: Job) -> str:
    row = last_row(job.path)
    return f" after epoch {row['epoch']:.0f}, validation accuracy {row['val/accuracy']:.2%}" if row else ""


def _run_job(command: Callable[[], None], arguments: list[str], log: Path, gpu: str | None) -> None:
    """One job, in its own process: `mnist-train` with these arguments."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C then reaches the sweep's process only, which tells the jobs
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    threading.Thread(target=_stop_without_parent, daemon=True).start()
    run_here(command, arguments, log)


def run_here(command: Callable[[], None], arguments: list[str], log: Path) -> None:
    """`mnist-train` with these arguments, in this process, which does nothing else; `log` gets its output."""
    # Whatever ends the process is said in train.log, also what no handler of Python's catches.
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for descriptor, stream in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(descriptor, stream)
    sys.argv[1:] = arguments
    command()


def _stop_without_parent() -> None:
    """Ends this process, resumably, when the sweep's has gone, however it went."""
    sweep = multiprocessing.parent_process()
    assert sweep is not None
    sweep.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)
