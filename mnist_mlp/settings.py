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
from contextlib import contextmanager, suppress
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
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

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


class SettingError(ValueError):
    """A setting that cannot be used: its message is one sentence that names it, its value and what would be right."""

    def __init__(self, setting: str, value: object, problem: str) -> None:
        super().__init__(f"{setting}={spelled(value)}: {problem}")


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


ABOVE_ZERO = Rule(lambda value: _number(value) and 0 < value < float("inf"), "a number above 0")
AT_LEAST_ZERO = Rule(lambda value: _number(value) and 0 <= value < float("inf"), "a number of at least 0")
FRACTION = Rule(lambda value: _number(value) and 0 <= value < 1, "a number of at least 0 and below 1")
TRUTH = Rule(lambda value: isinstance(value, bool), "true or false")
TEXT = Rule(lambda value: isinstance(value, str) and value != "", "a text")
NUMBER = Rule(_number, "a number")
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
        f"the SHA-256 of each of {', '.join(DATA_FILES)}",
    )
)
ONE_DEVICE = "a run uses one device; a sweep puts its runs on several"

# Settings of a run, whatever classes it builds.
RULES: dict[str, Rule] = {
    "seed": SEED,
    "threads": _optional(_whole(1)),
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
CLASS_RULES: dict[str, dict[str, Rule]] = {
    OUR_BACKBONE: {
        "hidden": WIDTHS,
        "dropout": FRACTION,
        "init": _choice("default", "xavier_uniform"),
    },
    OUR_DATA: {
        "root": _optional(TEXT),
        "download": TRUTH,
        "sha256": HASHES,
        "mirror": _optional(_matching("(https?|ftp|file)://.+", "a URL, such as https://example.org/mnist")),
        "mean": _optional(NUMBER),
        "std": _optional(ABOVE_ZERO),
        "test_size": _whole(1),
        "validation_size": _optional(_whole(1)),
        "split_seed": SEED,
        "batch_size": _whole(1),
        "eval_batch_size": _whole(1),
    },
    "torch.optim.": {
        "lr": ABOVE_ZERO,
        "weight_decay": AT_LEAST_ZERO,
        "fused": _optional(TRUTH),
    },
    "torch.optim.lr_scheduler.": {
        "step_size": _whole(1),
        "gamma": ABOVE_ZERO,
    },
}
BUILT = ("data", "model", "optimizer", "scheduler")  # groups that name the class they build

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
    for setting, group in DERIVED.items():
        problem = f"follows from {group}=NAME, which chooses what is run: leave it out"
        for override in OverridesParser.create().parse_overrides(list(hydra.overrides.task)):
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


def rules_of(config: Mapping[str, Any] | DictConfig) -> dict[str, Rule]:
    """The rules of a run's settings: those of every run, and those of the classes that it builds."""
    rules = dict(RULES)
    for group in BUILT:
        node = config.get(group)
        target = str(node.get("_target_")) if isinstance(node, Mapping | DictConfig) else ""
        for name, arguments in CLASS_RULES.items():
            if target == name or (name.endswith(".") and target.startswith(name)):
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
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        if not rule.accepts(value):
            raise SettingError(setting, value, f"must be {rule.wanted}")


def settle(config: DictConfig) -> None:
    """Brings a run's configuration into the form that `config.yaml` records: checked, resolved, with absolute paths.

    Raises:
        SettingError: a setting breaks its rule.
    """
    if "compile" in config.trainer:  # a record from before there was trainer.steps
        config.trainer.steps = "compiled" if config.trainer.compile else "eager"
        del config.trainer["compile"]
    check(config)
    OmegaConf.resolve(config)
    if config.data.get("_target_") == OUR_DATA and config.data.get("root") is not None:
        config.data.root = os.path.abspath(config.data.root)


class CheckBeforeRun(Callback):
    """Hydra callback: a single run is checked before Hydra makes its directory, so that a refused one leaves none.

    Of a sweep, what all its jobs share is checked as early; of what differs between them, each launcher takes care.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        HydraConfig.instance().set_config(config)  # run_dir interpolates Hydra's choices
        try:
            refuse_derived(config, config.hydra)
            name_sweep_jobs(config)
            check(config, SWEEP_RULES)
            with suppress(OmegaConfBaseException):  # a setting without a value may get one from each job
                check(config)
        except SettingError as error:
            end(error)

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        HydraConfig.instance().set_config(config)  # run_dir interpolates Hydra's choices
        try:
            refuse_derived(config, config.hydra)
            check(config)
            if "accelerator" in config.get("trainer", {}):
                check_accelerator(config.trainer.accelerator)
            make_directory(Path(config.run_dir))
        except (SettingError, OmegaConfBaseException) as error:
            end(error)  # by SystemExit: of any other exception Hydra makes a warning


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
        config = OmegaConf.load(path)
    except OSError as error:
        raise SettingError(setting, path, f"cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise SettingError(setting, path, f"is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, DictConfig) or config.is_empty():
        raise SettingError(setting, path, "holds no settings")
    return config


def compose_config(overrides: list[str], application: str = "train") -> DictConfig:
    """The configuration of `mnist-APPLICATION OVERRIDES`, every interpolation resolved; in a Hydra job too."""
    outer = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    with initialize_config_module("mnist_mlp.conf", version_base="1.3"):
        config = compose(application, overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(config)  # what ${hydra:...} looks at
    try:
        settings = without_hydra(config)
        if application == "train":
            refuse_derived(settings, config.hydra)
        OmegaConf.resolve(settings)
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = outer
    return settings


def without_hydra(config: DictConfig) -> DictConfig:
    """A copy of what Hydra composed, less its own node."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def refuse_empty_groups(arguments: list[str]) -> None:
    """Raises: SettingError, for `model=null` and its like, where Hydra itself fails."""
    for argument in arguments:
        if found := re.fullmatch(r"(data|experiment|model|optimizer|scheduler|search)=(null|)", argument):
            raise SettingError(found[1], None, "is a group: choose one of its options, which --help lists")


def name_sweep_jobs(config: DictConfig) -> None:
    """Has a sweep's jobs named for what the sweep varies.

    Hydra's override_dirname lists every override, in alphabetical order; this leaves out those with a single value. It
    changes the overrides that Hydra has noted, from which it composes each job.
    """
    overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
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
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands exceptions over, in place of printing them its own way
    try:
        yield
    except (SettingError, NonFiniteLossError, HydraException, OmegaConfBaseException) as error:
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
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        group = "network" if application == "backprop" and group == "model" else group
        return f"{group}={option}: there is no such {group}; choose one of {', '.join(sorted(error.options))}"
    if unknown := re.match(r"Could not override '([^']+)'", text):
        return _unknown_setting(unknown[1], text, application)
    if call := re.match(r"Error in call to target '(.+?)':\n(.+)\nfull_key: (.+)", text):
        return f"{call[3]}: {call[1]} could not be made ({call[2]})"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: is not of the form setting=value, such as seed=1 or model.hidden=[64,128,64]"
    return " ".join(text.split())


def _unknown_setting(setting: str, text: str, application: str) -> str:
    given = re.search(r"\+(\S+)$", text.strip())
    groups = {
        "train": ["experiment", "model", "data", "optimizer", "scheduler", "search"],
        "backprop": ["network", "data"],
    }
    known = [*flatten(compose_config([], application)), *groups[application]]
    return f"{given[1] if given else setting}: {no_such_setting(setting, known, application)}"


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
