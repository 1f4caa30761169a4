"""`trainer.steps=compiled`: forward, backward and optimizer of several minibatches as one compiled graph."""

import logging
import warnings
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
import torch._inductor
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from mnist_mlp.datamodule import Batch
from mnist_mlp.settings import SettingError
from mnist_mlp.steps.cache import cache_of_this_cpu, remove_damaged
from mnist_mlp.steps.refusal import Refusal, refuse_optimizer, refused

Tensors = dict[str, Tensor]

# Each more takes three seconds longer to compile; beyond four, epochs hardly get faster.
STEPS_PER_GRAPH = 4

# What one optimizer does to one parameter: (parameter, gradient, state, numbers of this step, options) -> None, in
# place. The numbers that change from step to step come in as a tensor: written into the graph, they would have to be
# compiled anew; computed in it, once for every element.
Update = Callable[[Tensor, Tensor, dict[str, Tensor], Tensor, dict[str, Any]], None]


def adam(
    parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], numbers: Tensor, options: dict[str, Any]
) -> None:
    """As `torch.optim.Adam` and `AdamW` (Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2).

    Args:
        numbers: (3,) the rate, the rate over the first moment's bias correction, and one over the root of the second's.
    """
    lr, step_size, root = numbers.unbind()
    beta1, beta2 = options["betas"]
    if options["decoupled_weight_decay"]:
        parameter.mul_(1 - lr * options["weight_decay"])
    elif options["weight_decay"]:
        gradient = gradient + options["weight_decay"] * parameter
    state["exp_avg"].lerp_(gradient, 1 - beta1)
    state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    parameter.sub_(step_size * state["exp_avg"] / (state["exp_avg_sq"].sqrt() * root + options["eps"]))


def adam_numbers(step: int, options: dict[str, Any]) -> tuple[float, float, float]:
    lr, (beta1, beta2) = float(options["lr"]), options["betas"]
    return lr, lr / (1 - beta1**step), (1 - beta2**step) ** -0.5


def sgd(
    parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], numbers: Tensor, options: dict[str, Any]
) -> None:
    """As `torch.optim.SGD`. `numbers`: (1,) the rate."""
    if options["weight_decay"]:
        gradient = gradient + options["weight_decay"] * parameter
    if options["momentum"]:
        momentum = state["momentum_buffer"].mul_(options["momentum"]).add_(gradient, alpha=1 - options["dampening"])
        gradient = gradient + options["momentum"] * momentum if options["nesterov"] else momentum
    parameter.sub_(numbers[0] * gradient)


UPDATES: dict[type[Optimizer], tuple[Update, Callable[[int, dict[str, Any]], tuple[float, ...]]]] = {
    torch.optim.Adam: (adam, adam_numbers),
    torch.optim.AdamW: (adam, adam_numbers),
    torch.optim.SGD: (sgd, lambda _, options: (float(options["lr"]),)),
}
NOT_COMPILED = ("amsgrad", "maximize", "differentiable")


def refusal(config: DictConfig, backbone: nn.Module, optimizer: Optimizer) -> Refusal | None:  # noqa: ARG001
    """None where a run's steps can be compiled, as far as that is known before it is tried; else why not."""
    return refused(supports(optimizer))


def supports(optimizer: Optimizer) -> str | None:
    """None where the steps of this optimizer can be compiled; else why not, as a clause."""
    return refuse_optimizer("compiled", optimizer, UPDATES, NOT_COMPILED)


class CompiledSteps:
    """Several optimizer steps of a backbone as one graph, compiled by TorchInductor when they are first made.

    Parameters, buffers and the optimizer's own state are changed in place, so that checkpoints mean what they mean
    without it, and eager steps may come in between. Inductor keeps what it compiled in its cache on disk: another run
    of the same shapes starts at once. The bits are not those of eager steps (sums are taken in another order, and
    dropout masks come from Inductor's own generator), but they are as repeatable.

    Args:
        backbone: images (N, 1, 28, 28) -> logits (N, num_classes), without control flow that depends on values.
        optimizer: `Adam`, `AdamW` or `SGD`, of all of the backbone's parameters in one group.
        loss: logits (N, num_classes), labels (N,) -> ().
        gradient_clip_val, gradient_clip_algorithm: as Lightning's Trainer takes them.

    Raises:
        ValueError: `supports` gives a reason.
        SettingError: when called, if the graph cannot be compiled here.
    """

    def __init__(
        self,
        backbone: nn.Module,
        optimizer: Optimizer,
        loss: Callable[[Tensor, Tensor], Tensor],
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str = "norm",
    ) -> None:
        if why := supports(optimizer):
            raise ValueError(f"compiled steps: {why}")
        self.backbone, self.optimizer, self.loss = backbone, optimizer, loss
        self.update, self.numbers = UPDATES[type(optimizer)]
        self.gradient_clip_val, self.gradient_clip_algorithm = gradient_clip_val, gradient_clip_algorithm
        self._graph: Callable[..., Sequence[Tensor]] | None = None
        self._kept: list[Tensor] = []  # what the graph updates in place, flat
        self._written_in: Any = None  # what the graph holds as constants

    def ready(self, minibatches: Sequence[Batch]) -> bool:
        """Whether these can be trained on as one graph: there are enough, of one size, and an eager step has made the
        optimizer's state, if it keeps one."""
        keeps_state = self.optimizer.param_groups[0].get("momentum", True)
        sizes = {labels.shape for _, labels in minibatches}
        return len(minibatches) == STEPS_PER_GRAPH and len(sizes) == 1 and bool(self.optimizer.state or not keeps_state)

    def __call__(self, minibatches: Sequence[Batch], step: int) -> list[tuple[Tensor, Tensor]]:
        """Trains on the minibatches.

        Args:
            minibatches: `STEPS_PER_GRAPH` of images (N, 1, 28, 28) and labels (N,).
            step: optimizer steps made so far.

        Returns:
            Of each minibatch the mean loss () and the logits (N, num_classes) before its step.
        """
        images, labels = (list(part) for part in zip(*minibatches, strict=True))
        options = self.optimizer.param_groups[0]
        numbers = torch.tensor(
            [self.numbers(step + number, options) for number in range(1, len(minibatches) + 1)],
            dtype=images[0].dtype,
            pin_memory=images[0].is_cuda,  # then the copy to the device does not wait for it
        ).to(images[0].device, non_blocking=True)
        constants = images[0].shape, [value for name, value in options.items() if name not in ("params", "lr")]
        if self._graph is None or self._written_in != constants:
            self._graph = self._compile(numbers, images, labels)
            self._written_in = constants
        losses_and_logits = self._graph(*self._kept, numbers, *images, *labels)
        return list(zip(losses_and_logits[::2], losses_and_logits[1::2], strict=True))

    def _gather(self) -> tuple[Tensors, Tensors, dict[str, Tensors]]:
        """What is trained, what is not, and the optimizer's state, by name; they share memory with the originals."""
        parameters = dict(self.backbone.named_parameters())
        trained = {name: value.detach() for name, value in parameters.items() if value.requires_grad}
        others = {name: value for name, value in parameters.items() if not value.requires_grad}
        states = {name: self.optimizer.state.get(parameters[name], {}) for name in trained}
        return trained, others | dict(self.backbone.named_buffers()), states

    def _compile(self, *inputs: Any) -> Callable[..., Sequence[Tensor]]:
        """The graph, from flat tensors to flat tensors; sets `_kept`, its first ones."""
        kept = self._gather()
        self._kept = tree_leaves(kept)
        flat, structure = tree_flatten((*kept, *inputs))
        # On a CPU, the calls between the kernels are worth compiling too.
        options = {"config_patches": {"cpp_wrapper": flat[0].device.type == "cpu"}}
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no CUDA runtime here
        with cache_of_this_cpu() as cache:
            remove_damaged(cache)
            try:
                with torch.random.fork_rng(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of PyTorch about itself
                    # Tracing makes the steps for real: on copies, and with the random numbers put back where they were.
                    graph = make_fx(lambda *flat: tree_leaves(self._steps(*tree_unflatten(flat, structure))))(
                        *(tensor.clone() for tensor in flat)
                    )
                    compiled: Callable[..., Sequence[Tensor]] = torch._inductor.standalone_compile(
                        graph, flat, dynamic_shapes="from_example_inputs", options=options
                    )
                    return compiled
            except Exception as error:  # a compiler raises almost anything
                reason = next((line for line in str(error).splitlines() if line.strip()), "")
                raise SettingError(
                    "trainer.steps",
                    "compiled",
                    f"{type(self.backbone).__name__} could not be compiled ({type(error).__name__}: {reason}): it "
                    "takes a C++ compiler, such as g++, with Python's headers, and no damaged cache (if it may be, "
                    f"delete {cache}); trainer.steps=eager needs none",
                ) from error

    def _steps(
        self,
        trained: Tensors,
        others: Tensors,
        states: dict[str, Tensors],
        numbers: Tensor,
        images: list[Tensor],
        labels: list[Tensor],
    ) -> list[tuple[Tensor, Tensor]]:
        """What the graph does; it is only traced."""
        options = self.optimizer.param_groups[0]
        places = self._places()
        results = []
        for index in range(len(images)):
            leaves = {name: value.detach().requires_grad_() for name, value in trained.items()}
            tensors = leaves | others
            used = {place: tensors[name] for place, name in places.items()}
            logits = functional_call(self.backbone, used, (images[index],), tie_weights=False)
            loss = self.loss(logits, labels[index])
            gradients = torch.autograd.grad(loss, list(leaves.values()))
            results.append((loss.detach(), logits.detach()))
            with torch.no_grad():
                for (name, parameter), gradient in zip(trained.items(), self._clip(gradients), strict=True):
                    self.update(parameter, gradient, states[name], numbers[index], options)
        for state in states.values():
            if "step" in state:  # Adam's count, which eager steps and checkpoints read
                state["step"].add_(len(images))
        return results

    def _places(self) -> dict[str, str]:
        """Where the backbone uses each parameter and buffer: the place's name -> the tensor's. `functional_call` can
        tie weights itself, but then leaves a layer that is used twice with another tensor than the optimizer has."""
        tensors = chain(self.backbone.named_parameters(), self.backbone.named_buffers())
        names = {id(tensor): name for name, tensor in tensors}
        return {
            f"{prefix}.{name}".lstrip("."): names[id(tensor)]
            for prefix, module in self.backbone.named_modules()
            for name, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        }

    def _clip(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        limit = self.gradient_clip_val
        if limit is None:
            return gradients
        if self.gradient_clip_algorithm == "value":
            return [gradient.clamp(-limit, limit) for gradient in gradients]
        norm = get_total_norm(gradients, foreach=False)
        return [gradient * (limit / (norm + 1e-6)).clamp(max=1) for gradient in gradients]
