"""Which figures a report of runs has, what stands under each, and which of the report's own cannot be drawn."""

from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mnist_mlp.report.evidence import MODELS, Case, Evidence
from mnist_mlp.report.original import Recorded, recorded
from mnist_mlp.run.groups import Variant, damage
from mnist_mlp.run.records import Run
from mnist_mlp.settings import compose_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mnist_mlp.report.figures import Line

NETWORKS, THEIRS, ALL, SEEDS = "The networks", "The report's figures", "All runs", "Over seeds"
GAP, RATE = "Generalisation gap", "Learning rate"
MOST_LINES = 8  # on a chart, and as many colours
MOST_SEEDS = 100  # in a band
RATE_EPOCHS = 60  # in which a rate is divided by ten six times


class Picture(NamedTuple):
    """A figure: the file's name without its suffix, what stands under it, what it shows in words, and how it is made,
    as PNG and as SVG."""

    name: str
    caption: str
    alt: str
    draw: Callable[[], tuple[bytes, bytes]]


class Gallery(NamedTuple):
    """The figures by heading, in the order of the report, and a sentence for each that cannot be drawn."""

    pictures: dict[str, list[Picture]]
    missing: list[str]


def gallery(variants: Sequence[Variant], evidence: Evidence | None) -> Gallery:
    """The figures of these runs.

    Args:
        variants: all of them.
        evidence: those that stand for the report's; None where no run does, and its figures are not wanted.
    """
    pictures: dict[str, list[Picture]] = {}
    missing: list[str] = []
    if evidence is not None:
        pictures[NETWORKS] = [
            _architecture(8 + number, model, f"Network {network}")
            for number, (network, model) in enumerate(MODELS.items())
        ]
        found = pictures[THEIRS] = []
        for own in recorded():
            for experiment in dict.fromkeys((own.as_run, own.as_told)):
                run = evidence.longest(Case(experiment, own.network))
                if run is not None:
                    found += _of_the_report(run, own)
                else:
                    missing.append(
                        f"Figures {own.figure} and {own.figure + 1}: there is no completed run of `{experiment}` with "
                        f"`{own.model}` that leaves its settings as they are."
                    )
    chosen = _chosen(variants)
    lines = _lines(chosen)
    note = f" The {MOST_LINES} with the highest validation accuracy of {len(variants)}."
    note = note if len(lines) == MOST_LINES < len(variants) else ""
    if lines:
        pictures[ALL] = _together(lines, "all_runs", f"The longest run of each.{note}", "log")
    seeds = [
        line._replace(runs=runs)
        for line, (variant, _) in zip(lines, chosen, strict=True)
        if len(runs := [run for run in variant.over_seeds()[:MOST_SEEDS] if not damage(run)]) > 1
    ]
    if seeds:
        counts = sorted({len(line.runs) for line in seeds})
        n = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        note = f"Mean over the seeds (n = {n}), and a band of one standard deviation to each side."
        pictures[SEEDS] = _together(seeds, "over_seeds", note, "linear")
        pictures[GAP] = [pictures[ALL].pop(), pictures[SEEDS].pop()]
    elif lines:
        pictures[GAP] = [pictures[ALL].pop()]
        missing.append("Means and bands over seeds: no runs differ in nothing but the seed.")
    if lines:
        pictures[RATE] = [_learning_rate(lines)]
    else:
        missing.append("Every curve: no run has an epoch that can be read.")
    return Gallery({heading: found for heading, found in pictures.items() if found}, missing)


def _chosen(variants: Sequence[Variant]) -> list[tuple[Variant, Run]]:
    """At most as many as a chart takes, each with its longest run: those of the highest validation accuracy, in their
    own order. Of the others, of which there may be thousands, no curve is read."""

    def accuracy(variant: Variant) -> float:
        return max(float((run.record.get("best") or {}).get("val/accuracy", 0)) for run in variant.runs)

    best = sorted(range(len(variants)), key=lambda index: -accuracy(variants[index]))
    found = islice(((index, run) for index in best if (run := variants[index].longest())), MOST_LINES)
    return [(variants[index], run) for index, run in sorted(found, key=itemgetter(0))]


def _lines(chosen: Sequence[tuple[Variant, Run]]) -> list["Line"]:
    """A colour for each experiment with its settings, dashes for each model."""
    from mnist_mlp.report.figures import COLORS, DASHES, Line

    models = list(dict.fromkeys(variant.model for variant, _ in chosen))
    kinds = list(dict.fromkeys((variant.experiment, *variant.settings.items()) for variant, _ in chosen))
    return [
        Line(
            variant.label,
            COLORS[kinds.index((variant.experiment, *variant.settings.items()))],
            DASHES[models.index(variant.model) % len(DASHES)],
            [run],
        )
        for variant, run in chosen
    ]


def _architecture(number: int, model: str, title: str) -> Picture:
    def draw() -> tuple[bytes, bytes]:
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
        draw,
    )


def _of_the_report(run: Run, own: Recorded) -> list[Picture]:
    """The two figures of one of the report's runs: losses and errors; the other metrics.

    Args:
        run: ours, as that run was made or as the text has it.
        own: the report's.
    """
    from mnist_mlp.report import figures

    whose = f"Experiment {own.experiment}, Network {own.network}"
    epochs, metrics = len(run.epochs["epoch"]), run.epochs
    as_run = run.experiment == own.as_run
    points = own.points if as_run else None
    stars = (
        []
        if as_run
        else [
            figures.Stated(column, max(own.points["epoch"]), float(value) * unit)
            for column, value, unit in (
                ("val/loss", own.text.val_loss, 1),
                ("train/loss", own.text.train_loss, 1),
                ("val/accuracy", own.text.final_accuracy, 0.01),
            )
            if value is not None
        ]
    )
    marks = "outlined markers: the report's own records" if as_run else "stars: what the report's text states"
    note = f"One run of `{run.experiment}`, {epochs} epochs, seed {run.seed}; {marks}."
    by_text = "" if as_run else " by the settings of the report's text"
    least, best = int(metrics["val/loss"].argmin()), int(metrics["val/accuracy"].argmax())
    last = {column: values[-1] for column, values in metrics.table.items()}
    title = f"{whose}{'' if as_run else ', by the text'}"
    name = f"figure_{{}}_{run.experiment}_{own.model}_{{}}"
    return [
        Picture(
            name.format(own.figure, "loss"),
            f"Figure {own.figure}{by_text}. {whose}: training and validation loss and error. {note} What is below "
            f"{figures.FLOOR:g} lies on the lower edge.",
            f"Line chart over {epochs} epochs. The validation loss is lowest in epoch {least + 1} at "
            f"{metrics['val/loss'][least]:.4f} and ends at {last['val/loss']:.4f}; the training loss ends at "
            f"{last['train/loss']:.4f}, the validation error at {last['val/error']:.4f}, the training error at "
            f"{last['train/error']:.4f}.",
            _chart(figures.loss_and_error, run, title, points, stars),
        ),
        Picture(
            name.format(own.figure + 1, "metrics"),
            f"Figure {own.figure + 1}{by_text}. {whose}: validation accuracy, precision, recall and F1, and below, how "
            f"far the last three are from accuracy. {note}",
            f"Line chart over {epochs} epochs. Accuracy, precision, recall and F1 lie on one another. Accuracy is "
            f"highest in epoch {best + 1} at {100 * metrics['val/accuracy'][best]:.2f} % and ends at "
            f"{100 * last['val/accuracy']:.2f} %, with precision at {100 * last['val/precision']:.2f} %, recall at "
            f"{100 * last['val/recall']:.2f} % and F1 at {100 * last['val/f1']:.2f} %.",
            _chart(figures.classification, run, title, points, stars),
        ),
    ]


def _together(lines: Sequence["Line"], prefix: str, note: str, scale: Literal["log", "linear"]) -> list[Picture]:
    """A chart for each metric."""
    from mnist_mlp.report import figures

    found = []
    for column, title in figures.TITLES.items():
        ends = []
        for line in lines:
            epochs, mean, sd = figures.mean_and_sd(line.runs, column)
            unit = 100 if column in figures.CLASSIFICATION else 1
            spread = f" ± {unit * sd[-1]:.4g}" if len(line.runs) > 1 else ""
            ends.append(f"{line.label} ends at {unit * mean[-1]:.4g}{spread} in epoch {epochs[-1]:.0f}")
        found.append(
            Picture(
                f"{prefix}_{column.replace('/', '_')}",
                f"{title}. {note}",
                f"Line chart of {title[0].lower()}{title[1:]} per epoch: {'; '.join(ends)}.",
                _chart(figures.together, lines, column, title, scale),
            )
        )
    return found


def _learning_rate(lines: Sequence["Line"]) -> Picture:
    """One line for each schedule: runs that had the same rates, as far as both go, share it."""
    from mnist_mlp.report import figures
    from mnist_mlp.report.figures import Line

    shared: list[tuple[Line, list[str]]] = []
    for line in lines:
        rates = line.runs[0].epochs["lr"]
        for other, labels in shared:
            both = min(len(rates), len(other.runs[0].epochs["lr"]))
            if (other.runs[0].epochs["lr"][:both] == rates[:both]).all():
                labels.append(line.label)
                break
        else:
            shared.append((line, [line.label]))
    drawn = [line._replace(label="; ".join(labels)) for line, labels in shared]
    alt = "; ".join(
        f"{line.label}: from {line.runs[0].epochs['lr'][0]:g} to {line.runs[0].epochs['lr'][:RATE_EPOCHS][-1]:g} in "
        f"epoch {len(line.runs[0].epochs['lr'][:RATE_EPOCHS])}"
        for line in drawn
    )
    return Picture(
        "learning_rate",
        f"The learning rate that the optimizer had, in the first {RATE_EPOCHS} epochs. The report's scheduler was to "
        "divide it by ten every 10 epochs, as it does in `dropout_scheduler` (from 0.01, as in the text) and in "
        "`dropout_as_intended` (from 0.001, as in the code); in its own runs, which `dropout_as_run` repeats, it never "
        "did.",
        f"Step chart. {alt}.",
        _chart(figures.learning_rate, drawn, "Learning rate", RATE_EPOCHS),
    )


def _chart(build: Callable[..., "Figure"], *arguments: Any) -> Callable[[], tuple[bytes, bytes]]:
    from mnist_mlp.report.figures import drawn

    return partial(drawn, partial(build, *arguments))
