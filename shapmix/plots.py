"""Pictures of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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
