"""The contenders of `mnist-benchmark`, each in a process of its own: this project, and what people use today.

All train the same network on the same 57,000 images, in shuffled minibatches of 64, with Adam at 0.001. A contender is
a function that trains for ever, one epoch whenever its `Pace` says so.
"""

import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
from torchvision import datasets, transforms

from mnist_mlp import train
from mnist_mlp.backbone import MLP
from mnist_mlp.datamodule import Batch, MNISTDataModule
from mnist_mlp.mnist.files import locate
from mnist_mlp.settings import compose_config

IMAGES = 57_000
BATCH_SIZE = 64
LR = 0.001
MEAN, STD = 0.1307, 0.3081


class Pace:
    """Makes a contender train one epoch at a time, when the parent asks for it, and tells the parent how long it took.

    Args:
        connection: to the parent, which sends anything for an epoch and closes it at the end.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def wait(self) -> float:
        """The time at which an epoch was asked for. Ends the process when no more are."""
        try:
            self.connection.recv()
        except EOFError:
            sys.exit()
        return time.perf_counter()

    def report(self, train: float, loss: float | None, whole: float | None = None) -> None:
        """Tells the parent of an epoch.

        Args:
            train: seconds of the training epoch.
            loss: of the training, so that one can see that it trains.
            whole: seconds with validation, metrics, logging and checkpoint too, where there are any.
        """
        self.connection.send({"train": train, "whole": whole, "loss": loss, "memory": resident_memory()})

    @contextmanager
    def epoch(self) -> Iterator[dict[str, float]]:
        """Times its body, which puts its loss into the dictionary."""
        start, said = self.wait(), dict[str, float]()
        yield said
        self.report(time.perf_counter() - start, said.get("loss"))


class Timer(Callback):
    """Paces Lightning's epochs."""

    pace: ClassVar[Pace]
    loss: ClassVar[str]  # the name of the training loss
    started = trained = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.started:  # only now is the epoch before over, with its checkpoint written
            loss = float(trainer.callback_metrics[self.loss])
            self.pace.report(self.trained, loss, time.perf_counter() - self.started)
        self.started = self.pace.wait()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trained = time.perf_counter() - self.started


def contend(name: str, widths: Sequence[int], threads: int, connection: Connection) -> None:
    """What a contender's process runs, on as many processors as it may have threads: JAX takes all that it sees."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")  # advice, about data loader workers and the like
    logging.disable(logging.INFO)
    try:
        CONTENDERS[name](Pace(connection), widths)
    except Exception as error:  # a peer's; the others go on without it
        connection.send({"error": f"{type(error).__name__}: {' '.join(str(error).split())}"})


def this_project(pace: Pace, widths: Sequence[int], compiled: bool = False) -> None:
    """`mnist-train` itself: validation, metrics, TensorBoard, metrics.csv and checkpoints in every epoch."""
    Timer.pace, Timer.loss = pace, "train/loss"
    with tempfile.TemporaryDirectory() as directory:
        train.train(
            compose_config(
                [
                    f"model.hidden={list(widths)}",
                    f"optimizer.lr={LR}",
                    f"data.batch_size={BATCH_SIZE}",
                    f"threads={torch.get_num_threads()}",
                    f"trainer.compile={compiled}",
                    "trainer.accelerator=cpu",
                    "trainer.max_epochs=1000000",
                    f"run_dir={directory}/run",
                    "+callbacks.timer._target_=mnist_mlp.benchmark.peers.Timer",
                ]
            )
        )


def plain_loop(pace: Pace, widths: Sequence[int]) -> None:
    """The floor for eager PyTorch: tensors in memory, whole-batch indexing, fused Adam, nothing measured or logged."""
    images, labels = tensors()["train"]
    model = MLP(widths)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    while True:
        with pace.epoch() as said:
            for index in torch.split(torch.randperm(len(labels)), BATCH_SIZE):
                loss = F.cross_entropy(model(images[index]), labels[index])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            said["loss"] = loss.item()


class Conventional(LightningModule):
    """What most users write: a loss and an accuracy, logged at every step."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.model = MLP(widths)
        self.train_accuracy, self.val_accuracy = MulticlassAccuracy(10), MulticlassAccuracy(10)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.step(batch, "train", self.train_accuracy)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.step(batch, "val", self.val_accuracy)

    def step(self, batch: Batch, split: str, accuracy: MulticlassAccuracy) -> Tensor:
        images, labels = batch
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        accuracy(logits, labels)
        self.log(f"{split}_loss", loss, on_step=split == "train", on_epoch=True)
        self.log(f"{split}_accuracy", accuracy, on_step=split == "train", on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=LR)


def conventional_lightning(pace: Pace, widths: Sequence[int]) -> None:
    """`TensorDataset` and `DataLoader`, a metric and logging per step; without a progress bar: it costs more."""
    Timer.pace, Timer.loss = pace, "train_loss"
    splits = tensors()
    with tempfile.TemporaryDirectory() as directory:
        Trainer(
            max_epochs=-1,
            accelerator="cpu",
            logger=CSVLogger(directory),
            default_root_dir=directory,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Timer()],
        ).fit(
            Conventional(widths),
            DataLoader(TensorDataset(*splits["train"]), BATCH_SIZE, shuffle=True),
            DataLoader(TensorDataset(*splits["validation"]), BATCH_SIZE),
        )


def torchvision_pipeline(pace: Pace, widths: Sequence[int]) -> None:
    """How the report trained: torchvision's dataset transforms each image whenever it is asked for."""
    root, _ = locate("MNIST", root=None, download=False, mirror=None, sha256=None)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    dataset = datasets.MNIST(root, train=True, transform=transform)
    loader = DataLoader(Subset(dataset, range(IMAGES)), BATCH_SIZE, shuffle=True)
    model = MLP(widths)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    while True:
        with pace.epoch() as said:
            total = 0.0
            for images, labels in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(images), labels)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += loss.item()
            said["loss"] = total / len(loader)


def scikit_learn(pace: Pace, widths: Sequence[int]) -> None:
    """`MLPClassifier`; each `partial_fit` of the whole set is one epoch."""
    from sklearn.neural_network import MLPClassifier

    images, labels = (part.flatten(1).numpy() if part.ndim > 1 else part.numpy() for part in tensors()["train"])
    model = MLPClassifier(tuple(widths), solver="adam", alpha=0, batch_size=BATCH_SIZE, learning_rate_init=LR)
    while True:
        with pace.epoch() as said:
            model.partial_fit(images, labels, classes=range(10))
            said["loss"] = model.loss_


def jax_scan(pace: Pace, widths: Sequence[int]) -> None:
    """One jitted `lax.scan` over the epoch's minibatches, forward, backward and Adam in it."""
    import jax
    import jax.numpy as jnp

    flat, labels = (jnp.array(part.numpy()) for part in tensors()["train"])
    images = flat.reshape(len(labels), -1)
    linears = [layer for layer in MLP(widths).layers if isinstance(layer, torch.nn.Linear)]
    parameters = [(jnp.array(layer.weight.T.detach()), jnp.array(layer.bias.detach())) for layer in linears]

    def mean_loss(parameters: Any, images: Any, labels: Any) -> Any:
        for weight, bias in parameters[:-1]:
            images = jax.nn.relu(images @ weight + bias)
        weight, bias = parameters[-1]
        return -jnp.take_along_axis(jax.nn.log_softmax(images @ weight + bias), labels[:, None], axis=1).mean()

    def adam(state: Any, minibatch: Any) -> Any:
        step, parameters, first, second = state
        step += 1
        loss, gradients = jax.value_and_grad(mean_loss)(parameters, *minibatch)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradients)
        rate, root = LR / (1 - 0.9**step), jnp.sqrt(1 - 0.999**step)
        parameters = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) / root + 1e-8), parameters, first, second)
        return (step, parameters, first, second), loss

    @partial(jax.jit, donate_argnums=0)
    def epoch(state: Any, order: Any, images: Any, labels: Any) -> Any:
        whole = len(order) // BATCH_SIZE * BATCH_SIZE
        indices = order[:whole].reshape(-1, BATCH_SIZE)
        state, losses = jax.lax.scan(lambda s, index: adam(s, (images[index], labels[index])), state, indices)
        state, last = adam(state, (images[order[whole:]], labels[order[whole:]]))
        return state, (losses.sum() + last) / (len(losses) + 1)

    zeros = jax.tree.map(jnp.zeros_like, parameters)
    state = (jnp.float32(0), parameters, zeros, jax.tree.map(jnp.zeros_like, parameters))
    while True:
        with pace.epoch() as said:
            state, mean = epoch(state, jnp.array(torch.randperm(len(labels)).numpy()), images, labels)
            said["loss"] = float(mean)  # waits for the result


def arithmetic(pace: Pace, widths: Sequence[int]) -> None:
    """The epoch's matrix products alone, at the rate of a large one (1,024 cubed), which is measured each time."""
    linears = [layer for layer in MLP(widths).layers if isinstance(layer, torch.nn.Linear)]
    weights = [layer.weight.numel() for layer in linears]
    # Forward, gradient of the weights and, except in the first layer, of its input: each multiplies and adds.
    operations = 2 * IMAGES * (3 * sum(weights) - weights[0])
    a, b = torch.randn(2, 1024, 1024)
    while True:
        start = pace.wait()
        for _ in range(20):
            a @ b
        rate = 20 * 2 * 1024**3 / (time.perf_counter() - start)
        pace.report(operations / rate, loss=None)


CONTENDERS: dict[str, Callable[[Pace, Sequence[int]], None]] = {
    "this project": this_project,
    "this project, compiled": partial(this_project, compiled=True),
    "plain tensor loop": plain_loop,
    "arithmetic alone": arithmetic,
    "JAX lax.scan": jax_scan,
    "scikit-learn": scikit_learn,
    "conventional Lightning": conventional_lightning,
    "torchvision pipeline": torchvision_pipeline,
}


def tensors() -> dict[Any, Batch]:
    """The three splits, normalized, as this project trains on them."""
    datamodule = MNISTDataModule(mean=MEAN, std=STD)
    datamodule.setup()
    return datamodule.splits


def resident_memory() -> int | None:
    """Bytes of memory that this process holds; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
