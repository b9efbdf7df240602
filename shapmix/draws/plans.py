"""Plans: results of random draws as plain tensors, applied by the ops (crops, frame selections, mixes)."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class CropPlan:
    """Input of `sample_clips`, one row per sample; made by `shapmix.draws.crops.draw_crops` or `centre_crops`.

    Attributes:
        clip: [N] int64, index of the recording.
        start, length: [N] int64 frames within the recording.
        angles: [N, 3] floating point radians about x, y, z.
    """

    clip: Tensor
    start: Tensor
    length: Tensor
    angles: Tensor


@dataclass(frozen=True)
class FramePlan:
    """Input of `sample_frames` and `pick_frames`, one row per sample; made by `draw_frames`, `even_frames`, `draw_segments` or
    `middle_segments` of `shapmix.draws.crops`.

    Attributes:
        clip: [N] int64, index of the recording.
        frames: [N, T] int64, frames within the recording.
        angles_deg: [N, 2] degrees about x, y.
        scale: [N] factor of the coordinates.
    """

    clip: Tensor
    frames: Tensor
    angles_deg: Tensor
    scale: Tensor


@dataclass(frozen=True)
class AugmentPlan:
    """How training clips are changed, one row per sample; made by `shapmix.draws.augment`. None: that change is not made.

    The order is fixed: `reversed` and `pace` when frames are picked, the rotation of the pipeline, `source` and `linear`, `jitter`,
    the conversion to the stream, `kept`.

    Attributes:
        reversed: [N] bool, clips that are played backwards.
        pace: [N, 2] floating point: speed, and a shift in frames. Output frame t of T, taken from L recorded frames, shows the
            position speed * (t + 1/2) * L / T + shift - 1/2, at least 0 and at most L - 1.
        source: [N, V] int64, the joint whose coordinates each joint shows: its counterpart in a mirrored clip.
        linear: [N, D, D] floating point, the matrix that coordinates are multiplied by, without the score; a missing joint, at
            zero, stays there.
        jitter: [N] floating point, standard deviation of the noise that is added to the coordinates of joints that are not missing,
            without the score; given with `jitter_key` [N] int64, the Philox key of the sample's noise.
        kept: [N, V] bool; the others are zero in the network's input, with their score.
    """

    reversed: Tensor | None = None
    pace: Tensor | None = None
    source: Tensor | None = None
    linear: Tensor | None = None
    jitter: Tensor | None = None
    jitter_key: Tensor | None = None
    kept: Tensor | None = None


@dataclass(frozen=True)
class MixPlan:
    """Input of `mix_clips`, one row per sample; made by `draw_plan`.

    Attributes:
        partner: [N] int64, the sample mixed in.
        parts: [N] int64 bit set of the parts taken from the partner.
        start, length: [N] int64 frames, the overwritten window.
        source_start, source_length: [N] int64 frames, the partner's window, resized to `length`.
        lam: [N] float64, the partner's share of the label.
        blend: [N] bool, True where the whole clips are blended by `lam` (Mixup) and the windows are ignored.
    """

    partner: Tensor
    parts: Tensor
    start: Tensor
    length: Tensor
    source_start: Tensor
    source_length: Tensor
    lam: Tensor
    blend: Tensor

    @property
    def label_share(self) -> Tensor:
        """[N] float32: lam as used to mix the labels; the published code rounds it only there."""
        return self.lam.float()

    def to(self, device: torch.device) -> MixPlan:
        """The same plan on another device."""
        return MixPlan(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})
