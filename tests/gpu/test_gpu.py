"""What only a GPU can show: `make test-gpu`. With a Python of one's own, where the package can be imported:
`python -m pytest -m gpu tests/gpu`. It takes PyTorch 2.8 or newer; nothing is downloaded."""

import copy
import csv
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Runner, plain_trainer, statuses
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from mnist_mlp.backbone import MLP
from mnist_mlp.classifier import Classifier, CrossEntropy
from mnist_mlp.datamodule import Minibatches
from mnist_mlp.evaluate import evaluate, load_classifier
from mnist_mlp.run.checkpoint import weights_sha256
from mnist_mlp.settings import SettingError
from mnist_mlp.steps.captured import CapturedSteps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here"),
    pytest.mark.filterwarnings("default"),  # of whatever versions such a machine has
]
# An epoch is 143 minibatches, the last one of 6 images: groups of 64, 64 and 15.
GPU = ("trainer.accelerator=gpu", "experiment=dropout_as_run", "model.hidden=[32,16]", "data.batch_size=7")
KINDS = {
    "captured": (),
    "captured, unfused": ("optimizer.fused=false",),
    "captured SGD, clipped": ("optimizer=sgd", "optimizer.lr=0.05", "trainer.gradient_clip_val=0.5"),
    "eager": ("trainer.steps=eager",),
}


def rows(path: Path) -> list[dict[str, str]]:
    table = list(csv.DictReader((path / "metrics.csv").read_text().splitlines()))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in table]


def module(name: str, *arguments: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A console script, by the name of its module, so that an installation is not needed."""
    command = [sys.executable, "-m", f"mnist_mlp.{name}", *arguments]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {**os.environ, "PYTHONPATH": paths, **environment}
    return subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, timeout=240, check=False)


@contextmanager
def no_waiting() -> Iterator[None]:
    """What waits for the GPU, or has it wait, is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(scope="module")
def finished_on_gpu(run: Runner) -> tuple[Path, dict[str, Any]]:
    return run(*GPU)


def test_a_run_on_a_gpu_is_captured_and_says_so(finished_on_gpu: tuple[Path, dict[str, Any]]) -> None:
    _, record = finished_on_gpu
    assert record["steps"] == "captured"
    assert record["device"] == f"cuda ({torch.cuda.get_device_name()})"
    assert record["not_portable"] == "it runs on cuda"
    assert record["final"]["val/accuracy"] > 0.5  # of ten classes, after three short epochs


@pytest.mark.parametrize("overrides", KINDS.values(), ids=KINDS)
def test_bits_repeat_and_a_resume_is_exact(run: Runner, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    path, once = run(*GPU, *overrides)
    other, again = run(*GPU, *overrides)
    run(*GPU, *overrides, "trainer.max_epochs=1", f"run_dir={tmp_path}/r")
    _, resumed = run(*GPU, *overrides, f"run_dir={tmp_path}/r")
    assert once["steps"] == again["steps"] == resumed["steps"] == ("eager" if "eager" in str(overrides) else "captured")
    assert once["weights_sha256"] == again["weights_sha256"] == resumed["weights_sha256"]
    assert rows(path) == rows(other) == rows(tmp_path / "r")
    assert once["test"] == again["test"] == resumed["test"]


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: Adam(parameters, lr=2**-7, fused=True),
        lambda parameters: Adam(parameters, lr=2**-7),
        lambda parameters: AdamW(parameters, lr=2**-7, weight_decay=0.1, fused=True),
        lambda parameters: SGD(parameters, lr=2**-5, momentum=0.9, dampening=0.2, fused=True),
        lambda parameters: SGD(parameters, lr=2**-5, fused=True),
    ],
    ids=["adam", "adam unfused", "adamw", "sgd", "plain sgd"],
)
def test_a_graph_makes_the_steps_that_eager_pytorch_makes(make: Callable[[Any], Optimizer], clip: float | None) -> None:
    """With dropout, running means, a rate that falls and an odd last minibatch; in groups of two sizes."""
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(784, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3)]
    ours = nn.Sequential(*layers, nn.Linear(64, 10)).cuda()
    theirs = copy.deepcopy(ours)
    optimizer, oracle = make(ours.parameters()), make(theirs.parameters())
    steps = CapturedSteps(ours, optimizer, CrossEntropy(), clip)
    images, labels = torch.randn(500, 1, 28, 28, device="cuda"), torch.randint(10, (500,), device="cuda")
    for number, count in enumerate((500, 500, 320, 500, 320)):
        for one in (optimizer, oracle):
            one.param_groups[0]["lr"] = 2.0 ** -(7 + number)
        order = torch.randperm(500)[:count].cuda()
        torch.manual_seed(number)
        made = steps(Minibatches(images, labels, order, 32, 0))
        torch.manual_seed(number)
        losses = []
        for index in order.split(32):
            loss = nn.functional.cross_entropy(theirs(images[index]), labels[index])
            oracle.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(theirs.parameters(), clip)
            oracle.step()
            losses.append(loss.detach() * len(index))
        torch.testing.assert_close(made.losses, torch.stack(losses), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("steps", ["captured", "eager"])
def test_nothing_within_a_group_waits(run: Runner, monkeypatch: pytest.MonkeyPatch, steps: str) -> None:
    """From the second epoch on: the first records the graphs."""
    step, calls = Classifier.training_step, 0

    def training_step(classifier: Classifier, batch: Any, batch_idx: int) -> Any:
        nonlocal calls
        if classifier.current_epoch < 2:
            return step(classifier, batch, batch_idx)
        calls += 1
        with no_waiting():
            return step(classifier, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", training_step)
    run(*GPU, f"trainer.steps={steps}")
    assert calls == 3


def test_a_synchronisation_is_found() -> None:
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(1, device="cuda").item()


def test_metrics_are_the_cpus_for_the_same_weights(
    finished_on_gpu: tuple[Path, dict[str, Any]], tiny_root: Path, tmp_path: Path
) -> None:
    """In a process that sees no GPU, and here on the GPU."""
    path, record = finished_on_gpu
    checkpoint, wanted = path / "checkpoints" / "best.ckpt", record["test"]["best"]
    done = module(
        "evaluate", str(checkpoint), "--data-root", str(tiny_root), "--json", cwd=tmp_path, CUDA_VISIBLE_DEVICES=""
    )
    assert done.returncode == 0, done.stderr
    on_cpu = json.loads(done.stdout)
    assert {name: on_cpu[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)
    on_gpu = evaluate(load_classifier(checkpoint), data_root=str(tiny_root))
    assert {name: on_gpu[name] for name in wanted} == pytest.approx(wanted, rel=1e-6)


def test_a_checkpoint_of_the_cpu_is_evaluated_on_the_gpu(run: Runner, tiny_root: Path) -> None:
    path, record = run("trainer.accelerator=cpu", "trainer.steps=eager", "trainer.max_epochs=1")
    on_gpu = evaluate(load_classifier(path / "checkpoints" / "last.ckpt"), data_root=str(tiny_root))
    wanted = record["test"]["last"]
    assert {name: on_gpu[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)


def test_weights_have_the_hash_that_they_have_on_the_cpu() -> None:
    model = MLP([8])
    before = weights_sha256(model.state_dict())
    assert weights_sha256(model.cuda().state_dict()) == before


def test_a_captured_run_goes_on_in_plain_lightning_on_the_cpu(
    finished_on_gpu: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    checkpoint = finished_on_gpu[0] / "checkpoints" / "last.ckpt"
    classifier = Classifier.load_from_checkpoint(checkpoint)
    images, labels = torch.randn(64, 1, 28, 28), torch.randint(10, (64,))
    trainer = plain_trainer(4)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 32)
    trainer.fit(classifier, loader, ckpt_path=checkpoint, weights_only=False)
    assert trainer.current_epoch == 4
    steps = [state["step"] for state in trainer.optimizers[0].state.values()]
    assert steps == [3 * 143 + 2] * len(steps)


def test_a_rerun_is_identical(finished_on_gpu: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    done = module("rerun", str(finished_on_gpu[0]), "--run-dir", str(tmp_path / "again"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("identical")


def test_four_runs_share_one_gpu_and_are_what_each_is_by_itself(run: Runner, tiny: list[str], tmp_path: Path) -> None:
    """Forked from a server: if that had started CUDA, none of them could."""
    done = module("cli", "-m", "sweep=s", "seed=0,1,2,3", "hydra.launcher.jobs=4", *tiny, *GPU, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    directory = tmp_path / "logs" / "sweeps" / "s"
    assert set(statuses(directory).values()) == {"completed"}
    records = [json.loads(path.read_text()) for path in sorted(directory.glob("*/run.json"))]
    assert [record["steps"] for record in records] == ["captured"] * 4
    _, alone = run(*GPU, "seed=2")
    assert alone["weights_sha256"] in [record["weights_sha256"] for record in records]
    assert len({record["weights_sha256"] for record in records}) == 4


def test_pictures_histograms_and_embeddings_are_made(run: Runner) -> None:
    pictures = ("tensorboard.images_every=1", "tensorboard.histograms_every=1", "tensorboard.embeddings=true")
    path, record = run(*GPU, *pictures)
    assert record["status"] == "completed"
    assert "images" in EventAccumulator(str(path / "tensorboard"), {"images": 0}).Reload().Tags()


def test_images_are_warped_before_captured_steps(run: Runner) -> None:
    (_, once), (_, again) = (run(*GPU, "data/transform=warp") for _ in range(2))
    assert once["steps"] == "captured"
    assert once["weights_sha256"] == again["weights_sha256"]


def test_a_run_leaves_no_memory_of_the_gpu(run: Runner) -> None:
    run(*GPU)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    run(*GPU)
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + 2**20


def test_what_looks_at_values_is_refused_in_one_sentence() -> None:
    class Looks(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :10] * (2.0 if images.sum().item() > 0 else 1.0)

    model = nn.Sequential(Looks(), nn.Linear(10, 10)).cuda()
    steps = CapturedSteps(model, SGD(model.parameters(), lr=0.1, fused=True), CrossEntropy())
    images, labels = torch.randn(64, 1, 28, 28, device="cuda"), torch.randint(10, (64,), device="cuda")
    with pytest.raises(
        SettingError, match=r"trainer.steps=captured: the steps of Sequential cannot be a CUDA graph \("
    ):
        steps(Minibatches(images, labels, torch.arange(64, device="cuda"), 32, 0))
    assert torch.ones(2, device="cuda").sum().item() == 2  # the GPU can still be used


def test_a_compiled_run_on_a_gpu_is_close_to_an_eager_one(run: Runner) -> None:
    overrides = ("trainer.accelerator=gpu", "model.hidden=[16,16]", "data.batch_size=32")
    (compiled, _), (eager, _) = run(*overrides, "trainer.steps=compiled"), run(*overrides, "trainer.steps=eager")
    ours, theirs = ([float(row["train/loss"]) for row in rows(path)] for path in (compiled, eager))
    assert ours == pytest.approx(theirs, rel=1e-3)
