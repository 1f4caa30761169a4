"""The charts of the results page, as PNG and as SVG: runs over their epochs, as in the original report, and more.

Of several runs a band shows the range of the seeds and a line the running median of their mean; of one run a faint line
shows the run itself. Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which colour-blind readers
can tell apart. The same runs give the same bytes.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image

from mnist_mlp.drawing.figure import defaults
from mnist_mlp.report.evidence import Columns, smooth
from mnist_mlp.run.metrics import METRIC

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#000000", "#6E6E6E"
COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK, GREY)
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "figure.constrained_layout.use": True,
    "figure.titlesize": 13,
    "figure.titleweight": "bold",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 11,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",  # letters as such: half the size, and they can be searched
    "svg.hashsalt": "mnist-mlp",  # names within the file that are not random
}
WIDTH, HEIGHT, DPI = 9.0, 4.0, 120  # inches, pixels per inch
FLOOR = 5e-5  # what is smaller is drawn on the lower edge: four decimals round it to 0
SEPARATION = 0.068  # of labels at the ends of the lines, in heights of the chart
TICKS = {
    "epoch": (1, 3, 10, 30, 100, 300, 1000, 3000, 10000),
    "percent": (0, 50, 80, 90, 93, 95, 96, 97, 97.5, 98, 98.5, 99, 99.5, 99.9),
}
EVERY = 60  # epochs at a run's beginning of which a band shows each
GAP = "gap"  # the validation loss less the training loss: a curve as if it were a column
LONGEST_LABEL = 24  # letters, at the end of a line; with longer ones there is a legend

Vector = np.ndarray
End = tuple[float, float, str, str]  # of a line: its last epoch and value, its name and its colour


class Curve(NamedTuple):
    """A curve of a chart: of one run, or of several that differ in their seeds."""

    label: str
    color: str
    runs: Sequence[Columns]


class Stated(NamedTuple):
    """A value that the original report's text states."""

    column: str
    epoch: float
    value: float


def rendered(build: Callable[[], Figure]) -> tuple[bytes, bytes]:
    """A chart as PNG, in 256 colours, and as SVG, its coordinates with one decimal of a point."""
    with defaults(), rc_context(STYLE):
        figure = build()
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # which would lay it out anew for each form, at most of the time
        raster, vector = io.BytesIO(), io.StringIO()
        figure.savefig(raster, format="png", dpi=DPI)
        figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None})
    smaller = io.BytesIO()
    Image.open(raster).convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        smaller, format="png", optimize=True
    )
    shorter = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d)\d+|\n", r"\1", path[0]), vector.getvalue())
    return smaller.getvalue(), shorter.encode()


def charted() -> dict[str, str]:
    """What has a chart of its own, and its title: every loss and fraction of the table of metrics, and the gap. The
    validation error is the accuracy's complement."""
    shown = [metric for metric in METRIC.values() if metric.form in ("loss", "fraction") and metric.name != "val/error"]
    titles = {metric.name: metric.title[0].upper() + metric.title[1:] for metric in shown}
    return titles | {GAP: "Generalisation gap: validation loss − training loss"}


def columns_of(column: str) -> tuple[str, ...]:
    """The columns of metrics.csv that a chart takes."""
    return ("val/loss", "train/loss") if column == GAP else (column,)


def in_percent(column: str) -> bool:
    """Whether charts show it in percent: every fraction but the errors, which have a logarithmic scale, as losses."""
    return column in METRIC and METRIC[column].form == "fraction" and METRIC[column].chart != "error"


def by_network(
    panels: Mapping[str, Sequence[Curve]], column: str, title: str, scale: Literal["log", "linear"]
) -> Figure:
    """One metric, in a panel for each network.

    Args:
        panels: the curves by the title of their panel; each run has at least one epoch.
        column: of metrics.csv, or `gap`.
        title: of the chart.
        scale: of the epochs.
    """
    figure, axes = _chart(title, len(panels), sharey=True)
    ends: list[list[End]] = []
    for place, (name, curves) in zip(axes, panels.items(), strict=True):
        place.set_title(name)
        place.set_xlabel("epoch")
        ends.append([(*_draw(place, curve.runs, column, curve.color), curve.label, curve.color) for curve in curves])
        if scale == "log":
            _scale_epochs(place)
    names = {label: color for drawn in ends for *_, label, color in drawn}
    if max(map(len, names)) > LONGEST_LABEL:
        handles = [Line2D([], [], color=color, label=label) for label, color in names.items()]
        figure.legend(handles=handles, loc="outside lower left")
        ends = []
    _scale_values(axes[0], column)  # the panels share one scale, which takes what all of them show
    for place, drawn in zip(axes, ends, strict=False):
        _label_ends(place, drawn)
    axes[0].set_ylabel(_unit(column))
    return figure


def losses_and_errors(ours: Curve, title: str, recorded: Columns | None, stated: Sequence[Stated]) -> Figure:
    """Training and validation loss, and beside them the errors: our runs, and the original report's.

    Args:
        ours: runs of one case.
        title: of the chart.
        recorded: every epoch of the original report's run.
        stated: by the original report's text, drawn as stars.
    """
    figure, axes = _chart(title, 2)
    for place, name, unit in zip(axes, ("loss", "error"), ("loss", "error, as a fraction"), strict=True):
        ends = []
        for column, color in ((f"val/{name}", VERMILLION), (f"train/{name}", BLUE)):
            ends.append((*_draw(place, ours.runs, column, color), METRIC[column].title.split()[0], color))
            if recorded is not None:
                _draw_recorded(place, recorded, column, color)
            for point in stated:
                if point.column == column:
                    _star(place, point, color)
        _scale_values(place, f"val/{name}")
        place.set_ylabel(unit)
        place.set_xlabel("epoch")
        _label_ends(place, ends)
    _explain(figure, ours, recorded, stated)
    return figure


def accuracy_and_others(ours: Curve, title: str, recorded: Columns | None, stated: Sequence[Stated]) -> Figure:
    """Validation accuracy; and beside it, how far precision, recall and F1 are from it.

    Args: as for `losses_and_errors`.
    """
    figure, (left, right) = _chart(title, 2)
    _draw(left, ours.runs, "val/accuracy", BLUE)
    if recorded is not None:
        _draw_recorded(left, recorded, "val/accuracy", BLUE)
    for point in stated:
        if point.column == "val/accuracy":
            _star(left, point._replace(value=100 * point.value), BLUE)
    left.set_ylabel("validation accuracy, %")
    ends = []
    for column, color in (("val/precision", VERMILLION), ("val/recall", BLACK), ("val/f1", GREEN)):
        runs = [{"away": 100 * (run[column] - run["val/accuracy"])} for run in ours.runs]
        ends.append((*_draw(right, runs, "away", color), METRIC[column].short, color))
    right.set_ylabel("difference from accuracy, points")
    for place in (left, right):
        place.set_xlabel("epoch")
    _label_ends(right, ends)
    _explain(figure, ours, recorded, stated)
    return figure


def learning_rate(curves: Sequence[Curve], title: str, epochs: int) -> Figure:
    """The rate that the optimizer had in each of the first `epochs`, with curves that coincide side by side."""
    figure, (axes,) = _chart(title, 1)
    for number, curve in enumerate(curves):
        rates = curve.runs[0]["lr"][:epochs]
        # Of curves that coincide the later ones are thinner, so that all can be seen.
        width = 1.5 + 1.8 * (len(curves) - 1 - number)
        places = np.arange(1, len(rates) + 1)
        axes.step(places, rates, where="mid", color=curve.color, linewidth=width, label=curve.label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel("learning rate")
    axes.set_xlabel("epoch")
    figure.legend(loc="outside lower left")
    return figure


def networks(layers: Mapping[str, Sequence[int]], title: str) -> Figure:
    """Fully connected networks one beside the other, each layer a bar as high as it is wide.

    Args:
        layers: of each network by its name the widths, from the input to the output.
        title: of the chart.
    """
    figure, axes = _chart(title, len(layers), sharey=True)
    for place, (name, widths) in zip(axes, layers.items(), strict=True):
        weights = [(before + 1) * after for before, after in pairwise(widths)]
        place.set_title(f"{name}: {sum(weights):,} parameters")
        for number, (width, after) in enumerate(pairwise(widths)):
            corners = [(number, width / 2), (number + 1, after / 2), (number + 1, -after / 2), (number, -width / 2)]
            place.fill(*zip(*corners, strict=True), color="#E4E9EF", zorder=1)
            place.text(number + 0.5, -440, f"{weights[number]:,}", ha="center", fontsize=9, color=GREY)
        colors = [GREY, *[BLUE] * (len(widths) - 2), VERMILLION]
        place.bar(range(len(widths)), widths, 0.3, [-width / 2 for width in widths], color=colors, zorder=2)
        for number, width in enumerate(widths):
            place.text(number, width / 2 + 14, str(width), ha="center", fontsize=11, weight="bold")
        kinds = ["image", *["ReLU"] * (len(widths) - 2), "logits"]
        place.set_xticks(range(len(widths)), kinds)
        place.set_ylim(-470, 470)
        place.set_yticks([])
        place.grid(visible=False)
        place.spines[["left", "bottom"]].set_visible(False)
        place.tick_params(bottom=False)
    return figure


def values_of(run: Columns, column: str) -> Vector:
    """A column of metrics.csv, float64, one value per epoch, or the gap."""
    return run["val/loss"] - run["train/loss"] if column == GAP else run[column]


def ranges(runs: Sequence[Columns], column: str) -> tuple[Vector, Vector, Vector]:
    """Of each epoch that all runs have: the mean over the runs, and the lowest and the highest."""
    length = min(len(values_of(run, column)) for run in runs)
    values = np.stack([values_of(run, column)[:length] for run in runs])
    return values.mean(0), values.min(0), values.max(0)


def _chart(title: str, panels: int, sharey: bool = False) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(WIDTH, HEIGHT))
    figure.suptitle(title, x=0.01, ha="left")
    return figure, list(figure.subplots(1, panels, sharey=sharey, squeeze=False)[0])


def _draw(axes: Axes, runs: Sequence[Columns], column: str, color: str) -> tuple[float, float]:
    """One curve; where it ends."""
    mean, low, high = (_placed(values, column) for values in ranges(runs, column))
    epochs, line = np.arange(1, len(mean) + 1), smooth(mean)
    if len(runs) > 1:
        # Of a long run a point for a few epochs, which keeps the file small and every extreme in the band.
        starts = np.flatnonzero((epochs <= EVERY) | (epochs % max(1, len(epochs) // 150) == 0))
        band = np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)
        axes.fill_between(epochs[starts], *band, color=color, alpha=0.18, linewidth=0)
    else:
        axes.plot(epochs, mean, color=color, alpha=0.3, linewidth=0.8)
    axes.plot(epochs, line, color=color)
    return float(epochs[-1]), float(line[-1])


def _draw_recorded(axes: Axes, recorded: Columns, column: str, color: str) -> None:
    """The original report's curve, in the colour of ours."""
    values = _placed(recorded[column], column)
    epochs = np.arange(1, len(values) + 1)
    axes.plot(epochs, smooth(values), color=color, linewidth=1.5, linestyle=(0, (1, 1)), zorder=4)


def _placed(values: Vector, column: str) -> Vector:
    """Where values lie on the axis of their column: a fraction in %, a loss or an error not under the edge."""
    if in_percent(column):
        return 100 * values
    return np.maximum(values, FLOOR) if column in METRIC else values


def _unit(column: str) -> str:
    if in_percent(column):
        return "%, by the log of the error"
    if column == GAP:
        return "difference of losses"
    return column.partition("/")[2] + (" as a fraction" if column.endswith("error") else "")


def _scale_values(axes: Axes, column: str) -> None:
    if in_percent(column):
        _scale_percent(axes)
    elif column == GAP:
        axes.axhline(0, color=GREY, linewidth=0.8)
    else:
        _scale_log(axes)


def _scale_log(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    low = max(FLOOR, low)
    axes.set_ylim(low, high)
    # Within few powers of ten there would be one label, or matplotlib's own, such as 6 × 10⁻².
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 500 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _scale_percent(axes: Axes) -> None:
    """Distances grow towards 100 %, as those of the error's logarithm do: 98 and 99 are as far apart as 96 and 98."""
    least = 0.05  # percent of error: 100 % itself would be infinitely far

    def forward(percent: Vector) -> Vector:
        height: Vector = -np.log10(np.maximum(100 - np.asarray(percent), least))
        return height

    axes.set_yscale("function", functions=(forward, lambda place: 100 - 10 ** -np.asarray(place)))
    intervals = [other.dataLim.intervaly for other in axes.get_shared_y_axes().get_siblings(axes)]
    low, high = min(low for low, _ in intervals), max(high for _, high in intervals)
    axes.set_ylim(max(0.0, 100 - 1.15 * max(100 - low, 2 * least)), 100 - 0.87 * max(100 - high, least))
    axes.yaxis.set_major_locator(FixedLocator(TICKS["percent"]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _scale_epochs(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(TICKS["epoch"]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())


def _star(axes: Axes, point: Stated, color: str) -> None:
    axes.plot(point.epoch, point.value, "*", color=color, markeredgecolor=BLACK, markersize=14, zorder=5, clip_on=False)


def _explain(figure: Figure, ours: Curve, recorded: Columns | None, stated: Sequence[Stated]) -> None:
    """Says below the chart what the lines are."""
    axes = figure.axes[0]
    n = len(ours.runs)
    axes.plot([], [], color=GREY, label=f"here, {f'{n} seeds and their range' if n > 1 else 'one run'}")
    if recorded is not None:
        axes.plot([], [], color=GREY, linestyle=(0, (1, 1)), label="the report's own run")
    if stated:
        axes.plot([], [], "*", color=GREY, markersize=12, label="the report's text")
    figure.legend(loc="outside lower left", ncols=3)


def _label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Names lines at the right edge, in their colours, one above the other where they end close together; and with
    the epoch where they end before the others."""
    axes.get_ylim()  # sets the limits where they follow the lines
    to_axes = axes.transScale + axes.transLimits
    latest = max((epoch for epoch, *_ in ends), default=0)
    ends = sorted(ends, key=lambda end: end[1])
    heights = [float(to_axes.transform((1.0, value))[1]) for _, value, *_ in ends]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + SEPARATION)
    highest = 1.0
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], highest)
        highest = heights[index] - SEPARATION
    for height, (epoch, _, label, color) in zip(heights, ends, strict=True):
        text = label if epoch == latest else f"{label}, to {epoch:.0f}"
        axes.annotate(text, (1.01, height), xycoords="axes fraction", color=color, va="center", fontsize=9.5)
