"""`mnist-report DIR`: the runs under a directory as a table, printed and saved as `results.csv`."""

import argparse
import csv
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from mnist_mlp.rundir import durable_write, read_record
from mnist_mlp.settings import SettingError, flatten, one_sentence

METRICS = ("accuracy", "precision", "recall", "f1")


class RememberSweep(Callback):
    """Hydra callback: notes where this process's sweep puts its jobs, for the table at its end.

    A sweep that was refused before its first job has no table. Of jobs in other processes their launcher tells.
    """

    directory: ClassVar[Path | None] = None

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.mode == RunMode.MULTIRUN:
            RememberSweep.directory = Path(config.hydra.sweep.dir)


def main() -> None:
    """Runs `mnist-report`. Exit status: 0, or 1 where DIR holds no runs."""
    parser = argparse.ArgumentParser(
        prog="mnist-report", description="Prints the runs under DIR as a table and saves it as DIR/results.csv."
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="a run, a sweep or any directory above them")
    arguments = parser.parse_args()
    with one_sentence():
        summarise(arguments.directory)


def summarise(directory: Path) -> None:
    """Prints the table of the runs under `directory` and saves it there as `results.csv`.

    Raises:
        SettingError: there are none.
    """
    runs = list(find_runs(directory))
    if not runs:
        raise SettingError("DIR", directory, "holds no runs: give a directory with a run.json somewhere under it")
    results = [result(path.relative_to(directory), record, rows) for path, record, rows in runs]
    columns = list(dict.fromkeys(column for row in results for column in row))
    text = StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(results)
    durable_write(directory / "results.csv", text.getvalue().encode())
    console = Console()
    console.print(table(results))
    console.print(f"Saved as {directory / 'results.csv'}", soft_wrap=True)


def find_runs(directory: Path) -> Iterator[tuple[Path, dict[str, Any], list[dict[str, str]]]]:
    """Each run directory under `directory` in order of its path, with its `run.json` and the rows of `metrics.csv`."""
    for file in sorted(directory.rglob("run.json")):
        metrics = file.with_name("metrics.csv")
        rows = list(csv.DictReader(metrics.read_text().splitlines())) if metrics.exists() else []
        yield file.parent, read_record(file.parent), rows


def result(name: Path, record: dict[str, Any], rows: list[dict[str, str]]) -> dict[str, Any]:
    """One row of `results.csv`: the run, its last and its best epoch's validation metrics, its test metrics."""
    best_epoch = record.get("best", {}).get("epoch")
    best_row = next((row for row in rows if row["epoch"] == str(best_epoch)), {})
    return {
        "run": str(name),
        **{key: record.get(key) for key in ("status", "experiment", "model", "seed", "epochs")},
        **{f"final/{key}": value for key, value in (record.get("final") or {}).items() if key.startswith("val/")},
        "best/epoch": best_epoch,
        **{f"best/{key}": value for key, value in best_row.items() if key.startswith("val/")},
        **{f"test/{key.replace('.', '/')}": value for key, value in flatten(record.get("test", {})).items()},
        "seconds": record.get("wall_seconds"),
        "weights_sha256": record.get("weights_sha256"),
    }


def table(results: list[dict[str, Any]]) -> Table:
    """Two lines per run, its last epoch and its best one; metrics in percent, at most 80 columns wide."""
    view = Table(box=None, pad_edge=False, header_style="bold", title="validation, with the test set's accuracy")
    for column in ("run", "epoch", "accuracy", "precision", "recall", "F1", "test", "seconds"):
        view.add_column(column, justify="left" if column == "run" else "right", no_wrap=column != "run")

    def percent(value: Any) -> str:
        return "" if value is None else f"{float(value):.2%}"

    for row in results:
        name = f"{row['experiment']}\n{row['model']}, seed {row['seed']}"
        if row["status"] == "completed":
            kinds = {"final": "last", "best": "best"}
            view.add_row(
                name,
                f"last {row['epochs']}\nbest {row['best/epoch']}",
                *("\n".join(percent(row.get(f"{kind}/val/{metric}")) for kind in kinds) for metric in METRICS),
                "\n".join(percent(row.get(f"test/{kind}/accuracy")) for kind in kinds.values()),
                f"{row['seconds']:.1f}",
            )
        else:
            view.add_row(f"{name}\n[red]{row['status']}[/red]")
    return view


if __name__ == "__main__":
    main()
