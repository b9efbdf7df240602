"""Turns a results file of `pytest bench --benchmark-only --benchmark-json FILE` into a Markdown table.

    python -m bench.report FILE

One row an op and shape: the reference's median, and for each other back end its median, the ratio to the reference, and the
share of what a plain copy of as many bytes reaches (the floor of a memory-bound op).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def table(results: dict[str, Any]) -> str:
    """Markdown, groups in the order they were measured."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for row in results["benchmarks"]:
        groups.setdefault(row["group"], {})[row["params"]["backend"]] = row
    fast = sorted({backend for rows in groups.values() for backend in rows} - {"reference"})
    head = ["op, shape", "reference"] + [column for backend in fast for column in (backend, "speed-up", "share of copy speed")]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for group, rows in groups.items():
        base = rows["reference"]["stats"]["median"]
        cells = [group, f"{1e3 * base:.2f} ms"]
        for backend in fast:
            if backend not in rows:
                cells += ["not run"] * 3
                continue
            median = rows[backend]["stats"]["median"]
            share = rows[backend]["extra_info"]["copy_share"]
            cells += [f"{1e3 * median:.2f} ms", f"{base / median:.1f}x", f"{100 * share:.0f}%"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    print(table(json.loads(parser.parse_args().results.read_text())))


if __name__ == "__main__":
    main()
