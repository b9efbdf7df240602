"""Benchmarks of every op, one group per op: `pytest bench --benchmark-only`.

Each round times a copy of as many bytes, the eager reference and the op, in this order. `extra_info` has the quantiles of all
three, the speed-up within a round, bytes, GB/s and the ratio to the bandwidth of the copy, which can exceed 1 if inputs are cached.
On a GPU it also has device times.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.cases import CASES, SHAPES, Case
from bench.rows import FAST, cannot_run, device_times, row
from bench.timing import copy_of, rounds_within, seconds
from shapmix.kernels.checks import dtype_name
from shapmix.kernels.examples import Batch, Shape

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
SECONDS = 1.0  # budget per measurement, within 5 to 50 rounds


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("shape", SHAPES[DEVICE.type], ids=lambda shape: shape.name)
@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for case in CASES for dtype in case.dtypes],
    ids=lambda value: dtype_name(value) if isinstance(value, torch.dtype) else str(value),
)
def test_op(benchmark: Any, case: Case, dtype: torch.dtype, shape: Shape, backend: str) -> None:
    if reason := cannot_run(case, backend, dtype, DEVICE):
        pytest.skip(f"{backend}: {reason}")
    problem = case.make(Batch(shape, dtype, DEVICE))
    baselines = {"copy": copy_of(problem.bytes_moved, DEVICE), "reference": problem.reference}

    def run() -> None:
        problem.run(backend)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    times: dict[str, list[float]] = {name: [] for name in baselines}

    def time_baselines() -> None:
        for name, call in baselines.items():
            times[name].append(seconds(call, DEVICE))

    once = 0.0
    for call in (*baselines.values(), run):
        call()
        once += seconds(call, DEVICE)
    benchmark.group = str(case)
    benchmark.pedantic(run, setup=time_baselines, rounds=rounds_within(SECONDS, once, 5, 50))
    if benchmark.stats is None:  # run with --benchmark-disable
        return
    clocks = {"wall": {"op": benchmark.stats.stats.data, **times}}
    if DEVICE.type == "cuda":
        clocks |= device_times({"op": lambda: problem.run(backend), "copy": baselines["copy"]}, DEVICE)
    benchmark.extra_info.update(row(case, shape, dtype, backend, DEVICE, problem.bytes_moved, clocks))
