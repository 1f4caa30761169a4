import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_the_second_signal_ends_the_process_at_once(signum: signal.Signals) -> None:
    code = (
        "import os, time; from mnist_mlp.run.signals import StopSignals\n"
        "with StopSignals():\n os.kill(os.getpid(), 15)\n print('noted', flush=True)\n"
        f" os.kill(os.getpid(), {signum})\n time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signum, "noted\n", "")


def wait_for_epoch(process: "subprocess.Popen[bytes]", run_dir: Path, epoch: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        metrics = run_dir / "metrics.csv"
        if metrics.exists() and len(metrics.read_text().splitlines()) > epoch:
            return
        assert process.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.02)
    raise AssertionError("no epoch within a minute")


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_run_resumes_to_the_same_bits(
    run: Any, tiny: list[str], tmp_path: Path, signum: signal.Signals, status: int
) -> None:
    overrides = ["experiment=dropout_scheduler", "trainer.max_epochs=60"]
    reference, record = run(*overrides)

    run_dir = tmp_path / "run"
    script = Path(sys.executable).with_name("mnist-train")
    command = [script, *tiny, *overrides, f"run_dir={run_dir}"]
    for epoch in (1, 20):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wait_for_epoch(process, run_dir, epoch)
        process.send_signal(signum)
        assert process.wait(timeout=60) == status
        state = json.loads((run_dir / "run.json").read_text())["status"]
        assert state == ("running" if signum == signal.SIGKILL else "interrupted")
    subprocess.run(command, check=True, capture_output=True, timeout=120)

    resumed = json.loads((run_dir / "run.json").read_text())
    assert resumed["weights_sha256"] == record["weights_sha256"]
    assert (resumed["status"], resumed["best"], resumed["test"]) == ("completed", record["best"], record["test"])
    assert "error" not in resumed

    def without_seconds(path: Path) -> list[str]:
        assert COLUMNS[-1] == "seconds"
        return [line.rpartition(",")[0] for line in (path / "metrics.csv").read_text().splitlines()]

    assert without_seconds(run_dir) == without_seconds(reference)
