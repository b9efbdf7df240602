"""CPU ops beside a copy of as many bytes, per instruction set and number of threads: `python -m bench.copy_speed --out FILE`.

Each instruction set and number of threads has a process of its own, prepared as for training: freed memory is kept, so that new
outputs cost no page faults. An op, the eager reference and the copy are interleaved, and ratios are computed within a round.
`graph_conv` is bound by arithmetic: `python -m bench.network` compares it with the product rate.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.cases import CASES, SHAPES, Case
from bench.instruction_sets import TITLES, available_sets, from_avx2, in_process, isa_environment
from bench.machine import commit, machine
from bench.measure import measure_all
from bench.tables import NOT_MEASURED, markdown, name_of
from shapmix.kernels.checks import dtype_name
from shapmix.process.cpu import prepare_cpu

MODULE = "bench.copy_speed"
CPU = torch.device("cpu")
DTYPES = {dtype_name(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
BUDGET = 0.3  # seconds per op
NAMES = [shape.name for shape in SHAPES["cpu"]]
BOUND_BY_ARITHMETIC = "graph_conv"
OWN_MEMORY = "coalition_inputs S=31"  # writes 75 MB of new memory; the case into a buffer is measured


def cases() -> list[Case]:
    """The cases that a copy bounds."""
    return [case for case in CASES if case.ops != BOUND_BY_ARITHMETIC and str(case) != OWN_MEMORY]


def measure(shapes: Sequence[str], dtypes: Sequence[str], budget: float) -> list[dict[str, Any]]:
    """The rows of the cases, in this process."""
    chosen = [shape for shape in SHAPES["cpu"] if shape.name in shapes]
    return list(measure_all(CPU, chosen, [DTYPES[name] for name in dtypes], cases(), budget))


def table(content: dict[str, Any]) -> str:
    """A results file as a Markdown table: the share of copy speed and the speed-up over the reference in each process."""
    head = ["op, shape"]
    body: dict[str, list[str]] = {}
    for place, run in enumerate(content["runs"]):
        count = run["threads"]
        head.append(f"{TITLES[run['isa']]}, {count} thread{'' if count == 1 else 's'}")
        for row in run["rows"]:
            cells = body.setdefault(name_of(row), [NOT_MEASURED] * len(content["runs"]))
            cells[place] = row.get("error") or f"{100 * row['copy_share']:.0f}%, {row['speedup']['p50']:.1f}x"
    return markdown([head, *([name, *cells] for name, cells in body.items())])


def read_arguments(argv: Sequence[str] | None, sets: Sequence[str]) -> argparse.Namespace:
    """Parses the options; ends with a message if the output is missing or there are fewer than one thread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--isa", nargs="+", choices=sets, default=from_avx2(sets), help="default: this processor's from AVX2 up")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="default: 1 and 2")
    parser.add_argument("--shapes", nargs="+", choices=NAMES, default=NAMES[:1], help=f"default: {NAMES[0]}")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["float32"], help="default: float32")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds per op")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # one process
    arguments = parser.parse_args(argv)
    if arguments.out is None and not arguments.measure:
        parser.error("--out is required")
    if min(arguments.threads) < 1:
        parser.error(f"--threads is {min(arguments.threads)}; give at least 1")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes the results file and prints its table."""
    load = os.getloadavg()[0]
    sets = available_sets(MODULE)
    arguments = read_arguments(argv, sets)
    if arguments.measure:
        prepare_cpu(arguments.threads[0])
        print(json.dumps(measure(arguments.shapes, arguments.dtypes, arguments.budget)))
        return
    given = " ".join(sys.argv[1:] if argv is None else argv)
    content: dict[str, Any] = {"command": f"python -m bench.copy_speed {given}", "commit": commit(), "machine": machine()}
    content |= {"load average": round(load, 2), "runs": []}
    common = ["--shapes", *arguments.shapes, "--dtypes", *arguments.dtypes, "--budget", arguments.budget]
    for threads in arguments.threads:
        for isa in arguments.isa:
            rows = in_process(MODULE, isa_environment(isa, sets[-1]), "--measure", *common, "--threads", threads)
            content["runs"].append({"isa": isa, "threads": threads, "rows": rows})
            print(f"measured {TITLES[isa]}, threads: {threads}", file=sys.stderr)
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(table(content))


if __name__ == "__main__":
    main()
