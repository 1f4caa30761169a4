import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import COMPILED, COMPILER, Command, Runner
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from mnist_mlp.steps.compiled import STEPS_PER_GRAPH, CompiledSteps


def minibatches(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 8, 1, 28, 28, generator=generator, dtype=torch.float64)
    return list(zip(images, torch.randint(10, (count, 8), generator=generator), strict=True))


def backbone() -> nn.Module:
    """With what a graph must not forget: running statistics, a bias that is not trained, a layer used twice, and a
    weight that two layers share."""
    torch.manual_seed(0)
    shared = nn.Linear(6, 6)
    layers = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 6), nn.BatchNorm1d(6), shared, nn.ReLU(), shared, nn.Linear(6, 6), nn.Linear(6, 10)
    )
    layers[1].bias.requires_grad_(False)
    layers[6].weight = shared.weight
    return layers.double()


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: Adam(parameters, lr=0.01),
        lambda parameters: Adam(parameters, lr=0.01, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1),
        lambda parameters: AdamW(parameters, lr=0.01, weight_decay=0.1),
        lambda parameters: SGD(parameters, lr=0.01),
        lambda parameters: SGD(parameters, lr=0.01, momentum=0.9, dampening=0.2, weight_decay=0.1),
        lambda parameters: SGD(parameters, lr=0.01, momentum=0.9, nesterov=True),
    ],
    ids=["adam", "adam with everything", "adamw", "sgd", "sgd with everything", "nesterov"],
)
@pytest.mark.parametrize(("clip", "algorithm"), [(None, "norm"), (0.5, "norm"), (0.01, "value")])
def test_the_graph_makes_the_steps_that_pytorch_makes(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[Any], Optimizer], clip: float | None, algorithm: str
) -> None:
    """As traced, without the compiler, in float64; with a rate that changes and eager steps in between."""
    monkeypatch.setattr(torch._inductor, "standalone_compile", lambda graph, *_, **__: graph)
    ours, theirs = backbone(), backbone()
    optimizer, oracle = make(ours.parameters()), make(theirs.parameters())
    compiled = CompiledSteps(ours, optimizer, F.cross_entropy, clip, algorithm)

    def eager(model: nn.Module, optimizer: Optimizer, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        logits = model(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        optimizer.zero_grad()
        loss.backward()
        if clip is not None and algorithm == "norm":
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        elif clip is not None:
            nn.utils.clip_grad_value_(model.parameters(), clip)
        optimizer.step()
        return loss.detach(), logits.detach()

    step = 0
    for number, lr in enumerate((0.01, 0.01, 0.001)):
        optimizer.param_groups[0]["lr"] = oracle.param_groups[0]["lr"] = lr
        for batch in minibatches(3, seed=number):
            eager(ours, optimizer, batch)
            eager(theirs, oracle, batch)
        some = minibatches(STEPS_PER_GRAPH, seed=10 + number)
        assert compiled.ready(some)
        results = compiled(some, step + 3)
        step += 3 + STEPS_PER_GRAPH
        torch.testing.assert_close(results, [eager(theirs, oracle, batch) for batch in some])
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(list(optimizer.state.values()), list(oracle.state.values()))


def test_uneven_minibatches_and_the_first_ones_are_left_to_eager_steps() -> None:
    model = backbone()
    optimizer = Adam(model.parameters())
    compiled = CompiledSteps(model, optimizer, F.cross_entropy)
    some = minibatches(STEPS_PER_GRAPH, seed=0)
    assert not compiled.ready(some)  # the optimizer has no state yet
    F.cross_entropy(model(some[0][0]), some[0][1]).backward()
    optimizer.step()
    assert compiled.ready(some)
    assert not compiled.ready(some[1:])
    assert not compiled.ready([*some[1:], (some[0][0][:5], some[0][1][:5])])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (RMSprop, "the optimizer is RMSprop, and compiled steps are for Adam, AdamW and SGD"),
        (lambda parameters: Adam(parameters, amsgrad=True), "the optimizer is set to amsgrad"),
        (lambda parameters: Adam([{"params": [p]} for p in parameters]), "the optimizer has several groups"),
    ],
)
def test_other_optimizers_are_refused(make: Callable[[Any], Optimizer], named: str) -> None:
    model = backbone()
    with pytest.raises(ValueError, match=f"compiled steps: {named}"):
        CompiledSteps(model, make(model.parameters()), F.cross_entropy)


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler on this machine; the sentence that says so is tested below")
def test_a_compiled_run_is_close_to_an_eager_one(run: Runner) -> None:
    (compiled, _), (eager, _) = run(*COMPILED), run(*COMPILED[1:])
    ours, theirs = (
        [float(row["train/loss"]) for row in csv.DictReader((path / "metrics.csv").read_text().splitlines())]
        for path in (compiled, eager)
    )
    assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler on this machine; the sentence that says so is tested below")
def test_a_compiled_run_resumes_to_the_same_bits(run: Runner, tmp_path: Path) -> None:
    """Though the resumed one traces its graph at another epoch: that must not draw from the dropout's stream."""
    overrides = (*COMPILED, "experiment=dropout_as_run")
    _, undisturbed = run(*overrides)
    run(*overrides, f"run_dir={tmp_path}/r", "trainer.max_epochs=1")
    _, resumed = run(*overrides, f"run_dir={tmp_path}/r")
    assert resumed["weights_sha256"] == undisturbed["weights_sha256"]
    assert resumed["test"] == undisturbed["test"]


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler on this machine; the sentence that says so is tested below")
def test_compiled_steps_are_counted_one_by_one(run: Runner) -> None:
    """By Lightning, which max_steps goes by, and by Adam: an epoch has 32 steps, the last one of 8 images."""
    path, _ = run(*COMPILED, "trainer.max_steps=40")
    checkpoint = torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 40
    assert {float(state["step"]) for state in checkpoint["optimizer_states"][0]["state"].values()} == {40.0}


def test_without_a_compiler_one_sentence_says_so(script: Command, tmp_path: Path, tiny: list[str]) -> None:
    done = script(
        "mnist-train",
        "trainer.steps=compiled",
        "portable=false",
        "run_dir=r",
        *tiny,
        CXX="/nowhere/g++",
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path),
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "it takes a C++ compiler, such as g++" in done.stderr
    assert "trainer.steps=eager needs none" in done.stderr
