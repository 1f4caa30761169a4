import pytest
import torch
from torch import nn

from mnist_mlp.backbone import MLP, check_logits
from mnist_mlp.settings import SettingError, compose_config


@pytest.mark.parametrize(
    ("name", "widths"), [("network_a", [784, 64, 128, 64, 10]), ("network_b", [784, 256, 512, 128, 10])]
)
def test_the_reports_networks(name: str, widths: list[int]) -> None:
    config = compose_config([f"model={name}"])
    layers = [layer for layer in MLP(config.model.hidden).layers if isinstance(layer, nn.Linear)]
    assert [layers[0].in_features, *(layer.out_features for layer in layers)] == widths


def test_forward_is_the_formula() -> None:
    torch.manual_seed(0)
    model, images = MLP((5, 4)), torch.randn(3, 1, 28, 28)
    state = model.state_dict()
    activation = images.reshape(3, 784)
    for layer in ("1", "3"):
        activation = torch.clamp(activation @ state[f"layers.{layer}.weight"].T + state[f"layers.{layer}.bias"], min=0)
    expected = activation @ state["layers.5.weight"].T + state["layers.5.bias"]
    torch.testing.assert_close(model(images), expected)


def test_dropout_follows_each_relu_and_is_off_in_evaluation() -> None:
    model = MLP((5, 4, 3), dropout=0.3)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == ["Flatten", *["Linear", "ReLU", "Dropout"] * 3, "Linear"]
    images = torch.randn(2, 1, 28, 28)
    model.eval()
    assert torch.equal(model(images), model(images))


def test_xavier_replaces_the_weights_only() -> None:
    torch.manual_seed(3)
    default = MLP((64, 32))
    torch.manual_seed(3)
    xavier = MLP((64, 32), init="xavier_uniform")
    first, again = default.layers[1], xavier.layers[1]
    assert isinstance(first, nn.Linear)
    assert isinstance(again, nn.Linear)
    assert torch.equal(first.bias, again.bias)
    bound = (6 / (784 + 64)) ** 0.5  # Glorot and Bengio 2010, equation 16
    assert again.weight.abs().max() <= bound
    assert again.weight.abs().max() > 0.99 * bound
    assert first.weight.abs().max() < 1.01 / 784**0.5  # the default's own bound


def test_unknown_init_is_refused() -> None:
    with pytest.raises(ValueError, match="init='he'"):
        MLP((5,), init="he")


@pytest.mark.parametrize(
    ("backbone", "problem"),
    [
        ({"hidden": [1]}, "is dict"),
        (nn.Flatten(), r"gives a tensor of \(2, 784\) for two images"),
        (nn.LSTM(28, 10), "fails"),
        (MLP((3,), num_classes=9), r"gives a tensor of \(2, 9\) for two images"),
    ],
)
def test_what_is_no_backbone_is_refused(backbone: object, problem: str) -> None:
    with pytest.raises(SettingError, match=rf"model=x: must be an nn\.Module from images .*, and {problem}"):
        check_logits(backbone, "model", "x")


def test_trying_a_backbone_leaves_it_and_the_random_numbers_as_they_were() -> None:
    backbone = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), MLP((3,), dropout=0.5))
    backbone[1].eval()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    state = torch.get_rng_state()
    check_logits(backbone, "model", "x")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert [module.training for module in backbone] == [True, False, True]
