"""Every op, one group an op: `pytest bench --benchmark-only`.

A round times a copy of as many bytes, the eager reference and the op, in this order: `extra_info` holds the quantiles of all
three, the speed-up within a round, bytes, GB/s and the share of the copy's speed, which can exceed 1 where inputs come from a
cache. On a GPU it holds device times too.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.cases import CASES, SHAPES, Batch, Case, Shape
from bench.rows import FAST, cannot_run, device_times, row
from bench.timing import copy_of, rounds_within, seconds
from shapmix.kernels.checks import dtype_name

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
SECONDS = 1.0  # of rounds a measurement, where that is at least 5 and at most 50 of them


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
    beside = {"copy": copy_of(problem.bytes_moved, DEVICE), "reference": problem.reference}

    def run() -> None:
        problem.run(backend)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    times: dict[str, list[float]] = {name: [] for name in beside}

    def take_turns() -> None:
        for name, call in beside.items():
            times[name].append(seconds(call, DEVICE))

    once = 0.0
    for call in (*beside.values(), run):
        call()
        once += seconds(call, DEVICE)
    benchmark.group = str(case)
    benchmark.pedantic(run, setup=take_turns, rounds=rounds_within(SECONDS, once, 5, 50))
    if benchmark.stats is None:  # run with --benchmark-disable
        return
    clocks = {"wall": {"op": benchmark.stats.stats.data, **times}}
    if DEVICE.type == "cuda":
        clocks |= device_times({"op": lambda: problem.run(backend), "copy": beside["copy"]}, DEVICE)
    benchmark.extra_info.update(row(case, shape, dtype, backend, DEVICE, problem.bytes_moved, clocks))
