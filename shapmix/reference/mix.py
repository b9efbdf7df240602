"""Mixing two clips by body part and time window."""

from __future__ import annotations

import torch
from torch import Tensor

from shapmix.draws.plans import MixPlan


def in_window(plan: MixPlan, num_frames: int) -> Tensor:
    """[N, T] bool: frames of the window, which are overwritten."""
    frame = torch.arange(num_frames, device=plan.start.device)
    return (frame >= plan.start[:, None]) & (frame < (plan.start + plan.length)[:, None])


def source_frames(plan: MixPlan, num_frames: int, dtype: torch.dtype) -> Tensor:
    """[N, T] int64: source frame in the partner for each frame of the window (outside the window: the frame itself).

    Nearest neighbour with torch's rounding: floor(float32(j) * float32(source_length / length)); for float64 clips the exact
    floor(j * source_length / length).
    """
    frame = torch.arange(num_frames, device=plan.start.device).expand(len(plan.start), -1)
    step = (frame - plan.start[:, None]).clamp(min=0)
    if dtype == torch.float64:
        offset = step * plan.source_length[:, None] // plan.length[:, None]
    else:
        scale = plan.source_length.float() / plan.length.float()
        offset = (step.float() * scale[:, None]).long()
    offset = torch.minimum(offset, plan.source_length[:, None] - 1)
    return torch.where(in_window(plan, num_frames), plan.source_start[:, None] + offset, frame)


def replaced(plan: MixPlan, part_of_joint: Tensor, num_frames: int) -> Tensor:
    """[N, 1, T, V, 1] bool mask of the elements pasted from the partner."""
    in_parts = ((plan.parts[:, None] >> part_of_joint) & 1).bool()  # [N, V]
    return in_window(plan, num_frames)[:, None, :, None, None] & in_parts[:, None, None, :, None]


def mix_clips(clips: Tensor, plan: MixPlan, part_of_joint: Tensor) -> Tensor:
    """The training batch [clean; mixed].

    Args:
        clips: [N, C, T, V, M] floating point.
        plan: one row per sample.
        part_of_joint: [V] int64.

    Returns:
        [2N, C, T, V, M]: the clips followed by the mixed clips. All people are mixed.

    Source: paper section 3.1; fixtures `stmix_*` and `shapmix_*`.
    """
    num_frames = clips.shape[2]
    source = source_frames(plan, num_frames, clips.dtype)  # [N, T]
    moved = clips.transpose(1, 2)[plan.partner[:, None], source].transpose(1, 2)

    mixed = torch.where(replaced(plan, part_of_joint, num_frames), moved, clips)

    rows = torch.nonzero(plan.blend).squeeze(1)
    if len(rows):
        keep, take = (share[rows].to(clips.dtype).view(-1, 1, 1, 1, 1) for share in (1 - plan.lam, plan.lam))
        mixed[rows] = clips[rows] * keep + clips[plan.partner[rows]] * take
    return torch.cat([clips, mixed])
