"""One run, from its configuration to its record: build, fit, score, complete.

`train` is the callable under `mnist-train` (cli.py). The optimizer step is in classifier.py.
"""

import logging
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, Timer
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer

from mnist_mlp.classes import check_classes
from mnist_mlp.classifier import Classifier, score
from mnist_mlp.datamodule import MINIBATCHES_PER_STEP, MNISTDataModule
from mnist_mlp.parts import Parts, build, make, shows_events
from mnist_mlp.run.checkpoint import DurableCheckpointIO, load_weights, read_checkpoint, read_resumable, weights_sha256
from mnist_mlp.run.directory import RunDirectory, disk_errors
from mnist_mlp.run.loggers import Loggers
from mnist_mlp.run.notebook import settings_of
from mnist_mlp.run.provenance import arithmetic, device_name, git_state, not_portable, uncommitted_diff, versions
from mnist_mlp.run.recorder import Recorder
from mnist_mlp.run.signals import StopSignals
from mnist_mlp.run.trainer import ONE_PROCESS, QUIET, count_minibatches, own_process, quiet
from mnist_mlp.settings import (
    OF_SCHEDULER,
    SettingError,
    check_accelerator,
    cuts,
    ended_itself,
    flatten,
    name_network,
)
from mnist_mlp.steps.choice import choose
from mnist_mlp.surroundings import one_line
from mnist_mlp.tensorboard.events import Events

# Under `trainer`, where Lightning's users look for them, but taken by the classifier, which makes the optimizer steps;
# and one that is a callback: an epoch is recorded whole, so time is up at the end of one.
NOT_THE_TRAINERS = ("gradient_clip_val", "gradient_clip_algorithm", "steps", "max_time")

log = logging.getLogger(__name__)


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


def train(config: DictConfig, checked: bool = False) -> dict[str, Any]:
    """Trains, tests and records one run. A run that was stopped goes on; a complete one is left alone.

    Afterwards the process is as it was: its random generators, PyTorch's flags and threads, signals and logging.

    Args:
        config: as `conf/train.yaml` composes it, by `mnist-train` or Hydra's `compose`, or as a run's `config.yaml` has
            it. It is not changed.
        checked: whether what it names has been found and made on trial: `mnist-train` does that before Hydra makes a
            directory.

    Returns:
        What `run.json` holds.

    Raises:
        SettingError: a setting cannot be used, or `run_dir` holds a run with other settings or cannot be written.
        InterruptionError: a signal asked the run to stop. It stopped after an optimizer step, and can be resumed.
        NonFiniteLossError: a loss became NaN or infinite. The run is marked failed; what was written is kept.
    """
    config = settings_of(config)
    if not checked:  # before there is a directory
        check_accelerator(config.trainer.accelerator)
        check_classes(config)
    with ExitStack() as opened:
        opened.enter_context(own_process(config.threads))
        opened.enter_context(quiet())
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
                session = connect(build(config), config, run, signals, of_session)
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
            if isinstance(error, SystemExit):
                raise ended_itself(error) from error
            if isinstance(error, MisconfigurationException):  # Lightning's, for settings that do not go together
                raise SettingError("trainer", "Trainer", f"cannot be used so ({one_line(error)})") from error
            raise


def connect(parts: Parts, config: DictConfig, run: RunDirectory, signals: StopSignals, opened: ExitStack) -> Session:
    """Connects the parts with the run's directory; `opened` closes what must be closed at the session's end."""
    checkpoint = read_resumable(run.last, "run_dir") if os.path.lexists(run.last) else None
    if checkpoint:
        run.refuse_checkpoint(checkpoint, config)
    done = checkpoint["epoch"] + 1 if checkpoint else 0
    config.trainer.steps, grouped, why = choose(config, parts.backbone, parts.optimizer, parts.callbacks)
    if why:
        log.info(why)
    if grouped and isinstance(parts.datamodule, MNISTDataModule):
        parts.datamodule.group(MINIBATCHES_PER_STEP)
    classifier = _classifier(parts, config, grouped, signals)
    if checkpoint:
        load_weights(classifier, checkpoint, "run_dir", run.last)  # before Lightning does, with a traceback
    callbacks = list(parts.callbacks.values())
    bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
    for bar in bars:
        count_minibatches(bar)
    recorder = Recorder(run, signals, bar=not bars)
    loggers = opened.enter_context(Loggers(config, run, lambda: recorder.rows).closing())
    recorder.on_epoch.append(loggers.epoch)
    events = None
    if shows_events(config):
        events = opened.enter_context(closing(Events(run, config, done)))
        recorder.on_epoch.append(events.epoch)
    _keep_apart(parts.callbacks, run)
    plain: Any = OmegaConf.to_container(config.trainer)
    given = {key: value for key, value in plain.items() if key not in NOT_THE_TRAINERS}
    trainer = make(
        "trainer",
        Trainer,
        **{**QUIET, **given, "enable_progress_bar": bool(bars), "default_root_dir": run.path},
        logger=[*([events.logger] if events else []), *loggers.all],
        callbacks=[recorder, loggers, *([events] if events else []), *callbacks],
        plugins=[DurableCheckpointIO(), ONE_PROCESS()],
    )
    return Session(parts.datamodule, classifier, parts.optimizer, trainer, recorder, loggers, events, done)


def _keep_apart(callbacks: Mapping[str, Callback], run: RunDirectory) -> None:
    """Gives the user's own checkpoints directories of their own, apart from the run's last.ckpt."""
    for name, callback in callbacks.items():
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(run.last.parent / name)


def _classifier(parts: Parts, config: DictConfig, grouped: bool, signals: StopSignals) -> Classifier:
    return Classifier(
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


def fit(session: Session, config: DictConfig, run: RunDirectory) -> None:
    """Records on what the run is made, and trains."""
    device = session.trainer.strategy.root_device
    reason = not_portable(config.portable, config.trainer.steps, device, session.optimizer)
    if config.portable and reason:
        log.warning("a rerun on another kind of CPU may differ: %s", reason)
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
    try:
        session.trainer.fit(session.classifier, session.datamodule, ckpt_path=last, weights_only=True)
    except (SettingError, MisconfigurationException, OSError):
        raise
    except Exception as error:
        if last is None or session.recorder.began:
            raise
        problem = (
            f"is damaged, and the run cannot go on from it ({type(error).__name__}: {one_line(error)}): restore it"
        )
        raise SettingError("run_dir", last, problem) from error
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


class _Callable(ModuleType):
    """`mnist_mlp.train` is this module, and by its use in `from mnist_mlp import train` the function."""

    def __call__(self, config: DictConfig) -> dict[str, Any]:
        return train(config)


sys.modules[__name__].__class__ = _Callable
