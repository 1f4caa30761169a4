"""Each of the original report's runs beside ours, in numbers."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mnist_mlp.report.evidence import LAST, MODELS, Evidence, case
from mnist_mlp.report.markdown import markdown_table
from mnist_mlp.report.original import Headline, OriginalRun, original_run, original_runs
from mnist_mlp.run.groups import EXPERIMENTS, configured
from mnist_mlp.run.identity import LENGTH, other_experiment
from mnist_mlp.run.metrics import CLASSIFICATION, METRIC, Metric
from mnist_mlp.run.records import Run


class Quantity(NamedTuple):
    """A number that the tables of the page have of each run.

    Args:
        heading: of its column.
        place: in run.json, key by key.
        metric: what kind of number it is.
        printed: the attribute of `Headline` that is the same number of an original run.
    """

    heading: str
    place: tuple[str, ...]
    metric: Metric
    printed: str | None = None

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
    return Quantity(f"final {name}", ("final", column), metric, printed)


ACCURACY = METRIC["val/accuracy"]
FINAL_ACCURACY, FINAL_LOSS = _final("val/accuracy", "final_accuracy"), _final("val/loss", "val_loss")
BEST_ACCURACY = Quantity("best accuracy, %", ("best", "val/accuracy"), ACCURACY, "best_accuracy")
QUANTITIES = (
    FINAL_ACCURACY,
    BEST_ACCURACY,
    Quantity("in epoch", ("best", "epoch"), METRIC["epoch"], "best_epoch"),
    FINAL_LOSS,
    _final("train/loss", "train_loss"),
    Quantity("test accuracy, %", ("test", "last", "accuracy"), ACCURACY, "test_accuracy"),
    Quantity("training, s", ("wall_seconds",), Metric("wall_seconds", "training time", "count"), "seconds"),
)
OTHERS = tuple(_final(f"val/{name}") for name in CLASSIFICATION if name != "accuracy")  # they repeat the accuracy


def measured(runs: Sequence[Run], quantities: Sequence[Quantity] = QUANTITIES) -> list[str]:
    """The quantities of completed runs that differ in their seeds."""
    return [quantity.mean(runs) for quantity in quantities]


def group(evidence: Evidence, experiment: str, network: str) -> list[Run]:
    """Our runs of an experiment at the length that has the most seeds, the longer one of a tie."""
    runs = evidence.runs(case(experiment, network)).values()
    counts = Counter(run.length for run in runs)
    length = max(counts, key=lambda length: (counts[length], length), default=0)
    return [run for run in runs if run.length == length]


def comparisons(evidence: Evidence) -> list[str]:
    """For each of the original runs what its text, its records and our runs say."""
    rows: list[tuple[str, ...]] = []
    for own in original_runs():
        rows.append((f"{own.experiment} {own.network}", "the report's text", *_headline(own.text)))
        rows.append(("", "the report's record", *_headline(own.record, str(own.seconds))))
        for experiment in EXPERIMENTS[1:] if own.experiment == 2 else EXPERIMENTS[:1]:
            if runs := group(evidence, experiment, own.network):
                rows.append(("", f"`{experiment}`, {runs[0].length} epochs, n = {len(runs)}", *measured(runs)))
    return [
        "## The report's runs, and ours",
        "Experiments 1 and 2 with Networks A and B. Accuracy and loss are of the validation set, the official 10,000 "
        "test images; the test accuracy is of the last weights, on the 3,000 images held out of the training set. Ours "
        "are mean ± standard deviation over n seeds.",
        markdown_table(("", "", *(quantity.heading for quantity in QUANTITIES)), rows),
    ]


def _headline(headline: Headline, seconds: str = "") -> list[str]:
    figures: Mapping[str, Any] = vars(headline) | {"seconds": seconds}
    values = (figures.get(quantity.printed or "") for quantity in QUANTITIES)
    return ["" if value is None else str(value) for value in values]  # as they were printed


def in_short(evidence: Evidence, runs: Sequence[Run]) -> str:
    """The last epoch of the original runs beside ours, in five rows; and of the networks at their best, if among
    these runs are any."""
    labels = {
        "baseline": "Experiment 1",
        "dropout_as_run": "Experiment 2 as it was run",
        "dropout_scheduler": "Experiment 2 as its text says",
    }
    shown = {
        which: _of_full_length(evidence, *which) for which in [(name, net) for name in labels for net in MODELS][:5]
    }
    same = len({len(runs) for runs in shown.values()}) == 1
    rows: list[tuple[str, ...]] = []
    for (experiment, network), ours in shown.items():
        own: OriginalRun = original_run(1 if experiment == "baseline" else 2, network)
        told = own.record if experiment == own.as_run else own.text
        name = f"{labels[experiment]}, {network}" + (f" (`{experiment}`)" if network == "A" else "")
        many = "" if same or not ours else f" (n = {len(ours)})"
        accuracy, loss = (quantity.mean(ours) + many for quantity in (FINAL_ACCURACY, FINAL_LOSS))
        rows.append((name, str(told.final_accuracy), accuracy, str(told.val_loss), loss))
    rows += _at_their_best(runs)
    n = f", {len(next(iter(shown.values())))} seeds" if same else ""
    heading = ("original accuracy, %", "accuracy here, %", "original loss", "loss here")
    table = markdown_table((f"After {LAST} epochs{n}, unless said otherwise", *heading), rows)
    return table.replace(" ± ", "\u00a0±\u00a0")  # a number is not broken there


def _at_their_best(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for network, model in MODELS.items():
        if best := [run for run in runs if _at_its_best(run, model)]:
            name = f"At its best, {network} (`best`, {best[0].length} epochs, n = {len(best)})"
            rows.append((name, "", FINAL_ACCURACY.mean(best), "", FINAL_LOSS.mean(best)))
    return rows


def _at_its_best(run: Run, model: str) -> bool:
    """Whether a completed run is `experiment=best` as this package has it, at that length."""
    ours = configured("best", model) or {}
    known = (run.experiment, run.model, run.length) == ("best", model, ours.get(LENGTH))
    return known and not other_experiment(ours, run.settings)


def _of_full_length(evidence: Evidence, experiment: str, network: str) -> list[Run]:
    return [run for run in evidence.runs(case(experiment, network)).values() if run.length == LAST]
