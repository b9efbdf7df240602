"""SIGTERM, SIGHUP and Ctrl-C: the first asks for a stop after the step, the second Ctrl-C stops at once."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PARENT = "_SHAPMIX_PARENT"  # in the environment of a process that is to end with the one that started it
_PR_SET_PDEATHSIG = 1


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
            _say("stopping at once; the state of the last checkpoint is kept")
            os._exit(128 + number)
        if self.signal:
            return
        self.signal = number
        name = signal.Signals(number).name
        _say(f"{name}: finishing the step, then saving; Ctrl-C twice stops at once")


def _say(line: str) -> None:
    """Straight to the file: logging may be what was interrupted."""
    try:
        os.write(2, f"\n{line}\n".encode())
    except OSError:  # the terminal is gone, and writing to it would end the run before its state is saved
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        os.close(nowhere)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listens for the signals meanwhile; only the main thread can."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    # nohup starts a process that is not to hear of SIGHUP
    heard = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, request._receive) for number in heard}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Where `PARENT` is in the environment, this process gets SIGTERM when the process of that number ends, however it does.

    Raises:
        Interruption: it has ended already.
    """
    parent = os.environ.pop(PARENT, None)  # this process's own children are not meant
    if parent is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        raise Interruption(signal.SIGTERM, f"process {parent}, which started this one, has ended; nothing was begun")
