"""Gradient of a fused layer's input in Triton: the product with conv3, what flows into the input elsewhere, and the layer below.

The layer below ends with a norm, whose backward pass needs sums over all rows of the gradient at its end. They are taken here,
where the gradient is in registers, so that it is written once and not read for them.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shapmix.reference.layer import LayerBelow

from .triton_launch import launch, product_precision
from .triton_rows import add_sums, block_of

ROWS, CHANNELS, FEATURES = 128, 128, 64  # blocks of the product
PARTS = 264  # of the sums: two programs for each multiprocessor of a large GPU


@triton.jit
def layer_input_kernel(
    to_x,
    sums,
    residual_sums,
    to_features,
    w3,
    to_pooled,
    from_shortcut,
    from_end,
    from_down,
    from_residual,
    out,
    o,
    norm,
    residual,
    residual_norm,
    rows,
    frames,
    joints,
    in_channels,
    features,
    frames_of_residual,
    stride,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_F: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program writes a block of channels of every P-th block of rows (frames and joints), and their sums."""
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < in_channels
    part = tl.program_id(1)
    SUM: tl.constexpr = to_pooled.dtype.element_ty
    if sums is not None:
        sums += part.to(tl.int64) * 2 * in_channels
    if residual_sums is not None:
        residual_sums += part.to(tl.int64) * 2 * in_channels
    for block in range(part, tl.cdiv(rows, BLOCK_R), tl.num_programs(1)):
        row = tl.arange(0, BLOCK_R).to(tl.int64) + block * BLOCK_R
        is_row = row < rows
        acc = tl.zeros([BLOCK_R, BLOCK_C], SUM)
        for first in range(0, features, BLOCK_F):
            feature = first + tl.arange(0, BLOCK_F)
            is_feature = feature < features
            of_tile = is_row[:, None] & is_feature[None, :]
            tile = tl.load(to_features + row[:, None] * features + feature[None, :], mask=of_tile, other=0.0)
            of_weight = is_feature[:, None] & is_channel[None, :]
            w = tl.load(w3 + feature[:, None] * in_channels + channel[None, :], mask=of_weight, other=0.0)
            acc = tl.dot(tile, w, acc=acc, input_precision=PRECISION, out_dtype=SUM)
        inside = is_row[:, None] & is_channel[None, :]
        at = row[:, None] * in_channels + channel[None, :]
        joint, frame = row % joints, row // joints % frames
        clip = row // joints // frames
        pooled = (clip * joints + joint)[:, None] * in_channels + channel[None, :]
        acc += tl.load(to_pooled + pooled, mask=inside, other=0.0) / frames
        if from_shortcut is not None:
            acc += tl.load(from_shortcut + at, mask=inside, other=0.0).to(SUM)
        if from_end is not None:
            acc += tl.load(from_end + at, mask=inside, other=0.0).to(SUM)
        if from_down is not None:
            acc += tl.load(from_down + at, mask=inside, other=0.0).to(SUM)
        if from_residual is not None:
            of = (clip * frames_of_residual + frame // stride) * joints + joint
            is_kept = inside & (frame % stride == 0)[:, None]
            acc += tl.load(from_residual + of[:, None] * in_channels + channel[None, :], mask=is_kept, other=0.0).to(SUM)
        if out is not None:
            acc = tl.where(tl.load(out + at, mask=inside, other=0.0) > 0, acc, 0.0)
        rounded = acc.to(to_x.dtype.element_ty)
        tl.store(to_x + at, rounded, mask=inside)
        if sums is not None:
            passed = rounded.to(SUM)
            raw = tl.load(o + at, mask=inside, other=0.0)
            add_sums(sums, norm, passed, raw, block == part, channel, in_channels, is_channel)
            if residual_sums is not None:
                raw = tl.load(residual + at, mask=inside, other=0.0)
                add_sums(residual_sums, residual_norm, passed, raw, block == part, channel, in_channels, is_channel)


def layer_input_backward(
    to_features: Tensor,
    w3: Tensor,
    to_pooled: Tensor,
    *,
    from_shortcut: Tensor | None = None,
    from_end: Tensor | None = None,
    from_down: Tensor | None = None,
    from_residual: Tensor | None = None,
    below: LayerBelow | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `shapmix.reference.layer.layer_input_backward`; contiguous arguments. 1 launch."""
    clips, frames, joints, features = to_features.shape
    in_channels = w3.shape[2]
    rows = clips * frames * joints
    kept = frames if from_residual is None else from_residual.shape[1]
    small = 2 if to_features.dtype == torch.float64 else 1
    block_r, block_c = block_of(rows, ROWS // small), block_of(in_channels, CHANNELS // small)
    c_blocks, blocks = triton.cdiv(in_channels, block_c), triton.cdiv(rows, block_r)
    parts = min(blocks, max(1, PARTS // c_blocks))
    out, o, norm, residual, residual_norm = below or (None,) * 5
    residual = None if residual_norm is None else residual
    to_x = to_features.new_empty(clips, frames, joints, in_channels)
    sums = None if below is None else to_pooled.new_empty(parts, 2, in_channels)
    residual_sums = None if residual_norm is None else to_pooled.new_empty(parts, 2, in_channels)
    added = (from_shortcut, from_end, from_down, from_residual)
    launch(
        layer_input_kernel,
        (c_blocks, parts),
        to_x,
        sums,
        residual_sums,
        to_features,
        w3,
        to_pooled,
        *added,
        out,
        o,
        norm,
        residual,
        residual_norm,
        rows,
        frames,
        joints,
        in_channels,
        features,
        kept,
        triton.cdiv(frames, kept),
        BLOCK_R=block_r,
        BLOCK_C=block_c,
        BLOCK_F=block_of(features, FEATURES // to_features.element_size() * 2),
        PRECISION=product_precision(to_features.dtype),
        num_warps=8,
        reads=[(to_features, c_blocks), w3, to_pooled, *added, out, o, norm, residual, residual_norm],
        writes=[to_x, sums, residual_sums],
        flops=2 * to_features.numel() * in_channels,
    )
    return to_x, sums, residual_sums
