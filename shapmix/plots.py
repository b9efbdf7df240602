"""Pictures of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
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


def plot_part_values(path: Path, values: Tensor, layout: Layout, class_names: list[str]) -> None:
    """Mean Shapley values [K, P] of the parts for each class; NaN where a class has none."""
    _heat_map(
        path, values.double().numpy(), list(layout.parts), class_names, x="part", y="class", title="Shapley value", signed=True
    )


def front(coordinates: Tensor, axis: int) -> Tensor:
    """The two coordinates along `axis` that are drawn, x and y; y is 0 where clips have one coordinate."""
    shown = coordinates.narrow(axis, 0, min(2, coordinates.shape[axis]))
    return shown if shown.shape[axis] == 2 else torch.cat([shown, torch.zeros_like(shown)], axis)


def plot_mixed_clip(path: Path, clips: dict[str, Tensor], changed: Tensor, layout: Layout, *, frames: int = 8) -> None:
    """Front views of a few clips, one row each, with what was pasted in colour.

    Args:
        clips: title -> [C, T, V, M] joint coordinates; the last row is the mixed one.
        changed: [T, V] bool, where the last row differs from the first.
    """
    figure = Figure(figsize=(1.25 * frames, 1.75 * len(clips)), layout="constrained")
    shown = np.linspace(0, changed.shape[0] - 1, frames).astype(int).tolist()
    clips = {title: front(clip, 0) for title, clip in clips.items()}
    seen = torch.stack([clip[:, shown, :, 0] for clip in clips.values()])
    low, high = seen.amin((0, 2, 3)), seen.amax((0, 2, 3))
    high = torch.where(high > low, high, low + 1)  # nothing moves along this axis
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


def _heat_map(
    path: Path, values: np.ndarray, columns: list[str], rows: list[str], *, x: str, y: str, title: str, signed: bool = False
) -> None:
    figure = Figure(figsize=(3 + 0.32 * len(columns), 2.5 + 0.26 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    if signed:
        largest = float(np.nanmax(np.abs(values), initial=1e-12))
        image = axes.imshow(values, aspect="auto", cmap="RdBu", vmin=-largest, vmax=largest)
    else:
        image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0)
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    figure.colorbar(image, ax=axes, shrink=0.8)
    figure.savefig(path, dpi=120)


def plot_parts(
    path: Path, values: Tensor, standard_errors: Tensor, pose: Tensor, layout: Layout, titles: list[str], *, columns: int = 6
) -> None:
    """Front views of one pose, a class each, bones in the colour of their part's value, and the values with their errors.

    Args:
        values, standard_errors: [L, P], NaN where an error is unknown.
        pose: [V, C] coordinates, y upwards.
    """
    largest = float(values.abs().max()) or 1.0
    colours = colormaps["RdBu"]
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.9 * rows), layout="constrained")
    x, y = front(pose.double(), 1).unbind(1)
    for index, (title, value, error) in enumerate(zip(titles, values.tolist(), standard_errors.tolist(), strict=True)):
        panel = figure.add_subplot(rows, columns, index + 1)
        panel.set_title(title, fontsize=8)
        panel.axis("off")
        body = panel.inset_axes((0, 0.3, 1, 0.7))
        for child, parent in layout.edges:
            part = int(layout.part_of_joint[child])
            ends = [child, parent]
            body.plot(x[ends], y[ends], color="#8a94a0", linewidth=4.6, solid_capstyle="round")
            body.plot(x[ends], y[ends], color=colours(0.5 + value[part] / largest / 2), linewidth=3.2, solid_capstyle="round")
        body.set(aspect="equal")
        body.margins(0.12)
        body.axis("off")
        bars = panel.inset_axes((0.1, 0.0, 0.88, 0.27))
        known = [0.0 if np.isnan(one) else one for one in error]
        bars.bar(
            range(len(value)), value, yerr=known, color=[colours(0.5 + v / largest / 2) for v in value], ecolor="#555", capsize=1.5
        )
        for bar in bars.patches:
            bar.set(edgecolor="#8a94a0", linewidth=0.5)
        bars.axhline(0, color="#555", linewidth=0.6)
        bars.set_ylim(-1.15 * largest, 1.15 * largest)
        bars.set_xticks(range(len(value)), [_initials(part) for part in layout.parts], fontsize=6)
        bars.tick_params(axis="y", labelsize=5, length=2)
        bars.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def plot_waterfall(path: Path, values: Tensor, base: float, parts: list[str], unit: str) -> None:
    """From v(none) = `base` to v(all) by the parts' values [P], the largest first."""
    order = values.abs().argsort(descending=True).tolist()
    figure = Figure(figsize=(7, 0.6 * len(parts) + 1.6), layout="constrained")
    axes = figure.add_subplot()
    at = base
    names = ["no part"]
    axes.barh(0, base, color="#9aa4ae")
    for row, part in enumerate(order, 1):
        value = float(values[part])
        axes.barh(row, value, left=at, color="#2166ac" if value >= 0 else "#d95f02")
        axes.annotate(
            f"{value:+.3f}", (max(at, at + value), row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )
        at += value
        names.append(parts[part].replace("_", " "))
    axes.barh(len(order) + 1, at, color="#3b4a5a")
    axes.set_yticks(range(len(names) + 1), [*names, "whole clip"])
    axes.invert_yaxis()
    axes.set_xlabel(unit.replace("_", "-"))
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def plot_interactions(path: Path, values: Tensor, layout: Layout) -> None:
    """Parts on a circle, size and colour by their own values, joined by the interactions of the pairs.

    Args:
        values: [P + P (P - 1) / 2], single parts then pairs, in the order of `shapmix.shapley.interaction_sets`.
    """
    parts = list(layout.parts)
    count = len(parts)
    angle = np.pi / 2 - 2 * np.pi * np.arange(count) / count
    places = np.stack([np.cos(angle), np.sin(angle)], 1)
    singles, pairs = values[:count], values[count:]
    largest_pair, largest = float(pairs.abs().max()) or 1.0, float(singles.abs().max()) or 1.0
    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    axes = figure.add_subplot()
    for index, bits in enumerate(bits for bits in range(1 << count) if bits.bit_count() == 2):
        ends = [part for part in range(count) if bits >> part & 1]
        value = float(pairs[index])
        colour = "#2166ac" if value >= 0 else "#d95f02"
        axes.plot(*places[ends].T, color=colour, linewidth=0.5 + 9 * abs(value) / largest_pair, alpha=0.65, zorder=1)
        middle = places[ends].mean(0) * 1.02 + 0.08 * (places[ends[0]] - places[ends[1]])
        axes.annotate(f"{value:+.3f}", middle, fontsize=7, ha="center", va="center", zorder=3)
    for part, (x, y) in enumerate(places):
        value = float(singles[part])
        colour = "#2166ac" if value >= 0 else "#d95f02"
        axes.scatter(x, y, s=300 + 1500 * abs(value) / largest, color=colour, edgecolor="white", zorder=2)
        axes.annotate(f"{parts[part].replace('_', ' ')}\n{value:+.3f}", (1.32 * x, 1.32 * y), ha="center", va="center", fontsize=9)
    axes.set(aspect="equal", xlim=(-1.75, 1.75), ylim=(-1.6, 1.6))
    axes.axis("off")
    figure.savefig(path, dpi=110)


def plot_curves(path: Path, insertion: Tensor, deletion: Tensor, mean: Tensor, unit: str) -> None:
    """Insertion and deletion [N, P + 1] along the ranking against the mean over all orders, and the spread over clips."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    steps = np.arange(insertion.shape[1])
    for axes, title, ranked, any_order in zip(
        figure.subplots(1, 2, sharey=True),
        ("parts shown", "parts hidden"),
        (insertion, deletion),
        (mean, mean.flip(1)),
        strict=True,
    ):
        for values, colour, label in ((ranked, "#2166ac", "by Shapley value"), (any_order, "#8a94a0", "any order")):
            middle = values.mean(0)
            error = values.std(0) / len(values) ** 0.5 if len(values) > 1 else torch.zeros_like(middle)
            axes.plot(steps, middle, color=colour, marker="o", markersize=3, label=label)
            axes.fill_between(steps, middle - error, middle + error, color=colour, alpha=0.2, linewidth=0)
        axes.set_xlabel(title)
        axes.set_xticks(steps)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel(unit.replace("_", "-"))
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def _initials(part: str) -> str:
    """`LA` for left_arm, `TR` for trunk."""
    words = part.split("_")
    return ("".join(word[0] for word in words) if len(words) > 1 else part[:2]).upper()
