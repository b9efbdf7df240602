"""Parses ptxas reports of GPU kernels, printed by nvcc (`-Xptxas=-v`) and Triton.

Triton prints them on compilation: set TRITON_DUMP_PTXAS_LOG=1 and an empty TRITON_CACHE_DIR.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Kernel:
    """All compiled variants of a kernel for one architecture: their number and maximum resources."""

    name: str
    backend: str
    arch: str
    forms: int
    registers: int
    spilled_bytes: int
    shared_bytes: int


def read_report(text: str) -> list[Kernel]:
    """The kernels of a report, in order of first appearance."""
    found: dict[tuple[str, str, str], list[tuple[int, int, int]]] = {}
    for entry in re.split(r"Compiling entry function", text)[1:]:
        head = re.match(r" '(\w+)' for '(sm_\w+)'", entry)
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        registers = re.search(r"Used (\d+) registers", entry)
        if head and spills and registers:
            shared = re.search(r"(\d+) bytes smem", entry)
            needs = (int(registers[1]), int(spills[1]) + int(spills[2]), int(shared[1]) if shared else 0)
            found.setdefault((*plain_name(head[1]), head[2]), []).append(needs)
    return [Kernel(*kernel, len(forms), *(max(column) for column in zip(*forms, strict=True))) for kernel, forms in found.items()]


def plain_name(symbol: str) -> tuple[str, str]:
    """A kernel's unqualified name and back end: C++ symbols are mangled, Triton's are not."""
    prefix = re.match(r"_ZN?", symbol)
    if prefix is None:
        return symbol, "triton"
    name, at = symbol, prefix.end()
    while length := re.match(r"L?(\d+)", symbol[at:]):
        begin = at + length.end()
        at = begin + int(length[1])
        name = symbol[begin:at]
    return name, "cuda"
