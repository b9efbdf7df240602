"""What this installation can run, and whether its back ends agree with the reference."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version

import torch

import shapmix
from shapmix.process import cpu

from . import cpp, cuda
from .agreement import compare
from .dispatch import BACKENDS, unavailable

SECONDS = 10.0  # for all checks; slow back ends (Triton's interpreter) then have fewer shapes checked

WRONG = "WRONG"  # how the line of a back end begins that disagrees with the reference


def versions() -> dict[str, str]:
    """What is installed."""
    found = {"shapmix": shapmix.__version__, "python": platform.python_version()}
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
    module, reason = cpp.load()
    isa = cpp.instruction_set()
    info = module.cpu_info() if module else {}
    has = {True: "yes", False: "no", None: "unknown"}
    bf16 = cpu.multiplies_bf16()
    return {
        "cores": str(os.cpu_count()),
        "load": cpu.machine_load().words,
        "torch threads": str(torch.get_num_threads()),
        "instruction sets": ", ".join(isa.available) if isa else "unknown",
        "kernels use": f"{isa.name}{', pinned by SHAPMIX_ISA' if isa.pinned else ''}" if isa else "the reference",
        "bfloat16 products": f"{has[bf16]}{': bf16 is slower than float32 on this CPU' if bf16 is False else ''}",
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
        compared, wrong = compare(backend, device, time.monotonic() + SECONDS / len(runnable))
        same = f"runs; {compared} results of its ops agree with the reference"
        back_ends[f"{backend} on {device}"] = f"{WRONG}: differs from the reference in {', '.join(wrong)}" if wrong else same
    return {"versions": versions(), "processor": processor(), "back ends": back_ends}


def _dotted(encoded: int) -> str:
    """`13.0` for 13000, nothing for 0."""
    return f"{encoded // 1000}.{encoded % 1000 // 10}" if encoded else ""
