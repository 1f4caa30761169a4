"""What ran and where: the part of `run.json` that says on what the numbers depend."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from mnist_mlp.run.process import PORTABLE

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


def arithmetic() -> dict[str, str]:
    """On what PyTorch computes here: the machine, the instruction set of its kernels, and what the environment pins."""
    pinned = {name: os.environ[name] for name in PORTABLE if name in os.environ}
    return {"machine": platform.machine(), "kernels": torch.backends.cpu.get_cpu_capability(), **pinned}


# Optimizers that take no square roots. MKL computes those, from an estimate that each CPU makes in its own way.
WITHOUT_ROOTS = (torch.optim.SGD, torch.optim.ASGD, torch.optim.Rprop, torch.optim.Adamax)


def not_portable(asked: bool, steps: str, device: torch.device, optimizer: Optimizer) -> str | None:
    """Why a run's bits are not those of every x86-64 CPU with AVX2 and FMA; None where they are, unless the backbone
    itself calls `torch.sqrt`.

    Args:
        asked: the setting `portable`.
        steps: what makes the optimizer steps.
        device: of the run.
        optimizer: of the run.
    """
    if not asked:
        return "portable=false"
    if device.type != "cpu":
        return f"it runs on {device.type}"
    return _not_portable_here() or _not_portable_steps(steps, optimizer)


def _not_portable_here() -> str | None:
    """As `not_portable`, of this machine and process."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"this CPU is {platform.machine()}, not x86-64"
    for name, value in PORTABLE.items():
        if name in os.environ and os.environ[name].lower() != value.lower():
            return f"the environment has {name}={os.environ[name]}, not {value}"
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX"):
        return "this CPU has no AVX2 or no FMA"
    if any(name not in os.environ for name in PORTABLE):
        return (
            f"PyTorch was imported before {', '.join(f'{name}={value}' for name, value in PORTABLE.items())} were set"
        )
    return None


def _not_portable_steps(steps: str, optimizer: Optimizer) -> str | None:
    """As `not_portable`, of what makes the steps."""
    if steps == "native":
        return None
    if steps == "compiled":
        return "compiled steps are made for this CPU"
    if not torch.backends.mkl.is_available():
        return "this PyTorch computes without MKL"
    if torch.get_num_threads() > 1:
        return f"eager steps depend on the number of threads, here {torch.get_num_threads()}"
    if not optimizer.defaults.get("fused") and not isinstance(optimizer, WITHOUT_ROOTS):
        name = type(optimizer).__name__
        return f"{name} takes square roots from MKL, which differ between CPUs, unless optimizer.fused=true is possible"
    return None


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
