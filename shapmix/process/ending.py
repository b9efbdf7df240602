"""Reports Ctrl-C during the import of torch as one line instead of a traceback.

The package imports this module first; `shapmix.process.command` handles Ctrl-C after the imports.
"""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from types import TracebackType

SCRIPT = "shapmix"  # the console script
STARTED_BY = os.getppid()  # read before torch is imported, which takes seconds in which the parent may end


def is_script() -> bool:
    """Whether this process was started by the console script."""
    return os.path.basename(sys.argv[0]) == SCRIPT


def is_command() -> bool:
    """Whether this process was started as a command: `python -m shapmix.NAME`, `python -m shapmix` or the console script."""
    given = sys.orig_argv
    return is_script() or any(option == "-m" and module.partition(".")[0] == "shapmix" for option, module in pairwise(given))


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if is_command():
    sys.excepthook = _report
