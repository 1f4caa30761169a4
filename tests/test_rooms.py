"""The rooms of the package: an add-on is a folder that can be deleted."""

import shutil
import subprocess
import sys
from pathlib import Path

from helpers import ROOT

REMOVABLE = ("backprop", "benchmark", "report")
# Imports every module that is left, and trains; without an add-on its command is gone, and nothing else.
CODE = """
import importlib, pathlib, pkgutil, sys
import mnist_mlp
assert mnist_mlp.__file__.startswith(sys.argv[1])
left = [module.name for module in pkgutil.walk_packages(mnist_mlp.__path__, "mnist_mlp.")]
for name in left:
    if not name.endswith(("__main__", "_kernel")):  # the kernel is no module of Python's, but loaded with ctypes
        importlib.import_module(name)
assert not {name.split(".")[1] for name in left} & set(sys.argv[2].split(","))
sys.argv[1:] = sys.argv[3:]
from mnist_mlp.cli import main
main()
"""


def test_three_add_ons_can_be_deleted(tmp_path: Path, tiny: list[str]) -> None:
    package = tmp_path / "mnist_mlp"
    shutil.copytree(ROOT / "mnist_mlp", package, ignore=shutil.ignore_patterns(*REMOVABLE, "__pycache__", "*.gz"))
    shutil.copytree(ROOT / "conf", package / "conf")
    arguments = [tmp_path, ",".join(REMOVABLE), *tiny, "model=tiny", "run_dir=r"]
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "run.json").exists()
