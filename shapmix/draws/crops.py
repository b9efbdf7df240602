"""Random and deterministic crops and frame selections.

Each `draw_*` is a pure function of its arguments, the seed and the step; the ops of `shapmix.reference` and `shapmix.kernels` apply
the returned plans. Mixing plans are drawn by the op `draw_plan`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from shapmix.draws.philox import integers, random_words, uniform
from shapmix.draws.plans import CropPlan, FramePlan
from shapmix.draws.purposes import CROP, ROTATION

MAX_ROTATION = 0.3  # radians about each axis, as in the NTU feeder

MAX_DEGREES = 60  # about x and y, as in the NW-UCLA feeder


def draw_crops(
    clips: Tensor,
    lengths: Tensor,
    *,
    num_frames: int,
    seed: int,
    step: int | Tensor,
    shortest: float = 0.5,
    max_rotation: float = MAX_ROTATION,
    alike: bool = False,
) -> CropPlan:
    """Training crops of the NTU feeder: a fraction U[shortest, 1] of each clip, at least T frames if it has them, and a rotation.

    Args:
        clips: [N] int64 indices.
        lengths: [N] int64, frames of each clip.
        max_rotation: radians about each axis; must be 0 unless the coordinates are x, y and z.
        alike: all clips have the random numbers of the first, so that a crop does not depend on a clip's place in the batch.
    """
    words = _words(seed, step, len(clips), 8, clips.device, alike)
    share = shortest + (1 - shortest) * uniform(words[:, 0])
    length = (lengths * share).long().clamp(min=num_frames).minimum(lengths)
    start = integers(words[:, 1], 0, lengths - length)
    angles = (uniform(words[:, 2:5]) * 2 - 1) * max_rotation
    return CropPlan(clips, start, length, angles)


def _words(seed: int, step: int | Tensor, rows: int, words: int, device: torch.device | None, alike: bool) -> Tensor:
    """[rows, words] random words of a crop or a selection of frames; the same in every row if `alike`."""
    return random_words(seed, CROP, step, 1 if alike else rows, words, device).expand(rows, words)


def centre_crops(clips: Tensor, lengths: Tensor, *, share: float = 0.95) -> CropPlan:
    """Evaluation crops of the NTU feeder: the central 95% of each clip, without rotation."""
    margin = ((1 - share) * lengths.double() / 2).long()
    return CropPlan(clips, margin, lengths - 2 * margin, torch.zeros(len(clips), 3, dtype=torch.float64, device=clips.device))


def draw_frames(
    clips: Tensor,
    lengths: Tensor,
    *,
    num_frames: int,
    seed: int,
    step: int,
    max_degrees: int = MAX_DEGREES,
    alike: bool = False,
) -> FramePlan:
    """Random views of the NW-UCLA feeder: integer degrees U{-60..60} about x and y, scale U(0.5, 1.5), sorted frames.

    Frames are drawn without replacement from 100 copies of every index, or as many as a clip shorter than T / 100 needs, so short
    clips repeat frames.

    Args:
        clips: [N] int64 indices.
        lengths: [N] int64, frames of each clip.
        max_degrees: must be 0 unless the coordinates are x, y and z.
        alike: as in `draw_crops`.
    """
    words = _words(seed, step, len(clips), 4, None, alike)
    frames = np.empty((len(clips), num_frames), dtype=np.int64)
    for row, length in enumerate(lengths.tolist()):
        copies = max(100, -(-num_frames // length))
        drawn = np.random.default_rng((seed, step, 0 if alike else row)).choice(length * copies, num_frames, replace=False)
        frames[row] = np.sort(drawn) // copies
    angles = integers(words[:, :2], -max_degrees, max_degrees).double()
    return FramePlan(clips, torch.from_numpy(frames), angles, 0.5 + uniform(words[:, 2]))


def draw_rotations(clips: Tensor, *, seed: int, step: int | Tensor, max_rotation: float = MAX_ROTATION) -> Tensor:
    """[N, 3] float64 radians about x, y and z, each U(-max_rotation, max_rotation), for views of `draw_segments`."""
    return (uniform(random_words(seed, ROTATION, step, len(clips), 4, clips.device)[:, :3]) * 2 - 1) * max_rotation


def draw_segments(
    clips: Tensor, lengths: Tensor, *, num_frames: int, seed: int, step: int | Tensor, alike: bool = False
) -> FramePlan:
    """A uniformly drawn frame from each of T equal segments of a clip; a clip shorter than T repeats frames. `alike`: `draw_crops`.

    Source: the uniform sampling of 2D poses in pyskl.
    """
    words = _words(seed, step, len(clips), -(-num_frames // 4) * 4, clips.device, alike)
    return _segments(clips, lengths, uniform(words[:, :num_frames]))


def middle_segments(clips: Tensor, lengths: Tensor, *, num_frames: int) -> FramePlan:
    """The middle frame of each of T equal segments."""
    return _segments(clips, lengths, torch.full((len(clips), num_frames), 0.5, dtype=torch.float64, device=clips.device))


def _segments(clips: Tensor, lengths: Tensor, place: Tensor) -> FramePlan:
    num_frames = place.shape[1]
    at = (torch.arange(num_frames, device=clips.device) + place.double()) * lengths.unsqueeze(1) / num_frames
    frames = at.long().minimum(lengths.unsqueeze(1) - 1)
    still = torch.zeros(len(clips), 2, dtype=torch.float64, device=clips.device)
    return FramePlan(clips, frames, still, torch.ones(len(clips), dtype=torch.float64, device=clips.device))


def even_frames(clips: Tensor, lengths: Tensor, *, num_frames: int) -> FramePlan:
    """Evaluation frames of the NW-UCLA feeder: evenly spaced, no rotation, scale 1."""
    frames = np.stack([np.linspace(0, length - 1, num_frames).astype(np.int64) for length in lengths.tolist()])
    none = torch.zeros(len(clips), 2, dtype=torch.float64)
    return FramePlan(clips, torch.from_numpy(frames), none, torch.ones(len(clips), dtype=torch.float64))
