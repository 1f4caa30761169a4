"""Made-up runs as `make paper` lays them out: a trend and noise that differ by treatment, network and seed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from helpers import make_run

LONG = ("baseline", "dropout_scheduler", "dropout_as_run")


def jobs(long: int, short: int) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """Experiment, place, epochs and changed settings of each kind of run."""
    target = {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True}
    step = {"scheduler": {**target, "step_size": 10, "gamma": 0.1}}
    for experiment in LONG:
        yield experiment, "long", long, {}
    yield "dropout_as_intended", "intended", short, {}
    for dropout in (0, 0.3):
        for init in ("default", "xavier_uniform"):
            for scheduler in ({}, step):
                yield "baseline", "factors", short, {"model.dropout": dropout, "model.init": init, **scheduler}
    for dropout in (0.4, 0.5, 0.6):
        yield "dropout_as_run", "more_dropout", short, {"model.dropout": dropout}


def make_paper(root: Path, seeds: int = 3, long: int = 500, short: int = 100) -> Path:
    """Every run of `make paper`, with other lengths if need be."""
    for number, (experiment, place, epochs, settings) in enumerate(jobs(long, short)):
        (root / place).mkdir(parents=True, exist_ok=True)
        for network in "AB":
            for seed in range(seeds):
                random = np.random.default_rng([number, network == "B", seed])
                epoch = np.arange(1, epochs + 1)
                accuracy = 0.97 + 0.001 * number * (network == "B") - 0.05 / epoch + random.normal(0, 0.002, epochs)
                val_loss = 0.1 + 0.1 / epoch + (0.05 + 0.01 * number) * epoch / epochs * random.uniform(0.5, 2)
                train_loss = 0.3 / epoch**0.5 * np.exp(random.normal(0, 0.3, epochs))
                path = make_run(
                    root / place,
                    experiment,
                    network,
                    seed,
                    epochs,
                    settings,
                    val_accuracy=accuracy,
                    val_precision=accuracy + 0.0001,
                    val_loss=val_loss * np.exp(random.normal(0, 0.05, epochs)),
                    train_loss=train_loss,
                    train_error=train_loss / 10,
                    val_error=1 - accuracy,
                    test=0.975 + 0.001 * seed,
                )
                best = {"epoch": int(accuracy.argmax()) + 1, "val/accuracy": float(accuracy.max())}
                record = json.loads((path / "run.json").read_text()) | {"best": best, "wall_seconds": 60.0 + seed}
                (path / "run.json").write_text(json.dumps(record))
    return root
