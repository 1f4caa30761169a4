"""`mnist-backprop`: the forward and the backward pass of an expression, or of a network, shown and proved right."""

import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_mlp.backprop.derivation import Derivation, Latex, Notation, dot, latex, markdown, terminal
from mnist_mlp.backprop.expression import parse
from mnist_mlp.backprop.passes import prove, work
from mnist_mlp.run.directory import durable_write
from mnist_mlp.run.process import prepare_process
from mnist_mlp.run.refused import remove_refused
from mnist_mlp.settings import (
    BACKPROP_RULES,
    SettingError,
    check_rules,
    counted,
    defaults,
    divided,
    end,
    ended_itself,
    make_directory,
    one_sentence,
)
from mnist_mlp.surroundings import import_from_here

MAX_NODES = 60  # nobody could read a larger graph, drawn or printed


def main() -> None:
    """Runs `mnist-backprop`. Exit status: 0; 1 where a setting cannot be used; 2 for an unknown flag."""
    with one_sentence("backprop"):
        flags, overrides = divided(sys.argv[1:], "backprop")
        sys.argv[1:] = [*flags, *quote_for_hydra(overrides)]
        import_from_here()
        try:
            job()
        finally:
            remove_refused()


def quote_for_hydra(overrides: list[str]) -> list[str]:
    """The overrides in Hydra's grammar, which knows neither expressions nor settings that have no default.

    `expression=TEXT` becomes a quoted string, and removes the values of the default example. `values.NAME=` may be a
    new setting. `network=` chooses from the group `model`.
    """
    result: list[str] = []
    for override in overrides:
        setting, equals, value = override.partition("=")
        name = setting.lstrip("+") if equals else ""
        if name == "expression":
            override = f"expression={_quoted(value)}"
            if "~values" not in result:
                result.insert(0, "~values")  # before any value that is given
        elif name == "values" or name.startswith("values."):
            override = f"++{name}={value}"
        elif name == "network":
            override = f"model@network={value}"
        result.append(override)
    return result


def _quoted(text: str) -> str:
    """A text as a quoted string of Hydra's grammar, unless it is one."""
    if len(text) >= 2 and text[0] in "'\"" and text[0] == text[-1]:
        return text
    # A backslash is special only before a quote, where it must be doubled.
    escaped = re.sub(r'\\*"|\\+$', lambda m: m[0].replace("\\", r"\\").replace('"', r"\""), text)
    return f'"{escaped}"'


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
    for name in defaults("backprop"):
        if name not in ("defaults", "hydra", "values") and name not in config:
            raise SettingError(name, None, "cannot be removed: give it another value")
    check_rules(config, BACKPROP_RULES)
    if config.tensorboard and not config.draw:
        raise SettingError("tensorboard", config.tensorboard, "needs the pictures: leave draw=true")
    prepare_process(config.threads, portable=True)  # before PyTorch is imported, which is below
    results = _expression(config) if config.get("network") is None else _network(config)
    directory = Path(config.run_dir)
    make_directory(directory)
    try:
        print(results.text, flush=True)  # first: many pictures take a while
    except BrokenPipeError:  # `| head` has seen enough; what Python flushes at its end must go somewhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    pictures = results.draw() if config.draw else {}
    files = {name: text.encode() for name, text in results.files.items()} | pictures
    try:
        for kind in ("frames/frame_*", "graph.*", "network.*", "derivation.*"):
            for stale in directory.glob(kind):
                stale.unlink()  # of what this directory showed before
        for name, content in files.items():
            (directory / name).parent.mkdir(exist_ok=True)
            durable_write(directory / name, content)
        if pictures and config.tensorboard:
            _write_tensorboard(directory / "tensorboard", pictures)
    except OSError as error:
        raise SettingError("run_dir", directory, f"cannot be written ({error.strerror})") from error
    print(f"{len(files)} files in {os.path.relpath(directory)}", file=sys.stderr)
    return results.result


class Results(NamedTuple):
    """What a job returns (`result`), prints (`text`) and writes (`files`); `draw` makes the files of the pictures."""

    result: dict[str, float]
    text: str
    files: dict[str, str]
    draw: Callable[[], dict[str, bytes]]


def _expression(config: DictConfig) -> Results:
    # `quote_for_hydra` removed the default example's values where an expression came without any.
    values: Any = OmegaConf.to_container(config["values"], resolve=True) if "values" in config else {}
    passes = work(parse(config.expression), values)
    difference = prove(passes)
    count = sum(gradient is not None for gradient in passes.gradients)
    proof = (
        f"{counted(len(passes.values), 'value')} and {counted(count, 'gradient')} agree "
        "with torch.autograd in float64, but for rounding: "
        f"the largest difference is {difference:.2g}."
    )
    sections = Derivation(passes, Notation()).sections()
    files = {
        "derivation.md": markdown(passes, sections, proof),
        "derivation.tex": latex(Derivation(passes, Latex()).sections(), proof),
        "graph.dot": dot(passes),
    }
    large = len(passes.values) > MAX_NODES
    if config.print == "terminal":
        text = f"{terminal(sections[-1:] if large else sections)}\n\n{proof}"
    else:
        text = files[
            {"markdown": "derivation.md", "latex": "derivation.tex", "dot": "graph.dot"}[config.print]
        ].rstrip()

    def pictures() -> dict[str, bytes]:
        if large:
            limit = f"{len(passes.values):,} nodes are more than {MAX_NODES}"
            print(f"{limit}: not drawn; derivation.md has every step", file=sys.stderr)
            return {}
        # Here, because matplotlib takes a while to import, and a refused command answers at once.
        from mnist_mlp.backprop.graph import final, frame_figure, frames
        from mnist_mlp.backprop.layout import Layout
        from mnist_mlp.drawing.figure import png, svg

        layout, result = Layout(passes), dict[str, bytes]()
        for number, frame in enumerate([*frames(passes), final(passes)], 1):
            name = f"frames/frame_{number:03}" if frame.new else "graph"
            figure = frame_figure(layout, frame)
            result |= {f"{name}.png": png(figure), f"{name}.svg": svg(figure)}
        return result

    gradients = {passes.graph.nodes[index].name: passes.gradients[index] or 0.0 for index in passes.inputs()}
    return Results(gradients, text, files, pictures)


def _network(config: DictConfig) -> Results:
    if config.print not in ("terminal", "markdown"):
        raise SettingError("print", config.print, "must be terminal or markdown for a network")
    # Here, because torch takes seconds to import, and a refused command answers at once.
    from mnist_mlp.backprop.network import configured_passes, network_figure, network_markdown

    try:
        passes = configured_passes(config)
    except SystemExit as error:
        raise ended_itself(error) from error
    text = network_markdown(passes)

    def pictures() -> dict[str, bytes]:
        from mnist_mlp.drawing.figure import png, svg

        figure = network_figure(passes)
        return {"network.png": png(figure), "network.svg": svg(figure)}

    return Results({"loss": passes.loss}, text, {"network.md": f"{text}\n"}, pictures)


def _write_tensorboard(directory: Path, pictures: dict[str, bytes]) -> None:
    import numpy as np
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(directory), purge_step=1) as writer:  # the same run_dir again shows the new pictures only
        for step, name in enumerate((name for name in pictures if name.endswith(".png")), 1):
            pixels = np.asarray(Image.open(io.BytesIO(pictures[name])).convert("RGB"))
            writer.add_image("backprop", pixels, step, dataformats="HWC")
