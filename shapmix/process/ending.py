"""How a command ends: with one line for what went wrong, never with a traceback of what its user did.

The package imports this first, so that Ctrl-C is one line while torch is still being imported.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import TracebackType

INTERRUPTED = 130  # as a shell has it for SIGINT
OUTPUT_CLOSED = 141  # as a shell has it for SIGPIPE


def ended(work: Callable[[], int], errors: tuple[type[Exception], ...]) -> int:
    """The exit code of a command's work.

    Args:
        work: returns the code.
        errors: whose messages say what is wrong and what to do; 1 after one of them, and after a file that cannot be used.
    """
    try:
        code = work()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUTPUT_CLOSED
    except errors as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return 1
    return code


def check_output_file(path: Path) -> None:
    """That a file can be written, before work is done for it.

    Raises:
        OSError: it cannot; with the path that is at fault.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; give a file", str(path))
    _check_folder(path.parent)


def check_output_folder(path: Path) -> None:
    """That files can be written into a folder, which may still have to be made, before work is done for them.

    Raises:
        OSError: they cannot; with the path that is at fault.
    """
    _check_folder(next(folder for folder in (path, *path.absolute().parents) if folder.exists()))


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"cannot write there: {error.strerror}", str(folder)) from error


def _is_command() -> bool:
    """Whether this process was started as `python -m shapmix.COMMAND`."""
    given = sys.orig_argv
    return any(option == "-m" and module.startswith("shapmix.") for option, module in pairwise(given))


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if _is_command():
    sys.excepthook = _tell
