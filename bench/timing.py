"""The clock of all benchmarks: wall time of interleaved calls, and device time of CUDA graph replays, with cold or hot caches.

Every function takes calls without arguments. Noise of the machine affects interleaved calls alike, so ratios are computed within a
round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import quantiles as cut_points

import torch

Call = Callable[[], object]
Quantiles = dict[str, float]  # p20, p50, p80

HOST_CACHE_BYTES = 128 << 20  # larger than the last-level cache of a CPU
GRAPH_SECONDS = 1e-3  # of launches per graph, long compared with the launch of a replay
FEWEST_LAUNCHES, MOST_LAUNCHES = 5, 100


def quantiles(times: list[float]) -> Quantiles:
    """Quantiles of at least one time, linearly interpolated, with four significant figures."""
    tenths = cut_points(times, n=10, method="inclusive") if len(times) > 1 else times * 9
    return {name: float(f"{tenths[tenth - 1]:.4g}") for name, tenth in (("p20", 2), ("p50", 5), ("p80", 8))}


def seconds(call: Call, device: torch.device) -> float:
    """Wall time of one call, synchronised before and after."""
    _wait_for(device)
    begin = time.perf_counter()
    call()
    _wait_for(device)
    return time.perf_counter() - begin


def interleaved(
    calls: Mapping[str, Call], device: torch.device, *, budget: float, least: int = 5, most: int = 50
) -> dict[str, list[float]]:
    """Wall times of interleaved calls, in rounds, for about `budget` seconds.

    Args:
        least, most: bounds on the number of rounds.
    """
    for call in calls.values():
        call()  # compiles and warms up the allocator
    rounds = least
    if least < most:
        rounds = rounds_within(budget, sum(seconds(call, device) for call in calls.values()), least, most)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, device))
    return times


def rounds_within(budget: float, once: float, least: int, most: int) -> int:
    """The number of repetitions of a call that takes `once` seconds."""
    return min(max(int(budget / once), least), most)


def copy_of(num_bytes: int, device: torch.device) -> Call:
    """Copies half of `num_bytes` to another buffer: traffic of `num_bytes`, the floor of an op with the same traffic."""
    source = torch.zeros(max(num_bytes // 2, 1), dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return lambda: target.copy_(source)


def device_seconds(call: Call, device: torch.device, *, cold: bool, replays: int = 20) -> list[float]:
    """Device times of one call; wall times on a CPU.

    On a GPU, a CUDA graph captures many launches and events time its replays, queued behind another replay so that the device
    never waits for the host. If cold, a buffer larger than the L2 is written before each launch, and the time of a graph with
    these writes alone is subtracted; write-back of the launch's dirty L2 lines then counts for the launch.

    Args:
        cold: flush the caches before each call; else they hold what the previous call left.
    """
    if device.type == "cpu":
        return _host_seconds(call, cold=cold, repeats=replays)
    if not cold:
        launches = _launches_of(call)
        return _replay_seconds([_captured([call], launches)], launches, replays)[0]

    cache = torch.empty(2 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.uint8, device=device)

    def flush() -> None:
        cache.zero_()

    launches = max(_launches_of(call) // 4, FEWEST_LAUNCHES)
    with_call, alone = _replay_seconds([_captured([flush, call], launches), _captured([flush], launches)], launches, replays)
    return [max(both - only, 0.0) for both, only in zip(with_call, alone, strict=True)]


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _host_seconds(call: Call, *, cold: bool, repeats: int) -> list[float]:
    cache = torch.empty(HOST_CACHE_BYTES if cold else 0, dtype=torch.uint8)
    call()
    times = []
    for _ in range(repeats):
        cache.zero_()
        times.append(seconds(call, cache.device))
    return times


def _launches_of(call: Call) -> int:
    """The number of launches per graph, estimated from their time outside a graph, an upper bound."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    call()
    begin.record()
    for _ in range(FEWEST_LAUNCHES):
        call()
    end.record()
    end.synchronize()
    once = begin.elapsed_time(end) / 1e3 / FEWEST_LAUNCHES
    return rounds_within(GRAPH_SECONDS, once, FEWEST_LAUNCHES, MOST_LAUNCHES)


def _captured(calls: list[Call], launches: int) -> torch.cuda.CUDAGraph:
    """Captures a graph with `launches` repetitions of the calls in order."""
    side_stream = torch.cuda.Stream()
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        for _ in range(3):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            for call in calls:
                call()
    return graph


def _replay_seconds(graphs: list[torch.cuda.CUDAGraph], launches: int, replays: int) -> list[list[float]]:
    """Seconds per launch of each graph, from interleaved replays."""
    times: list[list[float]] = [[] for _ in graphs]
    for _ in range(replays):
        for graph, own in zip(graphs, times, strict=True):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            graph.replay()
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            own.append(begin.elapsed_time(end) / 1e3 / launches)
    return times
