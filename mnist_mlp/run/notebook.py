"""A configuration as Hydra's compose API gives it, outside of a Hydra application."""

from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mnist_mlp.run.groups import EXPERIMENTS, configured
from mnist_mlp.run.identity import complete, other_experiment
from mnist_mlp.settings import flatten, name_network, options, settle, without_hydra

UNNAMED = "custom"  # an experiment that is none of this package's


def settings_of(config: DictConfig) -> DictConfig:
    """A copy of a run's configuration, settled, with today's settings, without Hydra's own node.

    The names of experiment and network come from the options that Hydra has chosen. `compose` tells these with
    `return_hydra_config=True` only; without, they are those of this package's files that decide the same.
    """
    hydra = HydraConfig.instance()
    before = hydra.cfg
    try:
        settings = without_hydra(config)
        OmegaConf.set_readonly(settings, False)
        OmegaConf.set_struct(settings, False)
        if "hydra" in config:
            hydra.set_config(config)  # what ${hydra:...} looks at
        else:
            _name(settings)
        complete(settings)
        settle(settings)
        return settings
    finally:
        hydra.cfg = before


def _name(settings: DictConfig) -> None:
    unnamed = [name for name in ("experiment", "network") if OmegaConf.is_interpolation(settings, name)]
    for name in unnamed:
        settings[name] = UNNAMED
    if unnamed:
        resolved: Any = OmegaConf.to_container(settings, resolve=True)
        settings.update({name: NAMES[name](resolved) for name in unnamed})


def _network(resolved: dict[str, Any]) -> str:
    own = next((name for name in options("model") if name_network(name, flatten(resolved)) == name), None)
    return own or name_network("network_a", flatten(resolved))


def _experiment(resolved: dict[str, Any]) -> str:
    given = {experiment: configured(experiment, "network_a") or {} for experiment in EXPERIMENTS}
    decided = {name for one in given.values() for name in other_experiment(given[EXPERIMENTS[0]], one)}
    fitting = (name for name, one in given.items() if not decided & other_experiment(one, resolved).keys())
    return next(fitting, UNNAMED)


NAMES = {"network": _network, "experiment": _experiment}
