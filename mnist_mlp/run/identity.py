"""Which settings make a run another run: a setting is a place, a label, a seed, the length, or how a run is watched or
computed.

A setting in none of the lists says what is computed. Every comparison of settings in this package starts from them. A
name that ends in a dot stands for every setting under it.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mnist_mlp.settings import OUR_LOSS, flatten, spelled

PLACES = ("run_dir", "sweep")  # where a run lies
LABELS = ("experiment", "network")  # what it is called
SEEDS = ("seed", "data.seed")  # what differs between the repetitions of one experiment
LENGTH = "trainer.max_epochs"  # how far it goes
WATCHED = ("tensorboard.", "logger.")  # what is shown of it
HASHES = ("data.sha256", "data.sha256.")  # they follow from the data set
# How it is computed: of one experiment on any machine. The bits may depend on it.
COMPUTED = (
    "threads",
    "portable",
    "optimizer.fused",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.steps",
    "trainer.deterministic",
    "data.eval_batch_size",
    "data.root",
    "data.download",
    "data.mirror",
    *HASHES,
)


STEPS = "trainer.steps"

# What a run was made with whose record has no setting of that group: it is older than the group.
BEFORE: dict[str, dict[str, Any]] = {
    "loss": {"_target_": OUR_LOSS, "label_smoothing": 0.0, "weight": None},
    "logger": {"tensorboard": True},
    "metrics": {},
}


def complete(config: DictConfig) -> None:
    """Gives a recorded configuration today's settings and names: those of `BEFORE`, `portable` and `trainer.steps`."""
    if "compile" in config.trainer:
        config.trainer.steps = "compiled" if config.trainer.compile else "eager"
        del config.trainer["compile"]
    if "portable" not in config:
        config.portable = False
    for group, settings in BEFORE.items():
        if group not in config:
            config[group] = settings


def upgraded(settings: dict[str, Any]) -> dict[str, Any]:
    """As `complete`, for a recorded configuration that is flat."""
    missing = {
        f"{group}.{name}": value
        for group, defaults in BEFORE.items()
        if not any(name.startswith(f"{group}.") for name in settings)
        for name, value in defaults.items()
    }
    if "portable" not in settings:
        missing["portable"] = False
    if "trainer.compile" in settings:
        missing[STEPS] = "compiled" if settings["trainer.compile"] else "eager"
    return {name: value for name, value in (settings | missing).items() if name != "trainer.compile"}


def differing(
    one: Mapping[str, Any] | DictConfig, other: Mapping[str, Any] | DictConfig, but: Iterable[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configurations differ: name -> both values, None for one that is not there.

    Args:
        one, other: nested or flat.
        but: names to leave out; one that ends in a dot stands for every setting under it.
    """
    before, after = upgraded(flatten(one)), upgraded(flatten(other))
    names = sorted(before.keys() | after.keys())
    return {
        name: (before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name) and not is_among(name, but)
    }


def is_among(name: str, names: Iterable[str]) -> bool:
    """Whether a setting is one of these, or lies under one that ends in a dot."""
    return any(name == other or (other.endswith(".") and name.startswith(other)) for other in names)


def other_settings(one: Mapping[str, Any] | DictConfig, other: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    """The settings that make a recorded configuration another run than the one that is asked for, as `differing` gives
    them. `trainer.steps=auto` asks for whatever the run began with; so does `portable`, of a run that is older."""
    others = differing(one, other, (*PLACES, *WATCHED, *(["portable"] if "portable" not in one else [])))
    if others.get(STEPS, ("", ""))[1] == "auto":
        del others[STEPS]
    return others


def other_experiment(one: Mapping[str, Any] | DictConfig, other: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    """The settings that make one configuration another experiment than the other, as `differing` gives them: neither
    seeds nor length nor how it is computed."""
    return differing(one, other, (*PLACES, *LABELS, *SEEDS, LENGTH, *WATCHED, *COMPUTED))


def was_run_with(others: Mapping[str, tuple[Any, Any]]) -> str:
    """What to say of `other_settings`, as the command line writes them."""
    kept = (f"{name}={spelled(before)} (not {spelled(now)})" for name, (before, now) in others.items())
    return f"was run with {', '.join(kept)}"


def fingerprint(config: Mapping[str, Any] | DictConfig) -> str:
    """The same for two configurations that are the same run, wherever it lies. A setting that came after a run was
    made is null where that run is repeated, or as in `BEFORE`; which steps `auto` has chosen only the record knows."""
    plain: Any = OmegaConf.to_container(config) if isinstance(config, DictConfig) else config
    settings = sorted(upgraded(flatten(plain)).items())
    left_out = (*PLACES, *WATCHED, STEPS)
    return json.dumps({name: value for name, value in settings if value is not None and not is_among(name, left_out)})
