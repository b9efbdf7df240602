"""How near `graph_conv` on the CPU comes to the rate of a matrix product, for each layer of CTR-GCN.

    python -m bench.product_rate --rows 16

One thread; the op's calls alternate with `torch.mm` of 1024 x 1024, and shares are medians over the rounds. Products are counted
as the op does them: forward builds the graphs and aggregates, backward builds them again and has two gradients of each. To compare
the instruction sets of one processor, pin those of torch too:

    SHAPMIX_ISA=avx2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 python -m bench.product_rate
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median

import torch

from bench.timing import interleaved
from shapmix.kernels.examples import Batch, Shape, example
from shapmix.kernels.graph import graph_conv, graph_conv_backward
from shapmix.process.memory import keep_freed_memory

LAYERS = ((64, 64, 8), (128, 64, 8), (128, 32, 16), (256, 32, 16), (256, 16, 32))  # channels, frames, relations
SIDE = 1024  # of the matrices
CPU = torch.device("cpu")


def flops(shape: tuple[int, int, int, int], channels: int, relations: int) -> tuple[int, int]:
    """FLOPs of a forward and a backward call; tanh is not counted.

    Args:
        shape: rows, frames, joints and subsets.
    """
    rows, frames, joints, subsets = shape
    each = 2 * rows * joints * joints * subsets * channels
    return each * (frames + relations), each * (2 * frames + 3 * relations)


def measure(rows: int, joints: int, layer: tuple[int, int, int], least: int) -> dict[str, tuple[float, float]]:
    """GFLOP/s of forward and backward, and their share of the rate of `torch.mm`: medians over at least `least` rounds."""
    channels, frames, relations = layer
    shape = Shape("layer", None, (rows, 3, frames, joints, 1), 60, subsets=3, width=channels, relations=relations)
    arguments = example("graph_conv", Batch(shape, torch.float32, CPU))
    grad = graph_conv(**arguments).normal_()
    a, b = torch.randn(2, SIDE, SIDE)
    calls = {
        "mm": lambda: torch.mm(a, b),
        "forward": lambda: graph_conv(**arguments),
        "backward": lambda: graph_conv_backward(grad, **arguments),
    }
    times = interleaved(calls, CPU, budget=0.0, least=least)
    found = {}
    for name, count in zip(("forward", "backward"), flops((rows, frames, joints, 3), channels, relations), strict=True):
        rates = [count / seconds for seconds in times[name]]
        shares = [rate * mm / (2 * SIDE**3) for rate, mm in zip(rates, times["mm"], strict=True)]
        found[name] = (median(rates) / 1e9, median(shares))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line per layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16, help="clips times people (default %(default)s)")
    parser.add_argument("--joints", type=int, default=25, help="joints of the skeleton (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="calls of each kind per layer (default %(default)s)")
    options = parser.parse_args(arguments)
    keep_freed_memory()  # as in training: no page faults for the results
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for layer in LAYERS:
            found = measure(options.rows, options.joints, layer, options.rounds)
            columns = [f"{name} {rate:6.1f} GFLOP/s {share:4.0%} of mm" for name, (rate, share) in found.items()]
            print("channels {:3d} frames {:2d} relations {:2d}".format(*layer), *columns, sep="  ")
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
