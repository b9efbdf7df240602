"""Computing on the CPU: threads and memory of the process, the load of the machine, and CPU features as listed by Linux."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch

from shapmix.process.memory import keep_freed_memory

CPUINFO = Path("/proc/cpuinfo")
BF16_PRODUCTS = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}  # flags of x86 and of Arm


class Load(NamedTuple):
    """The load of the machine in words, with what to do about it where it is high."""

    words: str
    is_high: bool


def prepare_cpu(threads: int | None = None) -> None:
    """Prepares this process for training on the CPU, as the commands do: call it once, before the first step.

    Freed memory is kept for reuse (`shapmix.process.memory.keep_freed_memory`).

    Args:
        threads: CPU threads of torch, and of the kernels; None leaves them as they are.

    Raises:
        ValueError: fewer than one thread.
    """
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads is {threads}; give at least 1, or None to leave them as they are")
        torch.set_num_threads(threads)
    keep_freed_memory()


def machine_load() -> Load:
    """The load of the last minute against the number of CPUs; it is high where more processes want to run than there are CPUs."""
    try:
        load = os.getloadavg()[0]
    except OSError:
        return Load("unknown", False)
    cpus = os.cpu_count() or 1
    words = f"{load:.1f} on {cpus} CPU{'' if cpus == 1 else 's'}"
    if load <= cpus:
        return Load(words, False)
    return Load(f"high, {words}: other programs slow this one down; stop them, or use --threads 1", True)


def multiplies_bf16() -> bool | None:
    """Whether the CPU has bfloat16 multiply instructions (without them products are computed in float32); None if unknown."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    lines = (line.partition(":") for line in text.splitlines())
    flags = next((value.split() for key, _, value in lines if key.strip() in ("flags", "Features")), None)
    return None if flags is None else not BF16_PRODUCTS.isdisjoint(flags)
