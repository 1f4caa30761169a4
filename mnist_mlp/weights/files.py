"""Reads weights without executing anything, and fits them to a network whose layers have other names."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mnist_mlp.run.checkpoint import check_finite, read_file
from mnist_mlp.settings import SettingError

OWN = "network_b"  # whose weights are used where no network is named
NESTED = ("state_dict", "model_state_dict", "model")  # where the scripts of others keep a state dict in a larger one
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def own_weights(network: str) -> Path:
    """The file in the package with the weights of a network of `conf/model`, for `read_weights`.

    Raises:
        SettingError: there is none.
    """
    path = Path(str(files("mnist_mlp.weights") / f"{network}.safetensors"))
    if not path.is_file():
        raise SettingError("CHECKPOINT", None, f"the package has no weights of {network}: give a checkpoint")
    return path


def read_weights(path: Path, setting: str) -> dict[str, Tensor]:
    """A plain state dict: of PyTorch, read with `weights_only`, or in safetensors' format.

    Returns:
        The tensors by name, in the file's order.

    Raises:
        SettingError: the file cannot be read or holds no state dict; `setting` is what to call it.
    """
    content = read_safetensors(path, setting)[0] if path.suffix == ".safetensors" else read_file(path, setting)
    for name in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    plain = isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided
        for name, tensor in content.items()
    )
    if not plain or not content:
        raise SettingError(setting, path, "holds no state dict: names, each with a tensor")
    return dict(content)


def read_safetensors(path: Path, setting: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The float32 tensors by name, and what the file says of itself.

    The format: the length of a JSON header (8 bytes, little-endian), the header, and the numbers
    (github.com/huggingface/safetensors). These lines are less than a dependency of every installation.

    Raises:
        SettingError: as of `read_weights`.
    """
    damaged = SettingError(setting, path, "is damaged, or not in safetensors' format")
    try:
        if path.exists() and not path.is_file():
            raise SettingError(setting, path, "is not a file")
        content = path.read_bytes()
    except OSError as error:
        raise SettingError(setting, path, f"cannot be read ({error.strerror})") from error
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        tensors = {}
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            first, last = entry["data_offsets"]
            if not 0 <= first <= last <= len(content) - start:
                raise ValueError("a tensor lies outside of the file")
            numbers = np.frombuffer(content[start + first : start + last], DTYPES[entry["dtype"]])
            tensors[name] = torch.from_numpy(numbers.reshape(entry["shape"]).astype(np.float32))
    except Exception as error:  # whatever a damaged or hostile header leads to
        raise damaged from error
    return tensors, metadata


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """What `read_safetensors` reads: float32, in the order of the mapping."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    content = b""
    for name, tensor in tensors.items():
        numbers = tensor.detach().cpu().numpy().astype("<f4").tobytes()
        offsets = [len(content), len(content) + len(numbers)]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        content += numbers
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


def fit(backbone: nn.Module, weights: Mapping[str, Tensor], setting: str, path: Path) -> None:
    """Puts weights into a network: by name, or where the names are others, linear layer by linear layer in order.

    Raises:
        SettingError: they are of another network, or no finite numbers; `setting` and `path` say whose.
    """
    short = {name.removeprefix("module.").removeprefix("backbone."): tensor for name, tensor in weights.items()}
    wanted = backbone.state_dict()
    if short.keys() != wanted.keys() and all(isinstance(layer, nn.Linear) for layer in _with_weights(backbone)):
        matrices = [name.removesuffix("weight") for name, tensor in short.items() if tensor.ndim == 2]
        theirs = [f"{layer}{kind}" for layer in matrices for kind in ("weight", "bias")]
        if sorted(theirs) == sorted(short) and len(theirs) == len(wanted):
            short = dict(zip(wanted, (short[name] for name in theirs), strict=True))
    try:
        backbone.load_state_dict(short)
    except Exception as error:  # RuntimeError for other keys or shapes
        has = ", ".join(f"{name} {'x'.join(map(str, tensor.shape))}" for name, tensor in list(weights.items())[:8])
        raise SettingError(setting, path, f"holds the weights of another network ({has})") from error
    check_finite(backbone, setting, path)


def _with_weights(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
