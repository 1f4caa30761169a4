"""Made-up runs, with whatever curves a test needs, in run directories like real ones."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from mnist_mlp.rundir import COLUMNS, metrics_csv
from mnist_mlp.settings import compose_config

Curve = float | np.ndarray
MODELS = {"A": "network_a", "B": "network_b"}


@cache
def configuration(experiment: str, model: str) -> str:
    config = compose_config([f"experiment={experiment}", f"model={model}"])
    return json.dumps(OmegaConf.to_container(config))


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
    path.mkdir(parents=True)
    table = {column: np.full(epochs, 0.1) for column in COLUMNS}
    table["epoch"] = np.arange(1, epochs + 1)
    given = {name.replace("_", "/", 1): curve for name, curve in curves.items()}
    if "val/accuracy" in given:  # one number under two names, and the other two follow
        given = {f"val/{name}": given["val/accuracy"] for name in ("recall", "precision", "f1")} | given
    for column, curve in given.items():
        assert column in COLUMNS
        table[column] = np.broadcast_to(curve, epochs)
    rows = [{column: values[epoch].item() for column, values in table.items()} for epoch in range(epochs)]
    (path / "metrics.csv").write_text(metrics_csv(rows))
    config = json.loads(configuration(experiment, MODELS[network]))
    config |= {"seed": seed}
    config["data"]["seed"] = seed
    config["trainer"]["max_epochs"] = epochs
    for name, changed in (settings or {}).items():
        group, _, leaf = name.rpartition(".")
        (config[group] if group else config)[leaf] = changed
    (path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    record = {"status": status, "experiment": experiment, "model": MODELS[network], "seed": seed, "epochs": epochs}
    record |= {"test": {"last": {"accuracy": test}}}
    (path / "run.json").write_text(json.dumps(record))
    return path
