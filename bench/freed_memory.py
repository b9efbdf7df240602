"""The effect of `shapmix.process.memory.keep_freed_memory`: training steps on the CPU with and without it, interleaved.

    python -m bench.freed_memory --out FILE [--threads 1]

The setting is per process, so each round runs one process with it and one without. Reports median milliseconds per step, peak
resident memory, page faults per step, and the speed-up within each round.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.machine import commit, machine
from bench.timing import seconds
from shapmix.data.order import epoch_batches, epoch_order
from shapmix.process.memory import keep_freed_memory
from shapmix.training.build import load_splits, make_mixer, make_network, make_optimizer, make_sampler
from shapmix.training.config import parse_config

CPU = torch.device("cpu")
KINDS = ("given back", "kept")
WARM_UP, STEPS = 3, 10
CASES = {
    "embedded default": ["--preset", "synthetic"],
    "a third of the published depth, batch 64": ["--network.widths", "32", "64", "128", "--num-frames", "64", "--batch-size", "64"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is not None:
        print(json.dumps(measure(CASES[arguments.case], arguments.keep, arguments.threads)))
        return
    if arguments.out is None:
        parser.error("--out is required")
    results: dict[str, Any] = {}
    for case in CASES:
        rounds = [
            {kind: in_a_process(case, kind == "kept", arguments.threads) for kind in (KINDS if number % 2 else KINDS[::-1])}
            for number in range(arguments.rounds)
        ]
        ratios = sorted(one["given back"]["ms"] / one["kept"]["ms"] for one in rounds)
        results[case] = {
            "speed-up": {"median": median(ratios), "lowest": ratios[0], "highest": ratios[-1]},
            **{kind: {key: median(one[kind][key] for one in rounds) for key in rounds[0][kind]} for kind in KINDS},
        }
        print(case, json.dumps(results[case]), flush=True)
    content = {
        "command": f"python -m bench.freed_memory --threads {arguments.threads} --rounds {arguments.rounds}",
        "commit": commit(),
        "machine": machine(),
        "cases": results,
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")


def in_a_process(case: str, keep: bool, threads: int) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.freed_memory", "--case", case, "--threads", str(threads)]
    done = subprocess.run([*command, *(["--keep"] if keep else [])], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(options: list[str], keep: bool, threads: int) -> dict[str, float]:
    """Measures this process: milliseconds per step, peak resident memory in MB, page faults per step."""
    if keep:
        assert keep_freed_memory()
    torch.set_num_threads(threads)
    config = parse_config(options)
    splits = load_splits(config)
    sampler, network = make_sampler(config, splits.store), make_network(config, splits.store).train()
    mixer, optimizer = make_mixer(config, splits, sampler, 1), make_optimizer(network, config)

    def train(chosen: Tensor, step: int) -> None:
        labels = splits.store.labels[chosen]
        clips = sampler.training(chosen, step)
        mixer.observe(network, clips, labels, step)
        batch = mixer.mix(clips, labels, step)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(mixer.loss(network(batch.clips), batch)).sum().backward()
        optimizer.step()

    times, faults = [], 0
    batches = [batch for epoch in range(9) for batch in epoch_batches(epoch_order(splits.train, 0, epoch), config.batch_size)]
    for step, chosen in enumerate(batches[: WARM_UP + STEPS], start=config.epochs):
        if step == config.epochs + WARM_UP:
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        times.append(1e3 * seconds(partial(train, chosen, step), CPU))
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"ms": median(times[WARM_UP:]), "peak MB": used.ru_maxrss / 1024, "faults": (used.ru_minflt - faults) / STEPS}


if __name__ == "__main__":
    main()
