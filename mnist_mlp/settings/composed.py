"""Settings composed of this package's files, and what these files hold."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from mnist_mlp.reading import parse_yaml, read_file
from mnist_mlp.settings.values import SettingError
from mnist_mlp.surroundings import one_line

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
    task: Any = OmegaConf.to_container(OmegaConf.structured(hydra.overrides))["task"]  # type: ignore[index,call-overload]
    given = {override.key_or_group: override for override in OverridesParser.create().parse_overrides(task)}
    for setting, group in DERIVED.items():
        problem = f"follows from {group}=NAME, which chooses what is run: leave it out"
        if setting in given and setting != group:
            raise SettingError(setting, str(given[setting].input_line).partition("=")[2], problem)
        choice = hydra.runtime.choices.get(group)
        if setting in config and choice is None:  # taken out, or a list of them
            value = str(given[group].input_line).partition("=")[2] if group in given else None
            problem = f"must be one option, by which a run is called: {', '.join(options(group))}, or one of your own"
            raise SettingError(group, value or None, f"{problem}; several are a sweep, as in -m {group}=ONE,OTHER")
        if setting == group and isinstance(config[setting], DictConfig) and choice not in options(group):
            problem = "its file lacks the first line `# @package _global_`, by which its settings are the run's"
            raise SettingError(group, choice, problem)
        if setting in config and config[setting] != choice:
            raise SettingError(setting, config[setting], problem)


@cache
def _network_file(name: str) -> Mapping[str, Any] | None:
    """The package's own `conf/model/NAME.yaml`; None where there is none."""
    if name not in options("model"):
        return None
    stated: dict[str, Any] = yaml.safe_load((files("mnist_mlp.conf") / "model" / f"{name}.yaml").read_text("utf-8"))
    return stated


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
def defaults(application: str = "train") -> Mapping[str, Any]:
    """The package's own `conf/APPLICATION.yaml`, as it is written."""
    stated: dict[str, Any] = yaml.safe_load((files("mnist_mlp.conf") / f"{application}.yaml").read_text("utf-8"))
    return stated


def groups(application: str = "train") -> list[str]:
    """The groups of a run, such as `model`; of `mnist-backprop`, `data` and `network`."""
    named = (next(iter(default)) for default in defaults(application)["defaults"] if isinstance(default, Mapping))
    return [group.rpartition("@")[2] for group in named if "/" not in group]


def options(group: str) -> list[str]:
    """What this package has in a group."""
    return sorted(file.name[:-5] for file in (files("mnist_mlp.conf") / group).iterdir() if file.name.endswith(".yaml"))


def load_yaml(path: Path, setting: str) -> DictConfig:
    """The settings in a YAML file; `setting` is what to call it in a sentence.

    Raises:
        SettingError: the file cannot be read or holds no settings.
    """
    try:
        content = read_file(path)
        config = OmegaConf.create(content.decode() if isinstance(parse_yaml(content), dict) else "")
        OmegaConf.to_container(config, resolve=True)  # whoever reads a value later need not expect that it fails
    except OSError as error:
        raise SettingError(setting, path, f"cannot be read ({error.strerror})") from error
    except OmegaConfBaseException as error:
        raise SettingError(setting, path, f"holds what cannot be used ({str(error).splitlines()[0]})") from error
    except (ValueError, yaml.YAMLError) as error:
        raise SettingError(setting, path, f"is not YAML ({one_line(error)})") from error
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
