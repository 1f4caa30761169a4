"""The table of the runs under a directory, grouped over their seeds, and `results.csv` with a row for each run."""

import csv
import os
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mnist_mlp.run.directory import durable_write
from mnist_mlp.run.groups import Variant, by_length, completed, damage, variants, varied
from mnist_mlp.run.metrics import CLASSIFICATION, METRIC
from mnist_mlp.run.records import Run, read_runs
from mnist_mlp.settings import SettingError, counted, flatten
from mnist_mlp.sweeps.study import STUDY, conclude

# The columns of percentages, and their headings; `test` is the accuracy on the test set.
SCORES = {f"val/{name}": METRIC[f"val/{name}"].short for name in CLASSIFICATION} | {"test": "test"}
KINDS = {"final": "last", "best": "best"}  # of a run's epochs: in the validation's columns, and in the test's
REFRESH = 2.0  # seconds between two looks of --watch
# Under a table that has both: the second, beside the baseline, looks broken.
TWO_READINGS = (
    "dropout_as_run repeats the original report's Experiment 2 as its code ran. dropout_scheduler is what its text "
    "says: Adam at 0.01, which is too high a rate here."
)

Result = dict[str, Any]  # a row of results.csv


class TableRow(NamedTuple):
    """A row of the table: runs that differ in nothing but their seeds.

    Args:
        variant: what they have in common.
        length: how many epochs they were to have, where others of the variant were to have more or fewer.
        runs: all of them.
        results: the rows of `results.csv` of the completed ones, one for each seed.
    """

    variant: Variant
    length: int | None
    runs: Sequence[Run]
    results: Sequence[Result]


def summarise(directory: Path) -> list[Run]:
    """Prints the table of the runs under `directory` and saves a row for each there, as `results.csv`.

    Returns:
        The runs.

    Raises:
        SettingError: there are none.
    """
    runs = read_runs(directory)
    rows = results(runs)
    console = Console(highlight=False)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        if os.path.lexists(directory / STUDY):
            conclude(directory, console.print)
        else:
            console.print(view(runs))  # first: it takes no room on a disk
    finally:  # though nobody reads what is printed
        durable_write(directory / "results.csv", text.getvalue().encode())
    console.print(f"Saved as {os.path.relpath(directory / 'results.csv')}", soft_wrap=True, markup=False)
    return runs


def watch(directory: Path) -> None:
    """Shows the table on the terminal, and what has changed in it, until it is interrupted.

    Raises:
        SettingError: there are no runs.
    """
    with Live(view(read_runs(directory)), console=Console(highlight=False), auto_refresh=False) as live:
        while True:
            time.sleep(REFRESH)
            live.update(view(read_runs(directory)), refresh=True)


def results(runs: Sequence[Run]) -> list[Result]:
    """The rows of `results.csv`, one for each run."""
    others = varied(runs)
    return [result(run, others[run.name]) for run in runs]


def result(run: Run, varied: Mapping[str, str | None]) -> Result:
    """One row of `results.csv`: the run, its last and its best epoch's validation metrics, its test metrics.

    Args:
        run: the run.
        varied: its settings that other runs have otherwise.
    """
    record = run.record
    best_epoch = record.get("best", {}).get("epoch")
    problem = damage(run) or "" if run.completed else ""
    best = _epoch(run, best_epoch)
    return {
        "run": run.name,
        "status": record.get("status"),
        "experiment": run.experiment,
        "model": run.model,
        "seed": run.seed,
        **varied,
        "epochs": record.get("epochs") if run.completed else run.length,
        **{f"final/{name}": value for name, value in record.get("final", {}).items() if name.startswith("val/")},
        "best/epoch": best_epoch,
        **{f"best/{name}": value for name, value in best.items() if name.startswith("val/")},
        **{f"test/{name.replace('.', '/')}": value for name, value in flatten(record.get("test", {})).items()},
        "seconds": record.get("wall_seconds"),
        "weights_sha256": record.get("weights_sha256"),
        "error": " ".join((record.get("error") or problem).split()),
    }


def _epoch(run: Run, epoch: int | None) -> dict[str, str]:
    """One epoch's metrics as they are written; {} where they cannot be read."""
    with suppress(SettingError):
        if epoch is not None and epoch <= len(run.epochs.rows):
            return run.epochs.texts(epoch)
    return {}


def view(runs: Sequence[Run]) -> Group:
    """The table, and under it what is not completed."""
    result_of = {result["run"]: result for result in results(runs)}
    heading = "validation, and the accuracy on the test set, in %"
    if len({run.seed for run in runs if run.completed}) > 1:
        heading += ": mean ± standard deviation"
    rows = [
        TableRow(
            variant, (length or None) if several else None, of_it, [result_of[run.name] for run in completed(of_it)]
        )
        for variant in variants([run for run in runs if not run.damaged])
        for lengths in [by_length(variant.runs)]
        for several in [len(lengths.keys() - {0}) > 1]  # 0: of those that never began
        for length, of_it in lengths.items()
    ]
    both = {"dropout_as_run", "dropout_scheduler"} <= {run.experiment for run in runs}
    notes = [Text(TWO_READINGS, style="italic")] if both else []
    return Group(Text(heading, style="italic"), results_table(rows), *notes, *_not_completed(list(result_of.values())))


def _not_completed(results: Sequence[Result]) -> list[Text]:
    counts = Counter(result["status"] for result in results)
    said = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    lines = [] if set(counts) == {"completed"} else [Text(f"{counted(len(results), 'run')}: {said}")]
    told = [result for result in results if result["error"] and result["status"] not in ("interrupted", "running")]
    return lines + [Text(f"  {result['run']}: {result['error']}", style="red") for result in told]


def results_table(rows: Sequence[TableRow]) -> Table:
    """Means over the seeds: for each row its last epoch and its best one, with the standard deviation under each where
    there are several seeds; metrics in percent, at most 80 columns wide.

    The highest mean of a column is bold and has an asterisk, among the last epochs and among the best ones.
    """
    shown = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    shown.add_column("run", overflow="fold")
    shown.add_column("epoch", justify="right", no_wrap=True)
    for heading in SCORES.values():
        shown.add_column(f"{heading} ", justify="right", no_wrap=True)  # with room for an asterisk, as the numbers have
    shown.add_column("seconds", justify="right", no_wrap=True)
    highest = {
        (score, kind): max(
            (statistics.fmean(found) for row in rows if (found := _values(row.results, score, kind))), default=None
        )
        for score in SCORES
        for kind in KINDS
    }
    for row in rows:
        cells = [_epochs(row.results), *(_scores(row, score, highest, len(rows) > 1) for score in SCORES)]
        shown.add_row(_name(row), *([*cells, _seconds(row.results)] if row.results else []))
    return shown


def _values(results: Sequence[Result], score: str, kind: str) -> list[float]:
    """A score of each run that has it, in percent."""
    column = f"test/{KINDS[kind]}/accuracy" if score == "test" else f"{kind}/{score}"
    return [100 * float(result[column]) for result in results if result.get(column) not in (None, "")]


def _scores(row: TableRow, score: str, highest: Mapping[tuple[str, str], float | None], mark: bool) -> str:
    lines = []
    for kind in KINDS:
        found = _values(row.results, score, kind)
        text = f"{statistics.fmean(found):.2f}" if found else ""
        best = mark and found and statistics.fmean(found) == highest[score, kind]
        lines += [f"[bold]{text}*[/bold]" if best else f"{text} "]
        lines += [f"±{statistics.stdev(found):.2f} "] if len(found) > 1 else []
    return "\n".join(lines)


def _name(row: TableRow) -> str:
    n = len(row.results)
    lines = [row.variant.experiment, row.variant.model, *row.variant.leaves]
    if n == 1:
        lines[1] += f", seed {row.results[0]['seed']}"
    lines += [f"max_epochs={row.length}"] if row.length is not None else []
    lines += [f"n = {n}"] if n > 1 else []
    others = Counter(run.record.get("status") for run in row.runs if not run.completed)
    return "\n".join([*map(escape, lines), *(f"[red]{count} {status}[/red]" for status, count in others.items())])


def _epochs(results: Sequence[Result]) -> str:
    lines = []
    for kind, column in (("last", "epochs"), ("best", "best/epoch")):
        reached = sorted({result[column] for result in results if result[column] is not None}) or [""]
        lines += [f"{kind} {reached[0]}"]
        lines += [f"to {reached[-1]}" if len(reached) > 1 else ""] if len(results) > 1 else []
    return "\n".join(lines)


def _seconds(results: Sequence[Result]) -> str:
    seconds = [result["seconds"] for result in results if result["seconds"] is not None]
    lines = [f"{statistics.fmean(seconds):.1f}"] if seconds else []
    lines += [f"±{statistics.stdev(seconds):.1f}"] if len(seconds) > 1 else []
    return "\n".join(lines)
