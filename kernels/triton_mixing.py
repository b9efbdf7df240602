"""Coalitions and mixing as Triton kernels, bit-equal to the reference in every dtype."""

# Kernel parameters have no annotations: Triton infers their types.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import set_strides
from .dispatch import kernel
from .triton import DTYPES

BLOCK = 1024
NUM_WARPS = 4


@triton.jit
def coalition_kernel(
    out,
    clips,
    mean_motion,
    coalitions,
    part_of_joint,
    channels,
    sets,
    set_size,
    clip_sample_stride,
    clip_channel_stride,
    mean_channel_stride,
    set_stride,
    coalition_sample_stride,
    plane,
    restored,
    ROW: tl.constexpr,
    PEOPLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program writes one block of a plane [T, V, M] of one sample under every coalition; sizes are in elements."""
    blocks = tl.cdiv(plane, BLOCK)
    plane_id = (tl.program_id(0) // blocks).to(tl.int64)
    sample = plane_id // channels
    channel = plane_id % channels
    element = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = element < plane

    own = tl.load(clips + sample * clip_sample_stride + channel * clip_channel_stride + element, mask=inside)
    rest = tl.load(mean_motion + channel * mean_channel_stride + element, mask=inside)
    part = tl.load(part_of_joint + element % ROW // PEOPLE, mask=inside, other=0)
    is_restored = element < restored

    to = out + plane_id * plane + element
    for _ in range(sets):
        kept = (((tl.load(coalitions + sample * coalition_sample_stride) >> part) & 1) == 1) & is_restored
        tl.store(to, tl.where(kept, own, rest), mask=inside)
        coalitions += set_stride
        to += set_size


@triton.jit
def mix_kernel(
    out,
    clips,
    partner,
    parts,
    start,
    length,
    source_start,
    source_length,
    lam,
    blend,
    part_of_joint,
    channels,
    half_size,
    clip_sample_stride,
    clip_channel_stride,
    plane,
    ROW: tl.constexpr,
    PEOPLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program writes one block of a plane [T, V, M] of one sample to the clean half and, mixed, to the mixed half."""
    blocks = tl.cdiv(plane, BLOCK)
    plane_id = (tl.program_id(0) // blocks).to(tl.int64)
    sample = plane_id // channels
    channel = plane_id % channels
    element = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = element < plane

    dtype = out.dtype.element_ty
    own = tl.load(clips + sample * clip_sample_stride + channel * clip_channel_stride + element, mask=inside)
    other = clips + tl.load(partner + sample) * clip_sample_stride + channel * clip_channel_stride
    to = out + plane_id * plane + element
    tl.store(to, own, mask=inside)
    to += half_size

    share = tl.load(lam + sample)
    if tl.load(blend + sample) != 0:
        # Each share, product and sum is rounded to the clip's dtype, as in the reference; the launch disables FP fusion.
        theirs = tl.load(other + element, mask=inside)
        if dtype == tl.float64:
            mixed = own * (1.0 - share) + theirs * share
        else:
            keep = (1.0 - share).to(tl.float32).to(dtype).to(tl.float32)
            take = share.to(tl.float32).to(dtype).to(tl.float32)
            kept = (own.to(tl.float32) * keep).to(dtype).to(tl.float32)
            taken = (theirs.to(tl.float32) * take).to(dtype).to(tl.float32)
            mixed = (kept + taken).to(dtype)
        tl.store(to, mixed, mask=inside)
    else:
        window = tl.load(length + sample)
        source_window = tl.load(source_length + sample)
        in_row = element % ROW
        step = element // ROW - tl.load(start + sample)
        part = tl.load(part_of_joint + in_row // PEOPLE, mask=inside, other=0)
        replaced = inside & (step >= 0) & (step < window) & (((tl.load(parts + sample) >> part) & 1) == 1)
        if dtype == tl.float64:
            offset = step * source_window // window
        else:
            offset = (step.to(tl.float32) * tl.div_rn(source_window.to(tl.float32), window.to(tl.float32))).to(tl.int64)
        frame = tl.load(source_start + sample) + tl.minimum(offset, source_window - 1)
        tl.store(to, tl.where(replaced, tl.load(other + frame * ROW + in_row, mask=replaced, other=0.0), own), mask=inside)


@kernel("coalition_inputs", backend="triton", dtypes=DTYPES)
def coalition_inputs(
    *, out: Tensor, clips: Tensor, mean_motion: Tensor, coalitions: Tensor, part_of_joint: Tensor, restored_frames: int | None
) -> None:
    """Writes `out` [S * N, C, T, V, M]; coalitions [S] or [S, N], planes [T, V, M] contiguous."""
    n, channels, frames, joints, people = clips.shape
    plane = frames * joints * people
    coalition_kernel[(triton.cdiv(plane, BLOCK) * n * channels,)](
        out,
        clips,
        mean_motion,
        coalitions,
        part_of_joint,
        channels,
        coalitions.shape[0],
        clips.numel(),
        clips.stride(0),
        clips.stride(1),
        mean_motion.stride(0),
        *set_strides(coalitions),
        plane,
        restored(restored_frames, frames) * joints * people,
        ROW=joints * people,
        PEOPLE=people,
        BLOCK=BLOCK,
        num_warps=NUM_WARPS,
    )


@kernel("mix_clips", backend="triton", dtypes=DTYPES)
def mix_clips(
    *,
    out: Tensor,
    clips: Tensor,
    partner: Tensor,
    parts: Tensor,
    start: Tensor,
    length: Tensor,
    source_start: Tensor,
    source_length: Tensor,
    lam: Tensor,
    blend: Tensor,
    part_of_joint: Tensor,
) -> None:
    """Writes `out` [2N, C, T, V, M]; the plan's fields and the planes [T, V, M] are contiguous, its values in range."""
    n, channels, frames, joints, people = clips.shape
    plane = frames * joints * people
    mix_kernel[(triton.cdiv(plane, BLOCK) * n * channels,)](
        out,
        clips,
        partner,
        parts,
        start,
        length,
        source_start,
        source_length,
        lam,
        blend.view(torch.uint8),
        part_of_joint,
        channels,
        clips.numel(),
        clips.stride(0),
        clips.stride(1),
        plane,
        ROW=joints * people,
        PEOPLE=people,
        BLOCK=BLOCK,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )


def restored(restored_frames: int | None, frames: int) -> int:
    """Frames that keep the clip's motion, in 0..frames."""
    return frames if restored_frames is None else min(max(restored_frames, 0), frames)
