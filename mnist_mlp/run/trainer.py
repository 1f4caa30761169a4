"""Lightning's Trainer as this project uses it: one process, one device, quiet, and with nothing left behind."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar

from mnist_mlp.datamodule import Minibatches, TrainingEpoch
from mnist_mlp.run.streams import random_states, set_random_states

# What every Trainer of this project is given: Lightning's own bar and summary cost time at every step. In a job of
# Slurm's, Lightning would take the process for one of several, and queue the job again itself: it is told otherwise.
QUIET: dict[str, Any] = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
}
ONE_PROCESS = LightningEnvironment


class CountsMinibatches(ProgressBar):
    """Mixed into a progress bar of Lightning's: to Lightning a group of minibatches is one batch."""

    @property
    def total_train_batches(self) -> int | float:
        loader = self.trainer.train_dataloader
        if isinstance(loader, TrainingEpoch) and loader.group:
            return loader.minibatches
        return super().total_train_batches

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if isinstance(batch, Minibatches):
            batch_idx = batch.first + len(batch) - 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def count_minibatches(bar: ProgressBar) -> None:
    """Has a progress bar, of whatever class, count minibatches where they are trained on in groups."""
    kind = type(bar)
    bar.__class__ = type(kind.__name__, (CountsMinibatches, kind), {"__module__": kind.__module__})


# What Lightning says under these is what somebody asked for.
ASKED_FOR = ("lightning.pytorch.profilers", "lightning.pytorch.callbacks.model_summary")


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves out what Lightning says at every run and a user can do nothing about; its warnings are shown."""
    levels = {"lightning.pytorch": logging.WARNING} | dict.fromkeys(ASKED_FOR, logging.INFO)
    loggers = {logging.getLogger(name): level for name, level in levels.items()}
    before = {logger: logger.level for logger in loggers}
    for logger, level in loggers.items():
        logger.setLevel(level)  # it announces devices, limits and its own cloud
    with warnings.catch_warnings():
        # Lightning 2.6.6 uses a name of PyTorch 2.14 that is deprecated.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)
        # Where Slurm is installed, Lightning takes every run for one of several processes that was started wrongly.
        warnings.filterwarnings("ignore", message="The `srun` command is available", category=UserWarning)
        # A run that goes on finds what it has written.
        warnings.filterwarnings("ignore", message=".*directory .* exists and is not empty", category=UserWarning)
        # With an OnExceptionCheckpoint, Lightning looks for its file, which there is none of.
        warnings.filterwarnings("ignore", message=".*ckpt_path=None.* was called without a model", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*there is no last checkpoint available", category=UserWarning)
        try:
            yield
        finally:
            for logger, level in before.items():
                logger.setLevel(level)


@contextmanager
def own_process(threads: int | None) -> Iterator[None]:
    """What a run sets for its whole process, put back at its end: PyTorch's flags and threads, every random generator
    and the environment.

    Args:
        threads: of PyTorch's on the CPU; None leaves them.
    """
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    before, cudnn = torch.get_num_threads(), (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    flushed = (torch.tensor(1e-310, dtype=torch.float64) * 1).item() == 0
    generators, environment = random_states(), dict(os.environ)
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        # Adam's averages for units that died shrink into denormal numbers, which slow a processor down: without this,
        # Network B's epochs take a quarter longer from the second on.
        torch.set_flush_denormal(True)
        # deterministic=true has PyTorch fill each new tensor, which nothing here reads before it is written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(flushed)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
        set_random_states(generators)
        for name in os.environ.keys() - environment.keys():  # Lightning's
            del os.environ[name]
