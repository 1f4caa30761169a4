from pathlib import Path

import numpy as np
import pytest
from helpers import make_run
from scipy import stats

from mnist_mlp.report.evidence import Case, Evidence, deviations, gap, highest, rank_correlation, rise, t_interval, tail
from mnist_mlp.run.records import read_runs

A = Case("baseline", "A")
B = Case("baseline", "B")


def test_the_interval_is_scipys_paired_one() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(2, 5))
    ours = t_interval(one - other)
    theirs = stats.ttest_rel(one, other)
    low, high = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high, ours.p) == pytest.approx((low, high, theirs.pvalue), rel=1e-12)


def test_the_interval_by_hand() -> None:
    # Mean 2, standard deviation 1, standard error 1/√3 = 0.57735; t for two degrees of freedom 4.30265: ± 2.48414.
    assert t_interval([1, 2, 3])[:3] == pytest.approx((2, -0.48414, 4.48414), abs=1e-5)
    assert t_interval([2, 2]) == (2, 2, 2, 0)
    assert t_interval([0, 0]) == (0, 0, 0, 1)


def test_the_rise_by_hand(tmp_path: Path) -> None:
    for seed, end in enumerate((0.3, 0.5)):
        make_run(tmp_path, *A, seed, val_loss=np.repeat([0.1 * (seed + 1), end], 5))
    runs = read_runs(tmp_path)
    assert rise(runs) == pytest.approx([0.3 - 0.1, 0.5 - 0.2])
    assert gap(runs) == pytest.approx([0.3 - 0.1, 0.5 - 0.1])
    assert tail("val/loss")(runs) == pytest.approx([0.3, 0.5])
    assert highest("val/loss")(runs) == pytest.approx([0.3, 0.5])


def test_a_loss_that_only_falls_does_not_rise(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path, *A, seed, val_loss=np.linspace(1, 0.1, 10))
    assert rise(read_runs(tmp_path)).tolist() == [0, 0, 0]


def test_noise_alone_is_no_rise(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    for seed in range(60):
        make_run(tmp_path, *A, seed, epochs=40, val_loss=generator.normal(1, 0.1, 40))
    runs = read_runs(tmp_path)
    naive = np.array([run.epochs["val/loss"][-1] - run.epochs["val/loss"].min() for run in runs])
    assert t_interval(naive).low > 0.1  # what the other seeds' epoch is for
    interval = t_interval(rise(runs))
    assert interval.low < 0 < interval.high


def test_the_length_with_most_seeds_and_the_longest_run(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        make_run(tmp_path, *A, seed, epochs=8)
        make_run(tmp_path, *B, seed + 1, epochs=8)
    for case in (A, B):
        make_run(tmp_path, *case, 4, epochs=20)
        make_run(tmp_path, *case, 3, epochs=20)
    evidence = Evidence(read_runs(tmp_path))
    longest = evidence.longest(A)
    assert longest is not None
    assert (longest.seed, len(longest.epochs["epoch"])) == (3, 20)
    (alone,) = evidence.seeds(A) or ()
    assert [(run.seed, len(run.epochs["epoch"])) for run in alone] == [(0, 8), (1, 8), (2, 8)]
    ones, others = evidence.seeds(A, B) or ((), ())  # two of each length are common: the longer ones
    assert [run.seed for run in ones] == [run.seed for run in others] == [3, 4]
    assert len(evidence.all(A)) == 5


def test_a_comparison_pairs_the_seeds(tmp_path: Path) -> None:
    for seed, (a, b) in enumerate(((0.1, 0.2), (0.5, 0.7), (0.9, 1.2))):
        make_run(tmp_path, *A, seed, train_loss=a)
        make_run(tmp_path, *B, seed, train_loss=b)
    found = Evidence(read_runs(tmp_path)).compare(B, A, tail("train/loss"))
    assert found is not None
    # Differences 0.1, 0.2, 0.3: a tenth of the interval worked by hand above.
    assert found.difference[:3] == pytest.approx((0.2, -0.048414, 0.448414), abs=1e-6)
    assert (found.epochs, found.ones.tolist()) == (10, pytest.approx([0.2, 0.7, 1.2]))


def test_what_is_no_evidence(tmp_path: Path) -> None:
    make_run(tmp_path, *A, seed=0)
    make_run(tmp_path, *A, seed=0)  # the same again
    make_run(tmp_path, *A, seed=1, status="failed")
    make_run(tmp_path, *A, seed=2, settings={"optimizer.lr": 0.1})
    make_run(tmp_path, *A, seed=3, settings={"data.seed": 0})
    make_run(tmp_path, *A, seed=4, settings={"model.hidden": [64]})
    make_run(tmp_path, *A, seed=5, settings={"scheduler": {"step_size": 10}})
    make_run(tmp_path, *A, seed=6, settings={"experiment": "mine"})
    assert [run.seed for run in Evidence(read_runs(tmp_path)).all(A)] == [0, 6]
    found = {run.seed: deviations(run) for run in read_runs(tmp_path)}
    assert found[2] == {"optimizer.lr": 0.1}
    assert found[3] == {"data.seed": 0}
    assert found[5] == {"scheduler.step_size": 10}


def test_how_it_was_computed_makes_no_other_experiment(tmp_path: Path) -> None:
    changes = {"optimizer.fused": None, "trainer.steps": "compiled", "threads": 4, "data.eval_batch_size": 7}
    make_run(tmp_path, "dropout_as_intended", "B", settings=changes)
    assert deviations(read_runs(tmp_path)[0]) == {}


def test_rank_correlation() -> None:
    assert rank_correlation(np.array([1, 2, 3]), np.array([1, 10, 11])) == pytest.approx(1)
    assert rank_correlation(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)
    assert rank_correlation(np.array([1, 1, 1]), np.array([3, 2, 1])) == 0
