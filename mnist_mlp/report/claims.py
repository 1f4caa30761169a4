"""The original report's claims, each tested on the runs: verdicts are computed, so they change when the runs do.

A claim is an entry of `claims.yaml`, which has its words and the columns of `metrics.csv` that it takes, and a function
here of the same name, which notes on a sheet (`sheet.py`) what it finds and returns what stands in the words' braces.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mnist_mlp.report.evidence import (
    MODELS,
    TAIL,
    Case,
    Evidence,
    gap,
    highest,
    rank_correlation,
    rise,
    t_interval,
    tail,
)
from mnist_mlp.report.original import original_run
from mnist_mlp.report.sheet import (
    FACTOR,
    LAST,
    NOTHING,
    POINTS,
    SHAPE,
    STEADY,
    Claim,
    Sheet,
    combined,
    fraction,
    loss,
    near,
    negative,
    one_run,
    percent,
    points,
    positive,
    signed,
    value,
    yes,
)
from mnist_mlp.run.records import Run

Texts = dict[str, str]


@cache
def entries() -> dict[str, dict[str, Any]]:
    """The claims in words, in the order of the original report."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "claims.yaml").read_text())
    return found


def judge(evidence: Evidence) -> list[Claim]:
    """Every claim, in the order of the original report; where the runs that it takes are not there, it is undecided and
    says so."""
    return [judged(key, evidence) for key in entries()]


def judged(key: str, evidence: Evidence) -> Claim:
    """One claim."""
    entry = entries()[key]
    columns = tuple(entry["columns"])
    test: Callable[[Sheet], Texts] = globals()[key]  # the function of the entry's name
    sheet = Sheet(evidence.having(columns))
    constants = {"tail": TAIL, "last": LAST, "factor": FACTOR, "shape": SHAPE, "points": "half a percentage point"}
    found = constants | test(sheet)
    verdict = sheet.verdict or combined(sheet.verdicts)
    explanation = f"{entry['explanation']} {entry.get('when', {}).get(verdict, '')}"
    return Claim(
        key,
        entry["title"],
        entry["words"],
        entry["test"].format(**constants),
        sheet.rows,
        verdict,
        " ".join(explanation.format(**found).split()),
        tuple(entry["figures"]),
        tuple(sheet.missing),
        tuple(run.name for run in sheet.evidence.left_out()),
        columns,
        tuple(sheet.p_values),
    )


def reproduced(sheet: Sheet, experiment: int) -> Texts:
    for network in MODELS:
        known = original_run(experiment, network)
        case = Case(known.as_run, network)
        there = known.points
        for epoch in (10, 50, 100, LAST):
            sheet.accuracy(case, float(there["val/accuracy"][there["epoch"] == epoch][0]), epoch, "recorded")
        if run := sheet.at(case):
            ours = run.epochs["val/loss"][there["epoch"].astype(int) - 1]
            ratios = ours / there["val/loss"]
            agreement = rank_correlation(ours, there["val/loss"])
            sheet.row(
                f"shape of the validation loss, {len(ours)} epochs",
                f"{case}: rank correlation {agreement:.2f}",
                "recorded points",
                f"× {ratios.min():.2f} to × {ratios.max():.2f}, median × {np.median(ratios):.2f}",
                one_run(run),
                yes(agreement >= SHAPE[0] and ratios.max() <= SHAPE[1] and ratios.min() >= 1 / SHAPE[1]),
            )
    cases = [Case(original_run(experiment, network).as_run, network) for network in MODELS]
    return {"settled": sheet.settling(*cases)}


def reproduced_1(sheet: Sheet) -> Texts:
    return reproduced(sheet, 1)


def reproduced_2(sheet: Sheet) -> Texts:
    return reproduced(sheet, 2)


def deeper(sheet: Sheet) -> Texts:
    depths = {}
    for network in MODELS:
        case = Case("baseline", network)
        if run := sheet.at(case, 1):
            widths = [784, *run.settings["model.hidden"], 10]
            weights = sum((before + 1) * after for before, after in pairwise(widths))
            depths[network] = len(widths) - 1
            sheet.row(
                f"Network {network}", f"{depths[network]} layers", "-".join(map(str, widths)), f"{weights:,} parameters"
            )
    if len(depths) == 2:
        sheet.verdict = yes(depths["B"] > depths["A"])
    return {}


def steadily(sheet: Sheet) -> Texts:
    cases = [Case("baseline", network) for network in MODELS]
    for case in cases:
        if run := sheet.at(case):
            losses = run.epochs["train/loss"][:LAST]
            steady = float(np.mean((np.diff(losses) < 0) | (losses[1:] < NOTHING)))
            sheet.row(
                "epochs with a lower training loss than the one before, or none",
                f"{case}: {percent(steady)}",
                f"steady: {percent(STEADY)}",
                f"highest after epoch 100: {loss(losses[100:].max())}; lowest before: {loss(losses[:100].min())}",
                one_run(run),
                yes(steady >= STEADY),
            )
    return {"settled": sheet.settling(*cases)}


def baseline_rises(sheet: Sheet) -> Texts:
    steps = []
    for network in MODELS:
        case = Case("baseline", network)
        sheet.compare("rise of the validation loss from its minimum", case, None, rise, positive)
        if run := sheet.evidence.longest(case):
            losses, end = run.epochs["val/loss"], run.length
            lowest = int(losses.argmin())
            sheet.row(
                "validation loss of the last epoch, and at its minimum",
                f"{case}: {loss(losses[-1])}",
                f"{loss(losses[lowest])} in epoch {lowest + 1}",
                f"× {losses[-1] / losses[lowest]:.1f}",
                one_run(run, end),
            )
            if lowest + 1 < end:
                up = float(np.mean(np.diff(losses[lowest:]) > 0))
                steps.append(
                    f"{100 * up:.0f} % of the {end - lowest - 1} epochs after its minimum for Network {network}"
                )
    trend = f'As for "after each epoch": in one run each it went up in {" and in ".join(steps)}.' if steps else ""
    return {"steps": trend}


def metrics_agree(sheet: Sheet) -> Texts:
    for experiment in ("baseline", "dropout_as_run"):
        for network in MODELS:
            case = Case(experiment, network)
            runs = sheet.evidence.all(case)
            metrics = {
                name: np.concatenate([run.epochs[f"val/{name}"] for run in runs]) if runs else np.empty(0)
                for name in ("accuracy", "recall", "precision", "f1")
            }
            accuracy = metrics.pop("accuracy")
            if len(accuracy) < 3:
                sheet.lacks(f"three epochs or more of {case}")
                continue
            apart = {name: float(np.abs(metric - accuracy).max()) for name, metric in metrics.items()}
            agreement = min(rank_correlation(accuracy, metrics[name]) for name in ("precision", "f1"))
            sheet.row(
                "largest distance from the accuracy",
                f"{case}: " + ", ".join(f"{name} {points(size)}" for name, size in apart.items()),
                "",
                f"rank correlation with it at least {agreement:.3f}",
                f"{len(accuracy)} epochs of {len(runs)} run{'s' if len(runs) > 1 else ''}",
                yes(apart["recall"] < 1e-6 and agreement >= SHAPE[0]),
            )
    return {}


def accuracies(sheet: Sheet) -> Texts:
    for network in MODELS:
        case, text = Case("baseline", network), original_run(1, network).text
        sheet.accuracy(case, fraction(text.final_accuracy))
        if run := sheet.at(case):
            best = int(run.epochs["val/accuracy"][:LAST].argmax()) + 1
            ours, told = value(run, "val/accuracy", best), fraction(text.best_accuracy)
            sheet.row(
                "highest validation accuracy",
                f"{case}: {percent(ours)} in epoch {best}",
                f"text: {percent(told)} in epoch {text.best_epoch}",
                signed(ours - told, percent),
                one_run(run),
                yes(abs(ours - told) <= POINTS + 1e-9),
            )
            if run.length > LAST:  # the test set was seen by later weights only
                sheet.lacks(f"the test accuracy of {case} after {LAST} epochs")
                continue
            ours, told = float(run.record["test"]["last"]["accuracy"]), fraction(text.test_accuracy)
            error = ((ours * (1 - ours) + told * (1 - told)) / 3000) ** 0.5
            sheet.row(
                "test accuracy",
                f"{case}: {percent(ours)}",
                f"text: {percent(told)}",
                f"{signed(ours - told, percent)}; its standard error {points(error)}",
                one_run(run),
                yes(abs(ours - told) <= 1.96 * error),
            )
    return {}


def b_trains_worse(sheet: Sheet) -> Texts:
    a, b = Case("baseline", "A"), Case("baseline", "B")
    sheet.compare("training loss at the end", b, a, tail("train/loss"), positive)
    sheet.beside("mean training loss of all epochs", b, a, lambda run, end: run.epochs["train/loss"][:end].mean(), loss)
    theirs = {network: original_run(1, network).points["train/loss"] for network in MODELS}
    sheet.row(
        "mean training loss of the 20 recorded epochs",
        f"recorded B: {loss(theirs['B'].mean())}",
        f"recorded A: {loss(theirs['A'].mean())}",
        signed(theirs["B"].mean() - theirs["A"].mean(), loss),
        "the report's records",
    )
    return {"higher": str(np.sum(theirs["B"] > theirs["A"]))}


def training_accuracy(sheet: Sheet) -> Texts:
    case = Case("baseline", "B")
    if run := sheet.at(case):
        told, ours = fraction(original_run(1, "B").text.final_accuracy), 1 - value(run, "train/error")
        sheet.row(
            f"training accuracy of epoch {LAST}",
            f"{case}: {percent(ours)}",
            f"text: {percent(told)}",
            signed(ours - told, percent),
            one_run(run),
            yes(abs(ours - told) <= POINTS),
        )
        sheet.row(f"validation accuracy of epoch {LAST}", f"{case}: {percent(value(run, 'val/accuracy'))}")
    return {}


def b_more_accurate(sheet: Sheet) -> Texts:
    a, b = Case("baseline", "A"), Case("baseline", "B")
    sheet.compare("validation accuracy at the end", b, a, tail("val/accuracy"), positive, percent)
    sheet.compare("highest validation accuracy", b, a, highest("val/accuracy"), positive, percent)
    sheet.beside(
        "validation accuracy of the last epoch", b, a, lambda run, end: value(run, "val/accuracy", end), percent
    )
    theirs = {network: float(original_run(1, network).points["val/accuracy"][-1]) for network in MODELS}
    sheet.row(
        "validation accuracy of the last epoch",
        f"recorded B: {percent(theirs['B'])}",
        f"recorded A: {percent(theirs['A'])}",
        signed(theirs["B"] - theirs["A"], percent),
        "the report's records",
    )
    variances = {network: p * (1 - p) / 10_000 for network, p in theirs.items()}
    return {"error": points(variances["A"] ** 0.5), "error_of_two": points(sum(variances.values()) ** 0.5)}


def b_overfits_more(sheet: Sheet) -> Texts:
    a, b = Case("baseline", "A"), Case("baseline", "B")

    def gap_at(run: Run, end: int) -> float:
        return value(run, "val/loss", end) - value(run, "train/loss", end)

    def rise_at(run: Run, end: int) -> float:
        return value(run, "val/loss", end) - float(run.epochs["val/loss"][:end].min())

    sheet.compare("generalisation gap", b, a, gap, positive)
    sheet.compare("rise of the validation loss from its minimum", b, a, rise, positive)
    sheet.beside("generalisation gap", b, a, gap_at, loss)
    sheet.beside("rise of the validation loss from its minimum", b, a, rise_at, loss)
    single = ""
    if (run := sheet.evidence.longest(b)) and (other := sheet.evidence.longest(a)):
        end = min(run.length, other.length)
        larger = "larger" if gap_at(run, end) > gap_at(other, end) else "smaller"
        theirs = "larger" if gap_at_record("B") > gap_at_record("A") else "smaller"
        single = (
            f"In one run each the gap after {end} epochs is {larger} for B than for A; in the report's it was "
            f"{theirs} ({loss(gap_at_record('B'))} and {loss(gap_at_record('A'))}). Of n = 1 neither says what another "
            "seed does. "
        )
    return {"single": single, "settled": sheet.settling(a, b)}


def gap_at_record(network: str) -> float:
    """The generalisation gap in the last epoch of the report's Experiment 1."""
    known = original_run(1, network).points
    return float(known["val/loss"][-1] - known["train/loss"][-1])


def first_epoch(sheet: Sheet) -> Texts:
    older = []
    for experiment in (1, 2):
        for network in MODELS:
            known = original_run(experiment, network)
            case = Case(known.as_run, network)
            # A seed's first epoch is the same in runs of any length: it counts once.
            first = np.array(list({run.seed: value(run, "train/loss", 1) for run in sheet.evidence.all(case)}.values()))
            theirs = float(known.points["train/loss"][0])
            if len(first) < 2:
                if experiment == 1:
                    sheet.lacks(f"two seeds or more of {case}")
                continue
            # Where one more run would lie: wider than the interval of the mean by the scatter of that run itself.
            mean, _, high, _ = t_interval(first)
            half = (high - mean) * (len(first) + 1) ** 0.5
            sd = float(first.std(ddof=1))
            away = f", {abs(theirs - mean) / sd:.1f} standard deviations" if sd else ""
            sheet.row(
                f"training loss of epoch 1, Experiment {experiment}",
                f"{case}: {loss(mean)} ± {loss(sd)}; one more within ± {loss(half)}",
                f"recorded: {loss(theirs)}",
                f"{signed(theirs - mean, loss)}{away}",
                f"{len(first)} seeds",
                yes(abs(theirs - mean) <= half) if experiment == 1 else None,
            )
            run = sheet.evidence.longest(case)
            if run and experiment == 1 and theirs < mean - half:
                reached = np.flatnonzero(run.epochs["train/loss"] <= theirs)
                if len(reached):
                    older.append(f"Network {network} gets down to the recorded {theirs:.3f} in epoch {reached[0] + 1}")
    sentence = (
        f"Here {' and '.join(older)}. So the recorded networks had been trained for about that long before their "
        "epoch 1, as happens when a notebook's training cell is run a second time."
        if older
        else ""
    )
    return {"older": sentence}


def dropout_helps(sheet: Sheet, network: str, accuracy_falls: bool) -> Texts:
    before, after = Case("baseline", network), Case("dropout_as_run", network)
    side = negative if accuracy_falls else positive
    sheet.compare("validation loss at the end", after, before, tail("val/loss"), negative)
    sheet.compare("validation accuracy at the end", after, before, tail("val/accuracy"), side, percent)
    seeds = list(sheet.verdicts)
    texts = [original_run(experiment, network).text for experiment in (1, 2)]
    for case, text in zip((before, after), texts, strict=True):
        sheet.last_loss(case, "val/loss", float(text.val_loss or 0))
    told = fraction(texts[1].final_accuracy) - fraction(texts[0].final_accuracy)
    if (run := sheet.at(after)) and (other := sheet.at(before)):
        ours, theirs = value(run, "val/accuracy"), value(other, "val/accuracy")
        sheet.row(
            f"validation accuracy of epoch {LAST}",
            f"{after}: {percent(ours)}",
            f"{before}: {percent(theirs)}",
            f"{signed(ours - theirs, percent)} (text: {signed(told, percent)})",
            one_run(run, LAST, " each"),
            yes(ours < theirs if accuracy_falls else ours > theirs),
        )
    # Seeds stand at the shorter length, where less has happened.
    late = sheet.verdicts[len(seeds) :]
    differs = (
        "The seeds, after fewer epochs, and the long runs do not say the same; the report speaks of the latter, of "
        "which there is one each."
        if not sheet.missing and combined(seeds) != combined(late)
        else ""
    )
    return {"differs": differs}


def dropout_a(sheet: Sheet) -> Texts:
    return dropout_helps(sheet, "A", accuracy_falls=True)


def dropout_b(sheet: Sheet) -> Texts:
    return dropout_helps(sheet, "B", accuracy_falls=False)


def dropout_trains_worse(sheet: Sheet) -> Texts:
    before, after = Case("baseline", "A"), Case("dropout_as_run", "A")
    sheet.compare("training loss at the end", after, before, tail("train/loss"), positive)
    sheet.last_loss(after, "train/loss", float(original_run(2, "A").text.train_loss or 0))
    return {}


def learning_rates(steps: Sequence[float | None], rate: float = 0.001) -> list[float]:
    """What PyTorch's `StepLR(step_size=10, gamma=0.1)` makes of the rate, after each `scheduler.step(...)`.

    Args:
        steps: what to call it with; None for nothing.
        rate: to begin with.
    """
    import torch

    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=rate)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.1)
    rates = []
    for step in steps:
        optimizer.step()
        argument: Any = () if step is None else (step,)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the argument is deprecated
            scheduler.step(*argument)
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return rates


def rate_decayed(sheet: Sheet) -> Texts:
    for network in MODELS:
        known = original_run(2, network).points
        losses = known["val/loss"]
        given, proper = learning_rates(losses.tolist()), learning_rates([None] * len(losses))
        sheet.row(
            f"rate after {len(losses)} calls of StepLR, from 0.001",
            f"step(validation_loss): {given[-1]:g}",
            f"step(): {proper[-1]:g}",
            f"recorded losses of Network {network}, {losses.min():g} to {losses.max():g}",
            "PyTorch, run for this page",
            yes(min(given) < 0.001),
        )
        cases = [Case(experiment, network) for experiment in ("dropout_as_run", "dropout_as_intended")]
        runs = [run for case in cases if (run := sheet.at(case, 15))]  # up to epoch 10 the two are the same
        if len(runs) < 2:
            continue
        end = min(run.length for run in runs)
        chosen = (known["epoch"] > 10) & (known["epoch"] <= end)
        epochs, recorded_losses = known["epoch"][chosen].astype(int), known["train/loss"][chosen]
        off = [
            float(np.sqrt(np.mean(np.log(run.epochs["train/loss"][epochs - 1] / recorded_losses) ** 2))) for run in runs
        ]
        sheet.row(
            f"distance from the recorded training loss, epochs {epochs[0]} to {epochs[-1]}",
            f"{cases[0]}: {off[0]:.3f}",
            f"{cases[1]}: {off[1]:.3f}",
            "root mean square of the log ratio",
            "one run each",
            yes(off[1] < off[0]),
        )
    for experiment in ("dropout_scheduler", "dropout_as_run", "dropout_as_intended"):
        if run := sheet.evidence.longest(Case(experiment, "A")):
            first, last = run.epochs["lr"][[0, -1]]
            sheet.row(
                "rate in the first and in the last epoch",
                f"{experiment}: {first:g}",
                f"{last:g}",
                "",
                one_run(run, run.length),
            )
    said = set(sheet.verdicts) - {"undecided"}
    sheet.verdict = said.pop() if len(said) == 1 else "undecided"
    return {}


def text_settings(sheet: Sheet) -> Texts:
    frozen = []
    for network in MODELS:
        text, case = original_run(2, network).text, Case("dropout_scheduler", network)
        told = fraction(text.final_accuracy)
        sheet.compare("validation accuracy at the end", case, told, tail("val/accuracy"), near, percent)
        sheet.accuracy(case, told)
        sheet.last_loss(case, "val/loss", float(text.val_loss or 0))
        run = sheet.evidence.longest(case)
        if run and run.length > 40:
            change = np.abs(run.epochs["val/accuracy"][40:] - run.epochs["val/accuracy"][-1]).max()
            frozen.append(f"{points(float(change))} ({network})")
    sentence = f"After epoch 40 the accuracy stays within {' and '.join(frozen)} of its last value." if frozen else ""
    return {"frozen": sentence}


def more_regularization(sheet: Sheet) -> Texts:
    for network in MODELS:
        constant, decaying = Case("dropout_as_run", network), Case("dropout_as_intended", network)
        sheet.compare(
            "rise of the validation loss from its minimum",
            decaying,
            constant,
            rise,
            positive if network == "B" else None,
        )
        sheet.beside(
            "validation loss of the last epoch", decaying, constant, lambda run, end: value(run, "val/loss", end), loss
        )
        sheet.beside(
            "its ratio to the lowest",
            decaying,
            constant,
            lambda run, end: value(run, "val/loss", end) / float(run.epochs["val/loss"][:end].min()),
            lambda ratio: f"{ratio:.2f}",
        )
        sheet.beside(
            "validation accuracy of the last epoch",
            decaying,
            constant,
            lambda run, end: value(run, "val/accuracy", end),
            percent,
        )
    return {}
