"""Mixing plan of a step: partners, windows and pasted parts, drawn with counter-based random numbers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from shapmix.draws.philox import integers, random_words, uniform
from shapmix.draws.plans import MixPlan
from shapmix.draws.purposes import COMBINATION, PARTNER, WINDOW

FRAMES_PER_UNIT = 4  # windows start and end on multiples of this
_PUBLISHED_WINDOWS = {64: (7, 11), 100: (13, 20)}


class Window(NamedTuple):
    """One draw per batch: the shift to the mixing partner and the windows in frames; 0-dim tensors, or one window per clip, [N].

    `blend` True means Mixup of whole clips by `lam` instead of pasting the window.
    """

    shift: Tensor
    start: Tensor
    length: Tensor
    source_start: Tensor
    source_length: Tensor
    lam: Tensor
    blend: Tensor


def draw_plan(
    labels: Tensor,
    saliency: Tensor,
    priority: Tensor,
    combinations: Tensor,
    part_of_joint: Tensor,
    num_frames: int,
    *,
    seed: int,
    step: int | Tensor,
    guided: bool = True,
    temperature: float = 0.2,
    blend_probability: float = 0.25,
) -> MixPlan:
    """Draws partners, windows and pasted parts.

    Guided by saliency (Shap-Mix), each sample draws a combination of parts from the softmax over the saliency of the rarer class of
    the pair: the combination is pasted from the partner if the partner's class is rarer, otherwise its complement, so that the
    sample keeps its own salient parts. Unguided (ST-Mix), one random combination is pasted in the whole batch.

    Args:
        labels: [N] int64 class ids, N at least 3.
        saliency: [K, Q] floating point.
        priority: [K] int64, larger = more training samples (the class counts; the published code uses K - class id).
        combinations: [Q] int64 bit sets, `Layout.combinations`.
        part_of_joint: [V] int64.
        num_frames: T, a multiple of 4 and at least 8.
        seed: of all draws.
        step: training step; a 0-dim int64 tensor on the device of the labels avoids a host sync.
        guided: True for Shap-Mix, False for ST-Mix.
        temperature: softmax temperature, in units of the saliency.
        blend_probability: probability of Mixup of whole clips instead of pasting; 1 is plain Mixup.

    Raises:
        ValueError: fewer than 3 samples, or a clip length without windows.

    Source: paper sections 3.1 and 3.3; fixtures `stmix_*` and `shapmix_*`.
    """
    n = len(labels)
    window = draw_window(n, num_frames, seed=seed, step=step, blend_probability=blend_probability, device=labels.device)
    tables = (saliency, priority, combinations, part_of_joint)
    partner_labels = labels[partner_of(n, window.shift)]
    parts = drawn_parts(labels, partner_labels, *tables, seed=seed, step=step, guided=guided, temperature=temperature)
    return mix_plan(window, parts, part_of_joint, num_frames)


def inverse_partners(labels: Tensor, counts: Tensor, *, seed: int, step: int | Tensor) -> Tensor:
    """[N] int64: for each sample another one of the batch, drawn with a weight of 1 / training clips of its class."""
    n, device = len(labels), labels.device
    weight = 1 / counts[labels].double()
    end = weight.cumsum(0)
    place = uniform(random_words(seed, PARTNER, step, n, 4, device)[:, 0]) * (end[-1] - weight)
    place = torch.where(place >= end - weight, place + weight, place)  # steps over the sample itself
    drawn = torch.searchsorted(end, place, right=True).clamp(max=n - 1)
    itself = torch.arange(n, device=device)
    return torch.where(drawn == itself, (itself + 1) % n, drawn)  # rounding at the sample's own border


def drawn_parts(
    labels: Tensor,
    partner_labels: Tensor,
    saliency: Tensor,
    priority: Tensor,
    combinations: Tensor,
    part_of_joint: Tensor,
    *,
    seed: int,
    step: int | Tensor,
    guided: bool,
    temperature: float,
    each: bool = False,
) -> Tensor:
    """[N] bit sets of pasted parts.

    Guided: by a combination from the softmax over the saliency of the rarer class of each pair. Unguided: one random combination
    for the whole batch, or with `each` one for every clip.
    """
    if not guided:
        word = random_words(seed, COMBINATION, step, len(labels) if each else 1, 4, combinations.device)[:, 0]
        return combinations[integers(word, 0, len(combinations) - 1)].expand(len(labels)).contiguous()
    rarer = torch.where(priority[labels] > priority[partner_labels], partner_labels, labels)
    cumulative = (saliency[rarer].double() / temperature).softmax(1).cumsum(1)  # [N, Q]
    point = uniform(random_words(seed, COMBINATION, step, len(labels), 4, labels.device)[:, :1])
    columns = torch.searchsorted(cumulative, point, right=True).squeeze(1).clamp(max=cumulative.shape[1] - 1)
    return pasted_parts(combinations[columns], labels, partner_labels, priority, part_of_joint)


def window_range(num_frames: int) -> tuple[int, int]:
    """Shortest and longest window in units of 4 frames: as published for 64 and 100 frames, otherwise the fractions of 64.

    Raises:
        ValueError: `num_frames` is not a multiple of 4, or below 8.
    """
    if num_frames % FRAMES_PER_UNIT or num_frames < 2 * FRAMES_PER_UNIT:
        raise ValueError(f"mixing windows need a clip length that is a multiple of 4 and at least 8, not {num_frames}")
    units = num_frames // FRAMES_PER_UNIT
    return _PUBLISHED_WINDOWS.get(num_frames, (max(1, round(units * 7 / 16)), max(1, round(units * 11 / 16))))


def draw_window(
    batch: int,
    num_frames: int,
    *,
    seed: int,
    step: int | Tensor,
    blend_probability: float = 0.25,
    device: torch.device | None = None,
    each: bool = False,
) -> Window:
    """Shift uniform on 1..N-2, window and source window uniform in their ranges (paper section 3.1).

    With `each`, every clip has a window, a share and a blend of its own, [N]; the shift is one for the batch.

    Raises:
        ValueError: fewer than 3 samples, or a clip length without windows.
    """
    if batch < 3:
        raise ValueError(f"mixing needs a batch of at least 3 clips, not {batch}: the partner shift is drawn from 1..N-2")
    shortest, longest = window_range(num_frames)
    units = num_frames // FRAMES_PER_UNIT
    word = random_words(seed, WINDOW, step, batch if each else 1, 8, device).T
    word = word if each else word[:, 0]
    length = integers(word[1], shortest, longest)
    source_length = integers(word[3], length, units)
    return Window(
        shift=integers(word[0, 0] if each else word[0], 1, batch - 2),
        start=integers(word[2], 0, units - length) * FRAMES_PER_UNIT,
        length=length * FRAMES_PER_UNIT,
        source_start=integers(word[4], 0, units - source_length) * FRAMES_PER_UNIT,
        source_length=source_length * FRAMES_PER_UNIT,
        lam=uniform(word[5]),
        blend=uniform(word[6]) <= blend_probability,
    )


def mix_plan(window: Window, parts: Tensor, part_of_joint: Tensor, num_frames: int) -> MixPlan:
    """The plan that pastes `parts` ([N] int64 bit sets) of each sample's partner through the window of the batch, or of each.

    The partner's share of the label is window frames * replaced joints / (T * V), or the window's lam if it blends.
    """
    n, num_joints = len(parts), len(part_of_joint)
    replaced_joints = ((parts[:, None] >> part_of_joint) & 1).sum(1)
    # a tensor, because CUDA divides by a Python number by multiplying with its reciprocal, which rounds differently
    whole = torch.full_like(replaced_joints, num_frames * num_joints, dtype=torch.float64)
    pasted = (window.length * replaced_joints).double() / whole

    def each(value: Tensor) -> Tensor:
        return value.expand(n).contiguous()

    return MixPlan(
        partner=partner_of(n, window.shift),
        parts=parts,
        start=each(window.start),
        length=each(window.length),
        source_start=each(window.source_start),
        source_length=each(window.source_length),
        lam=torch.where(window.blend, window.lam.double(), pasted),
        blend=each(window.blend),
    )


def partner_of(batch: int, shift: Tensor) -> Tensor:
    """[N] int64: the partner of sample i is (i + shift) mod N."""
    return (torch.arange(batch, device=shift.device) + shift) % batch


def pasted_parts(combination: Tensor, labels: Tensor, partner_labels: Tensor, priority: Tensor, part_of_joint: Tensor) -> Tensor:
    """[N] bit sets to paste: the drawn combination if the partner's class is rarer, otherwise its complement.

    For a tie, too, the sample keeps its own salient parts.
    """
    all_parts = (2 << part_of_joint.max()) - 1
    return torch.where(priority[labels] > priority[partner_labels], combination, all_parts ^ combination)
