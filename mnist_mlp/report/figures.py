"""The charts of the results page, as PNG and as SVG: runs over their epochs, as in the original report, and more.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which colour-blind readers can tell apart. A
chart is small and its letters are large, so that it can be read on a telephone. The same runs give the same bytes.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image

from mnist_mlp.drawing.figure import defaults
from mnist_mlp.run import metrics
from mnist_mlp.run.metrics import METRIC
from mnist_mlp.run.records import Run

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#000000", "#6E6E6E"
COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK, GREY)
DASHES: tuple[str | tuple[float, tuple[float, ...]], ...] = ("-", (0, (4, 1.5)), ":", "-.")
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.07,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 12,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",  # letters as such: half the size, and they can be searched
    "svg.hashsalt": "mnist-mlp",  # names within the file that are not random
}
WIDTH, HEIGHT, DPI = 6.0, 4.4, 140  # inches, pixels per inch
FLOOR = 5e-5  # what is smaller is drawn on the lower edge: the report's records, with four decimals, round it to 0
SEPARATION = 0.07  # of labels at the ends of the lines, in heights of the chart
TICKS = {
    "epoch": (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000),
    "percent": (0, 50, 80, 90, 93, 95, 96, 97, 97.5, 98, 98.5, 99, 99.5, 99.9),
}
LOSSES = ("val/loss", "train/loss", "val/error", "train/error")
CLASSIFICATION = tuple(f"val/{name}" for name in metrics.CLASSIFICATION)
GAP = "gap"  # the validation loss less the training loss: a curve as if it were a column

Vector = np.ndarray
Points = Mapping[str, Vector]  # `epoch` and columns of metrics.csv, of one length


class Curve(NamedTuple):
    """A curve of a chart: of one run; of several, their mean, and their standard deviation as a band."""

    label: str
    color: str
    dashes: str | tuple[float, tuple[float, ...]]
    runs: Sequence[Run]


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


def loss_and_error(run: Run, title: str, recorded: Points | None = None, stated: Sequence[Stated] = ()) -> Figure:
    """Training and validation loss and error on one chart.

    Args:
        run: with at least one epoch.
        title: of the chart.
        recorded: of the original report's run, drawn as markers.
        stated: by the original report's text, drawn as stars.
    """
    figure, axes = _chart(title)
    ends = []
    for column, color in zip(LOSSES, (VERMILLION, BLUE, ORANGE, SKY), strict=True):
        dashes = "-" if METRIC[column].form == "loss" else DASHES[1]
        values = np.maximum(run.epochs[column], FLOOR)
        axes.plot(run.epochs["epoch"], values, color=color, linestyle=dashes, linewidth=1.2)
        ends.append((float(np.median(values[-20:])), METRIC[column].title, color))
        if recorded is not None:
            # The records have the accuracy instead of the validation error.
            marks = np.maximum(1 - recorded["val/accuracy"] if column == "val/error" else recorded[column], FLOOR)
            marker = "o" if column.endswith("loss") else "s"
            axes.plot(recorded["epoch"], marks, marker, color="white", markeredgecolor=color, markersize=5.5, zorder=3)
        for point in stated:
            if point.column == column:
                _star(axes, point, color)
    _scale_log(axes)
    axes.set_ylabel("loss; error as a fraction")
    _label_ends(axes, ends)
    _marks(axes, recorded, stated)
    return figure


def classification(run: Run, title: str, recorded: Points | None = None, stated: Sequence[Stated] = ()) -> Figure:
    """Validation accuracy, precision, recall and F1; and below, how far the others are from accuracy.

    Args: as for `loss_and_error`.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT * 1.25))
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1.3))
    upper.set_title(title)
    curves = zip(CLASSIFICATION, (SKY, VERMILLION, BLUE, GREEN), (4.5, 1.6, 1.4, 1.1), strict=True)
    epochs, accuracy = run.epochs["epoch"], 100 * run.epochs["val/accuracy"]
    for column, color, width in curves:
        values = 100 * run.epochs[column]
        dashes = (0, (4, 3)) if column == "val/recall" else "-"
        upper.plot(epochs, values, color=color, linestyle=dashes, linewidth=width, label=METRIC[column].short)
        if column != "val/accuracy":
            lower.plot(epochs, values - accuracy, color=color, linestyle=dashes, linewidth=max(width, 1.4))
        if recorded is not None:
            marks = 100 * recorded[column]
            upper.plot(
                recorded["epoch"], marks, "o", color="none", markeredgecolor=BLACK, markersize=5.5, markeredgewidth=0.8
            )
    for point in stated:
        if point.column == "val/accuracy":
            _star(upper, point._replace(value=100 * point.value), BLACK)
    lower.axhline(0, color=SKY, linewidth=4.5, zorder=1)
    upper.set_ylabel("%")
    lower.set_ylabel("minus accuracy,\n% points", fontsize=10)
    lower.set_xlabel("epoch")
    upper.legend(loc="lower right", ncols=2)
    figure.align_ylabels()
    _marks(lower, recorded, stated)
    return figure


def together(curves: Sequence[Curve], column: str, title: str, scale: Literal["log", "linear"] = "log") -> Figure:
    """One metric of several runs, or of several groups of runs, on one chart.

    Args:
        curves: each with at least one run, and each run with at least one epoch.
        column: of metrics.csv, or `gap`.
        title: of the chart.
        scale: of the epochs: logarithmic, for runs of very different lengths, or not.
    """
    figure, axes = _chart(title, legend_rows=(len(curves) + 1) // 2)
    for curve in curves:
        epochs, mean, sd = mean_and_sd(curve.runs, column)
        low, high = (_placed(values, column) for values in (mean - sd, mean + sd))
        axes.plot(
            epochs, _placed(mean, column), color=curve.color, linestyle=curve.dashes, label=curve.label, linewidth=1.4
        )
        if len(curve.runs) > 1:
            axes.fill_between(epochs, low, high, color=curve.color, alpha=0.2, linewidth=0)
    if in_percent(column):
        _scale_percent(axes)
        axes.set_ylabel("%, by the log of the error")
    elif column == GAP:
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.set_ylabel("difference of losses")
    else:
        _scale_log(axes)
        axes.set_ylabel(column.partition("/")[2] + (" as a fraction" if column.endswith("error") else ""))
    if scale == "log":
        _scale_epochs(axes)
    figure.legend(loc="outside lower left", ncols=2)
    return figure


def learning_rate(curves: Sequence[Curve], title: str, epochs: int) -> Figure:
    """The rate that the optimizer had in each of the first `epochs`, with curves that coincide side by side."""
    figure, axes = _chart(title, legend_rows=len(curves))
    for number, curve in enumerate(curves):
        of_run = curve.runs[0].epochs
        shown = of_run["epoch"] <= epochs
        # Of curves that coincide the later ones are thinner, so that all can be seen.
        width = 1.5 + 1.8 * (len(curves) - 1 - number)
        axes.step(
            of_run["epoch"][shown],
            of_run["lr"][shown],
            where="mid",
            color=curve.color,
            linewidth=width,
            label=curve.label,
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel("learning rate")
    figure.legend(loc="outside lower left")
    return figure


def values_of(run: Run, column: str) -> Vector:
    """A column of metrics.csv, float64, one value per epoch, or the gap."""
    return run.epochs["val/loss"] - run.epochs["train/loss"] if column == GAP else run.epochs[column]


def mean_and_sd(runs: Sequence[Run], column: str) -> tuple[Vector, Vector, Vector]:
    """Of each epoch that all runs have: its number, the mean over the runs, and their standard deviation (n − 1; 0 for
    one run)."""
    length = min(len(run.epochs) for run in runs)
    values = np.stack([values_of(run, column)[:length] for run in runs])
    sd = values.std(0, ddof=1) if len(runs) > 1 else np.zeros(length)
    return runs[0].epochs["epoch"][:length], values.mean(0), sd


def _chart(title: str, legend_rows: int = 1) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT + 0.2 * legend_rows))
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel("epoch")
    return figure, axes


def _placed(values: Vector, column: str) -> Vector:
    """Where values lie on the axis of their column: a fraction in %, a loss or an error not under the edge."""
    if in_percent(column):
        return 100 * values
    return values if column == GAP else np.maximum(values, FLOOR)


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
    low, high = axes.dataLim.intervaly
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
    axes.plot(point.epoch, point.value, "*", color=color, markeredgecolor=BLACK, markersize=14, zorder=4, clip_on=False)


def _marks(axes: Axes, recorded: Points | None, stated: Sequence[Stated]) -> None:
    """Says below the chart what the markers are."""
    handles = []
    if recorded is not None:
        label = "outlined: the report's own run, as recorded"
        handles.append(Line2D([], [], marker="o", color="none", markeredgecolor=BLACK, markersize=5.5, label=label))
    if stated:
        label = "star: what the report's text states"
        handles.append(Line2D([], [], marker="*", color="none", markeredgecolor=BLACK, markersize=12, label=label))
    if handles and axes.figure is not None:
        axes.figure.legend(handles=handles, loc="outside lower left")


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names lines at their right ends, in their colours, one above the other where they end close together.

    Args:
        axes: with its scales and limits.
        ends: of each line its last value, its name and its colour.
    """
    to_axes = axes.transScale + axes.transLimits
    ends = sorted(ends)
    heights = [float(to_axes.transform((1.0, value))[1]) for value, _, _ in ends]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + SEPARATION)
    highest = 1.0
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], highest)
        highest = heights[index] - SEPARATION
    for height, (_, label, color) in zip(heights, ends, strict=True):
        axes.annotate(label, (1.01, height), xycoords="axes fraction", color=color, va="center", fontsize=10.5)
