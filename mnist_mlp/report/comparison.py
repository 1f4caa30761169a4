"""Each of the original report's runs beside ours: in numbers, and the recorded curve point by point."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mnist_mlp.report.evidence import Case, Evidence
from mnist_mlp.report.markdown import markdown_table
from mnist_mlp.report.original import Headline, OriginalRun, original_runs
from mnist_mlp.run.groups import EXPERIMENTS
from mnist_mlp.run.metrics import CLASSIFICATION, METRIC, Metric
from mnist_mlp.run.records import Run

COMPARED = (1, 10, 50, 100, 500)  # of the recorded epochs
POINTS = ("val/accuracy", "val/loss")  # the columns that are compared there


class Quantity(NamedTuple):
    """A number that the tables of the page have of each run.

    Args:
        heading: of its column or row.
        place: in run.json, key by key.
        metric: what kind of number it is.
        printed: the attribute of `Headline` that is the same number of an original run.
        in_readme: whether the README's table has it too.
    """

    heading: str
    place: tuple[str, ...]
    metric: Metric
    printed: str | None = None
    in_readme: bool = False

    def read(self, run: Run) -> float | None:
        """A run's number, in percent where it is a fraction; None where its run.json does not have it."""
        value: Any = run.record
        for key in self.place:
            value = value.get(key) if isinstance(value, dict) else None
        return None if value is None else self.metric.scaled(float(value))

    def mean(self, runs: Sequence[Run]) -> str:
        """The number of one run; of several the mean ± standard deviation (n − 1), and how many have it if not all."""
        values = [value for run in runs if (value := self.read(run)) is not None]
        texts = [f"{statistics.fmean(values):.{self.metric.digits}f}"] if values else []
        texts += [f"± {statistics.stdev(values):.{self.metric.digits}f}"] if len(values) > 1 else []
        texts += [f"(n = {len(values)})"] if 0 < len(values) < len(runs) else []
        return " ".join(texts)


def _final(column: str, printed: str | None = None) -> Quantity:
    metric = METRIC[column]
    name = f"{metric.short}, %" if metric.form == "fraction" else metric.title
    return Quantity(f"final {name}", ("final", column), metric, printed, printed is not None)


ACCURACY = METRIC["val/accuracy"]
QUANTITIES = (
    _final("val/accuracy", "final_accuracy"),
    Quantity("best accuracy, %", ("best", "val/accuracy"), ACCURACY, "best_accuracy", True),
    Quantity("in epoch", ("best", "epoch"), METRIC["epoch"], "best_epoch"),
    *(_final(f"val/{name}") for name in CLASSIFICATION if name != "accuracy"),
    _final("val/loss", "val_loss"),
    _final("train/loss", "train_loss"),
    Quantity("test accuracy, last weights, %", ("test", "last", "accuracy"), ACCURACY, "test_accuracy", True),
    Quantity("training time, s", ("wall_seconds",), Metric("wall_seconds", "training time", "count")),
)
HEADINGS = tuple(quantity.heading for quantity in QUANTITIES)


class Source(NamedTuple):
    """What one source says of one of the original runs: a text for each of `HEADINGS`, where it says anything."""

    heading: str
    cells: Mapping[str, str]


def comparisons(evidence: Evidence) -> list[str]:
    """For each of the original runs what its text, its records and our runs say; its recorded curve beside ours."""
    blocks = [
        "## The report's runs, and ours",
        "Metrics are of the validation set, the official 10,000 test images, unless they say `test`: the 3,000 images "
        "held out of the training set. Ours are mean ± standard deviation over n seeds; a single run, n = 1, has none.",
    ]
    for own in original_runs():
        found = sources(own, evidence)
        rows = [(heading, *(source.cells.get(heading, "") for source in found)) for heading in HEADINGS]
        blocks += [
            f"### Experiment {own.experiment}, Network {own.network}",
            markdown_table(("", *(source.heading for source in found)), rows),
        ]
        blocks += _points(own, evidence)
    return blocks


def sources(own: OriginalRun, evidence: Evidence) -> list[Source]:
    """What is said of one of the original runs: by its text, by its records, and by each of our experiments that stands
    for it, with its longest run and with the mean over seeds."""
    others = {column: METRIC[column] for name in CLASSIFICATION if (column := f"val/{name}") != "val/accuracy"}
    # The text gives one number for all four metrics.
    by_text = {f"final {metric.short}, %": _digits(own.text.final_accuracy) for metric in others.values()}
    by_records = {f"final {metric.short}, %": metric.text(own.points[column][-1]) for column, metric in others.items()}
    found = [
        Source("report's text", _headline(own.text) | by_text),
        Source("report's records", _headline(own.record) | by_records | {"training time, s": str(own.seconds)}),
    ]
    for experiment in EXPERIMENTS[1:] if own.experiment == 2 else EXPERIMENTS[:1]:
        case = Case(experiment, own.network)
        longest, seeds = evidence.longest(case), evidence.seeds(case)
        several = seeds[0] if seeds else []
        alone = [longest] if longest and not (several and several[0].length == longest.length) else []
        for runs in filter(None, (alone, several)):
            found.append(Source(f"`{experiment}`, {runs[0].length} epochs, n = {len(runs)}", measured(runs)))
    return found


def measured(runs: Sequence[Run]) -> dict[str, str]:
    """The quantities of completed runs that differ in their seeds."""
    return {quantity.heading: quantity.mean(runs) for quantity in QUANTITIES}


def _headline(headline: Headline) -> dict[str, str]:
    return {
        quantity.heading: _digits(getattr(headline, quantity.printed)) for quantity in QUANTITIES if quantity.printed
    }


def _digits(value: object) -> str:
    """As it was printed."""
    return "" if value is None else str(value)


def _points(own: OriginalRun, evidence: Evidence) -> list[str]:
    """The recorded curve beside ours, where both have a point."""
    run = evidence.having(POINTS).longest(Case(own.as_run, own.network))
    if run is None:
        return []
    rows = []
    for index, epoch in enumerate(map(int, own.points["epoch"])):
        if epoch in COMPARED and epoch <= run.length:
            accuracy, loss = (own.points[column][index] for column in POINTS)
            our_accuracy, our_loss = (run.epochs[column][epoch - 1] for column in POINTS)
            difference = f"{100 * (our_accuracy - accuracy):+.2f}".replace("-", "−")
            accuracies = f"{100 * accuracy:.2f}", f"{100 * our_accuracy:.2f}"
            rows.append((str(epoch), *accuracies, difference, f"{loss:.4f}", f"{our_loss:.4f}"))
    whose = f"`{run.experiment}`, seed {run.seed}"
    heading = ("epoch", "accuracy, recorded, %", whose, "difference, points", "validation loss, recorded", whose)
    return [markdown_table(heading, rows)] if rows else []
