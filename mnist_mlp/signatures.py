"""What a class takes, read from its source: that answers at once, where importing PyTorch takes seconds."""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

LINKS = 5  # modules from which a name may be handed on


@cache
def parameters(path: str) -> tuple[str, ...] | None:
    """The arguments that a class or a function takes by name.

    Args:
        path: such as torch.optim.Adam.

    Returns:
        None where its source does not say: it is not found, takes any keyword, or inherits its `__init__`.
    """
    definition = _definition(path.split("."), LINKS)
    if isinstance(definition, ast.ClassDef):
        made = (node for node in definition.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
        definition = next(made, None)
    if definition is None or definition.args.kwarg is not None:
        return None
    names = [argument.arg for argument in [*definition.args.args, *definition.args.kwonlyargs]]
    return tuple(names[definition.name == "__init__" :])  # without self


def _definition(path: list[str], links: int) -> ast.ClassDef | ast.FunctionDef | None:
    *modules, name = path
    file = _source(modules) if modules and links else None
    if file is None:
        return None
    try:
        statements = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return None
    for node in statements:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    inside = file.name == "__init__.py"
                    above = modules[: len(modules) - node.level + inside] if node.level else []
                    return _definition([*above, *(node.module or "").split("."), alias.name], links - 1)
    return None


def _source(modules: list[str]) -> Path | None:
    """The file of a module; nothing is imported."""
    try:
        found = find_spec(modules[0])
    except (ImportError, ValueError):
        return None
    if found is None or found.origin is None:
        return None
    place = Path(found.origin)
    place = place.parent if place.name == "__init__.py" else place.with_suffix("")
    place = place.joinpath(*modules[1:])
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)
