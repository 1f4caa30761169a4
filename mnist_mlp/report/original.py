"""What the original report says of its four runs, and what their records hold: read from `original.yaml`, and every
recorded epoch from `curves.csv`, which are the six digits that the report's notebook kept of each."""

import csv
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Headline:
    """A run's figures as printed, None where none is given: `str()` of each has the digits of the source.

    Args:
        final_accuracy: validation accuracy of the last epoch, in percent.
        best_accuracy: the highest of all epochs, in percent.
        best_epoch: which epoch that was.
        val_loss: of the last epoch.
        train_loss: of the last epoch.
        test_accuracy: of the last weights on the 3,000 test images, in percent.
    """

    final_accuracy: Decimal | None = None
    best_accuracy: Decimal | None = None
    best_epoch: int | None = None
    val_loss: Decimal | None = None
    train_loss: Decimal | None = None
    test_accuracy: Decimal | None = None


@dataclass(frozen=True)
class OriginalRun:
    """One of the original report's four runs.

    Args:
        experiment: 1 or 2, the original report's number.
        network: A or B.
        model: this project's name for it, network_a or network_b.
        as_run: this project's experiment that repeats the run as it was made.
        as_told: this project's experiment that is what the report's text describes.
        figure: the original report's number for its losses; the next is of its metrics.
        seconds: of training, as recorded.
        text: its figures in the report's prose.
        record: its figures in the records.
        epochs: its 500 recorded epochs, float64, under the names that the columns of `metrics.csv` have.
    """

    experiment: int
    network: str
    model: str
    as_run: str
    as_told: str
    figure: int
    seconds: int
    text: Headline
    record: Headline
    epochs: "dict[str, np.ndarray]"


@dataclass(frozen=True)
class Setup:
    """One thing that the original runs were made with, in Markdown: in Experiment 1 and in Experiment 2."""

    what: str
    baseline: str
    dropout: str


@cache
def original_runs() -> tuple[OriginalRun, ...]:
    """The four runs: Experiment 1 with A and B, Experiment 2 with A and B."""
    import numpy as np  # here, because `mnist-report --help` and --table do without

    with (Path(__file__).parent / "curves.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = [column for column in rows[0] if column not in ("experiment", "network")]
    found = []
    for run in _content()["runs"]:
        own = [row for row in rows if (int(row["experiment"]), row["network"]) == (run["experiment"], run["network"])]
        epochs = {column.replace("_", "/"): np.array([float(row[column]) for row in own]) for column in columns}
        found.append(OriginalRun(**run | {kind: _headline(run[kind]) for kind in ("text", "record")}, epochs=epochs))
    return tuple(found)


def original_run(experiment: int, network: str) -> OriginalRun:
    """One of the four."""
    return next(run for run in original_runs() if (run.experiment, run.network) == (experiment, network))


@cache
def setup() -> tuple[Setup, ...]:
    """How the original runs were really made, in the order of `original.yaml`."""
    return tuple(Setup(**entry) for entry in _content()["setup"])


@cache
def _content() -> Any:
    return yaml.safe_load((Path(__file__).parent / "original.yaml").read_text("utf-8"))


def _headline(entry: dict[str, Any]) -> Headline:
    figures: dict[str, Any] = {
        name: Decimal(value) if isinstance(value, str) else value for name, value in entry.items()
    }
    return Headline(**figures)
