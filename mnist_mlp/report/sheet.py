"""How a claim is judged: what its test may ask of the runs, row by row, and what follows for the claim."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mnist_mlp.report.evidence import TAIL, Case, Evidence, Interval, Measure
from mnist_mlp.run.metrics import METRIC
from mnist_mlp.run.records import Run

Verdict = Literal["holds", "does not hold", "undecided"]
LAST = 500  # the original report's last epoch
POINTS = 0.005  # accuracies this near to each other count as the same
FACTOR = 1.5  # and losses within this factor
SHAPE = (0.8, 2)  # a curve has another's shape: rank correlation of at least this, and everywhere within this factor
STEADY = 0.9  # of the steps go the same way
NOTHING = 5e-5  # a loss below this is 0.0000 in the original report's records


@dataclass(frozen=True)
class Claim:
    """A claim of the original report, judged.

    Args:
        key: a name for links.
        title: what is claimed, as a sentence that holds or does not.
        words: the original report's own.
        test: what was computed and what decides, in Markdown.
        values: what was measured, a table: for each row a text under each heading.
        verdict: of all the rows that have one.
        explanation: why, in Markdown.
        figures: where to see it: the original report's number of a figure, or `all_runs`, `seeds`, `gap` or
            `learning_rate`.
        missing: the runs that were not there, each as a phrase.
        left_out: the names of runs that were not looked at, since their `metrics.csv` lacks one of `columns`.
        columns: of `metrics.csv` that it takes.
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
    left_out: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    p_values: tuple[float, ...] = ()


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
    """The original report's percentage, as `metrics.csv` has it."""
    return float(number) / 100


def value(run: Run, column: str, epoch: int = LAST) -> float:
    return float(run.epochs[column][epoch - 1])


def one_run(run: Run, epoch: int = LAST, each: str = "") -> str:
    return f"one run{each}, seed {run.seed}, epoch {epoch}"


def settled(run: Run) -> int | None:
    """The epoch from which on the training loss is nothing, if there is one."""
    above = np.flatnonzero(run.epochs["train/loss"] >= NOTHING)
    since = int(above[-1]) + 2 if len(above) else 1
    return since if since <= run.length else None


@dataclass
class Sheet:
    """What the test of a claim finds, row by row.

    Args:
        evidence: the runs that have every column that the claim takes.
        verdict: the claim's, where that is not what its rows say together.
    """

    evidence: Evidence
    verdict: Verdict | None = None
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
        if run and run.length >= epoch:
            return run
        self.lacks(f"a run of {case} with {epoch} epochs" + (f" (the longest has {run.length})" if run else ""))
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
            end = min(run.length, second.length)
            ours, theirs = read(run, end), read(second, end)
            self.row(
                quantity,
                f"{one}: {form(ours)}",
                f"{other}: {form(theirs)}",
                signed(ours - theirs, form),
                one_run(run, end, " each"),
            )

    def accuracy(self, case: Case, told: float, epoch: int = LAST, source: str = "text") -> None:
        """A row that asks whether one run's validation accuracy is within `POINTS` of what the original report has."""
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
                f"{METRIC[column].title} of epoch {LAST}",
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
                    f"In our run of {case} the training loss is 0.0000 from epoch {since} to the last ({run.length}); "
                    f"nothing jumps any more, and the validation loss goes from {value(run, 'val/loss', since):.2f} to "
                    f"{value(run, 'val/loss', run.length):.2f}. "
                )
        return "".join(sentences)
