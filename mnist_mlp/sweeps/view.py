"""A sweep while it runs: a live table of its jobs on a terminal, and plain lines in `sweep.log`."""

import contextlib
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from mnist_mlp.run.records import last_row
from mnist_mlp.sweeps.jobs import Job, last_epoch

STYLES = {"failed": "red", "interrupted": "yellow", "completed": "green", "pruned": "dim"}
KEY = re.compile(r"(?:^|,)[~+]*([\w.@/]+)=")  # in a job's name; a comma inside a value's brackets starts no key
REFRESH = 1.0  # seconds between two looks at what the jobs have written


class SweepView:
    """Shows the jobs until it is left: a table that is drawn anew each second on a terminal, lines elsewhere.

    Args:
        jobs: all of the sweep, also those that are added later.
        directory: of the sweep, for its `sweep.log`.
    """

    def __init__(self, jobs: list[Job], directory: Path) -> None:
        self.jobs = jobs
        self.directory = directory
        self.log = directory / "sweep.log"
        self.console = Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._started = time.monotonic()
        self._looked = 0.0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(self._table(), console=self.console, auto_refresh=False, transient=True)
            self._live.start()
            self.console.show_cursor(True)  # a sweep that is killed leaves the terminal as it was
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str, style: str = "", on_terminal: bool = True) -> None:
        """A line for standard error and, with the time, for `sweep.log`.

        Args:
            line: what happened.
            style: rich's, for a terminal.
            on_terminal: whether a terminal has it above the table; the table itself shows what jobs do.
        """
        # Of a full disk the jobs themselves will speak.
        with contextlib.suppress(OSError), self.log.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}\n")
        if self._live is None:
            print(line, file=sys.stderr, flush=True)
        elif on_terminal:
            self.console.print(escape(line), style=style, soft_wrap=True)

    def say_end(self, job: Job, stopping: bool) -> None:
        """Says what came of a job that has ended; `stopping` is whether it was asked to stop."""
        if job.state in ("completed", "pruned"):
            self.say(f"{job.state} {job.name}{last_epoch(job)}", on_terminal=False)
        elif stopping:
            self.say(f"stopped {job.name}{last_epoch(job)}", "yellow", on_terminal=False)
        else:
            self.say(f"failed {job.name}: {job.cause}", "red")

    def refresh(self) -> None:
        """Draws the table anew, at most once a second."""
        if self._live is not None and time.monotonic() - self._looked >= REFRESH:
            self._looked = time.monotonic()
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        shown = [job for state in ("running", "failed", "interrupted") for job in self.jobs if job.state == state]
        room = max(1, (self.console.height - 5) // 2)  # a long name takes two lines
        keys = {tuple(KEY.findall(job.name)) for job in self.jobs}
        heading = ", ".join(next(iter(keys))) if len(keys) == 1 else ""
        table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left", caption_style="")
        table.add_column(heading or "job", overflow="fold")
        table.add_column("state", no_wrap=True)
        for column in ("epoch", "loss", "accuracy", "left"):
            table.add_column(column, justify="right", no_wrap=True)
        for job in shown[:room]:
            # Where every job varies the same settings, the heading names them.
            name = ", ".join(KEY.split(job.name)[2::2]) if heading else job.name
            table.add_row(escape(name), job.state, *self._progress(job), style=STYLES.get(job.state, ""))
        counts = Counter(job.state for job in self.jobs)
        parts = [f"{count} {state}" for state, count in sorted(counts.items())]
        if len(shown) > room:
            parts.append(f"{len(shown) - room} not shown")
        elapsed = timedelta(seconds=int(time.monotonic() - self._started))
        table.caption = f"{', '.join(parts)}; {elapsed} so far"
        return table

    def _progress(self, job: Job) -> Iterator[str]:
        row = last_row(job.path)
        yield f"{int(row['epoch']) if row else 0}/{job.epochs}"
        if row is not None:
            yield f"{row['train/loss']:.4f}"
            yield f"{row['val/accuracy']:.2%}"
            if job.state == "running":
                yield str(timedelta(seconds=round((job.epochs - row["epoch"]) * row["seconds"])))
