"""Reuse of the memory of freed CPU tensors."""

from __future__ import annotations

import ctypes
import sys

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Configures the C library to retain freed memory for reuse, for the rest of the process.

    Every training step allocates and frees the same hundreds of megabytes. By default glibc maps large blocks and unmaps them when
    freed, so every page of every tensor is faulted in and zeroed again at each step. With retained memory there are no page faults
    (`bench/results/freed_memory.json` has the savings), but the process does not shrink below its peak.

    Returns:
        True if configured; False if the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, -1))
