"""The report's claims, each tested on the runs: verdicts are computed, so they change when the runs do.

What each is in words stands in `claims.yaml`.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from mnist_mlp.report.evidence import (
    MODELS,
    TAIL,
    Case,
    Evidence,
    Interval,
    Measure,
    gap,
    highest,
    rank_correlation,
    rise,
    t_interval,
    tail,
)
from mnist_mlp.report.original import Recorded, recorded
from mnist_mlp.run.records import Run

Verdict = Literal["holds", "does not hold", "undecided"]
LAST = 500  # the report's last epoch
POINTS = 0.005  # accuracies this near to each other count as the same
FACTOR = 1.5  # and losses within this factor
SHAPE = (0.8, 2)  # a curve has another's shape: rank correlation of at least this, and everywhere within this factor
STEADY = 0.9  # of the steps go the same way
NOTHING = 5e-5  # a loss below this is 0.0000 in the report's records


@dataclass(frozen=True)
class Claim:
    """A claim of the report, judged.

    Args:
        key: a name for links.
        title: what is claimed, as a sentence that holds or does not.
        words: the report's own.
        test: what was computed and what decides, in Markdown.
        values: what was measured, a table: for each row a text under each heading.
        verdict: of all the rows that have one.
        explanation: why, in Markdown.
        figures: where to see it: the report's number of a figure, or `all_runs`, `seeds`, `gap`, `learning_rate`.
        missing: the runs that were not there, each as a phrase.
        p_values: of the rows that rest on an interval over seeds: two-sided, of no difference.
    """

    key: str
    title: str
    words: str
    test: str
    values: list[dict[str, str]]
    verdict: Verdict
    explanation: str
    figures: tuple[str, ...]
    missing: tuple[str, ...] = ()
    p_values: tuple[float, ...] = ()


def judge(evidence: Evidence) -> list[Claim]:
    """Every claim, in the order of the report; undecided where the runs that it takes are not there, which it says."""
    return [claim(evidence) for claim in CLAIMS]


def several_tests(claims: Sequence[Claim]) -> str:
    """What is to be said of testing so many differences at once, in Markdown; "" where there are none.

    By Holm's method (https://www.jstor.org/stable/4615733): the k-th smallest of n p-values counts if it and all that
    are smaller are below 0.05 / (n - k + 1).
    """
    p_values = sorted(p for claim in claims for p in claim.p_values)
    if not p_values:
        return ""
    together = 0
    while together < len(p_values) and p_values[together] < 0.05 / (len(p_values) - together):
        together += 1
    return (
        f"{len(p_values)} differences over seeds were tested, each at 95 %: if none were real, about "
        f"{0.05 * len(p_values):.1f} would be found by chance. {sum(p < 0.05 for p in p_values)} were found, of which "
        f"{together} remain when all are tested together (Holm's method)."
    )


def combined(verdicts: Sequence[Verdict]) -> Verdict:
    """Does not hold where any part does not; holds where all do and there is one."""
    if "does not hold" in verdicts:
        return "does not hold"
    return "holds" if verdicts and set(verdicts) == {"holds"} else "undecided"


def positive(interval: Interval) -> Verdict:
    """Whether the interval lies above 0, below it, or on both sides; nothing at all is not above."""
    return "holds" if interval.low > 0 else "does not hold" if interval.high <= 0 else "undecided"


def negative(interval: Interval) -> Verdict:
    """Whether the interval lies below 0, above it, or on both sides; nothing at all is not below."""
    return "holds" if interval.high < 0 else "does not hold" if interval.low >= 0 else "undecided"


def near(interval: Interval) -> Verdict:
    """Whether the interval of a difference of accuracies lies within `POINTS` of 0, outside, or partly."""
    if interval.low > POINTS or interval.high < -POINTS:
        return "does not hold"
    return "holds" if max(-interval.low, interval.high) <= POINTS else "undecided"


def yes(truth: bool) -> Verdict:
    return "holds" if truth else "does not hold"


Form = Callable[[float], str]


def percent(number: float) -> str:
    return f"{100 * number:.2f} %"


def points(number: float) -> str:
    """A distance between percentages."""
    return f"{100 * number:.2f} points"


def loss(number: float) -> str:
    return f"{number:.4f}"


def signed(number: float, form: Form) -> str:
    """A difference."""
    return ("−" if number < 0 else "+") + (points if form is percent else form)(abs(number))


def fraction(number: Any) -> float:
    """The report's percentage, as `metrics.csv` has it."""
    return float(number) / 100


def value(run: Run, column: str, epoch: int = LAST) -> float:
    return float(run.epochs[column][epoch - 1])


def length(run: Run) -> int:
    return len(run.epochs["epoch"])


def one_run(run: Run, epoch: int = LAST, each: str = "") -> str:
    return f"one run{each}, seed {run.seed}, epoch {epoch}"


def settled(run: Run) -> int | None:
    """The epoch from which on the training loss is nothing, if there is one."""
    above = np.flatnonzero(run.epochs["train/loss"] >= NOTHING)
    since = int(above[-1]) + 2 if len(above) else 1
    return since if since <= length(run) else None


def of(experiment: int, network: str) -> Recorded:
    """The report's run."""
    return next(run for run in recorded() if (run.experiment, run.network) == (experiment, network))


@cache
def words(key: str) -> dict[str, Any]:
    """The claim's texts."""
    texts: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "claims.yaml").read_text())[key]
    return texts


@dataclass
class Sheet:
    """What a claim's tests find, row by row."""

    evidence: Evidence
    rows: list[dict[str, str]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    p_values: list[float] = field(default_factory=list)

    def row(
        self,
        quantity: str,
        measured: str,
        other: str = "",
        difference: str = "",
        source: str = "",
        decided: Verdict | None = None,
    ) -> None:
        """A row of the table; `decided` is its verdict, where it has a part in the claim's."""
        self.rows.append(
            {
                "quantity": quantity,
                "measured": measured,
                "compared with": other,
                "difference": difference,
                "from": source,
                "verdict": decided or "",
            }
        )
        if decided:
            self.verdicts.append(decided)

    def lacks(self, what: str) -> None:
        """Runs that a verdict needs are not there."""
        self.verdicts.append("undecided")
        if what not in self.missing:
            self.missing.append(what)

    def at(self, case: Case, epoch: int = LAST) -> Run | None:
        """The longest run of a case, if it has that epoch; else a note that it is missing."""
        run = self.evidence.longest(case)
        if run and length(run) >= epoch:
            return run
        self.lacks(f"a run of {case} with {epoch} epochs" + (f" (the longest has {length(run)})" if run else ""))
        return None

    def compare(
        self,
        quantity: str,
        one: Case,
        other: Case | float | None,
        measure: Measure,
        test: Callable[[Interval], Verdict] | None,
        form: Form = loss,
    ) -> None:
        """A row for the measure of one case over the seeds, less that of another (paired by seed) or less a number.

        `test` makes the row's verdict of the interval; a row without one has no part in the claim's.
        """
        case = other if isinstance(other, Case) else None
        number = other if isinstance(other, float) else None
        found = self.evidence.compare(one, case, lambda runs: measure(runs) - (number or 0))
        if found is None:
            if test:
                self.lacks(f"two seeds or more of {one}" + (f" and of {case}" if case else ""))
            return
        interval = found.difference
        if test and found.epochs < 2 * TAIL:  # an end that is not apart from the beginning says nothing
            self.lacks(f"runs of {2 * TAIL} epochs or more")
            test = None
        if test:
            self.p_values.append(interval.p)
        spreads = [f"{form(values.mean())} ± {form(values.std(ddof=1))}" for values in (found.ones, found.others)]
        if number is not None:
            spreads = [f"{form(found.ones.mean() + number)} ± {form(found.ones.std(ddof=1))}", form(number)]
        self.row(
            quantity,
            f"{one}: {spreads[0]}",
            f"{case}: {spreads[1]}" if case else f"text: {spreads[1]}" if number is not None else "",
            f"{signed(interval.mean, form)} ({signed(interval.low, form)} to {signed(interval.high, form)})",
            f"{len(found.ones)} seeds, {found.epochs} epochs",
            test(interval) if test else None,
        )

    def beside(self, quantity: str, one: Case, other: Case, read: Callable[[Run, int], float], form: Form) -> None:
        """A row for one run of each case, the longest, after as many epochs as both have: n = 1, no verdict."""
        run, second = self.evidence.longest(one), self.evidence.longest(other)
        if run and second:
            end = min(length(run), length(second))
            ours, theirs = read(run, end), read(second, end)
            self.row(
                quantity,
                f"{one}: {form(ours)}",
                f"{other}: {form(theirs)}",
                signed(ours - theirs, form),
                one_run(run, end, " each"),
            )

    def accuracy(self, case: Case, told: float, epoch: int = LAST, source: str = "text") -> None:
        """A row that asks whether one run's validation accuracy is within `POINTS` of what the report has."""
        if run := self.at(case, epoch):
            ours = value(run, "val/accuracy", epoch)
            self.row(
                f"validation accuracy of epoch {epoch}",
                f"{case}: {percent(ours)}",
                f"{source}: {percent(told)}",
                signed(ours - told, percent),
                one_run(run, epoch),
                yes(abs(ours - told) <= POINTS + 1e-9),  # half a point itself is within it, whatever its last bit
            )

    def last_loss(self, case: Case, column: str, told: float) -> None:
        """A row that asks whether one run's loss in the last epoch is within `FACTOR` of what the text has."""
        if run := self.at(case):
            ours = value(run, column)
            self.row(
                f"{'validation' if column == 'val/loss' else 'training'} loss of epoch {LAST}",
                f"{case}: {loss(ours)}",
                f"text: {told:g}",
                f"× {ours / told:.2f}",
                one_run(run),
                yes(1 / FACTOR <= ours / told <= FACTOR),
            )

    def settling(self, *cases: Case) -> str:
        """A sentence for each case whose longest run learns its training images by heart."""
        sentences = []
        for case in cases:
            run = self.evidence.longest(case)
            if run and (since := settled(run)):
                sentences.append(
                    f"In our run of {case} the training loss is 0.0000 from epoch {since} to the last ({length(run)}); "
                    f"nothing jumps any more, and the validation loss goes from {value(run, 'val/loss', since):.2f} to "
                    f"{value(run, 'val/loss', length(run)):.2f}. "
                )
        return "".join(sentences)

    def claim(self, key: str, verdict: Verdict | None = None, **found: str) -> Claim:
        """The claim; its verdict is that of its rows together, unless another is given.

        Args:
            key: of its texts.
            verdict: in place of the rows'.
            found: what stands in the texts' braces, beside the constants of this module.
        """
        texts = words(key)
        verdict = verdict or combined(self.verdicts)
        explanation = f"{texts['explanation']} {texts.get('when', {}).get(verdict, '')}"
        constants = {"tail": TAIL, "last": LAST, "factor": FACTOR, "shape": SHAPE, "points": "half a percentage point"}
        return Claim(
            key,
            texts["title"],
            texts["words"],
            texts["test"].format(**constants),
            self.rows,
            verdict,
            " ".join(explanation.format(**constants, **found).split()),
            tuple(texts["figures"]),
            tuple(self.missing),
            tuple(self.p_values),
        )


def reproduced(experiment: int) -> Callable[[Evidence], Claim]:
    def claim(evidence: Evidence) -> Claim:
        sheet = Sheet(evidence)
        for network in MODELS:
            known = of(experiment, network)
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
        cases = [Case(of(experiment, network).as_run, network) for network in MODELS]
        return sheet.claim(f"reproduced_{experiment}", settled=sheet.settling(*cases))

    return claim


def deeper(evidence: Evidence) -> Claim:
    sheet = Sheet(evidence)
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
    return sheet.claim("deeper", yes(depths["B"] > depths["A"]) if len(depths) == 2 else None)


def steadily(evidence: Evidence) -> Claim:
    sheet = Sheet(evidence)
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
    return sheet.claim("steadily", settled=sheet.settling(*cases))


def baseline_rises(evidence: Evidence) -> Claim:
    sheet = Sheet(evidence)
    steps = []
    for network in MODELS:
        case = Case("baseline", network)
        sheet.compare("rise of the validation loss from its minimum", case, None, rise, positive)
        if run := evidence.longest(case):
            losses, end = run.epochs["val/loss"], length(run)
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
    return sheet.claim("baseline_rises", steps=trend)


def metrics_agree(evidence: Evidence) -> Claim:
    sheet = Sheet(evidence)
    for experiment in ("baseline", "dropout_as_run"):
        for network in MODELS:
            case = Case(experiment, network)
            runs = evidence.all(case)
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
    return sheet.claim("metrics_agree")


def accuracies(evidence: Evidence) -> Claim:
    sheet = Sheet(evidence)
    for network in MODELS:
        case, text = Case("baseline", network), of(1, network).text
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
            if length(run) > LAST:  # the test set was seen by later weights only
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
    return sheet.claim("accuracies")


def b_trains_worse(evidence: Evidence) -> Claim:
    sheet = Sheet(evidence)
    a, b = Case("baseline", "A"), Case("baseline", "B")
    sheet.compare("training loss at the end", b, a, tail("train/loss"), positive)
    sheet.beside("mean training loss of all epochs", b, a, lambda run, end: run.epochs["train/loss"][:end].mean(), loss)
    theirs = {network: of(1, network).points["train/loss"] for network in MODELS}
    sheet.row(
        "mean training loss of the 20 recorded epochs",
        f"recorded B: {loss(theirs['B'].mean())}",
        f"recorded A: {loss(theirs['A'].mean())}",
        signed(theirs["B"].mean() - theirs["A"].mean(), loss),
        "the report's records",
    )
    return sheet.claim("b_trains_worse", higher=str(np.sum(theirs["B"] > theirs["A"])))


def training_accuracy(evidence: Evidence) -> Claim:
    sheet = Sheet(evidence)
    case = Case("baseline", "B")
    if run := sheet.at(case):
        told, ours = fraction(of(1, "B").text.final_accuracy), 1 - value(run, "train/error")
        sheet.row(
            f"training accuracy of epoch {LAST}",
            f"{case}: {percent(ours)}",
            f"text: {percent(told)}",
            signed(ours - told, percent),
            one_run(run),
            yes(abs(ours - told) <= POINTS),
        )
        sheet.row(f"validation accuracy of epoch {LAST}", f"{case}: {percent(value(run, 'val/accuracy'))}")
    return sheet.claim("training_accuracy")


def b_more_accurate(evidence: Evidence) -> Claim:
    sheet = Sheet(evidence)
    a, b = Case("baseline", "A"), Case("baseline", "B")
    sheet.compare("validation accuracy at the end", b, a, tail("val/accuracy"), positive, percent)
    sheet.compare("highest validation accuracy", b, a, highest("val/accuracy"), positive, percent)
    sheet.beside(
        "validation accuracy of the last epoch", b, a, lambda run, end: value(run, "val/accuracy", end), percent
    )
    theirs = {network: float(of(1, network).points["val/accuracy"][-1]) for network in MODELS}
    sheet.row(
        "validation accuracy of the last epoch",
        f"recorded B: {percent(theirs['B'])}",
        f"recorded A: {percent(theirs['A'])}",
        signed(theirs["B"] - theirs["A"], percent),
        "the report's records",
    )
    variances = {network: p * (1 - p) / 10_000 for network, p in theirs.items()}
    return sheet.claim(
        "b_more_accurate",
        error=points(variances["A"] ** 0.5),
        error_of_two=points(sum(variances.values()) ** 0.5),
    )


def b_overfits_more(evidence: Evidence) -> Claim:
    sheet = Sheet(evidence)
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
    if (run := evidence.longest(b)) and (other := evidence.longest(a)):
        end = min(length(run), length(other))
        larger = "larger" if gap_at(run, end) > gap_at(other, end) else "smaller"
        theirs = "larger" if gap_at_record("B") > gap_at_record("A") else "smaller"
        single = (
            f"In one run each the gap after {end} epochs is {larger} for B than for A; in the report's it was "
            f"{theirs} ({loss(gap_at_record('B'))} and {loss(gap_at_record('A'))}). Of n = 1 neither says what another "
            "seed does. "
        )
    return sheet.claim("b_overfits_more", single=single, settled=sheet.settling(a, b))


def gap_at_record(network: str) -> float:
    """The generalisation gap in the last epoch of the report's Experiment 1."""
    known = of(1, network).points
    return float(known["val/loss"][-1] - known["train/loss"][-1])


def first_epoch(evidence: Evidence) -> Claim:
    sheet = Sheet(evidence)
    older = []
    for experiment in (1, 2):
        for network in MODELS:
            known = of(experiment, network)
            case = Case(known.as_run, network)
            # A seed's first epoch is the same in runs of any length: it counts once.
            first = np.array(list({run.seed: value(run, "train/loss", 1) for run in evidence.all(case)}.values()))
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
            run = evidence.longest(case)
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
    return sheet.claim("first_epoch", older=sentence)


def dropout_helps(network: str, accuracy_falls: bool) -> Callable[[Evidence], Claim]:
    def claim(evidence: Evidence) -> Claim:
        sheet = Sheet(evidence)
        before, after = Case("baseline", network), Case("dropout_as_run", network)
        side = negative if accuracy_falls else positive
        sheet.compare("validation loss at the end", after, before, tail("val/loss"), negative)
        sheet.compare("validation accuracy at the end", after, before, tail("val/accuracy"), side, percent)
        seeds = list(sheet.verdicts)
        texts = [of(experiment, network).text for experiment in (1, 2)]
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
        return sheet.claim(f"dropout_{network.lower()}", differs=differs)

    return claim


def dropout_trains_worse(evidence: Evidence) -> Claim:
    sheet = Sheet(evidence)
    before, after = Case("baseline", "A"), Case("dropout_as_run", "A")
    sheet.compare("training loss at the end", after, before, tail("train/loss"), positive)
    sheet.last_loss(after, "train/loss", float(of(2, "A").text.train_loss or 0))
    return sheet.claim("dropout_trains_worse")


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


def rate_decayed(evidence: Evidence) -> Claim:
    sheet = Sheet(evidence)
    for network in MODELS:
        known = of(2, network).points
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
        end = min(map(length, runs))
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
        if run := evidence.longest(Case(experiment, "A")):
            first, last = run.epochs["lr"][[0, -1]]
            sheet.row(
                "rate in the first and in the last epoch",
                f"{experiment}: {first:g}",
                f"{last:g}",
                "",
                one_run(run, length(run)),
            )
    said = set(sheet.verdicts) - {"undecided"}
    return sheet.claim("rate_decayed", said.pop() if len(said) == 1 else "undecided")


def text_settings(evidence: Evidence) -> Claim:
    sheet = Sheet(evidence)
    frozen = []
    for network in MODELS:
        text, case = of(2, network).text, Case("dropout_scheduler", network)
        told = fraction(text.final_accuracy)
        sheet.compare("validation accuracy at the end", case, told, tail("val/accuracy"), near, percent)
        sheet.accuracy(case, told)
        sheet.last_loss(case, "val/loss", float(text.val_loss or 0))
        run = evidence.longest(case)
        if run and length(run) > 40:
            change = np.abs(run.epochs["val/accuracy"][40:] - run.epochs["val/accuracy"][-1]).max()
            frozen.append(f"{points(float(change))} ({network})")
    sentence = f"After epoch 40 the accuracy stays within {' and '.join(frozen)} of its last value." if frozen else ""
    return sheet.claim("text_settings", frozen=sentence)


def more_regularization(evidence: Evidence) -> Claim:
    sheet = Sheet(evidence)
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
    return sheet.claim("more_regularization")


CLAIMS: tuple[Callable[[Evidence], Claim], ...] = (
    reproduced(1),
    reproduced(2),
    deeper,
    steadily,
    baseline_rises,
    metrics_agree,
    accuracies,
    b_trains_worse,
    training_accuracy,
    b_more_accurate,
    b_overfits_more,
    first_epoch,
    dropout_helps("A", accuracy_falls=True),
    dropout_trains_worse,
    dropout_helps("B", accuracy_falls=False),
    rate_decayed,
    text_settings,
    more_regularization,
)
