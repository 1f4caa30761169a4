"""Captured steps without a GPU: a graph is stood in for by the work itself, which is done at each replay."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import StepLR

from mnist_mlp.backbone import MLP
from mnist_mlp.classifier import Classifier, CrossEntropy
from mnist_mlp.datamodule import Minibatches
from mnist_mlp.settings import SettingError, compose_config
from mnist_mlp.steps import captured
from mnist_mlp.steps.captured import TRIALS, CapturedSteps, Work
from mnist_mlp.steps.choice import Choice, choose


class Graphs:
    """Records nothing; counts what was recorded and replayed."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, work: Work) -> Work:
        self.recorded += 1

        def replay() -> tuple[Tensor, Tensor]:
            self.replayed += 1
            return work()

        return replay


def group(minibatches: int, odd: int = 0, first: int = 0, transform: Any = None) -> Minibatches:
    """Of 8 images each, the last one of `odd`."""
    generator = torch.Generator().manual_seed(first)
    count = 8 * minibatches + odd
    images, labels = (
        torch.randn(100, 1, 28, 28, generator=generator),
        torch.randint(10, (100,), generator=generator),
    )
    return Minibatches(images, labels, torch.randperm(100, generator=generator)[:count], 8, first, transform)


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 10)
    )


def eager(model: nn.Module, optimizer: Optimizer, minibatches: Minibatches, clip: float | None) -> list[list[Tensor]]:
    """Plain PyTorch: of each minibatch the sum of the losses, the logits and the labels."""
    results = []
    for images, labels in minibatches:
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        results.append([loss.detach()[None] * len(labels), logits.detach(), labels])
    return [list(column) for column in zip(*results, strict=True)]


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "adam": lambda parameters: Adam(parameters, lr=2**-7, fused=True),
    "adam unfused": lambda parameters: Adam(parameters, lr=2**-7),
    "adamw": lambda parameters: AdamW(parameters, lr=2**-7, weight_decay=0.1, fused=True),
    "sgd": lambda parameters: SGD(parameters, lr=2**-5, momentum=0.9, dampening=0.2, fused=True),
    "plain sgd": lambda parameters: SGD(parameters, lr=2**-5, fused=True),
}


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_steps_are_those_of_eager_pytorch_bit_for_bit(make: Callable[[Any], Optimizer], clip: float | None) -> None:
    """With a rate that changes (a power of two, the same in float32), uneven minibatches, dropout and running means:
    whatever the trial steps before a recording do is undone. Adam of several kernels sums otherwise with a rate on the
    device, and is compared to float32's accuracy."""
    near = {"rtol": 1e-4, "atol": 1e-5} if make is OPTIMIZERS["adam unfused"] else {"rtol": 0.0, "atol": 0.0}
    ours, theirs, graphs = backbone(), backbone(), Graphs()
    optimizer, oracle = make(ours.parameters()), make(theirs.parameters())
    schedulers = [StepLR(one, 1, gamma=0.5) for one in (optimizer, oracle)]
    steps = CapturedSteps(ours, optimizer, CrossEntropy(), clip, record=graphs)
    for number, (minibatches, odd) in enumerate([(3, 0), (2, 5), (3, 0), (2, 5), (0, 7)]):
        torch.manual_seed(number)
        made = steps(group(minibatches, odd, first=number))
        torch.manual_seed(number)
        wanted = eager(theirs, oracle, group(minibatches, odd, first=number), clip)
        for ours_of, theirs_of in zip(made, wanted, strict=True):
            torch.testing.assert_close(ours_of, torch.cat(theirs_of), **near)
        for scheduler in schedulers:
            scheduler.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), **near)
    torch.testing.assert_close(optimizer.state_dict()["state"], oracle.state_dict()["state"], **near)
    assert optimizer.state_dict()["param_groups"] == oracle.state_dict()["param_groups"]  # a float for the rate, too
    keeps_state = make is not OPTIMIZERS["plain sgd"]
    assert (graphs.recorded, graphs.replayed) == ((2, 3) if keeps_state else (2, 4))


def test_what_is_written_into_a_graph_has_it_recorded_anew() -> None:
    model, graphs = MLP([6], dropout=0.3), Graphs()
    optimizer = Adam(model.parameters())
    steps = CapturedSteps(model, optimizer, CrossEntropy(), record=graphs)
    steps(group(2))
    for number, change in enumerate(
        [
            lambda: None,
            lambda: optimizer.param_groups[0].update(lr=0.5),  # the one thing that a graph reads
            lambda: optimizer.param_groups[0].update(betas=(0.5, 0.9)),
            lambda: setattr(model.layers[3], "p", 0.1),
            lambda: setattr(model.layers[1].weight, "data", model.layers[1].weight.data.clone()),
            lambda: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict())),
        ]
    ):
        change()
        steps(group(2))
        steps(group(2))
        assert graphs.recorded == max(1, number), number


def test_a_transform_is_applied_once_to_each_minibatch_before_the_replay() -> None:
    seen: list[int] = []

    def transform(images: Tensor, number: int) -> Tensor:
        seen.append(number)
        return images + number

    model = MLP([6])
    steps = CapturedSteps(model, SGD(model.parameters(), lr=0.1, fused=True), CrossEntropy(), record=Graphs())
    oracle = copy.deepcopy(model)
    steps(group(3, 4, first=7, transform=transform))
    assert seen == [7, 8, 9, 10]
    eager(oracle, SGD(oracle.parameters(), lr=0.1, fused=True), group(3, 4, first=7, transform=transform), None)
    torch.testing.assert_close(model.state_dict(), oracle.state_dict())


def test_what_cannot_be_recorded_is_one_sentence() -> None:
    def record(work: Work) -> Work:
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nCompile with ...")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    model = MLP([6])
    steps = CapturedSteps(model, SGD(model.parameters(), lr=0.1, fused=True), CrossEntropy(), record=record)
    with pytest.raises(SettingError) as caught:
        steps(group(2))
    assert str(caught.value) == (
        "trainer.steps=captured: the steps of MLP cannot be a CUDA graph (operation not permitted when stream is "
        "capturing): use trainer.steps=eager"
    )


class Counts(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :10]


def asked(steps: str, backbone: nn.Module, make: Any, *overrides: str) -> Choice:
    config = compose_config([f"trainer.steps={steps}", *overrides])
    return choose(config, backbone, make(backbone.parameters()), {})


def test_auto_is_captured_on_a_cuda_device_where_it_is_known_to_be_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert asked("auto", MLP([4], dropout=0.3), Adam) == ("captured", True, None)
    assert asked("auto", backbone(), AdamW) == ("captured", True, None)
    assert asked("auto", MLP([4]), Adam, "loss.label_smoothing=0.1").steps == "captured"
    assert asked("auto", MLP([4]), Adam, "trainer.accelerator=cpu").steps == "native"
    assert asked("eager", MLP([4]), Adam) == ("eager", True, None)
    assert asked("auto", MLP([4]), RMSprop) == ("eager", True, None)
    own = nn.Sequential(Counts(), nn.Linear(10, 10))
    choice = asked("auto", own, Adam)
    assert choice.steps == "eager"
    assert "Counts may do something else at each step; if not, trainer.steps=captured is faster" in str(choice.why)
    assert asked("captured", own, Adam).steps == "captured"
    replaced = MLP([4])
    replaced.layers[2].forward = lambda images: images  # of one instance, as some libraries do
    assert asked("auto", replaced, Adam).steps == "eager"
    average = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784, momentum=None), nn.Linear(784, 10))
    assert asked("auto", average, Adam).steps == "eager"
    for make, reason in (
        (RMSprop, "the optimizer is RMSprop, and captured steps are for Adam, AdamW and SGD"),
        (lambda parameters: SGD(parameters, lr=0.1), "SGD writes its rate into the graph unless optimizer.fused=true"),
    ):
        with pytest.raises(SettingError, match=f"trainer.steps=captured: {reason}"):
            asked("captured", MLP([4]), make)
        with pytest.raises(ValueError, match=f"captured steps: {reason}"):
            CapturedSteps(MLP([4]), make(MLP([4]).parameters()), CrossEntropy())
    for hook in (
        lambda model: model.layers[1].register_forward_hook(lambda *_: None),
        lambda model: model.layers[1].weight.register_hook(lambda _: None),
    ):
        hooked = MLP([4])
        hook(hooked)
        with pytest.raises(SettingError, match="the backbone has hooks, which a graph would call once"):
            asked("captured", hooked, Adam)


def test_captured_steps_are_refused_without_a_cuda_device() -> None:
    with pytest.raises(SettingError, match=r"the device is no CUDA device; trainer\.steps=auto"):
        asked("captured", MLP([4]), Adam, "trainer.accelerator=cpu")


def test_a_run_with_captured_steps_counts_and_measures_them(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """A whole run, on the CPU, beside the eager one, and stopped and resumed: to the same bits."""
    overrides = ("model.hidden=[16]", "model.dropout=0.3", "data.batch_size=32", "scheduler=step", "portable=false")
    _, eager_record = run(*overrides, "trainer.steps=eager")
    graphs = Graphs()
    monkeypatch.setattr("mnist_mlp.steps.captured.device_type", lambda config: "cuda")
    monkeypatch.setattr(CapturedSteps.__init__, "__defaults__", (None, "norm", graphs))
    path, record = run(*overrides)
    assert record["steps"] == "captured"
    assert graphs.replayed == 2  # in each epoch but the first, whose only group is stepped eagerly
    assert record["final"]["train/loss"] == pytest.approx(eager_record["final"]["train/loss"], rel=1e-3)
    assert record["test"]["last"]["accuracy"] == pytest.approx(eager_record["test"]["last"]["accuracy"], abs=0.02)
    checkpoint = torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3 * 32
    assert {float(state["step"]) for state in checkpoint["optimizer_states"][0]["state"].values()} == {96.0}
    assert isinstance(checkpoint["optimizer_states"][0]["param_groups"][0]["lr"], float)
    run(*overrides, "trainer.max_epochs=1", f"run_dir={tmp_path}/r")
    _, resumed = run(*overrides, f"run_dir={tmp_path}/r")
    assert resumed["weights_sha256"] == record["weights_sha256"]
    assert isinstance(Classifier.load_from_checkpoint(path / "checkpoints" / "last.ckpt").backbone, MLP)


def test_trials_are_made() -> None:
    """Else nothing would warm up; that they leave no trace, the comparison with eager steps shows."""
    assert TRIALS > 0
    assert captured.record_graph.__name__ in {default.__name__ for default in CapturedSteps.__init__.__defaults__[-1:]}
