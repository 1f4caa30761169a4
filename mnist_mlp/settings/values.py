"""A setting's value: as the command line spells it, and in the one sentence that says why it cannot be used."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

YAML_NAMES = {"null": None, "true": True, "false": False}


def spelled(value: object) -> object:
    """A value as the command line writes it: `null`, not `None`."""
    return next((name for name, constant in YAML_NAMES.items() if value is constant), value)  # `is`, because 1 == True


# What Hydra's command line reads as a text without quotes. It reads the words in the first group as something else.
PLAIN = re.compile(r"(?!(null|true|false|inf|nan)$)[a-z_/][\w./@%+-]*", re.IGNORECASE | re.ASCII)


def as_override(value: object) -> str:
    """A value as Hydra's command line writes it: Hydra parses `setting=` and this text to the same value.

    Args:
        value: a number, a text, null, true or false, or a list or dictionary of these; anything else becomes a text.
            Hydra's grammar has no form for a dictionary's key that is not a plain word or a number.
    """
    if value is None or isinstance(value, bool):
        return str(spelled(value))
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{as_override(key)}:{as_override(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(map(as_override, value))}]"
    text = str(value)
    if PLAIN.fullmatch(text):
        return text
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)  # backslashes count where they stand before a quote
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{trailing * chr(92)}'"


CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
LONGEST_VALUE = 80  # characters of a list or a mapping in a sentence


def counted(number: int, what: str) -> str:
    """Such as `1 epoch` and `2,000 epochs`."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def printable(text: str) -> str:
    """A text with \\n and such in place of what would break a line, command a terminal, or is no Unicode."""
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


class SettingError(ValueError):
    """A setting that cannot be used: its message is one sentence that names it, its value and what would be right."""

    def __init__(self, setting: str, value: object, problem: str) -> None:
        text = str(as_override(value) if isinstance(value, Mapping | DictConfig) else spelled(value))
        if isinstance(value, Mapping | Sequence) and not isinstance(value, str) and len(text) > LONGEST_VALUE:
            text = f"{text[:LONGEST_VALUE]}..."
        super().__init__(printable(f"{setting}={text}: {problem}"))


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite; nothing that comes after it means anything."""


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, (dict, Mapping, DictConfig)):  # a dict is known at once
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
