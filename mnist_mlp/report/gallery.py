"""Which figures the results page has, what stands under each, and which of the original report's cannot be drawn."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from io import BytesIO
from itertools import islice
from operator import itemgetter
from typing import Any, Literal, NamedTuple

from matplotlib.figure import Figure

from mnist_mlp.report import figures
from mnist_mlp.report.evidence import MODELS, Case, Evidence
from mnist_mlp.report.figures import Curve, Stated
from mnist_mlp.report.markdown import named
from mnist_mlp.report.original import OriginalRun, original_runs
from mnist_mlp.run.groups import Variant, damage
from mnist_mlp.run.metrics import METRIC
from mnist_mlp.run.records import Run
from mnist_mlp.settings import compose_config

NETWORKS, THEIRS, ALL, SEEDS = "The networks", "The report's figures", "All runs", "Over seeds"
GAP, RATE = "Generalisation gap", "Learning rate"
MOST_CURVES = 8  # on a chart, and as many colours
MOST_SEEDS = 100  # in a band
MOST_NAMED = 5  # runs that a sentence names
RATE_EPOCHS = 60  # in which a rate is divided by ten six times


class Picture(NamedTuple):
    """A figure: the file's name without its suffix, what stands under it, what it shows in words, and how it is made,
    as PNG and as SVG."""

    name: str
    caption: str
    alt: str
    render: Callable[[], tuple[bytes, bytes]]


class Gallery(NamedTuple):
    """The figures by heading, in the order of the page, and a sentence for each that cannot be drawn or lacks a run."""

    pictures: dict[str, list[Picture]]
    missing: list[str]


def gallery(variants: Sequence[Variant], evidence: Evidence | None) -> Gallery:
    """The figures of these runs.

    Args:
        variants: all of them.
        evidence: those that are compared with the original report; None where there are none.
    """
    pictures: dict[str, list[Picture]] = {}
    missing: list[str] = []
    if evidence is not None:
        pictures[NETWORKS] = [
            _architecture(8 + number, model, f"Network {network}")
            for number, (network, model) in enumerate(MODELS.items())
        ]
        pictures[THEIRS] = _theirs(evidence, missing)
    chosen = _chosen(variants)
    curves = _curves(chosen)
    note = f" The {MOST_CURVES} with the highest validation accuracy of {len(variants)}."
    note = note if len(curves) == MOST_CURVES < len(variants) else ""
    longest = _together(curves, "all_runs", f"The longest run of each.{note}", "log", missing)
    seeds = _over_seeds(chosen, curves, missing)
    gaps = [found.pop(figures.GAP) for found in (longest, seeds) if figures.GAP in found]
    pictures |= {ALL: [*longest.values()], SEEDS: [*seeds.values()], GAP: gaps, RATE: _learning_rate(curves, missing)}
    if not curves:
        missing.append("Every curve: no run has an epoch that can be read.")
    return Gallery({heading: found for heading, found in pictures.items() if found}, missing)


def _theirs(evidence: Evidence, missing: list[str]) -> list[Picture]:
    """The figures of the original report's runs, of our longest runs that repeat them or are what its text says."""
    found = []
    for own in original_runs():
        for experiment in dict.fromkeys((own.as_run, own.as_told)):
            case = Case(experiment, own.network)
            longest = evidence.longest(case)
            if longest is None:
                missing.append(
                    f"Figures {own.figure} and {own.figure + 1}: there is no completed run of `{experiment}` with "
                    f"`{own.model}` that leaves its settings as they are."
                )
                continue
            kinds = ((figures.LOSSES, _losses), (figures.CLASSIFICATION, _classification))
            for number, (columns, picture) in enumerate(kinds, own.figure):
                _note_left_out([longest], columns, f"Figure {number} of `{experiment}`", missing)
                if run := evidence.having(columns).longest(case):
                    found.append(picture(run, own, number))
    return found


def _note_left_out(runs: Sequence[Run], columns: Collection[str], figure: str, missing: list[str]) -> None:
    """Says which of these runs a figure leaves out for want of a column."""
    left_out = [run for run in runs if not run.has(columns)]
    if left_out:
        lacking = {column for run in left_out for column in columns if column not in run.epochs}
        names = ", ".join(named(run.name) for run in left_out[:MOST_NAMED])
        names += f", and {len(left_out) - MOST_NAMED} more" if len(left_out) > MOST_NAMED else ""
        missing.append(f"{figure} leaves out {names}: no column {', '.join(sorted(lacking))} in metrics.csv.")


def _chosen(variants: Sequence[Variant]) -> list[tuple[Variant, Run]]:
    """At most as many as a chart takes, each with its longest run: those of the highest validation accuracy, in their
    own order. Of the others, of which there may be thousands, no curve is read."""

    def accuracy(variant: Variant) -> float:
        return max(float((run.record.get("best") or {}).get("val/accuracy", 0)) for run in variant.runs)

    best = sorted(range(len(variants)), key=lambda index: -accuracy(variants[index]))
    found = islice(((index, run) for index in best if (run := variants[index].longest())), MOST_CURVES)
    return [(variants[index], run) for index, run in sorted(found, key=itemgetter(0))]


def _curves(chosen: Sequence[tuple[Variant, Run]]) -> list[Curve]:
    """A colour for each experiment with its settings, dashes for each model."""
    models = list(dict.fromkeys(variant.model for variant, _ in chosen))
    kinds = list(dict.fromkeys((variant.experiment, *variant.settings.items()) for variant, _ in chosen))
    return [
        Curve(
            variant.label,
            figures.COLORS[kinds.index((variant.experiment, *variant.settings.items()))],
            figures.DASHES[models.index(variant.model) % len(figures.DASHES)],
            [run],
        )
        for variant, run in chosen
    ]


def _architecture(number: int, model: str, title: str) -> Picture:
    def render() -> tuple[bytes, bytes]:
        # Here, because a page without the original report's experiments does without torch.
        from hydra.utils import instantiate

        from mnist_mlp.drawing import architecture

        backbone = instantiate(config)
        raster = BytesIO()
        architecture.png(backbone, title).quantize(64).save(raster, format="png", optimize=True)
        return raster.getvalue(), architecture.svg(backbone, title).encode()

    config = compose_config([f"model={model}"]).model
    widths = "-".join(map(str, (784, *config.hidden, 10)))
    return Picture(
        f"figure_{number:02}_{model}",
        f"Figure {number}. {title}'s architecture.",
        f"Diagram of {title}: fully connected layers of widths {widths}, with a ReLU after each hidden one.",
        render,
    )


def _of_the_report(run: Run, own: OriginalRun) -> tuple[str, str, list[Stated]]:
    """What the two figures of one of the original report's runs share.

    Returns:
        A clause for the caption; a sentence for it; what the report's text states, where our run is by the text.
    """
    as_run = run.experiment == own.as_run
    marks = "outlined markers: the report's own records" if as_run else "stars: what the report's text states"
    note = f"One run of `{run.experiment}`, {run.length} epochs, seed {run.seed}; {marks}."
    told = (
        ("val/loss", own.text.val_loss, 1),
        ("train/loss", own.text.train_loss, 1),
        ("val/accuracy", own.text.final_accuracy, 0.01),
    )
    stars = [
        Stated(column, max(own.points["epoch"]), float(value) * unit)
        for column, value, unit in told
        if value is not None and not as_run
    ]
    return "" if as_run else " by the settings of the report's text", note, stars


def _losses(run: Run, own: OriginalRun, number: int) -> Picture:
    by_text, note, stars = _of_the_report(run, own)
    losses = run.epochs["val/loss"]
    last = {column: run.epochs[column][-1] for column in figures.LOSSES}
    least = int(losses.argmin())
    return Picture(
        f"figure_{number}_{run.experiment}_{own.model}_loss",
        f"Figure {number}{by_text}. {_whose(own)}: training and validation loss and error. {note} What is below "
        f"{figures.FLOOR:g} lies on the lower edge.",
        f"Line chart over {run.length} epochs. The validation loss is lowest in epoch {least + 1} at "
        f"{losses[least]:.4f} and ends at {last['val/loss']:.4f}; the training loss ends at {last['train/loss']:.4f}, "
        f"the validation error at {last['val/error']:.4f}, the training error at {last['train/error']:.4f}.",
        _chart(figures.loss_and_error, run, _title(own, by_text), None if by_text else own.points, stars),
    )


def _classification(run: Run, own: OriginalRun, number: int) -> Picture:
    by_text, note, stars = _of_the_report(run, own)
    accuracy = run.epochs["val/accuracy"]
    last = {column: METRIC[column].text(run.epochs[column][-1]) for column in figures.CLASSIFICATION}
    best = int(accuracy.argmax())
    return Picture(
        f"figure_{number}_{run.experiment}_{own.model}_metrics",
        f"Figure {number}{by_text}. {_whose(own)}: validation accuracy, precision, recall and F1, and below, how far "
        f"the last three are from accuracy. {note}",
        f"Line chart over {run.length} epochs. Accuracy, precision, recall and F1 lie on one another. Accuracy is "
        f"highest in epoch {best + 1} at {100 * accuracy[best]:.2f} % and ends at {last['val/accuracy']} %, with "
        f"precision at {last['val/precision']} %, recall at {last['val/recall']} % and F1 at {last['val/f1']} %.",
        _chart(figures.classification, run, _title(own, by_text), None if by_text else own.points, stars),
    )


def _whose(own: OriginalRun) -> str:
    return f"Experiment {own.experiment}, Network {own.network}"


def _title(own: OriginalRun, by_text: str) -> str:
    return f"{_whose(own)}{', by the text' if by_text else ''}"


def _over_seeds(
    chosen: Sequence[tuple[Variant, Run]], curves: Sequence[Curve], missing: list[str]
) -> dict[str, Picture]:
    """A chart for each metric, of means and bands."""
    seeds = [
        curve._replace(runs=runs)
        for curve, (variant, _) in zip(curves, chosen, strict=True)
        if len(runs := [run for run in variant.over_seeds()[:MOST_SEEDS] if not damage(run)]) > 1
    ]
    if not seeds:
        if curves:
            missing.append("Means and bands over seeds: no runs differ in nothing but the seed.")
        return {}
    counts = sorted({len(curve.runs) for curve in seeds})
    n = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    note = f"Mean over the seeds (n = {n}), and a band of one standard deviation to each side."
    return _together(seeds, "over_seeds", note, "linear", missing)


def _together(
    curves: Sequence[Curve], prefix: str, note: str, scale: Literal["log", "linear"], missing: list[str]
) -> dict[str, Picture]:
    """A chart for each metric, of the runs that have it."""
    found = {}
    for column, title in figures.charted().items():
        columns = figures.columns_of(column)
        drawn = _having(curves, columns)
        if not drawn:
            continue
        all_runs = [run for curve in curves for run in curve.runs]
        _note_left_out(all_runs, columns, f"{title}, {prefix.replace('_', ' ')},", missing)
        ends = []
        for curve in drawn:
            epochs, mean, sd = figures.mean_and_sd(curve.runs, column)
            unit = 100 if figures.in_percent(column) else 1
            spread = f" ± {unit * sd[-1]:.4g}" if len(curve.runs) > 1 else ""
            ends.append(f"{curve.label} ends at {unit * mean[-1]:.4g}{spread} in epoch {epochs[-1]:.0f}")
        found[column] = Picture(
            f"{prefix}_{column.replace('/', '_')}",
            f"{title}. {note}",
            f"Line chart of {title[0].lower()}{title[1:]} per epoch: {'; '.join(ends)}.",
            _chart(figures.together, drawn, column, title, scale),
        )
    return found


def _having(curves: Sequence[Curve], columns: Collection[str]) -> list[Curve]:
    """The curves of the runs that have these columns; of several runs there must be two left."""
    found = []
    for curve in curves:
        runs = [run for run in curve.runs if run.has(columns)]
        if len(runs) >= min(2, len(curve.runs)):
            found.append(curve._replace(runs=runs))
    return found


def _learning_rate(curves: Sequence[Curve], missing: list[str]) -> list[Picture]:
    """One curve for each schedule: runs that had the same rates, as far as both go, share it."""
    _note_left_out([curve.runs[0] for curve in curves], ["lr"], RATE, missing)
    shared: list[tuple[Curve, list[str]]] = []
    for curve in _having(curves, ["lr"]):
        rates = curve.runs[0].epochs["lr"]
        for other, labels in shared:
            both = min(len(rates), len(other.runs[0].epochs["lr"]))
            if (other.runs[0].epochs["lr"][:both] == rates[:both]).all():
                labels.append(curve.label)
                break
        else:
            shared.append((curve, [curve.label]))
    if not shared:
        return []
    drawn = [curve._replace(label="; ".join(labels)) for curve, labels in shared]
    shown = {curve.label: curve.runs[0].epochs["lr"][:RATE_EPOCHS] for curve in drawn}
    alt = "; ".join(
        f"{label}: from {rates[0]:g} to {rates[-1]:g} in epoch {len(rates)}" for label, rates in shown.items()
    )
    caption = (
        f"The learning rate that the optimizer had, in the first {RATE_EPOCHS} epochs. The report's scheduler was to "
        "divide it by ten every 10 epochs, as it does in `dropout_scheduler` (from 0.01, as in the text) and in "
        "`dropout_as_intended` (from 0.001, as in the code); in its own runs, which `dropout_as_run` repeats, it never "
        "did."
    )
    chart = _chart(figures.learning_rate, drawn, "Learning rate", RATE_EPOCHS)
    return [Picture("learning_rate", caption, f"Step chart. {alt}.", chart)]


def _chart(build: Callable[..., Figure], *arguments: Any) -> Callable[[], tuple[bytes, bytes]]:
    return partial(figures.rendered, partial(build, *arguments))
