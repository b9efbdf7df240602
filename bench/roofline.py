"""Roofline plot: the bandwidth of each op compared with a copy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from bench.tables import Row


def roofline(rows: Sequence[Row], path: Path) -> None:
    """Plots GB/s over bytes moved, one panel per device: the copy as a line, the reference and each back end as points."""
    rows = [row for row in rows if row["shown"] == "green" and row["gb_per_s"]]
    devices = list(dict.fromkeys(row["device"] for row in rows))
    if not devices:
        raise SystemExit("bench.roofline: there is no verified result, so there is nothing to draw")
    figure = Figure(figsize=(6 * len(devices), 4), layout="constrained")
    for axes, device in zip(figure.subplots(1, len(devices), squeeze=False)[0], devices, strict=True):
        own = sorted((row for row in rows if row["device"] == device), key=lambda row: row["bytes_moved"])
        sizes = [row["bytes_moved"] for row in own]
        copied = [row["bytes_moved"] / row["seconds"][row["clock"]]["copy"]["p50"] / 1e9 for row in own]
        axes.plot(sizes, copied, color="0.6", label="copy of as many bytes")
        reference = [row["bytes_moved"] / row["seconds"]["wall"]["reference"]["p50"] / 1e9 for row in own]
        axes.scatter(sizes, reference, s=12, marker="x", color="0.3", label="eager reference")
        for backend in dict.fromkeys(row["backend"] for row in own):
            points = [(row["bytes_moved"], row["gb_per_s"]) for row in own if row["backend"] == backend]
            axes.scatter(*zip(*points, strict=True), s=16, label=backend)
        axes.set(xscale="log", yscale="log", xlabel="bytes moved", ylabel="GB/s", title=device)
        axes.legend()
    figure.savefig(path, dpi=120)
