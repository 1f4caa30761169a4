"""The LightningModule: any backbone from images to logits, its loss and optimizer, judged with torchmetrics."""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from os import PathLike
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from mnist_mlp.backbone import MLP
from mnist_mlp.datamodule import Batch, InOrder, Minibatches
from mnist_mlp.seeds import stream_seed
from mnist_mlp.settings import OUR_BACKBONE, OUR_LOSS, NonFiniteLossError
from mnist_mlp.steps.captured import CapturedSteps
from mnist_mlp.steps.choice import Steps
from mnist_mlp.steps.compiled import STEPS_PER_GRAPH, CompiledSteps
from mnist_mlp.steps.means import EpochMeans, summed
from mnist_mlp.steps.native import NativeSteps

Average = Literal["weighted", "macro", "micro"]


def cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """The report's loss: logits (N, num_classes), labels (N,) -> (); `reduction` is `mean` or `sum`."""
    return F.cross_entropy(logits, labels, reduction=reduction)


class CrossEntropy(nn.CrossEntropyLoss):
    """PyTorch's, from plain values: the mean over the minibatch, with class weights the weighted mean.

    Args:
        label_smoothing: in [0, 1): the share of each target that is spread evenly over all classes.
        weight: of each class; None weighs all alike.
    """

    def __init__(self, label_smoothing: float = 0.0, weight: Sequence[float] | None = None) -> None:
        super().__init__(label_smoothing=label_smoothing)
        # A setting, not a part of the weights: a checkpoint is the same with it and without.
        self.register_buffer(
            "weight", None if weight is None else torch.tensor([float(one) for one in weight]), persistent=False
        )


class Classifier(LightningModule):
    """A backbone, its loss, its metrics and its optimizer: a LightningModule for ordinary batches (images, labels).

    With `steps`, optimization is manual in Lightning's sense, and fast: one `training_step` takes a group of
    minibatches, as `MNISTDataModule.group` arranges them, and makes one optimizer step for each. Eager steps are, bit
    for bit, those that automatic optimization makes one call at a time.

    Args:
        backbone: images (N, 1, 28, 28) -> logits (N, num_classes).
        optimizer: parameters -> optimizer; None: Adam with PyTorch's defaults.
        scheduler: optimizer -> learning rate scheduler; `ReduceLROnPlateau` gets `monitor`. Of a `functools.partial`
            with `total_steps` None, such as `OneCycleLR`'s, that becomes the optimizer steps of the whole run.
        loss: logits (N, num_classes), labels (N,) -> (), a mean over the samples; None: `CrossEntropy`.
        average: how precision, recall and F1 average over the classes. Accuracy is the share of samples that are
            right (micro), whatever this is; weighted recall equals it by definition.
        metrics: more of torchmetrics, by name, each of (logits, labels) -> a number.
        lr: replaces the optimizer's learning rate; Lightning's `LearningRateFinder` sets it.
        interval, frequency, monitor: of the scheduler's steps, as in Lightning's `lr_scheduler` configuration.
        seed: of the dropout masks.
        gradient_clip_val, gradient_clip_algorithm: as Lightning's Trainer takes them; None leaves it to the Trainer.
        steps: None; or of groups, `eager`; `compiled`, see `CompiledSteps`; `captured`, on a CUDA device, see
            `CapturedSteps`; or `native`, see `NativeSteps`, which evaluates too.
        threads: that native steps divide a minibatch between; the bits do not depend on it.
        before_step: called before each optimizer step, or group of them; what it raises ends the training there.
        hyperparameters: plain values, kept in every checkpoint under `hyper_parameters`; None: those that
            `load_from_checkpoint` needs, which loggers get too.
        to_loggers: whether Lightning's loggers get what is measured; False where each epoch's row is sent otherwise.
    """

    def __init__(
        self,
        backbone: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        *,
        loss: nn.Module | None = None,
        average: Average = "weighted",
        num_classes: int = 10,
        metrics: Mapping[str, Metric] | None = None,
        lr: float | None = None,
        interval: str = "epoch",
        frequency: int = 1,
        monitor: str = "val/loss",
        seed: int = 0,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str = "norm",
        steps: Steps | None = None,
        threads: int = 1,
        before_step: Callable[[], None] = lambda: None,
        hyperparameters: Mapping[str, Any] | None = None,
        to_loggers: bool = True,
    ) -> None:
        super().__init__()
        self.automatic_optimization = steps is None
        self.backbone, self.loss = backbone, CrossEntropy() if loss is None else loss
        if hyperparameters is None:
            own = {"average": average, "num_classes": num_classes, "seed": seed}
            self.save_hyperparameters({"model": recorded(backbone), "loss": recorded(self.loss), **own})
        else:
            self.save_hyperparameters(dict(hyperparameters), logger=False)
        self.optimizer, self.scheduler, self.lr, self.seed = optimizer, scheduler, lr, seed
        self.interval, self.frequency, self.monitor = interval, frequency, monitor
        self.before_step, self.to_loggers = before_step, to_loggers
        self.gradient_clip_val, self.gradient_clip_algorithm = gradient_clip_val, gradient_clip_algorithm
        self.steps, self.threads = steps, threads
        self.compiled: CompiledSteps | None = None
        self.captured: CapturedSteps | None = None
        self.native = NativeSteps(backbone, threads=threads) if steps == "native" else None
        self.active: list[Tensor] = []  # of native steps: the hidden units above 0 for the last batch evaluated
        self.metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "precision": MulticlassPrecision(num_classes, average=average),
                "recall": MulticlassRecall(num_classes, average=average),
                "f1": MulticlassF1Score(num_classes, average=average),
                **(metrics or {}),
            }
        )
        self.more_metrics = list(metrics or {})
        self.training_means, self.evaluation_means = EpochMeans(), EpochMeans()
        self.measured: dict[str, float] = {}  # the newest value of everything logged, in float64

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | PathLike[str],
        map_location: Any = None,
        hparams_file: None = None,  # noqa: ARG003
        strict: bool | None = None,
        weights_only: bool | None = True,
        **given: Any,
    ) -> Self:
        """The classifier in a checkpoint of `mnist-train`'s or of a Trainer's.

        Args:
            checkpoint_path, map_location, strict, weights_only: as for LightningModule.
            hparams_file: not used: the checkpoint says all.
            given: arguments of the class, in place of those of the checkpoint; `backbone` where it is not an `MLP`.
        """
        content = torch.load(checkpoint_path, map_location=map_location or "cpu", weights_only=weights_only)
        known = content.get("hyper_parameters", {})
        arguments = {name: known[name] for name in ("average", "num_classes", "seed") if name in known}
        arguments |= rebuilt(known) | given
        if "backbone" not in arguments:
            raise ValueError(f"{checkpoint_path} holds no MLP: give load_from_checkpoint its module, as backbone=...")
        classifier = cls(**arguments, hyperparameters=known)
        classifier.load_state_dict(content["state_dict"], strict=strict is not False)
        return classifier

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 28, 28), normalized -> logits (N, num_classes)."""
        logits: Tensor = self.backbone(images)
        return logits

    def configure_optimizers(self) -> Any:
        parameters = [*self.backbone.parameters(), *self.loss.parameters()]
        optimizer = torch.optim.Adam(parameters) if self.optimizer is None else self.optimizer(parameters)
        for group in optimizer.param_groups if self.lr is not None else ():
            group["lr"] = self.lr
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
                self.backbone, optimizer, self.loss, self.gradient_clip_val, self.gradient_clip_algorithm
            )
        if self.steps == "captured":
            self.captured = CapturedSteps(
                self.backbone, optimizer, self.loss, self.gradient_clip_val, self.gradient_clip_algorithm
            )
        if self.scheduler is None:
            return optimizer
        unknown = getattr(self.scheduler, "keywords", {}).get("total_steps", 0) is None
        total = {"total_steps": int(self.trainer.estimated_stepping_batches)} if unknown else {}
        scheduler = self.scheduler(optimizer, **total)
        if not self.automatic_optimization:
            return [optimizer], [scheduler]
        how = {"interval": self.interval, "frequency": self.frequency, "monitor": self.monitor}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **how}}

    def on_train_epoch_start(self) -> None:
        # The masks are then a function of (seed, epoch), whatever drew random numbers before. Python's and NumPy's
        # generators are for a user's own code.
        stream = stream_seed(self.seed, "dropout", self.current_epoch)
        torch.manual_seed(stream)
        random.seed(stream)
        np.random.seed(stream % 2**32)
        self._measure("lr", self._optimizer().param_groups[0]["lr"])

    def training_step(self, batch: Batch | Minibatches, batch_idx: int) -> Tensor | None:
        """Trains on a minibatch (images, labels), or with `steps` on a group of them."""
        if self.steps is None:
            assert not isinstance(batch, Minibatches), "groups of minibatches take Classifier(..., steps=...)"
            self.before_step()
            images, labels = batch
            logits = self.backbone(images)
            loss: Tensor = self.loss(logits, labels)
            self.training_means.add(loss.detach() * len(labels), logits.detach(), labels)
            return loss
        if self.native:
            self.before_step()
            group = self.native.train_batch(batch, epoch=self.current_epoch, number=batch_idx)
            self.training_means.add_sums(group.loss, group.errors, group.samples)
            self._count_steps(group.steps)
            return None
        if self.captured:
            self.before_step()
            made = self.captured(batch)
            self.training_means.add(*made)
            self._count_steps(len(made.losses))
            return None
        all_losses, all_logits, all_labels = [], [], []
        remaining = iter(batch if isinstance(batch, Minibatches) else [batch])
        while some := list(islice(remaining, STEPS_PER_GRAPH if self.compiled else 1)):
            self.before_step()
            for (loss, logits), (_, labels) in zip(self._optimizer_steps(some), some, strict=True):
                all_losses.append(loss)
                all_logits.append(logits)
                all_labels.append(labels)
        # What the epoch's means need, once for the whole group: no .item(), logging or metric in the loop above.
        losses = summed(torch.stack(all_losses), all_labels)
        self.training_means.add(losses, torch.cat(all_logits), torch.cat(all_labels))
        return None

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if self.gradient_clip_val is not None:
            gradient_clip_val, gradient_clip_algorithm = self.gradient_clip_val, self.gradient_clip_algorithm
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

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
            loss = self.loss(logits, labels)
            optimizer.zero_grad()
            self.manual_backward(loss)
            if self.gradient_clip_val is not None:
                self.clip_gradients(optimizer.optimizer, self.gradient_clip_val, self.gradient_clip_algorithm)
            optimizer.step()
            results.append((loss.detach(), logits.detach()))
        return results

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.is_last_batch:  # not at the epoch's end, where callbacks look before this module does
            loss, error = self.training_means.take()
            self._measure("train/loss", loss, prog_bar=True)
            self._measure("train/error", error)

    def on_fit_end(self) -> None:
        self.captured = None  # graphs hold memory of the device, and the weights leave it now

    def on_train_epoch_end(self) -> None:
        self.training_means = EpochMeans()  # of an epoch that was stopped within
        for name in ("train/loss", "val/loss"):
            if not math.isfinite(self.measured.get(name, 0.0)):
                raise NonFiniteLossError(
                    f"{name} became {self.measured[name]} in epoch {self.current_epoch + 1}: "
                    f"optimizer.lr={self.measured['lr']:g} is probably too high"
                )
        scheduler = None if self.automatic_optimization else self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(self.measured[self.monitor])
        elif isinstance(scheduler, LRScheduler):
            scheduler.step()

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluation_step(batch)  # for callbacks

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluation_step(batch)

    def predict_step(self, batch: Tensor | Batch, batch_idx: int) -> Tensor:
        """Images (N, 1, 28, 28), with or without labels -> probabilities (N, num_classes)."""
        logits: Tensor = self(batch if isinstance(batch, Tensor) else batch[0])
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
            self.evaluation_means.add(self._summed_loss(logits, labels), logits, labels)
        self.metrics.update(logits, labels)
        return logits

    def _summed_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if type(self.loss) is CrossEntropy and self.loss.weight is None:
            return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.loss.label_smoothing)
        loss: Tensor = self.loss(logits, labels) * len(labels)
        return loss

    def _measure_evaluation(self, split: str) -> None:
        loss, error = self.evaluation_means.take()
        self._measure(f"{split}/loss", loss, prog_bar=True)
        self._measure(f"{split}/error", error)
        for name, value in self.metrics.compute().items():
            # torchmetrics computes in float32: in more than six digits, weighted recall would differ from accuracy.
            self._measure(f"{split}/{name}", float(f"{value.item():.6g}"), prog_bar=name == "accuracy")
        self.metrics.reset()

    def _measure(self, name: str, value: float, prog_bar: bool = False) -> None:
        """Notes a value, in float64, and logs it for callbacks, progress bars and loggers."""
        self.measured[name] = value
        logger = None if self.to_loggers else False  # True would warn where there is no logger
        self.log(name, value, prog_bar=prog_bar, logger=logger, on_step=False, on_epoch=True, batch_size=1)

    def _optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer


def recorded(module: nn.Module) -> dict[str, Any] | None:
    """What `rebuilt` makes an `MLP` or a `CrossEntropy` from, as a configuration has it; None for other modules."""
    if type(module) is MLP:
        return {"_target_": OUR_BACKBONE, **module.settings}
    if type(module) is CrossEntropy:
        weight = None if module.weight is None else module.weight.tolist()
        return {"_target_": OUR_LOSS, "label_smoothing": module.label_smoothing, "weight": weight}
    return None


def rebuilt(hyperparameters: Mapping[str, Any]) -> dict[str, nn.Module]:
    """`backbone` and `loss` of a checkpoint's hyperparameters, each where it is one of this package's.

    Raises:
        TypeError, ValueError: their settings are none that this package writes.
    """
    made: dict[str, nn.Module] = {}
    for argument, group, target, build in (
        ("backbone", "model", OUR_BACKBONE, MLP),
        ("loss", "loss", OUR_LOSS, CrossEntropy),
    ):
        settings = dict(hyperparameters.get(group) or {})
        if settings.pop("_target_", None) == target:
            made[argument] = build(**settings)
    return made


def score(trainer: Trainer, classifier: Classifier, data: LightningDataModule | InOrder) -> dict[str, float]:
    """Accuracy, precision, recall, F1 (fractions), the mean loss and any other metric with the weights that the
    classifier has now.

    Args:
        data: its test set, or batches of (images, labels).
    """
    trainer.test(classifier, data, verbose=False)
    names = ("accuracy", "precision", "recall", "f1", "loss", *classifier.more_metrics)
    return {name: classifier.measured[f"test/{name}"] for name in names}
