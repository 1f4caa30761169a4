"""`mnist-backprop`: the forward and the backward pass of an expression, or of a network, shown and proved right."""

import io
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_mlp.derivation import Derivation, Latex, Text, dot, latex, markdown, terminal
from mnist_mlp.expression import parse
from mnist_mlp.passes import TOLERANCE, prove, work
from mnist_mlp.rundir import durable_write
from mnist_mlp.settings import BACKPROP_RULES, SettingError, check, end, make_directory, one_sentence

MAX_NODES = 60  # more can be neither drawn nor printed so that anyone could read it


def main() -> None:
    """Runs `mnist-backprop`. Exit status: 0; 1 where a setting cannot be used; 2 for an unknown flag."""
    sys.path.append(os.getcwd())  # as for mnist-train: a backbone's class may lie beside where its user works
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without ∂ shows a question mark
    sys.argv[1:] = quote_for_hydra(sys.argv[1:])
    with one_sentence("backprop"):
        job()


def quote_for_hydra(arguments: list[str]) -> list[str]:
    """The command line in Hydra's grammar, which knows neither expressions nor settings that have no default.

    `expression=TEXT` becomes a quoted string unless it is one, and takes the default example's values away;
    `values.NAME=` may be new; `network=` chooses from the group `model`.
    """
    result: list[str] = []
    for argument in arguments:
        setting, equals, value = argument.partition("=")
        name = setting.lstrip("+")
        if equals and name == "expression":
            if len(value) < 2 or value[0] not in "'\"" or value[0] != value[-1]:
                # A backslash is special only before a quote, where it must be doubled.
                escaped = re.sub(r'\\*"|\\+$', lambda m: m[0].replace("\\", r"\\").replace('"', r"\""), value)
                value = f'"{escaped}"'
            argument = f"expression={value}"
            if "~values" not in result:
                result.insert(next((i for i, other in enumerate(result) if "=" in other), len(result)), "~values")
        elif equals and (name == "values" or name.startswith("values.")):
            argument = f"++{name}={value}"
        elif equals and name == "network":
            argument = f"model@network={value}"
        result.append(argument)
    return result


@hydra.main(version_base="1.3", config_path="pkg://mnist_mlp.conf", config_name="backprop")
def job(config: DictConfig) -> dict[str, float]:
    """One Hydra job; in a sweep each has a directory of its own."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        config.run_dir = HydraConfig.get().runtime.output_dir
    try:
        return backprop(config)
    except (SettingError, InstantiationException, OmegaConfBaseException) as error:
        end(error, "backprop")  # here, where Hydra does not put words of its own before it


def backprop(config: DictConfig) -> dict[str, float]:
    """Works out the expression or the network of a configuration, writes the files and prints what `print` says.

    Args:
        config: as `conf/backprop.yaml` composes it, without Hydra's own node.

    Returns:
        The gradient by each input of the expression, by name; of a network, its `loss`.

    Raises:
        SettingError: something cannot be used; nothing has been written then.
    """
    check(config, BACKPROP_RULES)
    if config.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(config.threads)  # read when torch is first imported, which is below
    shown = _expression(config) if config.get("network") is None else _network(config)
    directory = Path(config.run_dir)
    make_directory(directory)
    try:
        _write(directory, shown)
        if config.tensorboard:
            _write_tensorboard(directory / "tensorboard", shown.pictures)
    except OSError as error:
        raise SettingError("run_dir", directory, f"cannot be written ({error.strerror})") from error
    print(shown.printed[config.print])
    for line in [*shown.remarks, f"{len(shown.files)} files in {os.path.relpath(directory)}"]:
        print(line, file=sys.stderr)
    return shown.result


class Shown(NamedTuple):
    """What there is to show: by what `print` can say, by file name, and the PNG pictures in their order."""

    result: dict[str, float]
    printed: dict[str, str]
    files: dict[str, bytes]
    pictures: list[bytes]
    remarks: list[str]


def _expression(config: DictConfig) -> Shown:
    # The default example's values are gone where an expression came without any.
    values: Any = OmegaConf.to_container(config["values"], resolve=True) if "values" in config else {}
    passes = work(parse(config.expression), values)
    difference = prove(passes)
    count = sum(gradient is not None for gradient in passes.gradients)
    proof = (
        f"{len(passes.values)} values and {count} gradients agree with torch.autograd in float64: "
        f"largest difference {difference:.2g}, allowed {TOLERANCE:g} relative to the terms summed up."
    )
    sections = Derivation(passes, Text()).sections()
    document = markdown(passes, sections, proof)
    files = {
        "derivation.md": document,
        "derivation.tex": latex(Derivation(passes, Latex()).sections(), proof),
        "graph.dot": dot(passes),
    }
    printed = {
        "terminal": f"{terminal(sections)}\n\n{proof}",
        "markdown": document.rstrip(),
        "latex": files["derivation.tex"].rstrip(),
        "dot": files["graph.dot"].rstrip(),
    }
    shown = Shown(
        {passes.graph.nodes[index].name: passes.gradients[index] or 0.0 for index in passes.inputs()},
        printed,
        {name: text.encode() for name, text in files.items()},
        [],
        [],
    )
    if len(passes.values) > MAX_NODES:
        printed["terminal"] = f"{terminal(sections[-1:])}\n\n{proof}"
        shown.remarks.append(
            f"{len(passes.values):,} nodes are more than {MAX_NODES}: not drawn, and only the gradients printed; "
            "derivation.md has every step"
        )
    elif config.draw:
        from mnist_mlp.graph_figure import Layout, draw, final, frames, png, svg

        layout = Layout(passes)
        for number, frame in enumerate([*frames(passes), final(passes)], 1):
            name = f"frames/frame_{number:02}" if frame.new else "graph"
            figure = draw(layout, frame)
            shown.pictures.append(png(figure))
            shown.files.update({f"{name}.png": shown.pictures[-1], f"{name}.svg": svg(figure)})
    return shown


def _network(config: DictConfig) -> Shown:
    from mnist_mlp.network_view import draw, table, view

    if config.print not in ("terminal", "markdown"):
        raise SettingError("print", config.print, "must be terminal or markdown for a network")
    layers = view(config)
    text = table(layers)
    shown = Shown({"loss": layers.loss}, {config.print: text}, {}, [], [])
    shown.files["network.md"] = (text + "\n").encode()
    if config.draw:
        from mnist_mlp.graph_figure import png, svg

        figure = draw(layers)
        shown.pictures.append(png(figure))
        shown.files.update({"network.png": shown.pictures[0], "network.svg": svg(figure)})
    return shown


def _write(directory: Path, shown: Shown) -> None:
    for kind in ("frames/frame_*", "graph.*", "network.*", "derivation.*"):
        for stale in directory.glob(kind):
            stale.unlink()  # of an expression that this directory showed before
    for name, content in shown.files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        durable_write(directory / name, content)


def _write_tensorboard(directory: Path, pictures: list[bytes]) -> None:
    import numpy as np
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(directory), purge_step=1) as writer:  # the same run_dir again shows the new pictures only
        for step, picture in enumerate(pictures, 1):
            pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
            writer.add_image("backprop", pixels, step, dataformats="HWC")


if __name__ == "__main__":
    main()
