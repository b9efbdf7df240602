"""The Triton back end. Its kernels are declared in `triton_*`.

With TRITON_INTERPRET=1 set before Triton is imported, the ops also run on CPU tensors.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

import torch

from .checks import DTYPES as ALL_DTYPES


@cache
def missing() -> str | None:
    """The reason why Triton cannot be imported, None if it can."""
    try:
        import_module("triton")
    except ImportError as error:
        return f"triton cannot be imported ({error}): install it with `pip install triton`"
    return None


INTERPRETED: bool = not missing() and import_module("triton").knobs.runtime.interpret
# Triton's interpreter computes wrong results in bfloat16.
DTYPES = tuple(dtype for dtype in ALL_DTYPES if not (INTERPRETED and dtype == torch.bfloat16))


def unavailable(device: torch.device) -> str | None:
    """The reason why it cannot run on tensors of a device, None if it can."""
    if reason := missing():
        return reason
    if device.type == "cuda":
        return None if torch.cuda.is_available() else "torch finds no CUDA device (torch.cuda.is_available() is False)"
    if device.type == "cpu" and INTERPRETED:
        return None
    return f"it works on CUDA tensors, not on {device}; with TRITON_INTERPRET=1 set before triton is imported, on the CPU too"
