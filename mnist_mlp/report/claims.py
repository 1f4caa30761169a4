"""The original report's claims, each tested on the runs: verdicts are computed, so they change when the runs do.

A claim is an entry of `claims.yaml`, which has its words and the columns of `metrics.csv` that it takes, and a function
here of the same name, which notes on a sheet (`sheet.py`) what it finds and returns what stands in the words' braces.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mnist_mlp.report.evidence import (
    LAST,
    MODELS,
    SHORT,
    TAIL,
    Case,
    Columns,
    Evidence,
    case,
    each,
    first,
    gap,
    highest,
    last,
    rank_correlation,
    rise,
    smooth,
    tail,
    window,
)
from mnist_mlp.report.markdown import spanned
from mnist_mlp.report.original import original_run
from mnist_mlp.report.sheet import (
    POINTS,
    SHAPE,
    STEADY,
    Claim,
    Row,
    Sheet,
    adjusted,
    combined,
    fraction,
    loss,
    negative,
    p_text,
    percent,
    plain_number,
    points,
    positive,
    spread,
    yes,
)
from mnist_mlp.run.groups import configured

Texts = Mapping[str, str]
EARLY = 50  # epochs in which a fresh network comes down: the recorded ones of Experiment 1 had done so before
DROPOUTS = (0.3, 0.4, 0.5, 0.6)


@cache
def entries() -> dict[str, dict[str, Any]]:
    """The claims in words, in the order of the original report."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "claims.yaml").read_text("utf-8"))
    return found


def judge(evidence: Evidence) -> list[Claim]:
    """Every claim, in the order of the original report; where the runs that it takes are not there, it is undecided and
    says so."""
    return adjusted([judged(key, evidence) for key in entries()])


def judged(key: str, evidence: Evidence) -> Claim:
    """One claim."""
    entry = entries()[key]
    columns = tuple(entry["columns"])
    test: Callable[[Sheet], Texts | None] = globals()[key]  # the function of the entry's name
    sheet = Sheet(evidence.having(columns))
    constants = {"tail": TAIL, "last": LAST, "short": SHORT, "early": EARLY, "shape": SHAPE, "steady": percent(STEADY)}
    constants |= {"points": "half a percentage point", "window": window(LAST)}
    found = constants | dict(test(sheet) or {})
    verdict = sheet.verdict or combined(sheet.rows)
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
    )


def baseline(network: str) -> Case:
    return case("baseline", network)


def as_run(network: str) -> Case:
    return case("dropout_as_run", network)


def reproduced(sheet: Sheet, experiment: int) -> Texts:
    def unlike(columns: Columns) -> list[str]:
        accuracies = [
            100 * (columns["val/accuracy"] - theirs["val/accuracy"])[epoch - 1] for epoch in (10, 50, 100, LAST)
        ]
        found = [
            f"{off:+.2f} points in epoch {epoch}"
            for epoch, off in zip((10, 50, 100, LAST), accuracies, strict=True)
            if abs(off) > 100 * POINTS + 1e-9  # half a point itself is within it, whatever its last bit
        ]
        ours, recorded = smooth(columns["val/loss"]), smooth(theirs["val/loss"])
        ratios, agreement = ours / recorded, rank_correlation(ours, recorded)
        if agreement < SHAPE[0]:
            found.append(f"rank correlation of the loss {agreement:.2f}")
        if ratios.max() > SHAPE[1] or ratios.min() < 1 / SHAPE[1]:
            found.append(f"loss × {ratios.min():.2f} to × {ratios.max():.2f}")
        return [text.replace("-", "−") for text in found]

    cases = [case(original_run(experiment, network).as_run, network) for network in MODELS]
    for of_it in cases:
        theirs = original_run(experiment, of_it.network).epochs
        sheet.counted("accuracy near, and loss of the same shape", of_it, unlike)
        sheet.contrast(f"validation accuracy of epoch {LAST}", {of_it: 1}, last("val/accuracy"), form=percent)
        sheet.contrast(f"validation loss of epoch {LAST}", {of_it: 1}, last("val/loss"))
    settled = sheet.settling(*cases)
    return {"settled": f"{settled}When a run stops jumping decides where its validation loss ends. " if settled else ""}


def reproduced_1(sheet: Sheet) -> Texts:
    return reproduced(sheet, 1)


def reproduced_2(sheet: Sheet) -> Texts:
    return reproduced(sheet, 2)


def deeper(sheet: Sheet) -> None:
    depths, sizes = {}, {}
    for network, model in MODELS.items():
        widths = [784, *(configured("baseline", model) or {})["model.hidden"], 10]
        depths[network] = len(widths) - 1
        sizes[network] = sum((before + 1) * after for before, after in pairwise(widths))
    sheet.rows += [
        Row("layers with weights", f"B: {depths['B']}", f"A: {depths['A']}", verdict=yes(depths["B"] > depths["A"])),
        Row("parameters", f"B: {sizes['B']:,}", f"A: {sizes['A']:,}", f"× {sizes['B'] / sizes['A']:.1f}"),
    ]


def steadily(sheet: Sheet) -> Texts:
    falling = each(lambda run: float(np.mean(np.diff(run["train/loss"]) < 0)))
    trend = each(lambda run: rank_correlation(np.arange(len(run["train/loss"])), run["train/loss"]))
    cases = [baseline(network) for network in MODELS]
    for of_it in cases:
        sheet.contrast("steps that lower the training loss", {of_it: 1}, falling, positive, percent, less=STEADY)
    for of_it in cases:
        sheet.contrast("rank correlation of training loss and epoch", {of_it: 1}, trend, form=plain_number)
    return {"settled": sheet.settling(*cases)}


def baseline_rises(sheet: Sheet) -> None:
    def up(run: Columns) -> float:
        losses = run["val/loss"]
        return float(np.mean(np.diff(losses[losses.argmin() :]) > 0)) if losses.argmin() + 1 < len(losses) else 0.0

    for network in MODELS:
        sheet.contrast("rise of the validation loss from its minimum", {baseline(network): 1}, rise, positive)
    for network in MODELS:
        sheet.contrast("epochs after the minimum that raise it", {baseline(network): 1}, each(up), form=percent)
        times = each(lambda run: run["val/loss"][-1] / run["val/loss"].min())
        sheet.contrast(
            "last validation loss, as a multiple of the lowest", {baseline(network): 1}, times, form=plain_number
        )


def metrics_agree(sheet: Sheet) -> None:
    def compared(curves: Sequence[Columns]) -> tuple[str, str, bool]:
        names = ("recall", "precision", "f1")
        accuracy = np.concatenate([run["val/accuracy"] for run in curves])
        metrics = {name: np.concatenate([run[f"val/{name}"] for run in curves]) for name in names}
        apart = {name: float(np.abs(metric - accuracy).max()) for name, metric in metrics.items()}
        agreement = min(rank_correlation(accuracy, metrics[name]) for name in ("precision", "f1"))
        text = ", ".join(f"{name} {points(size).removesuffix(' points')}" for name, size in apart.items())
        return (
            f"{text} points",
            f"rank correlation at least {agreement:.3f}",
            apart["recall"] < 1e-6 and agreement >= SHAPE[0],
        )

    for experiment in (1, 2):
        for network in MODELS:
            own = original_run(experiment, network)
            of_it = case(own.as_run, network)
            theirs = compared([own.epochs])
            curves = [run.epochs.table for run in sheet.evidence.runs(of_it, 3).values()]
            text, correlation, agree = compared(curves) if curves else ("", "", False)
            if not curves:
                sheet.lacks(of_it, 3)
            sheet.rows.append(
                Row(
                    "largest distance from the accuracy, all epochs",
                    f"{of_it}: {text}" if curves else "",
                    difference=correlation,
                    report=f"{theirs[0]}; {theirs[1]}",
                    n=str(len(curves)),
                    verdict=yes(agree) if curves else "undecided",
                    agrees=theirs[2],
                )
            )


def accuracies(sheet: Sheet) -> Texts:
    found = {}
    for network in MODELS:
        own = original_run(1, network)
        text, recorded = own.text, own.epochs["val/accuracy"]
        told = fraction(text.final_accuracy)
        sheet.predicted(f"validation accuracy of epoch {LAST}", baseline(network), told, last("val/accuracy"))
        told = fraction(text.best_accuracy)
        sheet.predicted("highest validation accuracy", baseline(network), told, highest("val/accuracy"))
        found[network] = percent(float(recorded[(text.best_epoch or 1) - 1]))
        found[f"{network}_best"] = f"{percent(float(recorded.max()))} in epoch {recorded.argmax() + 1}"
    return found


def test_accuracies(sheet: Sheet) -> None:
    for network in MODELS:
        of_it, told = baseline(network), fraction(original_run(1, network).text.test_accuracy)
        runs = sheet.evidence.runs(of_it, LAST).values()
        tested = {run.seed: float(run.record["test"]["last"]["accuracy"]) for run in runs if run.length == LAST}
        if len(tested) < 2:
            sheet.lacks(of_it, LAST)
            continue
        values = np.array(list(tested.values()))
        error = (2 * told * (1 - told) / 3000) ** 0.5
        sheet.rows.append(
            Row(
                "test accuracy of the last weights",
                f"{of_it}: {spread(values, percent)}, {percent(values.min())} to {percent(values.max())}",
                f"text: {percent(told)}",
                f"two samples of 3,000 images differ by about {points(error)}",
                n=str(len(values)),
            )
        )
    sheet.verdict = "cannot be tested"


def b_less_a(
    sheet: Sheet, quantity: str, measure: Callable[[Sequence[Columns]], np.ndarray], *arguments: Any, **named: Any
) -> None:
    """A row for Network B less Network A, both without dropout."""
    sheet.contrast(f"{quantity}, B − A", {baseline("B"): 1, baseline("A"): -1}, measure, *arguments, **named)


def b_trains_worse(sheet: Sheet) -> Texts:
    late = each(lambda run: run["train/loss"][EARLY:].mean())
    b_less_a(sheet, f"mean training loss of epochs {EARLY + 1} to {LAST}", late, positive)
    b_less_a(sheet, f"mean training loss of all {LAST} epochs", each(lambda run: run["train/loss"].mean()))
    b_less_a(sheet, f"training loss, last {TAIL} epochs", tail("train/loss"))
    theirs = {network: original_run(1, network).epochs["train/loss"] for network in MODELS}
    curves = {network: sheet.evidence.curves(baseline(network), LAST) for network in MODELS}
    both = sorted(curves["A"].keys() & curves["B"].keys())
    counts = [int(np.sum(curves["B"][seed]["train/loss"] > curves["A"][seed]["train/loss"])) for seed in both]
    ours = f"; here, by seed, in {', '.join(map(str, counts))}" if counts else ""
    return {"higher": str(np.sum(theirs["B"] > theirs["A"])), "ours": ours}


def training_accuracy(sheet: Sheet) -> None:
    told, of_it = fraction(original_run(1, "B").text.final_accuracy), baseline("B")
    right = each(lambda run: 1 - run["train/error"][-1])
    interval = sheet.predicted(f"training accuracy of epoch {LAST}", of_it, told, right)
    recorded = float(right([original_run(1, "B").epochs])[0])
    sheet.rows.append(
        Row(
            f"training accuracy of epoch {LAST}",
            f"text: {percent(told)}",
            report=percent(recorded),
            verdict=yes(abs(recorded - told) <= POINTS),
        )
    )
    if interval:
        sheet.contrast(f"validation accuracy of epoch {LAST}", {of_it: 1}, last("val/accuracy"), form=percent)


def b_more_accurate(sheet: Sheet) -> Texts:
    b_less_a(sheet, f"validation accuracy, last {TAIL} epochs", tail("val/accuracy"), positive, percent)
    b_less_a(sheet, "highest validation accuracy", highest("val/accuracy"), positive, percent)
    theirs = [float(original_run(1, network).epochs["val/accuracy"][-1]) for network in MODELS]
    variances = [p * (1 - p) / 10_000 for p in theirs]
    return {"error": points(variances[0] ** 0.5), "error_of_two": points(sum(variances) ** 0.5)}


def b_overfits_more(sheet: Sheet) -> Texts:
    b_less_a(sheet, "generalisation gap", gap, positive)
    b_less_a(sheet, "rise of the validation loss from its minimum", rise, positive)
    for epochs in (40, 100, 200, 400):
        b_less_a(sheet, f"generalisation gap after {epochs} epochs", gap, epochs=epochs)
    return {"settled": sheet.settling(baseline("A"), baseline("B"))}


def first_epoch(sheet: Sheet) -> Texts:
    older = []
    for experiment in (1, 2):
        for network in MODELS:
            own = original_run(experiment, network)
            of_it, told = case(own.as_run, network), float(own.epochs["train/loss"][0])
            quantity = f"training loss of epoch 1, Experiment {experiment}"
            found = sheet.predicted(
                quantity, of_it, told, last("train/loss", 1), loss, epochs=1, whose="recorded", decides=experiment == 1
            )
            if found and experiment == 1 and np.log(told) < found.low:
                runs = [run.epochs["train/loss"] for run in sheet.evidence.runs(of_it).values()]
                reached = [int(np.argmax(losses <= told)) + 1 for losses in runs if (losses <= told).any()]
                if reached:
                    when = spanned(reached)
                    older.append(f"Network {network} gets down to the recorded {told:.3f} in epoch {when}")
    sentence = (
        f"Here {' and '.join(older)}. So the recorded networks had been trained for about that long before their "
        "epoch 1, as happens when a notebook's training cell is run a second time."
        if older
        else ""
    )
    return {"older": sentence}


def dropout_helps(sheet: Sheet, network: str, accuracy_falls: bool) -> None:
    weights = {as_run(network): 1, baseline(network): -1}
    side = negative if accuracy_falls else positive
    sheet.contrast(f"validation loss, last {TAIL} epochs", weights, tail("val/loss"), negative)
    sheet.contrast(f"validation accuracy, last {TAIL} epochs", weights, tail("val/accuracy"), side, percent)
    for experiment, of_it in ((1, baseline(network)), (2, as_run(network))):
        told = float(original_run(experiment, network).text.val_loss or 0)
        sheet.predicted(f"validation loss of epoch {LAST}", of_it, told, last("val/loss"), loss)


def dropout_a(sheet: Sheet) -> None:
    dropout_helps(sheet, "A", accuracy_falls=True)


def dropout_b(sheet: Sheet) -> None:
    dropout_helps(sheet, "B", accuracy_falls=False)


def dropout_trains_worse(sheet: Sheet) -> None:
    weights = {as_run("A"): 1, baseline("A"): -1}
    sheet.contrast(f"training loss, last {TAIL} epochs", weights, tail("train/loss"), positive)
    told = float(original_run(2, "A").text.train_loss or 0)
    sheet.predicted(f"training loss of epoch {LAST}", as_run("A"), told, last("train/loss"), loss)


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


def rate_decayed(sheet: Sheet) -> None:
    for network in MODELS:
        losses = original_run(2, network).epochs["val/loss"]
        given = learning_rates(losses.tolist())
        sheet.rows.append(
            Row(
                f"rate after {len(losses)} calls of StepLR, from 0.001",
                f"step(validation_loss): {given[-1]:g}",
                f"step(): {learning_rates([None] * len(losses))[-1]:.0e}",
                report=f"losses of Network {network}: {losses.min():.3f} to {losses.max():.3f}",
                verdict=yes(min(given) < 0.001),
            )
        )
    for network in MODELS:
        theirs = first(original_run(2, network).epochs, SHORT)["train/loss"][10:]

        def away(run: Columns, theirs: np.ndarray = theirs) -> float:
            """Root mean square of the log ratio to the recorded training loss, after epoch 10."""
            return float(np.sqrt(np.mean(np.log(run["train/loss"][10:] / theirs) ** 2)))

        weights = {case("dropout_as_intended", network): 1, as_run(network): -1}
        quantity = f"distance from the recorded training loss, epochs 11 to {SHORT}"
        sheet.contrast(quantity, weights, each(away), negative, epochs=SHORT, record=False)
    said = {row.verdict for row in sheet.rows} - {"undecided", None}
    sheet.verdict = said.pop() if len(said) == 1 else "undecided"


def text_settings(sheet: Sheet) -> Texts:
    frozen = []
    for network in MODELS:
        text, of_it = original_run(2, network).text, case("dropout_scheduler", network)
        told = fraction(text.final_accuracy)
        sheet.predicted(f"validation accuracy of epoch {LAST}", of_it, told, last("val/accuracy"))
        sheet.predicted(f"validation loss of epoch {LAST}", of_it, float(text.val_loss or 0), last("val/loss"), loss)
        accuracy = [run["val/accuracy"] for run in sheet.evidence.curves(of_it, LAST).values()]
        if accuracy:
            change = max(float(np.abs(values[40:] - values[-1]).max()) for values in accuracy)
            frozen.append(f"{points(change)} ({network})")
    sentence = f"After epoch 40 the accuracy stays within {' and '.join(frozen)} of its last value." if frozen else ""
    return {"frozen": sentence}


def more_regularization(sheet: Sheet) -> Texts:
    quantity = "rise of the validation loss from its minimum"
    sheet.contrast(f"{quantity}, {LAST} epochs", {as_run("B"): 1}, rise, positive)
    middle = sum(DROPOUTS) / len(DROPOUTS)
    scale = 10 * sum((dropout - middle) ** 2 for dropout in DROPOUTS)
    slopes = {}
    for network in MODELS:
        cases = {dropout: case("dropout_as_run", network, dropout=dropout) for dropout in DROPOUTS}
        weights = {of_it: (dropout - middle) / scale for dropout, of_it in cases.items()}
        test = negative if network == "B" else None
        slope = f"{quantity}, for each 0.1 of dropout, Network {network}, {SHORT} epochs"
        slopes[network] = sheet.contrast(slope, weights, rise, test, epochs=SHORT)
        if slopes[network]:
            cost = f"validation accuracy, for each 0.1 of dropout, Network {network}, {SHORT} epochs"
            sheet.contrast(cost, weights, tail("val/accuracy"), form=percent, epochs=SHORT)
    remedy = ""
    for network in MODELS:
        weights = {case("dropout_as_intended", network): 1, as_run(network): -1}
        found = sheet.contrast(f"{quantity}, {SHORT} epochs", weights, rise, epochs=SHORT, record=False)
        if found and found.high < 0 and network == "B":
            remedy = (
                f"It is not the only remedy: with dropout as it was, a rate that falls lowers the rise of Network B by "
                f"{loss(-found.mean)} (p = {p_text(found.p)})."
            )
    return {"remedy": remedy}
