"""Whether training in bfloat16 is faster than in float32 on this machine's CPU."""

from __future__ import annotations

import time
from contextlib import nullcontext
from statistics import median

import torch
from torch import Tensor, nn

from shapmix.networks.ctrgcn import CTRGCN
from shapmix.skeleton.layout import load_layout

SECONDS = 2.0  # for all passes
FEWEST = 3  # rounds, of one pass in each precision
WORTH_IT = 0.95  # of float32's time: a difference within the noise is no reason to round


def recommended(seconds: float | None = None) -> str:
    """One line: the time of a small CTR-GCN's training pass in bfloat16 relative to float32, and which to train in.

    The passes are interleaved and their ratio is the median over rounds, so that other work on the machine affects both alike. They
    use one thread: where several compete with other work, the time that they wait for each other would decide the ratio.

    Args:
        seconds: to measure for, but at least `FEWEST` rounds; None for `SECONDS`.
    """
    with torch.random.fork_rng([]):
        layout = load_layout("ntu25")
        network = CTRGCN(layout, 10, num_people=1, in_channels=3, widths=(64, 128), halve=(1,))
        clips = torch.randn(4, 3, 16, layout.num_joints, 1)
    threads = torch.get_num_threads()
    ratios: list[float] = []
    torch.set_num_threads(1)
    try:
        end = time.monotonic() + (SECONDS if seconds is None else seconds)
        _round(network, clips)  # warms up
        while len(ratios) < FEWEST or time.monotonic() < end:
            ratios.append(_round(network, clips))
    finally:
        torch.set_num_threads(threads)
    ratio = median(ratios)
    advice = "train with --precision bf16" if ratio < WORTH_IT else "train in fp32, the default"
    return f"bf16 takes {ratio:.2f} times as long as fp32: {advice}"


def _round(network: nn.Module, clips: Tensor) -> float:
    whole, half = (pass_seconds(network, clips, dtype) for dtype in (None, torch.bfloat16))
    return half / whole


def pass_seconds(network: nn.Module, clips: Tensor, autocast: torch.dtype | None) -> float:
    """Wall time of a forward and backward pass over the clips [N, C, T, V, M] on the CPU."""
    begin = time.perf_counter()
    with torch.autocast("cpu", autocast) if autocast else nullcontext():
        logits = network(clips)
    network.zero_grad(set_to_none=True)
    logits.float().square().mean().backward()
    return time.perf_counter() - begin
