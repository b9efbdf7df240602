"""A training step on the CPU beside other work: how the threads of OpenMP wait, whether they are bound to CPUs, and one thread.

    python -m bench.shared_machine --out FILE [--seconds 100]

OpenMP reads its settings once, when torch loads it, so each setting has a process of its own. They take steps of the embedded data
in turns, for one round as the machine is and for one beside a process that computes all the time, in a session of its own, as
another user's would be. Reports milliseconds per step and their ratio to the default setting within each round: median, lowest and
highest. `runnable` is the number of other threads that wanted a CPU when a step began, once the threads of the setting before no
longer spin; on a quiet machine it is 0, and 1 beside the busy process.

OMP_DYNAMIC is no candidate: OpenMP then starts fewer threads than torch counts on, and convolutions of oneDNN wait for the missing
ones for ever.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count, islice
from pathlib import Path
from statistics import median
from typing import IO, Any

import torch

from bench.machine import commit, machine
from bench.timing import seconds
from shapmix.data.order import epoch_batches, epoch_order
from shapmix.process.cpu import prepare_cpu, usable_cpus
from shapmix.process.openmp import LOADAVG, WAITING
from shapmix.training.build import load_splits, make_sampler, make_step, make_training
from shapmix.training.config import parse_config

CPU = torch.device("cpu")
DEFAULT, ONE = "all CPUs", "one thread"
SETTINGS: dict[str, dict[str, str]] = {
    DEFAULT: {},
    "all CPUs, waiting threads sleep": {"OMP_WAIT_POLICY": "passive"},
    "all CPUs, waiting threads spin briefly": {"GOMP_SPINCOUNT": "10000"},
    "all CPUs, threads bound": {"OMP_PROC_BIND": "true"},
    "all CPUs, threads bound, waiting threads sleep": {"OMP_PROC_BIND": "true", "OMP_WAIT_POLICY": "passive"},
    ONE: {},
}
CONDITIONS = ("as the machine is", "beside a busy process")
OPTIONS = ["--preset", "synthetic"]
WARM_UP, BATCHES, FEWEST = 2, 4, 3  # steps, batches, rounds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=100.0, help="start no round after this time")
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=OPTIONS, help="of the trainer; default: the embedded data")
    given = parser.parse_args(arguments)
    if given.threads is not None:
        serve(given.options, given.threads, sys.stdin)
        return
    if given.out is None:
        parser.error("--out is required")
    rounds = measure(given.options, given.seconds)
    content = {
        "command": f"python -m bench.shared_machine --seconds {given.seconds:g}",
        "commit": commit(),
        "machine": machine(),
        "step": " ".join(given.options),
        "rounds": len(rounds),
        "conditions": {condition: summary([one[condition] for one in rounds]) for condition in CONDITIONS},
    }
    given.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content["conditions"], indent=1))


def serve(options: list[str], threads: int, lines: IO[str]) -> None:
    """Takes a step for each line that is read, and prints its milliseconds."""
    prepare_cpu(threads)
    config = parse_config(options)
    splits = load_splits(config)
    sampler = make_sampler(config, splits.store)
    run = make_training(config, splits, sampler, 1, CPU)
    step, _ = make_step(config, run, sampler, CPU)
    run.network.train()
    chosen = islice(epoch_batches(epoch_order(splits.train, 0, 0), config.batch_size), BATCHES)
    batches = [(some, sampler.training(some, number)) for number, some in enumerate(chosen)]
    number = count(config.epochs)  # after the steps that mix without saliency

    def take_step() -> float:
        at = next(number)
        some, clips = batches[at % len(batches)]
        return 1e3 * seconds(partial(step, some, at, clips), CPU)

    for _ in range(WARM_UP):
        take_step()
    print("ready", flush=True)
    for _ in lines:
        print(take_step(), flush=True)


def measure(options: list[str], limit: float) -> list[dict[str, dict[str, dict[str, float]]]]:
    """Rounds of condition -> setting -> milliseconds of a step and runnable threads before it."""
    with ExitStack() as held:
        servers = {name: held.enter_context(server(name, options)) for name in SETTINGS}
        for process in servers.values():
            _read(process)
        rounds: list[dict[str, dict[str, dict[str, float]]]] = []
        end = time.monotonic() + limit
        while len(rounds) < FEWEST or time.monotonic() < end:
            one: dict[str, dict[str, dict[str, float]]] = {}
            names = list(servers) if len(rounds) % 2 else list(servers)[::-1]
            for condition in CONDITIONS:
                with busy_process() if condition == CONDITIONS[1] else ExitStack():
                    one[condition] = {name: _step(servers[name]) for name in names}
            rounds.append(one)
    return rounds


@contextmanager
def server(name: str, options: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process with a setting that takes steps when told to."""
    ours = {key: value for key, value in os.environ.items() if key not in {*WAITING, "OMP_PROC_BIND", "OMP_NUM_THREADS"}}
    threads = 1 if name == ONE else usable_cpus()
    command = [sys.executable, "-m", "bench.shared_machine", "--threads", str(threads), "--options", *options]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**ours, **SETTINGS[name]}
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def busy_process() -> Iterator[None]:
    """A process that computes all the time. A session of its own has its own share of the CPUs where Linux groups sessions."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) as process:
        try:
            time.sleep(0.2)
            yield
        finally:
            process.kill()


def _step(process: subprocess.Popen[str]) -> dict[str, float]:
    time.sleep(0.1)  # until the threads of the setting before no longer spin
    runnable = int(LOADAVG.read_text().split()[3].partition("/")[0]) - 1  # less this thread
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return {"ms": float(_read(process)), "runnable": runnable}


def _read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a process of the benchmark ended with exit code {process.wait()}")
    return line


def summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Of rounds of one condition: milliseconds, and the ratio to the default setting within each round."""
    found: dict[str, Any] = {"runnable": median(step["runnable"] for one in rounds for step in one.values())}
    for name in SETTINGS:
        values = defaultdict[str, list[float]](list)
        for one in rounds:
            values["ms"].append(one[name]["ms"])
            values["times the default"].append(one[name]["ms"] / one[DEFAULT]["ms"])
        found[name] = {
            key: {"median": _short(median(each)), "lowest": _short(min(each)), "highest": _short(max(each))}
            for key, each in values.items()
        }
    return found


def _short(value: float) -> float:
    return float(f"{value:.3g}")


if __name__ == "__main__":
    main()
