"""The Python side of native steps: what it refuses, what it picks up, and that its oracle can fail."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from steps.kernel_oracle import check_random_network
from torch import nn

from mnist_mlp.backbone import MLP
from mnist_mlp.steps import native
from mnist_mlp.steps.native import NativeImages, NativeSteps

KERNEL = Path(native.__file__).with_name("kernel")


def data(count: int = 40, width: int = 12) -> NativeImages:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 1, width, generator=generator)
    return NativeImages(images, torch.randint(10, (count,), generator=generator))


def model() -> MLP:
    torch.manual_seed(0)
    return MLP([9], 0.2, in_features=12)


def test_the_oracle_notices_a_wrong_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the kernel, with one sign of the gradient turned round, does not pass for it."""
    for file in KERNEL.iterdir():
        text = file.read_text()
        changed = text.replace("fma(splat(first), d - load(m), load(m))", "fma(splat(first), d + load(m), load(m))")
        assert (changed != text) == (file.name == "network.h")
        (tmp_path / file.name).write_text(changed)
    flags = ("-std=c++17", "-O1", "-ffp-contract=off", "-pthread", "-fPIC", "-shared", "-DSTEPS_PORTABLE_ONLY")
    command = ["g++", *flags, "steps.cpp", "portable.cpp", "-o", "k.so"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    library = native.open_kernel(str(tmp_path / "k.so"))
    monkeypatch.setattr(native, "kernel", lambda: library)
    check_random_network(2)  # SGD, which has no such sign
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_random_network(0)


def test_changes_from_outside_count_and_pytorch_can_go_on() -> None:
    """Loaded weights, a learning rate that is set, loaded state; then eager steps, which find it all."""
    ours = model().eval()  # without dropout
    optimizer = torch.optim.Adam(ours.parameters())
    steps, images = NativeSteps(ours, optimizer), data()
    steps.train(images, torch.arange(40), 8, epoch=0, step=0)
    weights = {name: value.clone() for name, value in ours.state_dict().items()}
    state = torch.optim.Adam(ours.parameters()).state_dict()
    kept = {k: {n: t.clone() for n, t in s.items()} for k, s in optimizer.state_dict()["state"].items()}
    results = []
    for _ in range(2):
        ours.load_state_dict(weights)
        optimizer.load_state_dict(
            {**state, "state": {k: {n: t.clone() for n, t in s.items()} for k, s in kept.items()}}
        )
        optimizer.param_groups[0]["lr"] = 0.01
        results.append(steps.train(images, torch.arange(40), 8, epoch=1, step=0))
    assert results[0] == results[1]
    assert {float(s["step"]) for s in optimizer.state.values()} == {10.0}
    assert next(iter(optimizer.state)) is ours.layers[1].weight

    before = ours.layers[1].weight.detach().clone()
    nn.functional.cross_entropy(ours(images.pixels), images.labels).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert {float(s["step"]) for s in optimizer.state.values()} == {11.0}
    assert 0 < (ours.layers[1].weight - before).abs().max() < 0.02
    ours.layers[1].weight.data.zero_()  # which no version counter tells of
    steps.train(images, torch.arange(8), 8, epoch=2, step=0)
    assert ours.layers[1].weight.abs().max() < 0.02


def test_what_is_not_finite_comes_out() -> None:
    ours = model()
    steps = NativeSteps(ours, torch.optim.Adam(ours.parameters()), gradient_clip_val=1.0)
    images = torch.randn(20, 12)
    images[3, 4], images[7, 0] = float("nan"), float("inf")
    for sparse in (False, True):
        bad = NativeImages(images, torch.zeros(20, dtype=torch.int64), sparse=sparse)
        loss, _ = steps.train(bad, torch.arange(20), 8, epoch=0, step=0)
        assert loss != loss  # NaN
        assert steps.evaluate(bad).losses.isnan().all()


def test_no_images_are_no_steps() -> None:
    ours = model()
    steps = NativeSteps(ours, torch.optim.Adam(ours.parameters()))
    assert steps.train(data(), torch.arange(0), 8, epoch=0, step=0) == (0.0, 0)
    assert steps.evaluate(data(), 40).logits.shape == (0, 10)


def frozen(backbone: MLP) -> torch.optim.Optimizer:
    backbone.layers[1].bias.requires_grad_(False)
    return torch.optim.Adam(backbone.parameters())


def hooked(backbone: MLP) -> torch.optim.Optimizer:
    backbone.layers[1].register_forward_hook(lambda *_: None)
    return torch.optim.Adam(backbone.parameters())


def changed(backbone: MLP) -> torch.optim.Optimizer:
    backbone.layers[2] = nn.Tanh()
    return torch.optim.Adam(backbone.parameters())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda b: torch.optim.RMSprop(b.parameters()), "the optimizer is RMSprop, and"),
        (lambda b: torch.optim.Adam(b.parameters(), amsgrad=True), "the optimizer is set to amsgrad"),
        (lambda b: torch.optim.SGD(b.parameters(), maximize=True), "the optimizer is set to maximize"),
        (lambda b: torch.optim.Adam(b.layers[1].parameters()), "the optimizer's parameters are not the backbone's"),
        (lambda b: torch.optim.Adam([{"params": [p]} for p in b.parameters()]), "several groups"),
        (lambda b: torch.optim.Adam(b.double().parameters()), "not all float32 on the CPU"),
        (frozen, "some of the backbone's parameters are not trained"),
        (hooked, "the backbone has hooks"),
        (changed, "the backbone's layers were changed"),
    ],
)
def test_what_the_kernel_cannot_step_is_named(make: Callable[[MLP], torch.optim.Optimizer], reason: str) -> None:
    backbone = model()
    optimizer = make(backbone)
    assert reason in (native.supports(backbone, optimizer) or "")
    with pytest.raises(ValueError, match=reason):
        NativeSteps(backbone, optimizer)


def test_another_backbone_is_named_and_the_three_optimizers_are_not() -> None:
    assert "the backbone is a Linear" in (native.supports(nn.Linear(2, 2)) or "")
    for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD):
        backbone = model()
        assert native.supports(backbone, kind(backbone.parameters())) is None


def test_wrong_data_is_refused() -> None:
    labels = torch.zeros(3, dtype=torch.int64)
    for images, of_them, said in (
        (torch.zeros(3, 4).double(), labels, "float32 images and int64 labels"),
        (torch.zeros(2, 4), labels, r"not \(2, 4\) and \(3,\)"),
        (torch.zeros(3, 4), labels + 10, r"labels in 0\.\.9"),
        (torch.zeros(3, 4), labels - 1, r"labels in 0\.\.9"),
    ):
        with pytest.raises(ValueError, match=said):
            NativeImages(images, of_them)
    ours = model()
    steps = NativeSteps(ours, torch.optim.Adam(ours.parameters()))
    with pytest.raises(ValueError, match=r"an order of numbers in 0\.\.39"):
        steps.train(data(), torch.tensor([40]), 8, epoch=0, step=0)
    with pytest.raises(ValueError, match="images of 13 pixels and 10 classes, for a backbone of 12 and 10"):
        steps.evaluate(data(width=13))
    with pytest.raises(ValueError, match="images 30 to 50 of 40"):
        steps.evaluate(data(), 30, 20)


def test_mnist_like_images_are_sparse_and_others_are_not() -> None:
    images, labels = torch.full((10, 100), -0.4), torch.zeros(10, dtype=torch.int64)
    images[:, :33] = 1
    assert NativeImages(images, labels).entries is not None
    images[:, :34] = 1
    assert NativeImages(images, labels).entries is None


def test_a_missing_kernel_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "_load", lambda: "no C++ compiler was there")
    assert native.available() == "no C++ compiler was there"
    with pytest.raises(RuntimeError, match="native steps: no C\\+\\+ compiler was there"):
        NativeSteps(model())
    (tmp_path / "k.so").write_text("not a library")
    with pytest.raises(OSError, match=r"k\.so"):
        native.open_kernel(str(tmp_path / "k.so"))


def test_a_forked_process_can_use_two_threads() -> None:
    """Jobs are forked from a server that may have trained before."""
    code = """
import os, torch
from mnist_mlp.backbone import MLP
from mnist_mlp.steps.native import NativeImages, NativeSteps
ours = MLP([16])
steps = NativeSteps(ours, torch.optim.Adam(ours.parameters()), threads=2)
images = NativeImages(torch.randn(40, 784), torch.arange(40) % 10)
steps.train(images, torch.arange(40), 8, epoch=0, step=0)
child = os.fork()
steps.train(images, torch.arange(40), 8, epoch=1, step=0)
os._exit(os.waitpid(child, 0)[1] if child else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)  # where no other library has threads


def test_the_peak_is_more_than_nothing() -> None:
    assert native.peak_rate(0.001) > 1e6
