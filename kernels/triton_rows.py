"""Device functions of the kernels on rows of channels: norms on load, moments and sums of what is stored.

A tile is [rows, channels]. A norm [6, C] is that of `shapmix.reference.layer`: mean, 1 / deviation, weight, bias, 1 / rows,
variance.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_launch import product_precision

SHORTEST_BLOCK = 16  # of a matrix product


@triton.jit
def relu(x):
    """Keeps NaN, as torch's ReLU."""
    return tl.where(x < 0, 0.0, x)


@triton.jit
def load_norm(norm, channel, channels, is_channel):
    """Mean, scale and bias of the channels, 0 out of bounds."""
    mean = tl.load(norm + channel, mask=is_channel, other=0.0)
    scale = tl.load(norm + channels + channel, mask=is_channel, other=0.0)
    scale *= tl.load(norm + 2 * channels + channel, mask=is_channel, other=0.0)
    return mean, scale, tl.load(norm + 3 * channels + channel, mask=is_channel, other=0.0)


@triton.jit
def normalise(x, mean, scale, bias):
    """The norm of a raw tile, in the norm's dtype."""
    return (x.to(mean.dtype) - mean[None, :]) * scale[None, :] + bias[None, :]


@triton.jit
def load_norm_backward(norm, summed, step, is_channel):
    """Mean, scale, level and slope for `normalise_backward`; 0 out of bounds.

    `norm` and `summed` point to the channels' first element of the norm and of the joined sums [2, C], `step` is C.
    """
    rstd = tl.load(norm + step, mask=is_channel, other=0.0)
    scale = rstd * tl.load(norm + 2 * step, mask=is_channel, other=0.0)
    per_row = tl.load(norm + 4 * step, mask=is_channel, other=0.0)
    level = tl.load(summed, mask=is_channel, other=0.0) * per_row
    slope = tl.load(summed + step, mask=is_channel, other=0.0) * per_row * rstd
    return tl.load(norm, mask=is_channel, other=0.0), scale, level, slope


@triton.jit
def normalise_backward(grad, x, mean, scale, level, slope):
    """The gradient of a raw tile x from that of its normalised value."""
    centred = x.to(mean.dtype) - mean[None, :]
    return scale[None, :] * (grad.to(mean.dtype) - (level[None, :] + centred * slope[None, :]))


@triton.jit
def add_pair(pair, step, first, second, is_first, channel, is_channel):
    """Adds two vectors to those in memory, `step` elements apart, or writes them if they are the first.

    They stay in memory between the tiles of a program because the columns of a product's tile would take many registers, and they
    are one tile of two rows because Triton keeps what is smaller than the program in the layout of the product.
    """
    which = tl.arange(0, 2)[:, None]
    at = pair + which * step + channel[None, :]
    before = tl.load(at, mask=is_channel[None, :] & (is_first == 0), other=0.0)
    tl.debug_barrier()  # the thread that stores an element need not be the one that loaded it
    tl.store(at, before + tl.where(which == 0, first[None, :], second[None, :]), mask=is_channel[None, :])


@triton.jit
def add_moments(moments, tile, is_row, inside, is_first, channel, channels, is_channel):
    """Adds the tile's elements that are `inside` to the moments [3, C] in memory, until `finish_moments` in another form.

    That is the sum and the squares of what is left of an element when the mean of the rows of the first tile is taken away.
    """
    if is_first:
        pivot = tl.sum(tl.where(is_row[:, None], tile, 0.0), 0) / tl.sum(is_row.to(tile.dtype))
        tl.store(moments + channels + channel, pivot, mask=is_channel)
    tl.debug_barrier()
    pivot = tl.load(moments + channels + channel, mask=is_channel, other=0.0)
    centred = tl.where(inside, tile - pivot[None, :], 0.0)
    add_pair(moments, 2 * channels, tl.sum(centred, 0), tl.sum(centred * centred, 0), is_first, channel, is_channel)


@triton.jit
def finish_moments(moments, rows, channel, channels, is_channel):
    """Turns the sums of `add_moments` into rows, mean and sum of squared deviations; `rows` are those of each channel."""
    moments += channel
    tl.debug_barrier()
    total = tl.load(moments, mask=is_channel, other=0.0)
    mean = tl.load(moments + channels, mask=is_channel, other=0.0)
    squares = tl.load(moments + 2 * channels, mask=is_channel, other=0.0)
    gap = total / tl.maximum(rows, 1.0)
    tl.debug_barrier()
    tl.store(moments, rows, mask=is_channel)
    tl.store(moments + channels, mean + gap, mask=is_channel)
    tl.store(moments + 2 * channels, tl.maximum(squares - total * gap, 0.0), mask=is_channel)


@triton.jit
def add_sums(sums, norm, grad, x, is_first, channel, channels, is_channel):
    """Adds a tile's gradient, and its product with the normalised raw tile x, to the sums [2, C] in memory; both are 0 outside."""
    mean = tl.load(norm + channel, mask=is_channel, other=0.0)
    product = tl.sum(grad * (x.to(grad.dtype) - mean[None, :]), 0)
    product *= tl.load(norm + channels + channel, mask=is_channel, other=0.0)
    tl.debug_barrier()
    add_pair(sums, channels, tl.sum(grad, 0), product, is_first, channel, is_channel)


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype of norms, sums and gradients of parameters."""
    return torch.promote_types(x.dtype, torch.float32)


def product_constants(x: Tensor) -> dict[str, object]:
    """Dtype of the accumulators, and the precision of float32 products, which is that of torch's convolutions."""
    return {"SUM": tl.float64 if x.dtype == torch.float64 else tl.float32, "PRECISION": product_precision(x.dtype)}


def block_of(size: int, most: int | None = None) -> int:
    """Block size for an axis of a product: all of it, or blocks of `most`."""
    whole = max(SHORTEST_BLOCK, int(triton.next_power_of_2(size)))
    return whole if most is None else min(most, whole)


def parts_of(blocks: int, most: int) -> int:
    """Number of programs that share the blocks evenly, at most `most`."""
    return triton.cdiv(blocks, triton.cdiv(blocks, min(blocks, most)))
