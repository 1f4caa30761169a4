"""What a configuration names is tried before there is a directory: it can be trained, and a checkpoint can hold it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Runner

from mnist_mlp.classes import check_classes
from mnist_mlp.run.checkpoint import not_storable
from mnist_mlp.run.notebook import settings_of
from mnist_mlp.settings import SettingError, compose_config

OWN = """
import pathlib
import torch
from lightning.pytorch import Callback
from torch import nn

class Net(nn.Module):
    def __init__(self, kind="usual"):
        super().__init__()
        self.kind = kind
        self.layer = nn.Linear(784, 10, dtype=torch.float64 if kind.startswith("float64") else None)
        self.norm = nn.BatchNorm1d(784)
        if kind == "frozen":
            self.requires_grad_(False)

    def forward(self, images):
        flat = self.norm(images.flatten(1)) if self.kind == "norm" else images.flatten(1)
        logits = self.layer(flat if self.kind == "float64 within" else flat.to(self.layer.weight.dtype))
        others = {"tuple": (logits, 0), "shape": logits[:, :9], "detached": logits.detach(), "label": logits.argmax(1)}
        return others.get(self.kind, logits)

class Weightless(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :10]

class Strange(Callback):
    def state_dict(self):
        return {"seen": pathlib.Path("a")}
"""
NET = ["model._target_=own.Net", "~model.hidden", "~model.dropout", "~model.init"]
LOGITS = r"must be an nn\.Module from images \(N, 1, 28, 28\) to logits \(N, 10\), and"
REFUSED: dict[str, tuple[list[str], str]] = {
    "a tuple": ([*NET, "+model.kind=tuple"], rf"model=network_a: {LOGITS} gives tuple"),
    "another shape": ([*NET, "+model.kind=shape"], rf"model=network_a: {LOGITS} gives a tensor of \(2, 9\)"),
    "labels": ([*NET, "+model.kind=label"], rf"model=network_a: {LOGITS} gives a tensor of \(2,\)"),
    "another type": ([*NET, "+model.kind='float64 within'"], rf"model=network_a: {LOGITS} fails \(mat1 and mat2"),
    "without a gradient": ([*NET, "+model.kind=detached"], r"model=network_a: cannot be trained \(element 0"),
    "frozen": ([*NET, "+model.kind=frozen"], "model=network_a: has no weights to train"),
    "without weights": (["model._target_=own.Weightless", *NET[1:]], "model=network_a: has no weights to train"),
    "a last image": (
        [*NET, "+model.kind=norm", "data.train_size=65"],
        r"data\.batch_size=64: leaves a last minibatch of one image \(of 65\), .* or data\.train_size=64",
    ),
    "each alone": ([*NET, "+model.kind=norm", "data.batch_size=1"], r"data\.batch_size=1: is one image, on which"),
    "a state of its own kind": (
        ["+callbacks.x._target_=own.Strange"],
        r"callbacks\.x=Strange: keeps a state that no checkpoint can hold.*pathlib\.\w*Path",
    ),
}
TAKEN: dict[str, list[str]] = {
    "float64": [*NET, "+model.kind=float64"],
    "two last images": [*NET, "+model.kind=norm", "data.train_size=66"],
    "two last images for a network that does not mind": [*NET, "data.train_size=65"],
    "lists": ["scheduler=plateau", "++scheduler.min_lr=[1e-4]"],
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own", raising=False)


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_fail_later_is_refused_at_once(own: None, tiny: list[str], tmp_path: Path, what: str) -> None:
    overrides, problem = REFUSED[what]
    with pytest.raises(SettingError, match=problem) as refused:
        check_classes(settings_of(compose_config([*tiny, f"run_dir={tmp_path / 'run'}", *overrides])))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", TAKEN)
def test_what_can_be_trained_is_taken(own: None, tiny: list[str], what: str) -> None:
    before = torch.get_rng_state()
    check_classes(settings_of(compose_config([*tiny, *TAKEN[what]])))
    assert torch.equal(torch.get_rng_state(), before)


def test_lists_reach_an_optimizer_as_lists_and_come_back_from_its_checkpoint(run: Runner) -> None:
    run_dir, _ = run("+optimizer.betas=[0.9,0.95]", "trainer.max_epochs=1")
    content = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    betas = content["optimizer_states"][0]["param_groups"][0]["betas"]
    assert (type(betas) in (list, tuple), list(betas)) == (True, [0.9, 0.95])  # PyTorch's versions differ
    _, record = run("+optimizer.betas=[0.9,0.95]", "trainer.max_epochs=2", f"run_dir={run_dir}")
    assert (record["status"], record["epochs"]) == ("completed", 2)


def test_what_no_checkpoint_can_hold_is_named() -> None:
    assert not_storable({"a": torch.ones(2), "b": [1, None, "x"]}) is None
    assert not_storable({"a": np.float64(1)}) == "numpy._core.multiarray.scalar"
    assert "lambda" in str(not_storable({"a": lambda: 1}))
