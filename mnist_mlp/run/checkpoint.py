"""Checkpoints: written whole, read without executing anything, and named by the hash of their weights."""

import hashlib
import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from mnist_mlp.run.directory import durable_write
from mnist_mlp.settings import SettingError, rules_of, spelled


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final place and renames it: whole or not at all. Lightning's own stages the file
    in the system's temporary directory, which may be another disk."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()  # in memory first: torch.save turns a full disk into an error that does not say so
        torch.save(checkpoint, content)
        durable_write(Path(path), content.getvalue())


def read_file(path: Path, setting: str) -> Any:
    """What `torch.save` wrote to `path`, on the CPU. Nothing in the file is executed: `weights_only` is set.

    Raises:
        SettingError: the file cannot be read, or holds something else; `setting` is what to call it in a sentence.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise SettingError(setting, path, "is not a file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about the files of others
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise SettingError(setting, path, f"cannot be read ({error.strerror})") from error
    except SettingError:
        raise
    except Exception as error:  # torch.load raises almost anything for a damaged or hostile file
        raise SettingError(
            setting, path, "is damaged, or holds more than tensors and plain values: give a checkpoint of mnist-train"
        ) from error


def read_checkpoint(path: Path, setting: str) -> dict[str, Any]:
    """What `mnist-train` wrote to `path`.

    Args:
        path: of the checkpoint.
        setting: what to call it in a sentence to the user.

    Raises:
        SettingError: the file cannot be read, or is no checkpoint of `mnist-train`.
    """
    return checked_checkpoint(read_file(path, setting), setting, path)


def checked_checkpoint(content: Any, setting: str, path: Path) -> dict[str, Any]:
    """The content of a file, if it is a checkpoint of `mnist-train`.

    Raises:
        SettingError: it is not; `setting` and `path` are as for `read_checkpoint`.
    """
    recorded = content.get("hyper_parameters") if isinstance(content, dict) else None
    kinds = {"model": dict, "data": dict, "average": str}
    whole = isinstance(recorded, dict) and all(isinstance(recorded.get(key), kind) for key, kind in kinds.items())
    if not whole or not isinstance(content.get("state_dict"), dict) or not isinstance(content.get("epoch"), int):
        raise SettingError(setting, path, "is not a checkpoint of mnist-train")
    for name, rule in rules_of(recorded or {}).items():
        node, _, leaf = name.rpartition(".")
        group = dict(recorded or {}).get(node) if node else recorded
        if isinstance(group, dict) and leaf in group and not rule.accepts(group[leaf]):
            raise SettingError(setting, path, f"records {name}={spelled(group[leaf])}, which must be {rule.wanted}")
    return dict(content)


def load_weights(classifier: nn.Module, checkpoint: Mapping[str, Any], setting: str, path: Path) -> None:
    """Puts a checkpoint's weights into the classifier.

    Raises:
        SettingError: they are of another backbone, or no finite numbers; `setting` and `path` are as for
            `read_checkpoint`.
    """
    try:
        classifier.load_state_dict(checkpoint["state_dict"])
    except Exception as error:  # RuntimeError for other keys or shapes; almost anything for what are no tensors
        raise SettingError(setting, path, "holds the weights of another backbone") from error
    check_finite(classifier, setting, path)


def check_finite(network: nn.Module, setting: str, path: Path) -> None:
    """Raises: SettingError, where a weight is NaN or infinite: what is computed from it means nothing."""
    for name, weights in network.named_parameters():
        if not torch.isfinite(weights).all():
            raise SettingError(setting, path, f"has weights that are NaN or infinite, in {name}")


def weights_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 over the entries in key order: of each its key (UTF-8), its dtype (as `float32`), its shape (as `64,784`)
    and its raw little-endian bytes."""
    digest = hashlib.sha256()
    for key in sorted(state_dict):
        tensor = state_dict[key].detach().cpu().contiguous()
        # NumPy has no bfloat16: its bits, under its name.
        array = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
        digest.update(key.encode())
        digest.update(str(tensor.dtype).removeprefix("torch.").encode())
        digest.update(",".join(map(str, array.shape)).encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()
