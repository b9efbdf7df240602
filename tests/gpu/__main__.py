"""`python -m tests.gpu`: see `tests.gpu.suite`."""

from __future__ import annotations

import signal
import sys

from tests.gpu.suite import main

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends child processes and prints the table
    sys.exit(main())
