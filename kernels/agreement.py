"""Whether a back end computes what the reference computes: every op, on random data of odd sizes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from shapmix import kernels, reference

from .dispatch import OPS, unavailable
from .examples import EXAMPLES, Batch, Shape, agree, example, results

# Odd sizes, one sample, one joint, and a batch large enough for every thread to get work.
SIZES = ((1, 1, 1, 1, 1), (3, 3, 13, 7, 1), (5, 2, 37, 11, 2), (4, 3, 64, 25, 2), (64, 3, 64, 25, 2))


def compare(backend: str, device: torch.device, deadline: float) -> tuple[int, list[str]]:
    """Comparisons made with the reference, and those that did not agree."""
    compared = 0
    wrong: list[str] = []
    dtypes = dict.fromkeys(dtype for kind in EXAMPLES.values() for dtype in kind.dtypes)
    for size in SIZES:
        shape = Shape("odd", None, size, classes=13, width=16)
        for batch in (Batch(shape, dtype, device) for dtype in dtypes):
            for op, kind in EXAMPLES.items():
                if batch.dtype not in kind.dtypes or unavailable(backend, device, batch.dtype, op):
                    continue
                if time.monotonic() > deadline:
                    return compared, wrong
                compared += 1
                if not agrees(op, batch, backend):
                    wrong.append(f"{op} on {list(size)} {batch.dtype}")
    return compared, wrong


def agrees(op: str, batch: Batch, backend: str) -> bool:
    """Whether a back end computes an example of an op as the reference does."""
    arguments = example(op, batch)
    expected = results(reference_of(op), arguments)
    return agree(op, arguments, results(getattr(kernels, op), arguments, backend=backend), expected)


def reference_of(op: str) -> Callable[..., Any]:
    """The function of the same name in `shapmix.reference`, or the one that the op declares."""
    return getattr(reference, op, OPS[op])
