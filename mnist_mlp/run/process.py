"""What a process must be told before PyTorch is imported. Imports nothing heavy itself."""

import os


def prepare_process(threads: int | None) -> None:
    """Sets the environment that PyTorch and OpenMP read when they are first imported.

    Args:
        threads: CPU threads; None leaves the number to them. So does what is no such number: it is refused later.
    """
    if isinstance(threads, int) and threads > 0:
        os.environ["OMP_NUM_THREADS"] = str(threads)
