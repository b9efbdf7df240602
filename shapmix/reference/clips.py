"""Clip sampling: from ragged recordings to the [N, C, T, V, M] batch that the network sees.

Two pipelines, as the field's feeders have them: `sample_clips` (NTU: crop, resize, rotate) and `sample_frames`
(NW-UCLA: rotate, scale to a box, pick frames). Both end in the same streams.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from shapmix.draws.plans import CropPlan, FramePlan

Stream = Literal["joint", "bone", "motion", "bone_motion"]

STREAMS: tuple[Stream, ...] = ("joint", "bone", "motion", "bone_motion")


def sample_clips(
    frames: Tensor, offsets: Tensor, plan: CropPlan, parents: Tensor, *, stream: Stream = "joint", num_frames: int = 64
) -> Tensor:
    """Crop, linear resize to `num_frames`, rotation, and the stream's differences.

    Args:
        frames: [F, M, V, C] floating point, the ragged recordings; C = 3 where an angle is not zero.
        offsets: [n + 1] int64, where each recording begins.
        plan: one row a sample.
        parents: [V] int64, the root its own parent.
        stream: joint; bone (joint - parent); motion (next - current frame, last 0) of joint or of bone.
        num_frames: T.

    Returns:
        [N, C, T, V, M], contiguous.

    Source: the NTU feeder of CTR-GCN; fixture `feeder_ntu`. Resize has half-pixel centres (align_corners=False).
    """
    samples = []
    for row, clip in enumerate(plan.clip.tolist()):
        first = int(offsets[clip] + plan.start[row])
        crop = frames[first : first + int(plan.length[row])]  # [L, M, V, C]
        length, people, joints, channels = crop.shape
        flat = crop.reshape(1, length, -1).transpose(1, 2)  # [1, M V C, L]
        resized = interpolate(flat, size=num_frames, mode="linear", align_corners=False)
        samples.append(resized.view(people, joints, channels, num_frames))
    x = torch.stack(samples)  # [N, M, V, C, T]
    if bool(plan.angles.any()):
        x = torch.einsum("nij,nmvjt->nmvit", clockwise_rotation(plan.angles.to(x.dtype)), x)
    return to_stream(x.permute(0, 3, 4, 2, 1), parents, stream).contiguous()


def sample_frames(
    frames: Tensor, offsets: Tensor, plan: FramePlan, parents: Tensor, centre: int, *, stream: Stream = "joint"
) -> Tensor:
    """NW-UCLA: centre on the first frame, rotate and scale, fit into the box [-1, 1]^3, pick frames.

    Args:
        frames: [F, M, V, C] floating point, the ragged recordings; C = 3 where an angle is not zero.
        offsets: [n + 1] int64.
        plan: one row a sample; no rotation and scale 1 for evaluation.
        parents: [V] int64.
        centre: joint whose place in frame 0 becomes the origin (of the first person).
        stream: as in `sample_clips`; differences are taken of the picked frames.

    Returns:
        [N, C, T, V, M], contiguous. The box is that of all frames of the recording, an axis without extent becomes 0.

    Source: the NW-UCLA feeder of CTR-GCN; fixture `feeder_ucla`.
    """
    channels = frames.shape[3]
    first, end = offsets[plan.clip], offsets[plan.clip + 1]  # [N]
    # all frames of all recordings in one row, as the box is that of whole recordings
    owner = torch.arange(len(first), device=first.device).repeat_interleave(end - first)  # [F']
    begin = (end - first).cumsum(0) - (end - first)  # [N]
    x = frames[first[owner] + torch.arange(len(owner), device=first.device) - begin[owner]]  # [F', M, V, C]
    x = plan.scale.to(frames.dtype)[owner, None, None, None] * (x - frames[first, 0, centre][owner, None, None])
    if channels == 3 or bool(plan.angles_deg.any()):
        rotation = axis_rotation_deg(plan.angles_deg.to(frames.dtype))[owner]  # [F', 3, 3]
        x = (x.flatten(1, 2) @ rotation.mT).view(x.shape)
    each = owner[:, None].expand(-1, channels)
    low = x.new_full((len(first), channels), torch.inf).scatter_reduce(0, each, x.amin((1, 2)), "amin")
    high = x.new_full((len(first), channels), -torch.inf).scatter_reduce(0, each, x.amax((1, 2)), "amax")
    low, extent = low[:, None, None, None], (high - low)[:, None, None, None]  # [N, 1, 1, 1, C]
    picked = x[begin[:, None] + plan.frames]  # [N, T, M, V, C]
    x = torch.where(extent > 0, (picked - low) / torch.where(extent > 0, extent, 1) * 2 - 1, 0)
    x = x.permute(0, 4, 1, 3, 2)  # [N, C, T, V, M]
    return to_stream(x, parents, stream).contiguous()


def pick_frames(
    frames: Tensor,
    offsets: Tensor,
    plan: FramePlan,
    parents: Tensor,
    *,
    stream: Stream = "joint",
    scores: bool = False,
) -> Tensor:
    """The planned frames of each recording as they are, and the stream's differences; the plan's angles and scales are not used.

    Args:
        frames: [F, M, V, C] floating point, the ragged recordings.
        offsets: [n + 1] int64.
        plan: one row a sample; made by `shapmix.draws.crops.draw_segments` or `middle_segments`.
        parents: [V] int64.
        stream, scores: as in `to_stream`.

    Returns:
        [N, C, T, V, M], contiguous.

    Source: the feeder of 2D poses in pyskl.
    """
    x = frames[offsets[plan.clip].unsqueeze(1) + plan.frames]  # [N, T, M, V, C]
    return to_stream(x.permute(0, 4, 1, 3, 2), parents, stream, scores=scores).contiguous()


def to_stream(joint: Tensor, parents: Tensor, stream: Stream, *, scores: bool = False) -> Tensor:
    """Joint coordinates [N, C, T, V, M] as one of the streams, same shape.

    With `scores` the last coordinate is the score of a pose: no difference is taken of it, a bone's and a motion's score is the
    mean of both ends' (as pyskl has it).
    """
    if stream in ("bone", "bone_motion"):
        joint = _difference(joint, joint[:, :, :, parents], scores)
    if stream in ("motion", "bone_motion"):
        joint = pad(_difference(joint[:, :, 1:], joint[:, :, :-1], scores), (0, 0, 0, 0, 0, 1))
    return joint


def _difference(x: Tensor, other: Tensor, scores: bool) -> Tensor:
    if not scores:
        return x - other
    return torch.cat([x[:, :-1] - other[:, :-1], (x[:, -1:] + other[:, -1:]) / 2], dim=1)


def clockwise_rotation(angles: Tensor) -> Tensor:
    """[N, 3] radians about x, y, z -> [N, 3, 3] = Rz Ry Rx of clockwise matrices, as the NTU feeder turns clips."""
    return _about(angles[:, 2], 2, -1) @ _about(angles[:, 1], 1, -1) @ _about(angles[:, 0], 0, -1)


def axis_rotation_deg(angles: Tensor) -> Tensor:
    """[N, 2] degrees about x, y -> [N, 3, 3] = Rx Ry of right-handed matrices, as the NW-UCLA feeder turns clips."""
    radians = angles.deg2rad()
    return _about(radians[:, 0], 0, 1) @ _about(radians[:, 1], 1, 1)


def _about(angle: Tensor, axis: int, handedness: int) -> Tensor:
    """[N] radians -> [N, 3, 3] right-handed (+1) or clockwise (-1) rotation about one axis."""
    after, before = (axis + 1) % 3, (axis + 2) % 3
    matrix = torch.zeros(len(angle), 3, 3, dtype=angle.dtype, device=angle.device)
    matrix[:, axis, axis] = 1
    matrix[:, after, after] = matrix[:, before, before] = angle.cos()
    matrix[:, before, after] = handedness * angle.sin()
    matrix[:, after, before] = -handedness * angle.sin()
    return matrix
