"""Reads files that may be damaged or somebody else's: no pipe is waited for, and nothing is nested without end."""

import errno
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mnist_mlp.surroundings import one_line

DEEPEST = 20  # levels of nesting
MOST = 100_000  # values in one file
UNLOOKED = 10_000  # characters of YAML that cannot nest so deep that its parser, which is written in C, crashes


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's quick loader, without its way of taking the last of two values for one key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        _refuse_twice([key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
        return dict(super().construct_mapping(node, deep))


def read_file(path: Path) -> bytes:
    """The content of an ordinary file.

    Raises:
        FileNotFoundError: there is nothing of that name.
        OSError: it cannot be read, or is no ordinary file, such as a directory, a pipe or a link to nothing.
    """
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return path.read_bytes()
    except FileNotFoundError:
        if not path.is_symlink():
            raise
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG):  # of a path like FILE/run.json, or one that cannot be
            raise FileNotFoundError(error.errno, error.strerror, os.fspath(path)) from error
        raise
    raise OSError(errno.EINVAL, "it is no ordinary file", os.fspath(path))


def parse_json(content: bytes) -> Any:
    """Raises: ValueError, where it is no JSON, or `not_plain`."""
    try:
        value = json.loads(content, object_pairs_hook=_each_once)
    except RecursionError as error:
        raise ValueError(f"it is nested more than {DEEPEST} deep") from error
    return _plain(value)


def parse_yaml(content: bytes) -> Any:
    """With PyYAML's loader, which is quick, and takes `1e-5` for a text.

    Raises:
        ValueError: it is no YAML, or `not_plain`.
    """
    try:
        text = content.decode()
        if len(text) > UNLOOKED:
            _refuse_deep(text)
        value = yaml.load(text, Loader)
    except Exception as error:  # PyYAML raises almost anything for a text with tags such as !!bool
        raise ValueError(one_line(error) or type(error).__name__) from error
    return _plain(value)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_twice([key for key, _ in pairs])
    return dict(pairs)


def _refuse_twice(keys: list[str]) -> None:
    if len(set(keys)) < len(keys):
        key = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"it has {key!r} twice")


def _refuse_deep(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")


def _plain(value: Any) -> Any:
    if (reason := not_plain(value)) is not None:
        raise ValueError(reason)
    return value


def not_plain(value: Any) -> str | None:
    """Why a value is more than numbers, texts, lists and mappings, or more of them than a record has; None where it is
    not. A file may nest, or refer to itself, until whoever walks through it runs out of stack or time."""
    left, waiting = MOST, [(value, 0)]
    while waiting:
        node, depth = waiting.pop()
        left -= 1
        if depth > DEEPEST:
            return f"it is nested more than {DEEPEST} deep"
        if left < 0:
            return f"it has more than {MOST:,} values"
        if isinstance(node, Mapping):
            waiting += [(item, depth + 1) for pair in node.items() for item in pair]
        elif isinstance(node, list | tuple):
            waiting += [(item, depth + 1) for item in node]
        elif isinstance(node, str):
            if not node.isascii() and any("\ud800" <= character <= "\udfff" for character in node):
                return "it has a text that is no Unicode"
        elif not isinstance(node, int | float | None):
            return f"it has a value of the type {type(node).__name__}"
        elif isinstance(node, int) and not -(2**63) <= node < 2**64:
            return "it has a number of more than 64 bits"
    return None
