"""Plans: every random choice of a training step, drawn before any arithmetic is done on clips.

Each `draw_*` is a pure function of its arguments, the seed and the step; the ops of `shapmix.reference` and
`shapmix.kernels` apply what it returns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shapmix.layout import Layout
from shapmix.philox import integers, random_words, uniform
from shapmix.reference.clips import CropPlan, FramePlan
from shapmix.reference.mix import MixPlan

# What a random word is for; the numbers are part of what a seed means, so they never change.
_WINDOW, _COMBINATION, _MARGINAL, _CROP = 1, 2, 3, 4

FRAMES_PER_UNIT = 4  # windows start and end on multiples of this
MAX_ROTATION = 0.3  # radians about each axis, the NTU feeder's
_PUBLISHED_WINDOWS = {64: (7, 11), 100: (13, 20)}


class Window(NamedTuple):
    """One draw a batch: the mixing partner's shift and the windows, in frames; 0-dim tensors.

    `blend` True means Mixup of whole clips by `lam` instead of pasting the window.
    """

    shift: Tensor
    start: Tensor
    length: Tensor
    source_start: Tensor
    source_length: Tensor
    lam: Tensor
    blend: Tensor


class Marginals(NamedTuple):
    """Whose marginal is measured on each sample: columns [N] int64 of the layout's combinations, contexts [N] bit sets."""

    columns: Tensor
    contexts: Tensor


def window_range(num_frames: int) -> tuple[int, int]:
    """Shortest and longest window in units of 4 frames: as published for 64 and 100 frames, 64's shares elsewhere.

    Raises:
        ValueError: `num_frames` is not a multiple of 4, or below 8.
    """
    if num_frames % FRAMES_PER_UNIT or num_frames < 2 * FRAMES_PER_UNIT:
        raise ValueError(f"mixing windows need a clip length that is a multiple of 4 and at least 8, not {num_frames}")
    units = num_frames // FRAMES_PER_UNIT
    return _PUBLISHED_WINDOWS.get(num_frames, (max(1, round(units * 7 / 16)), max(1, round(units * 11 / 16))))


def draw_window(batch: int, num_frames: int, *, seed: int, step: int, blend_probability: float = 0.25) -> Window:
    """Shift uniform on 1..N-2, window and source window uniform in their ranges (paper section 3.1).

    Raises:
        ValueError: fewer than 3 samples, or a clip length without windows.
    """
    if batch < 3:
        raise ValueError(f"mixing needs a batch of at least 3 clips, not {batch}: the partner shift is drawn from 1..N-2")
    shortest, longest = window_range(num_frames)
    units = num_frames // FRAMES_PER_UNIT
    word = random_words(seed, _WINDOW, step, 1, 8)[0]
    length = integers(word[1], shortest, longest)
    source_length = integers(word[3], length, units)
    return Window(
        shift=integers(word[0], 1, batch - 2),
        start=integers(word[2], 0, units - length) * FRAMES_PER_UNIT,
        length=length * FRAMES_PER_UNIT,
        source_start=integers(word[4], 0, units - source_length) * FRAMES_PER_UNIT,
        source_length=source_length * FRAMES_PER_UNIT,
        lam=uniform(word[5]),
        blend=uniform(word[6]) <= blend_probability,
    )


def mix_plan(window: Window, parts: Tensor, layout: Layout, num_frames: int) -> MixPlan:
    """The plan that pastes `parts` ([N] int64 bit sets) of each sample's partner through one window.

    The partner's share of the label is window frames x replaced joints / (T x V), or the window's lam where it blends.
    """
    n = len(parts)
    pasted = window.length * layout.joints_in(parts) / (num_frames * layout.num_joints)

    def each(value: Tensor) -> Tensor:
        return value.expand(n).contiguous()

    return MixPlan(
        partner=partner_of(n, window.shift),
        parts=parts,
        start=each(window.start),
        length=each(window.length),
        source_start=each(window.source_start),
        source_length=each(window.source_length),
        lam=torch.where(window.blend, window.lam.double(), pasted.double()),
        blend=each(window.blend),
    )


def partner_of(batch: int, shift: Tensor | int) -> Tensor:
    """[N] int64: the partner of sample i is (i + shift) mod N."""
    return (torch.arange(batch) + shift) % batch


def draw_mixup(batch: int, layout: Layout, num_frames: int, *, seed: int, step: int) -> MixPlan:
    """Mixup of whole clips, one share for the batch."""
    window = draw_window(batch, num_frames, seed=seed, step=step, blend_probability=1.0)
    return mix_plan(window, torch.zeros(batch, dtype=torch.int64), layout, num_frames)


def draw_stmix(batch: int, layout: Layout, num_frames: int, *, seed: int, step: int, blend_probability: float = 0.25) -> MixPlan:
    """ST-Mix: one random combination of parts and one window for the batch (paper section 3.1)."""
    window = draw_window(batch, num_frames, seed=seed, step=step, blend_probability=blend_probability)
    word = random_words(seed, _COMBINATION, step, 1, 4)[0, 0]
    combination = layout.combinations[integers(word, 0, len(layout.combinations) - 1)]
    return mix_plan(window, combination.expand(batch).contiguous(), layout, num_frames)


def draw_shapmix(
    labels: Tensor,
    layout: Layout,
    num_frames: int,
    saliency: Tensor,
    priority: Tensor,
    *,
    seed: int,
    step: int,
    temperature: float = 0.2,
    blend_probability: float = 0.25,
) -> MixPlan:
    """Shap-Mix: the rarer class of each pair keeps, or brings, the parts that its saliency favours (paper section 3.3).

    Args:
        labels: [N] int64.
        saliency: [K, Q], Q the layout's combinations.
        priority: [K], larger = more training samples (the true class counts; the published code uses K - class id).
        temperature: of the softmax over a class's combinations.
    """
    window = draw_window(len(labels), num_frames, seed=seed, step=step, blend_probability=blend_probability)
    partner_labels = labels[partner_of(len(labels), window.shift)]
    rarer = torch.where(priority[labels] > priority[partner_labels], partner_labels, labels)
    cumulative = (saliency[rarer].double() / temperature).softmax(1).cumsum(1)  # [N, Q]
    point = uniform(random_words(seed, _COMBINATION, step, len(labels), 4)[:, :1])
    columns = torch.searchsorted(cumulative, point, right=True).squeeze(1).clamp(max=cumulative.shape[1] - 1)
    return mix_plan(window, pasted_parts(columns, labels, partner_labels, priority, layout), layout, num_frames)


def pasted_parts(columns: Tensor, labels: Tensor, partner_labels: Tensor, priority: Tensor, layout: Layout) -> Tensor:
    """[N] bit sets to paste: the drawn combination where the partner's class is the rarer, else its complement.

    A tie counts as "else": the sample keeps its own salient parts.
    """
    combination = layout.combinations[columns]
    return torch.where(priority[labels] > priority[partner_labels], combination, layout.all_parts ^ combination)


def draw_marginals(batch: int, layout: Layout, *, seed: int, step: int, shared: bool = False, naive: bool = False) -> Marginals:
    """A combination P and a context R, disjoint from it, for each sample: the size of R uniform, then R uniform of that size.

    Args:
        shared: one draw for the whole batch (the published code); otherwise one a sample.
        naive: R empty (the published code's first epochs).

    Source: paper section 3.2.
    """
    parts = layout.num_parts
    words = random_words(seed, _MARGINAL, step, 1 if shared else batch, 12)
    columns = integers(words[:, 0], 0, len(layout.combinations) - 1)
    combination = layout.combinations[columns]
    taken = (combination[:, None] >> torch.arange(parts) & 1).bool()  # [N, P]
    size = integers(words[:, 1], 0, (~taken).sum(1))
    # the parts outside P in random order; R is the first `size` of them
    order = words[:, 4 : 4 + parts].masked_fill(taken, 1 << 32).argsort(dim=1, stable=True)
    first = torch.arange(parts) < size[:, None]
    contexts = (first.long() << order).sum(1)
    if naive:
        contexts = torch.zeros_like(contexts)
    return Marginals(columns.expand(batch), contexts.expand(batch))


def draw_crops(clips: Tensor, lengths: Tensor, *, num_frames: int, seed: int, step: int, shortest: float = 0.5) -> CropPlan:
    """Training crops of the NTU feeder: a share U[shortest, 1] of each clip, at least T frames where it has them, and a rotation.

    Args:
        clips: [N] int64 indices.
        lengths: [N] int64 frames of those clips.
    """
    words = random_words(seed, _CROP, step, len(clips), 8)
    share = shortest + (1 - shortest) * uniform(words[:, 0])
    length = (lengths * share).long().clamp(min=num_frames).minimum(lengths)
    start = integers(words[:, 1], 0, lengths - length)
    angles = (uniform(words[:, 2:5]) * 2 - 1) * MAX_ROTATION
    return CropPlan(clips, start, length, angles)


def centre_crops(clips: Tensor, lengths: Tensor, *, share: float = 0.95) -> CropPlan:
    """Evaluation crops of the NTU feeder: the central 95% of each clip, not turned."""
    margin = ((1 - share) * lengths.double() / 2).long()
    return CropPlan(clips, margin, lengths - 2 * margin, torch.zeros(len(clips), 3, dtype=torch.float64))


def draw_frames(clips: Tensor, lengths: Tensor, *, num_frames: int, seed: int, step: int) -> FramePlan:
    """Training draw of the NW-UCLA feeder: integer degrees U{-60..60} about x and y, scale U(0.5, 1.5), sorted frames.

    Frames are drawn without replacement from every index repeated 100 times, so that short clips repeat frames.
    """
    words = random_words(seed, _CROP, step, len(clips), 4)
    frames = np.empty((len(clips), num_frames), dtype=np.int64)
    for row, length in enumerate(lengths.tolist()):
        drawn = np.random.default_rng((seed, step, row)).choice(length * 100, num_frames, replace=False)
        frames[row] = np.sort(drawn) // 100
    angles = integers(words[:, :2], -60, 60).double()
    return FramePlan(clips, torch.from_numpy(frames), angles, 0.5 + uniform(words[:, 2]))


def even_frames(clips: Tensor, lengths: Tensor, *, num_frames: int) -> FramePlan:
    """Evaluation frames of the NW-UCLA feeder: evenly spaced, no rotation, scale 1."""
    frames = np.stack([np.linspace(0, length - 1, num_frames).astype(np.int64) for length in lengths.tolist()])
    none = torch.zeros(len(clips), 2, dtype=torch.float64)
    return FramePlan(clips, torch.from_numpy(frames), none, torch.ones(len(clips), dtype=torch.float64))
