"""Which figures the results page has, what stands under each, and which of the original report's cannot be drawn."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from mnist_mlp.report import figures
from mnist_mlp.report.evidence import LAST, MODELS, Case, Columns, Evidence, case, first, smooth, window
from mnist_mlp.report.figures import Curve, Stated
from mnist_mlp.report.markdown import named, some, spanned
from mnist_mlp.report.original import OriginalRun, original_runs
from mnist_mlp.run.groups import EXPERIMENTS, Variant, configured, damage
from mnist_mlp.run.metrics import CLASSIFICATION, METRIC
from mnist_mlp.run.records import Run

MAIN = "val/loss"  # of the first figure
FOLDED = ("train/error", "val/precision", "val/recall", "val/f1")  # they repeat the loss and the accuracy
MOST_CURVES = 8  # in a panel, and as many colours
MOST_PANELS = 2
MOST_SEEDS = 100  # in a band
MOST_NAMED = 5  # runs that a sentence names
RATE_EPOCHS = 60  # in which a rate is divided by ten six times


class Picture(NamedTuple):
    """A figure: what claims and the page call it, the file's name without its suffix, what stands under it, what it
    shows in words, whether it is folded away since others show nearly the same, and how it is made, as PNG and SVG."""

    key: str
    name: str
    caption: str
    alt: str
    folded: bool
    render: Callable[[], tuple[bytes, bytes]]


class Gallery(NamedTuple):
    """The figures in the order of the page, and a sentence for each that cannot be drawn or lacks a run."""

    pictures: list[Picture]
    missing: list[str]


class Line(NamedTuple):
    """The runs that one line of a chart shows, and in which panel."""

    label: str
    network: str
    runs: list[Run]


def gallery(variants: Sequence[Variant], evidence: Evidence | None) -> Gallery:
    """The figures of these runs.

    Args:
        variants: all of them.
        evidence: those that speak of the original report's claims, where these are judged: then they alone are drawn.
    """
    missing: list[str] = []
    lines = _of_the_experiments(evidence) if evidence else _best(variants)
    pictures = _by_metric(lines, 0 if evidence else len(variants), missing)
    if evidence:
        pictures[1:1] = [_networks(), *_of_the_report(evidence, missing)]
    pictures += _learning_rate(lines, missing)
    if not lines:
        missing.append("Every curve: no run has an epoch that can be read.")
    return Gallery(sorted(pictures, key=lambda picture: picture.folded), missing)


def network_name(model: object) -> str:
    """A network's name in titles: `Network A` for network_a; another's as it is."""
    return next((f"Network {network}" for network, name in MODELS.items() if name == model), str(model))


def _of_the_experiments(evidence: Evidence) -> list[Line]:
    found = []
    for network in MODELS:
        for experiment in EXPERIMENTS:
            runs = evidence.runs(case(experiment, network))
            longest = [run for run in runs.values() if run.length == max(run.length for run in runs.values())]
            found += [Line(experiment, f"Network {network}", longest)] if longest else []
    return found


def _best(variants: Sequence[Variant]) -> list[Line]:
    """At most as many as a chart takes, each with its runs over seeds, or with its longest: those of the highest
    validation accuracy, in their own order. Of the others, of which there may be thousands, no curve is read."""

    def accuracy(variant: Variant) -> float:
        return max(float((run.record.get("best") or {}).get("val/accuracy", 0)) for run in variant.runs)

    def drawn(variant: Variant) -> list[Run]:
        seeds = [run for run in variant.over_seeds()[:MOST_SEEDS] if not damage(run)]
        longest = variant.longest()
        return seeds if len(seeds) > 1 else [longest] if longest else []

    best = sorted(range(len(variants)), key=lambda index: -accuracy(variants[index]))
    found = islice(((index, runs) for index in best if (runs := drawn(variants[index]))), MOST_CURVES)
    lines = []
    for index, runs in sorted(found, key=itemgetter(0)):
        variant = variants[index]
        lines.append(Line(", ".join((variant.experiment, *variant.leaves)), network_name(variant.model), runs))
    if len({line.network for line in lines}) > MOST_PANELS:
        return [Line(f"{line.label}, {line.network}", "All networks", line.runs) for line in lines]
    return lines


def _by_metric(lines: Sequence[Line], of: int, missing: list[str]) -> list[Picture]:
    """A chart for each metric, with a panel for each network, of the runs that have it; the main one first."""
    if not lines:
        return []
    labels = list(dict.fromkeys(line.label for line in lines))
    length = max(run.length for line in lines for run in line.runs)
    note = _how_drawn(lines, length, of)
    found = []
    for column, title in figures.charted().items():
        columns = figures.columns_of(column)
        _note_left_out([run for line in lines for run in line.runs], columns, title, missing)
        panels: dict[str, list[Curve]] = {}
        ends = []
        for line in lines:
            having = [run.epochs.table for run in line.runs if run.has(columns)]
            if having:
                color = figures.COLORS[labels.index(line.label) % len(figures.COLORS)]
                panels.setdefault(line.network, []).append(Curve(line.label, color, having))
                ends.append(f"{line.label}, {line.network}, {_end(having, column)}")
        if panels:
            alt = f"{title} by epoch. Lines end at: {'; '.join(ends)}."
            chart = _chart(figures.by_network, panels, column, title, "log" if length > 50 else "linear")
            name = f"curves_{column.replace('/', '_')}"
            found.append(Picture(column, name, f"{title}. {note}", alt, column in FOLDED, chart))
    return sorted(found, key=lambda picture: picture.key != MAIN)


def _end(tables: Sequence[Columns], column: str) -> str:
    """Where a line ends."""
    mean = smooth(figures.ranges(tables, column)[0])
    unit = 100 if figures.in_percent(column) else 1
    return f"{unit * mean[-1]:.3g} after {len(mean)} epochs"


def _how_drawn(lines: Sequence[Line], length: int, of: int) -> str:
    """What a line and a band of a chart are, and that these lines are not all."""
    counts = [len(line.runs) for line in lines]
    several, over = max(counts) > 1, window(length)
    note = (
        f"n = {spanned(counts)}; a band is the range of the seeds, a line " if several else "One run each; a line is "
    )
    note += f"the running median over {over} epochs" if over > 1 else "the mean" if several else "a run"
    return note + (f". The {len(lines)} with the highest validation accuracy of {of}." if of > len(lines) else ".")


def _note_left_out(runs: Sequence[Run], columns: Collection[str], figure: str, missing: list[str]) -> None:
    """Says which of these runs a figure leaves out for want of a column."""
    left_out = [run for run in runs if not run.has(columns)]
    if left_out:
        lacking = {column for run in left_out for column in columns if column not in run.epochs}
        names = some([named(run.name) for run in left_out], MOST_NAMED)
        missing.append(f"{figure} leaves out {names}: no column {', '.join(sorted(lacking))} in metrics.csv.")


def _networks() -> Picture:
    """Figures 8 and 9 of the original report in one."""
    widths = {
        f"Network {network}": (784, *(configured("baseline", model) or {})["model.hidden"], 10)
        for network, model in MODELS.items()
    }
    words = " and ".join(f"{name} {'-'.join(map(str, layers))}" for name, layers in widths.items())
    return Picture(
        "8",
        "figure_08_networks",
        "Figures 8 and 9. The two networks: a bar is as high as its layer is wide, and below stand the parameters.",
        f"Layers of the fully connected networks, widths {words}, with a ReLU after each hidden layer.",
        False,
        _chart(figures.networks, widths, "Two networks of equal depth, B wider than A"),
    )


def _of_the_report(evidence: Evidence, missing: list[str]) -> list[Picture]:
    """The figures of the original report's runs, beside ours that repeat them or are what its text says."""
    found = []
    for own in original_runs():
        for experiment in dict.fromkeys((own.as_run, own.as_told)):
            of_it = case(experiment, own.network)
            kinds = (
                (figures.losses_and_errors, ("val/loss", "train/loss", "val/error", "train/error")),
                (figures.accuracy_and_others, tuple(f"val/{name}" for name in CLASSIFICATION)),
            )
            for number, (build, columns) in enumerate(kinds, own.figure):
                having = evidence.having(columns)
                runs = having.runs(of_it)
                _note_left_out(having.left_out(), columns, f"Figure {number} of `{experiment}`", missing)
                if not runs:
                    missing.append(
                        f"Figure {number} of `{experiment}`: no completed run of `{own.model}` has its settings."
                    )
                    continue
                longest = min(LAST, max(run.length for run in runs.values()))
                curves = [first(run.epochs.table, longest) for run in runs.values() if run.length >= longest]
                found.append(_picture(own, of_it, experiment, number, build, curves))
    return found


def _picture(
    own: OriginalRun, of_it: Case, experiment: str, number: int, build: Callable[..., Figure], curves: list[Any]
) -> Picture:
    """One of the original report's figures, of our runs of a case."""
    by_text = experiment != own.as_run
    told = (
        ("val/loss", own.text.val_loss, 1),
        ("train/loss", own.text.train_loss, 1),
        ("val/accuracy", own.text.final_accuracy, 0.01),
    )
    stars = [Stated(column, LAST, float(value) * unit) for column, value, unit in told if value is not None and by_text]
    what = "loss and error" if build is figures.losses_and_errors else "accuracy, and the other metrics less it"
    title = f"Experiment {own.experiment}{' by its text' if by_text else ''}, Network {own.network}: {what}"
    length = len(curves[0]["epoch"])
    last = {
        column: figures.ranges(curves, column)[0][-1] for column in ("val/loss", "val/accuracy") if column in curves[0]
    }
    ends = " and ".join(f"{METRIC[column].title} {METRIC[column].scaled(value):.3g}" for column, value in last.items())
    n = f"n = {len(curves)}, the band is their range" if len(curves) > 1 else "one run"
    return Picture(
        f"{number}{' by text' if by_text else ''}",
        f"figure_{number}{'_by_text' if by_text else ''}_network_{own.network.lower()}",
        f"Figure {number}{' by the text' if by_text else ''}. `{of_it.treatment}`, {length} epochs, {n}; "
        + ("stars: what the report's text states." if by_text else "dotted: the report's own run."),
        f"{title}, by epoch. After {length} epochs the mean here: {ends}.",
        by_text,
        _chart(build, Curve("", figures.BLUE, curves), title, None if by_text else own.epochs, stars),
    )


def _learning_rate(lines: Sequence[Line], missing: list[str]) -> list[Picture]:
    """One curve for each schedule: runs that had the same rates, as far as both go, share it. Where all have the same
    constant rate there is nothing to show."""
    _note_left_out([line.runs[0] for line in lines], ["lr"], "Learning rate", missing)
    shared: list[tuple[Any, list[str]]] = []
    for line in lines:
        if not line.runs[0].has(["lr"]):
            continue
        rates = line.runs[0].epochs["lr"][:RATE_EPOCHS]
        for other, labels in shared:
            both = min(len(rates), len(other))
            if (other[:both] == rates[:both]).all():
                labels.append(line.label)
                break
        else:
            shared.append((rates, [line.label]))
    if not shared or (len(shared) == 1 and np.ptp(shared[0][0]) == 0):
        return []
    curves = [
        Curve("; ".join(dict.fromkeys(labels)), figures.COLORS[place], [{"lr": rates}])
        for place, (rates, labels) in enumerate(shared)
    ]
    ends = "; ".join(
        f"{curve.label}: from {rates[0]:g} to {rates[-1]:g}" for curve, (rates, _) in zip(curves, shared, strict=True)
    )
    caption = f"The learning rate that the optimizer had, in the first {RATE_EPOCHS} epochs."
    chart = _chart(figures.learning_rate, curves, "Learning rate", RATE_EPOCHS)
    return [Picture("lr", "learning_rate", caption, f"Learning rate by epoch. {ends}.", False, chart)]


def _chart(build: Callable[..., Figure], *arguments: Any) -> Callable[[], tuple[bytes, bytes]]:
    return partial(figures.rendered, partial(build, *arguments))
