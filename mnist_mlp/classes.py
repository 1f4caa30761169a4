"""The classes that a run names: held against their signatures, and made once on trial, before there is a directory.

Imports PyTorch, as what it looks at does. `settings.check` has looked at the arguments' names before, in the source.
"""

import contextlib
import difflib
import inspect
import os
import pkgutil
import pydoc
import types
import warnings
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
import yaml
from hydra.errors import InstantiationException
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mnist_mlp.datamodule import MNISTDataModule
from mnist_mlp.parts import Parts, build, make
from mnist_mlp.run.checkpoint import not_storable
from mnist_mlp.run.streams import random_states, set_random_states
from mnist_mlp.run.trainer import ONE_PROCESS, QUIET, quiet
from mnist_mlp.settings import (
    GIVEN,
    Rule,
    SettingError,
    as_override,
    built,
    cuts,
    ended_itself,
    is_number,
    refuse_arguments,
)
from mnist_mlp.surroundings import one_line

# What a value of Python's plain types is in YAML.
PLAIN: dict[Any, Rule] = {
    bool: Rule(lambda value: isinstance(value, bool), "true or false"),
    int: Rule(lambda value: is_number(value) and isinstance(value, int), "a whole number"),
    float: Rule(is_number, "a number"),
    str: Rule(lambda value: isinstance(value, str), "a text"),
    type(None): Rule(lambda value: value is None, "null"),
}
PYTHONS = ("builtins", "collections.abc")  # modules of Python's own iterables
UNIONS = (Union, types.UnionType)


def check_classes(config: DictConfig) -> None:
    """Checks what is given to each class that the configuration names, and to the Trainer.

    Args:
        config: settled.

    Raises:
        SettingError: there is no such class, it does not take an argument, or a value is not what its annotation says;
            or it cannot be made of what it is given.
    """
    for place, node in built(config):
        _check_arguments(place, node)
    taken = inspect.signature(Trainer).parameters
    plain: Any = OmegaConf.to_container(config.trainer)
    settings = {name: value for name, value in plain.items() if name in taken}
    for name, value in settings.items():
        _check_value(f"trainer.{name}", value, taken[name].annotation, "Lightning's Trainer")
    states = random_states()
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again when the run builds what it uses
            _try(config, settings)
    except SystemExit as error:
        raise ended_itself(error) from error
    finally:
        set_random_states(states)


def _try(config: DictConfig, trainer: Mapping[str, Any]) -> None:
    """Makes each class, and makes one step with it.

    Raises:
        SettingError: for whatever one of them raises.
    """
    try:
        parts = build(config)
    except InstantiationException as error:  # whatever a user's own class raises, in Hydra's words
        cause = error.__cause__ or error
        if isinstance(cause, SettingError):
            raise cause from error
        raise
    _try_step(config, parts)
    _refuse_a_last_image(config, parts)
    kept: dict[str, Any] = {"optimizer": parts.optimizer, "data": parts.datamodule}
    if parts.make_scheduler is not None and config.scheduler.get("total_steps", 0) is not None:
        scheduler = make("scheduler", parts.make_scheduler, parts.optimizer)
        make("scheduler", scheduler.step, *([0.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
        kept["scheduler"] = scheduler
    for group, part in (kept | {f"callbacks.{name}": callback for name, callback in parts.callbacks.items()}).items():
        state = None
        with contextlib.suppress(Exception):  # a callback may have none before there is a Trainer
            state = part.state_dict()
        if (reason := not_storable(state)) is not None:
            problem = f"keeps a state that no checkpoint can hold, which has plain values and tensors only ({reason})"
            raise SettingError(group, type(part).__name__, problem)
    make("trainer", Trainer, **{**QUIET, **trainer, "logger": False, "plugins": [ONE_PROCESS()]})


def _try_step(config: DictConfig, parts: Parts) -> None:
    """Trains on two empty images.

    Raises:
        SettingError: backbone and loss give nothing that could be trained.
    """
    parts.backbone.train()

    def loss() -> float:
        parts.optimizer.zero_grad()
        value: torch.Tensor = parts.loss(parts.backbone(torch.zeros(2, 1, 28, 28)), torch.tensor([0, 1]))
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    try:
        loss()
    except Exception as error:  # whatever a user's own class raises
        raise SettingError("model", config.network, f"cannot be trained ({one_line(error)})") from error
    with contextlib.suppress(Exception):  # on the device that it is for, an optimizer may be able to
        parts.optimizer.step(loss)


def _refuse_a_last_image(config: DictConfig, parts: Parts) -> None:
    """Raises: SettingError, where an epoch ends with a minibatch of one image, and the backbone takes two, as with
    batch normalization."""
    if not isinstance(parts.datamodule, MNISTDataModule) or cuts(config):
        return
    try:
        parts.backbone(torch.zeros(1, 1, 28, 28))
    except Exception as error:  # the same with two has worked
        parts.datamodule.prepare_data()
        parts.datamodule.setup()
        images, size = len(parts.datamodule.splits["train"][1]), parts.datamodule.batch_size
        if size > 1 and images % size != 1:
            return
        problem = f"leaves a last minibatch of one image (of {images:,})" if size > 1 else "is one image"
        problem += f", on which the network cannot be trained ({one_line(error)}): give another one"
        problem += f", or data.train_size={images - 1}" if size > 1 else ""
        raise SettingError("data.batch_size", size, problem) from error


def _check_arguments(place: str, node: DictConfig) -> None:
    target = str(node["_target_"])
    try:
        found = pydoc.locate(target)
    except pydoc.ErrorDuringImport as error:
        problem = f"cannot be imported ({type(error.value).__name__}: {error.value})"
        raise SettingError(f"{place}._target_", target, problem) from error
    if not callable(found):
        problem = "is not a class" if found else _not_there(target)
        raise SettingError(f"{place}._target_", target, problem)
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # of some classes that are written in C
        return
    with contextlib.suppress(Exception):  # an annotation may name what is imported for a type checker only
        signature = inspect.signature(found, eval_str=True)
    arguments = signature.parameters
    if not any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values()):
        refuse_arguments(place, node, tuple(arguments))
    values: Any = OmegaConf.to_container(node)
    for name, argument in arguments.items():
        if name in values:
            _check_value(f"{place}.{name}", values[name], argument.annotation, target)
        elif (
            argument.default is argument.empty
            and argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY)
            and not (values.get("_partial_") or values.get("_args_") or name in GIVEN)
        ):
            raise SettingError(place, target, f"takes {name}, which has no default: add +{place}.{name}=VALUE")


def _not_there(target: str) -> str:
    """Which part of a class's full name is not there, with a close name where there is one."""
    first, *others = target.split(".")
    owner: Any = pydoc.locate(first)
    if owner is None:
        close = difflib.get_close_matches(first, [module.name for module in pkgutil.iter_modules()], n=1)
        problem = f"there is no module {first} (looked for in the current directory and among what is installed)"
        return problem + (f"; did you mean {close[0]}?" if close else "")
    path = first
    for name in others:
        if (inner := pydoc.locate(f"{path}.{name}")) is None:
            break
        owner, path = inner, f"{path}.{name}"
    close = difflib.get_close_matches(name, dir(owner), n=1)
    return f"{path} has no {name}" + (f"; did you mean {close[0]}?" if close else "")


def _check_value(setting: str, value: Any, annotation: Any, taker: str) -> None:
    if _fits(value, annotation):
        return
    problem = f"{taker} takes {_wanted(annotation)}"
    if isinstance(value, str) and not isinstance(yaml.safe_load(value), str):
        problem += "; a number from the environment is written ${oc.decode:${oc.env:NAME}}"
    raise SettingError(setting, as_override(value) if isinstance(value, list | dict) else value, problem)


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value may be what an annotation says. Of a class that is not Python's own this cannot tell."""
    kind, inner = get_origin(annotation) or annotation, get_args(annotation)
    if isinstance(value, dict) and "_target_" in value:
        return True  # what it builds is looked at by itself
    if annotation is None:
        return value is None
    if kind is Annotated:
        return _fits(value, inner[0])
    if kind is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inner)
    if kind in UNIONS:
        return any(_fits(value, part) for part in _told(inner))
    return not isinstance(kind, type) or _is_of(value, kind, inner)


def _is_of(value: Any, kind: type, inner: tuple[Any, ...]) -> bool:
    """Whether a plain value may be what a class says, such as `list[float]`: `kind` is list, `inner` (float,)."""
    if kind in PLAIN:
        return PLAIN[kind].accepts(value)
    if issubclass(kind, Mapping):
        return isinstance(value, dict)
    if issubclass(kind, os.PathLike):
        return isinstance(value, str)
    if not (issubclass(kind, Iterable) and (issubclass(kind, tuple) or kind.__module__ in PYTHONS)):
        return True
    if not isinstance(value, list):
        return False
    if issubclass(kind, tuple) and inner and Ellipsis not in inner:
        return len(value) == len(inner) and all(map(_fits, value, inner))
    return all(_fits(item, inner[0]) for item in value if inner)


def _told(parts: tuple[Any, ...]) -> Iterable[Any]:
    """Those parts of a union that can be written in YAML; all, where there are none but null."""
    told = [part for part in parts if part in PLAIN or get_origin(part) is not None]
    return told if set(told) - {type(None)} else parts


def _wanted(annotation: Any) -> str:
    """An annotation in words."""
    kind, inner = get_origin(annotation), get_args(annotation)
    if kind is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if kind in UNIONS:
        return " or ".join(dict.fromkeys(map(_wanted, _told(inner))))
    if annotation in PLAIN:
        return PLAIN[annotation].wanted
    if kind is not None and issubclass(kind, tuple) and Ellipsis not in inner:
        return f"a list of {len(inner)}: {', '.join(map(_wanted, inner))}"
    if kind is not None and issubclass(kind, Iterable) and not issubclass(kind, Mapping):
        return f"a list of {_wanted(inner[0])}" if inner else "a list"
    return f"a {getattr(annotation, '__name__', annotation)}"
