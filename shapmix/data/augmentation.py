"""Augmentation that fits a skeleton, and for clips of a loop of your own."""

from __future__ import annotations

import torch
from torch import Tensor

from shapmix.data.clips import OF_PIXELS
from shapmix.draws.augment import MOST_AXES, AugmentConfig, Sides, draw_augment
from shapmix.draws.crops import draw_rotations
from shapmix.draws.plans import CropPlan
from shapmix.kernels import sample_clips
from shapmix.process.errors import DataError
from shapmix.reference.clips import Stream
from shapmix.skeleton.layout import Layout

__all__ = [
    "AugmentConfig",
    "augment_clips",
    "check_augment",
    "check_centred",
    "check_mirror",
    "check_two_sided",
    "one_sided",
    "pixel_among",
    "sides_of",
]

FRAMES_AT_ONCE = 1 << 14  # that are searched for pixels, so that a store need not fit into memory


def augment_clips(
    clips: Tensor, layout: Layout, config: AugmentConfig, *, seed: int, step: int, stream: Stream = "joint"
) -> Tensor:
    """Augments the training clips of a loop of your own; what it draws is a function of (seed, step).

    Args:
        clips: [N, C, T, V, M] joint coordinates without a score, of the layout, centred; missing joints are zero.
        config: what is changed. Clips are rotated only if `config.rotation` is given.
        stream: what the clips are converted to, afterwards.

    Returns:
        [N, C, T, V, M] in their dtype, without gradient.

    Raises:
        ValueError: clips of another shape.
        DataError: an augmentation that does not fit the clips, see `check_augment`, `check_centred` and `check_two_sided`.
    """
    if clips.dim() != 5 or clips.shape[3] != layout.num_joints:
        raise ValueError(f"clips has shape {list(clips.shape)}; give [N, C, T, {layout.num_joints}, M], the joints of the layout")
    n, dimension, num_frames, joints, people = clips.shape
    check_augment(config, layout, dimension)
    for name in config.multipliers:
        check_centred(f"augment.{name}", pixel_among(clips))
    if config.mirror:
        check_two_sided("augment.mirror", one_sided(clips.transpose(1, -1), layout.sideways(dimension)))
    device = clips.device
    rows, lengths = torch.arange(n, device=device), torch.full((n,), num_frames, device=device)
    angles = torch.zeros(n, 3, dtype=torch.float64, device=device)
    if config.rotation:
        angles = draw_rotations(rows, seed=seed, step=step, max_rotation=config.rotation)
    sides = sides_of(layout, dimension).to(device)
    plan = draw_augment(config, sides, lengths, dimension=dimension, seed=seed, step=step)
    frames = clips.permute(0, 2, 4, 3, 1).reshape(n * num_frames, people, joints, dimension)
    offsets = torch.arange(n + 1, device=device) * num_frames
    crops, parents = CropPlan(rows, torch.zeros_like(rows), lengths, angles), torch.tensor(layout.parents, device=device)
    return sample_clips(frames, offsets, crops, parents, stream=stream, num_frames=num_frames, augment=plan)


def sides_of(layout: Layout, dimension: int) -> Sides:
    """What the augmentation of clips of so many coordinates, without a score, needs of their layout."""
    return Sides(torch.tensor(layout.flips), layout.sideways(dimension), layout.part_of_joint, layout.num_parts)


def check_augment(config: AugmentConfig, layout: Layout, dimension: int) -> None:
    """Checks that an augmentation fits a layout and clips of so many coordinates, without a score.

    Raises:
        DataError: a layout without left-right pairs is mirrored, or coordinates are changed that are too few or too many.
    """
    for option in ("mirror", "swap"):
        if getattr(config, option):
            check_mirror(f"augment.{option}", layout)
    if config.rotation and dimension != 3:
        raise DataError(f"augment.rotation: only clips of 3 coordinates are rotated, and these have {dimension}; leave it out")
    if dimension > MOST_AXES and (config.multipliers or config.jitter or config.swap):
        raise DataError(f"augment: joints are moved in up to {MOST_AXES} coordinates, and these clips have {dimension}")


def check_mirror(option: str, layout: Layout) -> None:
    """Checks that a layout has left-right pairs, for the option that mirrors its clips.

    Raises:
        DataError: it has none; the message says what to add.
    """
    if layout.flips == tuple(range(layout.num_joints)):
        raise DataError(
            f"{option}: layout '{layout.name}' has no left-right pairs, so its clips cannot be mirrored; leave {option} out, "
            'or add the pairs to a copy of its file (flips = [["left_hand", "right_hand"], ...]) and prepare the data with it'
        )


def pixel_among(frames: Tensor) -> float | None:
    """The magnitude of a coordinate [F, ...] that can only be that of a pixel, or None; reads the frames up to there."""
    for part in frames.split(FRAMES_AT_ONCE):
        if (largest := float(part.abs().amax())) > OF_PIXELS:
            return largest
    return None


def one_sided(frames: Tensor, axis: int) -> bool:
    """Whether no coordinate of an axis of frames [F, ..., D] is negative; reads the frames up to the first that has one."""
    return all(float(part[..., axis].amin()) >= 0 for part in frames.split(FRAMES_AT_ONCE))


def check_two_sided(option: str, is_one_sided: bool) -> None:
    """Checks that clips are not `one_sided`, for the option that mirrors them about zero.

    Raises:
        DataError: they are.
    """
    if is_one_sided:
        raise DataError(
            f"{option}: clips are mirrored about zero, and no left-right coordinate of these is negative, as where coordinates are "
            f"relative to the corner of an image; subtract the middle before preparing them, or leave {option} out"
        )


def check_centred(option: str, pixel: float | None) -> None:
    """Checks `pixel_among` the clips, for the option that multiplies coordinates about zero.

    Raises:
        DataError: there is one.
    """
    if pixel is not None:
        raise DataError(
            f"{option}: coordinates are multiplied about zero, and these clips have coordinates beyond {OF_PIXELS:g} ({pixel:g}), "
            "such as pixels from the corner of an image; subtract the middle of the image and divide by its size before preparing "
            f"them, or leave {option} out"
        )
