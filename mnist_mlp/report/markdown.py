"""Markdown of texts and tables: what a run's record says is shown as it is, and never obeyed."""

import re
from collections.abc import Collection, Sequence


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its first column to the left and, where they hold numbers, the others to the right."""
    numbers = [all(re.match(r"[\d.,±−+ ()]*$", row[index]) for row in rows) for index in range(len(heading))]
    rule = ["---:" if index and number else "---" for index, number in enumerate(numbers)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heading, rule, *rows))


def folded(summary: str, blocks: Sequence[str]) -> list[str]:
    """Blocks that are shown when the summary, plain text, is clicked. GitHub knows these two lines, and `html.py`."""
    return [f"<details><summary>{summary}</summary>", *filter(None, blocks), "</details>"]


def named(name: str) -> str:
    """A run's name: as code, or, with letters in it that end code or a table's cell, escaped."""
    return f"`{name}`" if re.fullmatch(r"[\w=,./+:@\[\]() -]+", name, re.ASCII) else plain(name)


def some(names: Sequence[str], most: int) -> str:
    """The first of these, and how many more there are."""
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")


def spanned(numbers: Collection[int]) -> str:
    """From the least to the greatest, such as `12 to 20`, or `12` where they are the same; "" where there is none."""
    return " to ".join(map(str, dict.fromkeys((min(numbers), max(numbers))))) if numbers else ""


def plain(value: object) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>&|~$!#])", r"\\\1", control(str(value)))


def control(text: str) -> str:
    """The text on one line: what a terminal or a browser would act on, such as a newline, as a space."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def anchor(heading: str) -> str:
    """A heading's name in links, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
