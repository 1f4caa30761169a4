"""What the kernel computes, written a second time: in NumPy's float64, with Philox on integers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mnist_mlp.backbone import MLP
from mnist_mlp.steps.native import NativeImages, NativeSteps

Array = np.ndarray[Any, Any]


def philox(counter: Array, key: Sequence[int]) -> Array:
    """Philox4x32-10: counter (..., 4) of uint32 values as uint64 -> words (..., 4)."""
    low = np.uint64(0xFFFFFFFF)
    c = [counter[..., i].astype(np.uint64) for i in range(4)]
    k0, k1 = key
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        high0, high1 = p0 >> np.uint64(32), p1 >> np.uint64(32)
        c = [high1 ^ c[1] ^ np.uint64(k0), p1 & low, high0 ^ c[3] ^ np.uint64(k1), p0 & low]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return np.stack(c, axis=-1)


def mask(p: float, seed: int, epoch: int, step: int, layer: int, shape: tuple[int, int]) -> Array:
    """What dropout multiplies a hidden layer's activations (batch, width) by."""
    row, column = np.indices(shape)
    block = column // 64 * 16 + column % 32 // 2
    counter = np.stack([block, row, np.full(shape, step), np.full(shape, epoch * 256 + layer)], axis=-1)
    words = philox(counter.astype(np.uint64), (seed % 2**32, seed // 2**32))
    word = np.take_along_axis(words, (column % 64 // 32 * 2 + column % 2)[..., None], axis=-1)[..., 0]
    return (word // 2 >= int(p * 2**31)) / (1 - p)


@dataclass
class Step:
    """One optimizer step in float64, from what PyTorch's tensors hold now; `loss` is the sum over the minibatch."""

    weights: list[Array]  # weight, bias of each layer
    first: list[Array]
    second: list[Array]
    loss: float = field(default=0.0)
    errors: int = field(default=0)


def oracle_step(  # noqa: C901  # one step, written down as its formulas are
    model: MLP,
    optimizer: torch.optim.Optimizer,
    images: Array,
    labels: Array,
    masks: Sequence[Array],
    clip: tuple[str, float] | None,
) -> Step:
    parameters = list(model.parameters())
    weights = [p.detach().double().numpy().copy() for p in parameters]
    # Forward and backward.
    inputs, x = [], images.astype(np.float64)
    depth = len(weights) // 2
    for i in range(depth):
        inputs.append(x)
        x = x @ weights[2 * i].T + weights[2 * i + 1]
        if i < depth - 1:
            x = np.maximum(x, 0) * masks[i]
    shifted = x - x.max(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    result = Step(weights, [], [], float((log_sum - shifted[rows, labels]).sum()), int((x.argmax(1) != labels).sum()))
    d = np.exp(shifted - log_sum[:, None])
    d[rows, labels] -= 1
    d /= len(labels)
    gradients: list[Array] = []
    for i in range(depth)[::-1]:
        gradients = [d.T @ inputs[i], d.sum(axis=0), *gradients]
        if i:
            d = (d @ weights[2 * i]) * (inputs[i] > 0) * masks[i - 1]
    if clip and clip[0] == "norm":
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        gradients = [g * min(1, clip[1] / (norm + 1e-6)) for g in gradients]
    elif clip:
        gradients = [g.clip(-clip[1], clip[1]) for g in gradients]
    # Update.
    o = optimizer.param_groups[0]
    for i, (parameter, w, g) in enumerate(zip(parameters, weights, gradients, strict=True)):
        state = optimizer.state.get(parameter, {})
        kept = {name: value.double().numpy().copy() for name, value in state.items() if name != "step"}
        if isinstance(optimizer, torch.optim.SGD):
            g = g + o["weight_decay"] * w
            if o["momentum"]:
                before = kept.get("momentum_buffer")
                momentum = g if before is None else o["momentum"] * before + (1 - o["dampening"]) * g
                result.first.append(momentum)
                g = g + o["momentum"] * momentum if o["nesterov"] else momentum
            weights[i] = w - o["lr"] * g
            continue
        t = int(state["step"]) + 1 if state else 1
        if isinstance(optimizer, torch.optim.AdamW):
            w = w * (1 - o["lr"] * o["weight_decay"])
        else:
            g = g + o["weight_decay"] * w
        (beta1, beta2), eps = o["betas"], o["eps"]
        m = beta1 * kept.get("exp_avg", 0) + (1 - beta1) * g
        v = beta2 * kept.get("exp_avg_sq", 0) + (1 - beta2) * g**2
        result.first.append(m)
        result.second.append(v)
        weights[i] = w - o["lr"] * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return result


def check_random_network(number: int, steps: int = 12) -> None:
    """Makes a network, data and an optimizer from the number; compares each of the kernel's steps with the oracle's.

    Raises:
        AssertionError: they differ by more than float32 explains.
    """
    rng = np.random.default_rng(number)
    torch.manual_seed(number)
    in_features, classes = int(rng.integers(1, 70)), int(rng.integers(1, 20))
    hidden = [int(width) for width in rng.integers(1, 90, size=number % 4)]
    p = float(rng.choice([0, 0.3, 0.7]))
    model = MLP(hidden, p, in_features=in_features, num_classes=classes)
    decay = float(rng.choice([0, 0.1]))
    optimizer: torch.optim.Optimizer = [
        # With PyTorch's eps of 1e-8, rounding errors of gradients that are nearly zero would be steps.
        lambda: torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.8, 0.95), eps=1e-4, weight_decay=decay),
        lambda: torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-4, weight_decay=decay),
        lambda: torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=decay),
        lambda: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, dampening=0.2, weight_decay=decay),
        lambda: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=decay),
    ][number % 5]()
    clip = [None, ("norm", 0.3), ("value", 0.01)][number % 3]
    images = rng.normal(size=(50, in_features)).clip(-0.5).astype(np.float32)
    labels = rng.integers(classes, size=50)
    data = NativeImages(torch.from_numpy(images), torch.from_numpy(labels), classes, sparse=number % 2 == 0)
    seed, epoch = int(rng.integers(2**63)), int(rng.integers(1000))
    native = NativeSteps(
        model,
        optimizer,
        seed=seed,
        gradient_clip_val=clip[1] if clip else None,
        gradient_clip_algorithm=clip[0] if clip else "norm",
        threads=1 + number // 2 % 2,
    )
    for step in range(steps):
        order = rng.integers(50, size=int(rng.integers(1, 40)))
        shapes = [(len(order), width) for width in hidden]
        masks = [mask(p, seed, epoch, step, layer, shape) for layer, shape in enumerate(shapes)]
        expected = oracle_step(model, optimizer, images[order], labels[order], masks, clip)
        loss, errors = native.train(data, torch.from_numpy(order), 40, epoch=epoch, step=step)
        np.testing.assert_allclose(loss, expected.loss, rtol=1e-5, atol=1e-5)
        assert errors == expected.errors
        states = [optimizer.state.get(parameter, {}) for parameter in model.parameters()]
        for got, wanted in (
            (list(model.parameters()), expected.weights),
            ([s.get("exp_avg", s.get("momentum_buffer")) for s in states], expected.first),
            ([s.get("exp_avg_sq") for s in states], expected.second),
        ):
            for tensor, array in zip(got, wanted, strict=bool(wanted)):
                np.testing.assert_allclose(tensor.detach().numpy(), array, rtol=2e-5, atol=2e-6)
