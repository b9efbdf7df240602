"""The temporal branches of a layer in Triton: convolution over 5 frames, the same dilated, maximum over 3, each way in one kernel.

A tile is a block of rows (frame, joint) of all clips, so that a step in time is a number of rows, and the shifted tiles of a
convolution come from the L1 cache. A branch reads only its own channels. Norm and ReLU are applied on load. The maximum's
position is found again in the backward pass.
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
    SHORTEST_BLOCK,
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
def branch_and_part(program):
    """The branch and the part of the rows of a program; a multiprocessor gets programs of all branches, which differ in work."""
    part = program // 3
    return (program + part) % 3, part


@triton.jit
def load_input(rows, inside, channel, width, mean, scale, bias):
    """relu(norm(z)) of a tile in the dtype of z, 0 outside."""
    inside = inside[:, None] & (channel < width)[None, :]
    raw = tl.load(rows, mask=inside, other=0.0)
    return tl.where(inside, relu(normalise(raw, mean, scale, bias)), 0.0).to(raw.dtype)


@triton.jit
def load_tap(weight, tap, output, channel, width, output_stride, input_stride, tap_stride):
    """The weight of one frame of a convolution as [outputs, inputs], 0 out of bounds; the axes of the arguments give its layout."""
    at = output * output_stride + channel * input_stride + tap * tap_stride
    return tl.load(weight + at, mask=(output < width) & (channel < width), other=0.0)


@triton.jit
def convolve(
    source,
    frame,
    is_row,
    frames,
    step,
    channel,
    width,
    mean,
    scale,
    bias,
    weight,
    output_stride,
    input_stride,
    tap_stride,
    dilation,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The convolution of a branch: sum of the products of five shifted tiles; `source` points to the middle one."""
    acc = tl.zeros([BLOCK_R, BLOCK_C], SUM)
    for tap in tl.static_range(5):
        shift = (tap - 2) * dilation
        inside = is_row & (frame + shift >= 0) & (frame + shift < frames)
        x = load_input(source + shift * step, inside, channel, width, mean, scale, bias)
        w = load_tap(weight, tap, channel[None, :], channel[:, None], width, output_stride, input_stride, tap_stride)
        acc = tl.dot(x, w, acc=acc, input_precision=PRECISION, out_dtype=SUM)
    return acc


@triton.jit
def largest(source, frame, is_row, frames, step, channel, width, mean, scale, bias, SUM: tl.constexpr):
    """The maximum of a branch over three frames; NaN if one of them is."""
    best = load_input(source, is_row, channel, width, mean, scale, bias).to(SUM)  # at least 0, as all of them
    for shift in tl.static_range(-1, 2, 2):
        inside = is_row & (frame + shift >= 0) & (frame + shift < frames)
        x = load_input(source + shift * step, inside, channel, width, mean, scale, bias).to(SUM)
        best = tl.where((x > best) | (x != x), x, best)
    return best


@triton.jit
def temporal_branches_kernel(
    o,
    moments,
    z,
    norm,
    narrow,
    dilated,
    rows,
    frames,
    frames_out,
    joints,
    channels,
    width,
    output_stride,
    input_stride,
    tap_stride,
    STRIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program computes one branch of every P-th block of rows of the result."""
    branch, part = branch_and_part(tl.program_id(0))
    parts = tl.num_programs(0) // 3
    reduced = 3 * width
    channel = tl.arange(0, BLOCK_C)
    is_channel = channel < width
    of_branch = branch * width + channel
    moments += part.to(tl.int64) * 3 * reduced
    all_rows = tl.zeros([], SUM)
    mean, scale, bias = load_norm(norm, of_branch, reduced, is_channel)
    for block in range(part, tl.cdiv(rows, BLOCK_R), parts):
        row = block * BLOCK_R + tl.arange(0, BLOCK_R)
        is_row = row < rows
        of_frame = row // joints
        frame = of_frame % frames_out * STRIDE
        middle = (of_frame // frames_out * frames + frame) * joints + row % joints
        source = z + middle.to(tl.int64)[:, None] * reduced + of_branch[None, :]
        step = joints * reduced
        if branch < 2:
            value = convolve(
                source,
                frame,
                is_row,
                frames,
                step,
                channel,
                width,
                mean,
                scale,
                bias,
                tl.where(branch == 0, narrow, dilated),
                output_stride,
                input_stride,
                tap_stride,
                branch + 1,
                BLOCK_R,
                BLOCK_C,
                SUM,
                PRECISION,
            )
        else:
            value = largest(source, frame, is_row, frames, step, channel, width, mean, scale, bias, SUM)
        result = value.to(o.dtype.element_ty)
        inside = is_row[:, None] & is_channel[None, :]
        tl.store(o + row.to(tl.int64)[:, None] * channels + of_branch[None, :], result, mask=inside)
        add_moments(moments, result.to(SUM), is_row, inside, block == part, of_branch, reduced, is_channel)
        all_rows += tl.sum(is_row.to(SUM))
    finish_moments(moments, tl.zeros([BLOCK_C], SUM) + all_rows, of_branch, reduced, is_channel)


@triton.jit
def load_output_gradient(grad, o, row, inside, of_branch, channels, is_channel, mean, scale, level, slope):
    """The gradient of the raw result of a branch in the dtype of `grad`, 0 outside."""
    at = row.to(tl.int64)[:, None] * channels + of_branch[None, :]
    inside = inside[:, None] & is_channel[None, :]
    before = tl.load(grad + at, mask=inside, other=0.0)
    value = normalise_backward(before, tl.load(o + at, mask=inside, other=0.0), mean, scale, level, slope)
    return tl.where(inside, value, 0.0).to(before.dtype)


@triton.jit
def rows_of(block, rows, frames, frames_out, joints, BLOCK_R: tl.constexpr):
    """Rows of [R, T, V] of a block, their masks, frames, and the rows of frame 0 of [R, T', V]."""
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)
    of_frame = row // joints
    return row, row < rows, of_frame % frames, of_frame // frames * frames_out * joints + row % joints


@triton.jit
def tap_backward(
    acc,
    of_weight,
    x,
    grad,
    o,
    frame,
    is_row,
    row_out,
    frames_out,
    joints,
    of_branch,
    channels,
    is_channel,
    mean,
    scale,
    level,
    slope,
    w,
    shift,
    STRIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds the gradients of the rows x and of the weight w [outputs, inputs] of a tap, whose result is `shift` frames later."""
    later = frame + shift
    inside = is_row & (later >= 0) & (later % STRIDE == 0) & (later < frames_out * STRIDE)
    row = row_out + later // STRIDE * joints
    to_o = load_output_gradient(grad, o, row, inside, of_branch, channels, is_channel, mean, scale, level, slope)
    acc = tl.dot(to_o, w, acc=acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc, tl.dot(tl.trans(to_o), x, acc=of_weight, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
def temporal_branches_backward_kernel(
    to_z,
    sums,
    weight_parts,
    grad,
    o,
    o_norm,
    o_summed,
    z,
    norm,
    narrow,
    dilated,
    rows,
    frames,
    frames_out,
    joints,
    channels,
    width,
    output_stride,
    input_stride,
    tap_stride,
    STRIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a block of channels of one branch of every P-th block of rows of z."""
    branch, part = branch_and_part(tl.program_id(1))
    parts = tl.num_programs(1) // 3
    reduced = 3 * width
    channel = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    is_channel = channel < width
    of_branch = branch * width + channel
    sums += part.to(tl.int64) * 2 * reduced
    blocks = tl.cdiv(rows, BLOCK_R)
    if branch < 2:
        weight, dilation = tl.where(branch == 0, narrow, dilated), branch + 1
        output = tl.arange(0, BLOCK_O)
        is_output, of_output = output < width, branch * width + output
        w0, w1, w2 = tl.zeros([BLOCK_O, BLOCK_I], SUM), tl.zeros([BLOCK_O, BLOCK_I], SUM), tl.zeros([BLOCK_O, BLOCK_I], SUM)
        w3, w4 = tl.zeros([BLOCK_O, BLOCK_I], SUM), tl.zeros([BLOCK_O, BLOCK_I], SUM)
        for block in tl.range(part, blocks, parts, disable_licm=True):
            row, is_row, frame, row_out = rows_of(block, rows, frames, frames_out, joints, BLOCK_R)
            at = row.to(tl.int64)[:, None] * reduced + of_branch[None, :]
            mean, scale, bias = load_norm(norm, of_branch, reduced, is_channel)
            x = load_input(z + at, is_row, channel, width, mean, scale, bias)
            o_mean, o_scale, level, slope = load_norm_backward(o_norm + of_output, o_summed + of_output, channels, is_output)
            acc = tl.zeros([BLOCK_R, BLOCK_I], SUM)
            w = load_tap(weight, 0, output[:, None], channel[None, :], width, output_stride, input_stride, tap_stride)
            acc, w0 = tap_backward(
                *(acc, w0, x, grad, o, frame, is_row, row_out, frames_out, joints, of_output, channels, is_output),
                *(o_mean, o_scale, level, slope, w, 2 * dilation, STRIDE, PRECISION),
            )
            w = load_tap(weight, 1, output[:, None], channel[None, :], width, output_stride, input_stride, tap_stride)
            acc, w1 = tap_backward(
                *(acc, w1, x, grad, o, frame, is_row, row_out, frames_out, joints, of_output, channels, is_output),
                *(o_mean, o_scale, level, slope, w, dilation, STRIDE, PRECISION),
            )
            w = load_tap(weight, 2, output[:, None], channel[None, :], width, output_stride, input_stride, tap_stride)
            acc, w2 = tap_backward(
                *(acc, w2, x, grad, o, frame, is_row, row_out, frames_out, joints, of_output, channels, is_output),
                *(o_mean, o_scale, level, slope, w, 0, STRIDE, PRECISION),
            )
            w = load_tap(weight, 3, output[:, None], channel[None, :], width, output_stride, input_stride, tap_stride)
            acc, w3 = tap_backward(
                *(acc, w3, x, grad, o, frame, is_row, row_out, frames_out, joints, of_output, channels, is_output),
                *(o_mean, o_scale, level, slope, w, -dilation, STRIDE, PRECISION),
            )
            w = load_tap(weight, 4, output[:, None], channel[None, :], width, output_stride, input_stride, tap_stride)
            acc, w4 = tap_backward(
                *(acc, w4, x, grad, o, frame, is_row, row_out, frames_out, joints, of_output, channels, is_output),
                *(o_mean, o_scale, level, slope, w, -2 * dilation, STRIDE, PRECISION),
            )
            store_input_gradient(to_z, sums, z, norm, x, acc, at, is_row, block == part, of_branch, reduced, is_channel)
        weight_parts += (part * 2 + branch).to(tl.int64) * 5 * width * width
        at = output[:, None] * width + channel[None, :]
        inside = is_output[:, None] & is_channel[None, :]
        tl.store(weight_parts + at, w0, mask=inside)
        tl.store(weight_parts + width * width + at, w1, mask=inside)
        tl.store(weight_parts + 2 * width * width + at, w2, mask=inside)
        tl.store(weight_parts + 3 * width * width + at, w3, mask=inside)
        tl.store(weight_parts + 4 * width * width + at, w4, mask=inside)
    else:
        for block in tl.range(part, blocks, parts, disable_licm=True):
            row, is_row, frame, row_out = rows_of(block, rows, frames, frames_out, joints, BLOCK_R)
            at = row.to(tl.int64)[:, None] * reduced + of_branch[None, :]
            step = joints * reduced
            mean, scale, bias = load_norm(norm, of_branch, reduced, is_channel)
            x = load_input(z + at, is_row, channel, width, mean, scale, bias)
            before = load_input(z + at - step, is_row & (frame > 0), channel, width, mean, scale, bias)
            before2 = load_input(z + at - 2 * step, is_row & (frame > 1), channel, width, mean, scale, bias)
            after = load_input(z + at + step, is_row & (frame + 1 < frames), channel, width, mean, scale, bias)
            after2 = load_input(z + at + 2 * step, is_row & (frame + 2 < frames), channel, width, mean, scale, bias)
            o_mean, o_scale, level, slope = load_norm_backward(o_norm + of_branch, o_summed + of_branch, channels, is_channel)
            acc = tl.zeros([BLOCK_R, BLOCK_I], SUM)
            for shift in tl.static_range(-1, 2):  # of the middle of the window; outside of the clip, where x is 0, nothing passes
                middle = frame + shift
                inside = is_row & (middle >= 0) & (middle % STRIDE == 0) & (middle < frames)
                of_row = row_out + middle // STRIDE * joints
                to_o = load_output_gradient(grad, o, of_row, inside, of_branch, channels, is_channel, o_mean, o_scale, level, slope)
                if shift == -1:
                    is_largest = (x > before) & (x > before2)
                elif shift == 0:
                    is_largest = (x > before) & (x >= after)
                else:
                    is_largest = (x >= after) & (x >= after2)
                acc += tl.where(is_largest, to_o.to(SUM), 0.0)
            store_input_gradient(to_z, sums, z, norm, x, acc, at, is_row, block == part, of_branch, reduced, is_channel)


@triton.jit
def store_input_gradient(to_z, sums, z, norm, x, acc, at, is_row, is_first, of_branch, reduced, is_channel):
    """Writes the gradient where the ReLU passes it, and adds to its sums."""
    inside = is_row[:, None] & is_channel[None, :]
    passed = tl.where(x > 0, acc, 0.0).to(x.dtype)
    tl.store(to_z + at, passed, mask=inside)
    raw = tl.load(z + at, mask=inside, other=0.0)
    add_sums(sums, norm, passed.to(acc.dtype), raw, is_first, of_branch, reduced, is_channel)


class Tile(NamedTuple):
    """Rows of a block, and warps."""

    rows: int
    num_warps: int


def forward_tile(x: Tensor, width: int) -> Tile:
    """The largest block that needs no more registers than there are, compiled for CTR-GCN's widths."""
    arch, thrice = architecture(x), in_three_products(x.dtype)
    if x.dtype == torch.float32:
        is_tight = (thrice and arch == 80) or (width > 32 and (arch == 80 or (thrice and arch == 90)))
    else:
        is_tight = x.dtype == torch.float64
    rows = 32 if is_tight else 64
    return Tile(rows, 4 if width <= (16 if arch == 80 else 32) else 8)


def backward_tile(x: Tensor, width: int) -> Tile:
    """As `forward_tile`."""
    if x.element_size() == 2:
        return Tile(64 if width <= 16 else 32, 8)
    return Tile(16 if in_three_products(x.dtype) and (width > 16 or architecture(x) > 80) else 32, 8)


def gradient_blocks(x: Tensor, width: int) -> dict[str, int]:
    """Blocks of inputs and outputs of the weights' gradients, of which a program holds five: all outputs."""
    of_outputs, arch = block_of(width), architecture(x)
    most = LARGEST_GRADIENT // of_outputs
    if x.element_size() > 2 or (arch == 80 and width > 32) or (arch == 100 and 16 < width <= 32):
        most = min(most, of_outputs) // (4 if arch == 80 and width > 32 and in_three_products(x.dtype) else 2)
    return {"BLOCK_I": block_of(width, max(SHORTEST_BLOCK, most)), "BLOCK_O": of_outputs}


LARGEST_GRADIENT = 4096  # elements
PROGRAMS = 352  # parts of the rows, at most: with three branches, eight programs on each multiprocessor of a large GPU
BACKWARD_PROGRAMS = 88  # as above; each holds the gradients of two weights, which are written and read once more


def constants(x: Tensor, tile: Tile, rows: int, stride: int) -> dict[str, object]:
    """Compile-time constants of both kernels."""
    sizes = {"BLOCK_R": block_of(rows, tile.rows)}
    return {"STRIDE": stride, **sizes, **product_constants(x), "num_warps": tile.num_warps, "num_stages": 1}


def temporal_branches(o: Tensor, z: Tensor, norm: Tensor, narrow: Tensor, dilated: Tensor) -> Tensor:
    """As `shapmix.reference.layer.temporal_branches`; both weights have the same strides."""
    clips, frames, joints, reduced = z.shape
    frames_out, channels = o.shape[1], o.shape[3]
    width, rows = reduced // 3, clips * frames_out * joints
    sizes = constants(z, forward_tile(z, width), rows, triton.cdiv(frames, frames_out))
    parts = parts_of(triton.cdiv(rows, sizes["BLOCK_R"]), PROGRAMS)
    moments = z.new_empty(parts, 3, reduced, dtype=wide_dtype(z))
    launch(
        temporal_branches_kernel,
        (3 * parts,),
        *(o, moments, z, norm, narrow, dilated, rows, frames, frames_out, joints, channels, width, *narrow.stride()),
        BLOCK_C=block_of(width),
        **sizes,
        reads=[z, norm, narrow, dilated],
        writes=[(o, 0.75), moments],
        flops=20 * rows * width * width,
    )
    return moments


def temporal_branches_backward(
    grad: Tensor, o: Tensor, o_norm: Tensor, o_summed: Tensor, z: Tensor, norm: Tensor, narrow: Tensor, dilated: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `shapmix.reference.layer.temporal_branches_backward`; both weights have the same strides."""
    clips, frames, joints, reduced = z.shape
    frames_out, channels = o.shape[1], o.shape[3]
    width, rows = reduced // 3, clips * frames * joints
    sizes = constants(z, backward_tile(z, width), rows, triton.cdiv(frames, frames_out))
    parts = parts_of(triton.cdiv(rows, sizes["BLOCK_R"]), BACKWARD_PROGRAMS)
    gradient, wide = gradient_blocks(z, width), wide_dtype(z)
    to_z = torch.empty_like(z)
    sums = z.new_empty(parts, 2, reduced, dtype=wide)
    weight_parts = z.new_empty(parts, 2, 5, width, width, dtype=wide)
    launch(
        temporal_branches_backward_kernel,
        (triton.cdiv(width, gradient["BLOCK_I"]), 3 * parts),
        *(to_z, sums, weight_parts, grad, o, o_norm, o_summed, z, norm, narrow, dilated),
        *(rows, frames, frames_out, joints, channels, width, *narrow.stride()),
        **gradient,
        **sizes,
        reads=[(grad, 0.75), (o, 0.75), z, norm, o_norm, o_summed, narrow, dilated],
        writes=[to_z, sums, weight_parts],
        flops=40 * clips * frames_out * joints * width * width,
    )
    return to_z, sums, weight_parts
