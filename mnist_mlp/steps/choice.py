"""`trainer.steps`: which steps a run is made with, and whether in groups of minibatches or one by one."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    OnExceptionCheckpoint,
    ProgressBar,
    Timer,
)
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import DictConfig
from torch import nn
from torch.optim import LBFGS, Optimizer

from mnist_mlp.settings import SettingError, single_steps
from mnist_mlp.steps import captured, compiled, native
from mnist_mlp.steps.refusal import Refusal

Steps = Literal["eager", "compiled", "native", "captured"]
# What each kind but eager says to a run: None, or why it cannot serve it.
REFUSALS: dict[str, Callable[[DictConfig, nn.Module, Optimizer], Refusal | None]] = {
    "captured": captured.refusal,
    "native": native.refusal,
    "compiled": compiled.refusal,
}
AUTO: tuple[Steps, ...] = ("captured", "native")  # of trainer.steps=auto, in the order in which they are asked

# Of a callback: who has one of these looks at single minibatches, or at what happens within a step.
STEP_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
# Of Lightning's own callbacks, those that take groups as they are, or do unless asked for more; the others step into
# how Lightning trains. A progress bar is told how many minibatches a group has.
OF_EPOCHS = (EarlyStopping, ModelSummary, OnExceptionCheckpoint, ProgressBar)


class Choice(NamedTuple):
    """The steps of a run, whether they are made in groups of minibatches, and what there is to say of that."""

    steps: Steps
    grouped: bool
    why: str | None = None


def choose(config: DictConfig, backbone: nn.Module, optimizer: Optimizer, callbacks: Mapping[str, Callback]) -> Choice:
    """The steps to make: what `trainer.steps` asks for, or where that is `auto`, captured ones on a CUDA device and
    native ones on a CPU if they can be made, else eager ones.

    Args:
        config: of the run.
        backbone, optimizer: what is trained, of these kinds.
        callbacks: the user's own, by name.

    Returns:
        What to do. Where something looks at single minibatches, steps are not made in groups.

    Raises:
        SettingError: native, captured or compiled steps were asked for, and cannot be made.
    """
    asked = config.trainer.steps
    single = single_steps(config) or _looks_closely(callbacks)
    if isinstance(optimizer, LBFGS):
        single = "LBFGS looks at the loss several times a step"
    if asked in REFUSALS:
        refusal = Refusal(single) if single else REFUSALS[asked](config, backbone, optimizer)
        if refusal:
            raise SettingError("trainer.steps", asked, f"{refusal.why}; trainer.steps=auto does without")
        return Choice(asked, True)
    if single:
        slower = "Training takes several times as long, because each minibatch is a step of Lightning's own"
        return Choice("eager", False, f"{slower}: {single}")
    for kind in AUTO if asked == "auto" else ():
        refusal = REFUSALS[kind](config, backbone, optimizer)
        if not refusal:
            return Choice(kind, True)
        if refusal.told:
            return Choice("eager", True, f"Steps are eager, which takes two to four times as long: {refusal.why}")
    return Choice("eager", True)


def _looks_closely(callbacks: Mapping[str, Callback]) -> str | None:
    """Why one of the callbacks takes single minibatches, as a clause; None where none does."""
    for name, callback in callbacks.items():
        if isinstance(callback, OF_EPOCHS):
            continue
        if isinstance(callback, ModelCheckpoint):
            closely = callback._every_n_train_steps or callback._train_time_interval is not None
        elif isinstance(callback, LearningRateMonitor):
            closely = callback.logging_interval == "step"
        elif isinstance(callback, Timer):
            closely = callback._interval == "step"
        else:
            lightnings = type(callback).__module__.startswith("lightning.")
            closely = lightnings or any(is_overridden(hook, callback, Callback) for hook in STEP_HOOKS)
        if closely:
            return f"callbacks.{name} ({type(callback).__name__}) looks at each"
    return None
