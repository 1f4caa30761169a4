"""`mnist-report DIR`: the runs under a directory, grouped over their seeds: a table, `results.csv` and a report."""

import csv
import os
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mnist_mlp.run.directory import durable_write
from mnist_mlp.run.identity import PLACES
from mnist_mlp.run.records import Run, read_runs
from mnist_mlp.settings import SettingError, flatten, spelled
from mnist_mlp.sweeps.study import STUDY, conclude

METRICS = ("accuracy", "precision", "recall", "f1")
KINDS = {"final": "last", "best": "best"}  # of a run's epochs: in the validation's columns, and in the test's
NAMES = ("experiment", "model", "seed")
SEEDS = ("seed", "data.seed")  # what differs between the runs of a group
KEPT = ("run.json", "config.yaml", "metrics.csv")  # what a record of a run needs, and `mnist-rerun`
REFRESH = 2.0  # seconds between two looks of --watch


def summarise(directory: Path) -> list[Run]:
    """Prints the table of the runs under `directory` and saves a row for each there, as `results.csv`.

    Returns:
        The runs.

    Raises:
        SettingError: there are none.
    """
    runs = read_runs(directory)
    rows = results(runs)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    durable_write(directory / "results.csv", text.getvalue().encode())
    console = Console(highlight=False)
    console.print(conclude(directory) if (directory / STUDY).exists() else view(rows))
    console.print(f"Saved as {os.path.relpath(directory / 'results.csv')}", soft_wrap=True)
    return runs


def watch(directory: Path) -> None:
    """Shows the table on the terminal, and what has changed in it, until it is interrupted.

    Raises:
        SettingError: there are no runs.
    """
    with Live(view(results(read_runs(directory))), console=Console(highlight=False), auto_refresh=False) as live:
        while True:
            time.sleep(REFRESH)
            live.update(view(results(read_runs(directory))), refresh=True)


def results(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The rows of `results.csv`, one for each run."""
    others = varied(runs)
    return [result(run, others[run.name]) for run in runs]


def varied(runs: Sequence[Run]) -> dict[str, dict[str, str | None]]:
    """Of each run by name its settings that differ between runs of one experiment and model, the seed aside; None for
    one that it does not have."""
    settings = [settings_shown(run) for run in runs]
    values: dict[tuple[Any, str], set[str]] = defaultdict(set)
    counts = Counter((run.experiment, run.model) for run in runs)
    present: Counter[tuple[Any, str]] = Counter()
    for run, given in zip(runs, settings, strict=True):
        for name, value in given.items():
            key = ((run.experiment, run.model), name)
            values[key].add(value)
            present[key] += 1
    # A run that lacks a setting, since that is newer or of another optimizer, ran as with null.
    lacking = {key: {"null"} if present[key] < counts[key[0]] else set() for key in values}
    names = sorted({key[1] for key, seen in values.items() if len(seen | lacking[key]) > 1})
    return {run.name: {name: given.get(name) for name in names} for run, given in zip(runs, settings, strict=True)}


def settings_shown(run: Run) -> dict[str, str]:
    """The run's settings, less its seed and place, each as the command line writes it."""
    left_out = (*PLACES, *SEEDS, "experiment", "network")
    return {
        name: str(spelled(value))
        for name, value in run.settings.items()
        if name not in left_out and not name.startswith("data.sha256")  # which follow from the data
    }


def result(run: Run, varied: dict[str, str | None]) -> dict[str, Any]:
    """One row of `results.csv`: the run, its last and its best epoch's validation metrics, its test metrics.

    Args:
        run: the run.
        varied: its settings that other runs have otherwise.
    """
    record, epochs = run.record, run.epochs
    best_epoch = record.get("best", {}).get("epoch")
    best_row: dict[str, str] = {}
    if best_epoch is not None and best_epoch <= len(epochs):
        with suppress(SettingError):  # a damaged file too
            best_row = epochs.texts(best_epoch)
    return {
        "run": run.name,
        "status": record.get("status"),
        **{key: record.get(key) for key in NAMES},
        **varied,
        "epochs": record.get("epochs") if run.completed else len(epochs),
        **{f"final/{key}": value for key, value in (record.get("final") or {}).items() if key.startswith("val/")},
        "best/epoch": best_epoch,
        **{f"best/{key}": value for key, value in best_row.items() if key.startswith("val/")},
        **{f"test/{key.replace('.', '/')}": value for key, value in flatten(record.get("test", {})).items()},
        "seconds": record.get("wall_seconds"),
        "weights_sha256": record.get("weights_sha256"),
        "error": " ".join(str(record.get("error", "")).split()),
    }


def view(rows: list[dict[str, Any]]) -> Group:
    """The table, and under it what is not completed."""
    counts = Counter(row["status"] for row in rows)
    lines = [f"{len(rows)} runs: " + ", ".join(f"{count} {status}" for status, count in counts.most_common())]
    if set(counts) == {"completed"}:
        lines = []
    lines += [f"  {row['run']}: {row['error']}" for row in rows if row["status"] == "failed"]
    several = len({row["seed"] for row in rows if row["status"] == "completed"}) > 1
    heading = "validation, and the accuracy on the test set, in %"
    heading += ": mean ± standard deviation" if several else ""
    return Group(
        Text(heading, style="italic"),
        table(rows),
        *(Text(line, style="red" if line[0] == " " else "") for line in lines),
    )


def table(rows: list[dict[str, Any]]) -> Table:
    """Means over the seeds: for each combination of the other settings its last epoch and its best one, with the
    standard deviation under each where there are several seeds; metrics in percent, at most 80 columns wide.

    The highest mean of a column is bold and has an asterisk, among the last epochs and among the best ones.
    """
    columns = list(rows[0])
    others = columns[columns.index("seed") + 1 : columns.index("epochs")]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in ("experiment", "model", *others))].append(row)
    # A run that lies in two directories counts once.
    completed = {
        key: list({row["seed"]: row for row in runs if row["status"] == "completed"}.values())
        for key, runs in groups.items()
    }
    shown = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for column in ("run", "epoch", *METRICS, "test", "seconds"):
        text = {"f1": "F1"}.get(column, column)
        # Numbers leave room for an asterisk, and so do their headings.
        text += " " if column in (*METRICS, "test") else ""
        shown.add_column(text, justify="left" if column == "run" else "right", no_wrap=column != "run", overflow="fold")

    def values(runs: Iterable[dict[str, Any]], metric: str, kind: str) -> list[float]:
        column = f"test/{KINDS[kind]}/accuracy" if metric == "test" else f"{kind}/val/{metric}"
        return [100 * float(row[column]) for row in runs if row.get(column) not in (None, "")]

    highest = {
        (metric, kind): max(
            (statistics.fmean(found) for runs in completed.values() if (found := values(runs, metric, kind))),
            default=None,
        )
        for metric in (*METRICS, "test")
        for kind in KINDS
    }

    def cell(runs: list[dict[str, Any]], metric: str) -> str:
        lines = []
        for kind in KINDS:
            found = values(runs, metric, kind)
            mark = len(groups) > 1 and found and statistics.fmean(found) == highest[metric, kind]
            text = f"{statistics.fmean(found):.2f}" if found else ""
            lines += [f"[bold]{text}*[/bold]" if mark else f"{text} "]
            lines += [f"±{statistics.stdev(found):.2f} "] if len(found) > 1 else []
        return "\n".join(lines)

    for (experiment, model, *settings), runs in groups.items():
        done = completed[experiment, model, *settings]
        name = [str(experiment), str(model)]
        if len(done) == 1:
            name[1] += f", seed {done[0]['seed']}"
        varied = {other.rpartition(".")[2]: value for other, value in zip(others, settings, strict=True)}
        name += [f"{leaf}={value}" for leaf, value in varied.items() if value is not None]
        name += [f"n = {len(done)}"] if len(done) > 1 else []
        name = [escape(line) for line in name]
        name += [
            f"[red]{count} {status}[/red]"
            for status, count in Counter(row["status"] for row in runs if row["status"] != "completed").items()
        ]
        if not done:
            shown.add_row("\n".join(name))
            continue
        epochs = []
        for kind, column in (("last", "epochs"), ("best", "best/epoch")):
            reached = sorted({row[column] for row in done if row[column] is not None}) or [""]
            epochs += [f"{kind} {reached[0]}"]
            epochs += [f"to {reached[-1]}" if len(reached) > 1 else ""] if len(done) > 1 else []
        seconds = [row["seconds"] for row in done if row["seconds"] is not None]
        spent = f"{statistics.fmean(seconds):.1f}" if seconds else ""
        spent += f"\n±{statistics.stdev(seconds):.1f}" if len(seconds) > 1 else ""
        shown.add_row("\n".join(name), "\n".join(epochs), *(cell(done, metric) for metric in (*METRICS, "test")), spent)
    return shown
