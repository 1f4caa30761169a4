"""The callback that writes the run directory, once an epoch: metrics, checkpoints, progress."""

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from tqdm import tqdm

from mnist_mlp.classifier import Classifier
from mnist_mlp.run.directory import RunDirectory
from mnist_mlp.run.metrics import COLUMNS, Row
from mnist_mlp.run.signals import StopSignals
from mnist_mlp.run.streams import random_states, set_random_states

Watch = Callable[[Trainer, Classifier, Row, Row], None]


class Recorder(Checkpoint):
    """Notes each epoch in the run directory.

    `best.ckpt` is the epoch of highest `val/accuracy`, the earliest of a tie. It is written before `last.ckpt`, so that
    a run killed between the two resumes from the older `last.ckpt` and writes the same `best.ckpt` again.

    Args:
        run: where to.
        signals: looked at between epochs and between the batches of an evaluation.
        watch: is given each epoch before its checkpoint is written: the epoch's row, and the best epoch so far. A run
            that is killed in between repeats the epoch.
    """

    def __init__(self, run: RunDirectory, signals: StopSignals, watch: Watch = lambda *_: None) -> None:
        self.run, self.signals, self.watch = run, signals, watch
        self.rows: list[Row] = []
        self.best: Row = {}
        self._epoch_started = self._session_started = time.perf_counter()
        self._earlier_seconds = 0.0
        self._progress: tqdm[Any] | None = None
        self._random_states: dict[str, Any] = {}
        self._stopped = False  # by a callback such as EarlyStopping

    def wall_seconds(self) -> float:
        """Seconds spent on the run so far, over all its sessions, less what kills made it repeat."""
        return self._earlier_seconds + time.perf_counter() - self._session_started

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._progress = tqdm(
            total=trainer.max_epochs,
            initial=len(self.rows),
            unit="epoch",
            disable=None,  # on anything but a terminal
            dynamic_ncols=True,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._random_states:
            set_random_states(self._random_states)
        trainer.should_stop = trainer.should_stop or self._stopped

    def on_validation_batch_start(self, *arguments: Any, **keywords: Any) -> None:
        self.signals.check()

    def on_test_batch_start(self, *arguments: Any, **keywords: Any) -> None:
        self.signals.check()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        measured = pl_module.measured | {
            "epoch": trainer.current_epoch + 1,
            "seconds": round(time.perf_counter() - self._epoch_started, 4),
        }
        row = {name: measured[name] for name in COLUMNS}
        self.rows.append(row)
        self._stopped = trainer.should_stop
        better = not self.best or row["val/accuracy"] > self.best["val/accuracy"]
        if better:
            self.best = {"epoch": row["epoch"], "val/accuracy": row["val/accuracy"]}
        self.watch(trainer, pl_module, row, self.best)
        if better:
            trainer.save_checkpoint(self.run.best, weights_only=False)
        trainer.save_checkpoint(self.run.last, weights_only=False)
        self.run.write_metrics(self.rows)
        if self._progress is not None:
            self._progress.set_postfix(
                loss=f"{row['train/loss']:.4f}", accuracy=f"{row['val/accuracy']:.2%}", refresh=False
            )
            self._progress.update()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._progress is not None:
            self._progress.close()

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
