"""What a refused command leaves: nothing. Hydra makes a directory before all that it is given has been looked at."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

HYDRAS = ("multirun.yaml", ".lock")  # the files of a sweep's directory before its first job has begun

_new: set[Path] = set()  # directories of this process that were not there before it


class NoteNew(Callback):
    """Hydra callback: notes a directory that Hydra is going to make."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _note(config, config.hydra.run)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _note(config, config.hydra.sweep)


def _note(config: DictConfig, place: DictConfig) -> None:
    HydraConfig.instance().set_config(config)  # a place's name interpolates Hydra's choices
    with suppress(OmegaConfBaseException):  # it has no name that could be used, so it is not made
        if not os.path.lexists(place.dir):
            _new.add(Path(place.dir).absolute())


def remove_refused() -> None:
    """Removes the directories that this process has made and put nothing into but Hydra's own files; then the empty
    ones around them that lie in the working directory, such as logs/sweeps."""
    for directory in _new:
        if not os.path.isdir(directory) or any(map(_is_content, directory.rglob("*"))):
            continue
        with suppress(OSError, Timeout), FileLock(directory / ".lock").acquire(timeout=0):  # else it is in use
            shutil.rmtree(directory)
            for place in directory.parents:
                if any(place.iterdir()) or Path.cwd() not in place.parents:
                    break
                place.rmdir()
    _new.clear()


def _is_content(path: Path) -> bool:
    return not (path.is_dir() or path.name in HYDRAS or path.parent.name == ".hydra")
