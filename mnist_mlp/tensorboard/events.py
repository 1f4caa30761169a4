"""The callback that writes a run's event files, once an epoch; `content.py` says what is in them."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.tensorboard.summary import custom_scalars, hparams, text

from mnist_mlp.classifier import Classifier
from mnist_mlp.datamodule import MNISTDataModule
from mnist_mlp.run.directory import DISK_ERRORS, RunDirectory
from mnist_mlp.run.metrics import Row
from mnist_mlp.tensorboard import content
from mnist_mlp.tensorboard.content import PICTURES, Snapshot
from mnist_mlp.tensorboard.writer import EpochLogger, EventWriter, forget_epochs

START, END = "start", "end"  # the names of files that the next session replaces end in these

log = logging.getLogger(__name__)


class Events(Callback):
    """Writes what TensorBoard shows.

    There are three kinds of event files. Each session has one for its epochs, from which a later session removes the
    epochs after the checkpoint that it resumes. One at the start describes the run, and one or two at the end hold what
    comes after the last epoch; the next session replaces these. So everything is there once, whenever a session ends.

    A picture that cannot be made is one warning; a disk that cannot be written ends the run. Nothing here changes the
    random numbers that training draws.

    Args:
        run: whose `tensorboard/` is written to.
        config: of the run. Older ones have no `tensorboard`: then there are no pictures.
        done: epochs in the checkpoint that is resumed.
    """

    def __init__(self, run: RunDirectory, config: DictConfig, done: int) -> None:
        self.run, self.config = run, config
        self.directory = run.path / "tensorboard"
        settings = config.get("tensorboard", {})
        self.images_every: int | None = settings.get("images_every")
        self.histograms_every: int | None = settings.get("histograms_every")
        self.embeddings: bool = settings.get("embeddings", False)
        self.done = done
        self.logger = EpochLogger(self.directory, purge_step=done + 1)
        self._logits: list[Tensor] = []  # of the newest validation
        self._active: dict[str, Tensor] = {}  # of each ReLU, which units were above 0 for any image
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._failed: set[str] = set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        snapshot = self._snapshot(pl_module, _datamodule(trainer), 0)
        if snapshot.data is None:
            log.warning(
                "TensorBoard: %s is not an MNISTDataModule, which has its images in `splits`: no F1 of each digit, no "
                "pictures of images and predictions, no precision-recall curves, histograms or embeddings",
                type(_datamodule(trainer)).__name__,
            )
        self._forget(START)
        self._forget(END)
        forget_epochs(self.directory, after=self.done)
        with self._writer(START) as writer, isolate_rng():
            writer.add(0, custom_scalars(content.layout()))
            with self._attempt("hyperparameters"):
                settings = content.hyperparameters(self.config, pl_module, trainer.optimizers[0])
                experiment, session, _ = hparams(settings, dict.fromkeys(content.HPARAMS_METRICS, 0.0))
                writer.add(0, experiment, session)
            for tag, markdown in content.texts(self.config, self.run.read_record()).items():
                writer.add(0, text(tag, markdown))
            with self._attempt("graph"):
                content.add_graph(writer, pl_module.backbone)
            if self.images_every:
                self._add_pictures(writer, snapshot, once=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self._logits, self._active = [], {}
        for name, module in relus(pl_module):
            if pl_module.native is None:  # native steps do not call the modules, and tell themselves
                self._hooks.append(module.register_forward_hook(partial(self._note_active, name)))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *arguments: Any, **keywords: Any
    ) -> None:
        assert isinstance(pl_module, Classifier)
        self._logits.append(outputs)
        for (name, _), active in zip(relus(pl_module), pl_module.active, strict=False):
            self._note(name, active)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _note_active(self, name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._note(name, output.flatten(1).amax(dim=0) > 0)

    def _note(self, name: str, active: Tensor) -> None:
        self._active[name] = self._active[name] | active if name in self._active else active

    def epoch(self, trainer: Trainer, classifier: Classifier, row: Row, best: Row) -> None:
        """Writes one epoch.

        Args:
            row: of `metrics.csv`.
            best: epoch of highest `val/accuracy` so far, and that accuracy.
        """
        number = int(row["epoch"])
        writer = self.logger.experiment
        data = _datamodule(trainer)
        logits = torch.cat(self._logits)
        whole = not isinstance(data, MNISTDataModule) or len(logits) == len(data.splits["validation"][1])
        snapshot = self._snapshot(
            classifier, data, number, logits if whole else None
        )  # limit_val_batches leaves some out
        scalars = content.epoch_scalars(row, best)
        if snapshot.data is not None:
            scores = content.f1_scores(content.confusion(snapshot.logits, snapshot.labels("validation")))
            scalars |= {f"val/f1/{digit}": score for digit, score in enumerate(scores)}
        scalars |= {f"dead_relu/{name}": 1 - units.float().mean().item() for name, units in self._active.items()}
        writer.add(number, content.scalars(scalars))
        with isolate_rng():
            if self._has_pictures(number):
                self._add_pictures(writer, snapshot)
            if self.histograms_every and number % self.histograms_every == 0 and snapshot.data is not None:
                with self._attempt("histograms"):
                    content.add_histograms(writer, snapshot)
        writer.flush()  # for who watches: the epoch is there before the next one

    def last(self, classifier: Classifier, data: LightningDataModule, epoch: int) -> None:
        """Writes what belongs to the last epoch alone; the classifier has its weights."""
        self._forget(END)
        snapshot = self._snapshot(classifier, data, epoch)
        with self._writer(END) as writer, isolate_rng():
            if self.images_every and not self._has_pictures(epoch):
                self._add_pictures(writer, snapshot)
            if self.embeddings and snapshot.data is not None:
                with self._attempt("embeddings"):
                    content.add_embeddings(writer, snapshot)

    def best(
        self, classifier: Classifier, data: LightningDataModule, epoch: int, best_epoch: int, test: dict[str, float]
    ) -> None:
        """Writes what belongs to the best epoch, and the end of the run; the classifier has the best epoch's weights.

        Its pictures have tags of their own: of one tag, TensorBoard drops the steps that come after an earlier one.

        Args:
            epoch: the last one.
            test: metrics of the last epoch's weights on the test set.
        """
        with self._writer(END) as writer, isolate_rng():
            if self.images_every:
                self._add_pictures(writer, self._snapshot(classifier, data, best_epoch), prefix="best/")
            writer.add(epoch, content.scalars({"test/accuracy": test["accuracy"]}))
            *_, ended = hparams({}, {})
            writer.add(epoch, ended)

    def close(self) -> None:
        self.logger.close()

    def _snapshot(
        self, classifier: Classifier, data: LightningDataModule, epoch: int, logits: Tensor | None = None
    ) -> Snapshot:
        ours = data if isinstance(data, MNISTDataModule) else None
        return Snapshot(classifier, ours, epoch, f"{self.config.network}, {self.config.experiment}", logits)

    def _has_pictures(self, epoch: int) -> bool:
        """Whether pictures of this epoch are written as it ends."""
        return bool(self.images_every) and (epoch == 1 or epoch % (self.images_every or 1) == 0)

    def _add_pictures(self, writer: EventWriter, snapshot: Snapshot, once: bool = False, prefix: str = "") -> None:
        """Writes the pictures of a run's start, or those of an epoch and its precision-recall curves.

        Args:
            prefix: of the tags.
        """
        for picture in PICTURES:
            if picture.once == once and (snapshot.data is not None or not picture.of_data):
                with self._attempt(f"picture {picture.tag}"):
                    if (drawn := picture.draw(snapshot)) is not None:
                        writer.add(snapshot.epoch, content.image(prefix + picture.tag, drawn))
        if not once and snapshot.data is not None:
            with self._attempt("precision-recall curves"):
                writer.add(snapshot.epoch, *content.precision_recall(snapshot, prefix))

    def _forget(self, kind: str) -> None:
        for stale in self.directory.glob(f"events.out.tfevents.*.{kind}"):
            stale.unlink()

    @contextmanager
    def _writer(self, kind: str) -> Iterator[EventWriter]:
        writer = EventWriter(self.directory, kind)
        try:
            yield writer
        finally:
            writer.close()

    @contextmanager
    def _attempt(self, what: str) -> Iterator[None]:
        """Makes a failure one warning in the log, unless it is the disk's."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a user's backbone is used in ways that it was not made for
                yield
        except Exception as error:  # whatever a user's backbone raises
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise
            if what not in self._failed:
                log.warning("TensorBoard: no %s (%s)", what, " ".join(f"{type(error).__name__}: {error}".split())[:300])
            self._failed.add(what)


def relus(classifier: Classifier) -> list[tuple[str, nn.ReLU]]:
    """The backbone's ReLUs by name, first to last."""
    return [(name, module) for name, module in classifier.backbone.named_modules() if isinstance(module, nn.ReLU)]


def _datamodule(trainer: Trainer) -> LightningDataModule:
    data: LightningDataModule = trainer.datamodule  # type: ignore[attr-defined]
    return data
