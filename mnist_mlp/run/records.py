"""The runs under a directory, as their files tell: what was run, how it ended, and each epoch's metrics."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from mnist_mlp.reading import parse_json, parse_yaml, read_file
from mnist_mlp.run.identity import LENGTH, upgraded
from mnist_mlp.run.metrics import CLASSIFICATION, METRIC, Row
from mnist_mlp.run.shape import (
    ANY_NUMBER,
    AT_LEAST_ZERO,
    COUNT,
    FRACTION,
    FROM_ONE,
    OF_FORM,
    OTHERS,
    ROW,
    TEXT,
    TRUTH,
    Kind,
    Whole,
    choice,
    fault,
    optional,
)
from mnist_mlp.settings import SettingError, flatten, load_yaml, name_network

if TYPE_CHECKING:
    import numpy as np

WITHIN_A_RUN = ("checkpoints", "tensorboard", ".hydra")
DAMAGED = "damaged"  # the status of a run whose files cannot be read

# What this package writes into run.json, each entry as soon as it is known. More may follow.
RECORD: dict[str, Kind] = {
    "status": choice("running", "completed", "interrupted", "failed"),
    "error": TEXT,
    "experiment": TEXT,
    "model": TEXT,
    "seed": COUNT,
    "epochs": COUNT,
    "cut_down": [TEXT],
    "threads": FROM_ONE,
    "steps": TEXT,
    "device": TEXT,
    "portable": TRUTH,
    "not_portable": TEXT,
    "arithmetic": {OTHERS: TEXT},
    "git": {"commit": optional(TEXT), "dirty": optional(TRUTH)},
    "versions": {OTHERS: TEXT},
    "loggers": {OTHERS: TEXT},
    "best": ROW | {"epoch": FROM_ONE},
    "final": ROW,
    "test": {OTHERS: dict.fromkeys(CLASSIFICATION, FRACTION) | {OTHERS: ANY_NUMBER}},
    "weights_sha256": TEXT,
    "data_sha256": TEXT,
    "wall_seconds": AT_LEAST_ZERO,
}
# What of config.yaml is read by name. A file that was cut off lacks a group.
SETTINGS = Whole(data={}, model={}, optimizer={}, trainer=Whole(max_epochs=FROM_ONE))
ALSO: dict[str, Kind] = {"seed": COUNT, "loss": {}, "scheduler": {}, "callbacks": {}, "logger": {}, "metrics": {}}


@dataclass(frozen=True)
class Run:
    """One run directory.

    Args:
        path: the directory.
        name: the same, relative to the directory that was searched.
        record: its `run.json`.
        settings: its `config.yaml`, flat: {"optimizer.lr": 0.001}; {} where there is none yet.
        problem: why its files cannot be read; None where they can.
    """

    path: Path
    name: str
    record: dict[str, Any]
    settings: dict[str, Any]
    problem: SettingError | None = None

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
    def damaged(self) -> bool:
        """Whether its files cannot be read. Its record then says that, and why, and nothing else."""
        return self.problem is not None

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
        if self.damaged:
            return 0
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
        text = ""
        try:
            text = read_file(self.path).decode()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise SettingError("DIR", self.path, f"cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise self._damaged("it is no text") from error
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
        return dict(zip(self.columns, self.rows[epoch - 1 if epoch > 0 else epoch], strict=True))

    @cached_property
    def rows(self) -> list[list[float]]:
        """Each epoch's values, in the order of the columns."""
        try:
            rows = [[float(value) for value in self.texts(epoch).values()] for epoch in range(1, len(self) + 1)]
        except ValueError as error:
            raise self._damaged(error) from error
        if len(set(self.columns)) < len(self.columns):
            raise self._damaged("two columns have the same name")
        for column, values in zip(self.columns, zip(*rows, strict=True), strict=True):
            if column == "epoch" and list(values) != list(range(1, len(self) + 1)):
                raise self._damaged("its epochs are not 1, 2, 3 and so on")
            rule = OF_FORM[METRIC[column].form] if column in METRIC else ANY_NUMBER
            if (wrong := next((value for value in values if not rule.accepts(value)), None)) is not None:
                raise self._damaged(f"{column}={wrong}, which must be {rule.wanted}")
        return rows

    @cached_property
    def table(self) -> "dict[str, np.ndarray]":
        """Each column's values, float64, one per epoch; {} where there is no epoch yet."""
        import numpy as np  # here, because a sweep's server and its live view do without

        return dict(zip(self.columns, np.array(self.rows).T, strict=True)) if self._lines else {}

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
        if not (path / "metrics.csv").is_file():  # a pipe would be waited for
            return None
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
        SettingError: it cannot be read, or is none that this package writes.
    """
    try:
        record = parse_json(read_file(path / "run.json"))
        problem = fault(record, RECORD) if isinstance(record, dict) else "no JSON object"
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingError("run_dir", path, f"has a run.json that cannot be read ({error.strerror})") from error
    except ValueError as error:
        problem = str(error)
    if problem is not None:
        raise SettingError("run_dir", path, f"has a damaged run.json ({problem}): restore or remove that file")
    return dict(record)


def read_runs(directory: Path) -> list[Run]:
    """Each run under `directory`, finished or not, in order of its path, with numbers in their order.

    A run that cannot be read is there too, as `damaged`.

    Raises:
        SettingError: there are none, or none that can be read.
    """
    runs = [_read_run(path, directory) for path in find_runs(directory)]
    if not runs:
        raise SettingError("DIR", directory, "holds no runs: give a directory with a run.json somewhere under it")
    problems = [run.problem for run in runs if run.problem is not None]
    if len(problems) == len(runs):
        raise problems[0]
    return runs


def _read_run(path: Path, directory: Path) -> Run:
    name = os.fsencode(path.relative_to(directory)).decode(errors="replace")
    try:
        run = Run(path, name, read_record(path), read_settings(path))
        if not run.completed:
            _ = run.epochs  # of a completed one they are read when they are asked for: there may be thousands
        return run
    except SettingError as error:
        return Run(path, name, {"status": DAMAGED, "error": str(error)}, {}, error)


def find_runs(directory: Path) -> Iterator[Path]:
    """Each run directory under `directory`, in order of its path, with numbers in their order."""
    found = []
    for place, directories, files in os.walk(directory):
        if "run.json" in (*files, *directories):  # a directory of that name is a record that is damaged
            found.append(Path(place))
        directories[:] = [name for name in directories if name not in (*WITHIN_A_RUN, "run.json")]
    return iter(sorted(found, key=lambda path: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", str(path))]))


def read_settings(path: Path) -> dict[str, Any]:
    """The `config.yaml` in the directory `path`, flat; {} where there is none.

    Raises:
        SettingError: it cannot be read, or is none that this package writes.
    """
    try:
        # Not by OmegaConf, which takes twenty times as long: there may be thousands.
        config = parse_yaml(content := read_file(path / "config.yaml"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problem = f"cannot be read ({error.strerror if isinstance(error, OSError) else error})"
        raise SettingError("DIR", path / "config.yaml", problem) from error
    if b"${" in content and isinstance(config, dict):  # written by hand: what a run records has values only
        config = OmegaConf.to_container(load_yaml(path / "config.yaml", "DIR"), resolve=True)
    _refuse_settings(config, "DIR", path / "config.yaml")
    return upgraded(flatten(config))


def load_settings(path: Path, setting: str) -> DictConfig:
    """The `config.yaml` in the directory `path`, to run it again; `setting` is what to call the directory.

    Raises:
        SettingError: there is no such directory, or the file cannot be read, or does not say all that a run needs.
    """
    try:
        path.stat()
    except FileNotFoundError as error:
        raise SettingError(setting, path, "there is no such directory") from error
    except OSError:  # said where the file is read
        pass
    if os.path.isfile(path) and os.path.isfile(path.parent / "config.yaml"):
        raise SettingError(setting, path, f"is a file in a run's directory: give {path.parent}")
    if not os.path.lexists(path / "config.yaml") and (run := next(find_runs(path), path)) != path:
        raise SettingError(setting, path, f"holds runs: give one of them, such as {run}")
    config = load_yaml(path / "config.yaml", setting)
    _refuse_settings(parse_yaml(read_file(path / "config.yaml")), setting, path / "config.yaml")
    return config


def _refuse_settings(config: Any, setting: str, file: Path) -> None:
    if not isinstance(config, dict):
        raise SettingError(setting, file, "holds no settings: restore it, or remove that run")
    given = {name: value for name, value in config.items() if value is not None or name in SETTINGS}
    if (problem := fault(given, SETTINGS) or fault(given, ALSO)) is not None:
        raise SettingError(setting, file, f"is damaged ({problem}): restore it, or remove that run")
