"""`mnist-report DIR`: the runs under a directory as a table, `results.csv` and the results page."""

import argparse
import os
from pathlib import Path

from rich.console import Console

from mnist_mlp.run.directory import durable_write
from mnist_mlp.run.records import find_runs, read_runs
from mnist_mlp.settings import SettingError, make_directory, one_sentence
from mnist_mlp.sweeps.table import summarise, watch

KEPT = ("run.json", "config.yaml", "metrics.csv")  # what a record of a run needs, and `mnist-rerun`


def main() -> None:
    """Runs `mnist-report`. Exit status: 0, or 1 where DIR holds no runs or the page cannot be written."""
    parser = argparse.ArgumentParser(
        prog="mnist-report",
        description="Prints the runs under DIR, grouped over their seeds, and saves a row for each as results.csv; "
        "then writes report.md, report.html and figures/ beside it.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="a run, a sweep or any directory above them")
    parser.add_argument(
        "--output",
        metavar="DIR2",
        type=Path,
        help="write there, not to DIR, with run.json, config.yaml and metrics.csv of each run that has ended: a record",
    )
    parser.add_argument(
        "--readme",
        metavar="FILE",
        type=Path,
        help="also put the results in short into this Markdown file: between its two marks, which it gets if need be",
    )
    parser.add_argument(
        "--claims",
        action="store_true",
        help="judge the original report's claims, even if these runs decide few of them",
    )
    parser.add_argument("--table", action="store_true", help="the table and results.csv only, which takes a moment")
    parser.add_argument("--watch", action="store_true", help="show the table anew every two seconds, until Ctrl-C")
    arguments = parser.parse_args()
    if (arguments.table or arguments.watch) and (arguments.output or arguments.readme or arguments.claims):
        parser.error("--output, --readme and --claims take a report, which --table and --watch do not make")
    with one_sentence():
        if arguments.watch:
            watch(arguments.directory)
        elif arguments.table:
            summarise(arguments.directory)
        else:
            write_page(arguments.directory, arguments.output, arguments.readme, arguments.claims)


def write_page(directory: Path, output: Path | None = None, readme: Path | None = None, claims: bool = False) -> None:
    """Prints the table; writes `results.csv`, `report.md`, `report.html` and `figures/`.

    Args:
        directory: with runs under it.
        output: where to write; None for `directory`. A place of its own gets copies of the runs' records, and from
            these alone the same page can be made again.
        readme: a Markdown file to put the results into.
        claims: judges the original report's claims, even if these runs decide few of them.

    Raises:
        SettingError: there are no runs, or one of the others cannot be used.
    """
    from mnist_mlp.report import page  # here, because --table and --help do without matplotlib
    from mnist_mlp.report import readme as in_short

    place = output or directory
    if readme is not None:
        in_short.around(readme)  # which refuses it, before anything is written
        if readme.resolve() == (place / "report.md").resolve():
            raise SettingError("--readme", readme, "is the report itself, which is written anew: give another file")
    if output is not None:
        keep(directory, output)
    made = page.compose(summarise(place), place.resolve().name, claims)
    page.write(made, place)
    if readme is not None:
        in_short.write_readme(made.readme, place, readme)
    console = Console(highlight=False)
    console.print(
        f"Report: {os.path.relpath(place / 'report.html')}, and report.md and figures/ beside it",
        soft_wrap=True,
        markup=False,
    )


def keep(directory: Path, output: Path) -> None:
    """Copies what is needed to report a run, and to repeat it, to the same relative place under `output`: of the runs
    that have ended, since one that still runs has no record yet.

    Raises:
        SettingError: `output` is, holds or lies in `directory`, or holds other runs, or cannot be written; or no run
            has ended.
    """
    one, other = directory.resolve(), output.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise SettingError("--output", output, f"must lie beside {directory}, neither in it nor around it")
    runs = read_runs(directory)
    if damaged := [run.problem for run in runs if run.problem is not None]:
        raise damaged[0]  # what is kept is to be whole
    names = {run.name for run in runs}
    ended = [run for run in runs if run.record.get("status") != "running"]
    if not ended:
        raise SettingError("DIR", directory, "holds no run that has ended, so there is no record to keep")
    strange = [name for path in find_runs(output) if (name := str(path.relative_to(output))) not in names]
    if strange:
        problem = f"holds a run that {directory} does not, {strange[0]}: remove that, or give another directory"
        raise SettingError("--output", output, problem)
    make_directory(output, "--output")
    for run in ended:
        (output / run.name).mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (run.path / name).exists():
                durable_write(output / run.name / name, (run.path / name).read_bytes())
            else:
                (output / run.name / name).unlink(missing_ok=True)
