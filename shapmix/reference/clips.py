"""Clip sampling: from ragged recordings to network input [N, C, T, V, M].

The published feeders: `sample_clips` (NTU: crop, resize, rotate), `sample_frames` (NW-UCLA: rotate, scale to a box, select frames)
and `pick_frames` (2D poses: select frames). All support the same streams and the same augmentation, in the order of `AugmentPlan`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from shapmix.draws.philox import philox
from shapmix.draws.plans import AugmentPlan, CropPlan, FramePlan

Stream = Literal["joint", "bone", "motion", "bone_motion"]

STREAMS: tuple[Stream, ...] = ("joint", "bone", "motion", "bone_motion")

JITTER_BYTES = 8  # of random numbers, whose sum is the noise of one coordinate
JITTER_MEAN = JITTER_BYTES * 255 / 2
JITTER_STD = (JITTER_BYTES * (256**2 - 1) / 12) ** 0.5


def sample_clips(
    frames: Tensor,
    offsets: Tensor,
    plan: CropPlan,
    parents: Tensor,
    *,
    stream: Stream = "joint",
    num_frames: int = 64,
    augment: AugmentPlan | None = None,
) -> Tensor:
    """Crop, linear resize to `num_frames`, rotation, augmentation, and conversion to the stream.

    Args:
        frames: [F, M, V, C] floating point, the ragged recordings; C = 3 if any angle is not zero.
        offsets: [n + 1] int64, first frame of each recording.
        plan: one row per sample.
        parents: [V] int64; the root is its own parent.
        stream: joint; bone (joint - parent); motion (next - current frame, last 0) of joints or bones.
        num_frames: T.
        augment: one row per sample.

    Returns:
        [N, C, T, V, M], contiguous.

    Source: the NTU feeder of CTR-GCN; fixture `feeder_ntu`. Resizing uses half-pixel centres (align_corners=False).
    """
    augment = augment or AugmentPlan()
    samples = []
    for row, clip in enumerate(plan.clip.tolist()):
        first = int(offsets[clip] + plan.start[row])
        crop = frames[first : first + int(plan.length[row])]  # [L, M, V, C]
        samples.append(_resized(crop, num_frames, None if augment.pace is None else augment.pace[row]))
    x = torch.stack(samples)  # [N, M, V, C, T]
    if augment.reversed is not None:
        x = torch.where(augment.reversed[:, None, None, None, None], x.flip(4), x)
    if bool(plan.angles.any()):
        x = torch.einsum("nij,nmvjt->nmvit", clockwise_rotation(plan.angles.to(x.dtype)), x)
    return _augmented(x.permute(0, 3, 4, 2, 1), parents, stream, augment).contiguous()


def _resized(crop: Tensor, num_frames: int, pace: Tensor | None) -> Tensor:
    """[L, M, V, C] -> [M, V, C, T]: linear between the frames around each position."""
    length, people, joints, channels = crop.shape
    if pace is None:
        flat = crop.reshape(1, length, -1).transpose(1, 2)  # [1, M V C, L]
        resized = interpolate(flat, size=num_frames, mode="linear", align_corners=False)
        return resized.view(people, joints, channels, num_frames)
    at = positions(pace.to(_sum_dtype(crop))[None], crop.new_full((1,), length, dtype=torch.int64), num_frames)[0]  # [T]
    before = at.long()
    share = at - before
    later = (before + 1).clamp(max=length - 1)
    flat = crop.reshape(length, -1).to(share.dtype).T  # [M V C, L]
    resized = flat[:, before] * (1 - share) + flat[:, later] * share
    return resized.to(crop.dtype).view(people, joints, channels, num_frames)


def positions(pace: Tensor, lengths: Tensor, num_frames: int) -> Tensor:
    """[N, T]: where in clips of `lengths` [N] frames each output frame is, for `AugmentPlan.pace` [N, 2], in its dtype."""
    scale = lengths.to(pace.dtype) / num_frames
    centre = scale[:, None] * (torch.arange(num_frames, device=pace.device).to(pace.dtype) + 0.5)
    at = pace[:, :1] * centre + pace[:, 1:] - 0.5
    return at.clamp(min=0).minimum((lengths - 1).to(pace.dtype)[:, None])


def sample_frames(
    frames: Tensor,
    offsets: Tensor,
    plan: FramePlan,
    parents: Tensor,
    centre: int,
    *,
    stream: Stream = "joint",
    augment: AugmentPlan | None = None,
) -> Tensor:
    """NW-UCLA: centre on the first frame, rotate and scale, normalise to the box [-1, 1]^3, select frames, augment.

    Args:
        frames: [F, M, V, C] floating point, the ragged recordings; C = 3 if any angle is not zero.
        offsets: [n + 1] int64.
        plan: one row per sample; no rotation and scale 1 for evaluation.
        parents: [V] int64.
        centre: joint (of the first person) whose position in frame 0 becomes the origin.
        stream: as in `sample_clips`; differences are between the selected frames.
        augment: one row per sample; changes coordinates in the box.

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
    augment = augment or AugmentPlan()
    picked = x[begin[:, None] + _retimed(plan.frames, end - first, augment)]  # [N, T, M, V, C]
    x = torch.where(extent > 0, (picked - low) / torch.where(extent > 0, extent, 1) * 2 - 1, 0)
    x = x.permute(0, 4, 1, 3, 2)  # [N, C, T, V, M]
    return _augmented(x, parents, stream, augment).contiguous()


def pick_frames(
    frames: Tensor,
    offsets: Tensor,
    plan: FramePlan,
    parents: Tensor,
    *,
    stream: Stream = "joint",
    scores: bool = False,
    angles: Tensor | None = None,
    augment: AugmentPlan | None = None,
) -> Tensor:
    """Selects the planned frames of each recording, turns and augments them, and converts them to the stream.

    Angles and scales of the plan are ignored.

    Args:
        frames: [F, M, V, C] floating point, the ragged recordings.
        offsets: [n + 1] int64.
        plan: one row per sample; made by `shapmix.draws.crops.draw_segments` or `middle_segments`.
        parents: [V] int64.
        stream, scores: as in `to_stream`.
        angles: [N, 3] radians, as in `turn`.
        augment: one row per sample.

    Returns:
        [N, C, T, V, M], contiguous.

    Source: the feeder of 2D poses in pyskl.
    """
    augment = augment or AugmentPlan()
    first, end = offsets[plan.clip], offsets[plan.clip + 1]
    x = frames[first[:, None] + _retimed(plan.frames, end - first, augment)].permute(0, 4, 1, 3, 2)  # [N, C, T, V, M]
    if angles is not None:
        x = turn(x, angles)
    return _augmented(x, parents, stream, augment, scores=scores).contiguous()


def _retimed(frames: Tensor, lengths: Tensor, augment: AugmentPlan) -> Tensor:
    """The frames [N, T] of recordings of `lengths` [N] frames that are picked instead, backwards and at another speed."""
    if augment.pace is not None:
        speed, shift = augment.pace[:, :1], augment.pace[:, 1:]
        at = (speed * (frames + 0.5) + shift).floor().long()
        frames = at.clamp(min=0).minimum(lengths[:, None] - 1)
    if augment.reversed is not None:
        frames = torch.where(augment.reversed[:, None], frames.flip(1), frames)
    return frames


def _augmented(joint: Tensor, parents: Tensor, stream: Stream, augment: AugmentPlan, *, scores: bool = False) -> Tensor:
    """Joint coordinates [N, C, T, V, M] -> the stream of the augmented clips."""
    found = to_stream(_moved(joint, augment, joint.shape[1] - int(scores)), parents, stream, scores=scores)
    return found if augment.kept is None else torch.where(augment.kept[:, None, None, :, None], found, 0)


def _moved(joint: Tensor, augment: AugmentPlan, dimension: int) -> Tensor:
    """Swaps joints, multiplies the first `dimension` coordinates, and adds the noise of joints that are not missing."""
    if augment.source is not None:
        joint = joint.gather(3, augment.source[:, None, None, :, None].expand(joint.shape))
    x, score = joint[:, :dimension], joint[:, dimension:]
    present = (x != 0).any(1, keepdim=True)
    if augment.linear is not None:
        x = torch.einsum("nij,njtvm->nitvm", augment.linear.to(x.dtype), x)
    if augment.jitter is not None:
        assert augment.jitter_key is not None
        std = augment.jitter.to(_sum_dtype(x))[:, None, None, None, None]
        x = torch.where(
            present, (x + jitter_noise(augment.jitter_key, joint.shape)[:, :dimension] * (std / JITTER_STD)).to(x.dtype), x
        )
    return torch.cat([x, score], dim=1)


def jitter_noise(key: Tensor, shape: torch.Size) -> Tensor:
    """[N, C, T, V, M] float32 of standard deviation `JITTER_STD`: whole numbers, the same on every back end.

    Each is the sum of eight random bytes minus its mean, close to a normal distribution, within 4.9 standard deviations. The bytes
    of coordinates 0 and 1 of a joint are block 0 of the Philox words of its place in [T, V, M], those of 2 and 3 block 1.
    """
    samples, channels, *plane = shape
    place = torch.arange(plane[0] * plane[1] * plane[2], device=key.device)
    blocks = []
    for block in range(-(-channels // 2)):
        counter = torch.stack([place, torch.full_like(place, block), torch.zeros_like(place), torch.zeros_like(place)], 1)
        low, high = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
        words = philox(counter.expand(samples, -1, -1), (low[:, None], high[:, None]))  # [N, T V M, 4]
        total = sum((words >> shift & 0xFF for shift in (0, 8, 16, 24)), torch.zeros_like(words))
        blocks.append(total.view(samples, -1, 2, 2).sum(3))  # [N, T V M, 2]
    noise = torch.cat(blocks, 2)[..., :channels].float() - JITTER_MEAN
    return noise.transpose(1, 2).reshape(shape)


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


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
