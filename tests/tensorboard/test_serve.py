"""`mnist-tensorboard` from outside, by HTTP; what a browser makes of its page is in test_browser.py."""

import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from helpers import Command, served
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams

from mnist_mlp.run.metrics import COLUMNS
from mnist_mlp.tensorboard.serve import ends_within_an_event
from mnist_mlp.tensorboard.writer import EventWriter

Finished = tuple[Path, dict[str, Any]]


def get(url: str, **parameters: str) -> Any:
    with urlopen(f"{url}?{urlencode(parameters)}", timeout=30) as answer:
        return json.load(answer)


def wait_for_runs(url: str, count: int) -> list[str]:
    deadline = time.monotonic() + 60
    while len(runs := get(f"{url}data/runs")) < count:
        assert time.monotonic() < deadline, runs
        time.sleep(0.05)
    return sorted(runs)


def steps(url: str, run: str, tag: str) -> list[int]:
    return [step for _, step, _ in get(f"{url}data/plugin/scalars/scalars", run=run, tag=tag)]


def test_runs_are_served_and_what_is_not_is_said(finished: Finished, command: Command, tmp_path: Path) -> None:
    for name in ("whole", "cut", "without"):
        shutil.copytree(finished[0], tmp_path / name)
    shutil.rmtree(tmp_path / "without" / "tensorboard")
    epochs = finished[1]["epochs"]
    holds_epochs = max((tmp_path / "cut" / "tensorboard").glob("*tfevents*"), key=lambda path: path.stat().st_size)
    os.truncate(holds_epochs, holds_epochs.stat().st_size - 3)  # as a kill in the middle of a write leaves it
    with served(tmp_path) as (_, url, said):
        assert f"2 runs under {tmp_path}\n1 more without event files, not shown\n" in said
        assert f"{holds_epochs}: its last event is incomplete" in said
        assert str(tmp_path / "whole") not in said
        assert wait_for_runs(url, 2) == ["cut", "whole"]
        assert set(COLUMNS[1:]) <= set(get(f"{url}data/plugin/scalars/tags")["whole"])
        assert steps(url, "whole", "train/loss") == list(range(1, epochs + 1))
        assert steps(url, "cut", "train/loss")[0] == 1
        tags = get(f"{url}data/plugin/images/tags")
        assert {run: "run/training_images" in found for run, found in tags.items()} == {"cut": True, "whole": False}
        assert "run/architecture" in tags["whole"]
    assert command("mnist-report", ".", "--table").returncode == 0


def test_every_epoch_and_every_file_is_shown(tmp_path: Path) -> None:
    # Twice as many epochs as TensorBoard keeps by itself, in two files, as a resumed run has them.
    for part in (0, 1):
        with (tmp_path / f"events.out.tfevents.{part}").open("wb") as file:
            writer = RecordWriter(file)
            for step in range(1000 * part + 1, 1000 * part + 1001):
                summary = Summary(value=[Summary.Value(tag="loss", simple_value=step)])
                writer.write(Event(wall_time=step, step=step, summary=summary).SerializeToString())
    with served(tmp_path) as (_, url, said):
        assert "There are no runs to show" in said  # of this project's: no run.json
        wait_for_runs(url, 1)
        assert steps(url, ".", "loss") == list(range(1, 2001))


def test_an_event_cut_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with path.open("wb") as file:
        writer = RecordWriter(file)
        for content in (b"", b"twelve bytes"):
            writer.write(content)
    whole = path.read_bytes()
    assert len(whole) == 16 + 28  # two records, each 16 bytes longer than its content
    cut = []
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        if ends_within_an_event(path):
            cut.append(size)
    assert cut == [size for size in range(45) if size not in (0, 16, 44)]


def test_it_opens_on_the_charts_or_of_many_runs_on_their_table(tmp_path: Path) -> None:
    with served(tmp_path) as (_, url, _):
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / "run.json").write_text("{}")  # a record without event files does not count
        for count, tab in ((40, "custom_scalars"), (41, "hparams")):  # more than 40 runs: TensorBoard selects none
            for number in range(count):
                (tmp_path / str(number) / "tensorboard").mkdir(parents=True, exist_ok=True)
                (tmp_path / str(number) / "run.json").write_text("{}")
                (tmp_path / str(number) / "tensorboard" / "events.out.tfevents").touch()
            with urlopen(url) as answer:
                assert f'"#{tab}' in answer.read().decode()


def test_a_directory_without_runs_is_served_until_there_are_some(finished: Finished, tmp_path: Path) -> None:
    with served(tmp_path / "logs") as (_, url, said):
        assert f"There is no directory {tmp_path / 'logs'} yet" in said
        assert get(f"{url}data/runs") == []
        shutil.copytree(finished[0], tmp_path / "logs" / "run")
        assert wait_for_runs(url, 1) == ["run"]


def test_a_single_run_is_a_dot(finished: Finished) -> None:
    with served(finished[0]) as (_, url, _):
        assert wait_for_runs(url, 1) == ["."]
        assert steps(url, ".", "train/loss") == [1, 2, 3]


def test_settings_that_vary_come_first_in_the_table(tmp_path: Path) -> None:
    for seed, width in (("0", "64"), ("1", "128")):
        settings = {"model": "a", "seed": seed, "batch size": 64.0, "hidden widths": width}
        experiment, session, _ = hparams(settings, {"test/accuracy": 0.0, "best/epoch": 0.0})
        writer = EventWriter(tmp_path / f"seed={seed}" / "tensorboard", "start")
        writer.add(0, experiment, session)
        writer.close()
    with served(tmp_path) as (_, url, _):
        wait_for_runs(url, 2)
        found = get(f"{url}data/plugin/hparams/experiment", request="{}")
    assert [info["name"] for info in found["hparamInfos"]] == ["seed", "hidden widths", "model", "batch size"]
    assert [info["name"]["tag"] for info in found["metricInfos"]] == ["test/accuracy", "best/epoch"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_quietly(tmp_path: Path, signum: signal.Signals) -> None:
    with served(tmp_path) as (process, url, _):
        os.killpg(process.pid, signum)  # as a terminal does: TensorBoard's data server gets it as well
        _, complaints = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "Traceback" not in complaints
        with pytest.raises(OSError, match="refused"):
            urlopen(url)


def test_what_cannot_be_served_is_one_sentence(command: Command, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = command("mnist-tensorboard", "nosuch", "--port", str(port))
    assert (done.returncode, done.stdout) == (1, "There is no directory nosuch yet\n")
    assert done.stderr == (
        f"--port={port}: cannot be used (Address already in use): another TensorBoard may be running there; give "
        "another one\n"
    )
    (tmp_path / "file").touch()
    for arguments, sentence in (
        (["file"], "DIR=file: is a file: give a run, a sweep or any directory above them\n"),
        ([".", "--port", "70000"], "--port=70000: must be a whole number from 0 to 65535\n"),
    ):
        done = command("mnist-tensorboard", *arguments)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence)
