"""A sweep on a real Slurm of one node, with its accounting: `make test-slurm`, as root.

Every daemon is this process's child, has a temporary directory and ports of its own, and ends with this process.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import Command, deterministic, epochs, files, holder, started, statuses, until

Begin = Callable[..., "subprocess.Popen[str]"]
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]

SLURM_CONF = """
ClusterName=one
SlurmctldHost={node}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={slurmctld}
SlurmdPort={slurmd}
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={node} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL State=UP PriorityTier=2
"""
ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd}
AccountingStoragePass={place}/munge.socket
"""
SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
DbdHost={node}
DbdAddr=127.0.0.1
DbdPort={slurmdbd}
SlurmUser=root
PidFile={place}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadbd}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""
DATABASE = """
create database slurm;
create user slurm@'127.0.0.1' identified by 'slurm';
grant all on slurm.* to slurm@'127.0.0.1';
"""


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def succeeds(*command: str | Path) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a running Slurm of one node and two cores, which SLURM_CONF leads to."""
    missing = [name for name in ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd") if shutil.which(name) is None]
    assert not missing, f"{', '.join(missing)} not found: make test-slurm installs Debian's packages"
    assert os.getuid() == 0, "Slurm's daemons take root: start make test-slurm as root"
    place = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool", "db"):
        (place / name).mkdir()
    names = {
        "place": place,
        "node": socket.gethostname().partition(".")[0],
        "cpus": min(2, os.cpu_count() or 1),
        **{name: free_port() for name in ("mariadbd", "slurmdbd", "slurmctld", "slurmd")},
    }
    (place / "without.conf").write_text(SLURM_CONF.format(**names))
    (place / "slurm.conf").write_text((SLURM_CONF + ACCOUNTING).format(**names))
    (place / "slurmdbd.conf").write_text(SLURMDBD_CONF.format(**names))
    (place / "slurmdbd.conf").chmod(0o600)
    (place / "munge.key").write_bytes(secrets.token_bytes(128))
    (place / "munge.key").chmod(0o400)
    # Away from this directory, where a sweep's own processes are told by their place.
    environment = {**os.environ, "SLURM_CONF": str(place / "slurm.conf")}
    daemons: list[subprocess.Popen[bytes]] = []

    def daemon(name: str, *arguments: str) -> None:
        with (place / f"{name}.log").open("w") as log:
            daemons.append(
                subprocess.Popen(
                    [name, *arguments],
                    cwd=place,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def answers(*command: str | Path) -> None:
        until(lambda: succeeds(*command), f"{command} succeeds; look at {place}/*.log")

    at = [f"--{name}={place}/{file}" for name, file in (("socket", "munge.socket"), ("key-file", "munge.key"))]
    at += [f"--{name}={place}/munge.{name}" for name in ("pid-file", "seed-file", "log-file")]
    no_defaults, to_socket = "--no-defaults", f"--socket={place}/db.sock"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", environment["SLURM_CONF"])
        try:
            daemon("munged", "--foreground", "--force", *at)  # root's directory is closed to others, which it dislikes
            database = ["--user=root", f"--datadir={place}/db"]
            new = [*database, "--auth-root-authentication-method=normal"]
            subprocess.run(["mariadb-install-db", no_defaults, *new], check=True, capture_output=True)
            address = ["--bind-address=127.0.0.1", f"--port={names['mariadbd']}", f"--pid-file={place}/db.pid"]
            daemon("mariadbd", no_defaults, *database, to_socket, *address)
            answers("mariadb", no_defaults, "--user=root", to_socket, f"--execute={DATABASE}")
            daemon("slurmdbd", "-D")
            answers("sacctmgr", "--noheader", "list", "cluster")
            daemon("slurmctld", "-D")
            daemon("slurmd", "-D")
            until(lambda: "idle" in slurm("sinfo", "--noheader", "--format=%T"), f"a node; look at {place}/*.log")
            yield place
        finally:
            if succeeds("scancel", "--user=root"):
                until(lambda: not queue(), "the queue is empty")
            for process in reversed(daemons):
                process.terminate()
                process.wait(timeout=60)


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """`begin(*arguments)` starts `mnist-train`, which is ended with the test."""
    with contextlib.ExitStack() as left:
        yield lambda *arguments: left.enter_context(started(list(arguments), tmp_path))


def until_it(process: "subprocess.Popen[str]", condition: Callable[[], object], what: str) -> None:
    """As `until`, while the sweep's process runs."""
    until(lambda: process.poll() is not None or condition(), what)
    assert process.poll() is None, process.communicate()


def queue() -> dict[str, str]:
    """Slurm's jobs, and the state of each."""
    lines = slurm("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
    return dict(line.split() for line in lines)


def hashes(directory: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["weights_sha256"] for path in directory.glob("*/run.json")}


def queued_again(job: str, *cause: str) -> None:
    """Waits until the command `cause` has put a running job back into the queue, and lets it start again: Slurm itself
    would wait for two minutes."""
    with subprocess.Popen(cause, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: queue().get(job) == "PENDING", f"{job} is in the queue again")
        process.kill()  # scancel tells a job again and again, once it has moved
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)


def test_a_sweep_with_preempted_stopped_and_killed_jobs_ends_like_a_local_one(
    cluster: Path, begin: Begin, command: Command, tiny: list[str], tmp_path: Path
) -> None:
    arguments = ["-m", "experiment=dropout_scheduler", "seed=0,1,2,3", *tiny, "trainer.max_epochs=200"]
    local = command("mnist-train", *arguments, "sweep=local")
    assert local.returncode == 0, local.stderr
    sweeps = tmp_path / "logs" / "sweeps"
    directory = sweeps / "slurm"

    def state(seed: int) -> tuple[str, bool]:
        status = json.loads((directory / f"seed={seed}" / "run.json").read_text())["status"]
        return status, 3 < epochs(directory / f"seed={seed}") < 200

    # Within so short a time limit whatever stops a job is taken for its end: it is queued again all the same.
    on_slurm = [*arguments, "sweep=slurm", "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=5"]
    process = begin(*on_slurm)
    until_it(
        process, lambda: all(epochs(directory / f"seed={seed}") > 3 for seed in (0, 1)), "three epochs of two jobs"
    )
    (array,) = {name.partition("_")[0] for name in queue()}
    # Another job, of more importance, takes the whole node.
    urgent = ["sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true"]
    queued_again(f"{array}_0", *urgent)
    queued_again(f"{array}_1", "true")
    assert [state(0), state(1)] == [("interrupted", True)] * 2
    until_it(process, lambda: epochs(directory / "seed=2") > 3, "three epochs of the third job")
    # As Slurm tells it ahead of the time limit.
    queued_again(f"{array}_2", "scancel", "--signal=USR2", f"{array}_2")
    assert state(2) == ("interrupted", True)
    until_it(process, lambda: epochs(directory / "seed=3") > 3, "three epochs of the last job")
    os.kill(holder(directory / "seed=3"), signal.SIGKILL)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 1, told
    assert statuses(directory) == {f"seed={seed}": "failed" if seed == 3 else "completed" for seed in range(4)}
    assert "failed seed=3: Slurm says FAILED; " in told
    for seed in range(4):
        restarts = slurm("scontrol", "show", "job", f"{array}_{seed}").partition("Restarts=")[2].split()[0]
        assert int(restarts) == (seed < 3)

    kept = {seed: files(directory / f"seed={seed}") for seed in range(3)}
    again = command("mnist-train", *on_slurm)
    assert again.returncode == 0, again.stderr
    assert "4 jobs, 3 of them completed" in again.stderr
    assert {seed: files(directory / f"seed={seed}") for seed in range(3)} == kept
    assert len(set(hashes(sweeps / "local").values())) == 4
    assert hashes(directory) == hashes(sweeps / "local")
    assert deterministic(directory) == deterministic(sweeps / "local")
    assert {path.name for path in directory.iterdir() if path.is_dir()} == {*hashes(sweeps / "local"), ".submitit"}


def test_ctrl_c_takes_the_jobs_back_and_a_killed_sweep_leaves_them(
    cluster: Path, begin: Begin, command: Command, tiny: list[str], tmp_path: Path
) -> None:
    arguments = ["-m", "seed=0,1,2", *tiny, "hydra/launcher=submitit_slurm", "trainer.max_epochs=100000"]
    directory = tmp_path / "logs" / "sweeps" / "stopped"
    process = begin(*arguments, "sweep=stopped")
    until_it(process, lambda: all(epochs(directory / f"seed={seed}") for seed in (0, 1)), "an epoch of two jobs")
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 143
    assert not queue()
    assert statuses(directory) == {"seed=0": "interrupted", "seed=1": "interrupted"}
    assert "stopped by SIGTERM: 0 completed, 3 interrupted; the same command" in told

    directory = tmp_path / "logs" / "sweeps" / "left"
    process = begin(*arguments, "sweep=left")
    until_it(process, lambda: epochs(directory / "seed=0"), "an epoch")
    process.kill()
    process.communicate()
    (array,) = {name.partition("_")[0] for name in queue()}
    refused = command("mnist-train", *arguments, "sweep=left")
    sentence = f"sweep=left: its jobs are in Slurm's queue: wait for them, or scancel {array}\n"
    assert (refused.returncode, refused.stderr) == (1, sentence)
    subprocess.run(["scancel", array], check=True)
    until(lambda: not queue(), "the queue is empty")


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (
            "partition=nowhere",
            "hydra.launcher.partition=nowhere: Slurm refuses it (Invalid partition name specified): choose one of "
            "debug, urgent",
        ),
        (
            "gpus_per_node=8",
            "hydra/launcher=submitit_slurm: Slurm refuses such a job (Invalid generic resource (gres) specification): "
            "change the hydra.launcher setting that asks for it",
        ),
        (
            "cpus_per_task=999",
            "hydra/launcher=submitit_slurm: Slurm refuses such a job (Requested node configuration is not available): "
            "change the hydra.launcher setting that asks for it",
        ),
    ],
)
def test_what_slurm_cannot_run_is_refused_before_anything_starts(
    cluster: Path, command: Command, tiny: list[str], tmp_path: Path, setting: str, sentence: str
) -> None:
    settings = ["hydra/launcher=submitit_slurm", f"hydra.launcher.{setting}"]
    done = command("mnist-train", "-m", "seed=0,1", *tiny, *settings)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{sentence}\n")
    assert not list(tmp_path.iterdir())
    assert not queue()


def test_without_accounting_nothing_starts(cluster: Path, command: Command, tiny: list[str], tmp_path: Path) -> None:
    arguments = ["-m", "seed=0,1", *tiny, "hydra/launcher=submitit_slurm"]
    done = command("mnist-train", *arguments, SLURM_CONF=str(cluster / "without.conf"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("hydra/launcher=submitit_slurm: Slurm's accounting is off or out of reach (Slurm acc")
    assert not list(tmp_path.iterdir())


def test_one_run_in_a_job_of_ones_own(cluster: Path, tiny: list[str], tmp_path: Path) -> None:
    """`srun mnist-train`, of several tasks: Lightning does not make them one run."""
    script = Path(sys.executable).with_name("mnist-train")
    done = subprocess.run(
        ["srun", "--ntasks=1", script, *tiny, "run_dir=r"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "r" / "run.json").read_text())["status"] == "completed"
