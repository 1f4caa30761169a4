"""Runs with fewer columns than today's, with more, and with the same in another order are evidence like any other."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import make_run

from mnist_mlp.report import page
from mnist_mlp.report.claims import entries, judge
from mnist_mlp.report.evidence import Evidence
from mnist_mlp.run.groups import damage
from mnist_mlp.run.metrics import METRIC, Metric
from mnist_mlp.run.records import read_runs

Columns = dict[str, str]


def rewrite(path: Path, change: Callable[[Columns], Columns]) -> None:
    """Changes each row of a run's metrics.csv, and its record's copy of the last one."""
    rows = [change(row) for row in csv.DictReader((path / "metrics.csv").read_text().splitlines())]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    (path / "metrics.csv").write_text(text.getvalue())
    record = json.loads((path / "run.json").read_text())
    record["final"] = {name: float(value) for name, value in rows[-1].items()}
    (path / "run.json").write_text(json.dumps(record))


def without(*columns: str) -> Callable[[Columns], Columns]:
    return lambda row: {name: value for name, value in row.items() if name not in columns}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for experiment in ("baseline", "dropout_as_run", "dropout_as_intended", "dropout_scheduler"):
        for network in "AB":
            for seed in range(3):
                curves = {name: generator.uniform(0.1, 0.9, 12) for name in ("val_loss", "train_loss", "val_accuracy")}
                rewrite(make_run(tmp_path, experiment, network, seed, epochs=12, **curves), dict)
    return tmp_path


def test_a_new_column_and_a_missing_one_change_nothing_else(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, claims = page.compose(read_runs(runs)), judge(Evidence(read_runs(runs)))
    monkeypatch.setitem(METRIC, "val/new", Metric("val/new", "validation novelty", "fraction"))
    older = [run for run in read_runs(runs) if run.seed == 0]
    for run in read_runs(runs):
        rewrite(run.path, without("val/f1") if run.seed == 0 else lambda row: row | {"val/new": "0.5"})
    changed = read_runs(runs)
    assert not [run for run in changed if damage(run)]
    after = page.compose(changed)
    found = judge(Evidence(changed))
    for one, other in zip(claims, found, strict=True):
        if "val/f1" not in one.columns:
            assert one == other
        else:
            assert other.left_out == tuple(
                run.name for run in older if run.experiment in ("baseline", "dropout_as_run")
            )
            assert other.values != one.values
    assert "Left out, for want of a column of val/accuracy, val/precision, val/recall, val/f1" in after.markdown
    assert "Validation F1, over seeds, leaves out" in after.markdown
    assert "Figure 11 of `baseline` leaves out" in after.markdown
    assert "(n = 2)" in after.markdown  # of three runs two have a final F1
    assert "is left out of the figures and verdicts" not in after.markdown
    names = {picture.name: picture for picture in after.pictures}
    assert set(names) - {picture.name for picture in before.pictures} == {"over_seeds_val_new"}
    for picture in before.pictures:
        if not picture.name.endswith(("f1", "metrics")):
            assert names[picture.name][:3] == picture[:3]
    assert "is left out" not in after.readme
    assert after.readme.partition("![")[0] == before.readme.partition("![")[0]


def test_a_claim_takes_the_columns_that_it_names_and_no_others(runs: Path) -> None:
    claims = judge(Evidence(read_runs(runs)))
    kept = {path: path.read_bytes() for path in runs.glob("*/metrics.csv")}
    for key, entry in entries().items():
        for path, content in kept.items():
            path.write_bytes(content)
            others = set(METRIC) - {"epoch", *entry["columns"]}
            rewrite(path.parent, without(*others))
        found = {claim.key: claim for claim in judge(Evidence(read_runs(runs)))}
        assert found[key] == next(claim for claim in claims if claim.key == key)


def test_the_order_of_the_columns_does_not_matter(runs: Path) -> None:
    before = page.compose(read_runs(runs))
    for run in read_runs(runs):
        rewrite(run.path, lambda row: dict(reversed(row.items())))
    after = page.compose(read_runs(runs))
    assert (after.markdown, after.readme) == (before.markdown, before.readme)
