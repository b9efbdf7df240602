"""Augmentation of training clips: its options, and its draws as functions of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shapmix.draws.philox import integers, random_words, uniform
from shapmix.draws.plans import AugmentPlan
from shapmix.draws.purposes import AUGMENT, DROPPED_JOINTS

MOST_AXES = 4  # coordinates of a joint that can be augmented, without a score

# The random words of a sample. Each augmentation has its own, so that its draw does not depend on which others are on.
_MIRROR, _SCALE, _STRETCH, _SHEAR = 0, 1, slice(2, 6), slice(6, 18)
_REVERSE, _SPEED, _SHIFT, _LOSES, _LOST, _KEY, _SWAP = 18, 19, 20, 21, 22, slice(23, 25), 25
_WORDS = 28

Range = tuple[float, float]  # the least and the largest value that is drawn
ONE: Range = (1.0, 1.0)


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training clips, all off by default.

    Coordinates are multiplied about zero, so clips must be centred: on a joint, in a box, or on the middle of a normalised image.
    The order is: reverse and speed, the rotation of the pipeline (then the box of NW-UCLA), mirror, scale, stretch, shear, jitter,
    the stream, and the dropped joints. Each has its own random numbers, which do not depend on what else is on."""

    mirror: float = 0.0
    """Probability that a clip is mirrored: left and right joints are swapped by the layout's flips, and x is negated (y where x
    points up)."""
    swap: float = 0.0
    """Probability that left and right joints are swapped and the coordinates stay, as AimCLR and BRL do; mirror negates x too."""
    scale: Range = ONE
    """Range of a factor of all coordinates, one per clip."""
    stretch: Range = ONE
    """Range of a factor of each coordinate, one per clip and axis."""
    shear: float = 0.0
    """Largest share of each coordinate that is added to each other one, drawn from -shear to shear per clip."""
    rotation: float | None = None
    """Largest rotation of 3D clips about each axis in radians (NW-UCLA: about x and y, in whole degrees). None: as published, 0.3
    and for NW-UCLA 60 degrees."""
    jitter: float = 0.0
    """Standard deviation of the noise of every coordinate, joint and frame, in units of the recordings (NW-UCLA: of the box)."""
    reverse: float = 0.0
    """Probability that a clip is played backwards."""
    speed: Range = ONE
    """Range of the speed. A faster clip stands still before and after; of a slower one a part is seen."""
    part_drop: float = 0.0
    """Probability that one body part of a clip, each equally likely, is zero in the network's input."""
    joint_drop: float = 0.0
    """Probability of each joint of a clip to be zero in the network's input."""

    @property
    def multipliers(self) -> tuple[str, ...]:
        """The options that are on and multiply coordinates about zero."""
        return tuple(
            name for name, off in (("mirror", 0), ("scale", ONE), ("stretch", ONE), ("shear", 0)) if getattr(self, name) != off
        )

    @property
    def retimes(self) -> bool:
        """Whether other frames are picked."""
        return bool(self.reverse) or self.speed != ONE

    @property
    def on(self) -> bool:
        """Whether there is an `AugmentPlan` to draw; the rotation belongs to the plans of crops and frames."""
        return bool(self.multipliers) or self.retimes or bool(self.swap or self.jitter or self.part_drop or self.joint_drop)


@dataclass(frozen=True)
class Sides:
    """What of a skeleton augmentation needs.

    Attributes:
        flips: [V] int64, the counterpart of each joint when left and right are swapped.
        axis: the left-right coordinate.
        part_of_joint: [V] int64.
        parts: number of parts.
    """

    flips: Tensor
    axis: int
    part_of_joint: Tensor
    parts: int

    def to(self, device: torch.device) -> Sides:
        """The same skeleton with its tensors on `device`."""
        return Sides(self.flips.to(device), self.axis, self.part_of_joint.to(device), self.parts)


def draw_augment(
    config: AugmentConfig, sides: Sides, lengths: Tensor, *, dimension: int, seed: int, step: int | Tensor
) -> AugmentPlan | None:
    """Draws the augmentation of a batch; None if all of it is off.

    Args:
        lengths: [N] int64, number of frames of each recording or crop.
        dimension: D, number of coordinates without the score, at most `MOST_AXES`.
        step: a 0-dim int64 tensor on the device of `lengths` avoids a host sync.
    """
    if not config.on:
        return None
    n, device = len(lengths), lengths.device
    words = random_words(seed, AUGMENT, step, n, _WORDS, device)
    mirrored, swapped = uniform(words[:, _MIRROR]) < config.mirror, uniform(words[:, _SWAP]) < config.swap
    flipped = (mirrored ^ swapped)[:, None]
    source = torch.where(flipped, sides.flips, torch.arange(len(sides.flips), device=device))
    return AugmentPlan(
        reversed=uniform(words[:, _REVERSE]) < config.reverse if config.reverse else None,
        pace=_pace(config.speed, words, lengths) if config.speed != ONE else None,
        source=source if config.mirror or config.swap else None,
        linear=_linear(config, words, mirrored, sides.axis, dimension) if config.multipliers else None,
        jitter=torch.full((n,), config.jitter, dtype=torch.float64, device=device) if config.jitter else None,
        jitter_key=_key(words) if config.jitter else None,
        kept=_kept(config, sides, words, seed, step) if config.part_drop or config.joint_drop else None,
    )


def mirror_all(sides: Sides, clips: int, dimension: int) -> AugmentPlan:
    """The plan that mirrors every one of `clips` samples of so many coordinates (without the score), for a mirrored test."""
    device = sides.flips.device
    ones = torch.ones(clips, dimension, dtype=torch.float64, device=device)
    axis = torch.arange(dimension, device=device) == sides.axis
    return AugmentPlan(source=sides.flips.expand(clips, -1), linear=torch.diag_embed(torch.where(axis, -ones, ones)))


def _linear(config: AugmentConfig, words: Tensor, mirrored: Tensor, axis: int, dimension: int) -> Tensor:
    """[N, D, D] float64: mirror, then scale and stretch, then shear."""
    factor = _between(words[:, _STRETCH][:, :dimension], config.stretch) * _between(words[:, _SCALE], config.scale)[:, None]
    negated = mirrored[:, None] & (torch.arange(dimension, device=words.device) == axis)
    factor = torch.where(negated, -factor, factor)
    # words of the off-diagonal of a 4 x 4 matrix, a row after the other
    share = torch.zeros(len(words), MOST_AXES * MOST_AXES, dtype=torch.float64, device=words.device)
    off = uniform(words[:, _SHEAR]) * 2 - 1
    share[:, 1:].view(len(words), MOST_AXES - 1, MOST_AXES + 1)[..., :MOST_AXES] = off.view(len(words), MOST_AXES - 1, MOST_AXES)
    shear = config.shear * share.view(len(words), MOST_AXES, MOST_AXES)[:, :dimension, :dimension]
    return (torch.eye(dimension, dtype=torch.float64, device=words.device) + shear) * factor[:, None, :]


def _pace(speeds: Range, words: Tensor, lengths: Tensor) -> Tensor:
    """[N, 2] float64: speed, and where the clip begins so that what is left of it or over it is before and after at random."""
    speed = _between(words[:, _SPEED], speeds)
    return torch.stack([speed, uniform(words[:, _SHIFT]) * (1 - speed) * lengths], 1)


def _kept(config: AugmentConfig, sides: Sides, words: Tensor, seed: int, step: int | Tensor) -> Tensor:
    """[N, V] bool."""
    joints = len(sides.flips)
    loses = uniform(words[:, _LOSES]) < config.part_drop
    lost = integers(words[:, _LOST], 0, sides.parts - 1)
    kept = ~(loses[:, None] & (sides.part_of_joint == lost[:, None]))
    if config.joint_drop:
        each = random_words(seed, DROPPED_JOINTS, step, len(words), -(-joints // 4) * 4, words.device)[:, :joints]
        kept = kept & (uniform(each) >= config.joint_drop)
    return kept


def _key(words: Tensor) -> Tensor:
    low, high = words[:, _KEY].unbind(1)
    return low | high << 32


def _between(words: Tensor, of: Range) -> Tensor:
    return of[0] + (of[1] - of[0]) * uniform(words)
