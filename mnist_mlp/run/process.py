"""What a process must be told before PyTorch is imported: how many threads, which arithmetic. Imports nothing heavy."""

import os
import sys

# PyTorch's own kernels and oneDNN choose by instruction set, MKL by vendor too, and their sums are then made in another
# order. These keep them to what every x86-64 CPU with AVX2 and FMA computes alike: `make test-portable` shows it.
PORTABLE = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "AVX2"}

# With deterministic algorithms, PyTorch uses cuBLAS only with a workspace of a fixed size. It is read once, when CUDA
# starts.
CUBLAS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def prepare_process(threads: int | None, portable: bool) -> None:
    """Sets the environment that PyTorch, MKL and OpenMP read when they are first imported or used.

    Where PyTorch has been imported before, or the CPU lacks AVX2 or FMA, the arithmetic is left as it is, and the
    environment says so. What the user has set stays.

    Args:
        threads: CPU threads; None leaves the number to them. So does what is no such number: it is refused later.
        portable: keep to arithmetic that is the same on every x86-64 CPU with AVX2 and FMA.
    """
    if isinstance(threads, int) and threads > 0:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    pinned = PORTABLE if portable and "torch" not in sys.modules and _has_avx2() else {}
    for name, value in (CUBLAS | pinned).items():
        os.environ.setdefault(name, value)


def _has_avx2() -> bool:
    """Whether the CPU itself says that it has AVX2 and FMA. PyTorch would not ask before it uses them."""
    # NumPy has no public name for this. /proc/cpuinfo is Linux's alone, and tells the host's CPU in an emulator.
    from numpy._core._multiarray_umath import __cpu_features__  # here, because --help does without

    return bool(__cpu_features__.get("AVX2") and __cpu_features__.get("FMA3"))
