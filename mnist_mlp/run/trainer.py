"""Lightning's Trainer as this project uses it: one process, one device, and quiet."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment

# What every Trainer of this project is given: Lightning's own bar and summary cost time at every step. In a job of
# Slurm's, Lightning would take the process for one of several, and queue the job again itself: it is told otherwise.
QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
ONE_PROCESS = LightningEnvironment


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
