"""The contenders of `mnist-benchmark`, each in a process of its own: this project, and what people use today.

All train the same network on the same images with the same settings, those of `mnist-train`: shuffled minibatches, and
Adam. A contender is a function that never returns and trains an epoch whenever its `Pace` says so.
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
from typing import Any

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
from torchvision import datasets, transforms

from mnist_mlp.classifier import CrossEntropy
from mnist_mlp.datamodule import MINIBATCHES_PER_STEP, Batch, MNISTDataModule, TrainingEpoch
from mnist_mlp.mnist.files import locate
from mnist_mlp.settings import compose_config
from mnist_mlp.steps.captured import CapturedSteps
from mnist_mlp.surroundings import one_line
from mnist_mlp.train import train


class Pace:
    """Makes a contender train one epoch at a time, when the parent asks for it, and tells the parent how long it took.

    Args:
        connection: to the parent, which sends anything for an epoch and closes it at the end.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @classmethod
    def over(cls, handle: int) -> "Pace":
        """The pace over an open connection, by its file descriptor, which a configuration can hold."""
        return cls(Connection(os.dup(handle)))

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
    """Paces Lightning's epochs.

    Args:
        pace: says when an epoch starts.
        loss: the name under which the training loss is logged.
    """

    def __init__(self, pace: Pace, loss: str) -> None:
        self.pace, self.loss = pace, loss
        self.started = self.trained = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.started:  # only now is the epoch before over, with its checkpoint written
            loss = float(trainer.callback_metrics[self.loss])
            self.pace.report(self.trained, loss, time.perf_counter() - self.started)
        self.started = self.pace.wait()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trained = time.perf_counter() - self.started


def contend(name: str, overrides: Sequence[str], threads: int, connection: Connection) -> None:
    """Runs one contender in this process, on as many processors as it has threads: JAX uses all that it sees.

    Args:
        overrides: of `mnist-train`'s configuration, such as the network. With `trainer.accelerator=gpu` all processors
            are left to it.
    """
    config = compose_config(list(overrides))
    on_gpu = device_of(config).type == "cuda"
    if hasattr(os, "sched_setaffinity") and not on_gpu:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)
    os.environ["JAX_PLATFORMS"] = "cuda" if on_gpu else "cpu"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # else JAX takes most of the memory from the others
    warnings.simplefilter("ignore")  # advice, about data loader workers and the like
    logging.disable(logging.INFO)
    try:
        (ON_GPU if on_gpu else CONTENDERS)[name](Pace(connection), config)
    except Exception as error:  # a peer's; the others go on without it
        connection.send({"error": f"{type(error).__name__}: {one_line(error)}"})


def this_project(pace: Pace, config: DictConfig, steps: str = "auto") -> None:
    """`mnist-train portable=false`: validation, metrics, TensorBoard, metrics.csv and checkpoints in every epoch."""
    peers = "mnist_mlp.benchmark.peers"
    connection = {"_target_": f"{peers}.Pace.over", "handle": pace.connection.fileno()}
    config.callbacks.timer = {"_target_": f"{peers}.Timer", "loss": "train/loss", "pace": connection}
    config.threads = torch.get_num_threads()
    config.portable = False  # as its peers: see Contender
    config.trainer.update(steps=steps, max_epochs=1_000_000)
    with tempfile.TemporaryDirectory() as directory:
        config.run_dir = f"{directory}/run"
        train(config)


def plain_loop(pace: Pace, config: DictConfig) -> None:
    """The floor for eager PyTorch: tensors in memory, whole-batch indexing, fused Adam, nothing measured or logged."""
    _loop(pace, config, lambda loss_of: loss_of)


def torch_compile(pace: Pace, config: DictConfig) -> None:
    """The same loop with `torch.compile(mode="reduce-overhead")`: forward and backward as CUDA graphs of its own."""
    _loop(pace, config, partial(torch.compile, mode="reduce-overhead", dynamic=False))


def _loop(pace: Pace, config: DictConfig, compiled: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> None:
    device = device_of(config)
    images, labels = (part.to(device) for part in tensors(config)["train"])
    model = instantiate(config.model).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.optimizer.lr, fused=True)
    loss_of = compiled(lambda images, labels: F.cross_entropy(model(images), labels))
    while True:
        with pace.epoch() as said:
            for index in torch.split(torch.randperm(len(labels), device=device), config.data.batch_size):
                loss = loss_of(images[index], labels[index])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            said["loss"] = loss.item()


class Conventional(LightningModule):
    """What most users write: a loss and an accuracy, logged at every step."""

    def __init__(self, config: DictConfig) -> None:
        super().__init__()
        self.lr = config.optimizer.lr
        self.model = instantiate(config.model)
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
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def conventional_lightning(pace: Pace, config: DictConfig) -> None:
    """`TensorDataset` and `DataLoader`, a metric and logging per step; without a progress bar: it costs more."""
    splits = tensors(config)
    with tempfile.TemporaryDirectory() as directory:
        Trainer(
            max_epochs=-1,
            accelerator="cpu",
            logger=CSVLogger(directory),
            default_root_dir=directory,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Timer(pace, "train_loss")],
        ).fit(
            Conventional(config),
            DataLoader(TensorDataset(*splits["train"]), config.data.batch_size, shuffle=True),
            DataLoader(TensorDataset(*splits["validation"]), config.data.batch_size),
        )


def torchvision_pipeline(pace: Pace, config: DictConfig) -> None:
    """How the original report trained: torchvision's dataset transforms each image whenever it is asked for."""
    data = config.data
    root, _ = locate(data.dataset, data.root, data.download, data.mirror, sha256=None)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((data.mean,), (data.std,))])
    dataset = datasets.MNIST(root, train=True, transform=transform)
    loader = DataLoader(Subset(dataset, range(len(dataset) - data.test_size)), data.batch_size, shuffle=True)
    model = instantiate(config.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.optimizer.lr)
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


def scikit_learn(pace: Pace, config: DictConfig) -> None:
    """`MLPClassifier`; each `partial_fit` of the whole set is one epoch."""
    from sklearn.neural_network import MLPClassifier

    images, labels = (part.flatten(1).numpy() if part.ndim > 1 else part.numpy() for part in tensors(config)["train"])
    batch_size, lr = config.data.batch_size, config.optimizer.lr
    model = MLPClassifier(
        tuple(config.model.hidden), solver="adam", alpha=0, batch_size=batch_size, learning_rate_init=lr
    )
    while True:
        with pace.epoch() as said:
            model.partial_fit(images, labels, classes=range(10))
            said["loss"] = model.loss_


def jax_scan(pace: Pace, config: DictConfig) -> None:
    """One jitted `lax.scan` over the epoch's minibatches: forward, with dropout if there is any, backward and Adam."""
    import jax
    import jax.numpy as jnp

    # float32, as here: on a GPU it would take TF32.
    jax.config.update("jax_default_matmul_precision", "highest")  # type: ignore[no-untyped-call]
    batch_size, lr, dropout = config.data.batch_size, config.optimizer.lr, config.model.dropout
    flat, labels = (jnp.array(part.numpy()) for part in tensors(config)["train"])
    images = flat.reshape(len(labels), -1)
    linears = [layer for layer in instantiate(config.model).layers if isinstance(layer, torch.nn.Linear)]
    parameters = [(jnp.array(layer.weight.T.detach()), jnp.array(layer.bias.detach())) for layer in linears]

    def mean_loss(parameters: Any, images: Any, labels: Any, key: Any) -> Any:
        for weight, bias in parameters[:-1]:
            images = jax.nn.relu(images @ weight + bias)
            if dropout:
                key, own = jax.random.split(key)
                images = jnp.where(jax.random.bernoulli(own, 1 - dropout, images.shape), images / (1 - dropout), 0)
        weight, bias = parameters[-1]
        return -jnp.take_along_axis(jax.nn.log_softmax(images @ weight + bias), labels[:, None], axis=1).mean()

    def adam(state: Any, minibatch: Any) -> Any:
        step, parameters, first, second, key = state
        step += 1
        key, own = jax.random.split(key)
        loss, gradients = jax.value_and_grad(mean_loss)(parameters, *minibatch, own)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradients)
        rate, root = lr / (1 - 0.9**step), jnp.sqrt(1 - 0.999**step)
        parameters = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) / root + 1e-8), parameters, first, second)
        return (step, parameters, first, second, key), loss

    @partial(jax.jit, donate_argnums=0)
    def epoch(state: Any, order: Any, images: Any, labels: Any) -> Any:
        whole = len(order) // batch_size * batch_size
        indices = order[:whole].reshape(-1, batch_size)
        state, losses = jax.lax.scan(lambda s, index: adam(s, (images[index], labels[index])), state, indices)
        state, last = adam(state, (images[order[whole:]], labels[order[whole:]]))
        return state, (losses.sum() + last) / (len(losses) + 1)

    zeros = jax.tree.map(jnp.zeros_like, parameters)
    state = (jnp.float32(0), parameters, zeros, jax.tree.map(jnp.zeros_like, parameters), jax.random.key(0))
    while True:
        with pace.epoch() as said:
            state, mean = epoch(state, jnp.array(torch.randperm(len(labels)).numpy()), images, labels)
            said["loss"] = float(mean)  # waits for the result


def captured_alone(pace: Pace, config: DictConfig) -> None:
    """The training epoch of this project without all that is around it, timed by the GPU's own clock."""
    device = device_of(config)
    images, labels = (part.to(device) for part in tensors(config)["train"])
    model = instantiate(config.model).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.optimizer.lr, fused=True)
    steps = CapturedSteps(model, optimizer, CrossEntropy())
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    epoch = TrainingEpoch(
        images,
        labels,
        config.data.batch_size,
        lambda _: torch.randperm(len(labels), device=device),
        group=MINIBATCHES_PER_STEP,
    )
    while True:
        pace.wait()
        start.record()
        losses = [steps(group).losses.sum() for group in epoch]
        end.record()
        loss = torch.stack(losses).sum().item() / len(labels)
        pace.report(start.elapsed_time(end) / 1000, loss)


def arithmetic(pace: Pace, config: DictConfig) -> None:
    """The epoch's matrix products alone, at the rate of a large one (1,024 cubed), which is measured each time."""
    linears = [layer for layer in instantiate(config.model).layers if isinstance(layer, torch.nn.Linear)]
    weights = [layer.weight.numel() for layer in linears]
    # Forward, gradient of the weights and, except in the first layer, of its input: each multiplies and adds.
    operations = 2 * len(tensors(config)["train"][1]) * (3 * sum(weights) - weights[0])
    a, b = torch.randn(2, 1024, 1024)
    while True:
        start = pace.wait()
        for _ in range(20):
            a @ b
        rate = 20 * 2 * 1024**3 / (time.perf_counter() - start)
        pace.report(operations / rate, loss=None)


CONTENDERS: dict[str, Callable[[Pace, DictConfig], None]] = {
    "this project": this_project,
    "this project, compiled": partial(this_project, steps="compiled"),
    "this project, eager": partial(this_project, steps="eager"),
    "plain tensor loop": plain_loop,
    "arithmetic alone": arithmetic,
    "JAX lax.scan": jax_scan,
    "scikit-learn": scikit_learn,
    "conventional Lightning": conventional_lightning,
    "torchvision pipeline": torchvision_pipeline,
}
ON_GPU: dict[str, Callable[[Pace, DictConfig], None]] = {
    **{name: CONTENDERS[name] for name in ("this project", "this project, eager", "plain tensor loop", "JAX lax.scan")},
    "torch.compile": torch_compile,
    "its steps alone": captured_alone,
}
WITH_DROPOUT = ("this project", "this project, compiled", "this project, eager", "plain tensor loop", "JAX lax.scan")


def device_of(config: DictConfig) -> torch.device:
    """Where a contender trains: on a GPU where the configuration asks for one by name."""
    return torch.device("cuda" if config.trainer.accelerator == "gpu" else "cpu")


def tensors(config: DictConfig) -> dict[Any, Batch]:
    """The three splits, normalized, as this project trains on them."""
    datamodule: MNISTDataModule = instantiate(config.data)
    datamodule.setup()
    return datamodule.splits


def resident_memory() -> int | None:
    """Bytes of memory that this process holds; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
