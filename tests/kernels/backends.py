"""Tests of several back ends, and helpers for comparisons with the reference."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

from shapmix.reference import AugmentPlan, CropPlan, MixPlan
from tests.proofs import INTERPRETED

REAL = (torch.float32, torch.float64)
ALL = (*REAL, torch.float16, torch.bfloat16)
TRITON = (*REAL, torch.float16) if INTERPRETED else ALL  # the interpreter computes wrong results in bfloat16

EXAMPLES = "SHAPMIX_TEST_EXAMPLES"  # the variable that says how many problems are drawn where a back end is slow

FEW_EXAMPLES = int(os.environ.get(EXAMPLES, "25"))
FEW = settings(deadline=None, max_examples=FEW_EXAMPLES, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(FEW, max_examples=200)


def on_backends(*backends: str, ops: Sequence[str]) -> pytest.MarkDecorator:
    """Parametrizes a test over back ends; each test proves the ops on its own."""
    marked = [pytest.param(backend, marks=pytest.mark.proves(*ops, backend=backend)) for backend in backends]
    return pytest.mark.parametrize("backend", marked)


def uniform_integers(generator: torch.Generator, low: Tensor | int, high: Tensor | int, *size: int) -> Tensor:
    """int64 uniform on low..high."""
    share = torch.rand(size, generator=generator, dtype=torch.float64)
    return (low + share * (high - low + 1)).floor().long()


def moved(device: torch.device, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an op on a device, also the fields of plans."""
    return {name: _moved(device, value) for name, value in arguments.items()}


def _moved(device: torch.device, value: Any) -> Any:
    if isinstance(value, (MixPlan, CropPlan, AugmentPlan)):
        return type(value)(**moved(device, vars(value)))
    return value.to(device) if isinstance(value, Tensor) else value


def same_bits(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and left.dtype == right.dtype and torch.equal(left, right)


def largest_difference(left: Tensor, right: Tensor) -> float:
    """Largest difference in float64; NaN if exactly one of two elements is NaN."""
    assert left.shape == right.shape
    assert left.dtype == right.dtype
    both_nan = left.isnan() & right.isnan()
    return float((left.double() - right.double()).abs().masked_fill(both_nan, 0).max())
