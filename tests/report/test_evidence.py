from pathlib import Path

import numpy as np
import pytest
from helpers import make_run
from scipy import stats

from mnist_mlp.report.evidence import (
    Columns,
    Evidence,
    case,
    gap,
    highest,
    rank_correlation,
    rise,
    smooth,
    t_interval,
    tail,
    treatment_of,
    window,
)
from mnist_mlp.run.records import read_runs

A, B = ("baseline", "A"), ("baseline", "B")


def columns(root: Path) -> list[Columns]:
    return [run.epochs.table for run in read_runs(root)]


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
    runs = columns(tmp_path)
    assert rise(runs) == pytest.approx([0.3 - 0.1, 0.5 - 0.2])
    assert gap(runs) == pytest.approx([0.3 - 0.1, 0.5 - 0.1])
    assert tail("val/loss")(runs) == pytest.approx([0.3, 0.5])
    assert highest("val/loss")(runs) == pytest.approx([0.3, 0.5])


def test_a_loss_that_only_falls_does_not_rise(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path, *A, seed, val_loss=np.linspace(1, 0.1, 10))
    assert rise(columns(tmp_path)).tolist() == [0, 0, 0]
    assert rise(columns(tmp_path)[:1]).tolist() == [0]  # alone, by its own minimum


def test_noise_alone_is_no_rise(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    for seed in range(60):
        make_run(tmp_path, *A, seed, epochs=40, val_loss=generator.normal(1, 0.1, 40))
    runs = columns(tmp_path)
    naive = np.array([run["val/loss"][-1] - run["val/loss"].min() for run in runs])
    assert t_interval(naive).low > 0.1  # what the other seeds' epoch is for
    interval = t_interval(rise(runs))
    assert interval.low < 0 < interval.high


def test_of_each_seed_the_longest_run_as_far_as_it_is_asked_for(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        make_run(tmp_path, *A, seed, epochs=8)
    make_run(tmp_path, *A, 1, epochs=20, train_loss=0.7)
    evidence = Evidence(read_runs(tmp_path))
    assert {seed: run.length for seed, run in evidence.runs(case(*A)).items()} == {0: 8, 1: 20, 2: 8}
    curves = evidence.curves(case(*A), 8)
    assert [len(run["train/loss"]) for run in curves.values()] == [8, 8, 8]
    assert curves[1]["train/loss"][0] == 0.7
    assert list(evidence.curves(case(*A), 9)) == [1]


def test_a_contrast_pairs_the_seeds(tmp_path: Path) -> None:
    for seed, (a, b) in enumerate(((0.1, 0.2), (0.5, 0.7), (0.9, 1.2))):
        make_run(tmp_path, *A, seed, train_loss=a)
        make_run(tmp_path, *B, seed, train_loss=b)
    make_run(tmp_path, *B, 7, train_loss=9)
    evidence = Evidence(read_runs(tmp_path))
    found = evidence.contrast({case(*B): 1, case(*A): -1}, tail("train/loss"), 10)
    assert found is not None
    assert found.seeds == [0, 1, 2]
    assert found.total == pytest.approx([0.1, 0.2, 0.3])
    assert found.values[case(*B)].tolist() == pytest.approx([0.2, 0.7, 1.2])
    assert evidence.contrast({case(*B): 1, case(*A): -1}, tail("train/loss"), 11) is None


def test_what_is_no_evidence(tmp_path: Path) -> None:
    step = {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, "step_size": 10, "gamma": 0.1}
    make_run(tmp_path, *A, seed=0)
    make_run(tmp_path, *A, seed=0)  # the same again
    make_run(tmp_path, *A, seed=1, status="failed")
    make_run(tmp_path, *A, seed=2, settings={"data.batch_size": 32})
    make_run(tmp_path, *A, seed=3, settings={"data.seed": 0})
    make_run(tmp_path, *A, seed=4, settings={"model.hidden": [64]})
    make_run(tmp_path, *A, seed=5, settings={"scheduler": {**step, "step_size": 9}})
    make_run(tmp_path, *A, seed=6, settings={"experiment": "mine"})
    evidence = Evidence(read_runs(tmp_path))
    assert list(evidence.runs(case(*A))) == [0, 6]
    found = {run.seed: treatment_of(run) for run in read_runs(tmp_path)}
    assert [found[seed] for seed in (2, 3, 4, 5)] == [None] * 4


def test_a_run_speaks_for_what_it_computed_whatever_it_is_called(tmp_path: Path) -> None:
    step = {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, "step_size": 10, "gamma": 0.1}
    changed = {"model.dropout": 0.3, "model.init": "xavier_uniform"}
    make_run(tmp_path, *A, seed=0, settings=changed)
    make_run(tmp_path, *A, seed=1, settings={**changed, "scheduler": step})
    make_run(tmp_path, *A, seed=2, settings={"optimizer.lr": 0.1})
    make_run(tmp_path, "dropout_as_run", "B", seed=3, settings={"model.dropout": 0.5})
    found = {run.seed: treatment_of(run) for run in read_runs(tmp_path)}
    assert (found[0], found[1]) == (case("dropout_as_run", "A"), case("dropout_as_intended", "A"))
    assert found[2] == case("baseline", "A", rate=0.1)
    assert found[3] == case("dropout_as_run", "B", dropout=0.5)
    assert [str(found[seed]) for seed in (0, 3)] == ["dropout_as_run A", "dropout_as_run with dropout 0.5 B"]


def test_how_it_was_computed_makes_no_other_experiment(tmp_path: Path) -> None:
    changes = {"optimizer.fused": None, "trainer.steps": "compiled", "threads": 4, "data.eval_batch_size": 7}
    make_run(tmp_path, "dropout_as_intended", "B", settings=changes)
    assert treatment_of(read_runs(tmp_path)[0]) == case("dropout_as_intended", "B")


def test_the_running_median_by_hand() -> None:
    assert (window(20), window(100), window(500)) == (1, 5, 21)
    values = np.array([5.0, 1, 9, 2, 7, *[3.0] * 95])
    assert smooth(values)[:4].tolist() == [5, 5, 5, 3]  # of 5; of 5 1 9; of 5 1 9 2 7; of 1 9 2 7 3
    assert len(smooth(values)) == 100


def test_rank_correlation() -> None:
    assert rank_correlation(np.array([1, 2, 3]), np.array([1, 10, 11])) == pytest.approx(1)
    assert rank_correlation(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)
    assert rank_correlation(np.array([1, 1, 1]), np.array([3, 2, 1])) == 0
