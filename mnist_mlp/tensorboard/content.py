"""What TensorBoard shows of a run: charts, hyperparameters, texts, scalars, pictures, curves, histograms, embeddings.

To add a picture, write a function in `pictures.py` and a row of `PICTURES`. To add a metric, write a row in
`run/metrics.py`.
"""

import copy
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property, partial
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch import Tensor, nn
from torch.utils.tensorboard.summary import custom_scalars, pr_curve

from mnist_mlp.classifier import Classifier, cross_entropy
from mnist_mlp.datamodule import InOrder, MNISTDataModule
from mnist_mlp.drawing import architecture
from mnist_mlp.drawing.architecture import Layer
from mnist_mlp.run.groups import configured
from mnist_mlp.run.identity import HASHES, PLACES, is_among, other_settings
from mnist_mlp.run.metrics import COLUMNS, METRIC, METRICS, Row
from mnist_mlp.settings import as_override
from mnist_mlp.tensorboard import pictures
from mnist_mlp.tensorboard.writer import EventWriter

THRESHOLDS = 51  # of a precision-recall curve
PROBED = 512  # training images from which the histograms of gradients and activations are made
EMBEDDED = 2000  # validation images in the projector
SHOWN = 40  # training images

# TensorBoard sorts tags by name. These begin so that they come after `val/`: the results come first.
F1_OF_DIGIT, DEAD_RELUS, GAP = "val_by_digit/f1", "val_by_layer/dead_relu", "val_minus_train/loss"
FIRST = ("val/accuracy", "val/loss", "train/loss")  # the charts on which TensorBoard opens
CHARTED = tuple(metric for metric in METRICS if metric.form not in ("count", "seconds"))
# The metrics in the HPARAMS table, of which TensorBoard shows five at first. The error is left out: it is 1 - accuracy.
HPARAMS_METRICS = (
    *("best/accuracy", "test/accuracy", *FIRST, "best/epoch"),
    *(metric.name for metric in CHARTED if metric.name.startswith("val/") and metric.name not in (*FIRST, "val/error")),
    GAP,
)


@dataclass
class Snapshot:
    """A classifier at one epoch and its predictions for the validation set, which are computed at first use.

    Args:
        classifier: with the weights of that epoch.
        data: None where the run's data module has no `splits`. Then only `first_layer` can be called.
        epoch: 0 before the first.
        run: names the network and the experiment.
        made: the validation set's logits (N, num_classes), where they are known already.
    """

    classifier: Classifier
    data: MNISTDataModule | None
    epoch: int
    run: str
    made: Tensor | None = None

    def images(self, split: str) -> Tensor:
        return self._splits[split][0]

    def labels(self, split: str) -> Tensor:
        return self._splits[split][1]

    @property
    def _splits(self) -> Mapping[Any, tuple[Tensor, Tensor]]:
        assert self.data is not None
        return self.data.splits

    @cached_property
    def logits(self) -> Tensor:
        """(N, num_classes)."""
        if self.made is not None:
            return self.made
        assert self.data is not None
        images, labels = self.images("validation"), self.labels("validation")
        twin = _twin(self.classifier.backbone).to(images.device)
        with torch.inference_mode():
            return torch.cat([twin(batch) for batch, _ in InOrder(images, labels, self.data.eval_batch_size)])

    @cached_property
    def probabilities(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(N, num_classes)."""
        return self.logits.float().softmax(dim=1).cpu().numpy()

    @cached_property
    def truth(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The labels, (N,)."""
        return self.labels("validation").cpu().numpy()

    def wrongest(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The images that `pictures.most_confidently_wrong` shows, (at most 25, 28, 28). No others leave the GPU."""
        images = self.images("validation")
        found = torch.tensor(pictures.wrongest(self.truth, self.probabilities), dtype=torch.long, device=images.device)
        return images[found].squeeze(1).cpu().numpy()

    def first_layer(self) -> Image.Image | None:
        """A picture of the first layer's weights; None where its inputs are not the pixels of a whole image."""
        modules = self.classifier.backbone.modules()
        first = next((module for module in modules if list(module.parameters(recurse=False))), None)
        if not isinstance(first, nn.Linear) or first.in_features != 28 * 28:
            return None
        weights = first.weight.detach().float().cpu().numpy()  # (units, 784)
        return pictures.first_layer_weights(weights, f"first layer, epoch {self.epoch}")


class Picture(NamedTuple):
    """One picture.

    Args:
        tag: TensorBoard's.
        draw: returns None where this classifier has nothing to draw.
        once: drawn at the start of the run, instead of every `images_every` epochs and for the best epoch.
        of_data: needs the images, and so a data module with `splits`.
    """

    tag: str
    draw: Callable[[Snapshot], Image.Image | None]
    once: bool = False
    of_data: bool = True


PICTURES = (
    Picture("run/architecture", lambda s: architecture.png(s.classifier.backbone, s.run), once=True, of_data=False),
    Picture(
        "run/training_images",
        lambda s: pictures.training_images(
            s.images("train")[:SHOWN].squeeze(1).cpu().numpy(), "training images as the network sees them"
        ),
        once=True,
    ),
    Picture(
        "val/confusion_matrix",
        lambda s: pictures.confusion_matrix(
            confusion(s.logits, s.labels("validation")), f"confusion matrix, epoch {s.epoch}"
        ),
    ),
    Picture(
        "val/most_confidently_wrong",
        lambda s: pictures.most_confidently_wrong(
            s.wrongest(), s.truth, s.probabilities, f"most confidently wrong, epoch {s.epoch}"
        ),
    ),
    Picture(
        "val/reliability",
        lambda s: pictures.reliability_diagram(s.truth, s.probabilities, f"reliability, epoch {s.epoch}"),
    ),
    Picture("weights/first_layer", Snapshot.first_layer, of_data=False),
)


def image(tag: str, picture: Image.Image) -> Summary:
    content = Summary.Image(
        width=picture.width, height=picture.height, colorspace=3, encoded_image_string=pictures.encoded(picture)
    )
    return Summary(value=[Summary.Value(tag=tag, image=content)])


def precision_recall(snapshot: Snapshot, prefix: str) -> list[Summary]:
    """One curve for each class."""
    return [
        pr_curve(f"{prefix}pr/{digit}", snapshot.truth == digit, snapshot.probabilities[:, digit], THRESHOLDS)
        for digit in range(snapshot.probabilities.shape[1])
    ]


def scalars(values: Mapping[str, float]) -> Summary:
    return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])


def epoch_scalars(row: Row, best: Row) -> dict[str, float]:
    """An epoch's row of `metrics.csv`, the gap between the losses, and the best epoch so far."""
    return {name: row[name] for name in COLUMNS[1:]} | {
        GAP: row["val/loss"] - row["train/loss"],
        "best/accuracy": best["val/accuracy"],
        "best/epoch": best["epoch"],
    }


def layout(layers: Sequence[Layer]) -> Summary:
    """The charts of the Custom Scalars tab. The first three have one line for each run. Those with two lines for each
    come next, and the diagnostics are folded.

    Args:
        layers: of the backbone.
    """
    beside: dict[str, list[str]] = {}
    for metric in CHARTED:
        if metric.chart:
            beside.setdefault(metric.chart, []).append(metric.name)
    relus = sum(layer.kind == nn.ReLU.__name__ for layer in layers)
    charts = {
        "accuracy and loss": {METRIC[name].title: [name] for name in FIRST},
        "training beside validation": beside | {"validation loss − training loss": [GAP]},
        "more": {metric.title: [metric.name] for metric in CHARTED if metric.name not in FIRST and not metric.chart},
        "F1 of each digit": {f"F1 of {digit}": [f"{F1_OF_DIGIT}/{digit}"] for digit in range(10)},
        "dead ReLUs": {f"share in hidden layer {n}": [f"{DEAD_RELUS}/{n}"] for n in range(1, relus + 1)},
    }
    summary: Summary = custom_scalars(
        {
            category: {title: ["Multiline", [f"^{tag}$" for tag in tags]] for title, tags in found.items()}  # patterns
            for category, found in charts.items()
        }
    )
    (written,) = summary.value
    layout = Layout.FromString(written.tensor.string_val[0])
    for category in layout.category[-2:]:
        category.closed = True  # which `custom_scalars` cannot say
    written.tensor.string_val[0] = layout.SerializeToString()
    return summary


def hyperparameters(
    config: DictConfig, classifier: Classifier, optimizer: torch.optim.Optimizer, layers: Sequence[Layer]
) -> dict[str, str | float]:
    """A run's row in the HPARAMS table: every run has the same columns, of the same types. What people vary comes
    first, what follows from it last.

    Args:
        layers: of the backbone; empty where they are not known.
    """
    backbone = classifier.backbone
    hidden = [layer for layer in layers if layer.parameters][:-1]
    dropouts = [module.p for module in backbone.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    schedulers = classifier.lr_schedulers()
    return {
        "experiment": str(config.experiment),
        "model": str(config.network),
        "seed": str(config.seed),  # a number would be shown as 0.0000
        "learning rate": float(optimizer.defaults.get("lr", 0.0)),  # the initial one
        "dropout": float(max(dropouts, default=0.0)),
        "batch size": float(config.data.get("batch_size", 0)),
        "epochs": float(config.trainer.max_epochs),
        "optimizer": type(optimizer).__name__,
        "scheduler": type(schedulers).__name__ if schedulers else "none",
        "hidden widths": "-".join("×".join(map(str, layer.outputs)) for layer in hidden) or "none",
        "parameters": float(sum(parameter.numel() for parameter in backbone.parameters())),
    }


def texts(config: DictConfig, record: Mapping[str, Any]) -> dict[str, str]:
    """Markdown for the Text tab, by tag; TensorBoard sorts the tags. `record` is what `run.json` holds."""
    commands = [shlex.join(["mnist-rerun", config.run_dir])]
    if HydraConfig.initialized():
        overrides = (o for o in HydraConfig.get().overrides.task if o.partition("=")[0] not in PLACES)
        commands.append(shlex.join(["mnist-train", *overrides]))
    facts = record.get("versions", {}) | {key: record.get(key) for key in ("device", "threads")} | record.get("git", {})
    return {
        "run/changed": _table("setting", "this run", "default", rows=_changed(config) or [["none", "", ""]]),
        "run/configuration": _code(OmegaConf.to_yaml(config)),
        "run/repeat_it": _code("\n".join(commands)),
        "run/versions": _table("what", "which", rows=facts.items()),
    }


def _changed(config: DictConfig) -> list[list[str]]:
    """What differs from plain `mnist-train`: setting, this run's value and the default, as the command line writes
    them. The default is the same for all runs, so that two tables also show what differs between two runs."""
    found = other_settings(config, configured("baseline", "network_a") or {})
    if config.data.get("seed") == config.seed:
        found.pop("data.seed", None)
    names = sorted((name for name in found if not is_among(name, HASHES)), key=lambda name: ("." in name, name))
    return [[name, *map(as_override, found[name])] for name in names]


def _table(*columns: str, rows: Iterable[Iterable[object]]) -> str:
    plain = ([re.sub(r"([\\`*_|<\[])", r"\\\1", str(cell)) for cell in row] for row in rows)  # not Markdown
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *plain))


def _code(content: str) -> str:
    return "\n".join(f"    {line}" for line in content.splitlines())


def confusion(logits: Tensor, labels: Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Logits (N, num_classes), labels (N,) -> counts (num_classes, num_classes), a row for each true class."""
    classes = logits.shape[1]
    places = labels * classes + logits.argmax(dim=1)
    return torch.bincount(places, minlength=classes**2).reshape(classes, classes).cpu().numpy()


def f1_scores(counts: np.ndarray[Any, np.dtype[np.int64]]) -> list[float]:
    """F1 of each class, from the confusion matrix; 0 for a class that is in neither labels nor predictions."""
    both = counts.sum(axis=0) + counts.sum(axis=1)
    scores: list[float] = (2 * counts.diagonal() / np.maximum(both, 1)).tolist()
    return scores


def _twin(backbone: nn.Module) -> nn.Module:
    """A copy in evaluation mode. The original keeps its mode, its gradients and its buffers."""
    return copy.deepcopy(backbone).eval()


def add_graph(writer: EventWriter, backbone: nn.Module) -> None:
    """Writes the Graphs tab, whose boxes are named for the backbone's modules."""
    example = torch.zeros(1, 1, 28, 28)
    # Traced here: `add_graph` would trace it three times, to check the trace.
    traced = torch.jit.trace(_twin(backbone).cpu(), example, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
    with redirect_stdout(StringIO()):  # `add_graph` prints exceptions before it raises them
        writer.add_graph(traced, example)


def add_histograms(writer: EventWriter, snapshot: Snapshot) -> None:
    """Writes histograms of the weights, and of the gradients and layers' outputs for the first training images.
    Dropout is off: two epochs differ by their weights only."""
    for tag, values in _histograms(snapshot):
        writer.add_histogram(tag, values.detach().float(), snapshot.epoch)


def _histograms(snapshot: Snapshot) -> Iterator[tuple[str, Tensor]]:
    twin = _twin(snapshot.classifier.backbone)
    outputs: dict[str, Tensor] = {}

    def note(name: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs[name] = output.detach()

    for name, module in twin.named_modules():
        if not list(module.children()):
            module.register_forward_hook(partial(note, name or type(module).__name__))
    trained = {name: parameter for name, parameter in twin.named_parameters() if parameter.requires_grad}
    with torch.enable_grad():
        loss = cross_entropy(twin(snapshot.images("train")[:PROBED]), snapshot.labels("train")[:PROBED])
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    yield from ((f"weights/{name}", parameter) for name, parameter in twin.named_parameters())
    for name, gradient in zip(trained, gradients, strict=True):
        if gradient is not None:
            yield f"gradients/{name}", gradient
    yield from ((f"activations/{name}", output) for name, output in outputs.items())


def add_embeddings(writer: EventWriter, snapshot: Snapshot) -> None:
    """Writes the inputs of the last layer with parameters, for the first validation images, with labels and images."""
    images, labels = snapshot.images("validation")[:EMBEDDED], snapshot.labels("validation")[:EMBEDDED]
    twin = _twin(snapshot.classifier.backbone).to(images.device)
    given: list[Tensor] = []
    *_, final = (module for module in twin.modules() if list(module.parameters(recurse=False)))
    final.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].flatten(1)))
    with torch.inference_mode():
        twin(images)
    for stale in Path(writer.log_dir).glob("*/penultimate"):
        shutil.rmtree(stale.parent)
    low, high = images.min(), images.max()
    writer.add_embedding(given[-1], labels.tolist(), (images - low) / (high - low), snapshot.epoch, "penultimate")
