"""What ran and where: the part of `run.json` that says on what the numbers depend."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

# Of uncommitted.diff, which is for source, not for data that lies about.
DIFF_BYTES = 1_000_000
NEW_FILES = 100

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
    top = _git("rev-parse", "--show-toplevel").strip()
    if not top or Path(top).resolve() != _checkout():  # an installed wheel may lie inside somebody else's checkout
        return {"commit": None, "dirty": None}
    return {"commit": _git("rev-parse", "HEAD").strip() or None, "dirty": bool(_git("status", "--porcelain"))}


def uncommitted_diff() -> str | None:
    """What `git apply` takes to get from the commit to what ran, new files included; None where nothing differs.

    What goes beyond `DIFF_BYTES` or `NEW_FILES` is only named.
    """
    if not git_state()["dirty"]:
        return None
    diff = ("diff", "--binary", "--no-color", "--no-ext-diff")
    text = _git(*diff, "HEAD")
    if len(text) > DIFF_BYTES:
        text = "# left out: changes of\n" + _git("diff", "--stat", "HEAD")
    for number, name in enumerate(_git("ls-files", "--others", "--exclude-standard", "-z").split("\0")[:-1]):
        file = _checkout() / name
        small = number < NEW_FILES and file.is_file() and len(text) + file.stat().st_size < DIFF_BYTES
        part = _git(*diff, "--no-index", "--", "/dev/null", name) if small else ""
        text += part or f"# left out: {name}\n"
    return text


def _checkout() -> Path:
    return Path(__file__).resolve().parents[2]


def _git(*arguments: str) -> str:
    """What git prints about the directory that this package lies in; nothing where it cannot."""
    try:
        # Statuses other than 0 are not looked at: `git diff --no-index` has 1 where files differ.
        command = ["git", "-C", str(_checkout()), *arguments]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="surrogateescape", timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


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
