"""What several test modules share: types of fixtures, processes that are started and watched, runs that are made up."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_mlp.run.directory import metrics_csv
from mnist_mlp.run.metrics import COLUMNS
from mnist_mlp.settings import compose_config

ROOT = Path(__file__).parents[1]
PACKAGE_FILES = ROOT / "mnist_mlp" / "mnist"
COMPILER = shutil.which("g++") is not None
COMPILED = ("trainer.steps=compiled", "model.hidden=[16,16]", "data.batch_size=32")

Runner = Callable[..., tuple[Path, dict[str, Any]]]
Command = Callable[..., "subprocess.CompletedProcess[str]"]

Curve = float | np.ndarray
MODELS = {"A": "network_a", "B": "network_b"}


@cache
def configuration(experiment: str, model: str) -> str:
    config = compose_config([f"experiment={experiment}", f"model={model}"])
    return json.dumps(OmegaConf.to_container(config))


def write_run(path: Path, rows: list[dict[str, Any]], config: Any, record: dict[str, Any]) -> None:
    """A run directory as its record is kept: metrics.csv with a row for each epoch, config.yaml and run.json."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "metrics.csv").write_text(metrics_csv(rows))
    (path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    record = {"status": "completed", "epochs": len(rows), "final": rows[-1]} | record
    (path / "run.json").write_text(json.dumps(record))


def make_run(
    root: Path,
    experiment: str,
    network: str,
    seed: int = 0,
    epochs: int = 10,
    settings: dict[str, Any] | None = None,
    status: str = "completed",
    test: float = 0.98,
    **curves: Curve,
) -> Path:
    """A run directory under `root`; `val_loss=0.1` is a column, of one value or of one for each epoch."""
    path = root / f"{experiment}-{network}-{seed}-{epochs}-{len(list(root.iterdir()))}"
    table = {column: np.full(epochs, 0.1) for column in COLUMNS}
    table["epoch"] = np.arange(1, epochs + 1)
    given = {name.replace("_", "/", 1): curve for name, curve in curves.items()}
    if "val/accuracy" in given:  # one number under two names, and the other two follow
        given = {f"val/{name}": given["val/accuracy"] for name in ("recall", "precision", "f1")} | given
    for column, curve in given.items():
        assert column in COLUMNS
        table[column] = np.broadcast_to(curve, epochs)
    rows = [{column: values[epoch].item() for column, values in table.items()} for epoch in range(epochs)]
    config = json.loads(configuration(experiment, MODELS[network]))
    config |= {"seed": seed}
    config["data"]["seed"] = seed
    config["trainer"]["max_epochs"] = epochs
    for name, changed in (settings or {}).items():
        group, _, leaf = name.rpartition(".")
        (config[group] if group else config)[leaf] = changed
    record = {"status": status, "experiment": experiment, "model": MODELS[network], "seed": seed}
    write_run(path, rows, config, record | {"test": {"last": {"accuracy": test}}})
    return path


@contextmanager
def started(arguments: list[str], tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """`mnist-train` at work in `tmp_path`, a directory of this test's own; nothing that it started is left afterwards.

    Jobs leave the process group of their sweep, and outlive it for some seconds: what they keep is the directory.
    """
    script = Path(sys.executable).with_name("mnist-train")
    with subprocess.Popen(
        [script, *arguments], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            until(lambda: not killed(tmp_path), "every process has gone")


def killed(tmp_path: Path) -> list[int]:
    """Kills every process at work in the directory; returns which ones there were."""
    found = [pid for pid in processes(tmp_path) if pid != os.getpid()]
    for pid in found:
        with suppress(ProcessLookupError):  # gone meanwhile
            os.kill(pid, signal.SIGKILL)
    return found


def processes(tmp_path: Path) -> dict[int, int]:
    """Every process at work in the directory, with its parent."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").resolve(strict=True) == tmp_path:
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # gone meanwhile, or a zombie
            continue
    return found


def until(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def epochs(run_dir: Path) -> int:
    metrics = run_dir / "metrics.csv"
    return len(metrics.read_text().splitlines()) - 1 if metrics.exists() else 0


def statuses(directory: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["status"] for path in sorted(directory.glob("*/run.json"))}


def deterministic(directory: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader((directory / "results.csv").read_text().splitlines()))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def files(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


def holder(run_dir: Path) -> int:
    """The process that is at work in a run directory, whose lock it has open."""
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(entry) == str(run_dir / ".lock"):
                return int(entry.parts[2])
        except OSError:  # gone meanwhile, or not ours
            continue
    raise AssertionError(f"nothing is at work in {run_dir}")


def accumulated(run_dir: Path) -> EventAccumulator:
    everything = dict.fromkeys(("scalars", "images", "tensors", "histograms"), 0)
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance=everything)
    events.Reload()
    return events


def steps(run_dir: Path) -> dict[str, list[int]]:
    """Of every tag that TensorBoard has."""
    events = accumulated(run_dir)
    found = {}
    for kind, read in (
        ("scalars", events.Scalars),
        ("images", events.Images),
        ("tensors", events.Tensors),
        ("histograms", events.Histograms),
    ):
        for tag in events.Tags()[kind]:
            found[tag] = sorted(event.step for event in read(tag))
    return found


# As on a terminal: a shell starts what runs in its background, as these tests may, with SIGINT ignored.
ON_TERMINAL = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)


@contextmanager
def served(directory: Path) -> Iterator[tuple["subprocess.Popen[str]", str, str]]:
    """`mnist-tensorboard` on a free port, in a process group of its own: the process, the URL, what it said."""
    script = Path(sys.executable).with_name("mnist-tensorboard")
    with subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL, script, directory, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            said = ""
            while not (found := re.search(r"http://[\d.:]+/", said)):
                line = process.stdout.readline()
                assert line, said
                said += line
            yield process, found[0], said
        finally:
            process.terminate()


class Payload:
    """What unpickling would execute: it leaves a file `executed` in the current directory."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def plain_trainer(epochs: int) -> Trainer:
    """Lightning's own, which knows nothing of this project; it trains and does nothing else."""
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
