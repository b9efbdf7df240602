"""Launches of Triton kernels, with the memory that each must move at least: the figures of a traffic model.

A launch on fake or meta tensors is recorded but not run, so the traffic of a whole network is counted on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

Moved = Tensor | None | tuple[Tensor | None, float]  # a tensor, or a tensor and how often it is moved; None moves nothing


class Launch(NamedTuple):
    """A kernel's launch: bytes that it reads and writes, its floating point operations, and the dtype of what it reads first."""

    name: str
    bytes_read: int
    bytes_written: int
    flops: int
    dtype: torch.dtype


_recorded: ContextVar[list[Launch] | None] = ContextVar("recorded", default=None)


@contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """Collects the launches inside the context, in order."""
    launches: list[Launch] = []
    token = _recorded.set(launches)
    try:
        yield launches
    finally:
        _recorded.reset(token)


def launch(
    kernel: Any,
    grid: tuple[int, ...] | Callable[..., tuple[int, ...]],
    *arguments: Any,
    reads: Iterable[Moved],
    writes: Iterable[Moved],
    flops: int = 0,
    **options: Any,
) -> None:
    """Runs `kernel[grid](*arguments, **options)`, unless its tensors are fake or on the meta device; either way it is recorded.

    Args:
        kernel: a function decorated with triton.jit.
        reads, writes: what must be moved to and from memory at least; the first of `reads` is a tensor. A pair (tensor, factor)
            counts a tensor that is moved several times, or in part.
        flops: floating point operations, two for each product of a sum.
    """
    reads, writes = list(reads), list(writes)
    first = next(tensor for tensor, _ in map(_pair, reads) if tensor is not None)
    if (launches := _recorded.get()) is not None:
        launches.append(Launch(kernel.fn.__name__, _moved(reads), _moved(writes), flops, first.dtype))
    if isinstance(first, FakeTensor) or first.device.type == "meta":
        return
    # Triton launches on the current device, not on the device that owns the tensors
    with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
        kernel[grid](*arguments, **options)


def product_precision(dtype: torch.dtype) -> str:
    """Precision of the products of a dtype, as torch is set for convolutions: TF32 once, or thrice for float32's precision."""
    if dtype == torch.float64:
        return "ieee"
    return "tf32" if torch.backends.cudnn.allow_tf32 else "tf32x3"


def in_three_products(dtype: torch.dtype) -> bool:
    """Whether a product of the dtype is three of TF32, which take about twice the registers of one."""
    return dtype == torch.float32 and product_precision(dtype) == "tf32x3"


def architecture(x: Tensor) -> int:
    """80, 90 or 100: the tensor cores for which the blocks of a kernel on x are chosen; off a GPU, those of an H100.

    Consumer cards have the instructions of sm_80, no more registers, and 99 KB of shared memory instead of 163.
    """
    if x.device.type != "cuda" or isinstance(x, FakeTensor):
        return 90
    major = torch.cuda.get_device_capability(x.device)[0]
    return {9: 90, 10: 100}.get(major, 80)


def _moved(tensors: list[Moved]) -> int:
    """Bytes of all tensors."""
    pairs = map(_pair, tensors)
    return sum(round(tensor.numel() * tensor.element_size() * factor) for tensor, factor in pairs if tensor is not None)


def _pair(moved: Moved) -> tuple[Tensor | None, float]:
    return moved if isinstance(moved, tuple) else (moved, 1.0)
