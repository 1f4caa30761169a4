"""A run directory: one process at a time, and files that are whole whenever the power goes."""

import csv
import errno
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mnist_mlp.run.identity import LENGTH, STEPS, other_settings, upgraded, was_run_with
from mnist_mlp.run.metrics import COLUMNS, Row
from mnist_mlp.run.records import Epochs, load_settings, read_record
from mnist_mlp.settings import SettingError, flatten, make_directory

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)

LAST, BEST = Path("checkpoints", "last.ckpt"), Path("checkpoints", "best.ckpt")
FILES = ("run.json", "config.yaml", "metrics.csv", "train.log", "uncommitted.diff", LAST, BEST)


def durable_write(path: Path, content: bytes) -> None:
    """Replaces `path` as a whole: written beside it, flushed to disk, renamed over it.

    Raises:
        OSError: the disk is full or the directory cannot be written; `path` is then what it was.
    """
    durable_write_all({path: content})


def durable_write_all(contents: Mapping[Path, bytes]) -> None:
    """As `durable_write`, of several files of one directory, or of more: none is replaced before all are on disk.

    Raises:
        OSError: as there; every file is then what it was.
    """
    written: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            written[path] = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            _write(written[path], content)
        for path, temporary in written.items():
            temporary.replace(path)
    except BaseException as error:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = os.fspath(path)
        raise
    for place in {path.parent for path in contents} if os.name == "posix" else ():
        directory = os.open(place, os.O_RDONLY)
        try:
            os.fsync(directory)  # the renames themselves
        finally:
            os.close(directory)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def disk_errors(run_dir: str) -> Iterator[None]:
    """Raises: SettingError, where the disk is full or can no longer be written."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOENT and not os.path.isdir(run_dir):
            problem = "was deleted while the run was at work: the same command begins it again"
            raise SettingError("run_dir", os.path.relpath(run_dir), problem) from error
        # Only of a file in the directory, or of one without a name, which is being written.
        inside = error.filename is None or Path(os.path.abspath(error.filename)).is_relative_to(
            os.path.abspath(run_dir)
        )
        if error.errno not in DISK_ERRORS or not inside:
            raise
        problem = f"cannot be written ({error.strerror}): mend that, and the same command goes on where this stopped"
        raise SettingError("run_dir", os.path.relpath(run_dir), problem) from error


class RunDirectory:
    """The files of one run, as `README.md` describes them, and the right to write them.

    Args:
        path: the directory; made if it is not there.

    Raises:
        SettingError: it cannot be written, or another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.csv"
        self.uncommitted = path / "uncommitted.diff"
        self.last = path / LAST
        self.best = path / BEST
        make_directory(path)
        self.last.parent.mkdir(exist_ok=True)
        self._lock = FileLock(path / ".lock")
        try:
            self._lock.acquire(timeout=0)  # the kernel frees it when this process ends, however it ends
        except Timeout as error:
            raise SettingError("run_dir", path, "is in use by another process: give another one, or wait") from error

        for place in (path, self.last.parent, path / "tensorboard"):
            for stale in place.glob(".*.tmp"):
                stale.unlink()  # what a killed process was writing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def is_complete(self, config: DictConfig) -> bool:
        """Whether the directory holds the whole run that the configuration asks for.

        Raises:
            SettingError: it holds a run with other settings.
        """
        longer = refuse_other_settings(self.path, config)
        return self.last.exists() and self.read_record().get("status") == "completed" and not longer

    def refuse_checkpoint(self, checkpoint: Mapping[str, Any], config: DictConfig) -> None:
        """Raises: SettingError, where this `last.ckpt` is of a run with other settings than this directory's."""
        others = other_settings(checkpoint["hyper_parameters"], config)
        others.pop(LENGTH, None)  # the run may have become a longer one
        if others:
            raise SettingError(
                "run_dir", self.last, f"is of a run with another {', '.join(others)}: restore this run's"
            )

    def write_config(self, config: DictConfig) -> None:
        """Writes `config.yaml`, and Hydra's own record under a Hydra job."""
        durable_write(self.config, OmegaConf.to_yaml(config).encode())
        if HydraConfig.initialized():
            hydra_config = OmegaConf.create({"hydra": HydraConfig.get()})
            hydra_directory = self.path / ".hydra"
            hydra_directory.mkdir(exist_ok=True)
            durable_write(hydra_directory / "config.yaml", OmegaConf.to_yaml(config).encode())
            durable_write(hydra_directory / "hydra.yaml", OmegaConf.to_yaml(hydra_config).encode())
            overrides = OmegaConf.to_yaml(hydra_config.hydra.overrides.task)
            durable_write(hydra_directory / "overrides.yaml", overrides.encode())

    def read_record(self) -> dict[str, Any]:
        """`run.json`, or {} in a new directory."""
        return read_record(self.path)

    def update_record(self, **entries: Any) -> None:
        """Writes `run.json` with these entries changed; None removes one."""
        record = {key: value for key, value in (self.read_record() | entries).items() if value is not None}
        durable_write(self.path / "run.json", (json.dumps(record, indent=2) + "\n").encode())

    def write_uncommitted(self, diff: str | None) -> None:
        """Writes `uncommitted.diff`; where nothing was uncommitted there is none."""
        if diff is None:
            self.uncommitted.unlink(missing_ok=True)
        else:
            durable_write(self.uncommitted, diff.encode(errors="surrogateescape"))

    def epochs_written(self) -> int:
        """Rows of `metrics.csv`."""
        return len(Epochs(self.path))

    def write_metrics(self, rows: Iterable[Row]) -> None:
        durable_write(self.metrics, metrics_csv(rows).encode())


def refuse_other_settings(path: Path, config: DictConfig) -> bool:
    """Compares the configuration of the run in a directory, if it holds one, with the one asked for, whose
    `trainer.steps=auto` becomes the record's, and so does `portable`, where the record is older than that.

    Returns:
        Whether more epochs are asked for than before.

    Raises:
        SettingError: they differ in more than `other_settings` leaves out or how many epochs it may yet take; or the
            directory holds what no run has written.
    """
    for name in FILES:
        if os.path.lexists(path / name) and not (path / name).is_file():  # a pipe would be waited for
            raise SettingError("run_dir", path, f"has a {name} that is no ordinary file: remove it")
    read_record(path)
    if not os.path.lexists(path / LAST):
        return False
    recorded = load_settings(path, "run_dir")
    longer = config.trainer.max_epochs > recorded.trainer.max_epochs
    others = other_settings(recorded, config)
    if longer:
        del others[LENGTH]
    if others:
        raise SettingError("run_dir", path, f"{was_run_with(others)}: keep that, or give another run_dir")
    if config.trainer.steps == "auto":
        config.trainer.steps = upgraded(flatten(recorded)).get(STEPS, "eager")
    if "portable" not in recorded:
        config.portable = False
    return bool(longer)


def metrics_csv(rows: Iterable[Mapping[str, float]]) -> str:
    """One line per epoch; floats as their shortest text that reads back as the same bits."""
    text, rows = io.StringIO(), list(rows)
    columns = rows[0].keys() if rows else COLUMNS  # a run may have metrics of its own
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
