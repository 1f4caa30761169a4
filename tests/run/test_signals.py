import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from forked import Process, Server
from helpers import Runner, epochs, until

from mnist_mlp.run.metrics import COLUMNS
from mnist_mlp.run.signals import InterruptionError, StopSignals


def test_the_first_signal_is_noted_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        signals.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(InterruptionError, match="stopped by SIGTERM") as caught:
            signals.check()
    assert caught.value.exit_status == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_comes_again_at_once_is_the_same_request(monkeypatch: pytest.MonkeyPatch) -> None:
    now, ended = [5.0], list[int]()
    monkeypatch.setattr("mnist_mlp.run.signals.time.monotonic", lambda: now[0])
    monkeypatch.setattr("mnist_mlp.run.signals.os._exit", ended.append)
    with StopSignals() as signals:
        for now[0], signum in ((5, 15), (5.002, 15), (5.9, 15)):  # as `timeout` sends it
            signal.raise_signal(signum)
        assert (signals.received, ended) == (signal.SIGTERM, [])
        for now[0], signum in ((5.9, 2), (6.1, 15)):  # another one, and one that somebody meant
            signal.raise_signal(signum)
    assert ended == [130, 143]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_the_second_signal_ends_the_process_at_once(signum: signal.Signals) -> None:
    code = (
        "import os, time; from mnist_mlp.run.signals import StopSignals\n"
        "with StopSignals():\n os.kill(os.getpid(), 15)\n print('noted', flush=True)\n"
        f" os.kill(os.getpid(), {signum})\n time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signum, "noted\n", "")


def test_a_run_that_is_stopped_three_times_resumes_to_the_same_bits(
    run: Runner, commands: Server, tiny: list[str], tmp_path: Path
) -> None:
    overrides = ["experiment=dropout_scheduler", "trainer.max_epochs=60"]
    reference, record = run(*overrides)
    run_dir = tmp_path / "run"

    def started(epoch: int) -> Process:
        """A session that has reached this epoch, or has ended."""
        arguments = [*tiny, *overrides, f"run_dir={run_dir}"]
        process = commands.start("mnist-train", arguments, tmp_path, dict(os.environ))
        until(lambda: epochs(run_dir) >= epoch or process.poll() is not None, "an epoch")
        return process

    for signum, status, epoch in ((signal.SIGINT, 130, 1), (signal.SIGKILL, -9, 15), (signal.SIGTERM, 143, 30)):
        process = started(epoch)
        process.send_signal(signum)
        assert process.wait(timeout=60) == status, process.said("err")
        state = json.loads((run_dir / "run.json").read_text())["status"]
        assert state == ("running" if signum == signal.SIGKILL else "interrupted")
    assert started(60).wait(timeout=120) == 0

    resumed = json.loads((run_dir / "run.json").read_text())
    assert resumed["weights_sha256"] == record["weights_sha256"]
    assert (resumed["status"], resumed["best"], resumed["test"]) == ("completed", record["best"], record["test"])
    assert "error" not in resumed

    def without_seconds(path: Path) -> list[str]:
        assert COLUMNS[-1] == "seconds"
        return [line.rpartition(",")[0] for line in (path / "metrics.csv").read_text().splitlines()]

    assert without_seconds(run_dir) == without_seconds(reference)
