"""Lightning's Trainer as this project uses it: one process, one device, and quiet."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer


def make_trainer(*, plugins: list[Any] | None = None, **settings: Any) -> Trainer:
    """A Trainer without Lightning's own progress bar and summary, whose work at every step costs time."""
    # In a job of Slurm's, Lightning would take the process for one of several, and queue the job again itself.
    return Trainer(
        **settings,
        plugins=[*(plugins or []), LightningEnvironment()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves out what Lightning says at every run and a user can do nothing about; its warnings are shown."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)  # it announces devices, limits and its own cloud
    with warnings.catch_warnings():
        # Lightning 2.6.6 uses a name of PyTorch 2.14 that is deprecated.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)
        # Where Slurm is installed, Lightning takes every run for one of several processes that was started wrongly.
        warnings.filterwarnings("ignore", message="The `srun` command is available", category=UserWarning)
        try:
            yield
        finally:
            logger.setLevel(level)
