"""Runs one op on small, odd shapes on every GPU back end, for use under a sanitizer: `python -m tests.gpu.small_shapes OP`.

`layers` instead of an op runs a small CTR-GCN through its fused layers.

`--fault` instead mixes with an out-of-range plan, which the kernels do not check on a GPU: a sanitizer that does not report it is
not working.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import torch

from bench.cases import CASES, Case
from bench.rows import FAST, cannot_run
from shapmix.kernels import mix_clips
from shapmix.kernels.examples import Batch, Shape
from shapmix.networks.ctrgcn import CTRGCN
from shapmix.skeleton.layout import load_layout

SMALL = (
    Shape("two people", "ntu25", (5, 3, 12, 25, 2), 7),
    Shape("one person", "ucla20", (3, 3, 8, 20, 1), 33),
    Shape("score", "coco17", (3, 3, 20, 17, 2), 5),
)
LAYERS = "layers"
FAR = 1 << 24  # samples


def cases_of(op: str) -> list[Case]:
    """The cases of a single op."""
    return [case for case in CASES if case.ops == op]


def run_small(op: str, device: torch.device) -> int:
    """Runs the op and returns the number of runs."""
    runs = 0
    for case in cases_of(op):
        for shape in SMALL:
            for dtype in case.dtypes:
                problem = case.make(Batch(shape, dtype, device))
                for backend in FAST:
                    if cannot_run(case, backend, dtype, device) is None:
                        problem.run(backend)
                        runs += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    return runs


def run_layers(device: torch.device) -> int:
    """Trains and evaluates a small CTR-GCN with fused layers in float32 and bfloat16, and returns the number of passes."""
    runs = 0
    network = CTRGCN(load_layout("coco17"), 5, num_people=1, in_channels=3, widths=(8, 24, 24), halve=(1,)).to(device)
    clips = torch.randn(3, 3, 7, 17, 1, device=device)
    for dtype in (torch.float32, torch.bfloat16):
        for training in (True, False):
            network.train(training)
            with torch.set_grad_enabled(training), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                if network.steps_on(clips) is None:
                    continue
                logits = network(clips)
            if training:
                logits.sum().backward()
            runs += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    return runs


def run_fault(device: torch.device) -> None:
    """Reads far out of bounds."""
    batch = Batch(SMALL[0], torch.float32, device)
    plan = replace(batch.plan, partner=batch.plan.partner + FAR)
    mix_clips(batch.clips, plan, batch.part_of_joint, backend="cuda")
    torch.cuda.synchronize()


def main() -> int:
    """Exit code 0 if the op ran, 1 if no GPU back end has it, so that an op that did not run is not reported as clean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("op", nargs="?", choices=[LAYERS, *sorted({case.ops for case in CASES if " + " not in case.ops})])
    what.add_argument("--fault", action="store_true")
    arguments = parser.parse_args()
    device = torch.device("cuda:0")
    if arguments.fault:
        run_fault(device)
        return 0
    runs = run_layers(device) if arguments.op == LAYERS else run_small(arguments.op, device)
    print(f"{arguments.op} ran {runs} times")
    return int(runs == 0)


if __name__ == "__main__":
    sys.exit(main())
