"""The console scripts. This imports next to nothing: Ctrl-C while the rest is imported then leaves no traceback."""

from collections.abc import Callable
from importlib import import_module

from mnist_mlp.surroundings import interruptible


def _main_of(module: str) -> Callable[[], None]:
    def run() -> None:
        with interruptible():
            command = import_module(module).main
        command()

    return run


train = _main_of("mnist_mlp.cli")
evaluate = _main_of("mnist_mlp.evaluate")
report = _main_of("mnist_mlp.report.command")
benchmark = _main_of("mnist_mlp.benchmark.command")
compare = _main_of("mnist_mlp.compare")
rerun = _main_of("mnist_mlp.rerun")
predict = _main_of("mnist_mlp.predict")
backprop = _main_of("mnist_mlp.backprop.command")
tensorboard = _main_of("mnist_mlp.tensorboard.serve")
