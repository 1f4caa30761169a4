"""What this machine has for the jobs of a sweep: cores, GPUs, memory."""

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path


def cores() -> int:
    """The processors that this process may use: its affinity, and the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError, IndexError):  # another system, an older kernel, or no quota ("max")
        group = Path("/proc/self/cgroup").read_text().partition("0::")[2].splitlines()[0]
        for path in (Path("/sys/fs/cgroup", group.strip("/")), Path("/sys/fs/cgroup")):
            if (path / "cpu.max").exists():
                quota, period = (path / "cpu.max").read_text().split()
                cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def gpus() -> list[str]:
    """The CUDA devices that PyTorch will find, without importing it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device]
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []


def out_of_memory_kills() -> int:
    """How many processes of this machine the kernel has killed for lack of memory; 0 where it does not say."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^oom_kill (\d+)", Path("/proc/vmstat").read_text(), re.MULTILINE):
            return int(found[1])
    return 0
