"""What a configuration names, built: data module, backbone, loss, metrics, optimizer, scheduler, callbacks."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate as instantiate_node
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    DeviceStatsMonitor,
    LearningRateMonitor,
    OnExceptionCheckpoint,
    ThroughputMonitor,
    Timer,
)
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer
from torchmetrics import Metric

from mnist_mlp.backbone import check_logits
from mnist_mlp.run.loggers import loggers_of
from mnist_mlp.run.metrics import COLUMNS
from mnist_mlp.seeds import stream_seed
from mnist_mlp.settings import OF_SCHEDULER, SettingError
from mnist_mlp.steps.choice import choose
from mnist_mlp.surroundings import one_line

# Plain lists and mappings, where Hydra's own would be kept by an optimizer and could not be read from a checkpoint.
instantiate = partial(instantiate_node, _convert_="all")

# Callbacks of Lightning's that have no use here, and why.
UNFIT = {
    BackboneFinetuning: "freezes the backbone, which here is the whole network: nothing would be left to train",
    BatchSizeFinder: "changes data.batch_size unrecorded: sweep over it with -m data.batch_size=64,128",
}


@dataclass
class Parts:
    """What a configuration names, built.

    Args:
        optimizer: of the backbone's parameters; what trains is made anew.
        callbacks: the user's, by name.
    """

    datamodule: LightningDataModule
    backbone: nn.Module
    loss: nn.Module
    metrics: Mapping[str, Metric]
    make_optimizer: Any
    make_scheduler: Any
    optimizer: Optimizer
    callbacks: dict[str, Callback]


def build(config: DictConfig) -> Parts:
    """Builds what the configuration names.

    Raises:
        SettingError: something cannot be built, or does not fit.
    """
    loggers = loggers_of(config)
    datamodule = instantiate(config.data)
    torch.manual_seed(stream_seed(config.seed, "weights"))
    backbone = instantiate(config.model)
    check_logits(backbone, "model", config.network)
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        raise SettingError("model", config.network, "has no weights to train")
    loss, metrics = _loss(config), _metrics(config)
    make_optimizer = instantiate(config.optimizer)
    optimizer = make("optimizer", make_optimizer, backbone.parameters())  # only now does it look at its arguments
    scheduler = {name: value for name, value in config.scheduler.items() if name not in OF_SCHEDULER}
    make_scheduler = instantiate(OmegaConf.create(scheduler)) if "_target_" in scheduler else None
    if make_scheduler is not None:
        unknown = {"total_steps": 1000} if scheduler.get("total_steps", 0) is None else {}  # until there is a run
        make("scheduler", make_scheduler, optimizer, **unknown)
    callbacks = {str(name): instantiate(entry) for name, entry in config.callbacks.items() if entry is not None}
    check_callbacks(callbacks, [*COLUMNS, *(f"val/{name}" for name in metrics)], bool(loggers) or shows_events(config))
    if config.trainer.get("max_time"):
        time: Any = OmegaConf.to_container(OmegaConf.create({"max": config.trainer.max_time}))
        callbacks["trainer.max_time"] = make("trainer.max_time", Timer, time["max"], interval="epoch", verbose=False)
    choose(config, backbone, optimizer, callbacks)
    return Parts(datamodule, backbone, loss, metrics, make_optimizer, make_scheduler, optimizer, callbacks)


def make(setting: str, make: Any, *arguments: Any, **keywords: Any) -> Any:
    """Raises: SettingError, where `make`, a class or a function, refuses its arguments."""
    try:
        return make(*arguments, **keywords)
    except Exception as error:  # whatever a user's own class raises
        name = getattr(getattr(make, "func", make), "__qualname__", make)
        raise SettingError(setting, name, f"could not be made ({one_line(error)})") from error


def shows_events(config: DictConfig) -> bool:
    """Whether the run has TensorBoard."""
    return bool(config.logger.get("tensorboard")) and bool(config.get("tensorboard", {}).get("enabled", True))


def _loss(config: DictConfig) -> nn.Module:
    """Raises: SettingError, where the loss is no mean over two images."""
    wanted = "must be an nn.Module from logits (N, 10) and labels (N,) to a mean ()"
    target, loss = config.loss.get("_target_"), instantiate(config.loss)
    if not isinstance(loss, nn.Module):
        raise SettingError("loss", target, f"{wanted}, and is {type(loss).__name__}")
    try:
        value = loss(torch.zeros(2, 10), torch.tensor([0, 1]))
    except Exception as error:  # whatever a user's own class raises
        raise SettingError("loss", target, f"{wanted}, and fails ({one_line(error)})") from error
    if not isinstance(value, torch.Tensor) or value.ndim:
        raise SettingError("loss", target, f"{wanted}, and gives something else: reduction=mean, where it has one")
    return loss


def _metrics(config: DictConfig) -> dict[str, Metric]:
    """Raises: SettingError, where one is no metric of logits and labels that gives a number."""
    found: dict[str, Metric] = {}
    for name, entry in config.metrics.items():
        setting, target = f"metrics.{name}", entry.get("_target_") if isinstance(entry, DictConfig) else entry
        wanted = "must be one of torchmetrics, of logits (N, 10) and labels (N,), that gives one number"
        metric = instantiate(entry) if isinstance(entry, DictConfig) else None
        if not isinstance(metric, Metric) or f"val/{name}" in COLUMNS:
            raise SettingError(setting, target, f"{wanted}, and a name of its own")
        try:
            metric.update(torch.eye(10), torch.arange(10))
            float(metric.compute())
            metric.reset()
        except Exception as error:
            raise SettingError(setting, target, f"{wanted}, and fails ({one_line(error)})") from error
        found[str(name)] = metric
    return found


def check_callbacks(callbacks: Mapping[str, Any], measured: Sequence[str], logs: bool) -> None:
    """Raises: SettingError, where one is no callback, watches what is not measured or has no logger to tell."""
    own = any(not type(callback).__module__.startswith("lightning.") for callback in callbacks.values())
    for name, callback in callbacks.items():
        if not isinstance(callback, Callback):
            raise SettingError(f"callbacks.{name}", type(callback).__name__, "must be a Lightning Callback")
        for unfit, why in UNFIT.items():
            if isinstance(callback, unfit):
                raise SettingError(f"callbacks.{name}", type(callback).__name__, why)
        if isinstance(callback, OnExceptionCheckpoint) and Path(callback.ckpt_path).exists():
            raise SettingError(
                f"callbacks.{name}",
                callback.ckpt_path,
                "is there already, and Lightning would start from it: remove it",
            )
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor not in measured and not own:  # a user's own callback may log it
            close = difflib.get_close_matches(str(monitor), measured, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(measured)}"
            raise SettingError(f"callbacks.{name}.monitor", monitor, f"nothing of that name is measured; {hint}")
        if isinstance(callback, LearningRateMonitor | DeviceStatsMonitor | ThroughputMonitor) and not logs:
            raise SettingError(
                f"callbacks.{name}",
                type(callback).__name__,
                "tells loggers, and there is none: add one with logger=csv",
            )
