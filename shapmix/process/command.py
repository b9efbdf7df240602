"""The frame of all commands: option parsing, logging, error messages and exit codes.

Exit codes:
    0: done.
    1: completed, but with a reported failure: a failed cell, a checksum mismatch, a file without a prediction.
    2: an error, in one line on stderr that begins with `error: `. Unknown options also exit with 2.
    128 + n: stopped by signal n; 130 is Ctrl-C, 141 a closed output pipe.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import tyro
from tyro.constructors import PrimitiveConstructorSpec

from shapmix.process.choices import Registry, check_choice
from shapmix.process.cpu import machine_load, prepare_cpu
from shapmix.process.device import choose_device
from shapmix.process.ending import SCRIPT, is_script
from shapmix.process.errors import ShapmixError
from shapmix.process.openmp import THREADS_SLEEP
from shapmix.process.signals import Interruption

WRONG, FAILED = 1, 2  # exit codes

Options = TypeVar("Options")

log = logging.getLogger("shapmix")


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """Device and threads of a command."""

    device: str = "auto"
    """auto (the GPU if there is one), cpu, cuda or cuda:N; under torchrun cuda is the GPU of the process."""
    threads: int | None = None
    """CPU threads; None for torch's default."""


class RegisteredName(PrimitiveConstructorSpec[str]):
    """A name in a registry: one that is registered when a command line is read.

    Args:
        own: the form of what is taken besides, such as MODULE:FUNCTION; it holds a colon, and no name does.
        also: names that are taken besides, such as auto.
    """

    nargs = 1

    def __init__(self, registry: Registry[Any], own: str = "", also: tuple[str, ...] = ()) -> None:
        self.registry, self.own, self.also = registry, own, also

    @property
    def metavar(self) -> str:
        return f"{{{','.join(filter(None, (*self.also, *self.registry, self.own)))}}}"

    def instance_from_str(self, words: list[str]) -> str:
        if not (self.own and ":" in words[0]):
            check_choice(self.registry.option, words[0], [*self.also, *self.registry, *filter(None, [self.own])])
        return words[0]

    def is_instance(self, value: Any) -> bool:
        return isinstance(value, str)

    def str_from_instance(self, value: str) -> list[str]:
        return [value]


def read_options(kind: type[Options], arguments: Sequence[str] | None, name: str) -> Options:
    """Parses the options of the command `name` (None: from sys.argv); `--help` shows the docstrings of `kind`.

    Raises:
        SystemExit: an unknown option (the message suggests the closest) or a value of the wrong type.
    """
    return tyro.cli(kind, args=arguments, prog=program(name), description=kind.__doc__, console_outputs=True)


def program(name: str) -> str:
    """The command as invoked by the user: `shapmix NAME` or `python -m shapmix.NAME`."""
    return f"{SCRIPT} {name}" if is_script() else f"python -m shapmix.{name}"


def run_command(work: Callable[[], int | None]) -> int:
    """Runs a command's work and returns the exit code (None means 0).

    Logs go to stderr: of process 0 from level INFO, of other processes from level WARNING.
    """
    level = logging.INFO if int(os.environ.get("RANK", 0)) == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    try:
        code = work() or 0
        sys.stdout.flush()
    except Interruption as stop:
        return finish(str(stop), stop.exit_code)
    except KeyboardInterrupt:
        return finish("stopped", 128 + signal.SIGINT)
    except BrokenPipeError:  # the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except ShapmixError as error:
        return finish(f"error: {error}", FAILED)
    except OSError as error:
        return finish(f"error: {error.filename or 'output'}: {error.strerror or error}", FAILED)
    return code


def finish(line: str, code: int) -> int:
    """Prints a final line to stderr and returns the exit code, even if stderr is closed."""
    try:
        print(line, file=sys.stderr)
    except OSError:
        log.debug("stderr is closed")
    return code


def start_computing(options: ComputeOptions) -> torch.device:
    """Sets the CPU threads and the current GPU, logs where the command computes, and returns the device.

    On the CPU the process is prepared by `prepare_cpu`, and the line says so if the machine's load is high.

    Raises:
        ShapmixError: the device is not available, fewer than one thread, or a setting of OpenMP that `prepare_cpu` refuses.
    """
    if options.threads is not None and options.threads < 1:
        raise ShapmixError(f"--threads: must be at least 1, not {options.threads}")
    device = choose_device(options.device)
    if device.type == "cuda":
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        log.info("computing on %s (%s)", device, torch.cuda.get_device_name(device))
    else:
        try:
            prepare_cpu(options.threads)
        except ValueError as error:
            raise ShapmixError(str(error)) from error
        threads, load = torch.get_num_threads(), machine_load()
        several = " that sleep while they wait, since other programs run" if THREADS_SLEEP else ""
        busy = f"; the load of this machine is {load.words}" if load.is_high else ""
        log.info("computing on %s, %d thread%s%s", device, threads, "" if threads == 1 else f"s{several}", busy)
    return device
