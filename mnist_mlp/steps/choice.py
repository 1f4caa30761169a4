"""`trainer.steps`: which steps a run is made with."""

import logging
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from mnist_mlp.settings import SettingError
from mnist_mlp.steps import native

Steps = Literal["eager", "compiled", "native"]

log = logging.getLogger(__name__)


def choose(asked: str, backbone: nn.Module, optimizer: Optimizer, accelerator: str) -> Steps:
    """The steps to make: what was asked for, or where that is `auto`, native ones if they can be made, else eager ones.

    Args:
        asked: `trainer.steps`.
        backbone, optimizer: what is trained, of these kinds.
        accelerator: `trainer.accelerator`.

    Raises:
        SettingError: native steps were asked for, and cannot be made.
    """
    if asked in ("eager", "compiled"):
        return "compiled" if asked == "compiled" else "eager"
    if accelerator != "cpu" and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        refused: str | None = "the device is no CPU"
        missing: str | None = None
    else:
        refused, missing = native.supports(backbone, optimizer), native.available()
    if asked == "native" and (refused or missing):
        raise SettingError("trainer.steps", asked, f"{refused or missing}; trainer.steps=auto does without")
    if missing and not refused:
        log.info("Steps are eager, which takes two to four times as long: %s", missing)
    return "eager" if refused or missing else "native"
