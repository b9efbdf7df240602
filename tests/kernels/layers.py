"""Drawn shapes and tensors of a fused layer, and comparison with its reference; memory that is not written is NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from shapmix.reference import layer
from shapmix.reference.layer import wide
from tests.kernels.backends import TRITON

BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-10, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # relative to the largest element


def norm_of(partial: Tensor, weight: Tensor, bias: Tensor, *, tail: Tensor | None = None) -> Tensor:
    """The norm [6, C] of one join."""
    out = weight.new_empty(6, len(weight))
    layer.join_moments([layer.Join(partial, weight, bias, out, tail)])
    return out


class Shape(NamedTuple):
    clips: int
    frames: int
    joints: int
    channels: int
    inputs: int
    stride: int
    dtype: torch.dtype
    seed: int

    @property
    def frames_out(self) -> int:
        return -(-self.frames // self.stride)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Many joints come with few frames and channels, since they take long in the interpreter."""
    joints = draw(st.sampled_from([2, 13, 17, 25, 133]))
    many = joints > 16
    return Shape(
        clips=draw(st.integers(1, 1 if many else 3)),
        frames=draw(st.integers(1, 3 if many else 9)),
        joints=joints,
        channels=draw(st.sampled_from([8, 24] if many else [8, 16, 24, 64])),
        inputs=draw(st.sampled_from([3, 8, 20])),
        stride=draw(st.sampled_from([1, 2])),
        dtype=draw(st.sampled_from(TRITON)),
        seed=draw(st.integers(0, 2**31)),
    )


SHAPES = shapes()


class Draw:
    """Normal tensors of one shape's dtype, or of its wide dtype."""

    def __init__(self, shape: Shape) -> None:
        self.generator = torch.Generator().manual_seed(shape.seed)
        self.dtype = shape.dtype

    def elements(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def weight(self, *size: int, inputs: int) -> Tensor:
        """A weight whose products with normal values are about normal."""
        return (self.elements(*size).double() / inputs**0.5).to(self.dtype)

    def wide(self, *size: int) -> Tensor:
        return wide(torch.randn(size, generator=self.generator, dtype=torch.float64).to(self.dtype))

    def norm(self, x: Tensor) -> Tensor:
        """The norm of the rows of x, with drawn weight and bias."""
        return norm_of(layer.moments(x), 1 + self.wide(x.shape[-1]) / 4, self.wide(x.shape[-1]) / 4)

    def summed(self, x: Tensor) -> Tensor:
        """Joined sums of a drawn gradient of the normalised x."""
        return self.wide(2, x.shape[-1]) * x[..., 0].numel() ** 0.5


@contextmanager
def unwritten_is_nan() -> Iterator[None]:
    """Fills what torch.empty returns with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def run(function: Callable[..., Any], *arguments: Any, device: torch.device, **options: Any) -> Any:
    """The function's result on the device, with memory that it does not write as NaN; again, the same bits."""

    def there(value: Any) -> Any:
        return value.to(device, copy=True) if isinstance(value, Tensor) else value

    with unwritten_is_nan():
        moved = [[there(value) for value in arguments] for _ in range(2)]
        options = {name: there(value) for name, value in options.items()}
        first, again = (function(*each, **options) for each in moved)
    for left, right in zip(flat(first), flat(again), strict=True):
        assert torch.equal(left.nan_to_num(), right.nan_to_num())
    return first, moved[0]


def flat(results: Any) -> list[Tensor]:
    return [result for result in (results if isinstance(results, tuple) else (results,)) if result is not None]


def check(found: Tensor | None, expected: Tensor | None, dtype: torch.dtype, factor: float = 1.0) -> None:
    """Compares relative to the largest element, with the bound of the activations' dtype."""
    if expected is None or found is None:
        assert found is None
        assert expected is None
        return
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    found = found.to(expected.device)
    assert not found.isnan().any()
    difference = float((found.double() - expected.double()).abs().max())
    assert difference <= factor * BOUNDS[dtype] * max(float(expected.double().abs().max()), 1e-3)


def check_moments(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Compares the norms of moments."""
    one = torch.ones(found.shape[2], dtype=expected.dtype)
    norms = [norm_of(moments.to(expected.device), one, 0 * one) for moments in (found, expected)]
    for row in (0, 4, 5):  # mean, 1 / rows and variance
        check(norms[0][row], norms[1][row], dtype)


def check_sums(found: Tensor | None, expected: Tensor | None, dtype: torch.dtype, factor: float = 1.0) -> None:
    """Compares joined sums, or gradients of parameters."""
    joined = [None if sums is None else layer.join_parts(sums)[0] for sums in (found, expected)]
    check(*joined, dtype, factor)
