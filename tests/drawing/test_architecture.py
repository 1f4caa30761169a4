import xml.etree.ElementTree as ET

import pytest
import torch
from torch import nn

from mnist_mlp.backbone import MLP
from mnist_mlp.drawing.architecture import HEIGHT, layers, png, svg

CONVOLUTIONAL = [nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10)]


def texts(backbone: nn.Module, title: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg(backbone, title)) if element.tag.endswith("text")]


def test_the_layers_of_network_a_by_hand() -> None:
    linear = [layer for layer in layers(MLP((64, 128, 64))) if layer.kind == "Linear"]
    assert [layer.name for layer in linear] == ["layers.1", "layers.3", "layers.5", "layers.7"]
    assert [(*layer.inputs, *layer.outputs) for layer in linear] == [(784, 64), (64, 128), (128, 64), (64, 10)]
    # 784*64 + 64, 64*128 + 128, 128*64 + 64, 64*10 + 10
    assert [layer.parameters for layer in linear] == [50_240, 8_320, 8_256, 650]


def test_convolutions_have_shapes() -> None:
    found = layers(nn.Sequential(*CONVOLUTIONAL))
    assert [layer.kind for layer in found] == ["Conv2d", "ReLU", "Flatten", "Linear"]
    assert (found[0].inputs, found[0].outputs, found[0].parameters) == ((1, 28, 28), (8, 12, 12), 208)


class Own(nn.Module):
    """With a parameter of its own beside a layer that it uses twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(784))
        self.square, self.out = nn.Linear(784, 784), nn.Linear(784, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.out(self.square(self.square(images.flatten(1) * self.scale)))


@pytest.mark.parametrize("backbone", [MLP((32,) * 20), nn.Sequential(*CONVOLUTIONAL), Own()])
def test_no_parameter_is_lost_or_counted_twice(backbone: nn.Module) -> None:
    assert sum(layer.parameters for layer in layers(backbone)) == sum(map(torch.numel, backbone.parameters()))
    assert png(backbone, "own").height == HEIGHT


def test_the_picture_says_widths_and_parameters() -> None:
    said = texts(MLP((256, 512, 128), dropout=0.3), "A & <B>")
    assert {"A & <B>", "399,498 parameters in 4 layers"} <= set(said)
    assert {"784", "256", "512", "128", "10", "200,960", "131,584", "65,664", "1,290", "Dropout"} <= set(said)


def test_of_a_deep_network_the_middle_is_left_out() -> None:
    backbone = MLP((32,) * 20)
    said = texts(backbone, "deep")
    assert "14 more" in said  # the image and 21 layers, less four on each side
    assert said[-1].endswith("in 21 layers")
    assert png(backbone, "deep").width < 2000


def test_nothing_lies_outside_the_picture_and_png_has_ink_where_svg_has() -> None:
    image = png(MLP((64, 128, 64)), "Network A")
    for element in ET.fromstring(svg(MLP((64, 128, 64)), "Network A")):
        if element.tag.endswith("text"):
            x, y = float(element.get("x", "")), float(element.get("y", ""))
            assert 0 < x < image.width
            assert 0 < y < image.height
            around = image.crop((round(x) - 14, round(y) - 14, round(x) + 15, round(y) + 14))
            assert len(around.getcolors(1000) or []) > 1, element.text


def test_the_backbone_and_the_random_numbers_stay_as_they_were() -> None:
    backbone = MLP((16,), dropout=0.5).train()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    png(backbone, "x")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in backbone.modules())
    assert not any(module._forward_hooks for module in backbone.modules())
