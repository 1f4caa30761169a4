"""Native steps: the optimizer steps of a group of minibatches, made by the compiled kernel in `kernel/`.

The kernel keeps no state from one call to the next. It reads the backbone's parameters and the optimizer's state from
PyTorch's own tensors and writes them back, so that between two calls a checkpoint, a callback or an eager step finds
them current, and whatever those change counts. Both ways together take about 1/100 of a group's time.

What the bits depend on: the weights, the images and their order, the settings and the dropout's seed, epoch and step.
Not on the CPU, its vector registers, the compiler or the number of threads.
"""

import ctypes
import importlib.util
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from mnist_mlp.backbone import MLP
from mnist_mlp.datamodule import Batch, Minibatches
from mnist_mlp.settings import other_loss
from mnist_mlp.steps.refusal import (
    Refusal,
    device_type,
    has_gradient_hooks,
    has_hooks,
    has_own_forward,
    refuse_optimizer,
    refused,
)

OPTIMIZERS: dict[type[Optimizer], int] = {Adam: 0, AdamW: 1, SGD: 2}  # as in kernel/steps.h
CLIPPINGS = {None: 0, "norm": 1, "value": 2}
NOT_NATIVE = ("amsgrad", "maximize", "differentiable", "capturable")  # options of an optimizer
# The first layer is computed over the pixels that differ from the background where at most this share does.
SPARSE_SHARE = 1 / 3

_Pointer = ctypes.c_void_p
_int, _double = ctypes.c_int64, ctypes.c_double


class _Images(ctypes.Structure):
    _fields_ = (
        *((name, _Pointer) for name in ("pixels", "starts", "entries", "labels")),
        ("most", _int),
        ("background", ctypes.c_float),
    )


class _Group(ctypes.Structure):
    _fields_ = (
        ("images", _Images),
        *((name, _Pointer) for name in ("order", "tensors", "dropout")),
        *((name, _int) for name in ("samples", "batch", "made")),
        ("seed", ctypes.c_uint64),
        *((name, _int) for name in ("epoch", "step")),
        *(
            (name, _double)
            for name in ("lr", "beta1", "beta2", "eps", "weight_decay", "momentum", "dampening", "limit")
        ),
        *((name, _int) for name in ("optimizer", "nesterov", "clipping", "threads")),
        ("loss", _double),
        ("errors", _int),
    )


class _Evaluation(ctypes.Structure):
    _fields_ = (
        ("images", _Images),
        ("tensors", _Pointer),
        *((name, _int) for name in ("first", "samples")),
        *((name, _Pointer) for name in ("logits", "losses", "wrong", "active")),
        ("threads", _int),
    )


def open_kernel(path: str) -> ctypes.CDLL:
    """The library at `path`, its functions declared.

    Raises:
        OSError: it cannot be loaded, or is of another version of this file.
    """
    library = ctypes.CDLL(path)
    try:
        library.steps_sizes.restype = _int
        library.steps_new.argtypes, library.steps_new.restype = (_int, _Pointer), _Pointer
        library.steps_free.argtypes = (_Pointer,)
        library.steps_train.argtypes, library.steps_train.restype = (_Pointer, _Pointer), ctypes.c_bool
        library.steps_evaluate.argtypes, library.steps_evaluate.restype = (_Pointer, _Pointer), ctypes.c_bool
        library.steps_entries.argtypes = (_Pointer, _int, _int, ctypes.c_float, _Pointer, _Pointer)
        library.steps_entries.restype = None
        library.steps_random.argtypes = (_Pointer, _Pointer, _int, _Pointer)
        library.steps_path.restype = ctypes.c_char_p
        library.steps_use.argtypes, library.steps_use.restype = (ctypes.c_char_p,), ctypes.c_bool
        library.steps_peak.argtypes, library.steps_peak.restype = (_int, _Pointer), _double
        same = library.steps_sizes() == ctypes.sizeof(_Group) * 1000 + ctypes.sizeof(_Evaluation)
    except AttributeError:
        same = False
    if not same:
        raise OSError(f"{path} was built from another version of the kernel")
    return library


@cache
def _load() -> ctypes.CDLL | str:
    """The kernel, or why there is none."""
    found = importlib.util.find_spec("mnist_mlp.steps._kernel")
    if found is None or found.origin is None:
        return "no C++ compiler was there when the package was installed: install g++, then the package again"
    try:
        return open_kernel(found.origin)
    except OSError as error:
        return f"the kernel cannot be used ({error}): install the package again"


def kernel() -> ctypes.CDLL:
    """The kernel.

    Raises:
        RuntimeError: there is none; says why.
    """
    library = _load()
    if isinstance(library, str):
        raise RuntimeError(f"native steps: {library}")
    return library


def available() -> str | None:
    """None where the kernel can be used here; else the reason and its remedy, as a clause."""
    library = _load()
    return library if isinstance(library, str) else None


def code_path() -> str:
    """The instructions in use: `avx512`, `avx2` or `portable`."""
    name: bytes = kernel().steps_path()
    return name.decode()


def use_code_path(name: str) -> bool:
    """Uses another code path from now on, in this process; False where this CPU cannot run it."""
    return bool(kernel().steps_use(name.encode()))


def peak_rate(seconds: float = 0.2) -> float:
    """Fused multiply-adds a second that this code path makes on registers alone, on one thread, measured now."""
    sink = np.array([1, 0], np.float32)
    rounds, taken, made = 1 << 16, 0.0, 0.0
    while taken < seconds:
        rounds *= 2
        start = time.perf_counter()
        made = kernel().steps_peak(rounds, sink.ctypes.data)
        taken = time.perf_counter() - start
    return made / taken


def refusal(config: DictConfig, backbone: nn.Module, optimizer: Optimizer) -> Refusal | None:
    """None where a run's steps can be native; else why not."""
    if device_type(config) != "cpu":
        return Refusal("the device is no CPU")
    why = other_loss(config) or supports(backbone, optimizer)
    return refused(why) or refused(available(), told=True)


def supports(backbone: nn.Module, optimizer: Optimizer | None = None) -> str | None:
    """None where the kernel can step this backbone with this optimizer; else why not, as a clause.

    Args:
        backbone: must be an `MLP` exactly, in float32 on the CPU, without hooks, and trained as a whole.
        optimizer: `Adam`, `AdamW` or `SGD`, of all parameters in one group; None: to evaluate only.
    """
    if type(backbone) is not MLP:
        return f"the backbone is a {type(backbone).__name__}, and native steps are for mnist_mlp.backbone.MLP"
    layers = list(backbone.layers)
    kinds = [type(layer) for layer in layers if type(layer) is not nn.Dropout]
    if kinds != [nn.Flatten, *[nn.Linear, nn.ReLU] * ((len(kinds) - 2) // 2), nn.Linear]:
        return "the backbone's layers were changed"
    if has_hooks(backbone) or any(map(has_own_forward, backbone.modules())):
        return "the backbone has hooks"
    parameters = list(backbone.parameters())
    if any(p.dtype != torch.float32 or p.device.type != "cpu" or not p.is_contiguous() for p in parameters):
        return "the backbone's parameters are not all float32 on the CPU"
    if any(isinstance(layer, nn.Dropout) and not 0 <= layer.p < 1 for layer in layers):
        return "dropout is not in [0, 1)"
    return None if optimizer is None else _supports_optimizer(backbone, optimizer)


def _supports_optimizer(backbone: nn.Module, optimizer: Optimizer) -> str | None:
    if why := refuse_optimizer("native", optimizer, OPTIMIZERS, NOT_NATIVE):
        return why
    parameters, theirs = list(backbone.parameters()), optimizer.param_groups[0]["params"]
    if {id(p) for p in theirs} != {id(p) for p in parameters} or len(theirs) != len(parameters):
        return "the optimizer's parameters are not the backbone's"
    if not all(p.requires_grad for p in parameters):
        return "some of the backbone's parameters are not trained"
    return "the backbone's parameters have hooks" if has_gradient_hooks(backbone) else None


class NativeImages:
    """A set of images and labels in memory, checked once, ready for the kernel.

    Where few pixels differ from the background (MNIST: 19 in 100), they are listed, 8 bytes each, and the first layer
    is computed over them alone. That sums in another order than over all pixels, so it decides bits; whether it is done
    depends on the images alone. The background is the smallest value of all.

    Args:
        images: (N, ...) float32 on the CPU, normalized; not to be changed afterwards.
        labels: (N,) int64 in 0..num_classes - 1.
        num_classes: logits of the backbone.
        sparse: False lists no pixels, True does whatever their share is; None decides by the share.

    Raises:
        ValueError: shapes, types or labels are others.
    """

    def __init__(self, images: Tensor, labels: Tensor, num_classes: int = 10, *, sparse: bool | None = None) -> None:
        if images.dtype != torch.float32 or images.device.type != "cpu" or labels.dtype != torch.int64:
            raise ValueError("native steps take float32 images and int64 labels on the CPU")
        if labels.shape != images.shape[:1] or images.ndim < 2 or not len(labels) or not images[0].numel():
            raise ValueError(
                f"native steps take images (N, ...) and labels (N,), not {(*images.shape,)} and {(*labels.shape,)}"
            )
        if not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(f"native steps take labels in 0..{num_classes - 1}")
        self.source, self.pixels, self.labels = images, images.flatten(1).contiguous(), labels.contiguous()
        self.num_classes = num_classes
        self.background = float(self.pixels.min())
        self.starts: npt.NDArray[np.int64] | None = None
        self.entries: npt.NDArray[np.int64] | None = None  # each a float32 and an int32
        if sparse is not False and math.isfinite(self.background):
            starts = np.empty(len(labels) + 1, np.int64)
            self._list(starts, None)
            if sparse or starts[-1] <= SPARSE_SHARE * self.pixels.numel():
                self.starts, self.entries = starts, np.empty(starts[-1], np.int64)
                self._list(starts, self.entries.ctypes.data)

    def _list(self, starts: npt.NDArray[np.int64], entries: int | None) -> None:
        count, width = self.pixels.shape
        kernel().steps_entries(self.pixels.data_ptr(), count, width, self.background, starts.ctypes.data, entries)

    def __len__(self) -> int:
        return len(self.labels)

    def _fill(self, images: _Images) -> None:
        images.pixels, images.labels = self.pixels.data_ptr(), self.labels.data_ptr()
        if self.starts is not None and self.entries is not None:
            images.starts, images.entries = self.starts.ctypes.data, self.entries.ctypes.data
            images.most, images.background = int(np.diff(self.starts).max()), self.background


@dataclass
class Evaluated:
    """What the backbone makes of N images.

    Attributes:
        logits: (N, num_classes) float32.
        losses: (N,) float64, cross-entropy.
        wrong: (N,) bool, whether another class has the largest logit.
        active: of each hidden layer (width,) bool, whether a unit's ReLU let something pass for one of the images.
    """

    logits: Tensor
    losses: Tensor
    wrong: Tensor
    active: list[Tensor]


class Trained(NamedTuple):
    """What came of a group of minibatches: the sum of the losses, the errors, the images and the optimizer steps."""

    loss: float
    errors: int
    samples: int
    steps: int


class NativeSteps:
    """Trains and evaluates a backbone with the kernel.

    Parameters and the optimizer's state are PyTorch's own tensors before and after each call; `grad` is left alone.
    The learning rate, the optimizer's other options and each dropout's `p` are read at each call.

    Args:
        backbone: see `supports`; images (N, in_features) as in `NativeImages`.
        optimizer: see `supports`; None to evaluate only.
        seed: of the dropout masks, any integer: each mask is a function of (seed, epoch, step, layer, element).
        gradient_clip_val, gradient_clip_algorithm: as Lightning's Trainer takes them.
        threads: a minibatch is divided between so many, at most 16, with the bits of one.

    Raises:
        RuntimeError: there is no kernel here.
        ValueError: `supports` gives a reason.
        MemoryError: as it says; also from the calls, which then have done nothing.
    """

    def __init__(
        self,
        backbone: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        seed: int = 0,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str = "norm",
        threads: int = 1,
    ) -> None:
        self._library = kernel()
        if reason := supports(backbone, optimizer):
            raise ValueError(f"native steps: {reason}")
        self.backbone, self.optimizer, self.seed, self.threads = backbone, optimizer, seed, min(threads, 16)
        self.clip_limit = gradient_clip_val
        self.clipping = CLIPPINGS[gradient_clip_algorithm if gradient_clip_val is not None else None]
        self.linears = [layer for layer in backbone.modules() if isinstance(layer, nn.Linear)]
        widths = np.array([self.linears[0].in_features, *(layer.out_features for layer in self.linears)], np.int64)
        self._sets: dict[int, NativeImages] = {}  # by the id of their images, which they keep alive
        self._net = self._library.steps_new(len(self.linears), widths.ctypes.data)
        if not self._net:
            raise MemoryError("native steps")

    def __del__(self) -> None:
        if net := getattr(self, "_net", None):
            self._library.steps_free(net)

    def train(self, data: NativeImages, order: Tensor, batch_size: int, *, epoch: int, step: int) -> tuple[float, int]:
        """Makes one optimizer step for each minibatch.

        Signals are served when it returns: give it some 64 minibatches at once.

        Args:
            order: (M,) int64, the numbers of the images to train on, in order.
            batch_size: images per minibatch; the last one may be smaller.
            epoch, step: from 0, and the minibatches of this epoch before these; they decide the dropout masks.

        Returns:
            The sum of the M losses, each before its minibatch's step, and the number of errors.

        Raises:
            ValueError: `order` holds no image's number, or the images are not of the backbone's width.
        """
        assert self.optimizer is not None
        self._check(data)
        if order.dtype != torch.int64 or order.ndim != 1 or order.device.type != "cpu" or batch_size < 1:
            raise ValueError("native steps take an order (M,) of int64 on the CPU and a batch_size of at least 1")
        if not len(order):
            return 0.0, 0
        if not 0 <= int(order.min()) <= int(order.max()) < len(data):
            raise ValueError(f"native steps take an order of numbers in 0..{len(data) - 1}")
        order, options = order.contiguous(), self.optimizer.param_groups[0]
        tensors, made = self._tensors()
        dropout = np.array([*self._dropout(), 0.0])
        group = _Group(samples=len(order), batch=batch_size, made=made, epoch=epoch, step=step, threads=self.threads)
        group.order, group.tensors, group.dropout = order.data_ptr(), tensors.ctypes.data, dropout.ctypes.data
        group.seed = self.seed % 2**64
        group.lr, group.weight_decay = float(options["lr"]), options["weight_decay"]
        group.optimizer, group.clipping, group.limit = (
            OPTIMIZERS[type(self.optimizer)],
            self.clipping,
            self.clip_limit or 0,
        )
        if isinstance(self.optimizer, SGD):
            group.momentum, group.dampening = options["momentum"], options["dampening"]
            group.nesterov = options["nesterov"]
        else:
            (group.beta1, group.beta2), group.eps = map(float, options["betas"]), options["eps"]
        data._fill(group.images)
        if not self._library.steps_train(self._net, ctypes.byref(group)):
            raise MemoryError("native steps")
        self._count(math.ceil(len(order) / batch_size))
        return group.loss, group.errors

    def train_batch(self, batch: Batch | Minibatches, *, epoch: int, number: int) -> Trained:
        """Trains on a group of minibatches of a set, which is made ready once; or on one minibatch of its own.

        Args:
            epoch: from 0.
            number: how many minibatches of this epoch come before, where the batch does not say.
        """
        if isinstance(batch, Minibatches):
            size, first = batch.batch_size, batch.first
            if batch.transform is None:
                data, order = self._keep(batch.images, batch.labels), batch.order
            else:  # which gives other images each time
                images, labels = batch.gathered()
                data = NativeImages(images, labels, self.linears[-1].out_features)
                order = torch.arange(len(labels))
        else:
            data, start = self.find(*batch)
            size, first = len(batch[1]), number
            order = torch.arange(start, start + size)
        loss, errors = self.train(data, order, size, epoch=epoch, step=first)
        return Trained(loss, errors, len(order), math.ceil(len(order) / size))

    def evaluate(self, data: NativeImages, first: int = 0, count: int | None = None) -> Evaluated:
        """The backbone's outputs, without dropout, for `count` images from number `first` on (None: all the rest).

        Raises:
            ValueError: there are no such images, or they are not of the backbone's width.
        """
        self._check(data)
        count = len(data) - first if count is None else count
        if first < 0 or count < 0 or first + count > len(data):
            raise ValueError(f"native steps: images {first} to {first + count} of {len(data)}")
        hidden = [layer.out_features for layer in self.linears[:-1]]
        active = torch.zeros(self.threads, sum(hidden), dtype=torch.bool)
        result = Evaluated(
            torch.empty(count, self.linears[-1].out_features),
            torch.empty(count, dtype=torch.float64),
            torch.empty(count, dtype=torch.bool),
            [],
        )
        tensors = _addresses(
            [tensor for layer in self.linears for tensor in (layer.weight, layer.bias, None, None, None, None)]
        )
        evaluation = _Evaluation(first=first, samples=count, threads=self.threads, tensors=tensors.ctypes.data)
        evaluation.logits, evaluation.losses = result.logits.data_ptr(), result.losses.data_ptr()
        evaluation.wrong, evaluation.active = result.wrong.data_ptr(), active.data_ptr()
        data._fill(evaluation.images)
        if count and not self._library.steps_evaluate(self._net, ctypes.byref(evaluation)):
            raise MemoryError("native steps")
        result.active += torch.split(active.any(dim=0), hidden)
        return result

    def find(self, images: Tensor, labels: Tensor) -> tuple[NativeImages, int]:
        """The set that a batch is a part of, made ready once, and the number of the batch's first image in it.

        A batch that is no view of a larger set is a set of its own, made ready at each call.
        """
        whole, all_labels = (part if part._base is None else part._base for part in (images, labels))
        first = int(images.storage_offset()) // max(1, images[0].numel())
        if whole.shape[1:] != images.shape[1:] or all_labels.ndim != 1 or labels.storage_offset() != first:
            whole, all_labels, first = images, labels, 0
        known = self._sets.get(id(whole))
        if known is None or known.source is not whole:
            known = NativeImages(whole, all_labels, self.linears[-1].out_features)
            if whole is not images:  # else it would be kept for ever
                self._sets[id(whole)] = known
        return known, first

    def _keep(self, images: Tensor, labels: Tensor) -> NativeImages:
        """A whole set, made ready once and kept."""
        if id(images) not in self._sets:
            self._sets[id(images)] = NativeImages(images, labels, self.linears[-1].out_features)
        return self._sets[id(images)]

    def _check(self, data: NativeImages) -> None:
        first, last = self.linears[0].in_features, self.linears[-1].out_features
        if data.pixels.shape[1] != first or data.num_classes > last:
            raise ValueError(
                f"native steps: images of {data.pixels.shape[1]} pixels and {data.num_classes} classes, for a backbone "
                f"of {first} and {last}"
            )

    def _dropout(self) -> list[float]:
        """Of each hidden layer; 0 where there is none or it is switched off."""
        found: list[float] = []
        for layer in self.backbone.layers:  # type: ignore[union-attr]
            if isinstance(layer, nn.ReLU):
                found.append(0.0)
            elif isinstance(layer, nn.Dropout) and layer.training:
                found[-1] = layer.p
        return found

    def _state(self, parameter: Tensor) -> tuple[list[Tensor | None], int]:
        """A parameter's first and second moment, and the steps made before.

        What is missing is made, as PyTorch does at its first step.
        """
        assert self.optimizer is not None
        if isinstance(self.optimizer, SGD):
            if not self.optimizer.param_groups[0]["momentum"]:
                return [None, None], 1
            state, made = self.optimizer.state[parameter], 1
            if state.get("momentum_buffer") is None:  # the kernel's first step tells them apart: it is not dampened
                state["momentum_buffer"], made = torch.zeros_like(parameter), 0
            return [state["momentum_buffer"], None], made
        state = self.optimizer.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return [state["exp_avg"], state["exp_avg_sq"]], int(state["step"])

    def _tensors(self) -> tuple[npt.NDArray[np.uintp], int]:
        """Of each layer the addresses of (weight, bias, their first moments, their second); the steps made before."""
        tensors: list[Tensor | None] = []
        for layer in self.linears:
            (first, second), made = self._state(layer.weight)
            (bias_first, bias_second), _ = self._state(layer.bias)
            tensors += [layer.weight, layer.bias, first, bias_first, second, bias_second]
        return _addresses(tensors), made

    def _count(self, steps: int) -> None:
        """Adam's own count, and what a scheduler looks at to see that steps are made before its own."""
        assert self.optimizer is not None
        for state in self.optimizer.state.values():
            if "step" in state:
                state["step"] += steps
        self.optimizer._opt_called = True  # type: ignore[attr-defined]


def _addresses(tensors: Sequence[Tensor | None]) -> npt.NDArray[np.uintp]:
    """0 for None.

    Raises:
        ValueError: one is not float32 in order on the CPU.
    """
    for tensor in tensors:
        if tensor is not None and (
            tensor.dtype != torch.float32 or tensor.device.type != "cpu" or not tensor.is_contiguous()
        ):
            raise ValueError("native steps take parameters and an optimizer's state in float32 on the CPU")
    return np.array([0 if tensor is None else tensor.data_ptr() for tensor in tensors], np.uintp)
