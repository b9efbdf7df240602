"""The epilogue of a temporal unit as one Triton kernel: each branch is read once, each channel written once."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import row_stride, sum_dtype
from .dispatch import kernel
from .triton import DTYPES
from .triton_rows import relu

BLOCK_R = 16
LONGEST_BLOCK = 64
NUM_WARPS = 4
SUM_TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


@triton.jit
def nan_maximum(x, y):
    """Maximum that propagates NaN, as in torch."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def load_rows(rows, row, channel, stride, inside, SUM: tl.constexpr):
    """Loads a tile [row, channel]."""
    return tl.load(rows + row[:, None].to(tl.int64) * stride + channel[None, :], mask=inside, other=0.0).to(SUM)


@triton.jit
def join_kernel(
    out,
    narrow,
    wide,
    middle,
    skip,
    shortcut,
    scale,
    offset,
    rows,
    frames,
    frames_out,
    frame_stride,
    joints,
    width,
    of_narrow,
    of_wide,
    of_middle,
    of_skip,
    of_shortcut,
    SUM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Each program writes one block of rows (clip, frame, joint) and channels of one branch."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    branch = tl.program_id(2)
    inside = (row < rows)[:, None] & (channel < width)[None, :]
    if branch == 0:
        value = load_rows(narrow, row, channel, of_narrow, inside, SUM)
    elif branch == 1:
        value = load_rows(wide, row, channel, of_wide, inside, SUM)
    elif branch == 2:
        joint = row % joints
        frame = row // joints % frames_out * frame_stride
        first = row // (joints * frames_out) * frames
        before = (first + tl.maximum(frame - 1, 0)) * joints + joint
        after = (first + tl.minimum(frame + 1, frames - 1)) * joints + joint
        value = load_rows(middle, (first + frame) * joints + joint, channel, of_middle, inside, SUM)
        value = nan_maximum(value, load_rows(middle, before, channel, of_middle, inside, SUM))
        value = nan_maximum(value, load_rows(middle, after, channel, of_middle, inside, SUM))
        factor = tl.load(scale + channel, mask=channel < width, other=0.0)[None, :]
        value = value * factor + tl.load(offset + channel, mask=channel < width, other=0.0)[None, :]
    else:
        value = load_rows(skip, row, channel, of_skip, inside, SUM)
    column = branch * width + channel
    if shortcut is not None:
        value += load_rows(shortcut, row, column, of_shortcut, inside, SUM)
    value = relu(value)
    to = out + row[:, None].to(tl.int64) * (4 * width) + column[None, :]
    tl.store(to, value.to(out.dtype.element_ty), mask=inside)


@kernel("join_branches", backend="triton", dtypes=DTYPES)
def join_branches(
    *,
    out: Tensor,
    narrow: Tensor,
    wide: Tensor,
    middle: Tensor,
    skip: Tensor,
    shortcut: Tensor | None,
    scale: Tensor,
    offset: Tensor,
    frame_stride: int,
) -> None:
    """Writes `out` [N, 4 Q, T', V], channels-last; the branches and the shortcut are rows of channels."""
    n, width, frames, joints = middle.shape
    after = out.shape[2]
    rows = n * after * joints
    block = min(triton.next_power_of_2(width), LONGEST_BLOCK)
    join_kernel[(triton.cdiv(rows, BLOCK_R), triton.cdiv(width, block), 4)](
        out,
        narrow,
        wide,
        middle,
        skip,
        shortcut,
        scale,
        offset,
        rows,
        frames,
        after,
        frame_stride,
        joints,
        width,
        row_stride(narrow),
        row_stride(wide),
        row_stride(middle),
        row_stride(skip),
        0 if shortcut is None else row_stride(shortcut),
        SUM=SUM_TYPES[sum_dtype(middle.dtype)],
        BLOCK_R=BLOCK_R,
        BLOCK_C=block,
        num_warps=NUM_WARPS,
    )
