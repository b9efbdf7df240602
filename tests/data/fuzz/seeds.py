"""Writes seed recordings for the fuzzer into the given folder."""

from __future__ import annotations

import sys
from pathlib import Path


def recording(frames: int, people: int, number: str, end: str) -> str:
    """A constant number for all draws."""
    body = ["72057594037937185 0 1 1 1 1 0 0.1 -0.2 2", "25", *[" ".join([number] * 11 + ["2"])] * 25]
    lines = [str(frames)]
    for frame in range(frames):
        here = people if frame % 3 else 0
        lines.append(str(here))
        for person in range(here):
            lines += [f"{person}{body[0]}", *body[1:]]
    return end.join(lines) + end


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for seed, number in enumerate(("0.1234567", "-1.5e-07", "3", "12345678901234567890.5", "nan")):
        (folder / f"seed{seed}").write_text(recording(seed + 1, seed % 3 + 1, number, "\r\n" if seed % 2 else "\n"), newline="")
