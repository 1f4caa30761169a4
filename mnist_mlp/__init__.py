"""Two MLPs on MNIST, two experiments, and reruns that come out the same."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# For use from Python. Each is imported when it is asked for: PyTorch takes seconds that --help does without.
_HOMES = {
    "MNISTDataModule": "mnist_mlp.datamodule",
    "Classifier": "mnist_mlp.classifier",
    "MLP": "mnist_mlp.backbone",
    "train": "mnist_mlp.train",
    "load": "mnist_mlp.evaluate",
}
__all__ = ["MLP", "Classifier", "MNISTDataModule", "load", "train"]

if TYPE_CHECKING:
    from mnist_mlp.backbone import MLP
    from mnist_mlp.classifier import Classifier
    from mnist_mlp.datamodule import MNISTDataModule
    from mnist_mlp.evaluate import load
    from mnist_mlp.train import train


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(_HOMES[name])
    return home if name == "train" else getattr(home, name)  # a module that is called: see its end


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
