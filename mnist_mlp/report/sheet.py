"""How a claim is judged: what its test may ask of the runs, row by row, and what follows for the claim."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from mnist_mlp.report.evidence import LAST, Case, Columns, Evidence, Interval, Measure, holm, t_interval, treatments
from mnist_mlp.report.original import OriginalRun, original_run

Verdict = Literal[
    "holds",
    "holds in repetition only",
    "depends on the seed",
    "holds for the report's run only",
    "does not hold",
    "undecided",
    "cannot be tested",
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
# Of a claim's rows the first of these that one has is the claim's.
WORST: tuple[Verdict, ...] = ("does not hold", "undecided", "depends on the seed", "holds")
POINTS = 0.005  # accuracies this near to each other count as the same
SHAPE = (0.8, 2)  # a curve has another's shape: rank correlation of at least this, and everywhere within this factor
STEADY = 0.9  # of the steps go the same way
HEADINGS = ("quantity", "here", "beside", "difference", "p", "p of all", "the report's run", "n", "verdict")


@dataclass(frozen=True)
class Row:
    """What was found of one quantity, in words; `numbers` are what its verdict rests on.

    Args:
        quantity: what was measured.
        here: mean ± standard deviation over the seeds.
        beside: what it is compared with.
        difference: with its 95 % interval.
        report: the same of the original report's own runs.
        n: of how many seeds.
        verdict: of the repetition; None where the row has no part in it.
        agrees: whether the original report's own runs are as claimed; None where that is not asked.
        numbers: mean, low, high and p.
        adjusted: p, adjusted for all the tests of the page.
    """

    quantity: str
    here: str = ""
    beside: str = ""
    difference: str = ""
    report: str = ""
    n: str = ""
    verdict: Verdict | None = None
    agrees: bool | None = None
    numbers: Interval | None = None
    adjusted: float | None = None

    def in_short(self) -> str:
        """The number that decides, where there is no room for the row."""
        found = self.difference if self.numbers else ""
        parts = [self.here, self.beside, found, f"n = {self.n}" if self.n else ""]
        report = f"; the report's: {self.report}" if self.report else ""
        return f"{self.quantity}: {'; '.join(filter(None, parts))}{report}".replace(": ;", ":")

    def cells(self) -> list[str]:
        """A text under each of `HEADINGS`."""
        p = p_text(self.numbers.p) if self.numbers else ""
        adjusted = p_text(self.adjusted) if self.adjusted is not None else ""
        verdict = f"**{self.verdict}**" if self.verdict else ""
        return [self.quantity, self.here, self.beside, self.difference, p, adjusted, self.report, self.n, verdict]


@dataclass(frozen=True)
class Claim:
    """A claim of the original report, judged.

    Args:
        key: a name for links.
        title: what is claimed, as a sentence that holds or does not.
        words: the report's own.
        test: what was computed and what decides, in Markdown.
        rows: what was found.
        verdict: of the report's runs and of the repetition together.
        explanation: why, in Markdown.
        figures: where to see it: keys of the gallery.
        missing: the runs that were not there, each as a phrase.
        left_out: the names of runs that were not looked at, since their `metrics.csv` lacks one of `columns`.
        columns: of `metrics.csv` that it takes.
    """

    key: str
    title: str
    words: str
    test: str
    rows: list[Row]
    verdict: Verdict
    explanation: str
    figures: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    @property
    def deciding(self) -> Row | None:
        """The row that made the verdict what it is: of those of the worst verdict the one with the largest p where
        that holds, with the smallest where it does not."""
        found = [row for row in self.rows if row.verdict]
        if not found:
            return self.rows[0] if self.rows else None
        worst = min((row.verdict for row in found if row.verdict), key=WORST.index)
        sign = 1 if worst == "does not hold" else -1
        return min((row for row in found if row.verdict == worst), key=lambda row: sign * (row.numbers or NO_TEST).p)


NO_TEST = Interval(0, 0, 0, 1)


def adjusted(claims: Sequence[Claim]) -> list[Claim]:
    """The claims with each p-value adjusted for all those that a verdict rests on."""
    tested = [
        (claim.key, place) for claim in claims for place, row in enumerate(claim.rows) if row.numbers and row.verdict
    ]
    rows = {claim.key: list(claim.rows) for claim in claims}
    values = holm([rows[key][place].numbers.p for key, place in tested])  # type: ignore[union-attr]
    for (key, place), value in zip(tested, values, strict=True):
        rows[key][place] = replace(rows[key][place], adjusted=value)
    return [replace(claim, rows=rows[claim.key]) for claim in claims]


def several_tests(claims: Sequence[Claim]) -> str:
    """What is to be said of testing so much at once, in Markdown; "" where nothing was."""
    rows = [(claim, row) for claim in claims for row in claim.rows if row.adjusted is not None and row.numbers]
    if not rows:
        return ""
    alone = [(claim, row) for claim, row in rows if row.numbers and row.numbers.p < 0.05]
    lost = [claim.key for claim, row in alone if (row.adjusted or 0) >= 0.05]
    numbers = [str(number) for number, claim in enumerate(claims, 1) if claim.key in lost]
    return (
        f"{len(rows)} tests over seeds decide, each at 95 %: were there nothing to find, about {0.05 * len(rows):.1f} "
        f"would find something by chance. {len(alone)} have p < 0.05, of which {len(alone) - len(lost)} remain when "
        "all are tested together (Holm's method, *p of all*)."
        + (f" Those that do not remain are of claims {', '.join(numbers)}." if lost else "")
    )


def combined(rows: Sequence[Row]) -> Verdict:
    """What the rows with a verdict say together, of the repetition and of the report's own runs."""
    verdicts = {row.verdict for row in rows}
    repeated: Verdict = next((verdict for verdict in WORST if verdict in verdicts), "undecided")
    agreeing = [row.agrees for row in rows if row.agrees is not None]
    if repeated == "does not hold" and all(row.agrees for row in rows if row.verdict == repeated) and all(agreeing):
        return "holds for the report's run only"
    if repeated == "holds" and not all(agreeing):
        return "holds in repetition only"
    return repeated


def positive(interval: Interval) -> Verdict:
    """Whether the interval lies above 0, below it, or on both sides; nothing at all is not above."""
    return "holds" if interval.low > 0 else "does not hold" if interval.high <= 0 else "undecided"


def negative(interval: Interval) -> Verdict:
    """Whether the interval lies below 0, above it, or on both sides; nothing at all is not below."""
    return "holds" if interval.high < 0 else "does not hold" if interval.low >= 0 else "undecided"


def yes(truth: bool) -> Verdict:
    return "holds" if truth else "does not hold"


Form = Callable[[float], str]


def percent(number: float) -> str:
    return f"{100 * number:.2f} %"


def points(number: float) -> str:
    """A distance between percentages."""
    return f"{100 * number:.2f} points"


def loss(number: float) -> str:
    return f"{number:.4f}".replace("-", "−")


def plain_number(number: float) -> str:
    return f"{number:.2f}".replace("-", "−")


def p_text(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}" if p < 0.045 else f"{p:.3f}" if p < 0.055 else f"{p:.2f}"


def signed(number: float, form: Form) -> str:
    """A difference."""
    return ("−" if number < 0 else "+") + (points if form is percent else form)(abs(number))


def spread(values: np.ndarray, form: Form) -> str:
    """Mean ± standard deviation (n − 1), the unit once."""
    mean, unit, _ = form(float(values.mean())).partition(" %")
    return f"{mean} ± {form(float(values.std(ddof=1))).removesuffix(' %')}{unit}" if len(values) > 1 else mean + unit


def difference(interval: Interval, form: Form) -> str:
    """A difference with its interval, the unit once."""
    mean, low, high = (signed(value, form).removesuffix(" points") for value in interval[:3])
    return f"{mean} ({low} to {high}){' points' if form is percent else ''}"


def side_by_side(values: Collection[float], total: float, form: Form) -> str:
    """Values, and what several come to."""
    return " and ".join(map(form, values)) + (f" ({signed(total, form)})" if len(values) > 1 else "")


def fraction(number: Any) -> float:
    """The original report's percentage, as `metrics.csv` has it."""
    return float(number) / 100


def original_of(of_it: Case) -> OriginalRun | None:
    """The original report's run of a case, if it made one."""
    number = {"baseline": 1, "dropout_as_run": 2}
    found = (number[name] for name in number if treatments()[name] == of_it.treatment)
    return next((original_run(experiment, of_it.network) for experiment in found), None)


def settled(columns: Columns) -> int | None:
    """The epoch from which on the training loss is 0.0000, if there is one."""
    above = np.flatnonzero(columns["train/loss"] >= 5e-5)
    since = int(above[-1]) + 2 if len(above) else 1
    return since if since <= len(columns["train/loss"]) else None


@dataclass
class Sheet:
    """What the test of a claim finds, row by row.

    Args:
        evidence: the runs that have every column that the claim takes.
        verdict: the claim's, where that is not what its rows say together.
    """

    evidence: Evidence
    verdict: Verdict | None = None
    rows: list[Row] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def lacks(self, of_it: Case, epochs: int, decides: bool = True) -> None:
        """Notes that a case has too few runs for a verdict."""
        there = self.evidence.runs(of_it)
        lengths = Counter(run.length for run in there.values())
        held = ", ".join(f"{count} of {length}" for length, count in sorted(lengths.items()))
        what = f"two seeds of {of_it} with {epochs} epochs (there are {held or 'none'})"
        if decides and what not in self.missing:
            self.missing.append(what)

    def contrast(
        self,
        quantity: str,
        weights: Mapping[Case, float],
        measure: Measure,
        test: Callable[[Interval], Verdict] | None = None,
        form: Form = loss,
        *,
        epochs: int = LAST,
        less: float = 0.0,
        record: bool = True,
    ) -> Interval | None:
        """A row for a measure, weighted over cases seed by seed, less a number.

        Args:
            quantity: what it is.
            weights: of each case; of two, the first is compared with the second.
            measure: of runs.
            test: makes the verdict of the interval; a row without one has no part in the claim's.
            form: of the numbers.
            epochs: after how many.
            less: what to take off.
            record: whether the original report's runs are measured too, where it made each.
        """
        row = Row(quantity)
        theirs = self._of_the_report(weights, measure, epochs) if record else None
        if theirs:
            total = sum(weight * theirs[of_it] for of_it, weight in weights.items()) - less
            agrees = test(Interval(total, total, total, 0)) == "holds" if test else None
            row = replace(row, report=side_by_side(theirs.values(), total, form), agrees=agrees)
        found = self.evidence.contrast(weights, measure, epochs)
        if found is None:
            self._too_few(row, weights, epochs, test is not None)
            return None
        interval = t_interval(found.total - less)
        spreads = [f"{of_it}: {spread(values, form)}" for of_it, values in found.values.items()]
        compared = interval if len(weights) > 1 or test else None
        self.rows.append(
            replace(
                row,
                here=spreads[0] if len(spreads) < 3 else "",
                beside=spreads[1] if len(spreads) == 2 else f"against {form(less)}" if less else "",
                difference=difference(interval, form) if compared else "",
                n=str(len(found.seeds)),
                verdict=test(interval) if test else None,
                numbers=compared,
            )
        )
        return interval

    def _too_few(self, row: Row, cases: Collection[Case], epochs: int, decides: bool) -> None:
        """The row of a contrast for which one of these cases has too few runs; none where it would say nothing."""
        for of_it in cases:
            if len(self.evidence.runs(of_it, epochs)) < 2:
                self.lacks(of_it, epochs, decides)
        if decides or row.report:
            few = " and ".join(map(str, cases)) if len(cases) < 3 else ""
            verdict: Verdict | None = "undecided" if decides else None
            self.rows.append(replace(row, here=few and f"{few}: –", verdict=verdict))

    def _of_the_report(self, weights: Collection[Case], measure: Measure, epochs: int) -> dict[Case, float] | None:
        theirs = {of_it: original_of(of_it) for of_it in weights}
        if not all(theirs.values()):
            return None
        return {
            of_it: float(measure([{name: values[:epochs] for name, values in own.epochs.items()}])[0])
            for of_it, own in theirs.items()
            if own
        }

    def predicted(
        self,
        quantity: str,
        of_it: Case,
        told: float,
        measure: Measure,
        form: Form = percent,
        *,
        epochs: int = LAST,
        whose: str = "text",
        decides: bool = True,
    ) -> Interval | None:
        """A row that asks whether a value of the original report lies where one more run would, with 95 %.

        Losses are compared by their logarithms. A row that does not decide has no part in the verdict.
        """
        curves = self.evidence.curves(of_it, epochs)
        if len(curves) < 2:
            self.lacks(of_it, epochs, decides)
            if decides:
                self.rows.append(Row(quantity, f"{of_it}: –", f"{whose}: {form(told)}", verdict="undecided"))
            return None
        values = measure(list(curves.values()))
        logs = form is loss and bool((values > 0).all())
        interval = t_interval(np.log(values), float(np.log(told))) if logs else t_interval(values, told)
        low, high = (float(np.exp(end)) if logs else end for end in interval[1:3])
        theirs = self._of_the_report([of_it], measure, epochs) if whose == "text" else None
        off = abs(theirs[of_it] - told) if theirs else 0
        self.rows.append(
            Row(
                quantity,
                f"{of_it}: {spread(values, form)}",
                f"{whose}: {form(told)}",
                f"one more run: {form(low).removesuffix(' %')} to {form(high)}",
                form(theirs[of_it]) if theirs else "",
                str(len(values)),
                yes(interval.p >= 0.05) if decides else None,
                off <= (POINTS if form is percent else told / 10) if theirs else None,
                interval,
            )
        )
        return interval

    def counted(self, quantity: str, of_it: Case, fails: Callable[[Columns], Sequence[str]]) -> None:
        """A row that counts the seeds for which nothing fails: all, none, or some, which is to depend on the seed."""
        curves = self.evidence.curves(of_it, LAST)
        if not curves:
            self.lacks(of_it, LAST)
            self.rows.append(Row(quantity, f"{of_it}: –", verdict="undecided"))
            return
        failing = {seed: found for seed, columns in curves.items() if (found := fails(columns))}
        good = len(curves) - len(failing)
        verdict: Verdict = "holds" if not failing else "depends on the seed" if good else "does not hold"
        if len(curves) < 2:
            self.lacks(of_it, LAST)
            verdict = "undecided"
        self.rows.append(
            Row(
                quantity,
                f"{of_it}: {good} of {len(curves)} seeds meet all",
                difference="; ".join(f"seed {seed}: {', '.join(found)}" for seed, found in failing.items()),
                n=str(len(curves)),
                verdict=verdict,
            )
        )

    def settling(self, *cases: Case) -> str:
        """A sentence for each case in which some seeds learn the training images by heart."""
        sentences = []
        for of_it in cases:
            curves = self.evidence.curves(of_it, LAST)
            since = {seed: epoch for seed, columns in curves.items() if (epoch := settled(columns))}
            if since:
                when = ", ".join(f"seed {seed} from epoch {epoch}" for seed, epoch in since.items())
                sentences.append(
                    f"In {len(since)} of {len(curves)} runs of {of_it} the training loss ends at 0.0000 ({when}), and "
                    "nothing jumps any more. "
                )
        return "".join(sentences)
