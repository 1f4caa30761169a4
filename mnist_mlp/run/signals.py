"""Stopping a run without losing it: the first signal asks, the second one ends."""

import logging
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

# Ctrl-C, the request to end that systems send, the end of the terminal, and the two that Slurm is asked for before a
# job's time is up: the usual one, and submitit's.
STOP_SIGNALS = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
# `timeout` signals its child and then the child's process group, and a scheduler may do the like: a signal that comes
# again within so many seconds is the same request.
SAME_REQUEST = 1.0

log = logging.getLogger(__name__)


class InterruptionError(RuntimeError):
    """The run was asked to stop by `signum`."""

    def __init__(self, signum: signal.Signals) -> None:
        super().__init__(f"stopped by {signum.name}")
        self.signum = signum

    @property
    def exit_status(self) -> int:
        """128 + the signal's number, as a shell reports it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signum


class StopSignals:
    """While this context is open, the first stop signal is noted for `check`; the second ends the process at once.
    The same signal once more within `SAME_REQUEST` is passed over.

    In a thread other than the main one Python handles no signals: then they do what they did before.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._when = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():  # where Python lets no signal be taken
            log.info("This run is in a thread, where signals such as Ctrl-C do not reach it")
            return self
        for signum in STOP_SIGNALS:
            if signum.name != "SIGHUP" or signal.getsignal(signum) != signal.SIG_IGN:  # as nohup has it
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._when = signal.Signals(signum), time.monotonic()
        elif signum != self.received or time.monotonic() - self._when > SAME_REQUEST:
            os._exit(128 + signum)

    def check(self) -> None:
        """Raises: InterruptionError, where a signal has come."""
        if self.received is not None:
            raise InterruptionError(self.received)
