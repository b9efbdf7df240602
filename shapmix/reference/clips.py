"""Clip sampling: from ragged recordings to network input [N, C, T, V, M].

The published feeders: `sample_clips` (NTU: crop, resize, rotate), `sample_frames` (NW-UCLA: rotate, scale to a box, select frames)
and `pick_frames` (2D poses: select frames). All support the same streams.
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
    """Crop, linear resize to `num_frames`, rotation, and conversion to the stream.

    Args:
        frames: [F, M, V, C] floating point, the ragged recordings; C = 3 if any angle is not zero.
        offsets: [n + 1] int64, first frame of each recording.
        plan: one row per sample.
        parents: [V] int64; the root is its own parent.
        stream: joint; bone (joint - parent); motion (next - current frame, last 0) of joints or bones.
        num_frames: T.

    Returns:
        [N, C, T, V, M], contiguous.

    Source: the NTU feeder of CTR-GCN; fixture `feeder_ntu`. Resizing uses half-pixel centres (align_corners=False).
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
    """NW-UCLA: centre on the first frame, rotate and scale, normalise to the box [-1, 1]^3, select frames.

    Args:
        frames: [F, M, V, C] floating point, the ragged recordings; C = 3 if any angle is not zero.
        offsets: [n + 1] int64.
        plan: one row per sample; no rotation and scale 1 for evaluation.
        parents: [V] int64.
        centre: joint (of the first person) whose position in frame 0 becomes the origin.
        stream: as in `sample_clips`; differences are between the selected frames.

    Returns:
        [N, C, T, V, M], contiguous. The box is the bounding box of all frames of the recording; an axis without extent becomes 0.

    Source: the NW-UCLA feeder of CTR-GCN; fixture `feeder_ucla`.
    """
    channels = frames.shape[3]
    first, end = offsets[plan.clip], offsets[plan.clip + 1]  # [N]
    # concatenate all frames of the recordings, because the box covers whole recordings
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
    """Selects the planned frames of each recording and converts them to the stream; angles and scales of the plan are ignored.

    Args:
        frames: [F, M, V, C] floating point, the ragged recordings.
        offsets: [n + 1] int64.
        plan: one row per sample; made by `shapmix.draws.crops.draw_segments` or `middle_segments`.
        parents: [V] int64.
        stream, scores: as in `to_stream`.

    Returns:
        [N, C, T, V, M], contiguous.

    Source: the feeder of 2D poses in pyskl.
    """
    x = frames[offsets[plan.clip].unsqueeze(1) + plan.frames]  # [N, T, M, V, C]
    return to_stream(x.permute(0, 4, 1, 3, 2), parents, stream, scores=scores).contiguous()


def turn(clips: Tensor, angles: Tensor) -> Tensor:
    """Rotates the first three coordinates of clips [N, C, T, V, M] clockwise by [N, 3] radians about x, then y, then z.

    The rotation is that of `sample_clips`. A fourth coordinate, the score, is kept.
    """
    turned = torch.einsum("nij,njtvm->nitvm", clockwise_rotation(angles.to(clips.dtype)), clips[:, :3])
    return torch.cat([turned, clips[:, 3:]], dim=1)


def to_stream(joint: Tensor, parents: Tensor, stream: Stream, *, scores: bool = False) -> Tensor:
    """Converts joint coordinates [N, C, T, V, M] to a stream of the same shape.

    With `scores` the last coordinate is a confidence score, which is averaged over both ends of a bone or a motion instead of
    differenced (as in pyskl).
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
    """[N, 3] radians about x, y, z -> [N, 3, 3] = Rz Ry Rx of clockwise matrices, as in the NTU feeder."""
    return _about(angles[:, 2], 2, -1) @ _about(angles[:, 1], 1, -1) @ _about(angles[:, 0], 0, -1)


def axis_rotation_deg(angles: Tensor) -> Tensor:
    """[N, 2] degrees about x, y -> [N, 3, 3] = Rx Ry of right-handed matrices, as in the NW-UCLA feeder."""
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
