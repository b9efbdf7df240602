"""The device of each back end in this process, and helpers for comparisons with the reference."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

from shapmix.kernels import unavailable

GPU = torch.device("cuda:0")
CPU = torch.device("cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE_OF = {"reference": CPU, "cpp": CPU, "triton": CPU if INTERPRETED else GPU, "cuda": GPU}

REAL = (torch.float32, torch.float64)
ALL = (*REAL, torch.float16, torch.bfloat16)
TRITON = (*REAL, torch.float16) if INTERPRETED else ALL  # the interpreter computes wrong results in bfloat16

EXAMPLES = "SHAPMIX_TEST_EXAMPLES"  # the variable that says how many problems are drawn where a back end is slow

FEW_EXAMPLES = int(os.environ.get(EXAMPLES, "25"))
FEW = settings(deadline=None, max_examples=FEW_EXAMPLES, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(FEW, max_examples=200)


def needs(backend: str) -> torch.device:
    """The device that a back end runs on here; skips the test if there is none."""
    assert backend in os.environ["PYTEST_CURRENT_TEST"], f"name {backend} in the test: `-m gpu` and bench.verdicts go by it"
    if reason := unavailable(backend, DEVICE_OF[backend]):
        pytest.skip(f"{backend}: {reason}")
    return DEVICE_OF[backend]


def uniform_integers(generator: torch.Generator, low: Tensor | int, high: Tensor | int, *size: int) -> Tensor:
    """int64 uniform on low..high."""
    share = torch.rand(size, generator=generator, dtype=torch.float64)
    return (low + share * (high - low + 1)).floor().long()


def same_bits(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and left.dtype == right.dtype and torch.equal(left, right)


def largest_difference(left: Tensor, right: Tensor) -> float:
    """Largest difference in float64; NaN if exactly one of two elements is NaN."""
    assert left.shape == right.shape
    assert left.dtype == right.dtype
    both_nan = left.isnan() & right.isnan()
    return float((left.double() - right.double()).abs().masked_fill(both_nan, 0).max())
