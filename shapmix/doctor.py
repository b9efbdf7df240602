"""`python -m shapmix.doctor`: what this installation can run, and whether it computes what the reference computes.

Exits with 1 where a back end that can run disagrees with the reference. `--json` prints the same for machines.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from shapmix import __version__, reference
from shapmix.kernels import BACKENDS, coalition_inputs, cuda, mix_clips, native, unavailable
from shapmix.kernels.dispatch import implementation
from shapmix.reference import MixPlan

# Odd sizes, one sample, one joint, and a batch large enough for every thread to get work.
SHAPES = ((1, 1, 1, 1, 1), (3, 3, 13, 7, 1), (5, 2, 37, 11, 2), (4, 3, 64, 25, 2), (64, 3, 64, 25, 2))
SECONDS = 10.0  # for all checks; slow back ends (Triton's interpreter) then have fewer shapes checked


def versions() -> dict[str, str]:
    """What is installed."""
    found = {"shapmix": __version__, "python": platform.python_version()}
    found |= {package: installed_version(package) for package in ("torch", "triton", "numpy")}
    module, reason = cuda.load()
    found["CUDA toolkit built with"] = _dotted(module.toolkit_version()) if module else f"none ({reason})"
    found["CUDA architectures"] = str(module.architectures) if module else "none"
    found["CUDA version of the driver"] = (_dotted(module.driver_version()) if module else "") or "no driver"
    found["GPU"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"
    return found


def installed_version(package: str) -> str:
    """Version of a package, or that it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def processor() -> dict[str, str]:
    """What the CPU back end runs on."""
    module, reason = native.load()
    info = module.cpu_info() if module else {}
    has = {True: "yes", False: "no", None: "unknown"}
    return {
        "cores": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "AVX2": has[info.get("avx2")],
        "AVX-512": has[info.get("avx512")],
        "OpenMP in shapmix": has[info.get("openmp")],
        "OpenMP runtimes loaded": str(len(openmp_runtimes())),
        "built by": str(info.get("compiler", reason)),
    }


def openmp_runtimes() -> set[str]:
    """Files of the OpenMP runtimes in this process; a second one has threads of its own that compete with torch's."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            files = {line.split()[-1] for line in maps}
    except OSError:  # not Linux
        return set()
    return {file for file in files if any(name in os.path.basename(file) for name in ("libgomp", "libiomp", "libomp"))}


def devices() -> list[torch.device]:
    """Every kind of device that tensors can live on here."""
    return [torch.device("cpu"), *([torch.device("cuda:0")] if torch.cuda.is_available() else [])]


def check(backend: str, device: torch.device, deadline: float) -> tuple[int, list[str]]:
    """Comparisons made with the reference, and those that did not give the same bits."""
    compared = 0
    wrong: list[str] = []
    for shape in SHAPES:
        for dtype in implementation(backend).DTYPES:
            for op, run, expected in _cases(shape, dtype, device, backend):
                if time.monotonic() > deadline:
                    return compared, wrong
                poisoned = torch.full_like(expected, torch.nan)
                run(poisoned)
                compared += 1
                if not torch.equal(poisoned, expected):
                    wrong.append(f"{op} on {list(shape)} {dtype}")
    return compared, wrong


def _cases(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, backend: str
) -> Iterator[tuple[str, Callable[[Tensor], Tensor], Tensor]]:
    """Name, op into a given buffer, and what the reference gives, on random clips."""
    n, _, frames, joints, _ = shape
    generator = torch.Generator().manual_seed(0)

    def integers(low: Tensor | int, high: Tensor | int, *size: int) -> Tensor:
        share = torch.rand(size, generator=generator, dtype=torch.float64)
        return (low + share * (high - low + 1)).floor().long()

    clips = torch.randn(shape, generator=generator).to(device, dtype)
    mean_motion = torch.randn(shape[1:], generator=generator).to(device, dtype)
    part_of_joint = torch.arange(joints) % 5
    all_parts = (1 << min(joints, 5)) - 1
    start, source_start = integers(0, frames - 1, n), integers(0, frames - 1, n)
    plan = MixPlan(
        partner=integers(0, n - 1, n),
        parts=integers(0, all_parts, n),
        start=start,
        length=integers(1, frames - start, n),
        source_start=source_start,
        source_length=integers(1, frames - source_start, n),
        lam=torch.rand(n, generator=generator, dtype=torch.float64),
        blend=torch.rand(n, generator=generator) < 0.3,
    )
    plan = MixPlan(**{name: value.to(device) for name, value in vars(plan).items()})
    coalitions = torch.stack([torch.zeros(n), torch.full((n,), all_parts), integers(0, all_parts, n)]).long().to(device)
    part_of_joint = part_of_joint.to(device)

    yield (
        "coalition_inputs",
        lambda out: coalition_inputs(clips, mean_motion, coalitions, part_of_joint, backend=backend, out=out),
        reference.coalition_inputs(clips, mean_motion, coalitions, part_of_joint),
    )
    yield (
        "mix_clips",
        lambda out: mix_clips(clips, plan, part_of_joint, backend=backend, out=out),
        reference.mix_clips(clips, plan, part_of_joint),
    )


def examine() -> dict[str, dict[str, str]]:
    """The report: section -> line -> text. Back ends that disagree say so in a text that begins with `WRONG`."""
    back_ends: dict[str, str] = {}
    runnable: list[tuple[str, torch.device]] = []
    for device in devices():
        for backend in BACKENDS:
            name = f"{backend} on {device}"
            if reason := unavailable(backend, device):
                back_ends[name] = f"cannot run: {reason}"
            elif backend == "reference":
                back_ends[name] = "what the others are compared with"
            else:
                back_ends[name] = ""
                runnable.append((backend, device))
    if not torch.cuda.is_available():
        back_ends["cuda on a GPU"] = f"cannot run: {unavailable('cuda', torch.device('cuda:0'))}"
    for backend, device in runnable:
        compared, wrong = check(backend, device, time.monotonic() + SECONDS / len(runnable))
        same = f"runs; {compared} results bit-equal to the reference"
        back_ends[f"{backend} on {device}"] = f"WRONG: differs from the reference in {', '.join(wrong)}" if wrong else same
    return {"versions": versions(), "processor": processor(), "back ends": back_ends}


def _dotted(encoded: int) -> str:
    """`13.0` for 13000, nothing for 0."""
    return f"{encoded // 1000}.{encoded % 1000 // 10}" if encoded else ""


def main(arguments: list[str] | None = None) -> int:
    """Prints the report; 1 where a back end disagrees with the reference."""
    parser = argparse.ArgumentParser(prog="python -m shapmix.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)

    report = examine()
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        width = max(len(line) for lines in report.values() for line in lines)
        for section, lines in report.items():
            print(section)
            for line, text in lines.items():
                print(f"  {line:<{width}}  {text}")
    return int(any(text.startswith("WRONG") for text in report["back ends"].values()))


if __name__ == "__main__":
    sys.exit(main())
