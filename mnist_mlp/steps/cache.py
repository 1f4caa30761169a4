"""TorchInductor's cache on disk: one for each kind of CPU, without what a power cut or a full disk left of a file."""

import hashlib
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from numpy._core._multiarray_umath import __cpu_features__  # NumPy has no public name for this
from torch._inductor.runtime.cache_dir_utils import cache_dir

ELF = b"\x7fELF\x02\x01"  # of 64 bits, little-endian: Linux on x86-64 and 64-bit ARM

SETTLED = 10.0  # seconds after which nobody is still writing an object


@contextmanager
def cache_of_this_cpu() -> Iterator[Path]:
    """Gives TorchInductor a cache for this kind of CPU and the kernels chosen on it; yields its folder.

    PyTorch (seen with 2.14) finds what it has compiled without asking for either. Loops written for vectors of 16
    numbers then run on vectors of 8 and write beyond their buffers, and code of one CPU meets instructions that another
    lacks: both end the process, wherever a cache is shared by CPUs, or by processes with another ATEN_CPU_CAPABILITY.
    """
    shared = cache_dir()
    features = sorted(name for name, has in __cpu_features__.items() if has)
    kind = f"{features} {os.environ.get('ATEN_CPU_CAPABILITY')}"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(shared, f"cpu-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"))
    try:
        yield Path(cache_dir())
    finally:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = shared


def remove_damaged(cache: Path) -> list[Path]:
    """Removes the compiled objects under `cache` that are not whole, so that they are compiled again.

    To load one that was cut off ends the process with a bus error, and PyTorch does not look before. An ELF file ends
    with the table of its sections, as linkers write it, and its head says where that is: a file that is shorter was cut
    off. What was altered within is not seen.

    Returns:
        What was removed.
    """
    removed = []
    for path in cache.rglob("*.so"):
        try:
            while not _is_whole(path) and time.time() - path.stat().st_mtime < SETTLED:
                time.sleep(0.2)  # another run may be at it
            if not _is_whole(path):
                path.unlink()
                removed.append(path)
        except OSError:  # another run has removed it, or it is not ours to remove: loading it says what is wrong
            continue
    return removed


def _is_whole(path: Path) -> bool:
    """Whether an ELF file is as long as it says; true of what is none, but not of an empty file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) < 64:
        return False
    if not head.startswith(ELF):
        return head.strip(b"\0") != b""  # a full disk may leave zeros
    (table,) = struct.unpack_from("<Q", head, 40)  # e_shoff, then e_shentsize and e_shnum
    entry, count = struct.unpack_from("<HH", head, 58)
    return bool(table + entry * count <= size)
