"""Each claim on made-up runs: data that makes it hold, data that makes it fail, data that leaves it open."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_run

from mnist_mlp.report import claims, sheet
from mnist_mlp.report.claims import entries, judge, learning_rates
from mnist_mlp.report.evidence import Evidence, Interval
from mnist_mlp.report.original import original_run, original_runs
from mnist_mlp.report.sheet import Claim, several_tests
from mnist_mlp.run.records import read_runs

EPOCHS = np.arange(1, 501)
# Of one end or another of an interval, three seeds' differences: around 0.2 and its mirror image; and around 0.
ABOVE, BELOW, ACROSS = (0.19, 0.2, 0.21), (-0.19, -0.2, -0.21), (-0.1, 0.0, 0.1)


def verdict(root: Path, key: str) -> str:
    return judged(root, key).verdict


def judged(root: Path, key: str) -> Claim:
    return next(claim for claim in judge(Evidence(read_runs(root))) if claim.key == key)


def curve(experiment: int, network: str, column: str) -> np.ndarray:
    """A curve of 500 epochs through the recorded points."""
    points = original_run(experiment, network).points
    return np.interp(EPOCHS, points["epoch"], points[column])


def pairs(
    root: Path, column: str, one: tuple[str, str], other: tuple[str, str], differences: tuple[float, ...]
) -> None:
    """Three seeds of two cases that differ by these in a column."""
    for seed, difference in enumerate(differences):
        make_run(root, *other, seed, **{column: 0.5 + 0.01 * seed})
        make_run(root, *one, seed, **{column: 0.5 + 0.01 * seed + difference})


A, B = ("baseline", "A"), ("baseline", "B")
OUTCOMES = [(ABOVE, "holds"), (BELOW, "does not hold"), (ACROSS, "undecided"), (ABOVE[:1], "undecided")]


def test_without_runs_every_claim_of_them_is_open_and_says_what_is_missing(tmp_path: Path) -> None:
    make_run(tmp_path, *A, status="running")
    found = judge(Evidence(read_runs(tmp_path)))
    assert len(found) == len(entries()) == len({claim.key for claim in found})
    for claim in found:
        # Of the scheduler PyTorch itself speaks, whatever ran here.
        assert claim.verdict == ("does not hold" if claim.key == "rate_decayed" else "undecided"), claim.key
        assert claim.missing, claim.key
        assert not claim.p_values
        for text in (claim.title, claim.words, claim.test, claim.explanation):
            assert text == text.strip()
            assert text
            assert "{" not in text
    assert several_tests(found) == ""


def test_the_claims_are_quoted_from_the_report() -> None:
    # Every number in the report's words is one that original.yaml has from the text.
    quoted = " ".join(entries()[f"dropout_{network}"]["words"] for network in "ab")
    for run in original_runs():
        assert f"{run.text.val_loss}" in quoted
        if run.experiment == 2:
            assert f"{run.text.final_accuracy}%" in quoted
    for run in original_runs()[:2]:
        words = entries()["accuracies"]["words"]
        for number in (run.text.final_accuracy, run.text.best_accuracy, run.text.test_accuracy):
            assert f"{number}%" in words
        assert f"epoch {run.text.best_epoch}" in words


@pytest.mark.parametrize(("differences", "expected"), OUTCOMES)
def test_b_trains_worse(tmp_path: Path, differences: tuple[float, ...], expected: str) -> None:
    pairs(tmp_path, "train_loss", B, A, differences)
    assert verdict(tmp_path, "b_trains_worse") == expected


@pytest.mark.parametrize(("differences", "expected"), OUTCOMES)
def test_b_more_accurate(tmp_path: Path, differences: tuple[float, ...], expected: str) -> None:
    pairs(tmp_path, "val_accuracy", B, A, differences)
    claim = judged(tmp_path, "b_more_accurate")
    assert claim.verdict == expected
    if expected == "holds":
        # By hand: mean 0.2, standard deviation 0.01, times 4.30265/√3: ± 0.02484.
        assert claim.values[0]["difference"] == "+20.00 points (+17.52 points to +22.48 points)"
        assert claim.values[0]["measured"] == "baseline B: 71.00 % ± 2.00 %"
        assert claim.values[0]["from"] == "3 seeds, 10 epochs"
        # √(0.9793 · 0.0207 / 10,000) = 0.00142, and with 0.9833 · 0.0167 for the other: 0.00192.
        assert "0.14 points" in claim.explanation
        assert "0.19 points" in claim.explanation


@pytest.mark.parametrize(("differences", "expected"), OUTCOMES)
def test_b_overfits_more(tmp_path: Path, differences: tuple[float, ...], expected: str) -> None:
    for seed, difference in enumerate(differences):
        for case, end in ((A, 0.4), (B, 0.4 + difference)):
            make_run(tmp_path, *case, seed, train_loss=0.1, val_loss=np.repeat([0.15, end], 5))
    claim = judged(tmp_path, "b_overfits_more")
    assert claim.verdict == expected
    assert ("larger for B than for A; in the report's it was larger" in claim.explanation) == (differences[0] > 0)
    assert "(1.1355 and 0.7094)" in claim.explanation  # the records: 1.1355 − 0.0000 and 0.7117 − 0.0023


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((0.29, 0.3, 0.31), "holds"),  # rises by 0.19, 0.2, 0.21: see the interval above
        ((0.2, 0.3, 0.4), "undecided"),  # 0.1, 0.2, 0.3: ± 0.248
        ((0.05, 0.05, 0.05), "does not hold"),  # lowest at the end
        ((0.3,), "undecided"),
    ],
)
def test_baseline_rises(tmp_path: Path, ends: tuple[float, ...], expected: str) -> None:
    for seed, end in enumerate(ends):
        make_run(tmp_path, *A, seed, val_loss=np.repeat([0.1, end], 5))
        make_run(tmp_path, *B, seed, val_loss=np.repeat([0.1, 0.29 + 0.01 * seed], 5))
    claim = judged(tmp_path, "baseline_rises")
    assert claim.verdict == expected
    assert bool(claim.missing) == (len(ends) == 1)
    if ends[0] == 0.29:
        # The first of the ten is the lowest; of the nine steps after it one goes up.
        assert "11 % of the 9 epochs after its minimum for Network A" in claim.explanation


def test_both_networks_must_rise(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path, *A, seed, val_loss=np.repeat([0.1, 0.29 + 0.01 * seed], 5))
        make_run(tmp_path, *B, seed, val_loss=np.linspace(0.2, 0.1, 10))
    assert verdict(tmp_path, "baseline_rises") == "does not hold"


def test_runs_whose_end_overlaps_their_beginning_decide_nothing(tmp_path: Path) -> None:
    for seed in range(3):
        for case in (A, B):
            make_run(tmp_path, *case, seed, epochs=9, val_loss=np.linspace(0.2, 0.1, 9))
    claim = judged(tmp_path, "baseline_rises")
    assert claim.verdict == "undecided"
    assert claim.missing == ("runs of 10 epochs or more",)
    assert claim.p_values == ()


def reproduce(root: Path, experiment: int, **changes: Callable[[np.ndarray], np.ndarray]) -> None:
    """Long runs through the recorded points, Network B's changed."""
    for network in "AB":
        name = "baseline" if experiment == 1 else "dropout_as_run"
        curves: dict[str, Any] = {
            column.replace("/", "_"): curve(experiment, network, column)
            for column in ("train/loss", "val/loss", "val/accuracy")
        }
        if network == "B":
            curves |= {column: change(curves[column]) for column, change in changes.items()}
        make_run(root, name, network, epochs=500, **curves)


@pytest.mark.parametrize("experiment", [1, 2])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "holds"),
        ({"val_accuracy": lambda values: values + 0.005}, "holds"),  # within half a point, to the last bit
        ({"val_accuracy": lambda values: values - 0.0051}, "does not hold"),
        ({"val_accuracy": lambda values: values - 0.01 * (EPOCHS == 100)}, "does not hold"),
        ({"val_accuracy": lambda values: values - 0.01 * (EPOCHS == 101)}, "holds"),  # no epoch that is asked for
        ({"val_loss": lambda values: 1.9 * values}, "holds"),
        ({"val_loss": lambda values: 2.1 * values}, "does not hold"),
        ({"val_loss": lambda values: values / 2.1}, "does not hold"),
        ({"val_loss": lambda values: np.full(500, 0.3)}, "does not hold"),
    ],
)
def test_reproduced(tmp_path: Path, experiment: int, changes: dict[str, Any], expected: str) -> None:
    reproduce(tmp_path, experiment, **changes)
    assert verdict(tmp_path, f"reproduced_{experiment}") == expected


def test_a_curve_that_goes_up_and_down_has_not_the_shape(tmp_path: Path) -> None:
    # Within a factor of two everywhere.
    factors = np.where(np.isin(EPOCHS, original_runs()[0].points["epoch"][::2]), 1.9, 1 / 1.9)
    reproduce(tmp_path, 2, val_loss=lambda values: values * factors)
    assert verdict(tmp_path, "reproduced_2") == "does not hold"


def test_a_short_run_leaves_the_reproduction_open_unless_it_is_off_already(tmp_path: Path) -> None:
    for network in "AB":
        make_run(tmp_path, "dropout_as_run", network, epochs=20, val_accuracy=curve(2, network, "val/accuracy")[:20])
    claim = judged(tmp_path, "reproduced_2")
    assert claim.verdict == "undecided"
    assert "a run of dropout_as_run A with 500 epochs (the longest has 20)" in claim.missing
    make_run(tmp_path, "dropout_as_run", "A", epochs=21, val_accuracy=0.9)
    assert verdict(tmp_path, "reproduced_2") == "does not hold"


def test_a_run_that_has_learnt_everything_is_told_of(tmp_path: Path) -> None:
    reproduce(tmp_path, 1, train_loss=lambda values: np.where(EPOCHS > 200, 0.0, 0.1))
    explanation = judged(tmp_path, "reproduced_1").explanation
    assert "In our run of baseline B the training loss is 0.0000 from epoch 201 to the last (500)" in explanation
    assert "baseline A the training loss" not in explanation


@pytest.mark.parametrize(
    ("hidden", "expected"), [([64, 128, 64], "does not hold"), ([64, 64, 64, 64], "holds"), (None, "undecided")]
)
def test_deeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: list[int] | None, expected: str) -> None:
    # Both would see another network than B.
    monkeypatch.setattr("mnist_mlp.report.evidence.deviations", lambda run: {})
    monkeypatch.setattr("mnist_mlp.run.records.name_network", lambda label, settings: label)
    make_run(tmp_path, *A)
    if hidden:
        make_run(tmp_path, *B, settings={"model.hidden": hidden})
    claim = judged(tmp_path, "deeper")
    assert claim.verdict == expected
    # By hand: 785·64 + 65·128 + 129·64 + 65·10 = 50,240 + 8,320 + 8,256 + 650.
    assert claim.values[0]["difference"] == "67,466 parameters"


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (np.linspace(1, 0.1, 500), "holds"),
        (np.where(EPOCHS < 100, 1 / EPOCHS, 0.0), "holds"),  # nothing left to lower
        (0.1 + 0.01 * (EPOCHS % 2), "does not hold"),
        (np.linspace(1, 0.1, 499), "undecided"),
    ],
)
def test_steadily(tmp_path: Path, losses: np.ndarray, expected: str) -> None:
    for case in (A, B):
        make_run(tmp_path, *case, epochs=len(losses), train_loss=losses)
    assert verdict(tmp_path, "steadily") == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "holds"),
        ({"val_recall": 0.001}, "does not hold"),
        ({"val_precision": np.linspace(0, -0.2, 10)}, "does not hold"),  # falls while the accuracy rises
        ({"val_precision": -0.01}, "holds"),  # lower throughout, and follows
    ],
)
def test_metrics_agree(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    accuracy = np.linspace(0.9, 0.98, 10)
    for experiment in ("baseline", "dropout_as_run"):
        for network in "AB":
            changed = {name: accuracy + by for name, by in change.items()} if network == "B" else {}
            make_run(tmp_path, experiment, network, val_accuracy=accuracy, **changed)
    assert verdict(tmp_path, "metrics_agree") == expected


def test_weighted_recall_is_the_accuracy_in_a_real_run(finished: tuple[Path, dict[str, Any]]) -> None:
    (run,) = read_runs(finished[0])
    assert np.abs(run.epochs["val/recall"] - run.epochs["val/accuracy"]).max() < 1e-9


@pytest.mark.parametrize(
    ("change", "test", "expected"),
    [
        (0.0, 0.9790, "holds"),
        (0.006, 0.9790, "does not hold"),
        # Against 98.13 %: standard error √((0.97·0.03 + 0.9813·0.0187)/3000) = 0.0040; 0.0113 is 2.8 of them.
        (0.0, 0.97, "does not hold"),
    ],
)
def test_accuracies(tmp_path: Path, change: float, test: float, expected: str) -> None:
    for case, last, best in ((A, 0.9786, 0.9822), (B, 0.983, 0.9843)):
        accuracy = np.full(500, last + change)
        accuracy[300] = best + change
        make_run(tmp_path, *case, epochs=500, val_accuracy=accuracy, test=test)
    assert verdict(tmp_path, "accuracies") == expected


def test_the_test_accuracy_of_a_longer_run_is_not_that_of_epoch_500(tmp_path: Path) -> None:
    for case in (A, B):
        make_run(tmp_path, *case, epochs=510, val_accuracy=0.981)
    claim = judged(tmp_path, "accuracies")
    assert (claim.verdict, len(claim.missing)) == ("undecided", 2)


@pytest.mark.parametrize(
    ("error", "epochs", "expected"), [(0.017, 500, "holds"), (0, 500, "does not hold"), (0, 9, "undecided")]
)
def test_training_accuracy(tmp_path: Path, error: float, epochs: int, expected: str) -> None:
    make_run(tmp_path, *B, epochs=epochs, train_error=error)
    assert verdict(tmp_path, "training_accuracy") == expected


@pytest.mark.parametrize(
    ("firsts", "expected"),
    [
        ((0.04, 0.05, 0.06), "holds"),
        ((0.33, 0.34, 0.35), "does not hold"),
        ((0.001, 0.002, 0.003), "does not hold"),  # too high as well
        ((0.34,), "undecided"),
    ],
)
def test_first_epoch(tmp_path: Path, firsts: tuple[float, ...], expected: str) -> None:
    for case in (A, B):
        for seed, first in enumerate(firsts):
            make_run(tmp_path, *case, seed, train_loss=first / np.arange(1, 11))
        make_run(tmp_path, *case, 0, epochs=20, train_loss=firsts[0] / np.arange(1, 21))  # a seed counts once
    claim = judged(tmp_path, "first_epoch")
    assert claim.verdict == expected
    if firsts[0] == 0.04:
        # One more lies within ± 4.30265 · 0.01 · √(1 + 1/3) = 0.0497 of the mean, 0.05.
        assert claim.values[0]["measured"] == "baseline A: 0.0500 ± 0.0100; one more within ± 0.0497"
        assert claim.values[0]["difference"] == "+0.0080, 0.8 standard deviations"
    if firsts[0] == 0.33:
        assert "Network A gets down to the recorded 0.058 in epoch 6" in claim.explanation  # 0.33/6 = 0.055
        assert "Network B gets down to the recorded 0.041 in epoch 9" in claim.explanation
    else:
        assert "gets down to" not in claim.explanation


@pytest.mark.parametrize(("network", "sign"), [("A", -1), ("B", 1)])
@pytest.mark.parametrize(
    ("losses", "accuracy", "scale", "expected"),
    [
        (BELOW, 0.01, 1.0, "holds"),
        (ABOVE, 0.01, 1.0, "does not hold"),  # the loss is not lower over the seeds
        (ACROSS, 0.01, 1.0, "undecided"),
        (BELOW, -0.01, 1.0, "does not hold"),  # the accuracy goes the other way
        (BELOW, 0.01, 1.6, "does not hold"),  # the long run's loss is not the text's
        (BELOW, 0.01, 0.6, "does not hold"),
        (BELOW, 0.01, 1.4, "holds"),
        (BELOW, 0.01, None, "undecided"),  # no long run
    ],
)
def test_dropout_helps(
    tmp_path: Path,
    network: str,
    sign: int,
    losses: tuple[float, ...],
    accuracy: float,
    scale: float | None,
    expected: str,
) -> None:
    before, after = ("baseline", network), ("dropout_as_run", network)
    for seed, difference in enumerate(losses):
        make_run(tmp_path, *before, seed, val_loss=0.5, val_accuracy=0.97)
        moved = 0.97 + sign * accuracy * (1 + 0.01 * seed)
        make_run(tmp_path, *after, seed, val_loss=0.5 + difference, val_accuracy=moved)
    told = {"A": (0.65, 0.18), "B": (1.2, 0.35)}[network]
    if scale:
        make_run(tmp_path, *before, epochs=500, val_loss=told[0], val_accuracy=0.97)
        make_run(tmp_path, *after, epochs=500, val_loss=told[1] * scale, val_accuracy=0.97 + sign * accuracy)
    assert verdict(tmp_path, f"dropout_{network.lower()}") == expected


@pytest.mark.parametrize(
    ("differences", "last", "expected"),
    [
        (ABOVE, 0.07, "holds"),
        (BELOW, 0.07, "does not hold"),
        (ACROSS, 0.07, "undecided"),
        (ABOVE, 0.2, "does not hold"),
        (ABOVE, None, "undecided"),
    ],
)
def test_dropout_trains_worse(
    tmp_path: Path, differences: tuple[float, ...], last: float | None, expected: str
) -> None:
    pairs(tmp_path, "train_loss", ("dropout_as_run", "A"), A, differences)
    if last:
        make_run(tmp_path, "dropout_as_run", "A", epochs=500, train_loss=last)
    assert verdict(tmp_path, "dropout_trains_worse") == expected


def test_steplr_takes_a_loss_for_an_epoch() -> None:
    assert learning_rates([0.3] * 30) == [0.001] * 30
    assert learning_rates([9.99, 10.0, 25.0]) == pytest.approx([0.001, 0.0001, 0.00001])
    assert learning_rates([None] * 21) == pytest.approx([0.001] * 9 + [0.0001] * 10 + [0.00001] * 2)
    assert learning_rates([None] * 10, rate=0.01)[-1] == pytest.approx(0.001)
    # The same by PyTorch, without ours around it: it warns and computes.
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.001)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.1)
    optimizer.step()
    with pytest.warns(UserWarning, match="epoch parameter"):
        scheduler.step(0.3)  # type: ignore[arg-type]
    assert scheduler.get_last_lr() == [0.001]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learning_rates([0.3])  # its own is silent


@pytest.mark.parametrize(
    ("constant", "decaying", "obeys", "expected"),
    [
        (1.05, 1.3, False, "does not hold"),
        (1.3, 1.05, False, "undecided"),  # the demonstration and the runs contradict each other
        (1.3, 1.05, True, "holds"),
        (None, None, False, "does not hold"),
    ],
)
def test_rate_decayed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    constant: float | None,
    decaying: float | None,
    obeys: bool,
    expected: str,
) -> None:
    if obeys:
        real = learning_rates
        monkeypatch.setattr(claims, "learning_rates", lambda steps: real([None] * len(steps)))
    make_run(tmp_path, *A)
    for network in "AB":
        losses = curve(2, network, "train/loss")[:100]
        if constant and decaying:
            make_run(tmp_path, "dropout_as_run", network, epochs=100, train_loss=losses * constant)
            make_run(tmp_path, "dropout_as_intended", network, epochs=100, train_loss=losses * decaying)
    claim = judged(tmp_path, "rate_decayed")
    assert claim.verdict == expected
    if constant == 1.05:
        assert claim.values[1]["measured"] == "dropout_as_run A: 0.049"  # ln 1.05
        assert claim.values[1]["compared with"] == "dropout_as_intended A: 0.262"  # ln 1.3


@pytest.mark.parametrize(
    ("offsets", "last", "scale", "expected"),
    [
        ((-0.001, 0.0, 0.001), 0.0, 1.0, "holds"),
        ((-0.041, -0.04, -0.039), 0.0, 1.0, "does not hold"),
        ((-0.01, 0.0, 0.01), 0.0, 1.0, "undecided"),  # ± 0.0248
        ((-0.001, 0.0, 0.001), -0.006, 1.0, "does not hold"),
        ((-0.001, 0.0, 0.001), 0.0, 2.0, "does not hold"),
        ((-0.001, 0.0, 0.001), None, 1.0, "undecided"),
    ],
)
def test_text_settings(
    tmp_path: Path, offsets: tuple[float, ...], last: float | None, scale: float, expected: str
) -> None:
    for network, accuracy, val_loss in (("A", 0.972, 0.18), ("B", 0.984, 0.35)):
        case = ("dropout_scheduler", network)
        for seed, offset in enumerate(offsets):
            make_run(tmp_path, *case, seed, val_accuracy=accuracy + offset)
        if last is not None:
            curve_to = np.where(EPOCHS < 450, accuracy + last + 0.0003, accuracy + last)
            make_run(tmp_path, *case, epochs=500, val_accuracy=curve_to, val_loss=val_loss * scale)
    claim = judged(tmp_path, "text_settings")
    assert claim.verdict == expected
    assert ("within 0.03 points (A) and 0.03 points (B)" in claim.explanation) == (last is not None)


@pytest.mark.parametrize(("differences", "expected"), OUTCOMES)
def test_more_regularization(tmp_path: Path, differences: tuple[float, ...], expected: str) -> None:
    for seed, difference in enumerate(differences):
        make_run(tmp_path, "dropout_as_run", "B", seed, val_loss=np.repeat([0.1, 0.4], 5))
        make_run(tmp_path, "dropout_as_intended", "B", seed, val_loss=np.repeat([0.1, 0.4 + difference], 5))
        # Network A rises less with the scheduler, and has no part in it.
        make_run(tmp_path, "dropout_as_run", "A", seed, val_loss=np.repeat([0.1, 0.4], 5))
        make_run(tmp_path, "dropout_as_intended", "A", seed, val_loss=np.repeat([0.1, 0.2], 5))
    claim = judged(tmp_path, "more_regularization")
    assert claim.verdict == expected
    assert ("stopping early" in claim.explanation) == (expected == "does not hold")


def test_several_tests_by_hand() -> None:
    def with_p(*p_values: float) -> Claim:
        return Claim("", "", "", "", [], "holds", "", (), p_values=p_values)

    # Of four, 0.05/4 = 0.0125, then 0.05/3 = 0.0167, then 0.025: 0.01 and 0.016 remain, 0.03 does not.
    text = several_tests([with_p(0.03, 0.01), with_p(0.5), with_p(0.016)])
    assert text.startswith("4 differences over seeds were tested")
    assert "3 were found, of which 2 remain" in text
    # The smallest fails, so that none counts, whatever the others.
    assert "2 were found, of which 0 remain" in several_tests([with_p(0.02, 0.03, 0.9)])


def test_an_interval_at_nothing_is_no_difference() -> None:
    nothing = Interval(0, 0, 0, 1)
    assert sheet.positive(nothing) == sheet.negative(nothing) == "does not hold"
    assert sheet.near(nothing) == "holds"
    assert sheet.combined([]) == "undecided"
