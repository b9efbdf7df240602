"""Instructions of launches that `bench.instructions` has counted, in a results file that `bench.traffic` predicts times from.

The file belongs to the sources of the kernels in it, by a hash over their modules and those that they import of `kernels`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

FILE = Path(__file__).parent / "results" / "gpu_instructions.json"
KERNELS = Path(__file__).parents[1] / "kernels"
COMMAND = "python -m bench.instructions --only graph_unit --out bench/results/gpu_instructions.json"
RATE = (
    132 * 2 * 1.755e9
)  # instructions a second of an H100: two a cycle on each multiprocessor, half of what its schedulers can issue


class Shape(NamedTuple):
    """A kernel and what a launch of it moves, which says as much as the shapes of its arguments."""

    kernel: str
    dtype: torch.dtype
    bytes_read: int
    bytes_written: int


class StaleCountsError(ValueError):
    """Counts of other kernel sources than the present ones."""


def with_imported(modules: Iterable[str]) -> list[str]:
    """Modules of `kernels`, and those that they import of it, sorted."""
    texts = {name: (KERNELS / f"{name}.py").read_text(encoding="utf-8") for name in modules}
    imported = {name for text in texts.values() for name in re.findall(r"^from \.(\w+) import", text, re.MULTILINE)}
    return sorted(imported | set(texts))


def digest(modules: Iterable[str]) -> str:
    """SHA-256 over the sources of modules of `kernels`, and of those that they import of it."""
    return hashlib.sha256(b"".join((KERNELS / f"{name}.py").read_bytes() for name in with_imported(modules))).hexdigest()


def write(path: Path, modules: Iterable[str], counts: dict[Shape, int]) -> None:
    """Writes the results file of the kernels of some modules."""
    import triton

    modules = sorted(modules)
    content: dict[str, Any] = {
        "about": "Warp instructions of launches, counted in their code for sm_90 without a GPU.",
        "command": COMMAND,
        "triton": triton.__version__,
        "modules": modules,
        "sha256": digest(modules),
        "launches": [
            {**shape._asdict(), "dtype": str(shape.dtype).removeprefix("torch."), "instructions": count}
            for shape, count in sorted(counts.items(), key=lambda item: (item[0].kernel, *item[0][2:]))
        ],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read(path: Path = FILE) -> dict[Shape, int]:
    """Warp instructions by the shape of a launch.

    Raises:
        StaleCountsError: the file belongs to other kernel sources.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["sha256"] != digest(content["modules"]):
        raise StaleCountsError(f"{path.name} was counted with other kernel sources; count again with `{COMMAND}`")
    return {
        Shape(each["kernel"], getattr(torch, each["dtype"]), each["bytes_read"], each["bytes_written"]): each["instructions"]
        for each in content["launches"]
    }
