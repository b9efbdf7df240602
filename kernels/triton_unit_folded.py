"""The whole temporal unit in eval mode, where the norms are known, in one Triton kernel.

Joints do not mix in a temporal unit. So a program takes all frames of a block of joints of one clip: it computes the reduced
branches of all frames, which stay in a buffer of its own that the L2 cache holds, then the convolutions over time from that buffer,
and the mean over the frames on the way. The skip branch is done with the reduced ones.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .triton_launch import architecture, in_three_products, launch
from .triton_rows import block_of, load_norm, normalise, product_constants, relu, wide_dtype
from .triton_unit_temporal import load_tap


@triton.jit
def product(
    source,
    weight,
    is_row,
    first_output,
    inputs,
    width,
    BLOCK_R: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`width` outputs from `first_output` on of a 1x1 convolution; `source` points to the first inputs of the rows."""
    output = tl.arange(0, BLOCK_C)
    acc = tl.zeros([BLOCK_R, BLOCK_C], SUM)
    for first in range(0, inputs, BLOCK_I):
        channel = first + tl.arange(0, BLOCK_I)
        x = tl.load(source[:, None] + channel[None, :], mask=is_row[:, None] & (channel < inputs)[None, :], other=0.0)
        at = (first_output + output)[None, :] * inputs + channel[:, None]
        w = tl.load(weight + at, mask=(channel < inputs)[:, None] & (output < width)[None, :], other=0.0)
        acc = tl.dot(x, w, acc=acc, input_precision=PRECISION, out_dtype=SUM)
    return acc


@triton.jit
def finish(
    value,
    out,
    row_out,
    residual,
    row_in,
    residual_weight,
    residual_norm,
    o_norm,
    is_row,
    of_branch,
    first_output,
    is_channel,
    inputs,
    channels,
    width,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes relu(norm(value) + residual) of the channels of a branch; returns the sums over the frames of the tile."""
    mean, scale, bias = load_norm(o_norm, of_branch, channels, is_channel)
    value = normalise(value.to(out.dtype.element_ty), mean, scale, bias)
    inside = is_row[:, None] & is_channel[None, :]
    if HAS_RESIDUAL:
        if residual_weight is None:
            value += tl.load(residual + row_in[:, None] * channels + of_branch[None, :], mask=inside, other=0.0).to(SUM)
        else:
            added = product(
                residual + row_in * inputs,
                residual_weight,
                is_row,
                first_output,
                inputs,
                width,
                BLOCK_T * BLOCK_V,
                BLOCK_I,
                BLOCK_C,
                SUM,
                PRECISION,
            ).to(out.dtype.element_ty)
            mean, scale, bias = load_norm(residual_norm, of_branch, channels, is_channel)
            value += normalise(added, mean, scale, bias)
    result = relu(value).to(out.dtype.element_ty)
    tl.store(out + row_out[:, None] * channels + of_branch[None, :], result, mask=inside)
    return tl.sum(tl.reshape(tl.where(inside, result.to(SUM), 0.0), [BLOCK_T, BLOCK_V, BLOCK_C]), 0)


@triton.jit
def folded_temporal_unit_kernel(
    out,
    pooled,
    buffer,
    x,
    weight,
    z_norm,
    narrow,
    dilated,
    o_norm,
    residual,
    residual_weight,
    residual_norm,
    clips,
    frames,
    frames_out,
    joints,
    channels,
    width,
    inputs,
    output_stride,
    input_stride,
    tap_stride,
    STRIDE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes every P-th block of joints of all clips."""
    reduced = 3 * width
    v_blocks = tl.cdiv(joints, BLOCK_V)
    channel = tl.arange(0, BLOCK_C)
    is_channel = channel < width
    in_tile = tl.arange(0, BLOCK_T * BLOCK_V)
    buffer += tl.program_id(0).to(tl.int64) * frames * BLOCK_V * reduced
    for item in tl.range(tl.program_id(0), clips * v_blocks, tl.num_programs(0), disable_licm=True):
        clip = (item // v_blocks).to(tl.int64)
        joint = item % v_blocks * BLOCK_V + in_tile % BLOCK_V
        of_joint = item % v_blocks * BLOCK_V + tl.arange(0, BLOCK_V)
        to_pooled = pooled + (clip * joints + of_joint)[:, None] * channels
        to_mean = (of_joint < joints)[:, None] & is_channel[None, :]
        tl.debug_barrier()  # the buffer may still be read
        for branch in range(0, 3):
            of_branch = branch * width + channel
            mean, scale, bias = load_norm(z_norm, of_branch, reduced, is_channel)
            for begin in range(0, frames, BLOCK_T):
                frame = begin + in_tile // BLOCK_V
                is_row = (frame < frames) & (joint < joints)
                source = x + ((clip * frames + frame) * joints + joint) * channels
                z = product(
                    source, weight, is_row, branch * width, channels, width, BLOCK_T * BLOCK_V, BLOCK_I, BLOCK_C, SUM, PRECISION
                )
                value = relu(normalise(z.to(buffer.dtype.element_ty), mean, scale, bias)).to(buffer.dtype.element_ty)
                at = (frame * BLOCK_V + in_tile % BLOCK_V)[:, None] * reduced + of_branch[None, :]
                tl.store(buffer + at, value, mask=is_row[:, None] & is_channel[None, :])
        tl.debug_barrier()
        for branch in range(0, 4):
            of_branch = branch * width + channel
            total = tl.zeros([BLOCK_V, BLOCK_C], SUM)
            for begin in range(0, frames_out, BLOCK_T):
                frame_out = begin + in_tile // BLOCK_V
                frame = frame_out * STRIDE
                is_row = (frame_out < frames_out) & (joint < joints)
                row_in = (clip * frames + frame) * joints + joint
                at = (frame * BLOCK_V + in_tile % BLOCK_V)[:, None] * reduced + of_branch[None, :]
                if branch < 2:
                    taps, dilation = tl.where(branch == 0, narrow, dilated), branch + 1
                    value = tl.zeros([BLOCK_T * BLOCK_V, BLOCK_C], SUM)
                    for tap in range(0, 5):
                        shift = (tap - 2) * dilation
                        inside = (is_row & (frame + shift >= 0) & (frame + shift < frames))[:, None] & is_channel[None, :]
                        tile = tl.load(buffer + at + shift * BLOCK_V * reduced, mask=inside, other=0.0)
                        w = load_tap(taps, tap, channel[None, :], channel[:, None], width, output_stride, input_stride, tap_stride)
                        value = tl.dot(tile, w, acc=value, input_precision=PRECISION, out_dtype=SUM)
                elif branch == 2:
                    value = tl.load(buffer + at, mask=is_row[:, None] & is_channel[None, :], other=0.0).to(SUM)
                    for side in range(-1, 2, 2):
                        inside = (is_row & (frame + side >= 0) & (frame + side < frames))[:, None] & is_channel[None, :]
                        tile = tl.load(buffer + at + side * BLOCK_V * reduced, mask=inside, other=0.0).to(SUM)
                        value = tl.where((tile > value) | (tile != tile), tile, value)
                else:
                    value = product(
                        x + row_in * channels,
                        weight,
                        is_row,
                        branch * width,
                        channels,
                        width,
                        BLOCK_T * BLOCK_V,
                        BLOCK_I,
                        BLOCK_C,
                        SUM,
                        PRECISION,
                    )
                total += finish(
                    value,
                    out,
                    (clip * frames_out + frame_out) * joints + joint,
                    residual,
                    row_in,
                    residual_weight,
                    residual_norm,
                    o_norm,
                    is_row,
                    of_branch,
                    branch * width,
                    is_channel,
                    inputs,
                    channels,
                    width,
                    HAS_RESIDUAL,
                    BLOCK_T,
                    BLOCK_V,
                    BLOCK_I,
                    BLOCK_C,
                    SUM,
                    PRECISION,
                )
            tl.store(to_pooled + of_branch[None, :], total / frames_out, mask=to_mean)


PROGRAMS = 264  # at most, two on each multiprocessor of a large GPU; each has a buffer, which together fit in its L2 cache
BLOCK_INPUTS = 64
BLOCK_JOINTS = 16
ROWS = 64
BYTES_OF_FOUR_WARPS = 64  # wider rows of a branch take eight warps, which have registers enough


def blocks(x: Tensor, width: int) -> tuple[int, int]:
    """Rows of a tile and its block of inputs: the largest that need no more registers than there are, for CTR-GCN's widths."""
    arch, is_half, thrice = architecture(x), x.element_size() == 2, in_three_products(x.dtype)
    if thrice and width > 32:
        return ROWS // 2, BLOCK_INPUTS
    is_tight = width > 32 and (arch, is_half) in ((80, True), (100, False))
    return ROWS, BLOCK_INPUTS // 2 if is_tight or (thrice and width > 16) else BLOCK_INPUTS


def folded_temporal_unit(
    x: Tensor,
    weight: Tensor,
    z_norm: Tensor,
    narrow: Tensor,
    dilated: Tensor,
    o_norm: Tensor,
    *,
    stride: int = 1,
    residual: Tensor | None = None,
    residual_weight: Tensor | None = None,
    residual_norm: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `shapmix.reference.layer.folded_temporal_unit`; narrow and dilated have the same strides."""
    clips, frames, joints, channels = x.shape
    frames_out, width = triton.cdiv(frames, stride), channels // 4
    inputs = channels if residual is None else residual.shape[3]
    parts = min(clips * triton.cdiv(joints, BLOCK_JOINTS), PROGRAMS)
    out = x.new_empty(clips, frames_out, joints, channels)
    pooled = x.new_empty(clips, joints, channels, dtype=wide_dtype(x))
    buffer = x.new_empty(parts, frames, BLOCK_JOINTS, 3 * width)
    rows, rows_out = clips * frames * joints, clips * frames_out * joints
    block_rows, block_inputs = blocks(x, width)
    of_residual = 0 if residual_weight is None else 2 * rows_out * residual_weight.numel()
    launch(
        folded_temporal_unit_kernel,
        (parts,),
        *(out, pooled, buffer, x, weight, z_norm, narrow, dilated, o_norm, residual, residual_weight, residual_norm),
        *(clips, frames, frames_out, joints, channels, width, inputs, *narrow.stride()),
        STRIDE=stride,
        BLOCK_T=min(triton.next_power_of_2(frames_out), block_rows // BLOCK_JOINTS),
        BLOCK_V=BLOCK_JOINTS,
        BLOCK_I=block_of(max(channels, inputs), block_inputs),
        BLOCK_C=block_of(width),
        HAS_RESIDUAL=residual is not None,
        **product_constants(x),
        num_warps=4 if width * x.element_size() <= BYTES_OF_FOUR_WARPS else 8,
        num_stages=1,
        reads=[x, (residual, frames_out / frames), weight, narrow, dilated, residual_weight, z_norm, o_norm, residual_norm],
        writes=[out, pooled],
        flops=2 * rows * channels * 3 * width + 2 * rows_out * (channels * width + 10 * width * width) + of_residual,
    )
    return out, pooled
