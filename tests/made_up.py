"""What the tests share that make damage up: what stands in the place of a value, noise, and what may come of it."""

import math
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mnist_mlp.settings import sentence

PATIENCE = 60  # seconds: a pipe is waited for without end

JUNK: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        2,
        0.5,
        1e308,
        -1e308,
        math.nan,
        math.inf,
        2**63,
        2**70,
        "",
        "x",
        "1",
        "nan",
        "\ud800",
        "${a}",
    ),
    *([], {}, [[]], [None], {"": {}}, {"_target_": "os.mkdir"}, "a" * 10_000, [0] * 1000),
)


@contextmanager
def impatient() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def with_noise(content: bytes, chance: random.Random) -> bytes:
    """Bytes with some changed, removed, doubled or cut off."""
    damaged = bytearray(content)
    for _ in range(chance.choice((1, 1, 3, 20))):
        at = chance.randrange(len(damaged)) if damaged else 0
        kind = chance.randrange(5)
        if kind == 0 and damaged:
            damaged[at] = chance.randrange(256)
        elif kind == 1:
            del damaged[at : at + chance.randrange(1, 50)]
        elif kind == 2:
            damaged[at:at] = damaged[: chance.randrange(50)]
        elif kind == 3:
            damaged[at:at] = chance.choice(
                (b"\0", b"[" * 9, b"{", b'"', b"\n", b",", b"\xff", b": ", b"&a ", b"*a", b"1e999")
            )
        elif chance.random() < 0.2:
            del damaged[at:]
    return bytes(damaged)


def one_sentence(error: Exception) -> None:
    text = sentence(error)
    assert text.strip()
    assert "\n" not in text
    assert len(text) < 1500, text[:300]
