"""`mnist-benchmark`: the training loop beside its peers, on the real images, in one run."""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise, product
from math import ceil
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mnist_mlp.run.directory import durable_write
from mnist_mlp.settings import SettingError, check_accelerator, make_directory, one_sentence

PLAIN, JAX = "plain tensor loop", "JAX lax.scan"
OURS = ("this project", "this project, compiled", "this project, eager")
NETWORKS = ("network_a", "network_b")
SETUPS = {
    "Network A": ["model=network_a"],
    "Network B": ["model=network_b"],
    "Network A, dropout 0.3": ["model=network_a", "model.dropout=0.3"],
    "Network B, dropout 0.3": ["model=network_b", "model.dropout=0.3"],
}
ON_GPU = ("Network A", "Network B")  # of the setups, those that are measured there
PEERS = {"scikit-learn": "sklearn", "jax": "jax"}  # the extra `benchmark`, by the names of their modules
SECTIONS = ("peers", "sweep", "steady")

Epoch = dict[str, Any]  # seconds to `train` and of the `whole` epoch, bytes of `memory`


def main() -> None:
    """Runs `mnist-benchmark`. Exit status: 0, or 1 where something could not be measured."""
    parser = argparse.ArgumentParser(prog="mnist-benchmark", description=__doc__)
    parser.add_argument(
        "sections",
        metavar="SECTION",
        nargs="*",
        help="peers: seconds per epoch beside other ways to train. sweep: four runs, two at a time with a thread each, "
        "and one by one with two. steady: epoch 200 beside epoch 5. (default: all)",
    )
    parser.add_argument("--epochs", type=int, default=7, help="measured of each contender (default: %(default)s)")
    parser.add_argument(
        "--device", choices=("cpu", "gpu"), default="cpu", help="gpu: peers, on CUDA's first GPU (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of each contender (default: %(default)s)")
    parser.add_argument("--output", metavar="DIR", type=Path, help="(default: logs/benchmark/ and the time)")
    arguments = parser.parse_args()
    with one_sentence():
        for section in arguments.sections:
            if section not in SECTIONS:
                raise SettingError("SECTION", section, f"must be one of {', '.join(SECTIONS)}")
        for name in ("epochs", "threads"):
            if getattr(arguments, name) < 1:
                raise SettingError(f"--{name}", getattr(arguments, name), "must be at least 1")
        if arguments.device == "gpu":
            check_accelerator("cuda")
            if others := [section for section in arguments.sections if section != "peers"]:
                raise SettingError("SECTION", others[0], "is measured on a CPU: with --device gpu give peers, or none")
            arguments.sections = ["peers"]
        output = arguments.output or Path("logs/benchmark") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
        make_directory(output, "--output")
        sections = arguments.sections or SECTIONS
        sys.exit(benchmark(sections, arguments.epochs, arguments.threads, output, arguments.device))


def benchmark(sections: Sequence[str], epochs: int, threads: int, output: Path, device: str = "cpu") -> int:
    """Measures, prints tables and saves `benchmark.json` and `benchmark.png` in the directory `output`.

    Returns:
        The exit status: 1 where a contender failed.
    """
    import torch

    from mnist_mlp.run.provenance import device_name, git_state, versions

    console = Console(width=max(Console().width, 120))  # for the tables
    results: dict[str, Any] = {
        "device": device_name(torch.device("cuda" if device == "gpu" else "cpu")),
        "cores": os.cpu_count(),
        "threads": threads,
        "versions": versions() | {package: version(package) for package in PEERS if find_spec(PEERS[package])},
        "git": git_state(),
    }
    status = 0
    if "peers" in sections:
        results["peers"] = {}
        for name, overrides in SETUPS.items():  # each is shown and saved as soon as it is measured
            if device == "gpu" and name not in ON_GPU:
                continue
            results["peers"][name] = measured = peers(name, epochs, threads, console, device)
            console.print(seconds_table(name, measured, digits=2 if device == "cpu" else 4))
            if device == "cpu" and (
                share := peak_share(overrides, after_the_first(measured).get(OURS[0], []), threads)
            ):
                results.setdefault("peak_share", {})[name] = share
                console.print(f"{OURS[0]}: {share:.0%} of the fused multiply-adds that this processor can make")
            sys.stdout.flush()
            durable_write(output / "benchmark.json", json.dumps(results, indent=1).encode())
            status |= any("error" in epoch for epochs_of in measured.values() for epoch in epochs_of)
        chart(results["peers"], output / "benchmark.png")
    if "sweep" in sections:
        results["sweep"] = sweep(console)
    if "steady" in sections:
        results["steady"] = steady(threads, console)
    durable_write(output / "benchmark.json", json.dumps(results, indent=1).encode())
    console.print(f"Saved in {output}", soft_wrap=True)
    return status


class Contender:
    """A contender's process. It trains one epoch at each call of `epoch` and waits in between.

    Args:
        name: of `CONTENDERS`.
        overrides: of `mnist-train`'s configuration.
    """

    def __init__(self, name: str, overrides: Sequence[str], threads: int) -> None:
        from mnist_mlp.benchmark.peers import contend

        self.name = name
        # Read when the process first imports a library that uses it. prepare_process would also pin MKL and PyTorch to
        # what every CPU computes alike, which slows whatever multiplies with them: the peers, which nobody runs so, and
        # this project's eager steps beside them. Native steps, the default, use neither.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        context = multiprocessing.get_context("spawn")  # its own threads and its own state of the floating-point unit
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=contend, args=(name, overrides, threads, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def epoch(self) -> Epoch:
        try:
            self.connection.send(True)
            epoch: Epoch = self.connection.recv()
        except (EOFError, BrokenPipeError):
            epoch = {"error": "its process ended"}
        return epoch

    def close(self) -> None:
        self.connection.close()
        self.process.join(10)
        self.process.kill()
        self.process.join()


@contextmanager
def contenders(names: Sequence[str], overrides: Sequence[str], threads: int) -> Iterator[list[Contender]]:
    started = [Contender(name, overrides, threads) for name in names]
    try:
        yield list(started)
    finally:
        for contender in started:
            contender.close()


def peers(setup: str, epochs: int, threads: int, console: Console, device: str = "cpu") -> dict[str, list[Epoch]]:
    """The epochs of each contender; the first is a warm-up. They take turns, so that all see the same machine."""
    from mnist_mlp.benchmark.peers import CONTENDERS, ON_GPU, WITH_DROPOUT

    names = WITH_DROPOUT if "dropout" in setup else tuple(ON_GPU if device == "gpu" else CONTENDERS)
    measured: dict[str, list[Epoch]] = {name: [] for name in names}
    with contenders(names, [*SETUPS[setup], f"trainer.accelerator={device}"], threads) as running:
        for number in range(epochs + 1):
            with console.status(f"{setup}: epoch {number} of {epochs}"):
                for contender in list(running):
                    measured[contender.name].append(contender.epoch())
                    if "error" in measured[contender.name][-1]:
                        running.remove(contender)
                running.reverse()  # there and back: nobody is always first
    return measured


def peak_share(overrides: Sequence[str], epochs: Sequence[Epoch], threads: int) -> float | None:
    """The fused multiply-adds of a native training epoch over those that its threads could make on registers alone.

    The first layer's are counted for the pixels that it takes, which are those that differ from the background. None
    where there are no native steps.
    """
    from hydra.utils import instantiate

    from mnist_mlp.settings import compose_config
    from mnist_mlp.steps import native

    if not epochs or native.available() is not None:
        return None
    config = compose_config(list(overrides))
    datamodule = instantiate(config.data)
    datamodule.setup()
    data = native.NativeImages(*datamodule.splits["train"])
    widths = [data.pixels.shape[1], *config.model.hidden, data.num_classes]
    first, *others = (one * other for one, other in pairwise(widths))
    pixels = 1.0 if data.starts is None else float(data.starts[-1]) / data.pixels.numel()
    made: float = len(data) * (
        2 * pixels * first + 3 * sum(others)
    )  # forward and weights; not the gradient of the images
    seconds = float(median(epoch["train"] for epoch in epochs))
    return made / seconds / (threads * native.peak_rate())


def seconds_table(setup: str, measured: dict[str, list[Epoch]], digits: int = 2) -> Table:
    """Seconds per epoch, fastest first, with ratios to JAX and to the plain loop in the same round. A whole epoch is
    compared with its own training.

    In Markdown, mean ± standard deviation over the epochs after the first.
    """
    view = Table(title=f"{setup}, seconds per training epoch", box=box.MARKDOWN)
    for column in ("", "seconds", "× JAX", "× plain loop", "whole epoch", "× its training"):
        view.add_column(column, justify="left" if not column else "right", no_wrap=True)
    rows = after_the_first(measured)
    for name, epochs in sorted(rows.items(), key=lambda row: median(epoch["train"] for epoch in row[1])):
        wholes = [epoch["whole"] for epoch in epochs]
        cells = [spread([epoch["train"] for epoch in epochs], digits)]
        cells += [spread(ratios(epochs, rows.get(other, []))) for other in (JAX, PLAIN)]
        cells += ["", ""] if None in wholes else [spread(wholes, digits), spread(ratios(epochs, epochs, "whole"))]
        view.add_row(name, *cells)
    for name, epochs in measured.items():
        if "error" in epochs[-1]:
            view.add_row(name, f"not measured: {epochs[-1]['error']}")
    return view


def after_the_first(measured: dict[str, list[Epoch]]) -> dict[str, list[Epoch]]:
    """The epochs after the warm-up, of each contender that did not fail."""
    return {name: epochs[1:] for name, epochs in measured.items() if len(epochs) > 1 and "error" not in epochs[-1]}


def ratios(epochs: Sequence[Epoch], others: Sequence[Epoch], key: str = "train") -> list[float]:
    """The seconds of one contender over those of another, round by round."""
    return [epoch[key] / other["train"] for epoch, other in zip(epochs, others, strict=False)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    if not values:
        return ""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def chart(networks: dict[str, dict[str, list[Epoch]]], path: Path) -> None:
    """Seconds per training epoch as bars, one panel a network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6 * ceil(len(networks) / 2)), layout="constrained")
    panels = figure.subplots(ceil(len(networks) / 2), 2, squeeze=False).flatten()
    for axes, (network, measured) in zip(panels, networks.items(), strict=False):
        rows = after_the_first(measured)
        seconds = {name: median(epoch["train"] for epoch in epochs) for name, epochs in rows.items()}
        names = sorted(seconds, key=lambda name: -seconds[name])
        colors = ["tab:orange" if name in OURS else "tab:gray" for name in names]
        bars = axes.barh(names, [seconds[name] for name in names], color=colors)
        axes.bar_label(bars, fmt="%.3g", padding=3)
        axes.set(title=network, xlabel="seconds per training epoch")
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def sweep(console: Console) -> dict[str, Any]:
    """Seconds of four runs of 10 epochs: two at a time with one thread each, and one after the other with two."""
    jobs = list(product(("baseline", "dropout_scheduler"), NETWORKS))

    def seconds(at_a_time: int, threads: int) -> float:
        with console.status(f"four runs, {at_a_time} at a time"), tempfile.TemporaryDirectory() as directory:

            def train(job: tuple[str, str]) -> None:
                experiment, network = job
                overrides = [f"experiment={experiment}", f"model={network}", f"threads={threads}"]
                overrides += ["trainer.max_epochs=10", f"run_dir={directory}/{experiment}-{network}"]
                subprocess.run([sys.executable, "-m", "mnist_mlp.cli", *overrides], check=True, capture_output=True)

            start = time.perf_counter()
            with ThreadPoolExecutor(at_a_time) as pool:
                list(pool.map(train, jobs))
            return time.perf_counter() - start

    side_by_side, one_by_one = seconds(2, threads=1), seconds(1, threads=2)
    console.print(
        f"four runs of 10 epochs: {side_by_side:.0f} s two at a time with one thread each, {one_by_one:.0f} s one by "
        f"one with two: {side_by_side / one_by_one:.2f} ×"
    )
    return {"side_by_side": side_by_side, "one_by_one": one_by_one}


def steady(threads: int, console: Console, first: int = 5, late: int = 200, rounds: int = 20) -> dict[str, Any]:
    """Epoch `late` of this project beside epoch `first` of another run of it, in turns; and the memory between them."""
    results = {}
    for network in NETWORKS:
        with contenders([OURS[0], OURS[0]], [f"model={network}", "trainer.accelerator=cpu"], threads) as (young, old):
            with console.status(f"{network}: {late} epochs"):
                past = [old.epoch() for _ in range(late - 1)]
                for _ in range(first - 1):
                    young.epoch()
            pairs = [(young.epoch(), old.epoch()) for _ in range(rounds)]
        late_over_first = [b["whole"] / a["whole"] for a, b in pairs]
        growth = (pairs[-1][1]["memory"] - past[first - 1]["memory"]) / 2**20
        results[network] = {"late_over_first": late_over_first, "growth_mib": growth}
        console.print(
            f"{network}: epochs {late} to {late + rounds - 1} take {median(late_over_first):.2f} × the time of epochs "
            f"{first} to {first + rounds - 1} (median; {spread(late_over_first)}); memory grew by {growth:.1f} MiB"
        )
    return results
