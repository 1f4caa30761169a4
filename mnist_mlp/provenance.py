"""What ran and where: the part of `run.json` that says on what the numbers depend."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "omegaconf", "numpy", "tensorboard")


def versions() -> dict[str, str]:
    """This project's version, Python's and those of the packages that a run's bits can depend on."""
    return {
        "mnist-mlp": metadata.version("mnist-mlp"),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in PACKAGES},
    }


def git_state() -> dict[str, Any]:
    """Commit of this project's checkout and whether it has uncommitted changes; both None outside a checkout."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", root, *arguments], capture_output=True, text=True, check=True, timeout=30
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:  # an installed wheel may lie inside somebody else's checkout
        return {"commit": None, "dirty": None}
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}


def device_name(device: torch.device) -> str:
    """Such as `cpu (Intel(R) Xeon(R) Processor)` or `cuda (NVIDIA L4)`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return f"{device.type} ({name})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
