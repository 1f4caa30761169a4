"""What recorded values must be: tables of fields with their rules, and what in a value breaks them.

run.json, config.yaml and checkpoints may be damaged, or written by somebody else. Each is held against its table once,
where it is read; whoever uses it then need not look again.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mnist_mlp.run.metrics import METRIC, Form
from mnist_mlp.settings import Rule, spelled

LONGEST = 60  # characters of a value in a sentence

# Of a mapping's fields those that are named; `OTHERS` stands for every field that is not. A list has one kind of item.
OTHERS = "*"
Kind = Rule | Mapping[str, Any] | list[Any]


class Whole(dict[str, Any]):
    """Of a mapping whose named fields must all be there."""


def _rule(kind: type | tuple[type, ...], wanted: str, holds: Callable[[Any], bool] = lambda _: True) -> Rule:
    """True and false are no numbers."""
    of_kind = kind if isinstance(kind, tuple) else (kind,)
    return Rule(
        lambda value: isinstance(value, of_kind) and (bool in of_kind or not isinstance(value, bool)) and holds(value),
        wanted,
    )


ANYTHING = Rule(lambda _: True, "anything")
TEXT = _rule(str, "a text")
TRUTH = _rule(bool, "true or false")
COUNT = _rule(int, "a whole number of at least 0", lambda value: 0 <= value < 2**64)
FROM_ONE = _rule(int, "a whole number of at least 1", lambda value: 1 <= value < 2**63)
ANY_NUMBER = _rule((int, float), "a number", lambda value: isinstance(value, float) or abs(value) < 2**63)
NUMBER = _rule((int, float), "a finite number", lambda value: abs(value) < 1e300)
AT_LEAST_ZERO = _rule((int, float), "a number of at least 0", lambda value: 0 <= value < 1e300)
FRACTION = _rule((int, float), "a number from 0 to 1", lambda value: 0 <= value <= 1)
OF_FORM: dict[Form, Rule] = {
    "count": _rule((int, float), COUNT.wanted, lambda value: 0 <= value < 2**63 and value == int(value)),
    "loss": NUMBER,  # a loss of the user's own may be negative
    "fraction": FRACTION,
    "rate": AT_LEAST_ZERO,
    "seconds": AT_LEAST_ZERO,
}
# One epoch: the columns of metrics.csv by their forms. A metric of the user's own may be anything, NaN too.
ROW: dict[str, Kind] = {**{metric.name: OF_FORM[metric.form] for metric in METRIC.values()}, OTHERS: ANY_NUMBER}


def choice(*options: str) -> Rule:
    return Rule(lambda value: isinstance(value, str) and value in options, f"one of {', '.join(options)}")


def optional(rule: Rule) -> Rule:
    return Rule(lambda value: value is None or rule.accepts(value), f"{rule.wanted}, or null")


def fault(value: Any, kind: Kind, name: str = "") -> str | None:
    """What in a value is not of its kind, as `best.epoch=null, which must be a whole number`; None where all is.

    Args:
        value: such as JSON has.
        kind: what it must be. A field that is not there is none that is wrong, but in a `Whole`.
        name: of the value.
    """
    if isinstance(kind, Rule):
        return None if kind.accepts(value) else f"{name}={short(value)}, which must be {kind.wanted}"
    if isinstance(kind, list):
        if not isinstance(value, list | tuple):
            return f"{name}={short(value)}, which must be a list"
        items = [(item, kind[0], f"{name}[{number}]") for number, item in enumerate(value)]
    else:
        if not isinstance(value, Mapping):
            return f"{name}={short(value)}, which must have fields".removeprefix("=")
        if isinstance(kind, Whole) and (missing := [key for key in kind if key not in {*value, OTHERS}]):
            return f"there is no {_field(name, missing[0])}"
        known = [(key, kind.get(key, kind.get(OTHERS))) for key in value]
        items = [(value[key], of, _field(name, key)) for key, of in known if of is not None]
    return next((found for item in items if (found := fault(*item)) is not None), None)


def _field(name: str, key: object) -> str:
    return f"{name}.{key}".lstrip(".")


def short(value: Any) -> str:
    """A value for a sentence."""
    text = " ".join(str(spelled(value)).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
