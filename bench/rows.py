"""One measurement as a row of a results file."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

import torch

from bench.cases import Case
from bench.timing import Call, device_seconds, quantiles
from shapmix.kernels import BACKENDS, unavailable
from shapmix.kernels.checks import dtype_name
from shapmix.kernels.examples import Shape

FAST = tuple(backend for backend in BACKENDS if backend != "reference")


def cannot_run(case: Case, backend: str, dtype: torch.dtype, device: torch.device) -> str | None:
    """The reason why a back end cannot run a case, None if it can."""
    reasons = (unavailable(backend, device, dtype, op) for op in case.ops.split(" + "))
    return next((reason for reason in reasons if reason), None)


def device_times(calls: Mapping[str, Call], device: torch.device) -> dict[str, dict[str, list[float]]]:
    """Clock (cold, hot) -> device times of each call."""
    return {
        clock: {name: device_seconds(call, device, cold=clock == "cold") for name, call in calls.items()}
        for clock in ("cold", "hot")
    }


def row(
    case: Case,
    shape: Shape,
    dtype: torch.dtype,
    backend: str,
    device: torch.device,
    bytes_moved: int,
    times: Mapping[str, Mapping[str, list[float]]],
) -> dict[str, Any]:
    """The record of a measurement.

    Args:
        times: clock (`wall`, on a GPU also `cold` and `hot`) -> call (`op`, `copy`, for `wall` also `reference`) -> seconds.
            Wall times are interleaved.

    Bandwidth and its ratio to the copy are computed from the cold device time if available, else from the wall time, and then the
    ratio is the median over rounds.
    """
    clock = "cold" if "cold" in times else "wall"
    wall, headline = times["wall"], times[clock]
    op, copy = (median(headline[name]) for name in ("op", "copy"))
    share: float | None
    if clock == "wall":
        share = median(base / own for base, own in zip(wall["copy"], wall["op"], strict=True))
    else:
        share = copy / op if op else None
    return {
        "ops": case.ops,
        "variant": case.variant,
        "shape": shape.name,
        "size": list(shape.size),
        "dtype": dtype_name(dtype),
        "backend": backend,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "bytes_moved": bytes_moved,
        "clock": clock,
        "gb_per_s": round(bytes_moved / op / 1e9, 3) if op else None,
        "copy_share": None if share is None else round(share, 3),
        "speedup": quantiles([base / own for base, own in zip(wall["reference"], wall["op"], strict=True)]),
        "seconds": {name: {what: quantiles(own) for what, own in timed.items()} for name, timed in times.items()},
    }
