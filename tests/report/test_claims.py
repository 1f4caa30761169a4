"""Each claim on made-up runs: data that makes it hold, data that makes it fail, data that leaves it open. The numbers
themselves are computed again in test_recomputed.py."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_run

from mnist_mlp.report import claims, sheet
from mnist_mlp.report.claims import entries, judge, judged, learning_rates
from mnist_mlp.report.evidence import Evidence, Interval
from mnist_mlp.report.original import original_run, original_runs
from mnist_mlp.report.sheet import Claim, Row, several_tests
from mnist_mlp.run.records import read_runs

EPOCHS = np.arange(1, 501)
# Three seeds' differences: of one end or another of an interval, around 0.2 and its mirror image; and around 0.
ABOVE, BELOW, ACROSS = (0.19, 0.2, 0.21), (-0.19, -0.2, -0.21), (-0.1, 0.0, 0.1)
ONLY = "holds for the report's run only"
A, B = ("baseline", "A"), ("baseline", "B")
RUN_A, RUN_B = ("dropout_as_run", "A"), ("dropout_as_run", "B")
# What the differences make of a claim that the report's own run bears out: above 0 it holds.
OUTCOMES = [(ABOVE, "holds"), (BELOW, ONLY), (ACROSS, "undecided"), (ABOVE[:1], "undecided")]


def of(root: Path, key: str) -> Claim:
    return judged(key, Evidence(read_runs(root)))


def pairs(
    root: Path, column: str, one: tuple[str, str], other: tuple[str, str], differences: tuple[float, ...]
) -> None:
    """Seeds of two cases that differ by these in a column."""
    for seed, difference in enumerate(differences):
        make_run(root, *other, seed, 500, **{column: 0.5 + 0.01 * seed})
        make_run(root, *one, seed, 500, **{column: 0.5 + 0.01 * seed + difference})


def test_without_runs_every_claim_of_them_is_open_and_says_what_is_missing(tmp_path: Path) -> None:
    make_run(tmp_path, *A, status="running")
    found = judge(Evidence(read_runs(tmp_path)))
    assert len(found) == len(entries()) == len({claim.key for claim in found})
    # Of the layers, the scheduler and the records' training accuracy no run needs to speak.
    alone = dict.fromkeys(("deeper", "rate_decayed", "training_accuracy"), "does not hold")
    for claim in found:
        assert claim.verdict == ({"test_accuracies": "cannot be tested"} | alone).get(claim.key, "undecided"), claim.key
        assert claim.missing or claim.key == "deeper"
        assert not [row for row in claim.rows if row.numbers]
        for text in (claim.title, claim.words, claim.test, claim.explanation):
            assert text == text.strip()
            assert text
            assert "{" not in text
    assert several_tests(found) == ""


def test_runs_of_another_length_decide_nothing(tmp_path: Path) -> None:
    for seed in range(3):
        for case in (A, B):
            make_run(tmp_path, *case, seed, epochs=40, val_loss=np.linspace(0.2, 0.1, 40))
    claim = of(tmp_path, "baseline_rises")
    assert claim.verdict == "undecided"
    assert claim.missing[0] == "two seeds of baseline A with 500 epochs (there are 3 of 40)"


def test_the_claims_are_quoted_from_the_report() -> None:
    # Every number in the report's words is one that original.yaml has from the text.
    quoted = " ".join(entries()[f"dropout_{network}"]["words"] for network in "ab")
    for run in original_runs():
        assert f"{run.text.val_loss}" in quoted
        if run.experiment == 2:
            assert f"{run.text.final_accuracy}%" in quoted
    words = entries()["accuracies"]["words"] + entries()["test_accuracies"]["words"]
    for run in original_runs()[:2]:
        for number in (run.text.final_accuracy, run.text.best_accuracy, run.text.test_accuracy):
            assert f"{number}%" in words
        assert f"epoch {run.text.best_epoch}" in words


@pytest.mark.parametrize(("differences", "expected"), OUTCOMES)
@pytest.mark.parametrize(("key", "column"), [("b_trains_worse", "train_loss"), ("b_more_accurate", "val_accuracy")])
def test_b_beside_a(tmp_path: Path, key: str, column: str, differences: tuple[float, ...], expected: str) -> None:
    pairs(tmp_path, column, B, A, differences)
    claim = of(tmp_path, key)
    assert claim.verdict == expected
    if key == "b_more_accurate" and expected == "holds":
        # By hand: mean 0.2, standard deviation 0.01, times 4.30265/√3: ± 0.02484.
        assert claim.rows[0].difference == "+20.00 (+17.52 to +22.48) points"
        assert claim.rows[0].here == "baseline B: 71.00 ± 2.00 %"
        assert claim.rows[0].n == "3"
        assert claim.rows[1].report == "98.44 % and 98.28 % (+0.16 points)"
        # √(0.9793 · 0.0207 / 10,000) = 0.00142, and with 0.9833 · 0.0167 for the other: 0.00192.
        assert "0.14 points" in claim.explanation
        assert "0.19 points" in claim.explanation
    if key == "b_trains_worse" and expected == "holds":
        assert "higher in 306; here, by seed, in 500, 500, 500" in claim.explanation


def test_the_early_epochs_do_not_count_for_the_training_loss(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path, *A, seed, 500, train_loss=np.where(EPOCHS <= 50, 9.0, 0.1))
        make_run(tmp_path, *B, seed, 500, train_loss=0.2 + 0.001 * seed)
    assert of(tmp_path, "b_trains_worse").verdict == "holds"


@pytest.mark.parametrize(("differences", "expected"), OUTCOMES)
def test_b_overfits_more(tmp_path: Path, differences: tuple[float, ...], expected: str) -> None:
    for seed, difference in enumerate(differences):
        for case, end in ((A, 0.4), (B, 0.4 + difference)):
            make_run(tmp_path, *case, seed, 500, train_loss=0.1, val_loss=np.where(EPOCHS > 250, end, 0.15))
    claim = of(tmp_path, "b_overfits_more")
    assert claim.verdict == expected
    assert "1.1246 and 0.6882" in claim.rows[0].report  # the last five recorded epochs, B and A
    assert "0.1440 and 0.1507" in next(row for row in claim.rows if "after 40 epochs" in row.quantity).report


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((0.29, 0.3, 0.31), "holds"),  # rises by 0.19, 0.2, 0.21: see the interval above
        ((0.2, 0.3, 0.4), "undecided"),  # 0.1, 0.2, 0.3: ± 0.248
        ((0.05, 0.05, 0.05), ONLY),  # lowest at the end
    ],
)
def test_baseline_rises(tmp_path: Path, ends: tuple[float, ...], expected: str) -> None:
    for seed, end in enumerate(ends):
        make_run(tmp_path, *A, seed, 500, val_loss=np.where(EPOCHS > 250, end, 0.1))
        make_run(tmp_path, *B, seed, 500, val_loss=np.where(EPOCHS > 250, 0.29 + 0.01 * seed, 0.1))
    assert of(tmp_path, "baseline_rises").verdict == expected


def reproduce(root: Path, experiment: int, seeds: int = 2, **changes: Callable[[np.ndarray], np.ndarray]) -> None:
    """The recorded curves as runs of ours, Network B's last seed changed."""
    for network in "AB":
        for seed in range(seeds):
            epochs = original_run(experiment, network).epochs
            curves = {name.replace("/", "_"): values for name, values in epochs.items() if name != "epoch"}
            if network == "B" and seed == seeds - 1:
                curves |= {column: change(curves[column]) for column, change in changes.items()}
            make_run(root, original_run(experiment, network).as_run, network, seed, 500, **curves)


@pytest.mark.parametrize("experiment", [1, 2])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "holds"),
        ({"val_accuracy": lambda values: values + 0.005}, "holds"),  # within half a point, to the last bit
        ({"val_accuracy": lambda values: values - 0.01 * (EPOCHS == 100)}, "depends on the seed"),
        ({"val_accuracy": lambda values: values - 0.01 * (EPOCHS == 101)}, "holds"),  # no epoch that is asked for
        ({"val_loss": lambda values: 1.9 * values}, "holds"),
        ({"val_loss": lambda values: 2.1 * values}, "depends on the seed"),
        ({"val_loss": lambda values: values * (1 + 9 * (EPOCHS % 50 == 25))}, "holds"),  # single epochs do not matter
        ({"val_loss": lambda values: np.full(500, 0.3)}, "depends on the seed"),
    ],
)
def test_reproduced(tmp_path: Path, experiment: int, changes: dict[str, Any], expected: str) -> None:
    reproduce(tmp_path, experiment, **changes)
    assert of(tmp_path, f"reproduced_{experiment}").verdict == expected


def test_where_no_seed_is_like_the_recorded_run_it_does_not_hold(tmp_path: Path) -> None:
    reproduce(tmp_path, 1, 1, val_accuracy=lambda values: values - 0.01)
    assert of(tmp_path, "reproduced_1").verdict == "undecided"  # one seed is none
    make_run(tmp_path, *B, 5, 500, val_accuracy=0.9)
    claim = of(tmp_path, "reproduced_1")
    assert claim.verdict == "does not hold"
    (row,) = (row for row in claim.rows if row.here.startswith("baseline B: 0 of 2"))
    assert "seed 0: −1.00 points in epoch 10" in row.difference


def test_runs_that_have_learnt_everything_are_told_of(tmp_path: Path) -> None:
    reproduce(tmp_path, 1, train_loss=lambda values: np.where(EPOCHS > 200, 0.0, 0.1))
    explanation = of(tmp_path, "reproduced_1").explanation
    assert "In 2 of 2 runs of baseline B the training loss ends at 0.0000 (seed 0 from epoch" in explanation
    assert "seed 1 from epoch 201)" in explanation
    assert "runs of baseline A" not in explanation


def test_deeper() -> None:
    claim = of_nothing("deeper")
    assert claim.verdict == "does not hold"
    # By hand: 785·64 + 65·128 + 129·64 + 65·10, and 785·256 + 257·512 + 513·128 + 129·10.
    assert (claim.rows[1].beside, claim.rows[1].here) == ("A: 67,466", "B: 399,498")


def of_nothing(key: str) -> Claim:
    return judged(key, Evidence([]))


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (np.linspace(1, 0.1, 500), "holds in repetition only"),  # the report's own goes up in every second step
        (np.where(EPOCHS < 400, 1 / EPOCHS, 0.0), "does not hold"),  # to stay is not to decrease
        (0.1 + 0.01 * (EPOCHS % 2), "does not hold"),
    ],
)
def test_steadily(tmp_path: Path, losses: np.ndarray, expected: str) -> None:
    for case in (A, B):
        for seed in range(2):
            make_run(tmp_path, *case, seed, 500, train_loss=losses)
    claim = of(tmp_path, "steadily")
    assert claim.verdict == expected
    assert [row.report for row in claim.rows[:2]] == ["49.50 %", "52.91 %"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "holds"),
        ({"val_recall": 0.001}, ONLY),
        ({"val_precision": np.linspace(0, -0.2, 10)}, ONLY),  # falls while the accuracy rises
        ({"val_precision": -0.01}, "holds"),  # lower throughout, and follows
    ],
)
def test_metrics_agree(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    accuracy = np.linspace(0.9, 0.98, 10)
    for experiment in ("baseline", "dropout_as_run"):
        for network in "AB":
            changed = {name: accuracy + by for name, by in change.items()} if network == "B" else {}
            make_run(tmp_path, experiment, network, val_accuracy=accuracy, **changed)
    assert of(tmp_path, "metrics_agree").verdict == expected


def test_weighted_recall_is_the_accuracy_in_a_real_run(finished: tuple[Path, dict[str, Any]]) -> None:
    (run,) = read_runs(finished[0])
    assert np.abs(run.epochs["val/recall"] - run.epochs["val/accuracy"]).max() < 1e-9


@pytest.mark.parametrize(("change", "expected"), [(0.0, "holds"), (0.006, ONLY)])
def test_accuracies(tmp_path: Path, change: float, expected: str) -> None:
    for case, last, best in ((A, 0.9786, 0.9822), (B, 0.983, 0.9843)):
        for seed, off in enumerate((-0.001, 0.0, 0.001)):  # one more run within ± 4.3 · 0.001 · √(1 + 1/3) = 0.005
            accuracy = np.full(500, last + change + off)
            accuracy[300] = best + change + off
            make_run(tmp_path, *case, seed, 500, val_accuracy=accuracy, test=0.979)
    claim = of(tmp_path, "accuracies")
    assert claim.verdict == expected
    assert "in epoch 430 Network A's record has 98.25 %, its highest being 98.28 % in epoch 387" in claim.explanation
    assert "in epoch 264 Network B's has 98.26 %, its highest being 98.44 % in epoch 168" in claim.explanation
    tested = of(tmp_path, "test_accuracies")
    assert (tested.verdict, len(tested.rows)) == ("cannot be tested", 2)


def test_the_test_accuracy_of_a_longer_run_is_not_that_of_epoch_500(tmp_path: Path) -> None:
    for seed in range(2):
        for case in (A, B):
            make_run(tmp_path, *case, seed, 510, val_accuracy=0.981)
    assert of(tmp_path, "test_accuracies").rows == []


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
    claim = of(tmp_path, "first_epoch")
    assert claim.verdict == expected
    if firsts[0] == 0.33:
        assert "Network A gets down to the recorded 0.058 in epoch 6 to 7" in claim.explanation  # 0.33/6 and 0.35/7
    else:
        assert "gets down to" not in claim.explanation


@pytest.mark.parametrize(("network", "sign", "losses"), [("A", -1, (0.65, 0.18)), ("B", 1, (1.2, 0.35))])
@pytest.mark.parametrize(
    ("loss", "accuracy", "scale", "expected"),
    [
        (0, (0.009, 0.01, 0.011), 1.0, "holds"),
        (2, (0.009, 0.01, 0.011), 1.0, ONLY),  # the loss is not lower
        (0, (-0.009, -0.01, -0.011), 1.0, ONLY),  # the accuracy moves to the other side
        (0, (-0.01, 0.0, 0.01), 1.0, "undecided"),
        (0, (0.009, 0.01, 0.011), 2.0, ONLY),  # lower, but not to there
    ],
)
def test_dropout(
    tmp_path: Path,
    network: str,
    sign: int,
    losses: tuple[float, float],
    loss: float,
    accuracy: tuple[float, ...],
    scale: float,
    expected: str,
) -> None:
    for seed, off in enumerate(accuracy):
        factor = 1 + 0.02 * seed
        make_run(tmp_path, "baseline", network, seed, 500, val_loss=losses[0] * factor, val_accuracy=0.98)
        after = (losses[1] * scale + loss) * factor
        make_run(tmp_path, "dropout_as_run", network, seed, 500, val_loss=after, val_accuracy=0.98 + sign * off)
    assert of(tmp_path, f"dropout_{network.lower()}").verdict == expected


@pytest.mark.parametrize(("after", "expected"), [(0.07, "holds"), (0.2, ONLY), (0.001, ONLY)])
def test_dropout_trains_worse(tmp_path: Path, after: float, expected: str) -> None:
    for seed in range(3):
        make_run(tmp_path, *A, seed, 500, train_loss=0.005)
        make_run(tmp_path, *RUN_A, seed, 500, train_loss=after * (1 + 0.02 * (seed - 1)))
    assert of(tmp_path, "dropout_trains_worse").verdict == expected


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
        losses = original_run(2, network).epochs["train/loss"][:100]
        for seed in range(2 if constant and decaying else 0):
            slight = 1 + 0.001 * seed
            make_run(tmp_path, "dropout_as_run", network, seed, 100, train_loss=losses * constant * slight)
            make_run(tmp_path, "dropout_as_intended", network, seed, 100, train_loss=losses * decaying * slight)
    claim = of(tmp_path, "rate_decayed")
    assert claim.verdict == expected
    if constant == 1.05:
        assert claim.rows[2].beside == "dropout_as_run A: 0.0493 ± 0.0007"  # ln 1.05 = 0.0488, and 0.0010 more
        assert claim.rows[2].here == "dropout_as_intended A: 0.2629 ± 0.0007"  # ln 1.3 = 0.2624


@pytest.mark.parametrize(
    ("off", "scale", "expected"), [(0, 1, "holds"), (-0.04, 1, "does not hold"), (0, 3, "does not hold")]
)
def test_text_settings(tmp_path: Path, off: float, scale: float, expected: str) -> None:
    for network, accuracy, val_loss in (("A", 0.972, 0.18), ("B", 0.984, 0.35)):
        for seed, scatter in enumerate((-0.001, 0.0, 0.001)):
            accuracies = np.where(EPOCHS < 450, accuracy + off + scatter + 0.0003, accuracy + off + scatter)
            losses = val_loss * scale * (1 + 50 * scatter)
            make_run(tmp_path, "dropout_scheduler", network, seed, 500, val_accuracy=accuracies, val_loss=losses)
    claim = of(tmp_path, "text_settings")
    assert claim.verdict == expected
    assert "within 0.03 points (A) and 0.03 points (B)" in claim.explanation


@pytest.mark.parametrize(
    ("remains", "slopes", "expected"),
    [
        (0.3, (-0.09, -0.1, -0.11), "holds"),
        (0.3, (0.09, 0.1, 0.11), "does not hold"),
        (0.3, (-0.1, 0.0, 0.1), "undecided"),
        (0.0, (-0.09, -0.1, -0.11), ONLY),  # nothing remains that dropout could lower
    ],
)
def test_more_regularization(tmp_path: Path, remains: float, slopes: tuple[float, ...], expected: str) -> None:
    for seed, slope in enumerate(slopes):
        for steps in range(4):
            epochs = 500 if steps == 0 else 100
            end = 0.1 + (0.4 + slope * steps) * (np.arange(1, epochs + 1) > 50)
            if steps == 0:
                end[400:] = 0.1 + remains * (1 + 0.01 * seed)
            settings = {"model.dropout": round(0.3 + 0.1 * steps, 1)}
            make_run(tmp_path, *RUN_B, seed, epochs, settings, val_loss=end)
        make_run(tmp_path, "dropout_as_intended", "B", seed, 100, val_loss=0.1)
    claim = of(tmp_path, "more_regularization")
    assert claim.verdict == expected
    assert "a rate that falls lowers the rise of Network B by 0.4000" in claim.explanation


def test_an_interval_at_nothing_is_no_difference() -> None:
    nothing = Interval(0, 0, 0, 1)
    assert sheet.positive(nothing) == sheet.negative(nothing) == "does not hold"
    assert sheet.combined([]) == "undecided"


def test_the_number_that_decides_is_of_the_verdict() -> None:
    def row(quantity: str, verdict: sheet.Verdict, p: float) -> Row:
        return Row(quantity, verdict=verdict, numbers=Interval(0, 0, 0, p))

    rows = [row("sure", "holds", 0.001), row("close", "holds", 0.049), row("no", "does not hold", 0.01)]
    claim = Claim("k", "t", "w", "t", rows[:2], "holds", "e")
    assert claim.deciding is rows[1]  # the plain 0.049 stands in sight
    assert Claim("k", "t", "w", "t", rows, "does not hold", "e").deciding is rows[2]
    found = sheet.adjusted([claim])
    assert [one.adjusted for one in found[0].rows] == pytest.approx([0.002, 0.049])
    assert "2 have p < 0.05, of which 2 remain" in several_tests(found)
    assert "of which 1 remain" in several_tests(
        sheet.adjusted([claim, Claim("l", "", "", "", [row("", "holds", 0.03)], "holds", "")])
    )
