"""The callback that writes a run's event files, once an epoch; `content.py` says what is in them."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.tensorboard.summary import hparams, text

from mnist_mlp.classifier import Classifier
from mnist_mlp.datamodule import MNISTDataModule
from mnist_mlp.drawing import architecture
from mnist_mlp.run.directory import DISK_ERRORS, RunDirectory
from mnist_mlp.run.metrics import Row
from mnist_mlp.surroundings import one_line
from mnist_mlp.tensorboard import content
from mnist_mlp.tensorboard.content import PICTURES, Snapshot
from mnist_mlp.tensorboard.writer import EpochLogger, EventWriter, forget_epochs

START, END = "start", "end"  # kinds of event files that the next session replaces

log = logging.getLogger(__name__)


class Events(Callback):
    """Writes what TensorBoard shows.

    A session writes three kinds of event files: `start` describes the run, `epochs` holds its epochs, and one or two
    `end` files hold what follows the last epoch. The next session replaces `start` and `end`, and removes from `epochs`
    what comes after the checkpoint that it resumes. So everything is shown once, whenever a session ends.

    A picture that cannot be drawn costs one warning. A disk that cannot be written ends the run. Nothing here changes
    the random numbers that training draws.

    Args:
        run: its `tensorboard/` is written to.
        config: of the run. An older one may lack `tensorboard`; then no pictures are drawn.
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
        self._active: list[Tensor] = []  # of each hidden layer: which units' ReLUs were above 0 for any image
        self._layer = 0  # how many of them this batch has passed
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._failed: set[str] = set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        snapshot = self._snapshot(pl_module, _datamodule(trainer), 0)
        if snapshot.data is None:
            log.warning(
                "TensorBoard: no F1 of each digit, pictures of images or predictions, precision-recall curves, "
                "histograms or embeddings: they need an MNISTDataModule, and this run's data module is `%s`",
                type(_datamodule(trainer)).__name__,
            )
        self._forget(START)
        self._forget(END)
        forget_epochs(self.directory, after=self.done)
        with self._writer(START) as writer, isolate_rng():
            layers: list[architecture.Layer] = []
            with self._attempt("widths of the layers"):
                layers = architecture.layers(pl_module.backbone)
            writer.add(0, content.layout(layers))
            with self._attempt("hyperparameters"):
                settings = content.hyperparameters(self.config, pl_module, trainer.optimizers[0], layers)
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
        self._logits, self._active = [], []
        if pl_module.native is None:  # native steps call no module; they say which units were active
            relus = (module for module in pl_module.backbone.modules() if isinstance(module, nn.ReLU))
            self._hooks = [module.register_forward_hook(self._note_output) for module in relus]

    def on_validation_batch_start(self, *arguments: Any, **keywords: Any) -> None:
        self._layer = 0

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *arguments: Any, **keywords: Any
    ) -> None:
        assert isinstance(pl_module, Classifier)
        self._logits.append(outputs)
        for active in pl_module.active:
            self._note(active)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _note_output(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        with self._attempt("share of dead ReLUs"):
            self._note(output.flatten(1).amax(dim=0) > 0)

    def _note(self, active: Tensor) -> None:
        """Notes the next hidden layer of this batch: layers count in order of use, since one ReLU may serve several."""
        if self._layer == len(self._active):
            self._active.append(active)
        else:
            self._active[self._layer] = self._active[self._layer] | active
        self._layer += 1

    def epoch(self, trainer: Trainer, classifier: Classifier, row: Row, best: Row) -> None:
        """Writes one epoch.

        Args:
            row: of `metrics.csv`.
            best: `epoch` and `val/accuracy` of the epoch with the highest accuracy so far.
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
            scalars |= {f"{content.F1_OF_DIGIT}/{digit}": score for digit, score in enumerate(scores)}
        for number_of_layer, active in enumerate(self._active, 1):
            scalars[f"{content.DEAD_RELUS}/{number_of_layer}"] = 1 - active.float().mean().item()
        writer.add(number, content.scalars(scalars))
        with isolate_rng():
            if self._has_pictures(number):
                self._add_pictures(writer, snapshot)
            if self.histograms_every and number % self.histograms_every == 0 and snapshot.data is not None:
                with self._attempt("histograms"):
                    content.add_histograms(writer, snapshot)
        writer.flush()  # so that the epoch is shown before the next one ends

    def last(self, classifier: Classifier, data: LightningDataModule, epoch: int) -> None:
        """Writes the last epoch's pictures and embeddings; the classifier has its weights."""
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
        """Writes the best epoch's pictures and the end of the run; the classifier has the best epoch's weights.

        The pictures have their own tags, because the best epoch may precede the last: once a tag goes back by a step,
        TensorBoard drops the steps that follow.

        Args:
            epoch: the last one.
            test: metrics on the test set with the last epoch's weights.
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
        """Whether this epoch's pictures are written when it ends."""
        return bool(self.images_every) and (epoch == 1 or epoch % (self.images_every or 1) == 0)

    def _add_pictures(self, writer: EventWriter, snapshot: Snapshot, once: bool = False, prefix: str = "") -> None:
        """Writes a run's first pictures (`once`), or an epoch's pictures and precision-recall curves.

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
        """Turns an error into one warning in the log, unless the disk caused it."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a user's backbone may warn when it is traced or copied
                yield
        except Exception as error:  # whatever a user's backbone raises
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise
            if what not in self._failed:
                log.warning("TensorBoard: no %s (%s)", what, f"{type(error).__name__}: {one_line(error)}"[:300])
            self._failed.add(what)


def _datamodule(trainer: Trainer) -> LightningDataModule:
    data: LightningDataModule = trainer.datamodule  # type: ignore[attr-defined]
    return data
