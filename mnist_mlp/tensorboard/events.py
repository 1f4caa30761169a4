"""What TensorBoard shows of a run: the callback that writes its event files, by epoch, each thing once."""

import copy
import logging
import shlex
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import custom_scalars, hparams, pr_curve, text
from torch.utils.tensorboard.writer import FileWriter

from mnist_mlp.classifier import Classifier
from mnist_mlp.datamodule import Batch, InOrder, MNISTDataModule
from mnist_mlp.drawing import architecture
from mnist_mlp.run.directory import DISK_ERRORS, RunDirectory, durable_write
from mnist_mlp.run.identity import PLACES
from mnist_mlp.run.metrics import COLUMNS, Row
from mnist_mlp.run.streams import random_states, set_random_states
from mnist_mlp.tensorboard import pictures

THRESHOLDS = 51  # of a precision-recall curve
LOOKED_AT = 512  # training images behind the histograms of gradients and activations
EMBEDDED = 2000  # validation images in the projector
SHOWN = 40  # training images
START, END = "start", "end"  # what the names of the files end in that a later session replaces

# The columns of the HPARAMS table: these, then these scalars.
METRICS = (
    "val/loss",
    "val/accuracy",
    "val/precision",
    "val/recall",
    "val/f1",
    "best/accuracy",
    "best/epoch",
    "test/accuracy",
    "gap/loss",
)

log = logging.getLogger(__name__)


class EventFile:
    """In place of TensorBoard's own `EventFileWriter`.

    TensorBoard reads the files of a directory one after the other, by name, and never returns to one. Those of its own
    writer made in one second come in any order, and one is there before it is needed. This one's file is made when it
    is first flushed, and its name has nanoseconds. Nor does it need a thread.

    Args:
        directory: made if it is not there.
        kind: the end of the file's name.
    """

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory, self.kind = directory, kind
        self._events: list[Event] = []
        self._records: RecordWriter | None = None

    def get_logdir(self) -> str:
        return str(self.directory)

    def add_event(self, event: Event) -> None:
        self._events.append(event)

    def flush(self) -> None:
        if self._records is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            # Sorts after the files of earlier Lightning runs, which have the second here, then a dot.
            path = self.directory / f"events.out.tfevents.{time.time_ns()}.{self.kind}"
            self._records = RecordWriter(path.open("wb"))
        for event in self._events:
            self._records.write(event.SerializeToString())
        self._events = []
        self._records.flush()

    def close(self) -> None:
        if self._records is not None:
            self._records.close()


class Writer(SummaryWriter):
    """PyTorch's `SummaryWriter` over an `EventFile`.

    Args:
        directory, kind: as for `EventFile`.
        purge_step: TensorBoard forgets what earlier files have from this step on.
    """

    def __init__(self, directory: Path, kind: str, purge_step: int | None = None) -> None:
        self.kind = kind
        super().__init__(str(directory), purge_step=purge_step)

    def _get_file_writer(self) -> FileWriter:
        if self.all_writers is None:
            file = FileWriter.__new__(FileWriter)
            file.event_writer = EventFile(Path(self.log_dir), self.kind)
            file.add_event(Event(file_version="brain.Event:2"))
            if self.purge_step is not None:
                file.add_event(Event(step=self.purge_step, session_log=SessionLog(status=SessionLog.START)))
            self.file_writer: Any = file
            self.all_writers: Any = {self.log_dir: file}
        assert isinstance(self.file_writer, FileWriter)
        return self.file_writer

    def add(self, step: int, *summaries: Summary) -> None:
        """Writes them as one event."""
        values = [value for summary in summaries for value in summary.value]
        self._get_file_writer().add_summary(Summary(value=values), step)


class EpochLogger(TensorBoardLogger):
    """Lightning's logger over a `Writer`, for callbacks that ask for a logger; without its empty `hparams.yaml`."""

    def __init__(self, directory: Path, purge_step: int) -> None:
        super().__init__(directory.parent, name="", version=directory.name, default_hp_metric=False)
        self.directory, self.purge_step = directory, purge_step
        self._writer: Writer | None = None

    @property
    def experiment(self) -> Writer:
        if self._writer is None:
            self._writer = Writer(self.directory, "epochs", self.purge_step)
        return self._writer

    def save(self) -> None:
        pass

    def finalize(self, status: str) -> None:
        pass  # there is more to write after Lightning's last epoch

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Events(Callback):
    """Writes what TensorBoard shows.

    There are three kinds of files. Each session has one of its epochs; those that an earlier, killed session wrote
    after its last checkpoint are removed. What describes the run as a whole is in one that the next
    session replaces; so is what comes after the last epoch. Hence everything is there once, whenever a session ends.

    Pictures that cannot be made are one warning; a disk that cannot be written ends the run. Nothing here changes what
    random numbers are drawn.

    Args:
        run: whose `tensorboard/` is written to.
        config: of the run. Where it has no `tensorboard`, as older ones, there are no pictures.
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
        self._active: dict[str, Tensor] = {}  # of each ReLU, which units it let pass
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._failed: set[str] = set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        data = _datamodule(trainer)
        self._forget(START)
        self._forget(END)
        forget_epochs(self.directory, after=self.done)
        with self._writer(START) as writer, _random_numbers_kept():
            optimizer = trainer.optimizers[0]
            writer.add(0, custom_scalars(layout()))
            with self._attempt("hyperparameters"):
                experiment, session, _ = hparams(
                    hyperparameters(self.config, pl_module, optimizer), dict.fromkeys(METRICS, 0.0)
                )
                writer.add(0, experiment, session)
            for tag, content in self._texts().items():
                writer.add(0, text(tag, content))
            with self._attempt("graph"):
                _add_graph(writer, pl_module.backbone)
            if self.images_every:
                with self._attempt("picture of the architecture"):
                    title = f"{self.config.network}, {self.config.experiment}"
                    writer.add(0, image("run/architecture", architecture.png(pl_module.backbone, title)))
                with self._attempt("picture of training images"):
                    shown = data.splits["train"][0][:SHOWN].squeeze(1).cpu().numpy()
                    picture = pictures.training_images(shown, "training images as the network sees them")
                    writer.add(0, image("run/training_images", picture))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self._logits, self._active = [], {}
        for name, module in pl_module.backbone.named_modules():
            if isinstance(module, nn.ReLU):
                self._hooks.append(module.register_forward_hook(partial(self._note_active, name)))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *arguments: Any, **keywords: Any
    ) -> None:
        self._logits.append(outputs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _note_active(self, name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        active = output.flatten(1).amax(dim=0) > 0
        self._active[name] = self._active[name] | active if name in self._active else active

    def epoch(self, trainer: Trainer, classifier: Classifier, row: Row, best: Row) -> None:
        """Writes one epoch.

        Args:
            row: of `metrics.csv`.
            best: epoch of highest `val/accuracy` so far, and that accuracy.
        """
        number = int(row["epoch"])
        writer = self.logger.experiment
        labels = _datamodule(trainer).splits["validation"][1]
        logits = torch.cat(self._logits)
        scalars = {name: row[name] for name in COLUMNS[1:]}
        scalars |= {
            "gap/loss": row["val/loss"] - row["train/loss"],
            "best/accuracy": best["val/accuracy"],
            "best/epoch": best["epoch"],
        }
        scalars |= {f"val/f1/{digit}": value for digit, value in enumerate(f1_scores(confusion(logits, labels)))}
        scalars |= {f"dead_relu/{name}": 1 - units.float().mean().item() for name, units in self._active.items()}
        writer.add(
            number, Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()])
        )
        with _random_numbers_kept():
            if self.images_every and (number == 1 or number % self.images_every == 0):
                self._look(writer, classifier, _datamodule(trainer), number, logits)
            if self.histograms_every and number % self.histograms_every == 0:
                with self._attempt("histograms"):
                    _add_histograms(writer, classifier.backbone, _datamodule(trainer).splits["train"], number)
        writer.flush()  # what is watched is there within the epoch

    def last(self, classifier: Classifier, data: MNISTDataModule, epoch: int) -> None:
        """Writes what belongs to the last epoch alone; the classifier has its weights."""
        self._forget(END)
        with self._writer(END) as writer, _random_numbers_kept():
            if self.images_every and epoch != 1 and epoch % self.images_every != 0:  # else `epoch` has done so
                self._look(writer, classifier, data, epoch)
            if self.embeddings:
                with self._attempt("embeddings"):
                    _add_embeddings(writer, classifier.backbone, data.splits["validation"], epoch)

    def best(
        self, classifier: Classifier, data: MNISTDataModule, epoch: int, best_epoch: int, test: dict[str, float]
    ) -> None:
        """Writes what belongs to the best epoch, and the end of the run; the classifier has the best epoch's weights.

        Its pictures have tags of their own: TensorBoard drops the steps of a tag that an earlier one comes after.

        Args:
            epoch: the last one.
            test: metrics of the last epoch's weights on the test set.
        """
        with self._writer(END) as writer, _random_numbers_kept():
            if self.images_every:
                self._look(writer, classifier, data, best_epoch, prefix="best/")
            writer.add(epoch, Summary(value=[Summary.Value(tag="test/accuracy", simple_value=test["accuracy"])]))
            *_, ended = hparams({}, {})
            writer.add(epoch, ended)

    def close(self) -> None:
        self.logger.close()

    def _look(
        self,
        writer: Writer,
        classifier: Classifier,
        data: MNISTDataModule,
        epoch: int,
        logits: Tensor | None = None,
        prefix: str = "",
    ) -> None:
        """Pictures and precision-recall curves of the weights that the classifier has now; `prefix` is that of tags."""
        images, labels = data.splits["validation"]
        if logits is None:
            logits = _predict(classifier.backbone, InOrder(images, labels, data.eval_batch_size))
        probabilities = logits.float().softmax(dim=1).cpu().numpy()
        truth = labels.cpu().numpy()
        counts = confusion(logits, labels)

        def wrong() -> Image.Image:
            # Only those that are shown: all of them would have to come from a GPU.
            found = pictures.wrongest(truth, probabilities)
            some = images[torch.tensor(found, dtype=torch.long, device=images.device)].squeeze(1).cpu().numpy()
            return pictures.most_confidently_wrong(some, truth, probabilities, f"most confidently wrong, epoch {epoch}")

        def first_layer() -> Image.Image | None:
            weights = first_layer_weights(classifier.backbone)
            return None if weights is None else pictures.first_layer_weights(weights, f"first layer, epoch {epoch}")

        kinds: dict[str, Callable[[], Image.Image | None]] = {
            "val/confusion_matrix": lambda: pictures.confusion_matrix(counts, f"confusion matrix, epoch {epoch}"),
            "val/most_confidently_wrong": wrong,
            "val/reliability": lambda: pictures.reliability_diagram(
                truth, probabilities, f"reliability, epoch {epoch}"
            ),
            "weights/first_layer": first_layer,
        }
        for tag, draw in kinds.items():
            with self._attempt(f"picture {tag}"):
                drawn = draw()
                if drawn is not None:
                    writer.add(epoch, image(prefix + tag, drawn))
        with self._attempt("precision-recall curves"):
            writer.add(
                epoch,
                *(
                    pr_curve(f"{prefix}pr/{digit}", truth == digit, probabilities[:, digit], THRESHOLDS)
                    for digit in range(probabilities.shape[1])
                ),
            )

    def _texts(self) -> dict[str, str]:
        """Markdown for the Text tab."""
        record = self.run.read_record()
        commands = [shlex.join(["mnist-rerun", self.config.run_dir])]
        if HydraConfig.initialized():
            overrides = (o for o in HydraConfig.get().overrides.task if o.partition("=")[0] not in PLACES)
            commands.append(shlex.join(["mnist-train", *overrides]))
        facts = record.get("versions", {}) | {key: record.get(key) for key in ("device", "threads")}
        facts |= record.get("git", {})
        return {
            "run/configuration": _code(OmegaConf.to_yaml(self.config)),
            "run/repeat_it": _code("\n".join(commands)),
            "run/versions": "\n".join(
                ["| what | which |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in facts.items())]
            ),
        }

    def _forget(self, kind: str) -> None:
        for stale in self.directory.glob(f"events.out.tfevents.*.{kind}"):
            stale.unlink()

    @contextmanager
    def _writer(self, kind: str) -> Iterator[Writer]:
        writer = Writer(self.directory, kind)
        try:
            yield writer
        finally:
            writer.close()

    @contextmanager
    def _attempt(self, what: str) -> Iterator[None]:
        """A failure is one warning in the log, unless it is the disk's."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a user's backbone, looked at in ways that it was not made for
                yield
        except Exception as error:  # whatever a user's backbone raises
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise
            if what not in self._failed:
                log.warning("TensorBoard: no %s (%s)", what, " ".join(f"{type(error).__name__}: {error}".split())[:300])
            self._failed.add(what)


def forget_epochs(directory: Path, after: int) -> None:
    """Takes events of later steps out of the event files. To `purge_step`, a running TensorBoard forgets them; one that
    is started later does too, but its `EventAccumulator` keeps precision-recall curves."""
    for path in directory.glob("events.out.tfevents.*"):
        records = list(RawEventFileLoader(str(path)).Load())
        kept = [record for record in records if Event.FromString(record).step <= after]
        if len(kept) < len(records):
            content = BytesIO()
            writer = RecordWriter(content)
            for record in kept:
                writer.write(record)
            durable_write(path, content.getvalue())


def layout() -> dict[str, dict[str, list[Any]]]:
    """The charts of the Custom Scalars tab, as `custom_scalars` takes them: a figure of the report is a chart."""

    def chart(*tags: str) -> list[Any]:
        return ["Multiline", [f"^{tag}$" for tag in tags]]  # regular expressions

    return {
        "training and validation": {
            "loss": chart("train/loss", "val/loss"),
            "error": chart("train/error", "val/error"),
            "accuracy, precision, recall and F1": chart("val/accuracy", "val/precision", "val/recall", "val/f1"),
            "learning rate": chart("lr"),
        },
        "more": {
            "F1 of each digit": chart("val/f1/.*"),
            "validation loss − training loss": chart("gap/loss"),
            "share of dead ReLUs": chart("dead_relu/.*"),
        },
    }


def hyperparameters(
    config: DictConfig, classifier: Classifier, optimizer: torch.optim.Optimizer
) -> dict[str, str | float]:
    """A run's row in the HPARAMS table: the same columns, of the same types, whatever is trained."""
    backbone = classifier.backbone
    found = [layer for layer in architecture.layers(backbone) if layer.parameters]
    dropouts = [module.p for module in backbone.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    schedulers = classifier.lr_schedulers()
    return {
        "experiment": str(config.experiment),
        "model": str(config.network),
        "hidden widths": "-".join("×".join(map(str, layer.outputs)) for layer in found[:-1]) or "none",
        "parameters": float(sum(parameter.numel() for parameter in backbone.parameters())),
        "dropout": float(max(dropouts, default=0.0)),
        "optimizer": type(optimizer).__name__,
        "learning rate": float(optimizer.defaults.get("lr", 0.0)),  # as it was at first
        "scheduler": type(schedulers).__name__ if schedulers else "none",
        "batch size": float(config.data.get("batch_size", 0)),
        "seed": float(config.seed),
        "epochs": float(config.trainer.max_epochs),
    }


def confusion(logits: Tensor, labels: Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Logits (N, num_classes), labels (N,) -> counts (num_classes, num_classes), a row for each true class."""
    classes = logits.shape[1]
    places = labels * classes + logits.argmax(dim=1)
    return torch.bincount(places, minlength=classes**2).reshape(classes, classes).cpu().numpy()


def f1_scores(counts: np.ndarray[Any, np.dtype[np.int64]]) -> list[float]:
    """Of each class, from the confusion matrix; 0 for one that neither is nor was predicted."""
    both = counts.sum(axis=0) + counts.sum(axis=1)
    scores: list[float] = (2 * counts.diagonal() / np.maximum(both, 1)).tolist()
    return scores


def first_layer_weights(backbone: nn.Module) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """(units, 784), where the first layer sees all pixels of an image; None where it does not."""
    first = next((module for module in backbone.modules() if list(module.parameters(recurse=False))), None)
    if not isinstance(first, nn.Linear) or first.in_features != 28 * 28:
        return None
    return first.weight.detach().float().cpu().numpy()


def image(tag: str, picture: Image.Image) -> Summary:
    content = Summary.Image(
        width=picture.width, height=picture.height, colorspace=3, encoded_image_string=pictures.encoded(picture)
    )
    return Summary(value=[Summary.Value(tag=tag, image=content)])


def _code(content: str) -> str:
    return "\n".join(f"    {line}" for line in content.splitlines())


def _datamodule(trainer: Trainer) -> MNISTDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, MNISTDataModule)
    return data


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    states = random_states()
    try:
        yield
    finally:
        set_random_states(states)


def _twin(backbone: nn.Module) -> nn.Module:
    """A copy to be looked at: the original keeps its mode, its gradients and its buffers."""
    return copy.deepcopy(backbone).eval()


def _predict(backbone: nn.Module, batches: InOrder) -> Tensor:
    """Logits (N, num_classes)."""
    twin = _twin(backbone).to(batches.images.device)
    with torch.inference_mode():
        return torch.cat([twin(images) for images, _ in batches])


def _add_graph(writer: Writer, backbone: nn.Module) -> None:
    """The Graph tab; its boxes have the names of the backbone's modules."""
    example = torch.zeros(1, 1, 28, 28)
    # Traced here, because `add_graph` would do so thrice, to check itself.
    traced = torch.jit.trace(_twin(backbone).cpu(), example, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
    with redirect_stdout(StringIO()):  # where an exception is printed too
        writer.add_graph(traced, example)


def _add_histograms(writer: Writer, backbone: nn.Module, train: Batch, epoch: int) -> None:
    """Weights; and of always the same training images, without dropout, gradients and each layer's outputs."""
    twin = _twin(backbone)
    outputs: dict[str, Tensor] = {}

    def note(name: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs[name] = output.detach()

    for name, module in twin.named_modules():
        if not list(module.children()):
            module.register_forward_hook(partial(note, name or type(module).__name__))
    trained = {name: parameter for name, parameter in twin.named_parameters() if parameter.requires_grad}
    images, labels = (part[:LOOKED_AT] for part in train)
    with torch.enable_grad():
        loss = F.cross_entropy(twin(images), labels)
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    for name, parameter in twin.named_parameters():
        writer.add_histogram(f"weights/{name}", parameter.detach().float(), epoch)
    for name, gradient in zip(trained, gradients, strict=True):
        if gradient is not None:
            writer.add_histogram(f"gradients/{name}", gradient.float(), epoch)
    for name, output in outputs.items():
        writer.add_histogram(f"activations/{name}", output.float(), epoch)


def _add_embeddings(writer: Writer, backbone: nn.Module, validation: Batch, epoch: int) -> None:
    """What the last layer with parameters is given for the first validation images, with their labels and sprites."""
    images, labels = (part[:EMBEDDED] for part in validation)
    twin = _twin(backbone).to(images.device)
    given: list[Tensor] = []
    *_, final = (module for module in twin.modules() if list(module.parameters(recurse=False)))
    final.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].flatten(1)))
    with torch.inference_mode():
        twin(images)
    for stale in Path(writer.log_dir).glob("*/penultimate"):
        shutil.rmtree(stale.parent)
    low, high = images.min(), images.max()
    writer.add_embedding(given[-1], labels.tolist(), (images - low) / (high - low), epoch, "penultimate")
