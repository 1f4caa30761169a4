"""The contenders train, take turns and report; what they measure is not asserted."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Command
from omegaconf import DictConfig

from mnist_mlp.benchmark import command as benchmark
from mnist_mlp.benchmark import peers
from mnist_mlp.benchmark.command import Contender, chart, ratios, seconds_table, spread
from mnist_mlp.settings import compose_config


class EnoughError(Exception):
    """Raised in place of a fourth epoch."""


class ThreeEpochs(peers.Pace):
    """A parent that asks for three."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []
        self.asked = 0

    def wait(self) -> float:
        self.asked += 1
        if self.asked > 3:
            raise EnoughError
        return time.perf_counter()

    def report(self, train: float, loss: float | None, whole: float | None = None) -> None:
        self.reports.append({"train": train, "loss": loss, "whole": whole})


PEERS = {name: train for name, train in peers.CONTENDERS.items() if not name.startswith("this project")}


@pytest.mark.filterwarnings("ignore")  # as in the contender's process
@pytest.mark.parametrize("train", PEERS.values(), ids=PEERS)
def test_a_peer_trains(tiny: list[str], train: Callable[[peers.Pace, DictConfig], None]) -> None:
    """Three epochs of a thousand images: from a loss of about ln 10, that of a guess, to less than half of it."""
    pace = ThreeEpochs()
    torch.manual_seed(0)
    with pytest.raises(EnoughError):
        train(pace, compose_config([*tiny, "model.hidden=[64,32]"]))
    assert len(pace.reports) == 3
    assert all(report["train"] > 0 for report in pace.reports)
    if train is not peers.arithmetic:
        assert pace.reports[-1]["loss"] < 0.5 * math.log(10)


def test_this_project_is_measured_through_mnist_train() -> None:
    """In a process of its own, as the benchmark does; its whole epoch has the training epoch in it."""
    contender = Contender("this project", ["model.hidden=[8]", "trainer.accelerator=cpu"], threads=1)
    try:
        first, second = contender.epoch(), contender.epoch()
    finally:
        contender.close()
    assert not contender.process.is_alive()
    for epoch in (first, second):
        assert 0 < epoch["train"] < epoch["whole"]
        assert epoch["memory"] is None or epoch["memory"] > 2**28
    assert second["loss"] < first["loss"] < math.log(10)


def test_a_contender_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    epochs = {
        "plain tensor loop": [{"train": seconds, "whole": None} for seconds in (9.0, 2.0, 4.0)],
        "this project": [{"train": seconds, "whole": 2 * seconds} for seconds in (9.0, 1.0, 4.0)],
        "JAX lax.scan": [{"error": "ModuleNotFoundError: No module named 'jax'"}],
    }
    view = seconds_table("network_a", epochs)
    cells = [[str(cell) for cell in column.cells] for column in view.columns]
    assert cells[0] == ["this project", "plain tensor loop", "JAX lax.scan"]  # 2.5 s, 3 s, none
    assert cells[1] == ["2.50 ± 2.12", "3.00 ± 1.41", "not measured: ModuleNotFoundError: No module named 'jax'"]
    assert cells[3][0] == "0.75 ± 0.35"  # round by round: 1 / 2 and 4 / 4
    assert cells[5][0] == "2.00 ± 0.00"  # a whole epoch over its own training
    chart({"network_a": epochs, "network_b": epochs}, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_spread_and_ratios() -> None:
    assert spread([1.0]) == "1.00"
    assert spread([]) == ""
    assert ratios([{"train": 3.0}], [{"train": 2.0}]) == [1.5]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pears"], "SECTION=pears: must be one of peers, sweep, steady"),
        (["--device", "gpu"], "trainer.accelerator=cuda: PyTorch finds no such device"),
        (["--epochs", "0"], "--epochs=0: must be at least 1"),
        (["--threads", "-1"], "--threads=-1: must be at least 1"),
        (["--output", "/proc/nowhere"], "--output=/proc/nowhere: cannot be written"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(command: Command, arguments: list[str], sentence: str) -> None:
    done = command("mnist-benchmark", *arguments, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert done.stderr.startswith(sentence)
    assert len(done.stderr.splitlines()) == 1


def test_what_was_measured_is_saved_with_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measured = {"plain tensor loop": [{"train": 1.0, "whole": None}] * 3, "broken": [{"error": "its process ended"}]}
    monkeypatch.setattr(benchmark, "peers", lambda *_: measured)
    assert benchmark.benchmark(["peers"], epochs=2, threads=1, output=tmp_path) == 1
    saved = json.loads((tmp_path / "benchmark.json").read_text())
    assert saved["peers"] == dict.fromkeys(benchmark.SETUPS, measured)
    assert saved["device"].startswith("cpu")
    assert {"torch", "jax", "scikit-learn"} <= saved["versions"].keys()
    assert (tmp_path / "benchmark.png").exists()
