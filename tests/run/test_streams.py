import random

import numpy as np
import pytest
import torch

from mnist_mlp.run.streams import random_states, set_random_states


def drawn() -> list[float]:
    return [torch.rand(()).item(), random.random(), np.random.rand()]


def test_what_was_drawn_is_drawn_again() -> None:
    states = random_states()
    before = drawn()
    assert drawn() != before
    set_random_states(states)
    assert drawn() == before


def test_a_run_on_the_cpu_does_not_start_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that has a GPU, which a stand-in makes of this one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    for name in ("get_rng_state", "get_rng_state_all", "set_rng_state", "set_rng_state_all", "current_device"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: pytest.fail("CUDA was started"))
    states = random_states()
    assert states["cuda"] == []
    set_random_states(states | {"cuda": [torch.zeros(16)]})  # of a run that a GPU began


@pytest.mark.parametrize(("device", "saved", "expected"), [(0, 1, 0), (1, 4, 1), (3, 2, 1), (0, 8, 0)])
def test_a_checkpoint_of_a_machine_with_other_gpus_is_resumed(
    monkeypatch: pytest.MonkeyPatch, device: int, saved: int, expected: int
) -> None:
    put_back: list[torch.Tensor] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: device)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.full((16,), 7))
    monkeypatch.setattr(torch.cuda, "set_rng_state", put_back.append)
    states = random_states()
    assert [state.tolist() for state in states["cuda"]] == [[7] * 16]
    set_random_states(states | {"cuda": [torch.full((16,), number) for number in range(saved)]})
    assert [state[0].item() for state in put_back] == [expected]
