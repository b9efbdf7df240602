"""What all commands share: how options are read, how messages look, and what the exit code says.

Exit codes:
    0: done.
    1: done, but something that the command reports is wrong: a cell failed, a checksum differs, a file has no prediction.
    2: an error, in one line on stderr that begins with `error: `. Unknown options exit with 2 too.
    128 + n: stopped by signal n; 130 is Ctrl-C, 141 a reader of the output that has gone.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import tyro

from shapmix.process.device import choose_device
from shapmix.process.ending import SCRIPT, is_script
from shapmix.process.errors import ShapmixError
from shapmix.process.memory import keep_freed_memory
from shapmix.process.signals import Interruption

WRONG, FAILED = 1, 2  # exit codes

Options = TypeVar("Options")

log = logging.getLogger("shapmix")


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """Where a command computes."""

    device: str = "auto"
    """auto (the GPU if there is one), cpu, cuda or cuda:N; under torchrun cuda is the GPU of the process."""
    threads: int | None = None
    """CPU threads; None: torch's choice."""


def read_options(kind: type[Options], arguments: Sequence[str] | None, name: str) -> Options:
    """Options of the command `name` from the command line, None: of this process; `--help` shows the docstrings of `kind`.

    Raises:
        SystemExit: an unknown option (the message names the nearest) or a value of the wrong type.
    """
    return tyro.cli(kind, args=arguments, prog=program(name), description=kind.__doc__, console_outputs=True)


def program(name: str) -> str:
    """A command as the user called it: `shapmix NAME` or `python -m shapmix.NAME`."""
    return f"{SCRIPT} {name}" if is_script() else f"python -m shapmix.{name}"


def run_command(work: Callable[[], int | None]) -> int:
    """Runs a command's work, whose own exit code None means 0, and returns the exit code.

    Messages of the package go to stderr: those of process 0 from INFO on, those of other processes from WARNING on.
    """
    level = logging.INFO if int(os.environ.get("RANK", 0)) == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    try:
        code = work() or 0
        sys.stdout.flush()
    except Interruption as stop:
        return told(str(stop), stop.exit_code)
    except KeyboardInterrupt:
        return told("stopped", 128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except ShapmixError as error:
        return told(f"error: {error}", FAILED)
    except OSError as error:
        return told(f"error: {error.filename or 'output'}: {error.strerror or error}", FAILED)
    return code


def told(line: str, code: int) -> int:
    """Prints a line to stderr and returns the exit code, also where stderr has been closed."""
    try:
        print(line, file=sys.stderr)
    except OSError:
        log.debug("stderr is closed")
    return code


def start_computing(options: ComputeOptions) -> torch.device:
    """Sets the CPU threads and the current GPU, says where the command computes, and returns the device.

    On the CPU the process keeps freed memory (`shapmix.process.memory`).

    Raises:
        ShapmixError: a device that this machine lacks, or fewer than one thread.
    """
    if options.threads is not None:
        if options.threads < 1:
            raise ShapmixError(f"--threads: at least 1, not {options.threads}")
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    if device.type == "cuda":
        log.info("computing on %s (%s)", device, torch.cuda.get_device_name(device))
    else:
        keep_freed_memory()
        threads = torch.get_num_threads()
        log.info("computing on %s, %d thread%s", device, threads, "" if threads == 1 else "s")
    return device
