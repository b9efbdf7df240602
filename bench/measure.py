"""Measures every op on every back end of the first device: `python -m bench.measure --out FILE`.

Each op's wall time is interleaved with that of the eager reference and of a copy of as many bytes; on a GPU, device times with cold
and with hot caches are added. Appends one JSON line per measurement, after one with the commit and the machine, most important
first: float32 and then half precision on the first shape, then the other shapes. After `--seconds`, no further shape is started,
and the skipped shapes are listed. `python -m bench.report FILE` prints the tables.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.cases import CASES, HALF, REAL, SHAPES, Case
from bench.machine import commit, machine
from bench.rows import FAST, cannot_run, device_times, row
from bench.timing import copy_of, device_seconds, interleaved
from shapmix.kernels.checks import dtype_name
from shapmix.kernels.examples import Batch, Shape

COPIED = {"cpu": 256 << 20, "cuda": 8 << 30}  # traffic of the copy that measures the bandwidth
BUDGET = 0.1  # seconds of interleaved wall times per case


def copy_bandwidth(device: torch.device, num_bytes: int) -> dict[str, Any]:
    """Bandwidth of a copy much larger than any cache, counting reads and writes."""
    times = device_seconds(copy_of(num_bytes, device), device, cold=False, replays=10)
    return {"bytes_moved": num_bytes, "gb_per_s": num_bytes / median(times) / 1e9}


def measure(case: Case, batch: Batch, budget: float = BUDGET) -> Iterator[dict[str, Any]]:
    """Yields a row per available back end; wall times are interleaved with those of the reference."""
    device = batch.device
    backends = [backend for backend in FAST if cannot_run(case, backend, batch.dtype, device) is None]
    if not backends:
        return
    problem = case.make(batch)
    own = {backend: partial(problem.run, backend) for backend in backends}
    copy = copy_of(problem.bytes_moved, device)
    wall = interleaved({"copy": copy, "reference": problem.reference, **own}, device, budget=budget, least=3, most=50)
    clocks = {"wall": wall} | (device_times({"copy": copy, **own}, device) if device.type == "cuda" else {})
    for backend in backends:
        others = set(backends) - {backend}
        times = {
            clock: {"op" if name == backend else name: found for name, found in timed.items() if name not in others}
            for clock, timed in clocks.items()
        }
        yield row(case, batch.shape, batch.dtype, backend, device, problem.bytes_moved, times)


def measure_all(
    device: torch.device,
    shapes: Sequence[Shape],
    dtypes: Sequence[torch.dtype],
    cases: Sequence[Case] = CASES,
    budget: float = BUDGET,
) -> Iterator[dict[str, Any]]:
    """Yields rows in order of dtypes, shapes, cases; a failed case yields a row with its `error`."""
    for dtype in dtypes:
        for shape in shapes:
            batch = Batch(shape, dtype, device)
            for case in cases:
                if dtype not in case.dtypes:
                    continue
                try:
                    yield from measure(case, batch, budget)
                except Exception as error:
                    named = {"ops": case.ops, "variant": case.variant, "shape": shape.name, "dtype": dtype_name(dtype)}
                    yield {**named, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
                if device.type == "cuda":
                    torch.cuda.empty_cache()  # each graph was warmed up on a separate stream


def parts(device: torch.device) -> list[tuple[Shape, Sequence[torch.dtype]]]:
    """Shapes and dtypes to measure, in order."""
    shapes = SHAPES[device.type]
    return [(shapes[0], REAL), (shapes[0], HALF), *((shape, REAL) for shape in shapes[1:]), (shapes[1], HALF)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=inf, help="start no shape after this time")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds of interleaved wall times per case")
    ops = sorted({case.ops for case in CASES})
    shapes = sorted({shape.name for of_device in SHAPES.values() for shape in of_device})
    dtypes = [dtype_name(dtype) for dtype in (*REAL, *HALF)]
    for option, names in (("--ops", ops), ("--shapes", shapes), ("--dtypes", dtypes)):
        parser.add_argument(option, nargs="+", choices=names, default=names, help="default: all")
    options = parser.parse_args(arguments)
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    cases = [case for case in CASES if case.ops in options.ops]
    begin = time.monotonic()
    with options.out.open("a", encoding="utf-8") as lines:

        def write(**line: Any) -> None:
            print(json.dumps(line), file=lines, flush=True)

        write(command="python -m bench.measure", commit=commit(), machine=machine())
        write(copy=copy_bandwidth(device, COPIED[device.type]))
        for shape, dtype in ((shape, dtype) for shape, of_shape in parts(device) for dtype in of_shape):
            if shape.name not in options.shapes or dtype_name(dtype) not in options.dtypes:
                continue
            if time.monotonic() - begin > options.seconds:
                write(skipped=f"{shape.name} {dtype_name(dtype)}")
                continue
            for found in measure_all(device, [shape], [dtype], cases, options.budget):
                write(row=found)


if __name__ == "__main__":
    main()
