"""Every number that a verdict rests on, computed again from the files by SciPy's own tests."""

import csv
import statistics
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from mnist_mlp.report import factorial
from mnist_mlp.report.claims import judge
from mnist_mlp.report.evidence import Evidence, holm
from mnist_mlp.report.sheet import Claim
from mnist_mlp.run.records import read_runs

ROOT = Path(__file__).parents[2]
Columns = dict[str, np.ndarray]
Key = tuple[float, str, bool, float, str]  # dropout, initialisation, whether the rate falls, rate, network
Numbers = tuple[float, float, float, float]  # mean, low, high, p
BASELINE, AS_RUN = (0.0, "default", False, 0.001), (0.3, "xavier_uniform", False, 0.001)
TEXT, INTENDED = (0.3, "default", True, 0.01), (0.3, "xavier_uniform", True, 0.001)


class Files:
    """The runs of a directory by what was computed: for each seed the longest."""

    def __init__(self, root: Path) -> None:
        self.runs: dict[Key, dict[int, Columns]] = {}
        for path in root.rglob("metrics.csv"):
            config = yaml.safe_load((path.parent / "config.yaml").read_text())
            network = {64: "A", 256: "B"}[config["model"]["hidden"][0]]
            falls, rate = bool(config["scheduler"]), config["optimizer"]["lr"]
            key = (float(config["model"]["dropout"]), config["model"]["init"], falls, rate, network)
            rows = list(csv.DictReader(path.read_text().splitlines()))
            columns = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
            seeds = self.runs.setdefault(key, {})
            if len(rows) > len(seeds.get(config["seed"], {"epoch": []})["epoch"]):
                seeds[config["seed"]] = columns

    def values(self, key: Key, epochs: int, measure: Callable[[list[Columns]], list[float]]) -> dict[int, float]:
        """A measure of the first epochs of each seed that has as many."""
        found = {seed: run for seed, run in sorted(self.runs.get(key, {}).items()) if len(run["epoch"]) >= epochs}
        cut = [{name: values[:epochs] for name, values in run.items()} for run in found.values()]
        return dict(zip(found, measure(cut) if cut else [], strict=True))


with (ROOT / "mnist_mlp" / "report" / "curves.csv").open() as file:
    RECORDED = list(csv.DictReader(file))


def recorded(experiment: int, network: str, column: str) -> np.ndarray:
    own = [row for row in RECORDED if (row["experiment"], row["network"]) == (str(experiment), network)]
    return np.array([float(row[column]) for row in own])


def each(read: Callable[[Columns], float]) -> Callable[[list[Columns]], list[float]]:
    return lambda runs: [float(read(run)) for run in runs]


def tail(column: str) -> Callable[[list[Columns]], list[float]]:
    return each(lambda run: statistics.fmean(run[column][-5:].tolist()))


def end(column: str) -> Callable[[list[Columns]], list[float]]:
    return each(lambda run: run[column][-1])


def rise(runs: list[Columns]) -> list[float]:
    found = []
    for run in runs:
        others = [other["val/loss"] for other in runs if other is not run]
        starts = range(len(run["val/loss"]) - 4)
        lowest = min(starts, key=lambda start: sum(curve[start : start + 5].sum() for curve in others))
        found.append(run["val/loss"][-5:].mean() - run["val/loss"][lowest : lowest + 5].mean())
    return found


gap = each(lambda run: float(np.mean(run["val/loss"][-5:] - run["train/loss"][-5:])))
falling = each(lambda run: sum(b < a for a, b in zip(run["train/loss"], run["train/loss"][1:], strict=False)) / 499)


class Expected:
    """Each claim's tests, in the order of its rows."""

    def __init__(self, root: Path) -> None:
        self.files = Files(root)

    def paired(self, one: Any, other: Any, measure: Any, epochs: int = 500) -> Numbers | None:
        ones, others = self.files.values(one, epochs, measure), self.files.values(other, epochs, measure)
        seeds = sorted(ones.keys() & others.keys())
        if len(seeds) < 2:
            return None
        if measure is rise:  # of those seeds alone: the minimum is taken from the others
            kept = Files.__new__(Files)
            kept.runs = {key: {seed: self.files.runs[key][seed] for seed in seeds} for key in (one, other)}
            ones, others = kept.values(one, epochs, rise), kept.values(other, epochs, rise)
        first, second = [ones[seed] for seed in seeds], [others[seed] for seed in seeds]
        test = stats.ttest_rel(first, second)
        low, high = test.confidence_interval(0.95)
        return statistics.fmean(first) - statistics.fmean(second), low, high, test.pvalue

    def single(self, values: list[float], less: float = 0) -> Numbers | None:
        if len(values) < 2:
            return None
        test = stats.ttest_1samp(values, less)
        low, high = test.confidence_interval(0.95)
        return statistics.fmean(values) - less, low - less, high - less, test.pvalue

    def one(self, key: Any, measure: Any, less: float = 0) -> Numbers | None:
        return self.single(list(self.files.values(key, 500, measure).values()), less)

    def predicted(self, key: Any, measure: Any, told: float, logs: bool = False, epochs: int = 500) -> Numbers | None:
        values = list(self.files.values(key, epochs, measure).values())
        if len(values) < 2:
            return None
        array, told = (np.log(values), np.log(told)) if logs else (np.array(values), told)
        # A sample of one more, against those that are there.
        p = stats.ttest_ind(array, [told], equal_var=True).pvalue
        scale = statistics.stdev(array.tolist()) * (1 + 1 / len(array)) ** 0.5
        low, high = stats.t.interval(0.95, len(array) - 1, array.mean(), scale)
        return array.mean(), low, high, p

    def slope(self) -> Numbers | None:
        levels = {dropout: (dropout, "xavier_uniform", False, 0.001, "B") for dropout in (0.3, 0.4, 0.5, 0.6)}
        values = {dropout: self.files.values(key, 100, rise) for dropout, key in levels.items()}
        seeds = sorted(set.intersection(*(set(found) for found in values.values())))
        slopes = [stats.linregress(list(levels), [values[d][seed] for d in levels]).slope / 10 for seed in seeds]
        return self.single(slopes)

    def of(self, key: str) -> list[Numbers | None]:
        a, b = (*BASELINE, "A"), (*BASELINE, "B")
        run_a, run_b = (*AS_RUN, "A"), (*AS_RUN, "B")
        text_a, text_b = (*TEXT, "A"), (*TEXT, "B")
        accuracy, loss = end("val/accuracy"), end("val/loss")
        best = each(lambda run: run["val/accuracy"].max())
        late = each(lambda run: run["train/loss"][50:].mean())
        start = each(lambda run: run["train/loss"][0])

        def away(network: str) -> Callable[[list[Columns]], list[float]]:
            theirs = recorded(2, network, "train_loss")[10:100]
            return each(lambda run: float(np.sqrt(np.mean(np.log(run["train/loss"][10:100] / theirs) ** 2))))

        return {
            "steadily": lambda: [self.one(a, falling, 0.9), self.one(b, falling, 0.9)],
            "baseline_rises": lambda: [self.one(a, rise), self.one(b, rise)],
            "accuracies": lambda: [
                self.predicted(a, accuracy, 0.9786),
                self.predicted(a, best, 0.9822),
                self.predicted(b, accuracy, 0.983),
                self.predicted(b, best, 0.9843),
            ],
            "b_trains_worse": lambda: [self.paired(b, a, late)],
            "training_accuracy": lambda: [self.predicted(b, each(lambda run: 1 - run["train/error"][-1]), 0.983)],
            "b_more_accurate": lambda: [self.paired(b, a, tail("val/accuracy")), self.paired(b, a, best)],
            "b_overfits_more": lambda: [self.paired(b, a, gap), self.paired(b, a, rise)],
            "first_epoch": lambda: [
                self.predicted(key, start, recorded(1, network, "train_loss")[0], True, 1)
                for network, key in (("A", a), ("B", b))
            ],
            "dropout_a": lambda: [
                self.paired(run_a, a, tail("val/loss")),
                self.paired(run_a, a, tail("val/accuracy")),
                self.predicted(a, loss, 0.65, True),
                self.predicted(run_a, loss, 0.18, True),
            ],
            "dropout_trains_worse": lambda: [
                self.paired(run_a, a, tail("train/loss")),
                self.predicted(run_a, end("train/loss"), 0.07, True),
            ],
            "dropout_b": lambda: [
                self.paired(run_b, b, tail("val/loss")),
                self.paired(run_b, b, tail("val/accuracy")),
                self.predicted(b, loss, 1.2, True),
                self.predicted(run_b, loss, 0.35, True),
            ],
            "rate_decayed": lambda: [
                self.paired((*INTENDED, network), (*AS_RUN, network), away(network), 100) for network in "AB"
            ],
            "text_settings": lambda: [
                self.predicted(text_a, accuracy, 0.972),
                self.predicted(text_a, loss, 0.18, True),
                self.predicted(text_b, accuracy, 0.984),
                self.predicted(text_b, loss, 0.35, True),
            ],
            "more_regularization": lambda: [self.one(run_b, rise), self.slope()],
        }.get(key, list)()

    def alike(self, experiment: int, network: str) -> str:
        """How many seeds are like the recorded run, as the first claims count them."""
        key = (*(BASELINE if experiment == 1 else AS_RUN), network)
        theirs, good = recorded(experiment, network, "val_loss"), 0
        accuracy = recorded(experiment, network, "val_accuracy")
        found = [run for run in self.files.runs.get(key, {}).values() if len(run["epoch"]) >= 500]
        for run in found:
            near = all(abs(run["val/accuracy"][e - 1] - accuracy[e - 1]) <= 0.005 + 1e-9 for e in (10, 50, 100, 500))
            ours, other = median(run["val/loss"][:500]), median(theirs)
            ratios = [one / two for one, two in zip(ours, other, strict=True)]
            ranks = np.corrcoef(stats.rankdata(ours), stats.rankdata(other))[0, 1]
            good += near and ranks >= 0.8 and max(ratios) <= 2 and min(ratios) >= 0.5
        return f"{good} of {len(found)} seeds meet all"


def median(values: np.ndarray) -> list[float]:
    """The running one over 21 epochs, fewer towards the ends."""
    found = []
    for place in range(len(values)):
        half = min(10, place, len(values) - 1 - place)
        found.append(statistics.median(values[place - half : place + half + 1].tolist()))
    return found


def check(root: Path) -> list[Claim]:
    claims = judge(Evidence(read_runs(root)))
    expected = Expected(root)
    for claim in claims:
        decided = [row for row in claim.rows if row.verdict and (row.numbers or not row.here.endswith("meet all"))]
        wanted = expected.of(claim.key)
        tested = [row for row in decided if row.numbers or (row.verdict == "undecided" and not row.n)]
        if wanted:
            assert len(tested) == len(wanted), claim.key
        for row, numbers in zip(tested, wanted, strict=False):
            assert (row.numbers is None) == (numbers is None), (claim.key, row.quantity)
            if numbers and row.numbers:
                assert tuple(row.numbers) == pytest.approx(numbers, rel=1e-7, abs=1e-12), (claim.key, row.quantity)
        if claim.key.startswith("reproduced"):
            counts = [row.here for row in claim.rows if row.here.endswith("meet all")]
            found = [expected.alike(int(claim.key[-1]), network) for network in "AB"]
            assert [count.partition(": ")[2] for count in counts] == [text for text in found if " 0 seeds" not in text]
    return claims


def test_on_made_up_runs(paper: Path) -> None:
    claims = check(paper)
    assert sum(row.numbers is not None and row.verdict is not None for claim in claims for row in claim.rows) == 34
    # The adjusted p-values say what Holm's steps down the sorted ones decide, at any level.
    rows = [row for claim in claims for row in claim.rows if row.adjusted is not None and row.numbers]
    for level in (0.001, 0.01, 0.05, 0.2):
        rejected = set()
        for step, row in enumerate(sorted(rows, key=lambda row: row.numbers.p if row.numbers else 1)):
            if row.numbers and row.numbers.p > level / (len(rows) - step):
                break
            rejected.add(id(row))
        assert {id(row) for row in rows if row.adjusted is not None and row.adjusted <= level} == rejected


def test_holm_by_hand() -> None:
    # Four: 0.005 × 4, 0.01 × 3, 0.03 × 2, and 0.04 × 1, which may not be below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_on_the_committed_record() -> None:
    check(ROOT / "logs" / "paper")


def test_the_factorial_is_a_least_squares_fit(paper: Path) -> None:
    files = Files(paper)
    levels = list(product((0, 1), repeat=3))
    design = np.array([[(2 * row[0] - 1), (2 * row[1] - 1), (2 * row[2] - 1)] for row in levels])
    names = list(factorial.FACTORS)
    terms = {
        " × ".join(names[i] for i in of): design[:, of].prod(axis=1)
        for n in (1, 2, 3)
        for of in combinations(range(3), n)
    }
    matrix = np.column_stack([np.ones(8), *terms.values()])
    found = {(e.network, e.measure, e.factors): e for e in factorial.effects(Evidence(read_runs(paper)))}
    assert len(found) == 2 * 3 * 7
    measures = {
        "validation loss": tail("val/loss"),
        "its rise from the minimum": rise,
        "validation accuracy": tail("val/accuracy"),
    }
    for network, (name, measure) in product("AB", measures.items()):
        values = [
            files.values(((0.0, 0.3)[a], ("default", "xavier_uniform")[b], bool(c), 0.001, network), 100, measure)
            for a, b, c in levels
        ]
        fits = [np.linalg.lstsq(matrix, [cell[seed] for cell in values], rcond=None)[0][1:] * 2 for seed in range(3)]
        for term, effects in zip(terms, np.transpose(fits), strict=True):
            test = stats.ttest_1samp(effects, 0)
            expected = (effects.mean(), *test.confidence_interval(0.95), test.pvalue)
            assert tuple(found[network, name, term].interval) == pytest.approx(expected, rel=1e-6, abs=1e-12)
