"""Saves a matplotlib figure as bytes. The same figure always gives the same bytes."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib import rc_context, rcParamsDefault
from matplotlib.figure import Figure


@contextmanager
def defaults() -> Iterator[None]:
    """While this is open, figures are made and saved as matplotlib has it by default, whatever a matplotlibrc says: the
    same numbers give the same bytes. A decorator too."""
    with rc_context({name: value for name, value in rcParamsDefault.items() if name not in OF_THE_PROCESS}):
        yield


# What matplotlib itself leaves out of a style.
OF_THE_PROCESS = ("backend", "backend_fallback", "interactive", "toolbar", "timezone", "tk.window_focus")


def png(figure: Figure) -> bytes:
    return _save(figure, "png", {"Software": None})


def svg(figure: Figure) -> bytes:
    """Without a date, and with names that are not random."""
    return _save(figure, "svg", {"Date": None})


def _save(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    target = io.BytesIO()
    with defaults(), rc_context({"svg.hashsalt": "mnist-mlp"}):
        figure.savefig(target, format=kind, metadata=metadata)
    return target.getvalue()
