"""One run, from its configuration to its record: build, fit, score, complete.

`train` is the callable under `mnist-train` (cli.py). The optimizer step is in classifier.py.
"""

import logging
import os
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningDataModule, Trainer
from omegaconf import DictConfig, OmegaConf

from mnist_mlp.backbone import check_logits
from mnist_mlp.classes import check_classes
from mnist_mlp.classifier import Classifier, score
from mnist_mlp.run.checkpoint import DurableCheckpointIO, load_weights, read_checkpoint, weights_sha256
from mnist_mlp.run.directory import RunDirectory, disk_errors
from mnist_mlp.run.provenance import device_name, git_state, uncommitted_diff, versions
from mnist_mlp.run.recorder import Recorder
from mnist_mlp.run.signals import StopSignals
from mnist_mlp.run.trainer import ONE_PROCESS, QUIET, quiet
from mnist_mlp.seeds import stream_seed
from mnist_mlp.settings import SettingError, check_accelerator, flatten, name_network, settle
from mnist_mlp.steps.choice import choose
from mnist_mlp.tensorboard.events import Events

# Under `trainer`, where Lightning's users look for them, but taken by the classifier, which makes the optimizer steps.
CLASSIFIERS_SETTINGS = ("gradient_clip_val", "gradient_clip_algorithm", "steps")

log = logging.getLogger(__name__)


class Session(NamedTuple):
    """What one session of a run works with; a run that is stopped and resumed has several sessions.

    Args:
        events: what TensorBoard shows; None where that is switched off.
        done: epochs that earlier sessions have made.
    """

    datamodule: LightningDataModule
    classifier: Classifier
    trainer: Trainer
    recorder: Recorder
    events: Events | None
    done: int


def train(config: DictConfig) -> dict[str, Any]:
    """Trains, tests and records one run. A run that was stopped goes on; a complete one is left alone.

    Args:
        config: as `conf/train.yaml` composes it, without Hydra's own node.

    Returns:
        What `run.json` holds.

    Raises:
        SettingError: a setting cannot be used, or `run_dir` holds a run with other settings or cannot be written.
        InterruptionError: a signal asked the run to stop. It stopped after an optimizer step, and can be resumed.
        NonFiniteLossError: a loss became NaN or infinite. The run is marked failed; what was written is kept.
    """
    settle(config)
    check_accelerator(config.trainer.accelerator)  # this and the next before there is a directory
    check_classes(config)
    with disk_errors(config.run_dir), RunDirectory(Path(config.run_dir)) as run, StopSignals() as signals, quiet():
        if run.is_complete(config):
            log.info("%s is complete: nothing to run", os.path.relpath(run.path))
            return run.read_record()
        run.update_record(status="running", error=None)  # before the configuration: a longer run is not complete
        run.write_config(config)
        try:
            with ExitStack() as opened:
                session = build(config, run, signals, opened)
                run.write_config(config)  # again: now it says which steps are made
                fit(session, config, run)
                complete(session, run)
            return run.read_record()
        except BaseException as error:
            # Lightning has an exception of its own for SIGTERM. Whatever it raised, a signal was the cause.
            status = "interrupted" if signals.received else "failed"
            with suppress(OSError):  # on a full disk, the error that is raised below says so
                run.update_record(status=status, error=f"{type(error).__name__}: {error}", epochs=run.epochs_written())
            signals.check()
            raise


def build(config: DictConfig, run: RunDirectory, signals: StopSignals, opened: ExitStack) -> Session:
    """Builds what the configuration names; `opened` closes what must be closed at the session's end."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    # Adam's averages for units that died shrink into denormal numbers, which slow a processor down: without this,
    # Network B's epochs take a quarter longer from the second on.
    torch.set_flush_denormal(True)
    # deterministic=true has PyTorch fill each new tensor, which nothing here reads before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    checkpoint = read_checkpoint(run.last, "run_dir") if run.last.exists() else None
    if checkpoint:
        run.refuse_checkpoint(checkpoint, config)
    done = checkpoint["epoch"] + 1 if checkpoint else 0
    datamodule = instantiate(config.data)
    torch.manual_seed(stream_seed(config.seed, "weights"))
    backbone = instantiate(config.model)
    check_logits(backbone, "model", config.network)
    make_optimizer = instantiate(config.optimizer)
    optimizer = _make("optimizer", make_optimizer, backbone.parameters())  # only now does it look at its arguments
    config.trainer.steps = choose(config.trainer.steps, backbone, optimizer, config.trainer.accelerator)
    classifier = Classifier(
        backbone,
        make_optimizer,
        instantiate(config.scheduler) if "_target_" in config.scheduler else None,
        average=config.average,
        seed=config.seed,
        gradient_clip_val=config.trainer.gradient_clip_val,
        gradient_clip_algorithm=config.trainer.gradient_clip_algorithm,
        steps=config.trainer.steps,
        threads=torch.get_num_threads(),
        before_step=signals.check,
        hyperparameters=OmegaConf.to_container(config),  # type: ignore[arg-type]
    )
    if classifier.scheduler is not None:
        _make("scheduler", classifier.scheduler, optimizer)
    if checkpoint:
        load_weights(classifier, checkpoint, "run_dir", run.last)  # before Lightning does, with a traceback
    events = None
    recorder = Recorder(run, signals)
    callbacks: list[Callback] = [recorder]
    if config.get("tensorboard", {}).get("enabled", True):  # recorded configurations of old have no such setting
        events = opened.enter_context(closing(Events(run, config, done)))
        recorder.on_epoch = events.epoch
        callbacks.append(events)
    trainer = _make(
        "trainer",
        Trainer,
        **QUIET,
        **{key: value for key, value in config.trainer.items() if key not in CLASSIFIERS_SETTINGS},
        logger=events.logger if events else False,
        callbacks=[*callbacks, *(instantiate(callback) for callback in config.callbacks.values())],
        plugins=[DurableCheckpointIO(), ONE_PROCESS()],
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    return Session(datamodule, classifier, trainer, recorder, events, done)


def fit(session: Session, config: DictConfig, run: RunDirectory) -> None:
    """Records on what the run is made, and trains."""
    run.update_record(
        experiment=config.experiment,
        model=name_network(config.network, flatten(OmegaConf.to_container(config))),
        seed=config.seed,
        epochs=session.done,
        threads=torch.get_num_threads(),
        steps=config.trainer.steps,
        device=device_name(session.trainer.strategy.root_device),
        git=git_state(),
        versions=versions(),
    )
    run.write_uncommitted(uncommitted_diff())
    if session.done:
        log.info("resuming %s after epoch %d", os.path.relpath(run.path), session.done)
    last = run.last if session.done else None
    session.trainer.fit(session.classifier, session.datamodule, ckpt_path=last, weights_only=True)
    run.write_metrics(session.recorder.rows)  # again: a kill in the last epoch may have come after the checkpoint only


def complete(session: Session, run: RunDirectory) -> None:
    """Tests the last and the best weights, and records the results."""
    datamodule, classifier, trainer, recorder, events, _ = session
    rows, best = recorder.rows, recorder.best
    sha256 = weights_sha256(classifier.state_dict())
    test = {"last": score(trainer, classifier, datamodule)}
    if events:
        events.last(classifier, datamodule, len(rows))
    # Trainer.test's own ckpt_path would also put the callbacks back to where they were at the best epoch.
    classifier.load_state_dict(read_checkpoint(run.best, "run_dir")["state_dict"])
    test["best"] = score(trainer, classifier, datamodule)
    if events:
        events.best(classifier, datamodule, len(rows), int(best["epoch"]), test["last"])
    run.update_record(
        status="completed",
        epochs=len(rows),
        best=best,
        final=rows[-1],
        test=test,
        weights_sha256=sha256,
        data_sha256=getattr(datamodule, "data_sha256", None),  # a data module of one's own may not say
        wall_seconds=round(recorder.wall_seconds(), 3),
    )
    log.info("%s: %s", os.path.relpath(run.path), recorder.conclusion(test))


def _make(setting: str, make: Any, *arguments: Any, **keywords: Any) -> Any:
    """Raises: SettingError, where `make`, a class or a function, refuses its arguments."""
    try:
        return make(*arguments, **keywords)
    except Exception as error:  # whatever a user's own class raises
        name = getattr(getattr(make, "func", make), "__qualname__", make)
        raise SettingError(setting, name, f"could not be made ({' '.join(str(error).split())})") from error
