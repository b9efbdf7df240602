"""Norms of CTR-GCN's fused layer in Triton: moments and sums are joined, and the last norm of a layer is applied.

The joins read partial results of a few hundred programs, in a fixed order and in float64. `finish_layer` and its gradient are
bound by memory: each reads and writes every activation once.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from shapmix.reference.layer import EPS, Join, joined_shape

from .triton_launch import launch
from .triton_rows import load_norm, normalise, relu

BLOCK_PARTS, BLOCK_JOINED = 64, 8  # parts and channels that a program of a join of moments reads at once
BLOCK_SUMS, BLOCK_SUMMED = 128, 16  # parts and values that a program of a join of sums reads at once
TILE = 2048  # elements
PROGRAMS = 528  # of a sum over rows: four on each multiprocessor of the largest cards


@triton.jit
def joined(parts, number, width, channel, inside, field: tl.constexpr, FIELDS: tl.constexpr, centre, BLOCK_P: tl.constexpr):
    """Sums over the parts [P, FIELDS, width] of one field: 0 rows, 1 rows times mean, 2 squared deviations from `centre`."""
    total = tl.zeros([BLOCK_P, channel.shape[0]], tl.float64)
    for first in range(0, number, BLOCK_P):
        part = (first + tl.arange(0, BLOCK_P)).to(tl.int64)
        read = (part < number)[:, None] & inside[None, :]
        at = parts + part[:, None] * (FIELDS * width) + channel[None, :]
        rows = tl.load(at, mask=read, other=0.0).to(tl.float64)
        if field == 0:
            total += rows
        else:
            some = read & (rows > 0)  # a part without rows has no mean
            mean = tl.load(at + width, mask=some, other=0.0).to(tl.float64)
            if field == 1:
                total += tl.where(some, rows * mean, 0.0)
            else:
                gap = mean - centre[None, :]
                own = tl.load(at + 2 * width, mask=some, other=0.0).to(tl.float64)
                total += tl.where(some, own + rows * gap * gap, 0.0)
    return tl.sum(total, 0)


@triton.jit
def join_one(
    norm,
    parts,
    tail,
    weight,
    bias,
    block,
    number,
    width,
    tail_number,
    tail_width,
    channels,
    EPS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Joins a few channels of one norm; those from `width` on are joined from the tail. Without a weight: writes moments."""
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < channels
    zero = tl.zeros([BLOCK_C], tl.float64)
    own = is_channel & (channel < width)
    rows = joined(parts, number, width, channel, own, 0, 3, zero, BLOCK_P)
    total = joined(parts, number, width, channel, own, 1, 3, zero, BLOCK_P)
    if tail is not None:
        rest = is_channel & (channel >= width)
        rows += joined(tail, tail_number, tail_width, channel, rest, 0, 3, zero, BLOCK_P)
        total += joined(tail, tail_number, tail_width, channel, rest, 1, 3, zero, BLOCK_P)
    rows = tl.where(is_channel, rows, 1.0)
    mean = total / rows
    deviations = joined(parts, number, width, channel, own, 2, 3, mean, BLOCK_P)
    if tail is not None:
        deviations += joined(tail, tail_number, tail_width, channel, rest, 2, 3, mean, BLOCK_P)
    dtype = norm.dtype.element_ty
    if weight is None:
        tl.store(norm + channel, rows.to(dtype), mask=is_channel)
        tl.store(norm + channels + channel, mean.to(dtype), mask=is_channel)
        tl.store(norm + 2 * channels + channel, deviations.to(dtype), mask=is_channel)
    else:
        variance = deviations / rows
        tl.store(norm + channel, mean.to(dtype), mask=is_channel)
        tl.store(norm + channels + channel, (1.0 / tl.sqrt(variance + EPS)).to(dtype), mask=is_channel)
        tl.store(norm + 2 * channels + channel, tl.load(weight + channel, mask=is_channel, other=0.0), mask=is_channel)
        tl.store(norm + 3 * channels + channel, tl.load(bias + channel, mask=is_channel, other=0.0), mask=is_channel)
        tl.store(norm + 4 * channels + channel, (1.0 / rows).to(dtype), mask=is_channel)
        tl.store(norm + 5 * channels + channel, variance.to(dtype), mask=is_channel)


@triton.jit
def join_moments_kernel(
    norms,
    parts,
    tails,
    weights,
    biases,
    numbers,
    widths,
    tail_numbers,
    tail_widths,
    channels,
    COUNT: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Each program joins a few channels of one of COUNT norms."""
    block = tl.program_id(0)
    for index in tl.static_range(COUNT):
        blocks = tl.cdiv(channels[index], BLOCK_C)
        if (block >= 0) & (block < blocks):
            join_one(
                norms[index],
                parts[index],
                tails[index],
                weights[index],
                biases[index],
                block,
                numbers[index],
                widths[index],
                tail_numbers[index],
                tail_widths[index],
                channels[index],
                EPS,
                BLOCK_P,
                BLOCK_C,
            )
        block -= blocks


@triton.jit
def join_segment(out, parts, block, number, size, inner, frames, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sums a block of the values [number, size] over the parts; of values [n, frames, inner], writes [n, inner, frames]."""
    value = block * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = value < size
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float64)
    for first in range(0, number, BLOCK_P):
        part = (first + tl.arange(0, BLOCK_P)).to(tl.int64)
        read = (part < number)[:, None] & inside[None, :]
        total += tl.load(parts + part[:, None] * size + value[None, :], mask=read, other=0.0).to(tl.float64)
    frame, place = value // inner % frames, value % inner
    to = (value // inner // frames * inner + place) * frames + frame
    tl.store(out + to, tl.sum(total, 0).to(out.dtype.element_ty), mask=inside)


@triton.jit
def join_parts_kernel(
    out, parts, numbers, sizes, inners, frames, COUNT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Each program sums a block of one of the COUNT tensors of parts; the results lie one after another."""
    block = tl.program_id(0)
    for index in tl.static_range(COUNT):
        size = sizes[index]
        blocks = tl.cdiv(size, BLOCK_C)
        if (block >= 0) & (block < blocks):
            join_segment(out, parts[index], block, numbers[index], size, inners[index], frames[index], BLOCK_P, BLOCK_C)
        block -= blocks
        out += size


@triton.jit
def finish_layer_kernel(
    out,
    pooled,
    o,
    norm,
    residual,
    residual_norm,
    frames,
    row,
    channels,
    BLOCK_T: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program writes some joints and channels of one clip, all frames, and their mean over the frames."""
    blocks = tl.cdiv(row, BLOCK)
    clip = (tl.program_id(0) // blocks).to(tl.int64)
    element = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = element < row  # one frame [V, C]
    channel = element % channels
    base = clip * frames * row
    total = tl.zeros([BLOCK_T, BLOCK], pooled.dtype.element_ty)
    mean, scale, bias = load_norm(norm, channel, channels, inside)
    if residual_norm is not None:
        residual_mean, residual_scale, residual_bias = load_norm(residual_norm, channel, channels, inside)
    for first in range(0, frames, BLOCK_T):
        frame = first + tl.arange(0, BLOCK_T)
        read = (frame < frames)[:, None] & inside[None, :]
        at = base + frame[:, None] * row + element[None, :]
        value = normalise(tl.load(o + at, mask=read, other=0.0), mean, scale, bias)
        if residual_norm is not None:
            value += normalise(tl.load(residual + at, mask=read, other=0.0), residual_mean, residual_scale, residual_bias)
        elif residual is not None:
            value += tl.load(residual + at, mask=read, other=0.0).to(value.dtype)
        value = relu(value).to(out.dtype.element_ty)
        tl.store(out + at, value, mask=read)
        total += tl.where(read, value.to(total.dtype), 0.0)
    tl.store(pooled + clip * row + element, tl.sum(total, 0) / frames, mask=inside)


@triton.jit
def times_value(passed, x, norm, channel, is_channel, channels):
    """The passed gradient times (x - mean) / deviation, for the gradient of the norm's weight."""
    mean = tl.load(norm + channel, mask=is_channel, other=0.0)
    rstd = tl.load(norm + channels + channel, mask=is_channel, other=0.0)
    return passed * ((x.to(mean.dtype) - mean[None, :]) * rstd[None, :])


@triton.jit
def finish_layer_backward_kernel(
    passed,
    sums,
    residual_sums,
    grad,
    to_pooled,
    out,
    o,
    norm,
    residual,
    residual_norm,
    rows,
    rows_each,
    of_clip,
    joints,
    channels,
    frames,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Each program passes the gradient through the ReLU in one run of rows, and writes the sums of that run."""
    channel = tl.arange(0, BLOCK_C)
    is_channel = channel < channels
    run = tl.program_id(0).to(tl.int64)
    begin, end = run * rows_each, tl.minimum((run + 1) * rows_each, rows)
    dtype = sums.dtype.element_ty
    total = tl.zeros([BLOCK_R, BLOCK_C], dtype)
    product = tl.zeros([BLOCK_R, BLOCK_C], dtype)
    other = tl.zeros([BLOCK_R, BLOCK_C], dtype)
    for first in range(begin, end, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        read = (row < end)[:, None] & is_channel[None, :]
        at = row[:, None] * channels + channel[None, :]
        value = tl.zeros([BLOCK_R, BLOCK_C], dtype)
        if grad is not None:
            value += tl.load(grad + at, mask=read, other=0.0).to(dtype)
        if to_pooled is not None:
            of_joint = row // of_clip * joints + row % joints
            value += tl.load(to_pooled + of_joint[:, None] * channels + channel[None, :], mask=read, other=0.0) / frames
        value = tl.where(tl.load(out + at, mask=read, other=0.0) > 0, value, 0.0).to(passed.dtype.element_ty)
        tl.store(passed + at, value, mask=read)
        value = value.to(dtype)
        total += value
        product += tl.where(
            read, times_value(value, tl.load(o + at, mask=read, other=0.0), norm, channel, is_channel, channels), 0.0
        )
        if residual_sums is not None:
            x = tl.load(residual + at, mask=read, other=0.0)
            other += tl.where(read, times_value(value, x, residual_norm, channel, is_channel, channels), 0.0)
    to = run * 2 * channels + channel
    tl.store(sums + to, tl.sum(total, 0), mask=is_channel)
    tl.store(sums + to + channels, tl.sum(product, 0), mask=is_channel)
    if residual_sums is not None:
        tl.store(residual_sums + to, tl.sum(total, 0), mask=is_channel)
        tl.store(residual_sums + to + channels, tl.sum(other, 0), mask=is_channel)


def join_moments(joins: Sequence[Join], eps: float = EPS) -> None:
    """As `shapmix.reference.layer.join_moments`; contiguous arguments. 1 launch."""
    _join([join.out for join in joins], joins, eps)


def merge_moments(partial: Tensor, channels: int, *, tail: Tensor | None = None) -> Tensor:
    """As `shapmix.reference.layer.merge_moments`; contiguous arguments. 1 launch."""
    merged = partial.new_empty(1, 3, channels)
    _join([merged], [(partial, None, None, merged, tail)], 0.0)
    return merged


def _join(
    out: list[Tensor], joins: Sequence[tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None]], eps: float
) -> None:
    """Writes norms, or without weights moments of all rows."""
    partials, weights, biases, norms, tails = zip(*joins, strict=True)
    channels = tuple(norm.shape[-1] for norm in norms)
    launch(
        join_moments_kernel,
        (sum(triton.cdiv(number, BLOCK_JOINED) for number in channels),),
        norms,
        partials,
        tails,
        weights,
        biases,
        tuple(map(len, partials)),
        tuple(partial.shape[2] for partial in partials),
        tuple(0 if tail is None else len(tail) for tail in tails),
        tuple(0 if tail is None else tail.shape[2] for tail in tails),
        channels,
        COUNT=len(norms),
        EPS=eps,
        BLOCK_P=BLOCK_PARTS,
        BLOCK_C=BLOCK_JOINED,
        num_warps=4,
        reads=(*partials, *weights, *biases, *tails),
        writes=out,
    )


def join_parts(*partials: Tensor) -> list[Tensor]:
    """As `shapmix.reference.layer.join_parts`; the results are views of one tensor. 1 launch."""
    sizes = tuple(partial[0].numel() for partial in partials)
    frames = tuple(partial.shape[2] if partial.dim() == 5 else 1 for partial in partials)
    inners = tuple(partial[0, 0, 0].numel() if partial.dim() == 5 else size for partial, size in zip(partials, sizes, strict=True))
    out = partials[0].new_empty(sum(sizes))
    launch(
        join_parts_kernel,
        (sum(triton.cdiv(size, BLOCK_SUMMED) for size in sizes),),
        out,
        partials,
        tuple(map(len, partials)),
        sizes,
        inners,
        frames,
        COUNT=len(partials),
        BLOCK_P=BLOCK_SUMS,
        BLOCK_C=BLOCK_SUMMED,
        num_warps=4,
        reads=partials,
        writes=(out,),
    )
    return [value.view(joined_shape(partial)) for value, partial in zip(out.split(sizes), partials, strict=True)]


def finish_layer(o: Tensor, norm: Tensor, residual: Tensor | None, residual_norm: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `shapmix.reference.layer.finish_layer`."""
    clips, frames, joints, channels = o.shape
    out, pooled = torch.empty_like(o), norm.new_empty(clips, joints, channels)
    block = min(triton.next_power_of_2(joints * channels), 512)
    launch(
        finish_layer_kernel,
        (triton.cdiv(joints * channels, block) * clips,),
        out,
        pooled,
        o,
        norm,
        residual,
        residual_norm,
        frames,
        joints * channels,
        channels,
        BLOCK_T=min(TILE // block, triton.next_power_of_2(frames)),
        BLOCK=block,
        num_warps=4,
        reads=(o, norm, residual, residual_norm),
        writes=(out, pooled),
    )
    return out, pooled


def finish_layer_backward(
    grad: Tensor | None,
    to_pooled: Tensor | None,
    out: Tensor,
    o: Tensor,
    norm: Tensor,
    residual: Tensor | None,
    residual_norm: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `shapmix.reference.layer.finish_layer_backward`."""
    _, frames, joints, channels = o.shape
    rows = o.numel() // channels
    block_c = triton.next_power_of_2(channels)
    block_r = max(TILE // block_c, 1)
    rows_each = triton.cdiv(triton.cdiv(rows, block_r), min(PROGRAMS, triton.cdiv(rows, block_r))) * block_r
    runs = triton.cdiv(rows, rows_each)
    passed = torch.empty_like(o)
    sums = norm.new_empty(runs, 2, channels)
    residual_sums = None if residual_norm is None else torch.empty_like(sums)
    launch(
        finish_layer_backward_kernel,
        (runs,),
        passed,
        sums,
        residual_sums,
        grad,
        to_pooled,
        out,
        o,
        norm,
        residual if residual_norm is not None else None,
        residual_norm,
        rows,
        rows_each,
        frames * joints,
        joints,
        channels,
        frames,
        BLOCK_R=block_r,
        BLOCK_C=block_c,
        num_warps=4,
        reads=(o, grad, to_pooled, out, residual if residual_norm is not None else None),
        writes=(passed, sums, residual_sums),
    )
    return passed, sums, residual_sums
