"""The kernel beside independent implementations: NumPy's float64 step by step, and PyTorch's own optimizers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from steps.kernel_oracle import check_random_network, mask, philox

from mnist_mlp.backbone import MLP
from mnist_mlp.steps import native
from mnist_mlp.steps.native import NativeImages, NativeSteps


@pytest.mark.parametrize("number", range(30))
def test_each_step_is_the_one_that_numpy_makes(number: int) -> None:
    """30 networks, 12 steps each: all optimizers, clippings, depths 1 to 4, dropout, sparse or not, 1 or 2 threads."""
    check_random_network(number)


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.Adam(parameters, lr=0.001),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.001, weight_decay=0.1),
        lambda parameters: torch.optim.SGD(parameters, lr=0.05),
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, dampening=0.2, weight_decay=0.01),
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
    ],
    ids=["adam", "adamw", "sgd", "momentum", "nesterov"],
)
@pytest.mark.parametrize(("clip", "algorithm"), [(None, "norm"), (0.5, "norm"), (0.01, "value")])
def test_two_hundred_steps_are_those_of_pytorch(
    make: Callable[[Any], torch.optim.Optimizer], clip: float | None, algorithm: str
) -> None:
    """With a learning rate that changes; at the end also the optimizer's state."""
    torch.manual_seed(0)
    ours, theirs = MLP([20, 30], in_features=40), MLP([20, 30], in_features=40)
    theirs.load_state_dict(ours.state_dict())
    images, labels = torch.randn(330, 40), torch.randint(10, (330,))
    optimizer, oracle = make(ours.parameters()), make(theirs.parameters())
    steps = NativeSteps(ours, optimizer, gradient_clip_val=clip, gradient_clip_algorithm=algorithm)
    data = NativeImages(images, labels)
    for epoch in range(19):
        optimizer.param_groups[0]["lr"] = oracle.param_groups[0]["lr"] = 0.001 if epoch % 2 else 0.002
        order = torch.randperm(330)
        loss, errors = steps.train(data, order, 32, epoch=epoch, step=0)
        their_loss, their_errors = 0.0, 0
        for index in order.split(32):
            logits = theirs(images[index])
            mean = F.cross_entropy(logits, labels[index])
            oracle.zero_grad()
            mean.backward()  # type: ignore[no-untyped-call]
            if clip is not None and algorithm == "norm":
                torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip)
            elif clip is not None:
                torch.nn.utils.clip_grad_value_(theirs.parameters(), clip)
            oracle.step()
            their_loss += mean.item() * len(index)
            their_errors += int((logits.argmax(1) != labels[index]).sum())
        assert loss == pytest.approx(their_loss, rel=1e-5)
        assert abs(errors - their_errors) <= 1
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        list(optimizer.state.values()), list(oracle.state.values()), rtol=1e-3, atol=1e-5, check_dtype=True
    )
    evaluated = steps.evaluate(data, 5, 100)
    torch.testing.assert_close(evaluated.logits, ours(images[5:105]), rtol=1e-4, atol=1e-5)
    losses = F.cross_entropy(evaluated.logits.double(), labels[5:105], reduction="none")
    torch.testing.assert_close(evaluated.losses, losses, rtol=1e-6, atol=1e-6)
    assert evaluated.wrong.tolist() == (evaluated.logits.argmax(1) != labels[5:105]).tolist()


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_cross_entropy_of_large_logits_is_finite_and_right(scale: float) -> None:
    model = MLP([], in_features=10)
    with torch.no_grad():
        model.layers[1].weight.copy_(torch.eye(10) * scale)
        model.layers[1].bias.zero_()
    images = torch.linspace(-1, 1, 10).roll(3).expand(10, 10).contiguous()
    evaluated = NativeSteps(model).evaluate(NativeImages(images, torch.arange(10)))
    expected = F.cross_entropy((images * scale).double(), torch.arange(10), reduction="none")
    torch.testing.assert_close(evaluated.losses, expected, rtol=1e-6, atol=1e-6)


def test_philox_gives_the_published_words() -> None:
    """The known answers of Random123's own tests, from the kernel's function and the oracle's."""
    known = [
        ([0, 0, 0, 0], [0, 0], "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ]
    for counter, key, words in known:
        expected = [int(word, 16) for word in words.split()]
        assert philox(np.array(counter, np.uint64), key).tolist() == expected
        drawn = np.zeros(64, np.uint32)
        arrays = np.array(counter, np.uint32), np.array(key, np.uint32)
        native.kernel().steps_random(arrays[0].ctypes.data, arrays[1].ctypes.data, 64, drawn.ctypes.data)
        assert drawn[[0, 1, 32, 33]].tolist() == expected


def test_dropout_zeroes_the_share_that_it_should() -> None:
    kept = mask(0.3, 7, 0, 0, 0, (500, 500)) > 0
    assert kept.mean() == pytest.approx(0.7, abs=0.005)  # five standard deviations
