"""Measurements as Markdown tables: one row per op and shape, with the floor, the eager reference and every back end.

The floor is the time of a copy of as many bytes; without measurements on a GPU, the time at its nominal memory bandwidth.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.ptxas import Kernel
from bench.stages import read_lines
from bench.verdicts import as_result, may_show

NOMINAL_BANDWIDTH = 3.35e12  # bytes per second, HBM3 of an H100 according to its data sheet
NOT_MEASURED = "not measured"
Row = dict[str, Any]
Table = list[list[str]]


def read_rows(path: Path) -> list[Row]:
    """The measurements of a file, each with the verdict of its op as `shown`: `green`, or the word to print with its speed."""
    if path.suffix == ".jsonl":  # of bench.measure
        return [{**line["row"], "shown": "green"} for line in read_lines(path) if "error" not in line.get("row", {"error": ""})]
    content = json.loads(path.read_text(encoding="utf-8"))
    return shown_rows(as_result(content["runs"][-1]) if "runs" in content else content)


def shown_rows(result: dict[str, Any]) -> list[Row]:
    """The measurements of a result of the GPU suite."""
    rows = (row for row in result.get("rows", []) if "error" not in row)
    return [{**row, "shown": may_show(result, row["ops"], row["backend"])} for row in rows]


def tables(rows: Sequence[Row]) -> str:
    """Markdown tables of the CPU rows and of the GPU rows, or of the GPU floors if there are no GPU rows."""
    on_cpu, on_gpu = ([row for row in rows if row["device"] == device] for device in ("cpu", "cuda"))
    found = [markdown(measured(part)) for part in (on_cpu, on_gpu) if part]
    if not on_gpu:
        found.append(markdown(unmeasured(on_cpu)))
    return "\n\n".join(found)


def measured(rows: Iterable[Row]) -> Table:
    """Header and body: op and shape, floor, reference, and three columns per back end; on a GPU cold and hot device times."""
    groups: dict[str, dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(name_of(row), {})[row["backend"]] = row
    backends = list(dict.fromkeys(backend for group in groups.values() for backend in group))
    head = ["op, shape", "floor", "reference"]
    head += [column for backend in backends for column in (backend, "speed-up (p20 to p80)", "of copy speed")]
    body = []
    for name, group in groups.items():
        first = next(iter(group.values()))
        timed = first["seconds"]
        cells = [name, in_units(timed[first["clock"]]["copy"]["p50"]), in_units(timed["wall"]["reference"]["p50"])]
        for backend in backends:
            cells += _cells(group[backend]) if backend in group else ["not run"] * 3
        body.append(cells)
    return [head, *body]


def _cells(row: Row) -> list[str]:
    if row["shown"] == "red":
        return ["red"] * 3
    times = [in_units(row["seconds"][clock]["op"]["p50"]) for clock in ("cold", "hot") if clock in row["seconds"]]
    speedup = row["speedup"]
    shown = " / ".join(times) if times else in_units(row["seconds"]["wall"]["op"]["p50"])
    return [
        shown if row["shown"] == "green" else f"{shown} ({row['shown']})",
        f"{speedup['p50']:.1f}x ({speedup['p20']:.1f} to {speedup['p80']:.1f})",
        "below the clock" if row["copy_share"] is None else f"{100 * row['copy_share']:.0f}%",
    ]


def unmeasured(rows: Iterable[Row]) -> Table:
    """Header and body: ops and shapes measured elsewhere, their bytes, and the time at the nominal bandwidth."""
    moved = {name_of(row): row["bytes_moved"] for row in rows if row["shape"] != "large"}
    head = ["op, shape", "bytes", f"floor at nominal {NOMINAL_BANDWIDTH / 1e12:.2f} TB/s", "GPU"]
    return [
        head,
        *([name, in_bytes(size), in_units(size / NOMINAL_BANDWIDTH), NOT_MEASURED] for name, size in moved.items()),
    ]


def assembled(kernels: Iterable[Kernel]) -> Table:
    """Header and body: resources of each kernel per architecture, the maximum over its compiled variants."""
    head = ["kernel", "back end", "architecture", "variants", "registers", "spilled", "shared memory"]
    return [head, *(_kernel_cells(kernel) for kernel in kernels)]


def _kernel_cells(kernel: Kernel) -> list[str]:
    needs = [str(kernel.forms), str(kernel.registers), f"{kernel.spilled_bytes} B", f"{kernel.shared_bytes} B"]
    return [kernel.name, kernel.backend, kernel.arch, *needs]


def name_of(row: Row) -> str:
    """Such as `coalition_inputs S=2, ntu`, followed by the dtype unless it is float32."""
    dtype = "" if row["dtype"] == "float32" else f" {row['dtype']}"
    return f"{row['ops']} {row['variant']}".strip() + f", {row['shape']}{dtype}"


def in_units(seconds: float) -> str:
    """Three significant figures, in ms, us or ns."""
    for unit, scale in (("ms", 1e3), ("us", 1e6)):
        if round(scale * seconds, 3) >= 1:
            return f"{scale * seconds:.3g} {unit}"
    return f"{1e9 * seconds:.3g} ns"


def in_bytes(count: int) -> str:
    """Three significant figures, in MB or kB."""
    return f"{count / 1e6:.3g} MB" if count >= 1e6 else f"{count / 1e3:.3g} kB"


def markdown(table: Table) -> str:
    """Formats header, separator and body."""
    head, *body = table
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body))
