"""Holds a run's settings against their rules, and against what the classes take that it names."""

import difflib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from mnist_mlp.settings.composed import defaults, groups, options, without_hydra
from mnist_mlp.settings.rules import (
    BUILT,
    ELSEWHERE,
    GIVEN,
    GIVEN_TO_TRAINER,
    HYDRAS,
    MAY_BE_NOTHING,
    NAMED,
    OUR_DATA,
    OUR_LOSS,
    PARTIAL,
    REMOVED_FROM_TRAINER,
    TAKEN_OUT,
    TRAINER,
    Rule,
    is_number,
    rules_of,
)
from mnist_mlp.settings.values import SettingError, flatten, spelled
from mnist_mlp.signatures import parameters


def refuse_unread(config: DictConfig) -> None:
    """Looks for what nothing would read: a key that no part of a run takes, or an argument that no class takes.

    Raises:
        SettingError: there is one.
    """
    stated = defaults()
    ours = {name: node for name, node in stated.items() if name not in ("defaults", "hydra")}
    _refuse_keys(config, [*groups(), *ours], flatten(ours))
    for group in (*BUILT, *MAY_BE_NOTHING, "trainer", "tensorboard"):
        _refuse_group(config, group)
    for name, callback in (_raw(config, "callbacks") if config.get("callbacks") else {}).items():
        if callback is not None and not (isinstance(callback, Mapping) and "_target_" in callback):
            problem = "must name its class: +callbacks.NAME._target_=lightning.pytorch.callbacks.EarlyStopping"
            raise SettingError(f"callbacks.{name}", callback, problem)
    for place, node in built(config):
        target = node.get("_target_")
        if not isinstance(target, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", target):
            problem = "must be the full name of a class, such as torch.optim.Adam"
            raise SettingError(f"{place}._target_", target, problem)
        _refuse_hydras(place, node)
        if (taken := parameters(target)) is not None:
            refuse_arguments(place, node, taken)


def _refuse_hydras(place: str, node: DictConfig) -> None:
    """Looks among Hydra's own keys, which say how a class is built, for one that cannot be."""
    for name, rule in HYDRAS.items():
        if name in node and not rule.accepts(value := _raw(node, name)):
            raise SettingError(f"{place}.{name}", value, f"must be {rule.wanted}")
    group, _, name = place.partition(".")
    partial = node.get("_partial_")
    if place in PARTIAL and not partial and str(node["_target_"]).startswith("torch.optim."):
        raise SettingError(f"{place}._partial_", partial, f"must be true: the run gives it {PARTIAL[place]}")
    if partial and (place in set(BUILT) - PARTIAL.keys() or (group in NAMED and name.isidentifier())):
        raise SettingError(f"{place}._partial_", partial, "must be left out: a run takes the object, as it is built")


def _refuse_keys(config: DictConfig, known: Sequence[str], inner: Iterable[str]) -> None:
    for key in map(str, config):
        if key not in (*known, "hydra") and not _is_referred_to(config, key):
            problem = no_such_setting(key, [*known, *inner])
            if HydraConfig.instance().cfg is not None and key in HydraConfig.get().runtime.choices:
                problem = "nothing reads this group: with a first line `# @package _global_` its files set others"
            raise SettingError(key, _raw(config, key), problem)


def _refuse_group(config: DictConfig, group: str) -> None:
    node, stated = config.get(group), defaults().get(group) or {}
    if node is None and group in ("tensorboard", *MAY_BE_NOTHING):  # the oldest records have no tensorboard
        return
    if node is None and group in BUILT:
        raise SettingError(group, None, f"is part of every run: choose an option, such as {group}={options(group)[0]}")
    if not isinstance(node, DictConfig):
        example = next((f"{group}.{name}" for name in stated), f"{group}.NAME=VALUE")
        raise SettingError(group, node, f"must be a group of settings, such as {example}")
    if group in BUILT and "_target_" not in node and (node or group not in MAY_BE_NOTHING):
        setting, value = next(iter(flatten(_raw(config, group)).items()), ("_target_", None))
        problem = (
            f"{group} names no class: choose an option, such as {group}={options(group)[0]}, or give it a _target_"
        )
        raise SettingError(f"{group}.{setting}", value, problem)
    if group == "trainer":
        _refuse_names(config, group, stated, parameters(TRAINER))
    if group == "tensorboard":
        _refuse_names(config, group, stated, ())


def _refuse_names(config: DictConfig, group: str, stated: Iterable[str], taken: tuple[str, ...] | None) -> None:
    """Looks in a group for a name that is neither stated in `conf/train.yaml` nor taken by the group's class, whose
    arguments may be unknown (None)."""
    known = [f"{group}.{name}" for name in (*stated, *(taken or ())) if name not in GIVEN_TO_TRAINER]
    for setting, value in flatten({group: _raw(config, group)}).items():
        name = setting.split(".")[1]
        if name in GIVEN_TO_TRAINER:
            raise SettingError(setting, value, f"is not taken from the configuration: {GIVEN_TO_TRAINER[name]}")
        if f"{group}.{name}" not in (*known, "trainer.compile") and taken is not None:  # that one is of old records
            raise SettingError(setting, value, no_such_setting(setting, known))


def built(node: Any, place: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every group of settings that names the class that it builds, with its place, such as `callbacks.stop`."""
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        if place and "_target_" in node:
            yield place, node
        for key in map(str, node):
            if place or key != "hydra":
                yield from built(node._get_node(key), f"{place}.{key}".lstrip("."))
    elif isinstance(node, ListConfig) and not node._is_none() and not node._is_missing():
        for number in range(len(node)):
            yield from built(node._get_node(number), f"{place}[{number}]")


def refuse_arguments(place: str, node: DictConfig, taken: Sequence[str]) -> None:
    """Raises: SettingError, where the class that `node` names does not take one of the arguments."""
    for name in map(str, node):
        if not name.startswith("_") and name not in taken and (place, name) not in TAKEN_OUT:
            known = [argument for argument in taken if argument not in GIVEN]
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known) or 'no arguments'}"
            setting = f"{place}.{name}"
            if (experiment := _experiment_that_sets(setting)) is not None:
                hint = f"experiment={experiment} sets it: ~{setting} leaves it out"
            raise SettingError(setting, _raw(node, name), f"{node.get('_target_')} takes no {name}; {hint}")


def _experiment_that_sets(setting: str) -> str | None:
    """The experiment that was chosen, where its file has this setting and the command line has not."""
    if HydraConfig.instance().cfg is None:
        return None
    hydra = HydraConfig.get()
    if any(override.lstrip("+").startswith(f"{setting}=") for override in hydra.overrides.task):
        return None
    experiment = str(hydra.runtime.choices.get("experiment"))
    for source in hydra.runtime.config_sources:
        if source.schema in ("pkg", "file"):
            place = files(source.path) if source.schema == "pkg" else Path(source.path)
            file = place / "experiment" / f"{experiment}.yaml"
            if file.is_file():
                stated = yaml.safe_load(file.read_text("utf-8"))
                return experiment if isinstance(stated, dict) and setting in flatten(stated) else None
    return None


def _is_referred_to(config: DictConfig, key: str) -> bool:
    """Whether another setting takes its value from this one, as in `model.hidden=[${width},${width}]`."""
    others = [str(name) for name in config if name not in (key, "hydra")]
    written = OmegaConf.to_yaml(OmegaConf.masked_copy(config, others))
    return re.search(rf"\$\{{{re.escape(key)}[.}}\[]", written) is not None


def _raw(node: DictConfig, key: str) -> Any:
    """A value as it was given, before interpolations are resolved."""
    return OmegaConf.to_container(node, resolve=False)[key]  # type: ignore[call-overload,index]


def check(config: DictConfig) -> None:
    """Checks the settings of a run.

    Raises:
        SettingError: for the first that breaks its rule, that nothing reads, or that does not go with another.
    """
    refuse_unread(config)
    check_rules(config, rules_of(config))
    _refuse_numbers(config)
    steps = config.get("trainer", {}).get("steps")
    if steps in ("native", "captured", "compiled"):
        refused = single_steps(config) or (other_loss(config) if steps == "native" else None)
        if refused:
            raise SettingError("trainer.steps", steps, f"{refused}; trainer.steps=auto does without")


def check_rules(config: DictConfig, rules: Mapping[str, Rule]) -> None:
    """Checks every setting that has one of these rules.

    Raises:
        SettingError: for the first that breaks its rule.
    """
    for setting, rule in rules.items():
        node, _, leaf = setting.rpartition(".")
        parent = OmegaConf.select(config, node) if node else config
        if node == "tensorboard" and node not in config:
            continue  # the record of a run from before there were such settings
        if not isinstance(parent, DictConfig):
            raise SettingError(node, parent, f"must be a group of settings, such as {setting}")
        if leaf not in parent:
            continue
        value = parent[leaf]
        value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        if not rule.accepts(value):
            large = isinstance(value, int) and value >= 2**63 and rule.wanted.startswith("a whole number of at least")
            below = ", and below 2**63" if large and "2**" not in rule.wanted else ""
            raise SettingError(setting, value, f"must be {rule.wanted}{below}{_of_environment(parent, leaf)}")


def _of_environment(node: DictConfig, leaf: str) -> str:
    """How to write a number that comes from the environment, where this value is such a text."""
    given = _raw(node, leaf)
    raw = next((text for text in map(str, given if isinstance(given, list) else [given]) if "${oc.env:" in text), "")
    if not raw or "${oc.decode:" in raw:
        return ""
    return f"; a variable of the environment is a text, and becomes a value by ${{oc.decode:{raw}}}"


def _refuse_numbers(config: DictConfig) -> None:
    """Raises: SettingError, for a number that nothing can compute with."""
    for setting, value in flatten(OmegaConf.to_container(without_hydra(config), resolve=False)).items():
        for number in _numbers(value):
            if number != number:
                raise SettingError(setting, value, "must be a number, and nan is none")
            bits = 64 if setting.endswith("seed") else 63  # of a positive number, as PyTorch takes them
            if isinstance(number, int) and not -(2**63) <= number < 2**bits:
                raise SettingError(setting, value, f"must be a number below 2**{bits} and of at least -2**63")


def _numbers(value: object) -> Iterator[int | float]:
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, Mapping):
        yield from _numbers(list(value.values()))
    elif is_number(value):
        yield value  # type: ignore[misc]


# Values of the Trainer's settings with which Lightning needs no look at single minibatches; any other value takes it.
OF_GROUPS: dict[str, tuple[Any, ...]] = {
    "limit_train_batches": (None, 1.0),
    "val_check_interval": (None, 1.0),
    "overfit_batches": (None, 0),
    "fast_dev_run": (None, False, 0),
    "accumulate_grad_batches": (None, 1),
    "detect_anomaly": (None, False),
    "precision": (None, 32, "32", "32-true"),
}
# Those that leave a run less than it says it is.
CUTS = ("fast_dev_run", "overfit_batches", "limit_train_batches", "limit_val_batches", "limit_test_batches")


def cuts(config: DictConfig) -> list[str]:
    """The settings that cut this run down, as `trainer.fast_dev_run`."""
    return [f"trainer.{name}" for name in CUTS if not _whole_run(name, config.trainer.get(name))]


def _whole_run(name: str, value: object) -> bool:
    if name.startswith(("limit", "val_check")):
        return value is None or (isinstance(value, float) and value == 1)  # the number 1 is one batch
    return value in OF_GROUPS[name]


def single_steps(config: DictConfig) -> str | None:
    """Why each minibatch must be a step of Lightning's own, as a clause; None where a setting does not ask for it."""
    for name in OF_GROUPS:
        value = config.trainer.get(name)
        if not _whole_run(name, value):
            return f"trainer.{name}={spelled(value)} is for steps that Lightning makes one by one"
    for name, usual in (("interval", "epoch"), ("frequency", 1)):
        value = (config.get("scheduler") or {}).get(name, usual)
        if value != usual:
            return f"scheduler.{name}={value} is for steps that Lightning makes one by one"
    return None


def other_loss(config: DictConfig) -> str | None:
    """Why native steps cannot take the loss, as a clause; None where they can."""
    loss = config.get("loss", {})
    given = {name: value for name, value in loss.items() if value not in (None, 0)}
    if given.pop("_target_", OUR_LOSS) == OUR_LOSS and not given:
        return None
    return "native steps are for cross-entropy without label smoothing and class weights"


def settle(config: DictConfig) -> None:
    """Brings a run's configuration into the form that `config.yaml` records: checked, resolved, with absolute paths.

    Raises:
        SettingError: a setting breaks its rule.
    """
    check(config)
    OmegaConf.resolve(config)
    known = [*groups(), *defaults()]
    with open_dict(config):
        for key in [str(key) for key in config if key not in known]:
            del config[key]  # other settings have taken their values from it
        for group in MAY_BE_NOTHING:
            if config.get(group) is None:
                config[group] = {}
        for name in [name for name, callback in config.callbacks.items() if callback is None]:
            del config.callbacks[name]
        if config.loss.get("_target_") != OUR_LOSS:  # loss._target_=CLASS leaves ours beside it
            for name in [name for name in ("label_smoothing", "weight") if config.loss.get(name) in (None, 0)]:
                config.loss.pop(name, None)
    if config.data.get("_target_") == OUR_DATA and config.data.get("root") is not None:
        config.data.root = os.path.abspath(os.path.expanduser(config.data.root))


def check_accelerator(accelerator: str) -> None:
    """Raises: SettingError, where PyTorch has no such device here."""
    if accelerator in ("auto", "cpu"):
        return
    # Here, because the import takes seconds that the usual settings do without.
    from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator

    cuda, mps = CUDAAccelerator.is_available(), MPSAccelerator.is_available()
    if not {"gpu": cuda or mps, "cuda": cuda, "mps": mps}.get(accelerator, True):
        raise SettingError(
            "trainer.accelerator", accelerator, "PyTorch finds no such device on this machine: use cpu, or auto"
        )


def make_directory(path: Path, setting: str = "run_dir") -> None:
    """Makes the directory at `path` if it is not there; `setting` is what to call it in a sentence.

    Raises:
        SettingError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise SettingError(
            setting, path, f"cannot be written ({error.strerror}): choose a directory that you can write to"
        ) from error


def no_such_setting(setting: str, known: Collection[str], application: str = "train", takes: str | None = None) -> str:
    """What to say of a setting that is not among those known: with the one that was probably meant; where there is
    none, with what the group's class `takes`, a clause."""
    group, _, leaf = setting.rpartition(".")
    if group == "trainer" and leaf in REMOVED_FROM_TRAINER:
        return f"Lightning has removed it: {REMOVED_FROM_TRAINER[leaf]}"
    if leaf in ELSEWHERE:
        return f"there is no setting {setting}: {ELSEWHERE[leaf]}"
    close = _closest(group, leaf, known)
    hint = f"did you mean {close}?" if close else takes or f"mnist-{application} --cfg job lists them all"
    return f"there is no setting {setting}; {hint}"


def _closest(group: str, leaf: str, known: Collection[str]) -> str | None:
    """The name that was probably meant; None where none is close. The last part of a name is what is usually right
    (trainer.lr is meant to be optimizer.lr), and its group is left out of the comparison: it makes all alike."""
    leaves: dict[str, list[str]] = {}
    for name in known:
        leaves.setdefault(name.rpartition(".")[2], []).append(name)
    siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == group]
    found = [leaf] if leaf in leaves else difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.75)
    found = found or difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.8)
    if not found:
        return None
    return next((name for name in leaves[found[0]] if name.rpartition(".")[0] == group), leaves[found[0]][0])
