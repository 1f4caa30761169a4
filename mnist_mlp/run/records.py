"""The runs under a directory, as their files tell: what was run, how it ended, and each epoch's metrics."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mnist_mlp.run.identity import LENGTH, upgraded
from mnist_mlp.run.metrics import Row
from mnist_mlp.settings import SettingError, flatten, name_network

if TYPE_CHECKING:
    import numpy as np

WITHIN_A_RUN = ("checkpoints", "tensorboard", ".hydra")


@dataclass(frozen=True)
class Run:
    """One run directory.

    Args:
        path: the directory.
        name: the same, relative to the directory that was searched.
        record: its `run.json`.
        settings: its `config.yaml`, flat: {"optimizer.lr": 0.001}; {} where there is none yet.
    """

    path: Path
    name: str
    record: dict[str, Any]
    settings: dict[str, Any]

    @property
    def experiment(self) -> Any:
        return self.record.get("experiment")

    @property
    def model(self) -> Any:
        """Its network's name. Where a record calls one network by another's name, this is what was built."""
        label = self.record.get("model")
        return name_network(label, self.settings) if isinstance(label, str) else label

    @property
    def seed(self) -> Any:
        return self.record.get("seed")

    @property
    def completed(self) -> bool:
        """Whether it is all that it says it is: one that was cut down, as by `trainer.fast_dev_run`, is not."""
        return self.record.get("status") == "completed" and not self.record.get("cut_down")

    @cached_property
    def epochs(self) -> "Epochs":
        """What its `metrics.csv` holds."""
        return Epochs(self.path)

    @property
    def length(self) -> int:
        """How many epochs it has, by its record where it is completed: then its `metrics.csv` is not read."""
        return int(self.record.get("epochs", 0)) if self.completed else len(self.epochs)

    @property
    def planned(self) -> int:
        """How many epochs it was to have; those that it has, where its settings do not say."""
        planned = self.settings.get(LENGTH)
        return planned if isinstance(planned, int) else self.length

    def has(self, columns: Iterable[str]) -> bool:
        """Whether its `metrics.csv` has all of these columns."""
        return all(column in self.epochs for column in columns)


class Epochs:
    """What a run's `metrics.csv` holds, one row for each epoch. Its columns may be fewer than today's, or more, in any
    order.

    The file is read when this is made, and its numbers when they are asked for.

    Args:
        path: the run's directory; where there is no file yet, there are no epochs.

    Raises:
        SettingError: the file cannot be read; or, of a method that gives numbers, is not what a run writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path / "metrics.csv"
        try:
            text = self.path.read_text(errors="replace") if self.path.exists() else ""
        except OSError as error:
            raise SettingError("DIR", self.path, f"cannot be read ({error.strerror})") from error
        heading, *self._lines = text.splitlines() or [""]
        self.columns = tuple(heading.split(",")) if self._lines else ()

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, column: str) -> bool:
        return column in self.columns

    def texts(self, epoch: int) -> dict[str, str]:
        """One epoch, counted from 1, as it is written: the same where the bits are."""
        values = self._lines[epoch - 1].split(",")
        if len(values) != len(self.columns):
            raise self._damaged(f"epoch {epoch} has {len(values)} values for {len(self.columns)} columns")
        return dict(zip(self.columns, values, strict=True))

    def row(self, epoch: int) -> Row:
        """One epoch, counted from 1; -1 is the last one."""
        number = epoch if epoch > 0 else len(self) + 1 + epoch
        try:
            return {name: float(value) for name, value in self.texts(number).items()}
        except ValueError as error:
            raise self._damaged(error) from error

    @cached_property
    def table(self) -> "dict[str, np.ndarray]":
        """Each column's values, float64, one per epoch; {} where there is no epoch yet."""
        import numpy as np  # here, because a sweep's server and its live view do without

        try:
            values = np.array([[float(value) for value in line.split(",")] for line in self._lines])
            return dict(zip(self.columns, values.T, strict=True)) if self._lines else {}
        except ValueError as error:
            raise self._damaged(error) from error

    def __getitem__(self, column: str) -> "np.ndarray":
        """A column's values, float64, one per epoch."""
        if column not in self.table:
            raise self._damaged(f"it has no column {column}")
        return self.table[column]

    def _damaged(self, problem: object) -> SettingError:
        return SettingError("DIR", self.path, f"is damaged ({problem}): restore it, or remove that run")


def last_row(path: Path) -> Row | None:
    """The last whole epoch of a run that may still be writing, from the ends of its file; None where there is none."""
    try:
        with (path / "metrics.csv").open("rb") as file:
            columns = file.readline().decode().strip().split(",")
            file.seek(max(file.tell(), file.seek(0, os.SEEK_END) - 1000))
            *_, line = file.read().decode().splitlines()
        return dict(zip(columns, map(float, line.split(",")), strict=True))
    except (OSError, ValueError):  # not there yet, or its heading only
        return None


def read_record(path: Path) -> dict[str, Any]:
    """The `run.json` in the directory `path`, or {} where there is none.

    Raises:
        SettingError: it is not a JSON object, which nothing in this package leaves behind.
    """
    try:
        record: dict[str, Any] = json.loads((path / "run.json").read_text())
        if not isinstance(record, dict):
            raise ValueError("no JSON object")
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise SettingError("run_dir", path, f"has a damaged run.json ({error}): restore or remove that file") from error
    return record


def read_runs(directory: Path) -> list[Run]:
    """Each run under `directory`, finished or not, in order of its path, with numbers in their order.

    Raises:
        SettingError: there are none, or a `run.json` or `config.yaml` is damaged.
    """
    paths = list(find_runs(directory))
    if not paths:
        raise SettingError("DIR", directory, "holds no runs: give a directory with a run.json somewhere under it")
    return [Run(path, str(path.relative_to(directory)), read_record(path), read_settings(path)) for path in paths]


def find_runs(directory: Path) -> Iterator[Path]:
    """Each run directory under `directory`, in order of its path, with numbers in their order."""
    found = []
    for place, directories, files in os.walk(directory):
        directories[:] = [name for name in directories if name not in WITHIN_A_RUN]
        if "run.json" in files:
            found.append(Path(place))
    return iter(sorted(found, key=lambda path: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", str(path))]))


def read_settings(path: Path) -> dict[str, Any]:
    """The `config.yaml` in the directory `path`, flat; {} where there is none.

    Raises:
        SettingError: it cannot be read or is not YAML.
    """
    try:
        # Not OmegaConf, which takes twenty times as long: there may be thousands.
        config = yaml.load((path / "config.yaml").read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingError("DIR", path / "config.yaml", f"cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise SettingError("DIR", path / "config.yaml", "holds no settings: restore it, or remove that run")
    return upgraded(flatten(config))
