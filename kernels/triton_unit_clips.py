"""The first layer's input in Triton: coalition masks, input norm, layout and mean over the frames in one pass over the clips."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shapmix.reference.coalition import CoalitionClips

from .triton_launch import launch
from .triton_rows import load_norm, normalise

TILE = 2048  # elements of a program's tile: some frames of a block of joints and channels
BLOCK = 512


@triton.jit
def input_rows_kernel(
    rows,
    pooled,
    clips,
    norm,
    mean_motion,
    samples,
    coalitions,
    part_of_joint,
    frames,
    restored_frames,
    joints,
    channels,
    people,
    BLOCK_T: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program writes some joints and channels of one person of one row, all frames, and their mean over the frames."""
    width = joints * channels
    blocks = tl.cdiv(width, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    clip, person = row // people, (row % people).to(tl.int32)
    element = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = element < width
    joint, channel = element // channels, element % channels
    mean, scale, bias = load_norm(norm, person * width + element, people * width, inside)
    is_own = inside
    if coalitions is not None:
        part = tl.load(part_of_joint + joint, mask=inside, other=0)
        is_own = inside & (((tl.load(coalitions + clip) >> part) & 1) != 0)
        clip = tl.load(samples + clip)
    clips += clip * channels * frames * joints * people
    total = tl.zeros([BLOCK_T, BLOCK], pooled.dtype.element_ty)
    for first in range(0, frames, BLOCK_T):
        frame = first + tl.arange(0, BLOCK_T)
        read = (frame < frames)[:, None] & inside[None, :]
        at = ((channel[None, :] * frames + frame[:, None]) * joints + joint[None, :]) * people + person
        own = read & is_own[None, :]
        if coalitions is not None:
            own = own & (frame < restored_frames)[:, None]
        value = tl.load(clips + at, mask=own, other=0.0)
        if coalitions is not None:
            value = tl.where(own, value, tl.load(mean_motion + at, mask=read & (own == 0), other=0.0))
        result = normalise(value, mean, scale, bias).to(rows.dtype.element_ty)
        tl.store(rows + (row * frames + frame[:, None]) * width + element[None, :], result, mask=read)
        total += tl.where(read, result.to(total.dtype), 0.0)
    tl.store(pooled + row * width + element, tl.sum(total, 0) / frames, mask=inside)


def input_rows(clips: Tensor | CoalitionClips, norm: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As `shapmix.reference.layer.input_rows`. 1 launch."""
    n, channels, frames, joints, people = clips.shape
    masks: tuple[Tensor | None, ...] = (None,) * 4
    restored = frames
    if isinstance(clips, CoalitionClips):
        of_rows = (clips.samples, clips.coalitions, clips.part_of_joint)
        masks = (clips.mean_motion.contiguous(), *(each.contiguous() for each in of_rows))
        restored = frames if clips.restored_frames is None else clips.restored_frames
        clips = clips.clips
    clips = clips.contiguous()
    rows = clips.new_empty(n * people, frames, joints, channels, dtype=dtype)
    pooled = norm.new_empty(n * people, joints, channels)
    block = min(triton.next_power_of_2(joints * channels), BLOCK)
    launch(
        input_rows_kernel,
        (triton.cdiv(joints * channels, block) * n * people,),
        *(rows, pooled, clips, norm, *masks, frames, restored, joints, channels, people),
        BLOCK_T=min(TILE // block, triton.next_power_of_2(frames)),
        BLOCK=block,
        num_warps=4,
        reads=((clips, 1.0) if masks[0] is None else (clips, min(1.0, n / max(len(clips), 1))), norm, *masks),
        writes=(rows, pooled),
    )
    return rows, pooled
