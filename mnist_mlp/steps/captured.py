"""`trainer.steps=captured`: the optimizer steps of a group of minibatches as one CUDA graph, replayed for each group.

On a GPU, a step of a small network is some forty kernels of a few microseconds each: launching them one by one takes
the CPU longer than running them takes the GPU. A graph is launched once for all steps of a group, and nothing in
between waits for the CPU.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import SGD, Adam, AdamW, Optimizer

from mnist_mlp.backbone import MLP
from mnist_mlp.datamodule import Batch, Minibatches
from mnist_mlp.settings import OUR_LOSS, SettingError
from mnist_mlp.steps.means import summed
from mnist_mlp.steps.refusal import (
    Refusal,
    device_type,
    has_gradient_hooks,
    has_hooks,
    has_own_forward,
    refuse_optimizer,
    refused,
)

# Steps that are made before a recording and undone: libraries load their kernels and take their memory in the first.
TRIALS = 2

Work = Callable[[], tuple[Tensor, Tensor]]


class Trained(NamedTuple):
    """What came of a group of minibatches.

    Attributes:
        losses: (steps,), of each minibatch the sum over its images.
        logits: (N, num_classes), of all images, each before the step that it was in.
        labels: (N,).
    """

    losses: Tensor
    logits: Tensor
    labels: Tensor


class _Recorded(NamedTuple):
    images: Tensor  # what the graph reads: of all of its minibatches
    labels: Tensor
    replay: Work


def refusal(config: DictConfig, backbone: nn.Module, optimizer: Optimizer) -> Refusal | None:
    """None where a run's steps can be captured; else why not. Who asks for them vouches for classes of their own."""
    if device_type(config) != "cuda":
        return Refusal("the device is no CUDA device")
    if why := supports(backbone, optimizer):
        return Refusal(why)
    if config.trainer.steps == "captured":
        return None
    doubt = surely_supports(backbone, str(config.get("loss", {}).get("_target_", OUR_LOSS)))
    return refused(doubt and f"{doubt}; if not, trainer.steps=captured is faster", told=True)


def supports(backbone: nn.Module, optimizer: Optimizer) -> str | None:
    """None where a graph can hold the steps of this backbone with this optimizer; else why not, as a clause.

    What a module's `forward` does in Python is done once, when the graph is recorded. A user's own class may look at
    values or count its calls, and only its author can say; see `surely_supports`.
    """
    if why := refuse_optimizer("captured", optimizer, (Adam, AdamW, SGD), ("differentiable",), groups=True):
        return why
    if isinstance(optimizer, SGD) and not all(group.get("fused") for group in optimizer.param_groups):
        return "SGD writes its rate into the graph unless optimizer.fused=true"
    if has_hooks(backbone) or has_gradient_hooks(backbone):
        return "the backbone has hooks, which a graph would call once"
    return None


def surely_supports(backbone: nn.Module, loss: str) -> str | None:
    """None where each `forward` is known to do the same at every step; else what is not known, as a clause.

    Args:
        loss: the class of the loss, by its path.
    """
    for module in backbone.modules():
        known = type(module) is MLP or type(module).__module__.startswith("torch.nn.modules.")
        average = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is None
        if not known or has_own_forward(module) or average:  # a cumulative average is taken on the CPU
            return f"{type(module).__name__} may do something else at each step"
    if not loss.startswith(("torch.nn.", "mnist_mlp.classifier.")):
        return f"{loss} may do something else at each step"
    return None


def record_graph(work: Work) -> Work:
    """The work as a CUDA graph of the current stream. It is not done now, but at each call of what is returned, which
    gives the same tensors each time, with new content."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        results = work()

    def replay() -> tuple[Tensor, Tensor]:
        graph.replay()
        return results

    return replay


class CapturedSteps:
    """The optimizer steps of a group as one graph; those of minibatches that are not full are made one by one.

    A run's first group is stepped eagerly, because only then the optimizer has all of its state. The graph of a later
    one is recorded when there is none for so many minibatches: for 57,000 images in minibatches of 64, of which 64 make
    a group, those are two. Parameters, buffers and the optimizer's state are PyTorch's own tensors, changed in place.
    Whatever else the graph holds as constants (the optimizer's options but for the rate, the dropout's probability,
    where a tensor lies) is compared before each group, and if it has changed, the graph is recorded anew.

    Dropout's masks follow from CUDA's own generator, as those of eager steps: a graph takes its state at each replay.

    Args:
        backbone: images (N, 1, 28, 28) -> logits (N, num_classes), without control flow that depends on values.
        optimizer: see `supports`.
        loss: logits (N, num_classes), labels (N,) -> (), a mean over the samples.
        gradient_clip_val, gradient_clip_algorithm: as Lightning's Trainer takes them.
        record: makes a graph of some work.

    Raises:
        ValueError: `supports` gives a reason.
        SettingError: when called, if a graph cannot be recorded.
    """

    def __init__(
        self,
        backbone: nn.Module,
        optimizer: Optimizer,
        loss: nn.Module,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str = "norm",
        record: Callable[[Work], Work] = record_graph,
    ) -> None:
        if why := supports(backbone, optimizer):
            raise ValueError(f"captured steps: {why}")
        self.backbone, self.optimizer, self.loss = backbone, optimizer, loss
        self.gradient_clip_val, self.gradient_clip_algorithm = gradient_clip_val, gradient_clip_algorithm
        self.record = record
        self._rates: list[Tensor] = []  # of each group of parameters, where the graph reads it
        self._recorded: dict[Any, _Recorded] = {}  # by the number and shape of the minibatches
        self._constants: Any = None

    def __call__(self, group: Minibatches | Batch) -> Trained:
        """Makes one optimizer step for each minibatch; nothing here waits for the GPU, but a recording does.

        Args:
            group: of minibatches; or one, which is stepped eagerly.
        """
        with self._set_for_a_graph():
            if not isinstance(group, Minibatches):
                return self._eagerly([group])
            full = len(group.order) // group.batch_size if self._has_state() else 0
            whole, rest = group.divided(full)
            results = [self._replayed(whole, full)] if full else []
            if len(rest.order):
                results.append(self._eagerly(list(rest)))
        return results[0] if len(results) == 1 else Trained(*map(torch.cat, zip(*results, strict=True)))

    def _has_state(self) -> bool:
        keeps_none = not self.optimizer.param_groups[0].get("momentum", True)
        return bool(self.optimizer.state) or keeps_none

    def _eagerly(self, minibatches: Sequence[Batch]) -> Trained:
        images, labels = zip(*minibatches, strict=True)
        losses, logits = self._steps(images, labels)
        return Trained(summed(losses, labels), logits, torch.cat(labels))

    def _replayed(self, minibatches: Minibatches, count: int) -> Trained:
        images, labels = minibatches.gathered()
        constants = self._now()
        if constants != self._constants:
            self._recorded.clear()
            self._constants = constants
        key = count, images.shape, images.dtype
        if key not in self._recorded:
            self._recorded[key] = self._record(images, labels, count)
        recorded = self._recorded[key]
        recorded.images.copy_(images)
        recorded.labels.copy_(labels)
        losses, logits = recorded.replay()
        return Trained(losses * minibatches.batch_size, logits, labels)

    def _record(self, images: Tensor, labels: Tensor, count: int) -> _Recorded:
        images, labels = images.clone(), labels.clone()
        some, theirs = images.chunk(count), labels.chunk(count)
        try:
            with self._undone(), _side_stream(images.device):
                for _ in range(TRIALS):
                    self._steps(some[:1], theirs[:1])
                replay = self.record(lambda: self._steps(some, theirs))
        except (RuntimeError, TypeError) as error:  # of CUDA, for what a graph cannot hold
            cause: BaseException = error
            while cause.__context__ is not None:  # the end of a recording that failed raises once more
                cause = cause.__context__
            reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
            raise SettingError(
                "trainer.steps",
                "captured",
                f"the steps of {type(self.backbone).__name__} cannot be a CUDA graph ({reason}): use "
                "trainer.steps=eager",
            ) from error
        return _Recorded(images, labels, replay)

    def _steps(self, images: Sequence[Tensor], labels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """One optimizer step for each minibatch: their mean losses (steps,), and the logits (N, num_classes)."""
        losses, all_logits = [], []
        for some, theirs in zip(images, labels, strict=True):
            logits = self.backbone(some)
            loss = self.loss(logits, theirs)
            self.optimizer.zero_grad()
            loss.backward()
            if self.gradient_clip_val is not None:
                self._clip(self.gradient_clip_val)
            self.optimizer.step()
            losses.append(loss.detach())
            all_logits.append(logits.detach())
        self.optimizer.zero_grad()  # gradients lie in the graph's own memory
        return torch.stack(losses), torch.cat(all_logits)

    def _clip(self, limit: float) -> None:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if self.gradient_clip_algorithm == "value":
            clip_grad_value_(parameters, limit)
        else:
            clip_grad_norm_(parameters, limit)

    @contextmanager
    def _set_for_a_graph(self) -> Iterator[None]:
        """Has the optimizer read its rate, and keep its count of steps, on the device. Afterwards its options are as
        schedulers, callbacks and checkpoints expect them."""
        groups = self.optimizer.param_groups
        options = ["lr", "capturable"]
        before: list[dict[str, Any]] = [{name: group[name] for name in options if name in group} for group in groups]
        if not self._rates:
            self._rates = [torch.zeros((), device=group["params"][0].device) for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate.fill_(float(group["lr"]))
            if "capturable" in group and rate.device.type != "cpu":
                group["capturable"] = True
        for parameter, state in self.optimizer.state.items():
            if isinstance(state.get("step"), Tensor):  # Adam's, unless fused, begins on the CPU
                state["step"] = state["step"].to(parameter.device)
        try:
            yield
        finally:
            for group, values in zip(groups, before, strict=True):
                group.update(values)

    def _kept(self) -> list[Tensor]:
        """What the steps change in place."""
        states = (state.values() for state in self.optimizer.state.values())
        modules = (chain(module.parameters(), module.buffers()) for module in (self.backbone, self.loss))
        return [value for value in chain(*modules, *states) if isinstance(value, Tensor)]

    def _now(self) -> Any:
        """What is written into a graph, in a form that can be compared."""
        places = [tensor.data_ptr() for tensor in self._kept()]
        groups = self.optimizer.param_groups
        options = [{name: value for name, value in group.items() if name not in ("params", "lr")} for group in groups]
        trained = [parameter.requires_grad for group in groups for parameter in group["params"]]
        modules = [(module.training, getattr(module, "p", None)) for module in self.backbone.modules()]
        return places, options, trained, modules, self.gradient_clip_val

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Puts back what the steps change, and the random numbers that they draw."""
        kept = self._kept()
        before = [tensor.detach().clone() for tensor in kept]
        devices = [tensor.device for tensor in kept[:1] if tensor.device.type == "cuda"]
        with torch.random.fork_rng(devices=devices):
            yield
        with torch.no_grad():
            for tensor, value in zip(kept, before, strict=True):
                tensor.copy_(value)


@contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """Another stream than the default one, which cannot be recorded; a no-op on a CPU."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)
