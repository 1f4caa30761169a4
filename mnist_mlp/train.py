"""One run, from its configuration to its record. `train` is the callable under `mnist-train`, which is in cli.py."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mnist_mlp.run.directory import DISK_ERRORS, RunDirectory
from mnist_mlp.run.signals import StopSignals
from mnist_mlp.settings import SettingError, check_accelerator, flatten, name_network, settle

# Under `trainer`, where Lightning's users look for them, but taken by the classifier, which makes the optimizer steps.
CLASSIFIERS_SETTINGS = ("gradient_clip_val", "gradient_clip_algorithm", "compile")

log = logging.getLogger(__name__)


@contextlib.contextmanager
def disk_errors(run_dir: str) -> Iterator[None]:
    """Raises: SettingError, where the disk is full or can no longer be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        problem = f"cannot be written ({error.strerror}): mend that, and the same command goes on where this stopped"
        raise SettingError("run_dir", os.path.relpath(run_dir), problem) from error


def train(config: DictConfig) -> dict[str, Any]:
    """Trains, tests and records one run; resumes it where it stopped, and leaves it alone where it is complete.

    Args:
        config: as `conf/train.yaml` composes it, without Hydra's own node.

    Returns:
        What `run.json` holds.

    Raises:
        SettingError: a setting cannot be used, or `run_dir` holds a run with other settings or cannot be written.
        InterruptionError: a signal asked the run to stop; it did, at the end of an optimizer step, and can be resumed.
        NonFiniteLossError: a loss became NaN or infinite; the run is marked failed, with what was written kept.
    """
    settle(config)
    if config.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(config.threads)  # read when torch is first imported
    check_accelerator(config.trainer.accelerator)  # before there is a directory
    with (
        disk_errors(config.run_dir),
        RunDirectory(Path(config.run_dir)) as run,
        StopSignals() as signals,
        contextlib.ExitStack() as opened,
    ):
        if run.last.exists():
            longer = run.refuse_other_settings(config)
            record = run.read_record()
            if record.get("status") == "completed" and not longer:
                log.info("%s is complete: nothing to run", os.path.relpath(run.path))
                return record
        run.update_record(status="running", error=None)  # first: a longer configuration is never complete already
        run.write_config(config)
        try:
            return _fit_and_test(config, run, signals, opened)
        except BaseException as error:
            # Lightning has an exception of its own for SIGTERM; whatever came out, a signal was the cause.
            status = "interrupted" if signals.received else "failed"
            with contextlib.suppress(OSError):  # a full disk: the cause is the sentence to end with
                run.update_record(status=status, error=f"{type(error).__name__}: {error}", epochs=run.epochs_written())
            signals.check()
            raise


def _fit_and_test(
    config: DictConfig, run: RunDirectory, signals: StopSignals, opened: contextlib.ExitStack
) -> dict[str, Any]:
    import torch
    from hydra.utils import instantiate
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.pytorch import Callback, Trainer

    from mnist_mlp.backbone import check_logits
    from mnist_mlp.classifier import Classifier, score
    from mnist_mlp.run.checkpoint import DurableCheckpointIO, load_weights, read_checkpoint, weights_sha256
    from mnist_mlp.run.provenance import device_name, git_state, uncommitted_diff, versions
    from mnist_mlp.run.recorder import Recorder
    from mnist_mlp.seeds import stream_seed

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    # Adam's moments of a unit that died decay into numbers too small for the format, with which a processor takes many
    # times as long: Network B's epochs would take a quarter longer from the second on.
    torch.set_flush_denormal(True)

    checkpoint = read_checkpoint(run.last, "run_dir") if run.last.exists() else None
    if checkpoint:
        run.refuse_checkpoint(checkpoint, config)
    done = checkpoint["epoch"] + 1 if checkpoint else 0
    datamodule = instantiate(config.data)
    torch.manual_seed(stream_seed(config.seed, "weights"))
    backbone = instantiate(config.model)
    check_logits(backbone, "model", config.network)
    classifier = Classifier(
        backbone,
        instantiate(config.optimizer),
        instantiate(config.scheduler) if "_target_" in config.scheduler else None,
        average=config.average,
        seed=config.seed,
        gradient_clip_val=config.trainer.gradient_clip_val,
        gradient_clip_algorithm=config.trainer.gradient_clip_algorithm,
        compile=config.trainer.compile,
        before_step=signals.check,
        hyperparameters=OmegaConf.to_container(config),  # type: ignore[arg-type]
    )
    # Only when they are made do these two look at what they are given.
    optimizer = _make("optimizer", classifier.optimizer, backbone.parameters())
    if classifier.scheduler is not None:
        _make("scheduler", classifier.scheduler, optimizer)
    if checkpoint:
        load_weights(classifier, checkpoint, "run_dir", run.last)  # before Lightning does, with a traceback
    events = None
    recorder = Recorder(run, signals)
    callbacks: list[Callback] = [recorder]
    if config.get("tensorboard", {}).get("enabled", True):  # a record from before there was such a setting has none
        from mnist_mlp.tensorboard.events import Events

        events = opened.enter_context(contextlib.closing(Events(run, config, done)))
        recorder.watch = events.epoch
        callbacks.append(events)
    trainer: Trainer = _make(
        "trainer",
        Trainer,
        **{key: value for key, value in config.trainer.items() if key not in CLASSIFIERS_SETTINGS},
        logger=events.logger if events else False,
        callbacks=[*callbacks, *(instantiate(callback) for callback in config.callbacks.values())],
        # In a job of Slurm's, Lightning would take it for one process of several, and queue it again itself.
        plugins=[DurableCheckpointIO(), LightningEnvironment()],
        enable_progress_bar=False,  # Lightning's costs time at every step; the recorder shows one per epoch
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    run.update_record(
        experiment=config.experiment,
        model=name_network(config.network, flatten(OmegaConf.to_container(config))),
        seed=config.seed,
        epochs=done,
        threads=torch.get_num_threads(),
        device=device_name(trainer.strategy.root_device),
        git=git_state(),
        versions=versions(),
    )
    run.write_uncommitted(uncommitted_diff())
    if done:
        log.info("resuming %s after epoch %d", os.path.relpath(run.path), done)
    trainer.fit(classifier, datamodule, ckpt_path=run.last if done else None, weights_only=True)
    run.write_metrics(recorder.rows)  # again: a run killed in its last epoch may have reached the checkpoint only
    sha256 = weights_sha256(classifier.state_dict())
    test = {"last": score(trainer, classifier, datamodule)}
    if events:
        events.last(classifier, datamodule, len(recorder.rows))
    # Not Trainer.test's own ckpt_path: it would also put the callbacks back to where they were at the best epoch.
    classifier.load_state_dict(read_checkpoint(run.best, "run_dir")["state_dict"])
    test["best"] = score(trainer, classifier, datamodule)
    if events:
        events.best(classifier, datamodule, len(recorder.rows), int(recorder.best["epoch"]), test["last"])
    run.update_record(
        status="completed",
        epochs=len(recorder.rows),
        best=recorder.best,
        final=recorder.rows[-1],
        test=test,
        weights_sha256=sha256,
        data_sha256=datamodule.data_sha256,
        wall_seconds=round(recorder.wall_seconds(), 3),
    )
    log.info(
        "%s: %d epoch%s, validation accuracy %.2f%%, best %.2f%% in epoch %d, test %.2f%% with the last weights and "
        "%.2f%% with the best",
        os.path.relpath(run.path),
        len(recorder.rows),
        "" if len(recorder.rows) == 1 else "s",
        100 * recorder.rows[-1]["val/accuracy"],
        100 * recorder.best["val/accuracy"],
        recorder.best["epoch"],
        100 * test["last"]["accuracy"],
        100 * test["best"]["accuracy"],
    )
    return run.read_record()


def _make(setting: str, make: Any, *arguments: Any, **keywords: Any) -> Any:
    """Raises: SettingError, where `make`, a class or a partial one, refuses its arguments."""
    try:
        return make(*arguments, **keywords)
    except Exception as error:  # whatever a user's own class raises
        name = getattr(getattr(make, "func", make), "__qualname__", make)
        raise SettingError(setting, name, f"could not be made ({' '.join(str(error).split())})") from error
