"""Why steps of a kind cannot be made of a run: the form of the answer, and what more than one kind asks."""

from collections.abc import Collection
from typing import Literal, NamedTuple

import torch
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer


class Refusal(NamedTuple):
    """Why, as a clause; and whether a run with `trainer.steps=auto` is told, since its user can change that."""

    why: str
    told: bool = False


def refused(why: str | None, told: bool = False) -> Refusal | None:
    """None where there is no reason."""
    return Refusal(why, told) if why else None


def device_type(config: DictConfig) -> Literal["cpu", "cuda", "mps"]:
    """Where a run of this configuration computes, as Lightning chooses: where there is an MPS device, `auto` and `gpu`
    are that."""
    accelerator = config.trainer.accelerator
    if accelerator in ("cpu", "cuda", "mps"):
        return accelerator  # type: ignore[no-any-return]
    return "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"


def refuse_optimizer(
    steps: str,
    optimizer: Optimizer,
    kinds: Collection[type[Optimizer]],
    options: Collection[str],
    *,
    groups: bool = False,
) -> str | None:
    """None where an optimizer is one of these kinds; else why not, as a clause.

    Args:
        steps: such as `native`.
        kinds: the classes that can be stepped, of which subclasses may do something else.
        options: of an optimizer, those that may not be set.
        groups: whether it may have several groups of parameters.
    """
    if type(optimizer) not in kinds:
        *others, last = (kind.__name__ for kind in kinds)
        return f"the optimizer is {type(optimizer).__name__}, and {steps} steps are for {', '.join(others)} and {last}"
    if len(optimizer.param_groups) > 1 and not groups:
        return "the optimizer has several groups of parameters"
    given = [name for group in optimizer.param_groups for name in options if group.get(name)]
    return f"the optimizer is set to {given[0]}" if given else None


def has_hooks(backbone: nn.Module) -> bool:
    """Whether one of its modules has hooks, also those that PyTorch keeps for pruning and the like."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for module in backbone.modules() for name in names)


def has_own_forward(module: nn.Module) -> bool:
    """Whether its `forward` is this instance's, not its class's."""
    return "forward" in vars(module)


def has_gradient_hooks(backbone: nn.Module) -> bool:
    """Whether one of its parameters has hooks."""
    return any(p._backward_hooks or p._post_accumulate_grad_hooks for p in backbone.parameters())
