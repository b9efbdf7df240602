"""Pictures of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from shapmix.layout import Layout


def plot_confusion(path: Path, confusion: Tensor, class_names: list[str]) -> None:
    """Row-normalised confusion matrix [K, K]; rows are the true classes."""
    shares = confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)
    _heat_map(
        path, shares.numpy(), class_names, class_names, x="predicted", y="true class", title="Confusion (share of the true class)"
    )


def plot_saliency(path: Path, saliency: Tensor, layout: Layout, class_names: list[str]) -> None:
    """Class saliency [K, Q] over the layout's combinations."""
    columns = [layout.part_names(bits) for bits in layout.combinations.tolist()]
    _heat_map(path, saliency.double().numpy(), columns, class_names, x="combination of parts", y="class", title="Class saliency")


def plot_mixed_clip(path: Path, clips: dict[str, Tensor], changed: Tensor, layout: Layout, *, frames: int = 8) -> None:
    """Front views of a few clips, one row each, with what was pasted in colour.

    Args:
        clips: title -> [C, T, V, M] joint coordinates; the last row is the mixed one.
        changed: [T, V] bool, where the last row differs from the first.
    """
    figure = Figure(figsize=(1.25 * frames, 1.75 * len(clips)), layout="constrained")
    shown = np.linspace(0, changed.shape[0] - 1, frames).astype(int).tolist()
    seen = torch.stack([clip[:2, shown, :, 0] for clip in clips.values()])
    low, high = seen.amin((0, 2, 3)), seen.amax((0, 2, 3))
    rows = figure.add_gridspec(len(clips), 1)
    for row, (title, clip) in enumerate(clips.items()):
        panel = figure.add_subfigure(rows[row])
        panel.suptitle(title, x=0.01, ha="left", fontsize=9)
        for axes, frame in zip(panel.subplots(1, frames), shown, strict=True):
            for child, parent in layout.edges:
                x, y = clip[0, frame, [child, parent], 0], clip[1, frame, [child, parent], 0]
                pasted = row == len(clips) - 1 and bool(changed[frame, child])
                axes.plot(x, y, color="#d95f02" if pasted else "#3b4a5a", linewidth=2.2 if pasted else 1.3, clip_on=False)
            axes.set(aspect="equal", xlim=(float(low[0]), float(high[0])), ylim=(float(low[1]), float(high[1])))
            axes.axis("off")
    figure.savefig(path, dpi=120)


def _heat_map(path: Path, values: np.ndarray, columns: list[str], rows: list[str], *, x: str, y: str, title: str) -> None:
    figure = Figure(figsize=(3 + 0.32 * len(columns), 2.5 + 0.26 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0)
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    figure.colorbar(image, ax=axes, shrink=0.8)
    figure.savefig(path, dpi=120)
