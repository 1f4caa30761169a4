"""Weights & Biases offline, MLflow's local store and ONNX Runtime, each read by other means: `make test-loggers`."""

import csv
import json
import os
import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Runner

import mnist_mlp
from mnist_mlp.settings import SettingError

pytestmark = [
    pytest.mark.loggers,
    # What their packages and PyTorch's exporter say of each other.
    pytest.mark.filterwarnings("default"),
]
# Of a row of metrics.csv.
SHOWN = ("train/loss", "val/accuracy", "lr")


@pytest.fixture(autouse=True)
def away_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)


def records(path: Path) -> Iterator[Any]:
    """The records of an offline run of Weights & Biases: LevelDB's log format, after seven bytes of head."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[import-not-found]

    content, at, whole = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at < len(content):
        if (1 << 15) - at % (1 << 15) < 7:  # the end of a block, too short for a head
            at += (1 << 15) - at % (1 << 15)
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def session(path: Path) -> tuple[str, dict[str, Any], dict[int, dict[str, float]], int]:
    """One offline session: the run's id, its settings, its metrics by step, and its exit code."""
    identifier, settings, metrics, status = "", {}, {}, -1
    for record in records(path):
        if record.HasField("run"):
            identifier = record.run.run_id
        for item in [*record.run.config.update, *record.config.update]:
            settings[item.key] = json.loads(item.value_json)
        if record.HasField("history"):
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            metrics.setdefault(int(row["trainer/global_step"]), {}).update(row)
        if record.HasField("exit"):
            status = record.exit.exit_code
    return identifier, settings, metrics, status


def test_both_hear_settings_epochs_and_results_and_a_resumed_run_goes_on_there(run: Runner, tmp_path: Path) -> None:
    overrides = ["logger=[wandb,mlflow]", "logger.wandb.offline=true"]
    run_dir, first = run(*overrides, "trainer.max_epochs=2")
    _, second = run(*overrides, f"run_dir={run_dir}", "trainer.max_epochs=3")
    assert first["loggers"] == second["loggers"]
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = {int(row["epoch"]): {name: float(row[name]) for name in SHOWN} for row in csv.DictReader(file)}
    results = {2: first["test"], 3: second["test"]}

    identifier = second["loggers"]["wandb"]
    offline = sorted(run_dir.glob(f"wandb/offline-run-*-{identifier}/run-{identifier}.wandb"))
    sessions = [session(path) for path in offline]
    assert [(found[0], sorted(found[2]), found[3]) for found in sessions] == [
        (identifier, [1, 2], 0),
        (identifier, [3], 0),
    ]
    assert sessions[0][1]["data"]["batch_size"] == 64
    told = sessions[0][2] | sessions[1][2]
    for epoch, row in rows.items():
        assert {name: told[epoch][name] for name in SHOWN} == pytest.approx(row)
    for epoch, test in results.items():
        assert told[epoch]["test/best/accuracy"] == test["best"]["accuracy"]

    from mlflow import MlflowClient  # type: ignore[import-not-found]

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")  # MLflow's own place for it
    experiment = client.get_experiment_by_name("mnist-mlp")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_id, found.info.status) == (second["loggers"]["mlflow"], "FINISHED")
    assert found.data.params["data/batch_size"] == "64"
    for name in SHOWN:
        history = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, name)}
        assert history == pytest.approx({epoch: row[name] for epoch, row in rows.items()})
    history = client.get_metric_history(found.info.run_id, "test/last/f1")
    assert {one.step: one.value for one in history} == {epoch: test["last"]["f1"] for epoch, test in results.items()}


def test_what_a_service_refuses_is_one_sentence(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = r"logger\.mlflow=lightning\S+MLFlowLogger: refused \(The filesystem tracking backend .*maintenance mode"
    with pytest.raises(SettingError, match=sentence):
        run("logger=mlflow", "logger.mlflow.tracking_uri=file:./mlruns")
    import_module("wandb").teardown()  # else its session of the test before is still there, and offline
    monkeypatch.setenv("HOME", str(tmp_path))  # nobody has logged in
    with pytest.raises(SettingError, match=r"logger\.wandb=lightning\S+WandbLogger: refused \(.*API key"):
        run("logger=wandb")


def test_onnx_runtime_computes_what_the_network_does(finished: Any, tmp_path: Path) -> None:
    import onnxruntime  # type: ignore[import-not-found]

    network = mnist_mlp.load(finished[0] / "checkpoints" / "best.ckpt")
    shapes = ({0: torch.export.Dim("images")},)
    torch.onnx.export(
        network, (torch.randn(2, 1, 28, 28),), tmp_path / "network.onnx", dynamo=True, dynamic_shapes=shapes
    )
    runtime = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    images = torch.randn(5, 1, 28, 28)
    (logits,) = runtime.run(None, {runtime.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(logits, network(images).numpy(), rtol=1e-4, atol=1e-5)
