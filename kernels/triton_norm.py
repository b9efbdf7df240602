"""`batch_norm` and its gradient as Triton kernels: partial sums per channel, a small reduction, and a pass that writes.

The rows [N * T * V, C] of channels-last memory are read in runs, one program per run and block of channels. Each program updates
mean and sum of squared deviations with the formula of Chan, Golub and LeVeque (1983), so that a mean far from zero loses no
precision. The partial results are reduced in float64 and in a fixed order without atomics, so the result is deterministic. Sums
over a tile are accumulated in float32 (float64 for float64 elements), relative to the tile's first row.

The forward pass reads its input twice and writes once, the backward pass reads three tensors twice; the roofline is this traffic
over the memory bandwidth. Shortcut and ReLU are fused into the second pass.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import row_stride
from .dispatch import kernel
from .triton import DTYPES

MAX_BLOCK_CHANNELS = 64
TILE = 2048  # elements per tile of a program
PROGRAMS = 1024  # enough to fill any GPU, few enough to keep the partial sums small
BLOCK_RUNS = 64
BLOCK_REDUCED = 16  # channels per program that reduces partial sums
NUM_WARPS = 4


@triton.jit
def tile_of(channels, BLOCK_C: tl.constexpr):
    """The channels of this program, their mask, and the program's index on the other axis."""
    c_blocks = tl.cdiv(channels, BLOCK_C)
    channel = tl.program_id(0) % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    return channel, channel < channels, (tl.program_id(0) // c_blocks).to(tl.int64)


@triton.jit
def moments_kernel(
    means, deviations, x, rows, rows_each, channels, SUM: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Each program writes mean and sum of squared deviations of one run of rows to [runs, C]."""
    channel, is_channel, run = tile_of(channels, BLOCK_C)
    begin, end = run * rows_each, tl.minimum((run + 1) * rows_each, rows)
    # Starts at the first row, so that the rounding of a share scales with the gap between means, not with the mean.
    mean = tl.load(x + begin * channels + channel, mask=is_channel, other=0.0).to(tl.float64)
    deviation = tl.zeros([BLOCK_C], tl.float64)
    for first in range(begin, end, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        inside = (row < end)[:, None] & is_channel[None, :]
        pivot = tl.load(x + first * channels + channel, mask=is_channel, other=0.0).to(SUM)
        value = tl.load(x + row[:, None] * channels + channel[None, :], mask=inside, other=0.0).to(SUM)
        value = tl.where(inside, value - pivot[None, :], 0.0)
        count = tl.minimum(end - first, BLOCK_R).to(SUM)
        before = (first - begin).to(SUM)
        total = tl.sum(value, 0)
        squares = tl.sum(value * value, 0)
        offset = total / count
        within = squares - total * offset
        gap = pivot.to(tl.float64) + offset.to(tl.float64) - mean
        share = count / (before + count)  # a float64 division is a function call, which spills registers
        deviation += tl.where(within < 0, 0.0, within).to(tl.float64) + gap * gap * (before * share)
        mean += gap * share
    tl.store(means + run * channels + channel, mean, mask=is_channel)
    tl.store(deviations + run * channels + channel, deviation, mask=is_channel)


@triton.jit
def join_moments_kernel(
    mean, rest, variance, means, deviations, rows, rows_each, runs, channels, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Reduces the runs to mean, rounding error of the mean, and biased variance [C] of all rows."""
    channel, is_channel, _ = tile_of(channels, BLOCK_C)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float64)
    for first in range(0, runs, BLOCK_P):
        run = (first + tl.arange(0, BLOCK_P)).to(tl.int64)
        inside = (run < runs)[:, None] & is_channel[None, :]
        count = tl.minimum(rows - run * rows_each, rows_each).to(tl.float64)[:, None]
        each = tl.load(means + run[:, None] * channels + channel[None, :], mask=inside, other=0.0).to(tl.float64)
        total += each * count
    centre = tl.sum(total, 0) / rows
    squares = tl.zeros([BLOCK_P, BLOCK_C], tl.float64)
    for first in range(0, runs, BLOCK_P):
        run = (first + tl.arange(0, BLOCK_P)).to(tl.int64)
        inside = (run < runs)[:, None] & is_channel[None, :]
        count = tl.minimum(rows - run * rows_each, rows_each).to(tl.float64)[:, None]
        at = run[:, None] * channels + channel[None, :]
        gap = tl.load(means + at, mask=inside, other=0.0).to(tl.float64) - centre[None, :]
        within = tl.load(deviations + at, mask=inside, other=0.0).to(tl.float64)
        squares += tl.where(inside, within + gap * gap * count, 0.0)
    rounded = centre.to(mean.dtype.element_ty)
    tl.store(mean + channel, rounded, mask=is_channel)
    tl.store(rest + channel, (centre - rounded.to(tl.float64)).to(rest.dtype.element_ty), mask=is_channel)
    tl.store(variance + channel, (tl.sum(squares, 0) / rows).to(variance.dtype.element_ty), mask=is_channel)


@triton.jit
def normalise_kernel(
    out,
    x,
    shortcut,
    mean,
    rest,
    variance,
    weight,
    bias,
    lowest,
    eps,
    rows,
    channels,
    shortcut_stride,
    SUM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Each program writes max((x - mean) * weight / deviation + bias + shortcut, lowest) for one block of rows."""
    channel, is_channel, block = tile_of(channels, BLOCK_C)
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = (row < rows)[:, None] & is_channel[None, :]
    at = row[:, None] * channels + channel[None, :]
    spread = tl.load(variance + channel, mask=is_channel, other=1.0) + tl.load(eps)
    scale = tl.load(weight + channel, mask=is_channel, other=0.0) / tl.sqrt(spread)
    centre = tl.load(mean + channel, mask=is_channel, other=0.0)
    shift = tl.load(bias + channel, mask=is_channel, other=0.0) - tl.load(rest + channel, mask=is_channel, other=0.0) * scale
    value = (tl.load(x + at, mask=inside, other=0.0).to(SUM) - centre[None, :]) * scale[None, :] + shift[None, :]
    if shortcut is not None:
        value += tl.load(shortcut + row[:, None] * shortcut_stride + channel[None, :], mask=inside, other=0.0).to(SUM)
    floor = tl.load(lowest + channel, mask=is_channel, other=0.0)[None, :]
    tl.store(out + at, tl.where(value < floor, floor, value).to(out.dtype.element_ty), mask=inside)  # keeps NaN


@triton.jit
def load_passed(grad, out, lowest, at, inside, channel, is_channel, SUM: tl.constexpr):
    """Loads the gradient through the ReLU: kept where the result is above its lower bound, else 0."""
    floor = tl.load(lowest + channel, mask=is_channel, other=0.0)[None, :]
    above = tl.load(out + at, mask=inside, other=0.0).to(SUM) > floor
    return tl.where(above, tl.load(grad + at, mask=inside, other=0.0).to(SUM), 0.0)


@triton.jit
def gradient_sums_kernel(
    sums,
    products,
    to_shortcut,
    grad,
    out,
    x,
    mean,
    lowest,
    rows,
    rows_each,
    channels,
    SUM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Each program writes, for one run of rows, the sums of the passed gradient and of its product with x - mean to [runs, C]."""
    channel, is_channel, run = tile_of(channels, BLOCK_C)
    begin, end = run * rows_each, tl.minimum((run + 1) * rows_each, rows)
    centre = tl.load(mean + channel, mask=is_channel, other=0.0)[None, :]
    total = tl.zeros([BLOCK_R, BLOCK_C], SUM)
    product = tl.zeros([BLOCK_R, BLOCK_C], SUM)
    for first in range(begin, end, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        inside = (row < end)[:, None] & is_channel[None, :]
        at = row[:, None] * channels + channel[None, :]
        passed = load_passed(grad, out, lowest, at, inside, channel, is_channel, SUM)
        if to_shortcut is not None:
            tl.store(to_shortcut + at, passed.to(to_shortcut.dtype.element_ty), mask=inside)
        total += passed
        product += tl.where(inside, passed * (tl.load(x + at, mask=inside, other=0.0).to(SUM) - centre), 0.0)
    tl.store(sums + run * channels + channel, tl.sum(total, 0), mask=is_channel)
    tl.store(products + run * channels + channel, tl.sum(product, 0), mask=is_channel)


@triton.jit
def join_gradients_kernel(
    to_weight, to_bias, sums, products, variance, eps, runs, channels, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Reduces the sums of the runs to the gradients of weight and bias [C]."""
    channel, is_channel, _ = tile_of(channels, BLOCK_C)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float64)
    product = tl.zeros([BLOCK_P, BLOCK_C], tl.float64)
    for first in range(0, runs, BLOCK_P):
        run = (first + tl.arange(0, BLOCK_P)).to(tl.int64)
        inside = (run < runs)[:, None] & is_channel[None, :]
        at = run[:, None] * channels + channel[None, :]
        total += tl.load(sums + at, mask=inside, other=0.0).to(tl.float64)
        product += tl.load(products + at, mask=inside, other=0.0).to(tl.float64)
    spread = tl.load(variance + channel, mask=is_channel, other=1.0).to(tl.float64) + tl.load(eps).to(tl.float64)
    tl.store(to_weight + channel, (tl.sum(product, 0) / tl.sqrt(spread)).to(to_weight.dtype.element_ty), mask=is_channel)
    tl.store(to_bias + channel, tl.sum(total, 0).to(to_bias.dtype.element_ty), mask=is_channel)


@triton.jit
def gradient_rows_kernel(
    to_x,
    to_weight,
    to_bias,
    grad,
    out,
    x,
    mean,
    variance,
    weight,
    lowest,
    eps,
    rows,
    channels,
    SUM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Each program writes the gradient of the input for one block of rows."""
    channel, is_channel, block = tile_of(channels, BLOCK_C)
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = (row < rows)[:, None] & is_channel[None, :]
    at = row[:, None] * channels + channel[None, :]
    inverse = 1.0 / tl.sqrt(tl.load(variance + channel, mask=is_channel, other=1.0) + tl.load(eps))
    slope = tl.load(to_weight + channel, mask=is_channel, other=0.0) * inverse / rows
    level = tl.load(to_bias + channel, mask=is_channel, other=0.0) / rows
    scale = tl.load(weight + channel, mask=is_channel, other=0.0) * inverse
    passed = load_passed(grad, out, lowest, at, inside, channel, is_channel, SUM)
    centre = tl.load(mean + channel, mask=is_channel, other=0.0)[None, :]
    from_mean = tl.load(x + at, mask=inside, other=0.0).to(SUM) - centre
    value = (passed - from_mean * slope[None, :] - level[None, :]) * scale[None, :]
    tl.store(to_x + at, value.to(to_x.dtype.element_ty), mask=inside)


@kernel("batch_norm", backend="triton", dtypes=DTYPES)
def batch_norm(
    *,
    out: Tensor,
    mean: Tensor,
    variance: Tensor,
    x: Tensor,
    shortcut: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    lowest: Tensor,
    eps: float,
) -> None:
    """Writes `out` [N, C, T, V] and the statistics [C]; x and out are channels-last, the shortcut rows of channels."""
    rows, channels, tiles, tile = sizes(x, weight)
    rows_each, runs = runs_of(rows, channels, tile["BLOCK_R"], tile["BLOCK_C"])
    means, deviations = weight.new_empty(2, runs, channels, dtype=torch.float64)
    rest = torch.empty_like(mean)
    c_blocks = triton.cdiv(channels, tile["BLOCK_C"])
    moments_kernel[(runs * c_blocks,)](means, deviations, x, rows, rows_each, channels, **tile, num_warps=NUM_WARPS)
    join_moments_kernel[(triton.cdiv(channels, BLOCK_REDUCED),)](
        mean,
        rest,
        variance,
        means,
        deviations,
        rows,
        rows_each,
        runs,
        channels,
        BLOCK_P=BLOCK_RUNS,
        BLOCK_C=BLOCK_REDUCED,
        num_warps=NUM_WARPS,
    )
    normalise_kernel[(tiles,)](
        out,
        x,
        shortcut,
        mean,
        rest,
        variance,
        weight,
        bias,
        lowest,
        weight.new_full((), eps),  # a float argument would be rounded to float32
        rows,
        channels,
        0 if shortcut is None else row_stride(shortcut),
        **tile,
        num_warps=NUM_WARPS,
    )


@kernel("batch_norm_backward", backend="triton", dtypes=DTYPES)
def batch_norm_backward(
    *,
    to_x: Tensor,
    to_shortcut: Tensor,
    to_weight: Tensor,
    to_bias: Tensor,
    grad: Tensor,
    out: Tensor,
    mean: Tensor,
    variance: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    lowest: Tensor,
    with_shortcut: bool,
    eps: float,
) -> None:
    """Writes the gradients; all tensors of [N, C, T, V] are channels-last."""
    rows, channels, tiles, tile = sizes(x, weight)
    rows_each, runs = runs_of(rows, channels, tile["BLOCK_R"], tile["BLOCK_C"])
    sums, products = weight.new_empty(runs, channels), weight.new_empty(runs, channels)
    added = weight.new_full((), eps)
    gradient_sums_kernel[(runs * triton.cdiv(channels, tile["BLOCK_C"]),)](
        sums,
        products,
        to_shortcut if with_shortcut else None,
        grad,
        out,
        x,
        mean,
        lowest,
        rows,
        rows_each,
        channels,
        **tile,
        num_warps=NUM_WARPS,
    )
    join_gradients_kernel[(triton.cdiv(channels, BLOCK_REDUCED),)](
        to_weight,
        to_bias,
        sums,
        products,
        variance,
        added,
        runs,
        channels,
        BLOCK_P=BLOCK_RUNS,
        BLOCK_C=BLOCK_REDUCED,
        num_warps=NUM_WARPS,
    )
    gradient_rows_kernel[(tiles,)](
        to_x,
        to_weight,
        to_bias,
        grad,
        out,
        x,
        mean,
        variance,
        weight,
        lowest,
        added,
        rows,
        channels,
        **tile,
        num_warps=NUM_WARPS,
    )


def sizes(x: Tensor, weight: Tensor) -> tuple[int, int, int, dict[str, int]]:
    """Rows, channels, number of tiles that cover them, and the compile-time constants of the kernels over rows."""
    channels = x.shape[1]
    rows = x.numel() // channels
    of_channels = min(triton.next_power_of_2(channels), MAX_BLOCK_CHANNELS)
    tile = {
        "SUM": tl.float64 if weight.dtype == torch.float64 else tl.float32,
        "BLOCK_R": TILE // of_channels,
        "BLOCK_C": of_channels,
    }
    return rows, channels, triton.cdiv(rows, TILE // of_channels) * triton.cdiv(channels, of_channels), tile


def runs_of(rows: int, channels: int, block_r: int, block_c: int) -> tuple[int, int]:
    """Rows per program and number of programs of the partial sums."""
    blocks = triton.cdiv(rows, block_r)
    most = max(1, PROGRAMS // triton.cdiv(channels, block_c))
    rows_each = triton.cdiv(blocks, min(blocks, most)) * block_r
    return rows_each, triton.cdiv(rows, rows_each)
