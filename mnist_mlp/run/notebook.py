"""A configuration as Hydra's compose API gives it, outside of a Hydra application."""

from importlib.resources import files
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mnist_mlp.run.groups import EXPERIMENTS, configured
from mnist_mlp.run.identity import complete, other_experiment
from mnist_mlp.settings import flatten, name_network, settle, without_hydra

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
    if not unnamed:
        return
    for name in unnamed:
        settings[name] = UNNAMED
    resolved: Any = OmegaConf.to_container(settings, resolve=True)
    if "network" in unnamed:
        ours = [file.name.removesuffix(".yaml") for file in (files("mnist_mlp.conf") / "model").iterdir()]
        named = [name for name in sorted(ours) if name_network(name, flatten(resolved)) == name]
        settings.network = named[0] if named else name_network("network_a", flatten(resolved))
    if "experiment" in unnamed:
        given = {experiment: configured(experiment, "network_a") or {} for experiment in EXPERIMENTS}
        decided = {name for one in given.values() for name in other_experiment(given[EXPERIMENTS[0]], one)}
        for experiment, one in given.items():
            if not decided & other_experiment(one, resolved).keys():
                settings.experiment = experiment
                break
