"""Saves a matplotlib figure as bytes. The same figure always gives the same bytes."""

import io

from matplotlib import rc_context
from matplotlib.figure import Figure


def png(figure: Figure) -> bytes:
    return _save(figure, "png", {"Software": None})


def svg(figure: Figure) -> bytes:
    """Without a date, and with names that are not random."""
    return _save(figure, "svg", {"Date": None})


def _save(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    target = io.BytesIO()
    with rc_context({"svg.hashsalt": "mnist-mlp"}):
        figure.savefig(target, format=kind, metadata=metadata)
    return target.getvalue()
