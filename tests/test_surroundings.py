"""What surrounds a command: outputs that take nothing, signals, a matplotlibrc, places that are gone."""

import errno
import importlib
import inspect
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from mnist_mlp.drawing.figure import defaults, png
from mnist_mlp.run.directory import disk_errors
from mnist_mlp.run.signals import StopSignals
from mnist_mlp.settings import SettingError, one_sentence
from mnist_mlp.signatures import parameters
from mnist_mlp.sweeps.study import close, open_study

# A command that prints; `{}` is what it does besides.
PRINTS = "import sys; from mnist_mlp.surroundings import settle_in; settle_in(); print('2 ± 1' * 40_000); {}"


def printed(redirection: str, then: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
    command = f'"{sys.executable}" -c "{PRINTS.format(then)}" {redirection}'
    changed = {**os.environ, "PYTHONUNBUFFERED": "", **environment}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, env=changed)


def test_what_a_class_of_the_users_does_when_it_goes_is_done_at_the_end() -> None:
    code = (
        "class Callback:\n    def __del__(self): print('gone')\n"
        "def command():\n    callback = Callback()\n    callback.trainer = [callback]\n"
        "from mnist_mlp.surroundings import settle_in; settle_in(); command()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout == "gone\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_output_is_a_sentence(unbuffered: str) -> None:
    code = "from mnist_mlp.settings import one_sentence\nwith one_sentence():\n    print('x')\n"
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "{code}" > /dev/full'],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert done.stderr == "standard output: cannot be used (No space left on device)\n"
    assert done.returncode == 1


def test_a_reader_that_has_gone_ends_a_command_without_a_word() -> None:
    done = printed("| head -c 1; exit ${PIPESTATUS[0]}", "sys.stdout.flush()")
    assert "Traceback" not in done.stderr or "BrokenPipeError" in done.stderr
    with pytest.raises(SystemExit) as ended, one_sentence():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe", "standard output")
    assert ended.value.code == 141


def test_a_closed_standard_error_is_no_file_of_the_run(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    done = printed("2>&- > /dev/null", f"f = open('{file}', 'w'); print(f.fileno(), file=f); print(1, file=sys.stderr)")
    assert done.returncode == 0
    assert int(file.read_text()) > 2


def test_a_terminal_without_a_sign_shows_a_question_mark() -> None:
    assert printed("", PYTHONIOENCODING="ascii").stdout.startswith("2 ? 12 ? 1")


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").write_text("")
    with pytest.raises(SystemExit) as ended, one_sentence():
        (tmp_path / "logs" / "sweeps").mkdir(parents=True)
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"{tmp_path}/logs/sweeps: cannot be used (Not a directory)\n"


def test_the_place_that_cannot_be_written_is_blamed(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), disk_errors(str(tmp_path / "run")):
        raise PermissionError(errno.EACCES, "Permission denied", "/data/mnist")
    (tmp_path / "run").mkdir()
    with (
        pytest.raises(SettingError, match=r"run_dir=.*run: cannot be written \(Permission"),
        disk_errors(str(tmp_path / "run")),
    ):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "run" / "run.json"))
    with pytest.raises(SettingError, match=r"run_dir=.*was deleted while"), disk_errors(str(tmp_path / "run")):
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run" / "metrics.csv").write_text("")


def test_outside_of_the_main_thread_no_signal_is_taken_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with StopSignals() as signals:
            signals.check()
            seen.append(signal.getsignal(signal.SIGTERM))

    with caplog.at_level(logging.INFO):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [before]
    assert [record.message for record in caplog.records] == [
        "This run is in a thread, where signals such as Ctrl-C do not reach it"
    ]


def test_the_end_of_the_terminal_stops_a_run_unless_nohup_says_otherwise() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may have started these tests
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received == signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_ctrl_c_while_a_command_is_imported_says_nothing(tmp_path: Path) -> None:
    # A package that a command imports early is one that interrupts the process, as Ctrl-C would at that moment.
    (tmp_path / "hydra.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    # A shell's & would have Ctrl-C ignored.
    usual = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{usual}; from mnist_mlp.start import train; train()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_matplotlibrc_changes_no_picture() -> None:
    @defaults()
    def picture() -> Figure:
        figure = Figure()
        figure.add_subplot().plot([1, 2], label="x")
        return figure

    usual = png(picture())
    with matplotlib.rc_context({"font.size": 30, "savefig.bbox": "tight", "lines.linewidth": 9, "axes.grid": True}):
        assert png(picture()) == usual


def test_a_study_may_lie_anywhere(tmp_path: Path) -> None:
    place = tmp_path / "really? 50%25 #1"
    place.mkdir()
    _, storage = open_study(place / "study.db", "maximize")
    close(storage)
    assert [path.name for path in tmp_path.rglob("*")] == [place.name, "study.db"]


@pytest.mark.parametrize(
    "name", ["Adam", "AdamW", "SGD", "RMSprop", "lr_scheduler.StepLR", "lr_scheduler.ReduceLROnPlateau"]
)
def test_the_source_says_what_the_signature_does(name: str) -> None:
    signature = inspect.signature(eval(f"torch.optim.{name}", {"torch": torch}))
    assert parameters(f"torch.optim.{name}") == tuple(signature.parameters)
    assert parameters("torch.nn.Sequential") is None
    assert parameters("os.mkdir") is None


class Full(io.StringIO):
    """A standard output that takes nothing."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "standard output")


@pytest.mark.parametrize("command", ["compare", "evaluate", "predict", "rerun", "report.command"])
def test_what_every_command_prints_is_within_its_one_sentence(
    finished: tuple[Path, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    module = importlib.import_module(f"mnist_mlp.{command}")
    run, digit = shutil.copytree(finished[0], tmp_path / "run"), tmp_path / "digit.png"
    checkpoint = run / "checkpoints" / "best.ckpt"
    arguments = {
        "compare": [run, run],
        "evaluate": [checkpoint],
        "predict": [checkpoint, digit],
        "rerun": [run, "--epochs", "1", "--run-dir", tmp_path / "again"],
        "report.command": [run, "--table"],
    }[command]
    pixels = np.zeros((28, 28), np.uint8)
    pixels[4:24, 12:16] = 255
    Image.fromarray(pixels).save(digit)
    monkeypatch.setattr(sys, "argv", ["mnist", *map(str, arguments)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    err = io.StringIO()
    with redirect_stdout(Full()), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 1
    assert err.getvalue().endswith("standard output: cannot be used (No space left on device)\n")
    assert (run / "results.csv").exists() == (command == "report.command")  # what nobody reads is saved all the same
