"""CTR-GCN on the CPU beside the reference, for every instruction set: `python -m bench.network --out FILE`.

Measures a coalition forward pass (eval mode, no gradient), a training pass (forward and backward) and whole Shap-Mix steps of the
published network on NTU clips. Each instruction set has a process of its own: SHAPMIX_ISA pins the kernels, and the variables of
torch, oneDNN and MKL pin theirs, except for the widest set. Within a process, the reference and the network are timed in turns, and
speed-ups are computed within a round.

The floor of a pass is the time of its arithmetic at the machine's rate: the convolutions as counted by torch and the graph
convolutions by their formula, at the highest rate of any call of several matrix products in the same process, as `torch.mm` and as
1x1 convolutions. Passes over memory (normalisation, activations, pooling) count nothing. Other work slows a pass more
than the fastest call of a product: the pass is then farther from the floor than it is alone. There is no floor in bfloat16.

Whole steps are measured with and without a saliency measurement, by the published estimator (`official`). The reference measures in
every step, in float32. Ours is compared with it twice: with a measurement in every step as well, and in every second step
(`ShapMix(every=2)`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.cases import NTU, total
from bench.instruction_sets import TITLES, available_sets, from_avx2, in_process, isa_environment
from bench.machine import commit, machine, peak_bytes
from bench.timing import interleaved, quantiles, seconds
from shapmix import ShapMix
from shapmix.kernels.examples import Batch, Shape
from shapmix.mixing.estimators import ESTIMATORS
from shapmix.networks import ctrgcn, ctrgcn_reference
from shapmix.process.cpu import multiplies_bf16, prepare_cpu

MODULE = "bench.network"
CLIPS, ROUNDS = 8, 5
ESTIMATOR = "official"  # two forward passes per clip, whatever the size of the batch
CPU, HALF = torch.device("cpu"), torch.bfloat16
PRECISIONS = ("float32", "bfloat16")
PASSES = ("coalition forward", "training pass")
STEPS = ("whole step", "whole step, ours with `every=2`")
PRODUCTS = ((1024, 1024, 1024), (2048, 512, 512), (25600, 64, 192), (6400, 256, 256))  # rows, a multiple of 16; depth, columns
Run = Callable[[], object]
Of = Callable[[nn.Module, bool], Run]  # what is timed, of a network, in bfloat16 or not
Times = dict[str, list[float]]


class Product(NamedTuple):
    """The matrix product with the highest rate: its call, floating point operations and fewest seconds."""

    run: Run
    flops: float
    seconds: float


class Options(NamedTuple):
    """What a process measures."""

    clips: int
    rounds: int
    precisions: tuple[str, ...]
    estimator: str


def networks(shape: Shape, device: torch.device = CPU) -> dict[str, nn.Module]:
    """The reference and the fast network, with the same parameters."""
    _, channels, _, _, people = shape.size
    layout = Batch(shape, torch.float32, device).layout
    torch.manual_seed(0)
    theirs = ctrgcn_reference.CTRGCN(layout, shape.classes, num_people=people, in_channels=channels, graph_gain=1.0)
    ours = ctrgcn.CTRGCN(layout, shape.classes, num_people=people, in_channels=channels, graph_gain=1.0)
    ours.load_state_dict(theirs.state_dict())
    return {"reference": theirs.to(device), "op": ours.to(device)}


def variants(of: Of, pair: dict[str, nn.Module], precisions: Sequence[str]) -> dict[str, Run]:
    """The reference, and the fast network in each precision."""
    return {"reference": of(pair["reference"], False)} | {name: of(pair["op"], name == "bfloat16") for name in precisions}


def forward(batch: Batch) -> Of:
    """Forward pass in eval mode."""

    def of(network: nn.Module, half: bool) -> Run:
        def run() -> Tensor:
            network.eval()
            with torch.no_grad(), torch.autocast(batch.device.type, HALF, enabled=half):
                logits: Tensor = network(batch.clips)
            return logits.float()

        return run

    return of


def training(batch: Batch) -> Of:
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


def whole_step(batch: Batch, estimator: str, *, measures: bool) -> Of:
    """Mixing, forward, backward and optimiser, with or without a measurement of the saliency."""

    def of(network: nn.Module, half: bool) -> Run:
        backend = "reference" if isinstance(network, ctrgcn_reference.CTRGCN) else None
        mixer = ShapMix(batch.layout, batch.class_counts, batch.mean_motion, estimator=estimator, every=2, backend=backend)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=4e-4)
        steps = iter(range(0 if measures else 1, 1 << 30, 2))

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


def graph_conv_flops(features: Sequence[int], terms: Sequence[int], weight: Sequence[int], *others: object, **more: object) -> int:
    """Multiplications and additions of `graph_conv`: the graphs from the relations, and the sums over them."""
    rows, _, frames, joints = features
    subsets, relations, channels = weight
    return 2 * rows * channels * subsets * joints**2 * (relations + frames)


def graph_conv_backward_flops(grad: object, *inputs: Any, **more: object) -> int:
    """Those of its gradient: each of the two products has two factors."""
    return 2 * graph_conv_flops(*inputs)


def flops(run: Run) -> int:
    """Floating point operations of the products in a pass of the fast network."""
    ours = {torch.ops.shapmix.graph_conv: graph_conv_flops, torch.ops.shapmix.graph_conv_backward: graph_conv_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=ours) as counted:
        run()
    return counted.get_total_flops()


def fastest_product() -> Product:
    """The product with the highest rate of PRODUCTS, on as many threads as torch has."""
    found = []
    for rows, depth, columns in PRODUCTS:
        left, right = torch.randn(rows, depth), torch.randn(depth, columns)
        clips = left.view(16, -1, 1, depth).permute(0, 3, 1, 2)  # channels-last
        calls = partial(torch.mm, left, right), partial(nn.functional.conv2d, clips, right.t().reshape(columns, depth, 1, 1))
        for call in calls:
            call()
            found.append(Product(call, 2 * rows * depth * columns, min(seconds(call, CPU) for _ in range(15))))
    return max(found, key=lambda product: product.flops / product.seconds)


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative L2 distance."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def row(times: Times, product: Product, count: float) -> dict[str, Any]:
    """Seconds, speed-ups over the reference within a round, and seconds as a multiple of the floor.

    Args:
        times: of the reference, the precisions and the product.
        count: floating point operations of the pass.
    """
    fewest = min(product.seconds, *times["product"])
    floor = count / product.flops * fewest
    found = [name for name in times if name != "product"]
    return {
        "gigaflops": float(f"{count / 1e9:.4g}"),
        "gigaflops per second of a product": float(f"{product.flops / fewest / 1e9:.4g}"),
        "floor": float(f"{floor:.4g}"),
        "seconds": {name: quantiles(times[name]) for name in found},
        "speed-up": {
            name: quantiles([base / own for base, own in zip(times["reference"], times[name], strict=True)])
            for name in found
            if name != "reference"
        },
        "times the floor": {name: quantiles([once / floor for once in times[name]]) for name in found if name != "bfloat16"},
    }


def measure_pass(of: Of, shape: Shape, product: Product, options: Options) -> dict[str, Any]:
    """One of PASSES, with the distances of its results or gradients from the reference."""
    pair = networks(shape)
    runs = variants(of, pair, options.precisions)
    count = flops(of(pair["op"], False))
    results = {name: cast(Tensor, run()) for name, run in runs.items()}
    distance = {name: relative(results[name], results["reference"]) for name in options.precisions}
    times = interleaved({**runs, "product": product.run}, CPU, budget=0, least=options.rounds, most=options.rounds)
    return {**row(times, product, count), "distance": distance}


def measure_steps(batch: Batch, product: Product, options: Options) -> dict[str, Any]:
    """Both STEPS."""
    pair = networks(batch.shape)
    measuring, resting = (whole_step(batch, options.estimator, measures=measures) for measures in (True, False))
    runs = variants(measuring, pair, options.precisions)
    runs |= {f"{name}, at rest": resting(pair["op"], name == "bfloat16") for name in options.precisions}
    counts = [flops(of(pair["op"], False)) for of in (measuring, resting)]
    times = interleaved({**runs, "product": product.run}, CPU, budget=0, least=options.rounds, most=options.rounds)
    published = {name: own for name, own in times.items() if not name.endswith(", at rest")}
    half = dict(published)
    for name in options.precisions:
        half[name] = [(one + other) / 2 for one, other in zip(times[name], times[f"{name}, at rest"], strict=True)]
    return dict(zip(STEPS, (row(published, product, counts[0]), row(half, product, sum(counts) / 2)), strict=True))


def measure(options: Options) -> dict[str, Any]:
    """Every row, in this process."""
    batch = Batch(Shape("ntu", NTU.layout, (options.clips, *NTU.size[1:]), NTU.classes), torch.float32, CPU)
    product = fastest_product()
    found: dict[str, Any] = {"torch": torch.backends.cpu.get_cpu_capability(), "estimator": options.estimator}
    for name, of in zip(PASSES, (forward(batch), training(batch)), strict=True):
        found[name] = measure_pass(of, batch.shape, product, options)
    found |= measure_steps(batch, product, options)
    return found


def one_training_run(clips: int, name: str) -> Run:
    """Training pass of the reference or of a precision."""
    batch = Batch(Shape("ntu", NTU.layout, (clips, *NTU.size[1:]), NTU.classes), torch.float32, CPU)
    return variants(training(batch), networks(batch.shape), PRECISIONS)[name]


def compare_sets(arguments: argparse.Namespace, sets: Sequence[str], widest: str) -> dict[str, Any]:
    """Every row of every instruction set, and the peak memory of a training pass."""
    common = ["--threads", torch.get_num_threads(), "--clips", arguments.clips, "--rounds", arguments.rounds]
    common += ["--estimator", arguments.estimator]
    found: dict[str, Any] = {}
    for isa in sets:
        fast = PRECISIONS if isa == widest and multiplies_bf16() else PRECISIONS[:1]
        precisions = arguments.precision or fast
        found[isa] = in_process(MODULE, isa_environment(isa, widest), *common, "--measure", "--precision", *precisions)
        print(f"measured {TITLES[isa]}", file=sys.stderr)
    measured = {name for isa in sets for name in found[isa][PASSES[0]]["seconds"]}
    peak = {
        name: in_process(MODULE, isa_environment(widest, widest), *common, "--memory-of", name)
        for name in ("reference", *PRECISIONS)
        if name in measured
    }
    return {"instruction sets": found, "peak bytes": peak}


def table(content: dict[str, Any]) -> str:
    """A results file as a Markdown table: the seconds of the reference, speed-ups over it, and float32 in times of the floor."""
    threads = content["threads"]
    head = [f"{content['clips']} clips, {threads} thread{'' if threads == 1 else 's'}"]
    rows = [[name] for name in (*PASSES, *STEPS)]
    for isa, found in content["instruction sets"].items():
        precisions = list(found[PASSES[0]]["speed-up"])
        head += [f"{TITLES[isa]}: reference", *precisions, *(["times the floor"] if "float32" in precisions else [])]
        for cells in rows:
            measured = found[cells[0]]
            cells.append(f"{measured['seconds']['reference']['p50']:.2f} s")
            cells += [f"{measured['speed-up'][name]['p50']:.1f}x" for name in precisions]
            cells += [f"{measured['times the floor'][name]['p50']:.1f}" for name in ("float32",) if name in precisions]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def memory_line(content: dict[str, Any]) -> str:
    """The peak memory of a training pass, in words."""
    peak = content["peak bytes"]
    shares = (f"{bytes_ / peak['reference']:.2f} of it in {name}" for name, bytes_ in peak.items() if name != "reference")
    return f"peak memory of a training pass: {peak['reference'] / 1e9:.2f} GB, {', '.join(shares)}"


def read_arguments(argv: Sequence[str] | None, sets: Sequence[str]) -> argparse.Namespace:
    """Parses the options; ends with a message if the output is missing or there is too little work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--isa", nargs="+", choices=sets, help="instruction sets; default: all of this processor from AVX2 up")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, help="default: float32, and bfloat16 where it is fast")
    parser.add_argument("--threads", type=int, help="default: all")
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--estimator", choices=list(ESTIMATORS), default=ESTIMATOR, help="of the whole steps' saliency")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # the process of an instruction set
    parser.add_argument("--memory-of", choices=("reference", *PRECISIONS), help=argparse.SUPPRESS)  # that of a peak
    arguments = parser.parse_args(argv)
    if arguments.out is None and not arguments.measure and arguments.memory_of is None:
        parser.error("--out is required")
    if arguments.threads is not None and arguments.threads < 1:
        parser.error(f"--threads is {arguments.threads}; give at least 1")
    if arguments.clips < 4 or arguments.rounds < 2:
        parser.error(f"--clips {arguments.clips} --rounds {arguments.rounds}: give at least 4 clips and 2 rounds")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes the results file and prints its table."""
    load = os.getloadavg()[0]
    sets = available_sets(MODULE)
    arguments = read_arguments(argv, sets)
    prepare_cpu(arguments.threads)
    if arguments.memory_of is not None:
        print(peak_bytes(one_training_run(arguments.clips, arguments.memory_of)))
        return
    if arguments.measure:
        options = Options(arguments.clips, arguments.rounds, tuple(arguments.precision), arguments.estimator)
        print(json.dumps(measure(options)))
        return
    given = " ".join(sys.argv[1:] if argv is None else argv)
    content: dict[str, Any] = {"command": f"python -m bench.network {given}", "commit": commit(), "machine": machine()}
    content |= {"clips": arguments.clips, "threads": torch.get_num_threads(), "load average": round(load, 2)}
    content |= compare_sets(arguments, arguments.isa or from_avx2(sets), sets[-1])
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{table(content)}\n\n{memory_line(content)}")


if __name__ == "__main__":
    main()
