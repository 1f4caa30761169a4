"""What a setting may be, and the one sentence a user gets when it is not.

Imports nothing heavy: `mnist-train --help` and a refused command answer at once.
"""

import difflib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml
from hydra import compose, initialize_config_module
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from mnist_mlp.reading import parse_yaml, read_file
from mnist_mlp.signatures import parameters
from mnist_mlp.surroundings import CLOSED_PIPE, OUTPUT, PLACE_ERRORS, place_problem, settle_in

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


LONGEST_VALUE = 80  # characters of a list or a mapping in a sentence


class SettingError(ValueError):
    """A setting that cannot be used: its message is one sentence that names it, its value and what would be right."""

    def __init__(self, setting: str, value: object, problem: str) -> None:
        text = str(as_override(value) if isinstance(value, Mapping | DictConfig) else spelled(value))
        if isinstance(value, Mapping | Sequence) and not isinstance(value, str) and len(text) > LONGEST_VALUE:
            text = f"{text[:LONGEST_VALUE]}..."
        super().__init__(f"{setting}={text}: {problem}")


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite; nothing that comes after it means anything."""


class Rule(NamedTuple):
    accepts: Callable[[Any], bool]
    wanted: str


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(least: int) -> Rule:
    return Rule(
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
        f"a whole number of at least {least}",
    )


def _matching(pattern: str, wanted: str) -> Rule:
    return Rule(lambda value: re.fullmatch(pattern, str(value)) is not None, wanted)


def _choice(*options: str) -> Rule:
    return Rule(lambda value: value in options, f"one of {', '.join(options)}")


def _optional(rule: Rule) -> Rule:
    return Rule(lambda value: value is None or rule.accepts(value), f"{rule.wanted}, or null")


LARGEST = 3.4e38  # what PyTorch computes with: 32-bit floating point numbers
ABOVE_ZERO = Rule(lambda value: _number(value) and 0 < value <= LARGEST, f"a number above 0 and at most {LARGEST:g}")
AT_LEAST_ZERO = Rule(lambda value: _number(value) and 0 <= value <= LARGEST, f"a number from 0 to {LARGEST:g}")
FRACTION = Rule(lambda value: _number(value) and 0 <= value < 1, "a number of at least 0 and below 1")
TRUTH = Rule(lambda value: isinstance(value, bool), "true or false")
TEXT = Rule(lambda value: isinstance(value, str) and value != "", "a text")
NUMBER = Rule(lambda value: _number(value) and abs(value) <= LARGEST, "a number")
SEED = Rule(lambda value: _whole(0).accepts(value) and value < 2**64, "a whole number of at least 0 and below 2**64")
WIDTHS = Rule(
    lambda value: isinstance(value, list) and all(_whole(1).accepts(width) for width in value),
    "a list of whole numbers of at least 1, such as [64,128,64]",
)
# The four files of a family, unpacked, in the order of their names: what `data.sha256` may speak of.
DATA_FILES = (
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
)
HASHES = _optional(
    Rule(
        lambda value: (
            isinstance(value, Mapping)
            and sorted(map(str, value)) == list(DATA_FILES)
            and all(isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) for digest in value.values())
        ),
        f"the SHA-256 of each of {DATA_FILES[0]} and the three other files",
    )
)
LIMIT = Rule(
    lambda value: _number(value) and (0 < value <= 1 if isinstance(value, float) else value >= 1),
    "a whole number of batches of at least 1, or a fraction above 0, at most 1.0",
)
ONE_DEVICE = "a run uses one device; a sweep puts its runs on several"

# Settings of a run, whatever classes it builds.
RULES: dict[str, Rule] = {
    "seed": SEED,
    "threads": _optional(
        Rule(lambda value: _whole(1).accepts(value) and value <= 1024, "a whole number from 1 to 1024")
    ),
    "portable": TRUTH,
    "average": _choice("weighted", "macro", "micro"),
    "run_dir": TEXT,
    "sweep": _matching(
        r"(?!\.\.?(/|$))[^/\\]+(/(?!\.\.?(/|$))[^/\\]+)*",
        "a name such as seeds or paper/long: it becomes logs/sweeps/NAME",
    ),
    "trainer.max_epochs": _whole(1),
    "trainer.max_steps": Rule(
        lambda value: value == -1 or _whole(1).accepts(value), "a whole number of at least 1, or -1"
    ),
    "trainer.accelerator": _choice("auto", "cpu", "gpu", "cuda", "mps"),
    "trainer.devices": Rule(lambda value: value == 1 and _number(value), f"1: {ONE_DEVICE}"),
    "trainer.num_nodes": Rule(lambda value: value == 1 and _number(value), f"1: {ONE_DEVICE}"),
    "trainer.strategy": Rule(lambda value: value == "auto", f"auto: {ONE_DEVICE}"),
    "trainer.steps": _choice("auto", "native", "compiled", "eager"),
    "trainer.deterministic": Rule(lambda value: value == "warn" or isinstance(value, bool), "true, false or warn"),
    "trainer.limit_train_batches": _optional(LIMIT),
    "trainer.limit_val_batches": _optional(
        Rule(LIMIT.accepts, f"{LIMIT.wanted}: each epoch is validated, which its row in metrics.csv and best.ckpt need")
    ),
    "trainer.limit_test_batches": _optional(Rule(LIMIT.accepts, f"{LIMIT.wanted}: a run ends with its test results")),
    "trainer.val_check_interval": _optional(LIMIT),
    "trainer.overfit_batches": Rule(
        lambda value: _number(value) and (value == 0 or LIMIT.accepts(value)), LIMIT.wanted
    ),
    "trainer.fast_dev_run": Rule(
        lambda value: isinstance(value, bool) or _whole(1).accepts(value), "true, false or a number of batches"
    ),
    "trainer.check_val_every_n_epoch": Rule(
        lambda value: value == 1 and _number(value),
        "1: each epoch has its validation in metrics.csv; where that takes long, use trainer.limit_val_batches",
    ),
    "trainer.accumulate_grad_batches": _whole(1),
    "trainer.max_time": _optional(
        Rule(
            lambda value: isinstance(value, dict) or re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(value)) is not None,
            "a time as DD:HH:MM:SS, such as 00:00:30:00, or as {minutes: 30}",
        )
    ),
    "trainer.profiler": _optional(
        Rule(lambda value: value in ("simple", "advanced", "pytorch"), "simple, advanced or pytorch")
    ),
    "trainer.enable_checkpointing": Rule(lambda value: value is True, "true: a run is recorded by its checkpoints"),
    "trainer.barebones": Rule(lambda value: value is False, "false: a run is recorded, which this switches off"),
    "trainer.gradient_clip_val": _optional(ABOVE_ZERO),
    "trainer.gradient_clip_algorithm": _choice("norm", "value"),
    "tensorboard.enabled": TRUTH,
    "tensorboard.images_every": _optional(_whole(1)),
    "tensorboard.histograms_every": _optional(_whole(1)),
    "tensorboard.embeddings": TRUTH,
}

# Arguments of classes, by `_target_`; a name that ends in a dot stands for every class under it. A user's own class is
# not here: what its arguments mean is its own affair.
OUR_BACKBONE, OUR_DATA = "mnist_mlp.backbone.MLP", "mnist_mlp.datamodule.MNISTDataModule"
OUR_LOSS = "mnist_mlp.classifier.CrossEntropy"
CLASS_RULES: dict[str, dict[str, Rule]] = {
    OUR_BACKBONE: {
        "hidden": WIDTHS,
        "dropout": FRACTION,
        "init": _choice("default", "xavier_uniform"),
    },
    OUR_DATA: {
        "dataset": _choice("MNIST", "FashionMNIST", "KMNIST"),
        "root": _optional(TEXT),
        "download": TRUTH,
        "sha256": HASHES,
        "mirror": _optional(_matching("(https?|ftp|file)://.+", "a URL, such as https://example.org/mnist")),
        "mean": _optional(NUMBER),
        "std": _optional(ABOVE_ZERO),
        "test_size": _whole(1),
        "validation_size": _optional(_whole(1)),
        "train_size": _optional(_whole(1)),
        "split_seed": SEED,
        "seed": SEED,
        "batch_size": _whole(1),
        "eval_batch_size": _whole(1),
    },
    OUR_LOSS: {
        "label_smoothing": FRACTION,
        "weight": _optional(
            Rule(
                lambda value: isinstance(value, list) and len(value) == 10 and all(map(AT_LEAST_ZERO.accepts, value)),
                "a list of ten numbers of at least 0",
            )
        ),
    },
    "torch.optim.": {
        "lr": ABOVE_ZERO,
        "weight_decay": AT_LEAST_ZERO,
        "fused": _optional(TRUTH),
    },
    "torch.optim.lr_scheduler.": {
        "step_size": _whole(1),
        "T_max": _whole(1),
        "gamma": ABOVE_ZERO,
        "interval": _choice("epoch", "step"),
        "frequency": _whole(1),
        "monitor": TEXT,
    },
}
BUILT = ("data", "model", "loss", "optimizer", "scheduler")  # groups that name the class they build
MAY_BE_NOTHING = ("scheduler", "callbacks", "search")  # what is null, or left out, is the same as an empty group

# Arguments of the Trainer that a run gives it itself, and what to use in their place.
TRAINER = "lightning.pytorch.trainer.trainer.Trainer"
GIVEN_TO_TRAINER = {
    "logger": "loggers have a group, such as logger=csv",
    "callbacks": "callbacks have a group, such as callbacks=early_stopping; another is +callbacks.NAME._target_=CLASS",
    "plugins": "its plugins write checkpoints that survive a power cut, and keep a run one process",
    "enable_progress_bar": "a run has its own line of progress; a bar is callbacks=progress_bar",
    "log_every_n_steps": "metrics are of whole epochs: metrics.csv and the loggers have a row for each",
}

# Lightning's own, under `scheduler`: when it is stepped.
OF_SCHEDULER = ("interval", "frequency", "monitor")
TAKEN_OUT = [("scheduler", name) for name in OF_SCHEDULER]
GIVEN = ("params", "optimizer", "save_dir")  # arguments that a run gives

# Of a whole sweep, looked at before its first job.
SWEEP_RULES: dict[str, Rule] = {
    "sweep": RULES["sweep"],
    "hydra.launcher.jobs": _optional(_whole(1)),
    "hydra.launcher.retries": _whole(0),
    "hydra.launcher.fail_fast": TRUTH,
    "hydra.launcher.timeout_min": _whole(1),
    "hydra.launcher.max_num_timeout": _whole(0),
    "hydra.launcher.signal_delay_s": _whole(1),
    "hydra.launcher.array_parallelism": _whole(1),
    "hydra.launcher.cpus_per_task": _optional(_whole(1)),
    "hydra.launcher.gpus_per_node": _optional(_whole(1)),
    "hydra.launcher.mem_gb": _optional(ABOVE_ZERO),
}

# Of a search, which is a sweep too.
SEARCH_RULES: dict[str, Rule] = {
    "search.sampler": _choice("tpe", "random"),
    "search.trials": _whole(1),
    "search.objective": _choice("val/accuracy", "val/loss"),
    "search.random_trials": _whole(1),
    "search.prune": TRUTH,
    "search.prune_after_trials": _whole(1),
    "search.prune_after_epochs": _whole(1),
}

BACKPROP_RULES: dict[str, Rule] = {
    "expression": Rule(lambda value: isinstance(value, str), "a text"),
    "values": Rule(lambda value: isinstance(value, dict), "a group of settings, such as values.x=1"),
    "sample": _whole(0),
    "print": _choice("terminal", "markdown", "latex", "dot"),
    "draw": TRUTH,
    "tensorboard": TRUTH,
    **{setting: RULES[setting] for setting in ("seed", "threads", "run_dir")},
    "data.root": CLASS_RULES[OUR_DATA]["root"],
}


# Settings that follow from a group's option, and the group. A value of their own would be a label on another run.
DERIVED = {"experiment": "experiment", "network": "model"}


def refuse_derived(config: DictConfig, hydra: DictConfig | HydraConf) -> None:
    """Refuses a name of one's own for what was chosen from a group.

    Args:
        config: the settings.
        hydra: Hydra's own node of the same composition, which knows the options chosen.

    Raises:
        SettingError: a derived setting was given, or is not the name of its group's option.
    """
    given: Any = OmegaConf.to_container(OmegaConf.structured(hydra.overrides))
    for setting, group in DERIVED.items():
        problem = f"follows from {group}=NAME, which chooses what is run: leave it out"
        for override in OverridesParser.create().parse_overrides(given["task"]):
            if override.key_or_group == setting != group:
                raise SettingError(setting, str(override.input_line).partition("=")[2], problem)
        if setting in config and config[setting] != hydra.runtime.choices.get(group):
            raise SettingError(setting, config[setting], problem)


@cache
def _network_file(name: str) -> Mapping[str, Any] | None:
    """The package's own `conf/model/NAME.yaml`; None where there is none."""
    file = files("mnist_mlp.conf") / "model" / f"{name}.yaml"
    return yaml.safe_load(file.read_text()) if re.fullmatch(r"\w+", name) and file.is_file() else None


def name_network(label: str, settings: Mapping[str, Any]) -> str:
    """What a network is called: `label`, unless that is one of this package's networks and this one has other layers.

    Args:
        label: the name of the file in `conf/model/` that was chosen.
        settings: of the run, flat.

    Returns:
        `label`, or such as `MLP 32-32`: the class and the widths of what was built.
    """
    file = _network_file(label)
    target, hidden = settings.get("model._target_"), settings.get("model.hidden")
    if file is None or target is None or (file["_target_"], file["hidden"]) == (target, hidden):
        return label
    widths = "-".join(map(str, hidden)) if isinstance(hidden, list) else ""
    return f"{str(target).rpartition('.')[2]} {widths}".strip()


@cache
def _defaults() -> Mapping[str, Any]:
    """The package's own `conf/train.yaml`, as it is written."""
    stated: dict[str, Any] = yaml.safe_load((files("mnist_mlp.conf") / "train.yaml").read_text("utf-8"))
    return stated


def groups() -> list[str]:
    """The groups of a run, such as `model`."""
    named = (next(iter(default)) for default in _defaults()["defaults"] if isinstance(default, Mapping))
    return [group for group in named if "/" not in group]


def options(group: str) -> list[str]:
    """What this package has in a group."""
    return sorted(file.name[:-5] for file in (files("mnist_mlp.conf") / group).iterdir() if file.name.endswith(".yaml"))


def refuse_unread(config: DictConfig) -> None:
    """Looks for what nothing would read: a key that no part of a run takes, or an argument that no class takes.

    Raises:
        SettingError: there is one.
    """
    stated = _defaults()
    _refuse_keys(config, [*groups(), *(name for name in stated if name not in ("defaults", "hydra"))])
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
        if (taken := parameters(target)) is not None:
            refuse_arguments(place, node, taken)


def _refuse_keys(config: DictConfig, known: Sequence[str]) -> None:
    for key in map(str, config):
        if key not in (*known, "hydra") and not _is_referred_to(config, key):
            problem = no_such_setting(key, known)
            if HydraConfig.instance().cfg is not None and key in HydraConfig.get().runtime.choices:
                problem = "nothing reads this group: with a first line `# @package _global_` its files set others"
            raise SettingError(key, _raw(config, key), problem)


def _refuse_group(config: DictConfig, group: str) -> None:
    node, stated = config.get(group), _defaults().get(group) or {}
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
    if group in ("trainer", "tensorboard"):
        taken = parameters(TRAINER) if group == "trainer" else ()
        known = [f"{group}.{name}" for name in (*stated, *(taken or ())) if name not in GIVEN_TO_TRAINER]
        for setting, value in flatten({group: _raw(config, group)}).items():
            name = ".".join(setting.split(".")[:2])
            if name.partition(".")[2] in GIVEN_TO_TRAINER:
                problem = f"is not taken from the configuration: {GIVEN_TO_TRAINER[name.partition('.')[2]]}"
                raise SettingError(setting, value, problem)
            if name not in (*known, "trainer.compile") and taken is not None:  # the latter is of old: see `settle`
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
            hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known) or 'none'}"
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


def rules_of(config: Mapping[str, Any] | DictConfig) -> dict[str, Rule]:
    """The rules of a run's settings: those of every run, and those of the classes that it builds."""
    rules = dict(RULES)
    for group in BUILT:
        node = config.get(group)
        target = str(node.get("_target_")) if isinstance(node, Mapping | DictConfig) else ""
        fitting = [name for name in CLASS_RULES if target == name or (name.endswith(".") and target.startswith(name))]
        arguments = CLASS_RULES[max(fitting, key=len)] if fitting else {}  # schedulers lie under torch.optim too
        rules |= {f"{group}.{argument}": rule for argument, rule in arguments.items()}
    return rules


def check(config: DictConfig, rules: Mapping[str, Rule] | None = None) -> None:
    """Checks every setting that has a rule.

    Args:
        config: the settings.
        rules: None for those of a run.

    Raises:
        SettingError: for the first that breaks its rule.
    """
    if rules is None:
        refuse_unread(config)
    for setting, rule in (rules_of(config) if rules is None else rules).items():
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
            raise SettingError(setting, value, f"must be {rule.wanted}{_of_environment(parent, leaf)}")
    if rules is None:
        _refuse_numbers(config)
    steps = config.get("trainer", {}).get("steps") if rules is None else None
    if steps in ("native", "compiled"):
        refused = single_steps(config) or (other_loss(config) if steps == "native" else None)
        if refused:
            raise SettingError("trainer.steps", steps, f"{refused}; trainer.steps=auto does without")


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
            if isinstance(number, int) and not -(2**63) <= number < 2**64:
                raise SettingError(setting, value, "must be a number of at most 64 bits")


def _numbers(value: object) -> Iterator[int | float]:
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, Mapping):
        yield from _numbers(list(value.values()))
    elif _number(value):
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
        value = config.get("scheduler", {}).get(name, usual)
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
    known = [*groups(), *_defaults()]
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


def load_yaml(path: Path, setting: str) -> DictConfig:
    """The settings in a YAML file; `setting` is what to call it in a sentence.

    Raises:
        SettingError: the file cannot be read or holds no settings.
    """
    try:
        content = read_file(path)
        config = OmegaConf.create(content.decode() if isinstance(parse_yaml(content), dict) else "")
    except OSError as error:
        raise SettingError(setting, path, f"cannot be read ({error.strerror})") from error
    except (ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise SettingError(setting, path, f"is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, DictConfig) or config.is_empty():
        raise SettingError(setting, path, "holds no settings")
    return config


def compose_config(overrides: list[str], application: str = "train") -> DictConfig:
    """The configuration of `mnist-APPLICATION OVERRIDES`, every interpolation resolved, for use outside a Hydra job."""
    job = HydraConfig.instance()
    before, of_job = GlobalHydra.instance().hydra, job.cfg
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("mnist_mlp.conf", version_base="1.3"):
            config = compose(application, overrides, return_hydra_config=True)
        job.set_config(config)  # what ${hydra:...} looks at
        settings = without_hydra(config)
        if application == "train":
            refuse_derived(settings, config.hydra)
        OmegaConf.resolve(settings)
    finally:
        GlobalHydra.instance().hydra, job.cfg = before, of_job  # of a caller who composes too
    return settings


def without_hydra(config: DictConfig) -> DictConfig:
    """A copy of what Hydra composed, less its own node."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def name_sweep_jobs(config: DictConfig) -> None:
    """Has a sweep's jobs named for what the sweep varies.

    Hydra's override_dirname lists every override, in alphabetical order; this leaves out those with a single value. It
    changes the overrides that Hydra has noted, from which it composes each job.
    """
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    task: Any = OmegaConf.to_container(config.hydra.overrides.task)
    given = [*(f"{name}={value}" for name, value in params.items()), *task]
    overrides = OverridesParser.create().parse_overrides(given)
    fixed = [override.key_or_group for override in overrides if not override.is_sweep_override()]
    with read_write(config.hydra):
        config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{','.join(fixed)}]")


# Set by the user to see tracebacks; read once, because `one_sentence` sets it for Hydra.
FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")


@contextmanager
def one_sentence(application: str = "train") -> Iterator[None]:
    """Ends the process with one sentence on standard error and status 1 where a setting cannot be used.

    With HYDRA_FULL_ERROR=1 the traceback is printed as well. An unknown setting is looked for among `application`'s.
    Ctrl-C ends it quietly, with status 130.
    """
    settle_in()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands exceptions over, in place of printing them its own way
    try:
        yield
    except (
        SettingError,
        NonFiniteLossError,
        HydraException,
        OmegaConfBaseException,
        yaml.YAMLError,
        UnicodeDecodeError,
    ) as error:
        end(error, application)
    except ValueError as error:
        if not str(error).startswith("Config group override must be"):  # of a group of the user's own
            raise
        end(error, application)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and error.filename == OUTPUT:
            sys.exit(CLOSED_PIPE)
        if error.errno not in PLACE_ERRORS:
            raise
        end(error, application)
    except KeyboardInterrupt:  # where no run has taken over Ctrl-C
        sys.exit(128 + signal.SIGINT)
    finally:
        if not FULL_ERROR:
            del os.environ["HYDRA_FULL_ERROR"]


def end(error: Exception, application: str = "train") -> NoReturn:
    """Prints what is wrong and exits with status 1."""
    if FULL_ERROR:
        traceback.print_exception(error)
    print(sentence(error, application), file=sys.stderr)
    sys.exit(1)


def sentence(error: Exception, application: str = "train") -> str:
    """One sentence for an exception of ours, of Hydra's or of OmegaConf's."""
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, SettingError):
        return str(error.__cause__)
    if isinstance(error, SettingError):
        return str(error)  # of an expression with a second line that points at the place
    text = str(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: is not YAML ({error.problem})"
    if isinstance(error, yaml.YAMLError | UnicodeDecodeError):
        return f"a configuration file is not YAML ({' '.join(text.split())})"
    if several := re.match(
        r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'(?: requires --multirun|\n|$)", text
    ):
        return f"{several[1]}: several values are a sweep: add -m; a single value that is a list stands in brackets"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        group = "network" if application == "backprop" and group == "model" else group
        options_there = ", ".join(sorted(error.options))
        return f"{group}={option}: there is no such {group.removesuffix('s')}; choose one of {options_there}"
    if isinstance(error, OSError):
        return place_problem(error)
    if there := re.match(r"Could not append to config\. An item is already at '([^']+)'", text):
        return f"+{there[1]}: is in the configuration already: leave out the +"
    if unknown := re.match(r"Could not override '([^']+)'", text):
        return _unknown_setting(unknown[1], text, application)
    if call := re.match(r"Error in call to target '(.+?)':\n(.+)\nfull_key: (.+)", text):
        return f"{call[3]}: {call[1]} could not be made ({call[2]})"
    if isinstance(error, OverrideParseException):
        name, equals, value = str(error.override).partition("=")
        again = equals and "'" not in value
        quoted = f"; a value with other characters is quoted twice: \"{name}='{value}'\"" if again else ""
        return f"{error.override}: is not of the form setting=value, such as seed=1 or model.hidden=[64,128,64]{quoted}"
    return " ".join(text.split())


def _unknown_setting(setting: str, text: str, application: str) -> str:
    found = re.search(r"\+(\S+)$", text.strip())
    given = found[1] if found else setting
    if "No match in the defaults list" in text:
        return f"{given}: {setting} is a group without a default: choose an option of it with +{given}"
    if application == "train":
        if (hint := _forgotten_plus(setting, given)) is not None:
            return f"{given}: {hint}"
        others = groups()
    else:
        others = ["network", "data"]
    known = [*flatten(compose_config([], application)), *others]
    if setting in known:  # was given a mapping
        return f"{given}: a setting in it is not there yet: set each by itself, as in +{setting}.NAME=VALUE"
    return f"{given}: {no_such_setting(setting, known, application)}"


def _forgotten_plus(setting: str, given: str) -> str | None:
    """What to say of a setting that is not in the configuration, where the class that is built takes it."""
    group, _, name = setting.rpartition(".")
    if group == "trainer" and name in GIVEN_TO_TRAINER:
        return f"is not taken from the configuration: {GIVEN_TO_TRAINER[name]}"
    target = TRAINER
    if group != "trainer":
        chosen = [argument for argument in sys.argv[1:] if argument.startswith(f"{group}=")]
        try:
            node = compose_config(chosen).get(group)
        except HydraException:  # an option, or a directory, of the user's own
            return None
        if not isinstance(node, DictConfig) or "_target_" not in node:
            return None
        target = str(node._target_)
    if name not in (parameters(target) or ()):
        return None
    return f"is not in the configuration yet, and {target.rpartition('.')[2]} takes it: add it with +{given}"


def no_such_setting(setting: str, known: Collection[str], application: str = "train") -> str:
    """What to say of a setting that is not among those known, with the one that was probably meant."""
    # The last part of the name is what is usually right: trainer.lr is meant to be optimizer.lr.
    leaves = [name for name in known if name.rpartition(".")[2] == setting.rpartition(".")[2]]
    close = leaves or difflib.get_close_matches(setting, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"mnist-{application} --cfg job lists them all"
    return f"there is no setting {setting}; {hint}"


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, (dict, Mapping, DictConfig)):  # a dict is known at once
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
