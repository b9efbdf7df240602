"""Processes of benchmarks that are pinned to an instruction set of the CPU: our kernels, and torch with its libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from bench import ROOT
from shapmix.kernels import cpp

TITLES = {"avx512": "AVX-512", "avx2": "AVX2", "baseline": "baseline"}
TORCH_ENVIRONMENT = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "baseline": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}


def available_sets(module: str) -> tuple[str, ...]:
    """The instruction sets of this processor, in ascending order; ends the command `module` if the kernels were not built."""
    found = cpp.instruction_set()
    if found is None:
        raise SystemExit(f"{module}: {cpp.load()[1]}")
    return found.available


def from_avx2(sets: Sequence[str]) -> Sequence[str]:
    """The sets from AVX2 up, or all if there is none."""
    return [isa for isa in sets if isa != "baseline"] or sets


def isa_environment(isa: str, widest: str) -> dict[str, str]:
    """Variables that pin an instruction set in a new process."""
    return {**os.environ, "SHAPMIX_ISA": isa, **({} if isa == widest else TORCH_ENVIRONMENT[isa])}


def in_process(module: str, environment: dict[str, str], *options: object) -> Any:
    """What the command `module` with some options prints last in a new process, parsed."""
    command = [sys.executable, "-m", module, *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{module}: `{' '.join(command)}` failed; its message is above")
    return json.loads(done.stdout.splitlines()[-1])
