"""The two mixing ops, one group an op and shape, one row a back end; GB/s and the share of what a plain copy reaches.

    pytest bench --benchmark-only

`copy_share` is the time that torch's `copy_` takes to move as many bytes, measured in the same run, over the op's time. It can
exceed 1 where inputs come from the cache; it is low where the output is so large that every call gets fresh pages from the
system (31 coalitions), which an op avoids when it is given a buffer (`out`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor

from shapmix.kernels import BACKENDS, coalition_inputs, mix_clips, unavailable
from shapmix.layout import Layout, load_layout
from shapmix.plan import draw_stmix

SHAPES = {
    "ntu": ("ntu25", (64, 3, 64, 25, 2)),
    "k400": ("coco17", (80, 3, 100, 17, 2)),
    "nw_ucla": ("ucla20", (32, 3, 64, 20, 1)),
}
DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def copy_seconds(num_bytes: int) -> float:
    """Median time to copy half of `num_bytes` into another buffer, which moves `num_bytes`."""
    source = torch.zeros(num_bytes // 2, dtype=torch.uint8, device=DEVICE)
    target = torch.ones_like(source)
    times = []
    for _ in range(15):
        synchronize()
        begin = time.perf_counter()
        target.copy_(source)
        synchronize()
        times.append(time.perf_counter() - begin)
    return median(times)


def clips_of(shape: str) -> tuple[Layout, Tensor, Tensor]:
    """Layout, clips and part_of_joint."""
    name, size = SHAPES[shape]
    layout = load_layout(name)
    clips = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    return layout, clips, layout.part_of_joint.to(DEVICE)


def measure(benchmark: Any, backend: str, bytes_moved: int, op: Callable[[], Tensor]) -> None:
    if reason := unavailable(backend, DEVICE):
        pytest.skip(f"{backend}: {reason}")

    def run() -> None:
        op()
        synchronize()

    benchmark.pedantic(run, rounds=30, warmup_rounds=3)
    seconds = benchmark.stats.stats.median if benchmark.stats else None
    if seconds is None:  # run with --benchmark-disable
        return
    info = benchmark.extra_info
    info["bytes_moved"] = bytes_moved
    info["gb_per_s"] = round(bytes_moved / seconds / 1e9, 2)
    info["copy_share"] = round(copy_seconds(bytes_moved) / seconds, 3)
    info["device"] = str(DEVICE)
    info["threads"] = torch.get_num_threads()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_mix_clips(benchmark: Any, shape: str, backend: str) -> None:
    """Reads the batch and its partners, writes [clean; mixed]."""
    benchmark.group = f"mix_clips {shape}"
    layout, clips, part_of_joint = clips_of(shape)
    plan = draw_stmix(clips.shape[0], layout, clips.shape[2], seed=0, step=0, blend_probability=0.0)
    plan = type(plan)(**{name: value.to(DEVICE) for name, value in vars(plan).items()})
    bytes_moved = 4 * clips.nbytes
    measure(benchmark, backend, bytes_moved, lambda: mix_clips(clips, plan, part_of_joint, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sets", [2, 31])
def test_coalition_inputs(benchmark: Any, sets: int, shape: str, backend: str) -> None:
    """Reads the batch once and writes it under 2 coalitions, as published, or under 31."""
    benchmark.group = f"coalition_inputs {shape} S={sets}"
    _, clips, part_of_joint = clips_of(shape)
    mean_motion = clips.mean(0)
    coalitions = torch.arange(1, sets + 1, device=DEVICE)
    bytes_moved = (1 + sets) * clips.nbytes + mean_motion.nbytes

    measure(
        benchmark, backend, bytes_moved, lambda: coalition_inputs(clips, mean_motion, coalitions, part_of_joint, backend=backend)
    )
