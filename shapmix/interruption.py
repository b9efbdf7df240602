"""SIGTERM and Ctrl-C: the first asks for a stop after the step, the second Ctrl-C stops at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(Exception):  # noqa: N818 (nothing went wrong)
    """A run that was asked to stop and has saved its state."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopRequest:
    """`signal` is the number of the signal that came, 0 while none did."""

    signal = 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number == signal.SIGINT:
            # straight to the file: logging may be what was interrupted
            os.write(2, b"\nstopping at once; the state of the last checkpoint is kept\n")
            os._exit(128 + number)
        if self.signal:
            return
        self.signal = number
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: finishing the step, then saving; Ctrl-C twice stops at once\n".encode())


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listens for the signals meanwhile; only the main thread can."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request._receive) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
