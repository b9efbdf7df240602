"""Memory of the CPU's tensors."""

from __future__ import annotations

import ctypes
import sys

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Has the C library keep the memory of freed tensors for the next ones, for the rest of the process.

    A training step allocates and frees the same hundreds of megabytes each time. glibc gets large blocks from the system and gives
    them back, so that every page of every tensor is faulted in and zeroed anew, each step; kept, they are there already
    (`bench/results/freed_memory.json` has what that saves). The process stays as large as it was at its peak.

    Returns:
        Whether it does: False where the C library is not glibc, which alone knows these settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, -1))
