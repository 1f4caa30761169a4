"""What a run measures each epoch: the columns of `metrics.csv`, what each is called and how it is shown.

This is the one table of them. A new column takes a row here, and a value that the classifier measures under its name.
"""

from typing import Literal, NamedTuple

Form = Literal["count", "loss", "fraction", "rate", "seconds"]
Row = dict[str, float]  # one epoch: column -> value


class Metric(NamedTuple):
    """One column.

    Args:
        name: of the column, and TensorBoard's tag.
        title: in words.
        form: what kind of number it is; losses are means over samples, fractions lie in 0..1.
        chart: TensorBoard's chart that shows it beside others; None where its only chart is its own.
    """

    name: str
    title: str
    form: Form
    chart: str | None = None

    @property
    def short(self) -> str:
        """Its title without the set that it is measured on, such as `accuracy` or `F1`."""
        return self.title.partition(" ")[2] if "/" in self.name else self.title

    def scaled(self, value: float) -> float:
        """A value in the unit that tables show: percent for a fraction."""
        return 100 * value if self.form == "fraction" else value

    @property
    def digits(self) -> int:
        """How many digits after the point tables show of a scaled value."""
        return {"count": 0, "loss": 4, "fraction": 2, "rate": 6, "seconds": 1}[self.form]

    def text(self, value: float) -> str:
        """A value as tables show it: a loss with four digits, a fraction in percent."""
        return f"{value:g}" if self.form == "rate" else f"{self.scaled(value):.{self.digits}f}"


METRICS = (
    Metric("epoch", "epoch", "count"),
    Metric("train/loss", "training loss", "loss", "loss"),
    Metric("train/error", "training error", "fraction", "error"),
    Metric("val/loss", "validation loss", "loss", "loss"),
    Metric("val/error", "validation error", "fraction", "error"),
    Metric("val/accuracy", "validation accuracy", "fraction"),
    Metric("val/precision", "validation precision", "fraction"),
    Metric("val/recall", "validation recall", "fraction"),
    Metric("val/f1", "validation F1", "fraction"),
    Metric("lr", "learning rate", "rate"),
    Metric("seconds", "seconds", "seconds"),
)
COLUMNS = tuple(metric.name for metric in METRICS)
METRIC = {metric.name: metric for metric in METRICS}
CLASSIFICATION = ("accuracy", "precision", "recall", "f1")  # what is measured on the validation and on the test set
