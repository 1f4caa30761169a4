"""Puts the results in short into a Markdown file, such as a README, between its two marks."""

import os
from pathlib import Path

from mnist_mlp.run.directory import durable_write
from mnist_mlp.settings import SettingError

BEGIN, END = "<!-- results: what `mnist-report DIR --readme FILE` writes -->", "<!-- end of results -->"


def write_readme(results: str, directory: Path, readme: Path) -> None:
    """Puts the results between the file's two marks; at its end with marks where it has none, and into a new file
    where there is none. `{directory}` in them becomes the page's place, as seen from the file."""
    before, after = around(readme)
    place = Path(os.path.relpath(directory, readme.parent)).as_posix()
    durable_write(readme, f"{before}\n\n{results.replace('{directory}', place)}\n\n{after}".encode())


def around(readme: Path) -> tuple[str, str]:
    """The file up to its first mark, and from its second mark on.

    Raises:
        SettingError: it cannot be read or made, or has one mark without the other behind it.
    """
    if readme.suffix.lower() not in (".md", ".markdown"):
        raise SettingError("--readme", readme, "must be a Markdown file, such as README.md, into which the results go")
    try:
        text = readme.read_text("utf-8") if readme.exists() or not readme.parent.is_dir() else ""
    except OSError as error:
        raise SettingError("--readme", readme, f"cannot be read or made ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SettingError("--readme", readme, f"is no text in UTF-8 ({error})") from error
    if BEGIN not in text and END not in text:
        return f"{text.rstrip()}\n\n{BEGIN}".lstrip(), f"{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        problem = f"has one mark without the other: give it a line {BEGIN} and after it a line {END}, or neither"
        raise SettingError("--readme", readme, problem)
    return before + begin, end + after
