"""CTR-GCN compared with the reference implementation: `python -m bench.network --out FILE`.

Measures coalition forward passes (eval mode, no gradient), a training forward and backward pass, and a whole Shap-Mix step of the
published network on NTU clips, interleaved with the reference. Speed-ups are computed within a round. Also reports the distance of
results and gradients from the reference, and peak memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.cases import NTU, total
from bench.machine import commit, machine, peak_bytes
from bench.timing import interleaved, quantiles
from shapmix import ShapMix
from shapmix.kernels.examples import Batch, Shape
from shapmix.networks import ctrgcn, ctrgcn_reference

CLIPS = 16
SECONDS = 40.0  # budget per comparison
HALF = torch.bfloat16
VARIANTS = ("reference", "float32", "bfloat16")
Run = Callable[[], object]


def networks(shape: Shape, device: torch.device) -> dict[str, nn.Module]:
    """The reference and the fast network, with the same parameters."""
    _, channels, _, _, people = shape.size
    layout = Batch(shape, torch.float32, device).layout
    torch.manual_seed(0)
    theirs = ctrgcn_reference.CTRGCN(layout, shape.classes, num_people=people, in_channels=channels, graph_gain=1.0)
    ours = ctrgcn.CTRGCN(layout, shape.classes, num_people=people, in_channels=channels, graph_gain=1.0)
    ours.load_state_dict(theirs.state_dict())
    return {"reference": theirs.to(device), "op": ours.to(device)}


def variants(of: Callable[[nn.Module, bool], Run], pair: dict[str, nn.Module]) -> dict[str, Run]:
    """The reference, the fast network, and the fast network in bfloat16."""
    return {
        "reference": of(pair["reference"], False),
        "float32": of(pair["op"], False),
        "bfloat16": of(pair["op"], True),
    }


def forward(batch: Batch) -> Callable[[nn.Module, bool], Run]:
    """Forward pass in eval mode."""

    def of(network: nn.Module, half: bool) -> Run:
        def run() -> Tensor:
            network.eval()
            with torch.no_grad(), torch.autocast(batch.device.type, HALF, enabled=half):
                logits: Tensor = network(batch.clips)
            return logits.float()

        return run

    return of


def training(batch: Batch) -> Callable[[nn.Module, bool], Run]:
    """Forward and backward pass in training mode."""

    def of(network: nn.Module, half: bool) -> Run:
        def run() -> Tensor:
            network.train()
            network.zero_grad(set_to_none=True)
            with torch.autocast(batch.device.type, HALF, enabled=half):
                logits = network(batch.clips)
            nn.functional.cross_entropy(logits.float(), batch.labels).backward()
            return torch.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None])

        return run

    return of


def whole_step(batch: Batch, backend_of: dict[int, str | None]) -> Callable[[nn.Module, bool], Run]:
    """Saliency, mixing, forward, backward and optimiser."""

    def of(network: nn.Module, half: bool) -> Run:
        mixer = ShapMix(batch.layout, batch.class_counts.cpu(), batch.mean_motion.cpu(), backend=backend_of[id(network)])
        mixer = mixer.to(batch.device)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=4e-4)
        steps = iter(range(1 << 30))

        def run() -> None:
            network.train()
            index = next(steps)
            with torch.autocast(batch.device.type, HALF, enabled=half):
                mixer.observe(network, batch.clips, batch.labels, index)
                mixed = mixer.mix(batch.clips, batch.labels, index)
                logits = network(mixed.clips)
            optimizer.zero_grad(set_to_none=True)
            total(mixer.loss(logits, mixed)).backward()
            optimizer.step()

        return run

    return of


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative L2 distance."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def measure(device: torch.device, clips: int, budget: float) -> dict[str, Any]:
    """Times of every variant in seconds, and distances from the reference."""
    batch = Batch(Shape("ntu", NTU.layout, (clips, *NTU.size[1:]), NTU.classes), torch.float32, device)
    found: dict[str, Any] = {"clips": clips, "threads": torch.get_num_threads()}
    for name, of in (("coalition forward", forward(batch)), ("training forward and backward", training(batch))):
        runs = variants(of, networks(batch.shape, device))
        results = {variant: run() for variant, run in runs.items()}
        distance = {
            variant: relative(results[variant], results["reference"])  # type: ignore[arg-type]
            for variant in ("float32", "bfloat16")
        }
        found[name] = {"distance": distance, "seconds": _times(runs, device, budget)}
    pair = networks(batch.shape, device)
    backend_of: dict[int, str | None] = {id(pair["reference"]): "reference", id(pair["op"]): None}
    found["shapmix step"] = {"seconds": _times(variants(whole_step(batch, backend_of), pair), device, budget)}
    return found


def memory(device: torch.device, clips: int) -> dict[str, int]:
    """Peak memory of a training forward and backward pass, in bytes; on a CPU, in separate processes."""
    if device.type == "cpu":
        children = {name: [sys.executable, "-m", "bench.network", "--clips", str(clips), "--memory-of", name] for name in VARIANTS}
        return {
            name: int(subprocess.run(child, check=True, capture_output=True, text=True).stdout.split()[-1])
            for name, child in children.items()
        }
    found = {}
    for name in VARIANTS:
        run = one_training_run(device, clips, name)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        found[name] = torch.cuda.max_memory_allocated(device) - before
    return found


def one_training_run(device: torch.device, clips: int, name: str) -> Run:
    """Forward and backward pass of one variant."""
    batch = Batch(Shape("ntu", NTU.layout, (clips, *NTU.size[1:]), NTU.classes), torch.float32, device)
    return variants(training(batch), networks(batch.shape, device))[name]


def _times(runs: dict[str, Run], device: torch.device, budget: float) -> dict[str, Any]:
    times = interleaved(runs, device, budget=budget)
    ratios = {
        f"speed-up {variant}": quantiles([base / own for base, own in zip(times["reference"], times[variant], strict=True)])
        for variant in ("float32", "bfloat16")
    }
    return {name: quantiles(values) for name, values in times.items()} | ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)  # the process that measures one variant
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    arguments = parser.parse_args()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if arguments.memory_of is not None:
        print(peak_bytes(one_training_run(device, arguments.clips, arguments.memory_of)))
        return
    if arguments.out is None:
        parser.error("--out is required")
    content: dict[str, Any] = {"command": "python -m bench.network", "commit": commit(), "machine": machine()}
    content |= measure(device, arguments.clips, arguments.seconds)
    content["peak bytes"] = memory(device, arguments.clips)
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    for name in ("coalition forward", "training forward and backward", "shapmix step"):
        seconds = content[name]["seconds"]
        line = ", ".join(
            f"{variant} {seconds[variant]['p50']:.3f} s ({seconds[f'speed-up {variant}']['p50']:.1f}x)"
            for variant in ("float32", "bfloat16")
        )
        print(f"{name}: reference {seconds['reference']['p50']:.3f} s, {line}")
    peak = content["peak bytes"]
    print("peak memory of training: " + ", ".join(f"{name} {peak[name] / 1e9:.2f} GB" for name in VARIANTS))


if __name__ == "__main__":
    main()
