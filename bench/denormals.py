"""Denormal numbers in training on the CPU, and what flushing them to zero brings: `python -m bench.denormals --out FILE`.

Trains the embedded data, with its own recipe and with the published one (SGD with momentum, graph units that start at 1e-6), counts
denormals among the values of one further step, and then times steps with and without `torch.set_flush_denormal` in turns, in CPU
time of one thread. A product of denormals is timed as well: some processors take many times as long for one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from bench.machine import commit, machine
from bench.timing import quantiles
from shapmix.data.order import epoch_batches
from shapmix.process.cpu import prepare_cpu
from shapmix.training.build import load_splits, make_sampler, make_step, make_training
from shapmix.training.config import parse_config
from shapmix.training.schedule import learning_rate, order_of, set_learning_rate, steps_of_an_epoch
from shapmix.training.state import Training

CPU = torch.device("cpu")
PUBLISHED = ["--schedule.optimizer", "sgd", "--schedule.lr", "0.1", "--network.graph-gain", "1e-6"]
CASES = {"embedded recipe": ["--preset", "synthetic"], "published optimizer": ["--preset", "synthetic", *PUBLISHED]}
DENORMAL = 1e-40

Counts = dict[str, dict[str, int]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300, help="steps of training before the count")
    parser.add_argument("--rounds", type=int, default=20, help="of one step with and one without flushing")
    given = parser.parse_args(arguments)
    prepare_cpu(threads=1)
    content = {
        "command": f"python -m bench.denormals --steps {given.steps} --rounds {given.rounds}",
        "commit": commit(),
        "machine": machine(),
        "cases": {name: measure(options, given.steps, given.rounds) for name, options in CASES.items()},
        "product of denormals": in_turns(product_of_denormals(), given.rounds),
    }
    given.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1))


def measure(options: list[str], steps: int, rounds: int) -> dict[str, Any]:
    """Trains for `steps`, counts denormals in the values of one more step, and times the following ones."""
    config = parse_config(options)
    splits = load_splits(config)
    sampler, per_epoch = make_sampler(config, splits.store), steps_of_an_epoch(config, splits)
    run = make_training(config, splits, sampler, per_epoch, CPU)
    step, _ = make_step(config, run, sampler, CPU)
    run.network.train()
    batches = cycle(list(epoch_batches(order_of(config, splits, 0), config.batch_size)))
    number = -1

    def take_step() -> None:
        nonlocal number
        number += 1
        set_learning_rate(run.optimizer, learning_rate(config, min(number, config.epochs * per_epoch - 1), per_epoch))
        chosen = next(batches)
        step(chosen, number, sampler.training(chosen, number))

    for _ in range(steps):
        take_step()
    return {"denormals": count(run, take_step), "seconds": in_turns(take_step, rounds)}


def count(run: Training, take_step: Callable[[], None]) -> Counts:
    """Values and denormals of a step, by kind; gradients of activations are those of the outputs of all innermost modules."""
    found: Counts = {}

    def note(kind: str, tensors: Iterable[object]) -> None:
        entry = found.setdefault(kind, {"values": 0, "denormal": 0})
        for tensor in tensors:
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float32:
                entry["values"] += tensor.numel()
                entry["denormal"] += denormals(tensor)

    def watch(module: nn.Module, given: object, out: object) -> None:
        note("activations", [out])
        if isinstance(out, Tensor) and out.requires_grad:
            out.register_hook(lambda gradient: note("gradients of activations", [gradient]))

    hooks = [module.register_forward_hook(watch) for module in run.network.modules() if not list(module.children())]
    take_step()
    for hook in hooks:
        hook.remove()
    weights = list(run.network.parameters())
    note("weights", weights)
    note("gradients of weights", [weight.grad for weight in weights])
    note("optimizer state", [value for weight in weights for value in run.optimizer.state[weight].values()])
    note("buffers", run.network.buffers())
    return found


def denormals(values: Tensor) -> int:
    """Values whose exponent is 0 and whose mantissa is not; their bits are compared, which flushing does not affect."""
    bits = values.detach().contiguous().view(torch.int32)
    return int((((bits & 0x7F800000) == 0) & ((bits & 0x007FFFFF) != 0)).sum())


def in_turns(call: Callable[[], object], rounds: int) -> dict[str, dict[str, float]]:
    """CPU seconds of this thread with denormals kept and flushed, in turns, and their ratio within a round."""
    times: dict[str, list[float]] = {"kept": [], "flushed": []}
    ratios: list[float] = []
    for number in range(rounds):
        for name in ("kept", "flushed") if number % 2 else ("flushed", "kept"):
            torch.set_flush_denormal(name == "flushed")
            begin = time.thread_time()
            call()
            times[name].append(time.thread_time() - begin)
        ratios.append(times["kept"][-1] / times["flushed"][-1])
    torch.set_flush_denormal(False)
    print(f"kept {median(times['kept']):.3g} s, flushed {median(times['flushed']):.3g} s", flush=True)
    return {**{name: quantiles(each) for name, each in times.items()}, "kept / flushed": quantiles(ratios)}


def product_of_denormals() -> Callable[[], object]:
    """A product of a megabyte of denormals with ones, of a few milliseconds."""
    tiny, ones = torch.full((1 << 18,), DENORMAL), torch.ones(1 << 18)
    return partial(_repeated, lambda: tiny * ones)


def _repeated(call: Callable[[], object]) -> None:
    for _ in range(100):
        call()


if __name__ == "__main__":
    main()
