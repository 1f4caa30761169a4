"""The report's two networks, which differ by a tuple of widths."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mnist_mlp.settings import SettingError
from mnist_mlp.surroundings import one_line

INITS = ("default", "xavier_uniform")


class MLP(nn.Module):
    """A multilayer perceptron: flatten, then linear + ReLU + dropout for each hidden layer, then linear to logits.

    It knows nothing of Lightning or of training: any `nn.Module` from images to logits can stand in its place.

    Args:
        hidden: width of each hidden layer, first to last. The report's Network A is (64, 128, 64), its Network B
            (256, 512, 128).
        dropout: probability in [0, 1) with which an activation is zeroed, after each hidden ReLU, in training mode.
        init: `default` is PyTorch's own (Kaiming-uniform weights, biases uniform in ±1/√fan_in); `xavier_uniform`
            replaces the weights and leaves the default biases, as the report's second experiment did.
        in_features: pixels of an image.
        num_classes: logits.

    Attributes:
        settings: the arguments, as plain values.

    Raises:
        ValueError: `init` is neither of the two.
    """

    def __init__(
        self,
        hidden: Sequence[int],
        dropout: float = 0.0,
        init: str = "default",
        in_features: int = 28 * 28,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if init not in INITS:
            raise ValueError(f"init={init!r}: must be one of {', '.join(INITS)}")
        self.settings = {
            "hidden": list(hidden),
            "dropout": dropout,
            "init": init,
            "in_features": in_features,
            "num_classes": num_classes,
        }
        layers: list[nn.Module] = [nn.Flatten()]
        width = in_features
        for next_width in hidden:
            layers += [nn.Linear(width, next_width), nn.ReLU()]
            # No module at p = 0, where it would cost a dispatch in every forward pass and change nothing.
            layers += [nn.Dropout(dropout)] if dropout > 0 else []
            width = next_width
        layers.append(nn.Linear(width, num_classes))
        self.layers = nn.Sequential(*layers)
        if init == "xavier_uniform":
            for layer in layers:
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 28, 28), normalized -> logits (N, num_classes)."""
        logits: Tensor = self.layers(images)
        return logits


def check_logits(backbone: object, setting: str, value: object, num_classes: int = 10) -> None:
    """Tries a backbone on two empty images; it stays as it was.

    Args:
        backbone: what a user's configuration built.
        setting, value: what to call it in a sentence.

    Raises:
        SettingError: it is no `nn.Module`, or does not map images (N, 1, 28, 28) to logits (N, num_classes).
    """
    wanted = f"must be an nn.Module from images (N, 1, 28, 28) to logits (N, {num_classes})"
    if not isinstance(backbone, nn.Module):
        raise SettingError(setting, value, f"{wanted}, and is {type(backbone).__name__}")
    try:
        with torch.no_grad():
            logits = copy.deepcopy(backbone).eval()(torch.zeros(2, 1, 28, 28))
    except Exception as error:  # whatever a user's forward raises
        raise SettingError(setting, value, f"{wanted}, and fails ({one_line(error)})") from error
    given = f"a tensor of {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        raise SettingError(setting, value, f"{wanted}, and gives {given} for two images")
