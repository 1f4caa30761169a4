"""The LightningModule: any backbone from images to logits, trained with cross-entropy, judged with torchmetrics."""

import math
import random
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from mnist_mlp.datamodule import Batch, InOrder, Minibatches
from mnist_mlp.seeds import stream_seed
from mnist_mlp.settings import NonFiniteLossError
from mnist_mlp.steps.choice import Steps
from mnist_mlp.steps.compiled import STEPS_PER_GRAPH, CompiledSteps
from mnist_mlp.steps.means import EpochMeans
from mnist_mlp.steps.native import NativeSteps

Average = Literal["weighted", "macro", "micro"]


def cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """The loss, wherever it is computed: logits (N, num_classes), labels (N,) -> (); `reduction` is `mean` or `sum`."""
    return F.cross_entropy(logits, labels, reduction=reduction)


class Classifier(LightningModule):
    """A backbone, its loss, its metrics and its optimizer.

    Optimization is manual in Lightning's sense: one `training_step` takes a group of minibatches and makes one
    optimizer step for each, bit for bit the steps that automatic optimization would make one call at a time.

    Args:
        backbone: images (N, 1, 28, 28) -> logits (N, num_classes).
        optimizer: parameters -> optimizer. None for a classifier that is not trained.
        scheduler: optimizer -> learning rate scheduler, stepped once an epoch; `ReduceLROnPlateau` gets `val/loss`.
        average: how precision, recall and F1 average over the classes. Accuracy is the share of samples that are
            right (micro), whatever this is; weighted recall equals it by definition.
        seed: of the dropout masks.
        gradient_clip_val, gradient_clip_algorithm: as Lightning's Trainer takes them.
        steps: `eager`; `compiled`, see `CompiledSteps`; or `native`, see `NativeSteps`, which evaluates too.
        threads: that native steps divide a minibatch between; the bits do not depend on it.
        before_step: called before each optimizer step, or group of them; what it raises ends the training there.
        hyperparameters: plain values, kept in every checkpoint under `hyper_parameters`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        *,
        average: Average = "weighted",
        num_classes: int = 10,
        seed: int = 0,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str = "norm",
        steps: Steps = "eager",
        threads: int = 1,
        before_step: Callable[[], None] = lambda: None,
        hyperparameters: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.save_hyperparameters(dict(hyperparameters or {}), logger=False)
        self.backbone = backbone
        self.optimizer, self.scheduler, self.seed = optimizer, scheduler, seed
        self.before_step = before_step
        self.gradient_clip_val, self.gradient_clip_algorithm = gradient_clip_val, gradient_clip_algorithm
        self.steps, self.threads = steps, threads
        self.compiled: CompiledSteps | None = None
        self.native = NativeSteps(backbone, threads=threads) if steps == "native" else None
        self.active: list[Tensor] = []  # of native steps: the hidden units above 0 for the last batch evaluated
        self.metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "precision": MulticlassPrecision(num_classes, average=average),
                "recall": MulticlassRecall(num_classes, average=average),
                "f1": MulticlassF1Score(num_classes, average=average),
            }
        )
        self.training_means, self.evaluation_means = EpochMeans(), EpochMeans()
        self.measured: dict[str, float] = {}  # the newest value of everything logged, in float64

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 28, 28), normalized -> logits (N, num_classes)."""
        logits: Tensor = self.backbone(images)
        return logits

    def configure_optimizers(self) -> Any:
        if self.optimizer is None:
            return None
        optimizer = self.optimizer(self.backbone.parameters())
        if self.steps == "native":
            self.native = NativeSteps(
                self.backbone,
                optimizer,
                seed=stream_seed(self.seed, "dropout"),
                gradient_clip_val=self.gradient_clip_val,
                gradient_clip_algorithm=self.gradient_clip_algorithm,
                threads=self.threads,
            )
        if self.steps == "compiled":
            self.compiled = CompiledSteps(
                self.backbone, optimizer, cross_entropy, self.gradient_clip_val, self.gradient_clip_algorithm
            )
        return optimizer if self.scheduler is None else ([optimizer], [self.scheduler(optimizer)])

    def on_train_epoch_start(self) -> None:
        # The masks are then a function of (seed, epoch), whatever drew random numbers before. Python's and NumPy's
        # generators are for a user's own code.
        stream = stream_seed(self.seed, "dropout", self.current_epoch)
        torch.manual_seed(stream)
        random.seed(stream)
        np.random.seed(stream % 2**32)
        self._measure("lr", self._optimizer().param_groups[0]["lr"])

    def training_step(self, batch: Batch | Minibatches, batch_idx: int) -> None:
        """Trains on a group of minibatches, as `MNISTDataModule` gives them, or on one, as any other does."""
        if self.native:
            self.before_step()
            group = self.native.train_batch(batch, epoch=self.current_epoch, number=batch_idx)
            self.training_means.add_sums(group.loss, group.errors, group.samples)
            self._count_steps(group.steps)
            return
        all_losses, all_logits, all_labels = [], [], []
        remaining = iter(batch if isinstance(batch, Minibatches) else [batch])
        while some := list(islice(remaining, STEPS_PER_GRAPH if self.compiled else 1)):
            self.before_step()
            for (loss, logits), (_, labels) in zip(self._optimizer_steps(some), some, strict=True):
                all_losses.append(loss)
                all_logits.append(logits)
                all_labels.append(labels)
        # What the epoch's means need, once for the whole group: no .item(), logging or metric in the loop above.
        sizes = torch.tensor([len(labels) for labels in all_labels], device=all_losses[0].device)
        self.training_means.add(torch.stack(all_losses) * sizes, torch.cat(all_logits), torch.cat(all_labels))

    def _count_steps(self, count: int) -> None:
        """Counts optimizer steps that were made at once, for Lightning's global_step."""
        optimizer = self._optimizer()
        for _ in range(count):
            optimizer._on_before_step()
            optimizer._on_after_step()

    def _optimizer_steps(self, minibatches: list[Batch]) -> list[tuple[Tensor, Tensor]]:
        """One optimizer step for each minibatch; of each its mean loss () and its logits (N, num_classes)."""
        optimizer = self._optimizer()
        if self.compiled and self.compiled.ready(minibatches):
            results = self.compiled(minibatches, self.trainer.global_step)
            self._count_steps(len(minibatches))
            return results
        results = []
        for images, labels in minibatches:
            logits = self.backbone(images)
            loss = cross_entropy(logits, labels)
            optimizer.zero_grad()
            self.manual_backward(loss)
            if self.gradient_clip_val is not None:
                self.clip_gradients(optimizer.optimizer, self.gradient_clip_val, self.gradient_clip_algorithm)
            optimizer.step()
            results.append((loss.detach(), logits.detach()))
        return results

    def on_train_epoch_end(self) -> None:
        loss, error = self.training_means.take()
        self._measure("train/loss", loss)
        self._measure("train/error", error)
        for name in ("train/loss", "val/loss"):
            if not math.isfinite(self.measured.get(name, 0.0)):
                raise NonFiniteLossError(
                    f"{name} became {self.measured[name]} in epoch {self.current_epoch + 1}: "
                    f"optimizer.lr={self.measured['lr']:g} is probably too high"
                )
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(self.measured["val/loss"])
        elif isinstance(scheduler, LRScheduler):
            scheduler.step()

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluation_step(batch)  # for callbacks

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluation_step(batch)

    def predict_step(self, images: Tensor, batch_idx: int) -> Tensor:
        """Images (N, 1, 28, 28) -> probabilities (N, num_classes)."""
        logits: Tensor = self(images)
        return logits.softmax(dim=1)

    def on_validation_epoch_end(self) -> None:
        self._measure_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._measure_evaluation("test")

    def _evaluation_step(self, batch: Batch) -> Tensor:
        images, labels = batch
        if self.native:
            data, first = self.native.find(images, labels)
            found = self.native.evaluate(data, first, len(labels))
            logits, self.active = found.logits, found.active
            self.evaluation_means.add_sums(math.fsum(found.losses.tolist()), int(found.wrong.sum()), len(labels))
        else:
            logits = self(images)
            self.evaluation_means.add(cross_entropy(logits, labels, "sum"), logits, labels)
        self.metrics.update(logits, labels)
        return logits

    def _measure_evaluation(self, split: str) -> None:
        loss, error = self.evaluation_means.take()
        self._measure(f"{split}/loss", loss)
        self._measure(f"{split}/error", error)
        for name, value in self.metrics.compute().items():
            # torchmetrics computes in float32: in more than six digits, weighted recall would differ from accuracy.
            self._measure(f"{split}/{name}", float(f"{value.item():.6g}"))
        self.metrics.reset()

    def _measure(self, name: str, value: float) -> None:
        """Notes a value, and offers it to callbacks; the recorder writes it down at the epoch's end."""
        self.measured[name] = value
        self.log(name, value, logger=False, on_step=False, on_epoch=True, batch_size=1)

    def _optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer


def score(trainer: Trainer, classifier: Classifier, data: LightningDataModule | InOrder) -> dict[str, float]:
    """Accuracy, precision, recall and F1 (fractions) and the mean loss with the weights that the classifier has now.

    Args:
        data: its test set, or batches of (images, labels).
    """
    trainer.test(classifier, data, verbose=False)
    return {name: classifier.measured[f"test/{name}"] for name in ("accuracy", "precision", "recall", "f1", "loss")}
