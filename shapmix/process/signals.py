"""Signal handling: SIGTERM, SIGHUP and the first Ctrl-C stop after the current step, a second Ctrl-C stops immediately."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from shapmix.process.ending import STARTED_BY

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PARENT = "_SHAPMIX_PARENT"  # environment variable of a process that must end with its parent
_PR_SET_PDEATHSIG = 1


class Interruption(Exception):  # noqa: N818 (not an error)
    """The run has been stopped by a signal and has saved its state."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopRequest:
    """`signal` is the number of the received signal, 0 before any."""

    signal = 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number == signal.SIGINT:
            _say("stopping immediately; the last checkpoint is kept")
            os._exit(128 + number)
        if self.signal:
            return
        self.signal = number
        name = signal.Signals(number).name
        _say(f"{name}: finishing the step, then saving; Ctrl-C twice stops immediately")


def _say(line: str) -> None:
    """Writes to the file descriptor directly, because logging may be what was interrupted."""
    try:
        os.write(2, f"\n{line}\n".encode())
    except OSError:  # the terminal is gone; later writes would fail before the state is saved
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        os.close(nowhere)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Handles the signals inside the context; a no-op outside of the main thread."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    # nohup starts processes with SIGHUP ignored
    heard = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, request._receive) for number in heard}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """If `PARENT` is set, or torchrun started this process, it receives SIGTERM when its parent ends for any reason.

    torchrun starts its processes in separate sessions: without this, they continue to train after it was killed.

    Raises:
        Interruption: the parent has already ended.
    """
    parent = os.environ.pop(PARENT, None)  # not inherited by child processes
    if parent is None and "TORCHELASTIC_RUN_ID" in os.environ:
        parent = str(STARTED_BY)
    if parent is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        raise Interruption(signal.SIGTERM, f"the parent process {parent} has ended; nothing was started")
