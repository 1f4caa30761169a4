"""One run, from its configuration to its record: build, fit, score, complete.

`train` is the callable under `mnist-train` (cli.py). The optimizer step is in classifier.py.
"""

import difflib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    LearningRateMonitor,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    ProgressBar,
    ThroughputMonitor,
    Timer,
)
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer
from torchmetrics import Metric

from mnist_mlp.backbone import check_logits
from mnist_mlp.classifier import Classifier, score
from mnist_mlp.datamodule import MINIBATCHES_PER_STEP, MNISTDataModule
from mnist_mlp.run.checkpoint import DurableCheckpointIO, load_weights, read_checkpoint, weights_sha256
from mnist_mlp.run.directory import RunDirectory, disk_errors
from mnist_mlp.run.identity import complete as completed_settings
from mnist_mlp.run.loggers import Loggers, loggers_of
from mnist_mlp.run.metrics import COLUMNS
from mnist_mlp.run.notebook import settings_of
from mnist_mlp.run.provenance import arithmetic, device_name, git_state, not_portable, uncommitted_diff, versions
from mnist_mlp.run.recorder import Recorder
from mnist_mlp.run.signals import StopSignals
from mnist_mlp.run.trainer import ONE_PROCESS, QUIET, own_process, quiet
from mnist_mlp.seeds import stream_seed
from mnist_mlp.settings import OUR_LOSS, SettingError, check_accelerator, cuts, flatten, name_network, settle
from mnist_mlp.steps.choice import choose
from mnist_mlp.tensorboard.events import Events

# Under `trainer`, where Lightning's users look for them, but taken by the classifier, which makes the optimizer steps;
# and one that is a callback: an epoch is recorded whole, so time is up at the end of one.
NOT_THE_TRAINERS = ("gradient_clip_val", "gradient_clip_algorithm", "steps", "max_time")
# Beside a scheduler's arguments, as in Lightning's configuration of one.
OF_SCHEDULER = ("interval", "frequency", "monitor")

log = logging.getLogger(__name__)


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
    optimizer: torch.optim.Optimizer
    callbacks: dict[str, Callback]


@dataclass
class Session:
    """What one session of a run works with; a run that is stopped and resumed has several sessions.

    Args:
        optimizer: one like that of the classifier, which makes its own when it is fitted.
        events: what TensorBoard shows; None where that is switched off.
        done: epochs that earlier sessions have made.
    """

    datamodule: LightningDataModule
    classifier: Classifier
    optimizer: Optimizer
    trainer: Trainer
    recorder: Recorder
    loggers: Loggers
    events: Events | None
    done: int


def train(config: DictConfig) -> dict[str, Any]:
    """Trains, tests and records one run. A run that was stopped goes on; a complete one is left alone.

    Afterwards the process is as it was: its random generators, PyTorch's flags and threads, signals and logging.

    Args:
        config: as `conf/train.yaml` composes it, by `mnist-train` or Hydra's `compose`, or as a run's `config.yaml` has
            it. It is not changed.

    Returns:
        What `run.json` holds.

    Raises:
        SettingError: a setting cannot be used, or `run_dir` holds a run with other settings or cannot be written.
        InterruptionError: a signal asked the run to stop. It stopped after an optimizer step, and can be resumed.
        NonFiniteLossError: a loss became NaN or infinite. The run is marked failed; what was written is kept.
    """
    config = settings_of(config)
    completed_settings(config)
    settle(config)
    check_accelerator(config.trainer.accelerator)
    with ExitStack() as opened:
        opened.enter_context(own_process(config.threads))
        opened.enter_context(quiet())
        # Before there is a directory; a Hydra job has one already, where its failure is recorded.
        parts = None if HydraConfig.initialized() else build(config)
        opened.enter_context(disk_errors(config.run_dir))
        run = opened.enter_context(RunDirectory(Path(config.run_dir)))
        signals = opened.enter_context(StopSignals())
        if run.is_complete(config):
            log.info("%s is complete: nothing to run", os.path.relpath(run.path))
            return run.read_record()
        run.update_record(status="running", error=None)  # before the configuration: a longer run is not complete
        run.write_config(config)
        try:
            with ExitStack() as of_session:
                session = connect(parts or build(config), config, run, signals, of_session)
                run.write_config(config)  # again: now it says which steps are made
                fit(session, config, run)
                complete(session, config, run)
            return run.read_record()
        except BaseException as error:
            # Lightning has an exception of its own for SIGTERM. Whatever it raised, a signal was the cause.
            status = "interrupted" if signals.received else "failed"
            with suppress(OSError):  # on a full disk, the error that is raised below says so
                run.update_record(status=status, error=f"{type(error).__name__}: {error}", epochs=run.epochs_written())
            signals.check()
            if isinstance(error, MisconfigurationException):  # Lightning's, for settings that do not go together
                raise SettingError("trainer", "Trainer", f"cannot be used so ({_one_line(error)})") from error
            raise


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
    loss, metrics = _loss(config), _metrics(config)
    make_optimizer = instantiate(config.optimizer)
    optimizer = _make("optimizer", make_optimizer, backbone.parameters())  # only now does it look at its arguments
    scheduler = {name: value for name, value in config.scheduler.items() if name not in OF_SCHEDULER}
    make_scheduler = instantiate(OmegaConf.create(scheduler)) if "_target_" in scheduler else None
    if make_scheduler is not None:
        unknown = {"total_steps": 1000} if scheduler.get("total_steps", 0) is None else {}  # until there is a run
        _make("scheduler", make_scheduler, optimizer, **unknown)
    callbacks = {str(name): instantiate(entry) for name, entry in config.callbacks.items() if entry is not None}
    check_callbacks(callbacks, [*COLUMNS, *(f"val/{name}" for name in metrics)], bool(loggers) or _shows_events(config))
    if config.trainer.get("max_time"):
        time: Any = OmegaConf.to_container(OmegaConf.create({"max": config.trainer.max_time}))
        callbacks["trainer.max_time"] = _make("trainer.max_time", Timer, time["max"], interval="epoch", verbose=False)
    choose(config, backbone, optimizer, callbacks)
    return Parts(datamodule, backbone, loss, metrics, make_optimizer, make_scheduler, optimizer, callbacks)


def connect(parts: Parts, config: DictConfig, run: RunDirectory, signals: StopSignals, opened: ExitStack) -> Session:
    """Connects the parts with the run's directory; `opened` closes what must be closed at the session's end."""
    checkpoint = read_checkpoint(run.last, "run_dir") if run.last.exists() else None
    if checkpoint:
        run.refuse_checkpoint(checkpoint, config)
    done = checkpoint["epoch"] + 1 if checkpoint else 0
    config.trainer.steps, grouped, why = choose(config, parts.backbone, parts.optimizer, parts.callbacks)
    if why:
        log.info(why)
    if grouped and isinstance(parts.datamodule, MNISTDataModule):
        parts.datamodule.group(MINIBATCHES_PER_STEP)
    classifier = Classifier(
        parts.backbone,
        parts.make_optimizer,
        parts.make_scheduler,
        loss=parts.loss,
        average=config.average,
        metrics=parts.metrics,
        **{name: config.scheduler[name] for name in OF_SCHEDULER if name in config.scheduler},
        seed=config.seed,
        gradient_clip_val=config.trainer.gradient_clip_val,
        gradient_clip_algorithm=config.trainer.gradient_clip_algorithm,
        steps=config.trainer.steps if grouped else None,
        threads=torch.get_num_threads(),
        before_step=signals.check,
        hyperparameters=OmegaConf.to_container(config),  # type: ignore[arg-type]
        to_loggers=False,
    )
    if checkpoint:
        load_weights(classifier, checkpoint, "run_dir", run.last)  # before Lightning does, with a traceback
    settings = {**QUIET, **{key: value for key, value in config.trainer.items() if key not in NOT_THE_TRAINERS}}
    callbacks = list(parts.callbacks.values())
    settings["enable_progress_bar"] |= any(isinstance(callback, ProgressBar) for callback in callbacks)
    recorder = Recorder(run, signals, bar=not settings["enable_progress_bar"])
    loggers = opened.enter_context(Loggers(config, run, lambda: recorder.rows).closing())
    recorder.on_epoch.append(loggers.epoch)
    events = None
    if _shows_events(config):
        events = opened.enter_context(closing(Events(run, config, done)))
        recorder.on_epoch.append(events.epoch)
    for name, callback in parts.callbacks.items():
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(run.last.parent / name)  # apart from the run's own last.ckpt
    trainer = _make(
        "trainer",
        Trainer,
        **settings,
        logger=[*([events.logger] if events else []), *loggers.all],
        callbacks=[recorder, loggers, *([events] if events else []), *callbacks],
        plugins=[DurableCheckpointIO(), ONE_PROCESS()],
    )
    return Session(parts.datamodule, classifier, parts.optimizer, trainer, recorder, loggers, events, done)


def fit(session: Session, config: DictConfig, run: RunDirectory) -> None:
    """Records on what the run is made, and trains."""
    device = session.trainer.strategy.root_device
    reason = not_portable(config.portable, config.trainer.steps, device, session.optimizer)
    if config.portable and reason:
        log.warning("its bits hold on this kind of processor only: %s", reason)
    run.update_record(
        experiment=config.experiment,
        model=name_network(config.network, flatten(OmegaConf.to_container(config))),
        seed=config.seed,
        epochs=session.done,
        cut_down=cuts(config) or None,
        threads=torch.get_num_threads(),
        steps=config.trainer.steps,
        device=device_name(device),
        portable=reason is None,
        not_portable=reason,
        arithmetic=arithmetic(),
        git=git_state(),
        versions=versions(),
    )
    run.write_uncommitted(uncommitted_diff())
    if session.done:
        log.info("resuming %s after epoch %d", os.path.relpath(run.path), session.done)
    last = run.last if session.done else None
    session.trainer.fit(session.classifier, session.datamodule, ckpt_path=last, weights_only=True)
    run.write_metrics(session.recorder.rows)  # again: a kill in the last epoch may have come after the checkpoint only


def complete(session: Session, config: DictConfig, run: RunDirectory) -> None:
    """Tests the last and the best weights, as their files hold them, and records the results."""
    datamodule, classifier, trainer, events = session.datamodule, session.classifier, session.trainer, session.events
    rows, best = session.recorder.rows, session.recorder.best
    if not rows:
        raise SettingError(
            "callbacks", list(config.callbacks), "stopped the run within its first epoch: nothing is kept"
        )
    timers = [one for one in trainer.callbacks if isinstance(one, Timer)]  # type: ignore[attr-defined]
    cut_down = cuts(config)
    if config.trainer.get("max_time") and len(rows) < config.trainer.max_epochs:
        cut_down += ["trainer.max_time"] if any((timer.time_remaining() or 0) <= 0 for timer in timers) else []
    cut_down += ["callbacks"] if session.recorder.stopped_within else []
    # Trainer.test's own ckpt_path would also put the callbacks back to where they were at that epoch.
    classifier.load_state_dict(read_checkpoint(run.last, "run_dir")["state_dict"])
    sha256 = weights_sha256(classifier.state_dict())
    test = {"last": score(trainer, classifier, datamodule)}
    if events:
        events.last(classifier, datamodule, len(rows))
    classifier.load_state_dict(read_checkpoint(run.best, "run_dir")["state_dict"])
    test["best"] = score(trainer, classifier, datamodule)
    if events:
        events.best(classifier, datamodule, len(rows), int(best["epoch"]), test["last"])
    session.loggers.results(test, len(rows))
    run.update_record(
        status="completed",
        epochs=len(rows),
        cut_down=cut_down or None,
        best=best,
        final=rows[-1],
        test=test,
        weights_sha256=sha256,
        data_sha256=getattr(datamodule, "data_sha256", None),  # a data module of one's own may not say
        wall_seconds=round(session.recorder.wall_seconds(), 3),
    )
    log.info("%s: %s", os.path.relpath(run.path), session.recorder.conclusion(test))


def _make(setting: str, make: Any, *arguments: Any, **keywords: Any) -> Any:
    """Raises: SettingError, where `make`, a class or a function, refuses its arguments."""
    try:
        return make(*arguments, **keywords)
    except Exception as error:  # whatever a user's own class raises
        name = getattr(getattr(make, "func", make), "__qualname__", make)
        raise SettingError(setting, name, f"could not be made ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _shows_events(config: DictConfig) -> bool:
    """Whether the run has TensorBoard."""
    return bool(config.logger.get("tensorboard")) and bool(config.get("tensorboard", {}).get("enabled", True))


def _loss(config: DictConfig) -> nn.Module:
    """Raises: SettingError, where the loss is no mean over two images."""
    wanted = "must be an nn.Module from logits (N, 10) and labels (N,) to a mean ()"
    settings, target = dict(config.loss), config.loss.get("_target_")
    if target != OUR_LOSS:  # loss._target_=CLASS keeps what stands beside it: of no meaning where it changes nothing
        settings = {name: value for name, value in settings.items() if value not in (None, 0)}
    loss = instantiate(OmegaConf.create(settings))
    if not isinstance(loss, nn.Module):
        raise SettingError("loss", target, f"{wanted}, and is {type(loss).__name__}")
    try:
        value = loss(torch.zeros(2, 10), torch.tensor([0, 1]))
    except Exception as error:  # whatever a user's own class raises
        raise SettingError("loss", target, f"{wanted}, and fails ({_one_line(error)})") from error
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
            raise SettingError(setting, target, f"{wanted}, and fails ({_one_line(error)})") from error
        found[str(name)] = metric
    return found


def check_callbacks(callbacks: Mapping[str, Any], measured: Sequence[str], logs: bool) -> None:
    """Raises: SettingError, where one is no callback, watches what is not measured or has no logger to tell."""
    own = any(not type(callback).__module__.startswith("lightning.") for callback in callbacks.values())
    for name, callback in callbacks.items():
        if not isinstance(callback, Callback):
            raise SettingError(f"callbacks.{name}", type(callback).__name__, "must be a Lightning Callback")
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


class _Callable(ModuleType):
    """`mnist_mlp.train` is this module, and by its use in `from mnist_mlp import train` the function."""

    def __call__(self, config: DictConfig) -> dict[str, Any]:
        return train(config)


sys.modules[__name__].__class__ = _Callable
