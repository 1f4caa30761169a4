"""How events are written: the files, the writer over them, Lightning's logger, and how epochs are taken back."""

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


class EventFile:
    """A file of events, in place of TensorBoard's own `EventFileWriter`.

    TensorBoard reads the files of a directory one after the other, in order of their names, and never returns to one.
    The names of its own writer order files only by the second, and it makes a file before there is an event for it.
    This class names its file by the nanosecond and makes it at the first flush. It needs no thread.

    Args:
        directory: made if it is not there.
        kind: the end of the file's name.
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
            # Sorts after the files of earlier Lightning runs, which have the second here, then a dot.
            path = self.directory / f"events.out.tfevents.{time.time_ns()}.{self.kind}"
            self._records = RecordWriter(path.open("wb"))
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
        purge_step: TensorBoard forgets what earlier files have from this step on.
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
    """Lightning's logger over an `EventWriter`, for callbacks that ask for a logger. It writes no `hparams.yaml`."""

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
        pass

    def finalize(self, status: str) -> None:
        pass  # there is more to write after Lightning's last epoch

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def forget_epochs(directory: Path, after: int) -> None:
    """Removes the events of later steps from the event files.

    `purge_step` alone is not enough: it makes TensorBoard drop them, but not the precision-recall curves among them
    when TensorBoard is started later.
    """
    for path in directory.glob("events.out.tfevents.*"):
        records = list(RawEventFileLoader(str(path)).Load())
        kept = [record for record in records if Event.FromString(record).step <= after]
        if len(kept) < len(records):
            content = BytesIO()
            writer = RecordWriter(content)
            for record in kept:
                writer.write(record)
            durable_write(path, content.getvalue())
