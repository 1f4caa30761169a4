"""The callback that writes the run directory, once an epoch: metrics, checkpoints, progress."""

import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mnist_mlp.classifier import Classifier
from mnist_mlp.run.checkpoint import read_checkpoint
from mnist_mlp.run.directory import RunDirectory
from mnist_mlp.run.metrics import COLUMNS, Row
from mnist_mlp.run.signals import StopSignals
from mnist_mlp.run.streams import random_states, set_random_states

OnEpoch = Callable[[Trainer, Classifier, Row, Row], None]


class Recorder(Checkpoint):
    """Writes each epoch to the run directory, and shows the progress on a terminal.

    `best.ckpt` is the epoch of highest `val/accuracy`, the earliest of a tie. It is written before `last.ckpt`, so that
    a run killed between the two resumes from the older `last.ckpt` and writes the same `best.ckpt` again.

    Args:
        run: the directory.
        signals: checked between the batches of an evaluation.

        bar: whether to show the progress; not where a progress bar of Lightning's does.

    Attributes:
        on_epoch: called with each epoch's row and the best epoch so far, before its checkpoint is written. A run that
            is killed in between repeats the epoch.
        rows: the epochs so far.
        best: the best epoch, as `run.json` has it.
        began: training has begun, and what was to be taken from a checkpoint is.
        stopped_within: an epoch was stopped before its end, by a callback. It is not recorded.
    """

    def __init__(self, run: RunDirectory, signals: StopSignals, bar: bool = True) -> None:
        self.run, self.signals, self.bar = run, signals, bar
        self.on_epoch: list[OnEpoch] = []
        self.began = self.stopped_within = False
        self.rows: list[Row] = []
        self.best: Row = {}
        self._epoch_started = self._session_started = time.perf_counter()
        self._earlier_seconds = 0.0
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs, {task.fields[said]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            auto_refresh=False,  # without a thread: once an epoch is enough
            transient=True,
        )
        self._val_check_batch: int | float | None = 1
        self._random_states: dict[str, Any] = {}
        self._stopped = False  # by a callback such as EarlyStopping

    def wall_seconds(self) -> float:
        """Seconds spent on the run so far, over all its sessions, less what kills made it repeat."""
        return self._earlier_seconds + time.perf_counter() - self._session_started

    def conclusion(self, test: dict[str, dict[str, float]]) -> str:
        """What to say of a run that is complete; `test` is as `run.json` has it."""
        return (
            f"{len(self.rows)} epoch{'' if len(self.rows) == 1 else 's'}, "
            f"validation accuracy {self.rows[-1]['val/accuracy']:.2%}, "
            f"best {self.best['val/accuracy']:.2%} in epoch {self.best['epoch']}, "
            f"test {test['last']['accuracy']:.2%} with the last weights and "
            f"{test['best']['accuracy']:.2%} with the best"
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.bar and self._progress.console.is_terminal:
            self._progress.add_task(
                "", total=trainer.max_epochs, completed=len(self.rows), said="the first is on its way"
            )
            self._progress.start()
            self._progress.refresh()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._random_states:
            set_random_states(self._random_states)
        trainer.should_stop = trainer.should_stop or self._stopped
        self.began = True

    def on_validation_batch_start(self, *arguments: Any, **keywords: Any) -> None:
        self.signals.check()

    def on_test_batch_start(self, *arguments: Any, **keywords: Any) -> None:
        self.signals.check()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_started = time.perf_counter()
        self._val_check_batch = trainer.val_check_batch

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any, **keywords: Any) -> None:
        # An epoch is validated at its end too, which val_check_interval may not fall on: its row is of the weights in
        # its checkpoint.
        trainer.val_check_batch = 1 if trainer.is_last_batch else self._val_check_batch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        trainer.val_check_batch = self._val_check_batch
        if not trainer.is_last_batch:
            self.stopped_within = True
            return
        measured = pl_module.measured | {
            "epoch": trainer.current_epoch + 1,
            "seconds": round(time.perf_counter() - self._epoch_started, 4),
        }
        row = {name: measured[name] for name in (*COLUMNS, *(f"val/{name}" for name in pl_module.more_metrics))}
        self.rows.append(row)
        self._stopped = trainer.should_stop
        better = not self.best or row["val/accuracy"] > self.best["val/accuracy"]
        if better:
            self.best = {"epoch": row["epoch"], "val/accuracy": row["val/accuracy"]}
        for tell in self.on_epoch:
            tell(trainer, pl_module, row, self.best)
        if better:
            trainer.save_checkpoint(self.run.best, weights_only=False)
        trainer.save_checkpoint(self.run.last, weights_only=False)
        self.run.write_metrics(self.rows)
        for task in self._progress.task_ids:
            said = f"training loss {row['train/loss']:.4f}, validation accuracy {row['val/accuracy']:.2%}"
            self._progress.update(task, completed=len(self.rows), said=said, refresh=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # StochasticWeightAveraging puts its weights in place only now: they are the run's last ones.
        if len(self.rows) == trainer.current_epoch and not self.stopped_within and self.run.last.exists():
            saved = read_checkpoint(self.run.last, "run_dir")["state_dict"]
            now = pl_module.state_dict()
            if any(not torch.equal(now[name].cpu(), tensor) for name, tensor in saved.items()):
                trainer.save_checkpoint(self.run.last, weights_only=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._progress.task_ids:  # it ends with a line break even where it was never started
            self._progress.stop()

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "best": self.best,
            "wall_seconds": self.wall_seconds(),
            "random_states": random_states(),
            "stopped": self._stopped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.best = state_dict["rows"], state_dict["best"]
        self._earlier_seconds = state_dict["wall_seconds"]
        self._random_states = state_dict["random_states"]
        self._stopped = state_dict["stopped"]
