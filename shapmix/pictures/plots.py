"""Plots with matplotlib: confusion matrices, saliency tables, mixed clips and explanations."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor, log10
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from torch import Tensor

from shapmix.process.files import whole_file
from shapmix.shapley.explanation import Faithfulness
from shapmix.skeleton.layout import Layout

plain_text = rc_context({"text.parse_math": False})  # class names may contain $


def save_figure(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Writes a PNG file atomically.

    Raises:
        OSError: with the file name.
    """
    with whole_file(path) as file:
        figure.savefig(file, dpi=dpi, format="png")


def plot_confusion(path: Path, confusion: Tensor, class_names: list[str]) -> None:
    """Row-normalised confusion matrix [K, K]; rows are the true classes."""
    shares = confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)
    _heat_map(
        path,
        shares.numpy(),
        class_names,
        class_names,
        x="predicted",
        y="true class",
        title="Confusion (by true class)",
    )


def plot_saliency(path: Path, saliency: Tensor, layout: Layout, class_names: list[str]) -> None:
    """Class saliency [K, Q] of the layout's combinations."""
    columns = [layout.part_names(bits) for bits in layout.combinations.tolist()]
    _heat_map(path, saliency.double().numpy(), columns, class_names, x="combination of parts", y="class", title="Class saliency")


def plot_part_values(path: Path, values: Tensor, layout: Layout, class_names: list[str]) -> None:
    """Mean Shapley values [K, P] of the parts per class; NaN if a class has none."""
    _heat_map(
        path, values.double().numpy(), list(layout.parts), class_names, x="part", y="class", title="Shapley value", signed=True
    )


def front(coordinates: Tensor, axis: int, *, up: tuple[int, int] = (1, 1)) -> Tensor:
    """Front view: a horizontal and a vertical coordinate (pointing up) along `axis`; the vertical one is 0 if there is but one.

    Args:
        up: index and sign of the coordinate that points up; the horizontal one is the first of the others.
    """
    vertical, sign = up
    if coordinates.shape[axis] == 1:
        return torch.cat([coordinates, torch.zeros_like(coordinates)], axis)
    horizontal = coordinates.narrow(axis, int(vertical == 0), 1)
    return torch.cat([horizontal, sign * coordinates.narrow(axis, vertical, 1)], axis)


@plain_text
def plot_mixed_clip(
    path: Path,
    clips: dict[str, Tensor],
    changed: Mapping[str, Tensor],
    layout: Layout,
    *,
    frames: int = 8,
    up: tuple[int, int] = (1, 1),
) -> None:
    """Front views of a few clips, one row each, with pasted joints in colour.

    Args:
        clips: title -> [C, T, V, M] joint coordinates, all of the same T.
        changed: title of a mixed clip -> [T, V] bool, its pasted joints.
        up: index and sign of the coordinate that points up.
    """
    figure = Figure(figsize=(1.25 * frames, 1.75 * len(clips)), layout="constrained")
    shown = np.linspace(0, next(iter(clips.values())).shape[1] - 1, frames).astype(int).tolist()
    clips = {title: front(clip, 0, up=up) for title, clip in clips.items()}
    seen = torch.stack([clip[:, shown, :, 0] for clip in clips.values()])
    low, high = seen.amin((0, 2, 3)), seen.amax((0, 2, 3))
    high = torch.where(high > low, high, low + 1)  # no extent along this axis
    rows = figure.add_gridspec(len(clips), 1)
    for row, (title, clip) in enumerate(clips.items()):
        panel = figure.add_subfigure(rows[row])
        panel.suptitle(title, x=0.01, ha="left", fontsize=9)
        for axes, frame in zip(panel.subplots(1, frames), shown, strict=True):
            for child, parent in layout.edges:
                x, y = clip[0, frame, [child, parent], 0], clip[1, frame, [child, parent], 0]
                pasted = title in changed and bool(changed[title][frame, child])
                axes.plot(x, y, color="#d95f02" if pasted else "#3b4a5a", linewidth=2.2 if pasted else 1.3, clip_on=False)
            axes.set(aspect="equal", xlim=(float(low[0]), float(high[0])), ylim=(float(low[1]), float(high[1])))
            axes.axis("off")
    save_figure(figure, path, 120)


@plain_text
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
    save_figure(figure, path, 120)


@plain_text
def plot_parts(
    path: Path,
    values: Tensor,
    standard_errors: Tensor,
    pose: Tensor,
    layout: Layout,
    titles: list[str],
    *,
    columns: int = 6,
    up: tuple[int, int] = (1, 1),
) -> None:
    """Front view of a pose per class, with bones coloured by the value of their part, and bars of the values with error bars.

    Args:
        values, standard_errors: [L, P], NaN for an unknown error.
        pose: [V, C] coordinates.
        up: index and sign of the coordinate that points up.
    """
    largest = float(values.abs().max()) or 1.0
    colours = colormaps["RdBu"]
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.9 * rows), layout="constrained")
    x, y = front(pose.double(), 1, up=up).unbind(1)
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
    save_figure(figure, path)


@plain_text
def plot_waterfall(path: Path, values: Tensor, base: float, parts: list[str], unit: str) -> None:
    """Waterfall from v(none) = `base` to v(all) by the values [P] of the parts, largest first."""
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
            f"{value:+.{_decimals(values)}f}",
            (max(at, at + value), row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
        at += value
        names.append(parts[part].replace("_", " "))
    axes.barh(len(order) + 1, at, color="#3b4a5a")
    axes.set_yticks(range(len(names) + 1), [*names, "whole clip"])
    axes.invert_yaxis()
    axes.set_xlabel(unit.replace("_", "-"))
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


@plain_text
def plot_interactions(path: Path, values: Tensor, layout: Layout) -> None:
    """Parts on a circle, sized and coloured by their values, connected by lines for the pairwise interactions.

    A pair without space for a label, or whose value rounds to zero, has no label.

    Args:
        values: [P + P (P - 1) / 2], single parts then pairs, in the order of `shapmix.shapley.values.interaction_sets`.
    """
    parts = list(layout.parts)
    count = len(parts)
    angle = np.pi / 2 - 2 * np.pi * np.arange(count) / count
    places = np.stack([np.cos(angle), np.sin(angle)], 1)
    singles, pairs = values[:count].tolist(), values[count:].tolist()
    ends_of = [[part for part in range(count) if bits >> part & 1] for bits in range(1 << count) if bits.bit_count() == 2]
    decimals = _decimals(values)
    figure = Figure(figsize=(6.4, 6.0), layout="constrained")
    axes = figure.add_subplot()
    largest_pair, largest = max(map(abs, pairs)) or 1.0, max(map(abs, singles)) or 1.0
    taken = [(x, y, 0.2, 0.2) for x, y in places]  # centre and half size of placed labels
    for value, ends in sorted(zip(pairs, ends_of, strict=True), key=lambda pair: -abs(pair[0])):
        colour = "#2166ac" if value >= 0 else "#d95f02"
        axes.plot(*places[ends].T, color=colour, linewidth=0.5 + 9 * abs(value) / largest_pair, alpha=0.65, zorder=1)
        room = _room(places[ends], taken, half=(0.035 * (decimals + 3), 0.06))
        if round(value, decimals) and room is not None:
            taken.append(room)
            label = axes.annotate(f"{value:+.{decimals}f}", room[:2], fontsize=7, ha="center", va="center", zorder=3)
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5})
    for part, (x, y) in enumerate(places):
        value = round(singles[part], decimals) + 0.0  # avoids -0.000
        colour = "#2166ac" if value >= 0 else "#d95f02"
        axes.scatter(x, y, s=300 + 1000 * abs(value) / largest, color=colour, edgecolor="white", zorder=2)
        name = f"{parts[part].replace('_', ' ')}\n{value:+.{decimals}f}"
        axes.annotate(name, (1.38 * x, 1.32 * y), ha="center", va="center", fontsize=9)
    axes.set(aspect="equal", xlim=(-1.85, 1.85), ylim=(-1.65, 1.65))
    axes.axis("off")
    save_figure(figure, path)


Box = tuple[float, float, float, float]  # centre x, y, half the width, half the height


def _room(ends: np.ndarray, taken: list[Box], half: tuple[float, float]) -> Box | None:
    """Position on the line [2, 2], closest to its middle, where a label overlaps no other; None if there is none."""
    for along in (0.5, 0.42, 0.58, 0.36, 0.64, 0.3, 0.7):
        x, y = ((1 - along) * ends[0] + along * ends[1]).tolist()
        if all(abs(x - u) >= half[0] + a or abs(y - v) >= half[1] + b for u, v, a, b in taken):
            return x, y, *half
    return None


def _decimals(values: Tensor) -> int:
    """Number of decimals that shows two significant digits of the largest value, at least 3."""
    largest = float(values.abs().max())
    return 3 if largest == 0 else min(max(3, 1 - floor(log10(largest))), 8)


@plain_text
def plot_curves(path: Path, faithfulness: Faithfulness, unit: str) -> None:
    """Insertion and deletion curves along the ranking, against the mean and the 95% band of random rankings."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    steps = np.arange(faithfulness.ranked.shape[1])
    low, high = faithfulness.band
    for index, (axes, title) in enumerate(zip(figure.subplots(1, 2, sharey=True), ("parts shown", "parts hidden"), strict=True)):
        axes.fill_between(steps, low[index], high[index], color="#8a94a0", alpha=0.25, linewidth=0, label="95% of random rankings")
        axes.plot(steps, faithfulness.random[index], color="#8a94a0", label="random order")
        axes.plot(steps, faithfulness.ranked[index], color="#2166ac", marker="o", markersize=3, label="most important first")
        axes.set_xlabel(title)
        axes.set_xticks(steps)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel(unit.replace("_", "-"))
    figure.axes[0].legend(frameon=False)
    save_figure(figure, path)


def _initials(part: str) -> str:
    """`LA` for left_arm, `TR` for trunk."""
    words = part.split("_")
    return ("".join(word[0] for word in words) if len(words) > 1 else part[:2]).upper()
