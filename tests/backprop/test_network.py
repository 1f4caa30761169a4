"""The oracle of every number is NumPy, with the backward pass of an MLP written out."""

import io

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image
from torch import nn

from mnist_mlp.backbone import MLP
from mnist_mlp.backprop.network import configured_passes, network_figure, network_markdown, network_passes
from mnist_mlp.drawing.figure import png
from mnist_mlp.seeds import stream_seed
from mnist_mlp.settings import SettingError, compose_config


@pytest.mark.parametrize("model", ["tiny", "network_a", "network_b"])
def test_norms_dead_relus_and_the_gradient_of_the_logits(tiny_root: object, model: str) -> None:
    config = compose_config(
        [
            f"model@network={model}",
            f"data.root={tiny_root}",
            "data.sha256=null",
            "data.test_size=200",
            "sample=7",
            "seed=3",
        ],
        "backprop",
    )
    passes = configured_passes(config)

    torch.manual_seed(stream_seed(3, "weights"))
    linear = [layer for layer in instantiate(config.network).layers if isinstance(layer, nn.Linear)]
    weights = [
        (layer.weight.detach().numpy().astype(float), layer.bias.detach().numpy().astype(float)) for layer in linear
    ]
    with open(f"{tiny_root}/MNIST/raw/t10k-images-idx3-ubyte", "rb") as file:
        pixels = np.frombuffer(file.read()[16:], np.uint8).reshape(-1, 784)[7]
    with open(f"{tiny_root}/MNIST/raw/t10k-labels-idx1-ubyte", "rb") as file:
        label = file.read()[8 + 7]
    assert passes.label == label

    before, activations, masks = (pixels / 255 - 0.1307) / 0.3081, [], []
    norms = [np.linalg.norm(before)] * 2  # the image, and flattened
    for number, (weight, bias) in enumerate(weights):
        activations.append(before)
        before = weight @ before + bias
        norms.append(np.linalg.norm(before))
        if number < len(weights) - 1:
            masks.append(before > 0)
            before = np.maximum(before, 0)
            norms.append(np.linalg.norm(before))
    assert [layer.activation for layer in passes.layers] == pytest.approx(norms, rel=1e-6)
    dead = [layer.dead for layer in passes.layers if layer.dead is not None]
    assert dead == pytest.approx([1 - mask.mean() for mask in masks])

    softmax = np.exp(before) / np.exp(before).sum()
    gradient = softmax - np.eye(10)[label]
    assert passes.loss == pytest.approx(-np.log(softmax[label]), rel=1e-6)
    assert passes.by_hand.numpy() == pytest.approx(gradient, abs=1e-6)
    norms, weight_norms = [np.linalg.norm(gradient)], []
    for number in reversed(range(len(weights))):
        weight_norms.append(np.hypot(np.linalg.norm(np.outer(gradient, activations[number])), np.linalg.norm(gradient)))
        gradient = weights[number][0].T @ gradient
        norms.append(np.linalg.norm(gradient))
        if number:
            gradient = gradient * masks[number - 1]
            norms.append(np.linalg.norm(gradient))
    norms.append(norms[-1])
    assert [layer.gradient for layer in passes.layers[::-1]] == pytest.approx(norms, rel=1e-5)
    assert [layer.weights for layer in passes.layers[::-1] if layer.weights is not None] == pytest.approx(
        weight_norms, rel=1e-5
    )

    text = network_markdown(passes)
    assert f"the digit {label}" in text
    first, last = text.split("\n\n")[1:4:2]
    for block in (first, last):
        assert len({len(line) for line in block.split("\n")}) == 1  # aligned
        assert len({line.count("|") for line in block.split("\n")}) == 1
    with Image.open(io.BytesIO(png(network_figure(passes)))) as image:
        image.load()


def test_a_dead_layer_is_passes() -> None:
    network = MLP((4,)).double()
    with torch.no_grad():
        network.layers[1].bias.fill_(-1e3)
    passes = network_passes(network, torch.ones(1, 1, 28, 28, dtype=torch.float64), 2, "")
    assert [layer.dead for layer in passes.layers if layer.dead is not None] == [1.0]
    assert passes.layers[0].gradient == 0


def test_a_wrong_gradient_of_the_logits_does_not_pass() -> None:
    class Wrong(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = images.flatten(1)[:, :10] * 1.0
            logits.register_hook(lambda gradient: gradient + 1e-9)
            return logits

    with pytest.raises(SettingError, match=r"network=Wrong: softmax - onehot is 1e-09 from autograd's"):
        network_passes(Wrong(), torch.ones(1, 1, 28, 28, dtype=torch.float64), 2, "")


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        (nn.Flatten(0), r"network=Flatten: must make logits \(1, 10\) of an image, not \(784,\)"),
        (nn.Linear(3, 10).double(), "network=Linear: cannot take an image of 28x28"),
    ],
)
def test_a_network_that_is_no_classifier_of_images_is_one_sentence(network: nn.Module, problem: str) -> None:
    with pytest.raises(SettingError, match=problem):
        network_passes(network, torch.ones(1, 1, 28, 28, dtype=torch.float64), 2, "")
