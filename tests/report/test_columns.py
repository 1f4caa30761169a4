"""Runs with fewer columns than today's, with more, and with the same in another order are evidence like any other."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mnist_mlp.report import page
from mnist_mlp.report.claims import entries, judge, judged
from mnist_mlp.report.evidence import Evidence
from mnist_mlp.run.groups import damage
from mnist_mlp.run.metrics import METRIC, Metric
from mnist_mlp.run.records import Run, read_runs

Table = dict[str, np.ndarray]


def read(root: Path, change: Callable[[Run, Table], Table]) -> list[Run]:
    """The runs, as if their metrics.csv had other columns."""
    runs = read_runs(root)
    for run in runs:
        run.epochs.__dict__["table"] = change(run, run.epochs.table)  # where a cached property keeps its value
        run.epochs.columns = tuple(run.epochs.table)
    return runs


def test_a_new_column_and_a_missing_one_change_nothing_else(paper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = judge(Evidence(read_runs(paper)))
    monkeypatch.setitem(METRIC, "val/new", Metric("val/new", "validation novelty", "fraction"))

    def change(run: Run, table: Table) -> Table:
        if run.seed == 0:
            return {name: values for name, values in table.items() if name != "val/f1"}
        return table | {"val/new": np.full(len(table["epoch"]), 0.5)}

    runs = read(paper, change)
    assert not [run for run in runs if damage(run)]
    for one, other in zip(before, judge(Evidence(runs)), strict=True):
        if "val/f1" not in one.columns:
            assert one == other
        else:
            assert len(other.left_out) == 4  # of four cases the seed 0
            assert other.rows != one.rows
    made = page.compose(runs, "paper")
    assert "Left out, for want of a column of val/accuracy, val/precision, val/recall, val/f1" in made.markdown
    assert "Validation F1 leaves out" in made.markdown
    assert "Figure 11 of `baseline` leaves out" in made.markdown
    assert "is left out of the figures and verdicts" not in made.markdown
    assert "curves_val_new" in [picture.name for picture in made.pictures]


def test_a_claim_takes_the_columns_that_it_names_and_no_others(paper: Path) -> None:
    runs = read_runs(paper)
    for key, entry in entries().items():
        kept = {"epoch", *entry["columns"]}
        fewer = read(paper, lambda _, table, kept=kept: {name: table[name] for name in table if name in kept})  # type: ignore[misc]
        assert judged(key, Evidence(fewer)) == judged(key, Evidence(runs)), key


def test_the_order_of_the_columns_does_not_matter(paper: Path) -> None:
    backwards = read(paper, lambda _, table: dict(reversed(table.items())))
    assert judge(Evidence(backwards)) == judge(Evidence(read_runs(paper)))
