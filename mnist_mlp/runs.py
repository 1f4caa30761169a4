"""The runs under a directory, as their files tell: what was run, how it ended, and each epoch's metrics."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mnist_mlp.rundir import read_record
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
        """Its network's name; of a record that calls one network by another's name, what was built."""
        label = self.record.get("model")
        return name_network(label, self.settings) if isinstance(label, str) else label

    @property
    def seed(self) -> Any:
        return self.record.get("seed")

    @property
    def completed(self) -> bool:
        return self.record.get("status") == "completed"

    def lines(self) -> list[str]:
        """The lines of its `metrics.csv`: the heading, then one for each epoch; [] where there is none yet.

        They are read anew at each call: of ten thousand runs nobody wants them all in memory.
        """
        metrics = self.path / "metrics.csv"
        return metrics.read_text(errors="replace").splitlines() if metrics.exists() else []

    @cached_property
    def epochs(self) -> "dict[str, np.ndarray]":
        """Its `metrics.csv`: each column's values, float64, one per epoch; {} where there is no epoch yet.

        Raises:
            SettingError: the file is not what a run writes.
        """
        import numpy as np

        heading, *lines = self.lines() or [""]
        if not lines:
            return {}
        try:
            values = np.array([[float(value) for value in line.split(",")] for line in lines])
            return dict(zip(heading.split(","), values.T, strict=True))
        except ValueError as error:
            problem = f"is damaged ({error}): restore it, or remove that run"
            raise SettingError("DIR", self.path / "metrics.csv", problem) from error


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
    return flatten(config)
