"""The 1x1 convolutions of a layer, of rows of channels, in Triton: norms on load, moments and sums on the way out.

Each program walks over blocks of rows, so that moments, sums and gradients of weights are few parts, which the next kernel adds in
a fixed order. Every activation is written once and, where a tile holds all channels of a row, read once. Else the programs of
the other blocks of channels are neighbours, so that they find the rows in the L2 cache: a row counts once.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_launch import architecture, in_three_products, launch
from .triton_rows import (
    add_moments,
    add_sums,
    block_of,
    finish_moments,
    load_norm,
    load_norm_backward,
    normalise,
    normalise_backward,
    parts_of,
    product_constants,
    relu,
    wide_dtype,
)


@triton.jit
def strided_row(row, frames, frames_out, joints, STRIDE: tl.constexpr):
    """The row of [R, T', V] at the frame of a row of [R, T, V], and whether there is one."""
    if STRIDE == 1:
        return row, row >= 0
    frame = row // joints % frames
    return (row // (joints * frames) * frames_out + frame // STRIDE) * joints + row % joints, frame % STRIDE == 0


@triton.jit
def source_row(row, frames, frames_out, joints, STRIDE: tl.constexpr):
    """The row of [R, T, V] of a row of [R, T', V]."""
    if STRIDE == 1:
        return row
    frame = row // joints
    return (frame // frames_out * frames + frame % frames_out * STRIDE) * joints + row % joints


@triton.jit
def load_unit_input(y, norm, shortcut, shortcut_norm, at, inside, channel, channels):
    """relu(norm(y) + shortcut) of a tile in the dtype of y, with y and the shortcut as they are."""
    mean, scale, bias = load_norm(norm, channel, channels, channel < channels)
    raw = tl.load(y + at, mask=inside, other=0.0)
    added = tl.load(shortcut + at, mask=inside, other=0.0)
    value = normalise(raw, mean, scale, bias)
    if shortcut_norm is None:
        value += added.to(value.dtype)
    else:
        mean, scale, bias = load_norm(shortcut_norm, channel, channels, channel < channels)
        value += normalise(added, mean, scale, bias)
    return tl.where(inside, relu(value), 0.0).to(raw.dtype), raw, added


@triton.jit
def reduce_branches_kernel(
    z,
    o,
    moments,
    y,
    norm,
    shortcut,
    shortcut_norm,
    weight,
    rows,
    frames,
    frames_out,
    joints,
    channels,
    reduced,
    STRIDE: tl.constexpr,
    CHUNKS: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program computes some blocks of outputs of every P-th block of rows."""
    part = tl.program_id(1)
    moments += part.to(tl.int64) * 3 * channels
    all_rows, skip_rows = tl.zeros([], SUM), tl.zeros([], SUM)
    for block in tl.range(part, tl.cdiv(rows, BLOCK_R), tl.num_programs(1), disable_licm=True):
        first = block * BLOCK_R
        in_block = tl.arange(0, BLOCK_R)
        is_row = first + in_block < rows
        start = first.to(tl.int64) * channels
        channel = tl.arange(0, BLOCK_I)
        at = in_block[:, None] * channels + channel[None, :]
        inside = is_row[:, None] & (channel < channels)[None, :]
        x, _, _ = load_unit_input(y + start, norm, shortcut + start, shortcut_norm, at, inside, channel, channels)
        to_row, has_row = strided_row(first + in_block, frames, frames_out, joints, STRIDE)
        has_row = has_row & is_row
        for piece in range(PIECES):
            output = (tl.program_id(0) * PIECES + piece) * BLOCK_O + tl.arange(0, BLOCK_O)
            is_output, is_reduced = output < channels, output < reduced
            w = load_weight(weight, output, channel, channels, channels)
            acc = tl.dot(x, w, input_precision=PRECISION, out_dtype=SUM)
            for chunk in range(1, CHUNKS):
                far = chunk * BLOCK_I + channel
                at = in_block[:, None] * channels + far[None, :]
                inside = is_row[:, None] & (far < channels)[None, :]
                more, _, _ = load_unit_input(y + start, norm, shortcut + start, shortcut_norm, at, inside, far, channels)
                w = load_weight(weight, output, far, channels, channels)
                acc = tl.dot(more, w, acc=acc, input_precision=PRECISION, out_dtype=SUM)
            result = acc.to(z.dtype.element_ty)
            of_reduced, of_skip = (
                is_row[:, None] & is_reduced[None, :],
                has_row[:, None] & (is_output & (output >= reduced))[None, :],
            )
            tl.store(z + first.to(tl.int64) * reduced + in_block[:, None] * reduced + output[None, :], result, mask=of_reduced)
            tl.store(o + to_row.to(tl.int64)[:, None] * channels + output[None, :], result, mask=of_skip)
            add_moments(moments, result.to(SUM), is_row, of_reduced | of_skip, block == part, output, channels, is_output)
        all_rows += tl.sum(is_row.to(SUM))
        skip_rows += tl.sum(has_row.to(SUM))
    for piece in tl.static_range(PIECES):
        output = (tl.program_id(0) * PIECES + piece) * BLOCK_O + tl.arange(0, BLOCK_O)
        finish_moments(moments, tl.where(output < reduced, all_rows, skip_rows), output, channels, output < channels)


@triton.jit
def load_weight(weight, output, channel, outputs, inputs):
    """A transposed tile [inputs, outputs] of a weight [outputs, inputs], 0 out of bounds."""
    inside = (channel < inputs)[:, None] & (output < outputs)[None, :]
    return tl.load(weight + output[None, :] * inputs + channel[:, None], mask=inside, other=0.0)


@triton.jit
def row_product_kernel(
    raw,
    moments,
    x,
    weight,
    rows,
    frames,
    frames_out,
    joints,
    inputs,
    channels,
    STRIDE: tl.constexpr,
    CHUNKS: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program computes some blocks of outputs of every P-th block of rows of the result."""
    part = tl.program_id(1)
    moments += part.to(tl.int64) * 3 * channels
    all_rows = tl.zeros([], SUM)
    for block in tl.range(part, tl.cdiv(rows, BLOCK_R), tl.num_programs(1), disable_licm=True):
        first = block * BLOCK_R
        in_block = tl.arange(0, BLOCK_R)
        is_row = first + in_block < rows
        source = x + source_row(first + in_block, frames, frames_out, joints, STRIDE).to(tl.int64)[:, None] * inputs
        channel = tl.arange(0, BLOCK_I)
        tile = tl.load(source + channel[None, :], mask=is_row[:, None] & (channel < inputs)[None, :], other=0.0)
        for piece in range(PIECES):
            output = (tl.program_id(0) * PIECES + piece) * BLOCK_O + tl.arange(0, BLOCK_O)
            is_output = output < channels
            acc = tl.dot(tile, load_weight(weight, output, channel, channels, inputs), input_precision=PRECISION, out_dtype=SUM)
            for chunk in range(1, CHUNKS):
                far = chunk * BLOCK_I + channel
                more = tl.load(source + far[None, :], mask=is_row[:, None] & (far < inputs)[None, :], other=0.0)
                w = load_weight(weight, output, far, channels, inputs)
                acc = tl.dot(more, w, acc=acc, input_precision=PRECISION, out_dtype=SUM)
            result = acc.to(raw.dtype.element_ty)
            inside = is_row[:, None] & is_output[None, :]
            tl.store(raw + first.to(tl.int64) * channels + in_block[:, None] * channels + output[None, :], result, mask=inside)
            add_moments(moments, result.to(SUM), is_row, inside, block == part, output, channels, is_output)
        all_rows += tl.sum(is_row.to(SUM))
    for piece in tl.static_range(PIECES):
        output = (tl.program_id(0) * PIECES + piece) * BLOCK_O + tl.arange(0, BLOCK_O)
        finish_moments(moments, tl.zeros([BLOCK_O], SUM) + all_rows, output, channels, output < channels)


@triton.jit
def add_weight_gradient(total, parts, to_raw, x, at, inside, is_first, CHUNKS: tl.constexpr, PRECISION: tl.constexpr):
    """Adds to_raw [rows, outputs] times x [rows, inputs] to `total` or, if it is only a part of the outputs, to memory."""
    to_raw = tl.trans(to_raw)
    if CHUNKS == 1:
        return tl.dot(to_raw, x, acc=total, input_precision=PRECISION, out_dtype=total.dtype)
    tl.debug_barrier()  # the last block's store may have been another thread's
    before = tl.load(parts + at, mask=inside & (is_first == 0), other=0.0)
    tl.store(parts + at, tl.dot(to_raw, x, acc=before, input_precision=PRECISION, out_dtype=total.dtype), mask=inside)
    return total


@triton.jit
def reduce_branches_backward_kernel(
    to_x,
    y_sums,
    shortcut_sums,
    weight_parts,
    to_reduced,
    z,
    z_norm,
    z_summed,
    grad,
    o,
    o_norm,
    o_summed,
    y,
    norm,
    shortcut,
    shortcut_norm,
    weight,
    rows,
    frames,
    frames_out,
    joints,
    channels,
    reduced,
    STRIDE: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a block of inputs of every P-th block of rows: gradients of inputs and weight, and sums."""
    part = tl.program_id(1)
    channel = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    is_channel = channel < channels
    weight_parts += part.to(tl.int64) * channels * channels
    of_weight = tl.zeros([BLOCK_O, BLOCK_I], SUM)
    y_sums += part.to(tl.int64) * 2 * channels
    if shortcut_norm is not None:
        shortcut_sums += part.to(tl.int64) * 2 * channels
    for block in tl.range(part, tl.cdiv(rows, BLOCK_R), tl.num_programs(1), disable_licm=True):
        first = block * BLOCK_R
        in_block = tl.arange(0, BLOCK_R)
        is_row = first + in_block < rows
        strided, has_strided = strided_row(first + in_block, frames, frames_out, joints, STRIDE)
        has_strided = has_strided & is_row
        strided = strided.to(tl.int64)[:, None] * channels
        start = first.to(tl.int64) * channels
        inside = is_row[:, None] & is_channel[None, :]
        at = in_block[:, None] * channels + channel[None, :]
        x, _, _ = load_unit_input(y + start, norm, shortcut + start, shortcut_norm, at, inside, channel, channels)
        acc = tl.zeros([BLOCK_R, BLOCK_I], SUM)
        tl.debug_barrier()
        for chunk in range(CHUNKS):
            output = chunk * BLOCK_O + tl.arange(0, BLOCK_O)
            is_output, is_reduced = output < channels, output < reduced
            is_raw = tl.where(is_reduced[None, :], is_row[:, None], has_strided[:, None] & is_output[None, :])
            at_reduced = first.to(tl.int64) * reduced + in_block[:, None] * reduced + output[None, :]
            at_skip = strided + output[None, :]
            of_raw = tl.load(tl.where(is_reduced[None, :], to_reduced + at_reduced, grad + at_skip), mask=is_raw, other=0.0)
            raw = tl.load(tl.where(is_reduced[None, :], z + at_reduced, o + at_skip), mask=is_raw, other=0.0)
            norm_at, summed_at = tl.where(is_reduced, z_norm, o_norm) + output, tl.where(is_reduced, z_summed, o_summed) + output
            step = tl.where(is_reduced, reduced, channels)
            mean, scale, level, slope = load_norm_backward(norm_at, summed_at, step, is_output)
            to_raw = normalise_backward(of_raw, raw, mean, scale, level, slope)
            to_raw = tl.where(is_raw, to_raw, 0.0).to(x.dtype)
            tl.debug_barrier()
            at_weight = output[:, None] * channels + channel[None, :]
            has_weight = is_output[:, None] & is_channel[None, :]
            w = tl.load(weight + at_weight, mask=has_weight, other=0.0)
            acc = tl.dot(to_raw, w, acc=acc, input_precision=PRECISION, out_dtype=SUM)
            of_weight = add_weight_gradient(
                of_weight, weight_parts, to_raw, x, at_weight, has_weight, block == part, CHUNKS, PRECISION
            )
        passed = tl.where(x > 0, acc, 0.0).to(x.dtype)
        tl.store(to_x + start + at, passed, mask=inside)
        passed = passed.to(SUM)
        raw = tl.load(y + start + at, mask=inside, other=0.0)
        add_sums(y_sums, norm, passed, raw, block == part, channel, channels, is_channel)
        if shortcut_norm is not None:
            added = tl.load(shortcut + start + at, mask=inside, other=0.0)
            add_sums(shortcut_sums, shortcut_norm, passed, added, block == part, channel, channels, is_channel)
    if CHUNKS == 1:
        output = tl.arange(0, BLOCK_O)
        has_weight = (output < channels)[:, None] & is_channel[None, :]
        tl.store(weight_parts + output[:, None] * channels + channel[None, :], of_weight, mask=has_weight)


@triton.jit
def row_product_backward_kernel(
    to_x,
    weight_parts,
    grad,
    raw,
    norm,
    summed,
    x,
    weight,
    rows,
    frames,
    frames_out,
    joints,
    inputs,
    channels,
    STRIDE: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a block of inputs of every P-th block of rows of the result: gradients of the inputs and of the weight."""
    part = tl.program_id(1)
    channel = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    is_channel = channel < inputs
    weight_parts += part.to(tl.int64) * channels * inputs
    of_weight = tl.zeros([BLOCK_O, BLOCK_I], SUM)
    for block in tl.range(part, tl.cdiv(rows, BLOCK_R), tl.num_programs(1), disable_licm=True):
        first = block * BLOCK_R
        in_block = tl.arange(0, BLOCK_R)
        is_row = first + in_block < rows
        inside = is_row[:, None] & is_channel[None, :]
        source = source_row(first + in_block, frames, frames_out, joints, STRIDE).to(tl.int64)[:, None] * inputs
        tile = tl.load(x + source + channel[None, :], mask=inside, other=0.0)
        acc = tl.zeros([BLOCK_R, BLOCK_I], SUM)
        for chunk in range(CHUNKS):
            output = chunk * BLOCK_O + tl.arange(0, BLOCK_O)
            is_output = output < channels
            of_raw = is_row[:, None] & is_output[None, :]
            at = first.to(tl.int64) * channels + in_block[:, None] * channels + output[None, :]
            mean, scale, level, slope = load_norm_backward(norm + output, summed + output, channels, is_output)
            before, value = tl.load(grad + at, mask=of_raw, other=0.0), tl.load(raw + at, mask=of_raw, other=0.0)
            to_raw = normalise_backward(before, value, mean, scale, level, slope)
            to_raw = tl.where(of_raw, to_raw, 0.0).to(tile.dtype)
            at_weight = output[:, None] * inputs + channel[None, :]
            has_weight = is_output[:, None] & is_channel[None, :]
            w = tl.load(weight + at_weight, mask=has_weight, other=0.0)
            acc = tl.dot(to_raw, w, acc=acc, input_precision=PRECISION, out_dtype=SUM)
            of_weight = add_weight_gradient(
                of_weight, weight_parts, to_raw, tile, at_weight, has_weight, block == part, CHUNKS, PRECISION
            )
        tl.store(
            to_x + first.to(tl.int64) * inputs + in_block[:, None] * inputs + channel[None, :], acc.to(tile.dtype), mask=inside
        )
    if CHUNKS == 1:
        output = tl.arange(0, BLOCK_O)
        has_weight = (output < channels)[:, None] & is_channel[None, :]
        tl.store(weight_parts + output[:, None] * inputs + channel[None, :], of_weight, mask=has_weight)


class Tile(NamedTuple):
    """Block sizes of a product, and its warps."""

    rows: int
    inputs: int  # at most
    outputs: int  # at most
    num_warps: int


def forward_tile(x: Tensor, channels: int) -> Tile:
    """The largest blocks that need no more registers than there are, compiled for CTR-GCN's widths."""
    if x.dtype == torch.float64:
        return Tile(16, 16, 32, 4)
    arch = architecture(x)
    if x.dtype == torch.float32:
        is_tight = channels > 64 or (arch == 80 and in_three_products(x.dtype))
        return Tile(64, 32 if is_tight else 64, 64, 8)
    if arch == 80 and channels <= 64:
        return Tile(32, 256, 64, 8)
    return Tile(64, 64 if arch == 100 and 64 < channels <= 128 else 256, 64, 8)


def backward_tile(x: Tensor, channels: int) -> Tile:
    """As `forward_tile`: the weight's gradient, a block of inputs by all outputs, stays in registers if they fit in a block."""
    if x.dtype == torch.float64:
        return Tile(16, 16, 32, 4)
    if in_three_products(x.dtype):
        return Tile(16, 32, 64, 8)
    if x.dtype == torch.float32:
        is_tight = architecture(x) == 80 and channels > 128
        return Tile(32 if channels <= 64 else 16, 64, 64 if is_tight else 128, 8)
    return Tile(64 if channels <= 64 else 32 if channels <= 128 else 16, 64, 256, 8)


PROGRAMS = 528  # at most: four on each multiprocessor of a large GPU
BACKWARD_PROGRAMS = 132  # each holds a gradient of the weight, which is written and read once more


def blocks(tile: Tile, rows: int, inputs: int, channels: int) -> dict[str, int]:
    """Compile-time constants: blocks of rows, inputs and outputs."""
    return {
        "BLOCK_R": block_of(rows, tile.rows),
        "BLOCK_I": block_of(inputs, tile.inputs),
        "BLOCK_O": block_of(channels, tile.outputs),
        "num_warps": tile.num_warps,
        "num_stages": 1,
    }


def strided_frames(frames: int, stride: int) -> int:
    """Number of every `stride`th of the frames."""
    return triton.cdiv(frames, stride)


def pieces_of(sizes: dict[str, int], inputs: int, channels: int) -> int:
    """Blocks of outputs that a program computes from one tile of inputs: all, if the tile holds all inputs of its rows."""
    return triton.cdiv(channels, sizes["BLOCK_O"]) if sizes["BLOCK_I"] >= inputs else 1


def reduce_branches(
    y: Tensor, norm: Tensor, shortcut: Tensor, shortcut_norm: Tensor | None, weight: Tensor, *, stride: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """As `shapmix.reference.layer.reduce_branches`."""
    clips, frames, joints, channels = y.shape
    frames_out, reduced = strided_frames(frames, stride), 3 * channels // 4
    rows = clips * frames * joints
    tile = forward_tile(y, channels)
    sizes = blocks(tile, rows, channels, channels)
    parts = parts_of(triton.cdiv(rows, sizes["BLOCK_R"]), PROGRAMS)
    pieces = pieces_of(sizes, channels, channels)
    column_blocks = triton.cdiv(channels, pieces * sizes["BLOCK_O"])
    z = y.new_empty(clips, frames, joints, reduced)
    o = y.new_empty(clips, frames_out, joints, channels)
    moments = y.new_empty(parts, 3, channels, dtype=wide_dtype(y))
    launch(
        reduce_branches_kernel,
        (column_blocks, parts),
        z,
        o,
        moments,
        y,
        norm,
        shortcut,
        shortcut_norm,
        weight,
        rows,
        frames,
        frames_out,
        joints,
        channels,
        reduced,
        STRIDE=stride,
        PIECES=pieces,
        CHUNKS=triton.cdiv(channels, sizes["BLOCK_I"]),
        **sizes,
        **product_constants(y),
        reads=[y, shortcut, weight, norm, shortcut_norm],
        writes=[z, (o, 0.25), moments],
        flops=2 * rows * channels * channels,
    )
    return z, o, moments


def row_product(x: Tensor, weight: Tensor, *, stride: int = 1) -> tuple[Tensor, Tensor]:
    """As `shapmix.reference.layer.row_product`."""
    clips, frames, joints, inputs = x.shape
    channels, frames_out = len(weight), strided_frames(frames, stride)
    rows = clips * frames_out * joints
    sizes = blocks(forward_tile(x, channels), rows, inputs, channels)
    parts = parts_of(triton.cdiv(rows, sizes["BLOCK_R"]), PROGRAMS)
    pieces = pieces_of(sizes, inputs, channels)
    column_blocks = triton.cdiv(channels, pieces * sizes["BLOCK_O"])
    raw = x.new_empty(clips, frames_out, joints, channels)
    moments = x.new_empty(parts, 3, channels, dtype=wide_dtype(x))
    launch(
        row_product_kernel,
        (column_blocks, parts),
        raw,
        moments,
        x,
        weight,
        rows,
        frames,
        frames_out,
        joints,
        inputs,
        channels,
        STRIDE=stride,
        PIECES=pieces,
        CHUNKS=triton.cdiv(inputs, sizes["BLOCK_I"]),
        **sizes,
        **product_constants(x),
        reads=[(x, frames_out / frames), weight],
        writes=[raw, moments],
        flops=2 * rows * inputs * channels,
    )
    return raw, moments


def reduce_branches_backward(
    to_reduced: Tensor,
    z: Tensor,
    z_norm: Tensor,
    z_summed: Tensor,
    grad: Tensor,
    o: Tensor,
    o_norm: Tensor,
    o_summed: Tensor,
    y: Tensor,
    norm: Tensor,
    shortcut: Tensor,
    shortcut_norm: Tensor | None,
    weight: Tensor,
    *,
    stride: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """As `shapmix.reference.layer.reduce_branches_backward`."""
    clips, frames, joints, channels = y.shape
    rows = clips * frames * joints
    sizes = blocks(backward_tile(y, channels), rows, channels, channels)
    column_blocks = triton.cdiv(channels, sizes["BLOCK_I"])
    parts = parts_of(triton.cdiv(rows, sizes["BLOCK_R"]), max(1, 2 * BACKWARD_PROGRAMS // column_blocks))
    wide = wide_dtype(y)
    to_x = torch.empty_like(y)
    y_sums = y.new_empty(parts, 2, channels, dtype=wide)
    shortcut_sums = None if shortcut_norm is None else torch.empty_like(y_sums)
    weight_parts = y.new_empty(parts, channels, channels, dtype=wide)
    launch(
        reduce_branches_backward_kernel,
        (column_blocks, parts),
        to_x,
        y_sums,
        shortcut_sums,
        weight_parts,
        to_reduced,
        z,
        z_norm,
        z_summed,
        grad,
        o,
        o_norm,
        o_summed,
        y,
        norm,
        shortcut,
        shortcut_norm,
        weight,
        rows,
        frames,
        o.shape[1],
        joints,
        channels,
        z.shape[3],
        STRIDE=stride,
        CHUNKS=triton.cdiv(channels, sizes["BLOCK_O"]),
        **sizes,
        **product_constants(y),
        reads=[
            y,
            shortcut,
            *(to_reduced, z, (grad, 0.25), (o, 0.25)),
            *(weight, norm, shortcut_norm, z_norm, z_summed, o_norm, o_summed),
        ],
        writes=[to_x, y_sums, shortcut_sums, weight_parts],
        flops=4 * rows * channels * channels,
    )
    return to_x, y_sums, shortcut_sums, weight_parts


def row_product_backward(
    grad: Tensor, raw: Tensor, norm: Tensor, summed: Tensor, x: Tensor, weight: Tensor, *, stride: int = 1
) -> tuple[Tensor, Tensor]:
    """As `shapmix.reference.layer.row_product_backward`."""
    clips, frames, joints, inputs = x.shape
    frames_out, channels = raw.shape[1], raw.shape[3]
    rows = clips * frames_out * joints
    sizes = blocks(backward_tile(x, channels), rows, inputs, channels)
    column_blocks = triton.cdiv(inputs, sizes["BLOCK_I"])
    parts = parts_of(triton.cdiv(rows, sizes["BLOCK_R"]), max(1, 2 * BACKWARD_PROGRAMS // column_blocks))
    to_x = x.new_empty(clips, frames_out, joints, inputs)
    weight_parts = x.new_empty(parts, channels, inputs, dtype=wide_dtype(x))
    launch(
        row_product_backward_kernel,
        (column_blocks, parts),
        to_x,
        weight_parts,
        grad,
        raw,
        norm,
        summed,
        x,
        weight,
        rows,
        frames,
        frames_out,
        joints,
        inputs,
        channels,
        STRIDE=stride,
        CHUNKS=triton.cdiv(channels, sizes["BLOCK_O"]),
        **sizes,
        **product_constants(x),
        reads=[grad, raw, (x, frames_out / frames), weight, norm, summed],
        writes=[to_x, weight_parts],
        flops=4 * rows * inputs * channels,
    )
    return to_x, weight_parts
