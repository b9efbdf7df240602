"""Run time of the network against input size, with its roofline: `python -m bench.cost_model --out FILE --plot PNG`.

Varies one axis of the published network on NTU clips at a time: clips, frames, joints (layouts), classes, and coalitions per
batch. The floor of a forward pass is the maximum of its FLOPs divided by the throughput of a large matrix product on this machine,
and of its traffic (each layer's input read and output written once) divided by the bandwidth of a large copy. A backward pass
counts as two forward passes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy

from bench.machine import commit, machine
from bench.timing import copy_of, interleaved, seconds
from shapmix.networks.ctrgcn import CTRGCN
from shapmix.shapley.game import PartGame
from shapmix.skeleton.layout import load_layout

PEOPLE, CHANNELS, ROUNDS = 2, 3, 5
BASE = {"clips": 4, "frames": 64, "layout": "ntu25", "classes": 60}
AXES: dict[str, tuple[Any, ...]] = {
    "clips": (1, 2, 4, 8, 16),
    "frames": (16, 32, 64, 128),
    "layout": ("coco17", "ucla20", "ntu25"),
    "classes": (10, 60, 400),
}
COALITIONS = (1, 3, 7, 15, 31)  # non-empty coalitions of one clip with 1 to 5 parts
CPU = torch.device("cpu")


def work(network: CTRGCN, frames: int, joints: int) -> tuple[float, float]:
    """FLOPs and bytes (float32) of the fused layers for one person of a clip."""
    operations = moved = 0.0
    for layer in network.layers:
        unit, stride = layer.gcn1, layer.tcn1.branches[3][0].stride[0]
        conv: Any = unit.convs[0]
        before, width, relations, subsets = conv.conv3.in_channels, conv.conv3.out_channels, conv.conv4.in_channels, len(unit.convs)
        after = -(-frames // stride)
        quarter = width / 4
        products = frames * joints * before * (subsets * width + (width if before != width else 0))
        products += joints * before * 2 * subsets * relations + subsets * joints * joints * relations * width
        products += frames * joints * subsets * joints * width
        products += frames * joints * width * 3 * quarter + after * joints * (10 * quarter * quarter + width * quarter)
        if isinstance(layer.residual, nn.Module) and not isinstance(layer.residual, nn.Identity):
            products += after * joints * before * width
        operations += 2 * products
        moved += 4 * joints * (frames * before + after * width)
        frames = after
    return operations, moved


def fastest_product() -> float:
    """FLOP/s of a 1x1 convolution that is large enough to reach peak throughput."""
    x = torch.randn(16, 256, 32, 25).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(768, 256, 1, 1)
    with torch.no_grad():
        best = min(seconds(lambda: conv2d(x, weight), CPU) for _ in range(20))
    return 2 * 768 * x.numel() / best


def fastest_copy() -> float:
    """Bandwidth of a large copy, in bytes per second."""
    size = 256 << 20
    copy = copy_of(size, CPU)
    return size / min(seconds(copy, CPU) for _ in range(10))


def times_of(call: Callable[[], object]) -> float:
    return median(interleaved({"call": call}, CPU, budget=0.0, least=ROUNDS, most=ROUNDS)["call"])


def point(clips: int, frames: int, layout: str, classes: int, rates: tuple[float, float]) -> dict[str, float]:
    """Seconds of both passes, with their floors."""
    skeleton = load_layout(layout)
    torch.manual_seed(0)
    network = CTRGCN(skeleton, classes, num_people=PEOPLE, in_channels=CHANNELS, graph_gain=1.0)
    x = torch.randn(clips, CHANNELS, frames, skeleton.num_joints, PEOPLE)
    labels = torch.arange(clips) % classes

    def evaluated() -> Tensor:
        network.eval()
        with torch.no_grad():
            return network(x)

    def trained() -> None:
        network.train()
        network.zero_grad(set_to_none=True)
        cross_entropy(network(x), labels).backward()

    operations, moved = work(network, frames, skeleton.num_joints)
    floor = max(operations / rates[0], moved / rates[1]) * clips * PEOPLE
    return {"forward": times_of(evaluated), "training": times_of(trained), "floor forward": floor, "floor training": 3 * floor}


def coalitions_of_a_clip(rates: tuple[float, float]) -> list[dict[str, float]]:
    """All coalitions of one clip with 1 to 5 parts: `PartGame` against the floor of as many clips."""
    layout = load_layout("ntu25")
    torch.manual_seed(0)
    network = CTRGCN(layout, BASE["classes"], num_people=PEOPLE, in_channels=CHANNELS, graph_gain=1.0)  # type: ignore[arg-type]
    frames = int(BASE["frames"])  # type: ignore[call-overload]
    x = torch.randn(1, CHANNELS, frames, layout.num_joints, PEOPLE)
    operations, moved = work(network, frames, layout.num_joints)
    floor = max(operations / rates[0], moved / rates[1]) * PEOPLE
    game = PartGame(network, layout, torch.zeros(x.shape[1:]), max_rows=COALITIONS[-1])
    whole = times_of(lambda: game.table(x))
    rows = [{"forward": whole, "floor forward": floor * (COALITIONS[-1] + 1), "x": float(COALITIONS[-1])}]
    network.eval()
    for count in COALITIONS[:-1]:
        some = x.expand(count, -1, -1, -1, -1).contiguous()
        with torch.no_grad():
            taken = times_of(lambda some=some: network(some))  # type: ignore[misc]
        rows.insert(-1, {"forward": taken, "floor forward": floor * count, "x": float(count)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    rates = fastest_product(), fastest_copy()
    found: dict[str, list[dict[str, Any]]] = {}
    for axis, values in AXES.items():
        found[axis] = [{"x": value, **point(**BASE | {axis: value}, rates=rates)} for value in values]  # type: ignore[arg-type]
        for row in found[axis]:
            ratio = {kind: row[kind] / row[f"floor {kind}"] for kind in ("forward", "training")}
            print(f"{axis} {row['x']}: " + ", ".join(f"{kind} {row[kind]:.3f} s, {ratio[kind]:.1f}x its floor" for kind in ratio))
    found["coalitions"] = coalitions_of_a_clip(rates)
    content = {
        "command": "python -m bench.cost_model",
        "commit": commit(),
        "machine": machine(),
        "rates": {"operations a second": rates[0], "bytes a second": rates[1]},
        "threads": torch.get_num_threads(),
        "base": BASE,
        "axes": found,
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    if arguments.plot:
        plot(arguments.plot, found)


def plot(path: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    """One panel per axis; measured times as solid lines, floors dashed."""
    figure = Figure(figsize=(13, 2.9), layout="constrained")
    colours = {"forward": "#1f4e6b", "training": "#d9822b"}
    for axes, (axis, rows) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        numbers = [load_layout(row["x"]).num_joints if axis == "layout" else row["x"] for row in rows]
        for kind, colour in colours.items():
            if kind in rows[0]:
                axes.plot(numbers, [row[kind] for row in rows], "o-", color=colour, label=kind, markersize=3)
                axes.plot(numbers, [row[f"floor {kind}"] for row in rows], "--", color=colour, label=f"{kind}, floor")
        axes.set_xlabel("joints" if axis == "layout" else axis)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("seconds")
    figure.axes[0].legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
