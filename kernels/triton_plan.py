"""`draw_plan` as one Triton kernel: Philox words, windows and the softmax of each pair's rarer class, without the host."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shapmix.draws.purposes import COMBINATION, WINDOW
from shapmix.reference.plan import FRAMES_PER_UNIT

from .checks import SUM_DTYPES
from .dispatch import kernel

BLOCK = 64
NUM_WARPS = 2
_WINDOW, _COMBINATION = tl.constexpr(WINDOW), tl.constexpr(COMBINATION)
_UNIT = tl.constexpr(FRAMES_PER_UNIT)


@triton.jit
def philox_words(seed_low, seed_high, row, block, step, purpose):
    """The four Philox words of the counter (row, block, step, purpose), as int64 in 0 .. 2^32 - 1."""
    low, high = seed_low.to(tl.uint32), seed_high.to(tl.uint32)
    c0, c1, c2, c3 = row.to(tl.uint32), block.to(tl.uint32), step.to(tl.uint32), purpose.to(tl.uint32)
    a: tl.constexpr = 0xD2511F53
    b: tl.constexpr = 0xCD9E8D57
    for _ in tl.static_range(10):
        p0, p1 = c0.to(tl.uint64) * a, c2.to(tl.uint64) * b
        c0, c1 = (p1 >> 32).to(tl.uint32) ^ c1 ^ low, p1.to(tl.uint32)
        c2, c3 = (p0 >> 32).to(tl.uint32) ^ c3 ^ high, p0.to(tl.uint32)
        low, high = low + 0x9E3779B9, high + 0xBB67AE85
    return c0.to(tl.int64), c1.to(tl.int64), c2.to(tl.int64), c3.to(tl.int64)


@triton.jit
def uniform(word):
    """float64 strictly between 0 and 1."""
    return (word.to(tl.float64) + 0.5) * 2.0**-32


@triton.jit
def integers(word, low, high):
    """int64 uniform on low .. high."""
    return low + ((word * (high - low + 1)) >> 32)


@triton.jit(do_not_specialize=["seed_low", "seed_high", "step", "samples", "num_frames", "joints"])
def draw_kernel(
    fields,
    lam,
    blend,
    labels,
    saliency,
    priority,
    combinations,
    part_of_joint,
    step_at,
    seed_low,
    seed_high,
    step,
    samples,
    columns,
    joints,
    num_frames,
    shortest,
    longest,
    STEP_ON_DEVICE: tl.constexpr,
    GUIDED: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    BLEND_PROBABILITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program takes a block of samples; the window is shared by the batch, so every program draws the same one."""
    now = tl.load(step_at) if STEP_ON_DEVICE else step.to(tl.int64)
    now = now & 0xFFFFFFFF
    zero = now * 0
    low, high = seed_low.to(tl.int64), seed_high.to(tl.int64)
    units = (num_frames // _UNIT).to(tl.int64)
    w0, w1, w2, w3 = philox_words(low, high, zero, zero, now, zero + _WINDOW)
    w4, w5, w6, _ = philox_words(low, high, zero, zero + 1, now, zero + _WINDOW)
    shift = integers(w0, 1, samples - 2)
    length = integers(w1, shortest, longest)
    start = integers(w2, 0, units - length)
    source_length = integers(w3, length, units)
    source_start = integers(w4, 0, units - source_length)
    blended = uniform(w6) <= BLEND_PROBABILITY

    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < samples
    partner = (row + shift) % samples
    if GUIDED:
        own = tl.load(labels + row, mask=inside, other=0)
        other = tl.load(labels + partner, mask=inside, other=0)
        # in a tie the sample keeps its own salient parts
        partner_is_rarer = tl.load(priority + own, mask=inside, other=0) > tl.load(priority + other, mask=inside, other=0)
        table = saliency + tl.where(partner_is_rarer, other, own) * columns
        largest = tl.load(table, mask=inside, other=0.0).to(tl.float64) / TEMPERATURE
        for column in range(1, columns):
            largest = tl.maximum(largest, tl.load(table + column, mask=inside, other=0.0).to(tl.float64) / TEMPERATURE)
        total = tl.zeros([BLOCK], tl.float64)
        for column in range(columns):
            total += tl.exp(tl.load(table + column, mask=inside, other=0.0).to(tl.float64) / TEMPERATURE - largest)
        word, _, _, _ = philox_words(low, high, row.to(tl.int64), row.to(tl.int64) * 0, now, zero + _COMBINATION)
        point = uniform(word)
        cumulative = tl.zeros([BLOCK], tl.float64)
        drawn = tl.zeros([BLOCK], tl.int64)
        for column in range(columns):
            cumulative += tl.exp(tl.load(table + column, mask=inside, other=0.0).to(tl.float64) / TEMPERATURE - largest) / total
            drawn += (cumulative <= point).to(tl.int64)
        combination = tl.load(combinations + tl.minimum(drawn, columns - 1), mask=inside, other=0)
        last_part = tl.load(part_of_joint)
        for joint in range(1, joints):
            last_part = tl.maximum(last_part, tl.load(part_of_joint + joint))
        one = last_part * 0 + 1
        all_parts = ((one << last_part) << 1) - 1
        parts = tl.where(partner_is_rarer, combination, combination ^ all_parts)
    else:
        word, _, _, _ = philox_words(low, high, zero, zero, now, zero + _COMBINATION)
        parts = tl.load(combinations + integers(word, 0, columns - 1)) + tl.zeros([BLOCK], tl.int64)

    replaced = tl.zeros([BLOCK], tl.int64)
    for joint in range(joints):
        replaced += (parts >> tl.load(part_of_joint + joint)) & 1
    pasted = (length * _UNIT * replaced).to(tl.float64) / (num_frames * joints).to(tl.float64)

    to = fields + row
    tl.store(to, partner.to(tl.int64), mask=inside)
    tl.store(to + samples, parts, mask=inside)
    tl.store(to + 2 * samples, tl.zeros([BLOCK], tl.int64) + start * _UNIT, mask=inside)
    tl.store(to + 3 * samples, tl.zeros([BLOCK], tl.int64) + length * _UNIT, mask=inside)
    tl.store(to + 4 * samples, tl.zeros([BLOCK], tl.int64) + source_start * _UNIT, mask=inside)
    tl.store(to + 5 * samples, tl.zeros([BLOCK], tl.int64) + source_length * _UNIT, mask=inside)
    tl.store(lam + row, tl.where(blended, uniform(w5), pasted), mask=inside)
    tl.store(blend + row, tl.zeros([BLOCK], tl.uint8) + blended.to(tl.uint8), mask=inside)


@kernel("draw_plan", backend="triton", dtypes=SUM_DTYPES)
def draw_plan(
    *,
    fields: Tensor,
    lam: Tensor,
    blend: Tensor,
    labels: Tensor,
    saliency: Tensor,
    priority: Tensor,
    combinations: Tensor,
    part_of_joint: Tensor,
    num_frames: int,
    shortest: int,
    longest: int,
    seed: int,
    step: int,
    step_on_device: Tensor | None,
    guided: bool,
    temperature: float,
    blend_probability: float,
) -> None:
    """Writes `fields` [6, N] (partner, parts, start, length, source_start, source_length), `lam` and `blend` [N]."""
    samples = len(labels)
    on_device = step_on_device is not None
    draw_kernel[(triton.cdiv(samples, BLOCK),)](
        fields,
        lam,
        blend.view(torch.uint8),
        labels,
        saliency,
        priority,
        combinations,
        part_of_joint,
        step_on_device if on_device else labels,
        seed & 0xFFFFFFFF,
        seed >> 32,
        0 if on_device else step & 0xFFFFFFFF,
        samples,
        len(combinations),
        len(part_of_joint),
        num_frames,
        shortest,
        longest,
        STEP_ON_DEVICE=on_device,
        GUIDED=guided,
        TEMPERATURE=temperature,
        BLEND_PROBABILITY=blend_probability,
        BLOCK=BLOCK,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
