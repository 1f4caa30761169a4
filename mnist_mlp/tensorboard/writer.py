"""Event files: how they are named and written, Lightning's logger over them, and how epochs are removed again."""

import time
from io import BytesIO
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.writer import FileWriter

from mnist_mlp.run.directory import durable_write

PREFIX = "events.out.tfevents."


def _next_name(directory: Path, kind: str) -> str:
    """A name after all others in the directory: the time in nanoseconds, or, where the clock was set back since the
    last file, the number after that file's. Earlier Lightning runs named their files by the second."""
    used = (path.name.removeprefix(PREFIX).partition(".")[0] for path in directory.glob(f"{PREFIX}*"))
    # Ten digits count seconds, nineteen nanoseconds. Padded, they compare as the names do.
    newest = max((int(number.ljust(19, "0")) for number in used if number.isdecimal()), default=0)
    return f"{PREFIX}{max(time.time_ns(), newest + 1)}.{kind}"


class EventFile:
    """One event file. It stands in for TensorBoard's own `EventFileWriter`.

    TensorBoard reads the files of a directory in order of their names and never returns to an earlier one. So the file
    is made at its first flush, under a name that comes after all names in the directory; see `_next_name`.

    Args:
        directory: made if it is missing.
        kind: the last part of the file's name.
    """

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory, self.kind = directory, kind
        self._events: list[Event] = []
        self._records: RecordWriter | None = None

    def get_logdir(self) -> str:
        return str(self.directory)

    def add_event(self, event: Event) -> None:
        self._events.append(event)

    def flush(self) -> None:
        if self._records is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter((self.directory / _next_name(self.directory, self.kind)).open("wb"))
        for event in self._events:
            self._records.write(event.SerializeToString())
        self._events = []
        self._records.flush()

    def close(self) -> None:
        if self._records is not None:
            self._records.close()


class EventWriter(SummaryWriter):
    """PyTorch's `SummaryWriter` over an `EventFile`.

    Args:
        directory, kind: as for `EventFile`.
        purge_step: TensorBoard drops this step and later ones of earlier files.
    """

    def __init__(self, directory: Path, kind: str, purge_step: int | None = None) -> None:
        self.kind = kind
        super().__init__(str(directory), purge_step=purge_step)

    def _get_file_writer(self) -> FileWriter:
        if self.all_writers is None:
            file = FileWriter.__new__(FileWriter)
            file.event_writer = EventFile(Path(self.log_dir), self.kind)
            file.add_event(Event(file_version="brain.Event:2"))
            if self.purge_step is not None:
                file.add_event(Event(step=self.purge_step, session_log=SessionLog(status=SessionLog.START)))
            self.file_writer: Any = file
            self.all_writers: Any = {self.log_dir: file}
        assert isinstance(self.file_writer, FileWriter)
        return self.file_writer

    def add(self, step: int, *summaries: Summary) -> None:
        """Writes the summaries as one event."""
        values = [value for summary in summaries for value in summary.value]
        self._get_file_writer().add_summary(Summary(value=values), step)


class EpochLogger(TensorBoardLogger):
    """Lightning's logger, writing to the file of the epochs: callbacks of a user may ask for a logger."""

    def __init__(self, directory: Path, purge_step: int) -> None:
        super().__init__(directory.parent, name="", version=directory.name, default_hp_metric=False)
        self.directory, self.purge_step = directory, purge_step
        self._writer: EventWriter | None = None

    @property
    def experiment(self) -> EventWriter:
        if self._writer is None:
            self._writer = EventWriter(self.directory, "epochs", self.purge_step)
        return self._writer

    def save(self) -> None:
        pass  # Lightning's would write `hparams.yaml`

    def finalize(self, status: str) -> None:
        pass  # Lightning's would close the file, but more is written after its last epoch

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def forget_epochs(directory: Path, after: int) -> None:
    """Removes every event after step `after` from the event files.

    `purge_step` is not enough: a TensorBoard that is started later still shows the precision-recall curves.
    """
    for path in directory.glob(f"{PREFIX}*"):
        records = list(RawEventFileLoader(str(path)).Load())
        kept = [record for record in records if Event.FromString(record).step <= after]
        if len(kept) < len(records):
            content = BytesIO()
            writer = RecordWriter(content)
            for record in kept:
                writer.write(record)
            durable_write(path, content.getvalue())
