"""A developer's view of every op beside its reference, in pytest-benchmark's table: `pytest bench -k mix_clips --benchmark-only`.

For the loop of changing a kernel: `--benchmark-save`, `--benchmark-compare` and `--benchmark-cprofile` are pytest-benchmark's. The
figures that are published come from `python -m bench.copy_speed`, which interleaves an op with its reference and a copy.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.cases import CASES, SHAPES, Case
from bench.rows import FAST, cannot_run
from shapmix.kernels.checks import dtype_name
from shapmix.kernels.examples import Batch, Shape

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("shape", SHAPES[DEVICE.type], ids=lambda shape: shape.name)
@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for case in CASES for dtype in case.dtypes],
    ids=lambda value: dtype_name(value) if isinstance(value, torch.dtype) else str(value),
)
def test_op(benchmark: Any, case: Case, dtype: torch.dtype, shape: Shape, backend: str) -> None:
    if backend != "reference" and (reason := cannot_run(case, backend, dtype, DEVICE)):
        pytest.skip(f"{backend}: {reason}")
    problem = case.make(Batch(shape, dtype, DEVICE))

    def run() -> None:
        problem.reference() if backend == "reference" else problem.run(backend)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{case}, {shape.name}, {dtype_name(dtype)}"
    benchmark(run)
