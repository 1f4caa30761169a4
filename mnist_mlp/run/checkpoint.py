"""Checkpoints: written whole, read without executing anything, and named by the hash of their weights."""

import hashlib
import io
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from mnist_mlp import reading
from mnist_mlp.run.directory import durable_write
from mnist_mlp.run.shape import (
    ANY_NUMBER,
    ANYTHING,
    AT_LEAST_ZERO,
    COUNT,
    FROM_ONE,
    OTHERS,
    ROW,
    TEXT,
    TRUTH,
    Whole,
    fault,
    short,
)
from mnist_mlp.settings import SettingError, rules_of, spelled
from mnist_mlp.surroundings import one_line

CHECKPOINT = Whole(epoch=COUNT, state_dict={}, hyper_parameters=Whole(model={}, data={}, average=TEXT))
# What a run that goes on takes besides: where Lightning, the optimizer and the recorder were.
RESUMED = Whole(
    loops=Whole(fit_loop=Whole(epoch_progress=Whole(current=Whole(processed=COUNT)))),
    optimizer_states=[Whole(state={}, param_groups=[{}])],
    lr_schedulers=[{}],
    callbacks=Whole(
        Recorder=Whole(
            rows=[Whole({name: ROW[name] for name in ("epoch", "train/loss", "val/accuracy")} | {OTHERS: ANY_NUMBER})],
            best=Whole({"epoch": FROM_ONE, "val/accuracy": ROW["val/accuracy"]}),
            wall_seconds=AT_LEAST_ZERO,
            random_states=Whole(torch=ANYTHING, cuda=[ANYTHING], python=ANYTHING, numpy=[ANYTHING]),
            stopped=TRUTH,
        )
    ),
)


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final place and renames it: whole or not at all. Lightning's own stages the file
    in the system's temporary directory, which may be another disk. The first one is tried: what cannot be read again
    would be found at the end of all epochs."""

    _read_back = False

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()  # in memory first: torch.save turns a full disk into an error that does not say so
        torch.save(checkpoint, content)
        if not self._read_back and (reason := not_storable(checkpoint)) is not None:
            problem = f"could not be read again: something in it is more than plain values and tensors ({reason})"
            raise SettingError("run_dir", path, problem)
        self._read_back = True
        durable_write(Path(path), content.getvalue())


def not_storable(state: Any) -> str | None:
    """Why a state could not be read from a checkpoint; None where it could."""
    content = io.BytesIO()
    try:
        torch.save(state, content)
        content.seek(0)
        torch.load(content, weights_only=True)
    except Exception as error:  # pickle and torch.load raise almost anything
        found = re.search(r"(?:GLOBAL |pickle )([^\n]*?)(?: was not|$)", str(error), re.MULTILINE)
        return found[1] if found else f"{type(error).__name__}: {one_line(error)[:200]}"
    return None


def read_file(path: Path, setting: str) -> Any:
    """What `torch.save` wrote to `path`, on the CPU. Nothing in the file is executed: `weights_only` is set.

    Raises:
        SettingError: the file cannot be read, or holds something else; `setting` is what to call it in a sentence.
    """
    try:
        content = reading.read_file(path)
    except OSError as error:
        raise SettingError(setting, path, f"cannot be read ({error.strerror})") from error
    try:
        # PyTorch itself does not look at the checksums that it writes, and so takes one bit for another.
        if zipfile.is_zipfile(io.BytesIO(content)) and (altered := zipfile.ZipFile(io.BytesIO(content)).testzip()):
            raise ValueError(f"the checksum of {altered} is another")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about the files of others
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
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
    if not isinstance(content, dict) or fault(content, CHECKPOINT) is not None:
        raise SettingError(setting, path, "is not a checkpoint of mnist-train")
    recorded = content["hyper_parameters"]
    if (problem := reading.not_plain(recorded)) is not None:
        raise SettingError(setting, path, f"is damaged (of its hyper_parameters: {problem})")
    for name, tensor in content["state_dict"].items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise SettingError(setting, path, f"is damaged (its weights have {spelled(name)}, which is no tensor)")
    for name, rule in rules_of(recorded).items():
        node, _, leaf = name.rpartition(".")
        group = recorded.get(node) if node else recorded
        if isinstance(group, dict) and leaf in group and not rule.accepts(group[leaf]):
            raise SettingError(setting, path, f"records {name}={short(group[leaf])}, which must be {rule.wanted}")
    return dict(content)


def read_resumable(path: Path, setting: str) -> dict[str, Any]:
    """As `read_checkpoint`, of a run that is to go on.

    Raises:
        SettingError: besides, something is missing without which the run would begin again or lose epochs unnoticed.
    """
    content = read_checkpoint(path, setting)
    problem = fault(content, RESUMED)
    if problem is None:
        epochs = [row["epoch"] for row in content["callbacks"]["Recorder"]["rows"]]
        done = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        if not done or epochs != list(range(1, done + 1)):
            problem = f"of {done} epochs it records {epochs}"
        elif len(content["optimizer_states"]) != 1:
            problem = f"it has {len(content['optimizer_states'])} optimizers"
    if problem is not None:
        raise SettingError(setting, path, f"is damaged, and the run cannot go on from it ({problem}): restore it")
    return content


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
    for name, values in network.named_buffers():  # a mask may well be infinite
        if torch.isnan(values).any():
            raise SettingError(setting, path, f"has values that are NaN, in {name}")


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
