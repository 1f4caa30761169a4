"""The random generators of a process: their states, and how to put them back."""

import random
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """The state of every generator that code in this process may draw from, as tensors and plain values."""
    state: Any = np.random.get_state()
    kind, keys, *rest = state
    return {
        "torch": torch.get_rng_state(),
        # A run uses one GPU. To ask for its state would start CUDA in a run on the CPU.
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Undoes what was drawn since `random_states`, on this machine's devices."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_initialized():
        # An older checkpoint has the state of every GPU of its machine, which may have had more of them.
        place = min(torch.cuda.current_device(), len(states["cuda"]) - 1)
        torch.cuda.set_rng_state(states["cuda"][place])
    if states["mps"] is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
