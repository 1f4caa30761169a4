"""The console scripts. This imports next to nothing: Ctrl-C while the rest is imported then leaves no traceback."""

from importlib import import_module

from mnist_mlp.surroundings import interruptible


def _run(module: str) -> None:
    with interruptible():
        command = import_module(module).main
    command()


def train() -> None:
    _run("mnist_mlp.cli")


def evaluate() -> None:
    _run("mnist_mlp.evaluate")


def report() -> None:
    _run("mnist_mlp.report.command")


def benchmark() -> None:
    _run("mnist_mlp.benchmark.command")


def compare() -> None:
    _run("mnist_mlp.compare")


def rerun() -> None:
    _run("mnist_mlp.rerun")


def predict() -> None:
    _run("mnist_mlp.predict")


def backprop() -> None:
    _run("mnist_mlp.backprop.command")


def tensorboard() -> None:
    _run("mnist_mlp.tensorboard.serve")
