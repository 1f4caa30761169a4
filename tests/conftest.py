"""Fixtures: a thousand real images in torchvision's layout, and one short run that many tests look at."""

import gzip
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_mlp.run.process import prepare_process

assert "torch" not in sys.modules, "what is imported above, or a plugin of pytest, imports PyTorch: it comes too early"
prepare_process(threads=None, portable=True)  # as mnist-train does, before PyTorch is imported
from forked import Server
from helpers import PACKAGE_FILES, Command, Runner
from hydra.core.hydra_config import HydraConfig

from mnist_mlp.settings import compose_config
from mnist_mlp.train import train

SIZES = {"train": 1200, "t10k": 350}  # 350 is no multiple of the evaluation batch below: its last batch is uneven


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=3, help="of test_torture.py, by each of two signals")
    parser.addoption("--kill-seed", type=int, help="of their moments; random where it is not given")
    parser.addoption("--fuzz", type=int, default=1, help="of what is made up: how many times as many rounds")
    parser.addoption("--fuzz-seed", type=int, default=0, help="of what is damaged, and how")
    parser.addoption(
        "--logs", type=Path, help="of test_browser.py: runs to look at, in place of a small sweep of its own"
    )
    parser.addoption("--screenshots", type=Path, help="of test_browser.py: where to save them")


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> Callable[[int], Iterator[random.Random]]:
    """So many generators, each with a seed of its own: a failure names its number."""

    def made(count: int) -> Iterator[random.Random]:
        for number in range(count * request.config.getoption("--fuzz")):
            yield random.Random(f"{request.config.getoption('--fuzz-seed')} {request.node.name} {number}")

    return made


@pytest.fixture(autouse=True)
def no_hydra_job() -> Iterator[None]:
    """Hydra, and what composes jobs, leaves its configuration behind, as a process that ends may. This one goes on."""
    yield
    HydraConfig.instance().cfg = None


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 1,200 training and 350 test images of MNIST, as `data.root` takes them."""
    root = tmp_path_factory.mktemp("tiny")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for half, count in SIZES.items():
        # An IDX file: magic number, one big-endian 32-bit size per dimension, then the bytes.
        for kind, header, item in (("images-idx3", 16, 784), ("labels-idx1", 8, 1)):
            content = gzip.decompress((PACKAGE_FILES / f"{half}-{kind}-ubyte.gz").read_bytes())
            content = content[:4] + count.to_bytes(4, "big") + content[8 : header + count * item]
            (raw / f"{half}-{kind}-ubyte").write_bytes(content)
    return root


@pytest.fixture(scope="session")
def tiny(tiny_root: Path) -> list[str]:
    """Overrides for a run that takes a second."""
    return [
        f"data.root={tiny_root}",
        "data.sha256=null",
        "data.test_size=200",
        "data.eval_batch_size=100",
        "trainer.max_epochs=3",
    ]


@pytest.fixture(scope="session")
def run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """`run("model=network_b", ...)` trains on the tiny images in this process: (run directory, run.json)."""

    def start(*overrides: str) -> tuple[Path, dict[str, Any]]:
        given = dict(override.split("=", 1) for override in overrides)
        run_dir = Path(given.get("run_dir") or tmp_path_factory.mktemp("run") / "run")
        record = train(compose_config([*tiny, f"run_dir={run_dir}", *overrides]))
        return run_dir, record

    return start


@pytest.fixture(scope="session")
def finished(run: Runner) -> tuple[Path, dict[str, Any]]:
    """A run with dropout, for every test that only reads."""
    return run("experiment=dropout_as_run")


@pytest.fixture(scope="session")
def commands() -> Iterator[Server]:
    """The process from which `command` forks; for a command that is watched or stopped."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def command(tmp_path: Path, commands: Server) -> Command:
    """`command("mnist-train", ...)` runs a console script in `tmp_path`, in a process that is forked for it."""

    def start(name: str, *arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
        process = commands.start(name, [*map(str, arguments)], tmp_path, {**os.environ, **environment})
        said = process.communicate(timeout=240)
        return subprocess.CompletedProcess([name, *arguments], process.wait(0), *said)

    return start


@pytest.fixture
def script(tmp_path: Path) -> Command:
    """`script("mnist-train", ...)` runs a console script in `tmp_path` as a user would, imports and all."""

    def start(name: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        script = Path(sys.executable).with_name(name)
        return subprocess.run(
            [script, *arguments],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return start
