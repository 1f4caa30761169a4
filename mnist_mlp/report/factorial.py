"""Is it the dropout, the initialisation or the schedule? Effects of the three, and of each with the others.

The report's Experiment 2 changed dropout and initialisation at once, and meant to change the schedule. Here each is
changed with and without the others: 2 × 2 × 2 treatments, after `SHORT` epochs.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import NamedTuple

from mnist_mlp.report.evidence import (
    MODELS,
    SHORT,
    Case,
    Evidence,
    Interval,
    Measure,
    Treatment,
    holm,
    rise,
    t_interval,
    tail,
)
from mnist_mlp.report.markdown import markdown_table
from mnist_mlp.report.sheet import Form, difference, loss, percent

FACTORS: dict[str, tuple[float | str, float | str]] = {
    "dropout 0.3": (0.0, 0.3),
    "Xavier": ("default", "xavier_uniform"),
    "StepLR": ("none", "step"),
}
MEASURES: dict[str, tuple[Measure, Form]] = {
    "validation loss": (tail("val/loss"), loss),
    "its rise from the minimum": (rise, loss),
    "validation accuracy": (tail("val/accuracy"), percent),
}


class Effect(NamedTuple):
    """What one factor, or several together, change of a measure.

    Args:
        factors: their names, joined by ×.
        network, measure: of what.
        n: seeds.
        interval: of the effect.
        adjusted: its p-value, adjusted for all effects.
    """

    factors: str
    network: str
    measure: str
    n: int
    interval: Interval
    adjusted: float


def cells(network: str) -> dict[tuple[int, ...], Case]:
    """The treatments of a network by the level, 0 or 1, of each factor."""
    found = {}
    for levels in product((0, 1), repeat=3):
        dropout, init, scheduler = (values[level] for values, level in zip(FACTORS.values(), levels, strict=True))
        found[levels] = Case(Treatment(float(dropout), str(init), str(scheduler), 0.001), network)
    return found


def weights(network: str, factors: tuple[int, ...]) -> Mapping[Case, float]:
    """Of the mean with a factor less that without; of several factors half the difference of such differences, and so
    on: every cell counts a quarter."""
    signs = dict.fromkeys(cells(network), 1)
    for levels in signs:
        for factor in factors:
            signs[levels] *= 2 * levels[factor] - 1
    return {cell: signs[levels] / 4 for levels, cell in cells(network).items()}


def effects(evidence: Evidence) -> list[Effect]:
    """Every effect, of each network of which all treatments are there with two seeds or more."""
    found = []
    for network, (measure, (compute, _)) in product(MODELS, MEASURES.items()):
        for count in (1, 2, 3):
            for factors in combinations(range(3), count):
                contrast = evidence.contrast(weights(network, factors), compute, SHORT)
                if contrast:
                    name = " × ".join(list(FACTORS)[factor] for factor in factors)
                    interval = t_interval(contrast.total)
                    found.append(Effect(name, network, measure, len(contrast.seeds), interval, 1))
    adjusted = holm([effect.interval.p for effect in found])
    return [effect._replace(adjusted=p) for effect, p in zip(found, adjusted, strict=True)]


def section(evidence: Evidence) -> list[str]:
    """The effects as a table, or which runs are missing for it, in Markdown."""
    evidence = evidence.having(("val/loss", "val/accuracy"))
    found = effects(evidence)
    blocks = [
        "## Dropout, initialisation or schedule?",
        "Experiment 2 changed dropout and initialisation at once, and meant to change the rate. Here each of the three "
        f"is there with and without the others, at a rate of 0.001, for {SHORT} epochs. An effect is the mean with it "
        "less the mean without it, seed by seed, with its 95 % t-interval; that of two (×) is half of what one changes "
        f"in the other's effect. Bold: p < 0.05 after Holm's method over all {len(found) or 'effects'}.",
    ]
    if lacking := _lacking(evidence):
        blocks.append(f"Missing, and so undecided: {'; '.join(lacking)} after {SHORT} epochs.")
    return [*blocks, *(_table(found) if found else [])]


def _lacking(evidence: Evidence) -> list[str]:
    """How many treatments there are of each network that has not all, as clauses."""
    there = {
        network: sum(len(evidence.runs(cell, SHORT)) > 1 for cell in cells(network).values()) for network in MODELS
    }
    return [
        f"Network {network}: {count} of the 8 treatments have two seeds or more"
        for network, count in there.items()
        if count < 8
    ]


def _table(found: Sequence[Effect]) -> list[str]:
    """A row for each effect, a column for each network and measure, and under it of how many seeds."""
    columns = list(dict.fromkeys((effect.network, effect.measure) for effect in found))
    cells_of = {(effect.factors, effect.network, effect.measure): _cell(effect) for effect in found}
    rows = [
        (name, *(cells_of[name, network, measure] for network, measure in columns))
        for name in dict.fromkeys(effect.factors for effect in found)
    ]
    heading = [
        f"{network}: {measure}{', points' if MEASURES[measure][1] is percent else ''}" for network, measure in columns
    ]
    counts = " and ".join(
        f"{next(e.n for e in found if e.network == network)} ({network})"
        for network in dict.fromkeys(n for n, _ in columns)
    )
    return [markdown_table(("effect", *heading), rows), f"n = {counts} seeds."]


def _cell(effect: Effect) -> str:
    text = difference(effect.interval, MEASURES[effect.measure][1]).removesuffix(" points")
    return f"**{text}**" if effect.adjusted < 0.05 else text
