"""One image's way through a network and back, layer by layer: norms, dead ReLUs, and ∂loss/∂logits by hand."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from hydra.utils import instantiate
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor, nn

from mnist_mlp.classifier import cross_entropy
from mnist_mlp.drawing.figure import defaults
from mnist_mlp.seeds import stream_seed
from mnist_mlp.settings import SettingError
from mnist_mlp.surroundings import one_line

TOLERANCE = 1e-12  # between ∂loss/∂logits by hand and by autograd; each of its entries lies within -1..1
FORWARD, BACKWARD, DEAD = "#1a4f9c", "#b3261e", "#777777"


class LayerPasses(NamedTuple):
    """One layer's part in both passes. Norms are Euclidean, over all entries."""

    name: str
    shape: tuple[int, ...]  # of its output, without the batch
    activation: float  # norm of its output
    gradient: float  # norm of ∂loss/∂output
    weights: float | None  # norm of ∂loss/∂parameters; None where it has none
    dead: float | None  # share of a ReLU's outputs that are 0 for this image, and so pass nothing on


class NetworkPasses(NamedTuple):
    """Both passes of one image through a network; tensors are (28, 28) or (num_classes,), float64."""

    title: str
    image: Tensor
    label: int
    loss: float
    layers: list[LayerPasses]
    probabilities: Tensor  # softmax of the logits
    by_hand: Tensor  # ∂loss/∂logits: softmax - onehot
    difference: float  # from autograd's, the largest


def configured_passes(config: DictConfig) -> NetworkPasses:
    """Both passes of one validation image through a freshly initialized network, in float64 and evaluation mode.

    Args:
        config: as `conf/backprop.yaml` composes it; `network`, `data`, `sample` and `seed` matter.

    Raises:
        SettingError: there is no such image, or the network makes no logits of it.
    """
    datamodule = instantiate(config.data)
    datamodule.setup()
    images, labels = datamodule.splits["validation"]
    if config.sample >= len(labels):
        raise SettingError("sample", config.sample, f"must be below the {len(labels):,} validation images")
    torch.manual_seed(stream_seed(config.seed, "weights"))
    network = instantiate(config.network).double().eval()
    label = int(labels[config.sample])
    name = config.network.get("_target_", "network").rpartition(".")[2]
    title = f"untrained {name}, validation image {config.sample}"
    return network_passes(network, images[config.sample : config.sample + 1].double(), label, title)


def network_passes(network: nn.Module, image: Tensor, label: int, title: str) -> NetworkPasses:
    """Both passes of one image (1, 1, 28, 28); changes the gradients of the network's parameters.

    Raises:
        SettingError: the network does not make (1, num_classes) logits of it, or ∂loss/∂logits is not autograd's.
    """
    kind = type(network).__name__
    image = image.clone().requires_grad_()
    network.zero_grad()
    with _outputs(network) as outputs:
        try:
            logits = network(image)
        except Exception as error:  # whatever a user's forward raises
            raise SettingError("network", kind, f"cannot take an image of 28x28 ({one_line(error)})") from error
    if logits.dim() != 2 or len(logits) != 1 or logits.shape[1] <= label:
        raise SettingError("network", kind, f"must make logits (1, 10) of an image, not {tuple(logits.shape)}")
    logits.retain_grad()
    loss = cross_entropy(logits, torch.tensor([label]))
    loss.backward()  # type: ignore[no-untyped-call]

    # By hand: loss = log Σ exp(z) - z[label], hence ∂loss/∂z = exp(z) / Σ exp(z) - onehot(label).
    z = logits[0].detach()
    powers = (z - z.max()).exp()
    probabilities = powers / powers.sum()
    onehot = torch.zeros_like(z)
    onehot[label] = 1
    by_hand = probabilities - onehot
    difference = (by_hand - logits.grad[0]).abs().max().item()
    if not difference <= TOLERANCE:
        raise SettingError("network", kind, f"softmax - onehot is {difference:g} from autograd's")

    layers = [LayerPasses("image", tuple(image.shape[1:]), _norm(image), _norm(image.grad), None, None)]
    layers += [_layer_passes(*output) for output in outputs]
    return NetworkPasses(title, image[0, 0].detach(), label, loss.item(), layers, probabilities, by_hand, difference)


@contextmanager
def _outputs(network: nn.Module) -> Iterator[list[tuple[str, nn.Module, Tensor]]]:
    """Collects the outputs of the leaf modules, with their names, as the network works; they keep their gradients."""
    outputs: list[tuple[str, nn.Module, Tensor]] = []

    def note(name: str, module: nn.Module, _: object, output: Tensor) -> None:
        output.retain_grad()
        outputs.append((name, module, output))

    leaves = [(name, module) for name, module in network.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(partial(note, name)) for name, module in leaves]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _layer_passes(name: str, module: nn.Module, output: Tensor) -> LayerPasses:
    own = [parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None]
    return LayerPasses(
        f"{name} {type(module).__name__}".strip(),
        tuple(output.shape[1:]),
        _norm(output),
        _norm(output.grad),
        _norm(torch.cat(own)) if own else None,
        (output == 0).double().mean().item() if isinstance(module, nn.ReLU) else None,
    )


def _norm(tensor: Tensor | None) -> float:
    return 0.0 if tensor is None else torch.linalg.vector_norm(tensor).item()


def network_markdown(passes: NetworkPasses) -> str:
    """Two tables in Markdown: the layers, and ∂loss/∂logits. They are aligned, so that a terminal can show them."""
    rows = [["layer", "output", "‖activation‖", "‖∂loss/∂activation‖", "‖∂loss/∂weights‖", "dead ReLUs"]]
    for layer in passes.layers:
        shape = "×".join(map(str, layer.shape))
        weights = "" if layer.weights is None else f"{layer.weights:.4g}"
        dead = "" if layer.dead is None else f"{layer.dead:.1%}"
        rows.append([layer.name, shape, f"{layer.activation:.4g}", f"{layer.gradient:.4g}", weights, dead])
    logits = [["digit", "softmax", "onehot", "∂loss/∂logit"]]
    for digit, (probability, slope) in enumerate(
        zip(passes.probabilities.tolist(), passes.by_hand.tolist(), strict=True)
    ):
        logits.append([str(digit), f"{probability:.6f}", str(int(digit == passes.label)), f"{slope:.6f}"])
    parts = [
        f"{passes.title}: the digit {passes.label}, loss {passes.loss:.6g}",
        _aligned(rows),
        "∂loss/∂logits = softmax - onehot",  # as code would have it
        _aligned(logits),
        f"It agrees with torch.autograd in float64: largest difference {passes.difference:.2g}, allowed {TOLERANCE:g}.",
    ]
    return "\n\n".join(parts)


def _aligned(rows: list[list[str]]) -> str:
    """A Markdown table: the first row is its head, the first column flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: list[str]) -> str:
        first, *others = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        return f"| {' | '.join([first.strip().ljust(widths[0]), *others])} |"

    return "\n".join(map(line, [rows[0], rule, *rows[1:]]))


@defaults()
def network_figure(passes: NetworkPasses) -> Figure:
    """Draws the image, the norms layer by layer, the dead ReLUs, and ∂loss/∂logits."""
    figure = Figure(figsize=(15, 2.2 + 0.32 * max(len(passes.layers), 10)), dpi=110, layout="constrained")
    picture, activations, gradients, dead, logits = figure.subplots(1, 5, width_ratios=[2, 2.4, 2.4, 1.6, 2.4])
    figure.suptitle(f"{passes.title}: the digit {passes.label}, loss {passes.loss:.4g}")
    picture.imshow(passes.image.numpy(), cmap="gray_r")
    picture.set(title="the image", xticks=[], yticks=[])
    names = [layer.name for layer in passes.layers]
    places = range(len(names))
    panels: list[tuple[Axes, str, str, Sequence[float | None], str]] = [
        (activations, "‖activation‖, forward", FORWARD, [layer.activation for layer in passes.layers], "{:.3g}"),
        (gradients, "‖∂loss/∂activation‖, backward", BACKWARD, [layer.gradient for layer in passes.layers], "{:.3g}"),
        (dead, "dead ReLUs", DEAD, [layer.dead for layer in passes.layers], "{:.0%}"),
    ]
    for axes, title, color, values, form in panels:
        bars = axes.barh(places, [value or 0.0 for value in values], color=color)
        axes.bar_label(bars, ["" if value is None else form.format(value) for value in values], padding=3, fontsize=9)
        axes.margins(x=0.25)
        axes.set(title=title, xticks=[], yticks=places, yticklabels=names if axes is activations else [""] * len(names))
        axes.invert_yaxis()
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    dead.set_xlim(0, 1.3)
    digits = range(len(passes.by_hand))
    bars = logits.barh(digits, passes.by_hand.numpy(), color=BACKWARD)
    logits.bar_label(bars, [f"{slope:+.3f}" for slope in passes.by_hand.tolist()], padding=3, fontsize=9)
    logits.margins(x=0.4)
    logits.tick_params(length=0)
    logits.axvline(0, color="black", linewidth=0.8)
    logits.set(title="∂loss/∂logits = softmax − onehot", yticks=digits, xticks=[])
    logits.invert_yaxis()
    logits.spines[["top", "right", "bottom", "left"]].set_visible(False)
    return figure
