"""Coalition inputs: network input in which only the parts of a coalition keep their motion."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class CoalitionClips:
    """Clips under coalitions, before they are expanded: row l is clip `samples[l]` under `coalitions[l]`.

    Fused layers read the clips and coalitions themselves; `shapmix.kernels.expanded` makes the rows for everything else.

    Attributes:
        clips, mean_motion, part_of_joint, restored_frames: as in `coalition_inputs`.
        samples: [L] int64 indices of clips.
        coalitions: [L] int64 bit sets of parts.
    """

    clips: Tensor
    mean_motion: Tensor
    samples: Tensor
    coalitions: Tensor
    part_of_joint: Tensor
    restored_frames: int | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, rows: slice) -> CoalitionClips:
        """Some of the rows."""
        return replace(self, samples=self.samples[rows], coalitions=self.coalitions[rows])

    @property
    def shape(self) -> tuple[int, ...]:
        """(L, C, T, V, M), as of the expanded rows."""
        return len(self), *self.clips.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        """That of the clips."""
        return self.clips.dtype

    @property
    def device(self) -> torch.device:
        """That of the clips."""
        return self.clips.device


def coalition_inputs(
    clips: Tensor, mean_motion: Tensor, coalitions: Tensor, part_of_joint: Tensor, *, restored_frames: int | None = None
) -> Tensor:
    """Clips with the parts outside each coalition replaced by the mean motion.

    Args:
        clips: [N, C, T, V, M] floating point.
        mean_motion: [C, T, V, M], same dtype.
        coalitions: int64 bit sets of parts (bit p = part p keeps the clip's motion): [S], shared by the batch, or
            [S, N], one per sample.
        part_of_joint: [V] int64.
        restored_frames: only frames before this one keep the clip's motion, later frames are the mean motion for every
            coalition (the published code uses 64 on 100-frame clips); None restores all frames.

    Returns:
        [S * N, C, T, V, M]: row s * N + n is sample n under its coalition s. The same parts are kept for all people.

    Source: paper section 3.2; fixtures `saliency_*`.
    """
    keep = kept(coalitions, part_of_joint, clips.shape[2], restored_frames)
    return torch.where(keep, clips, mean_motion).flatten(0, 1)


def kept(coalitions: Tensor, part_of_joint: Tensor, num_frames: int, restored_frames: int | None) -> Tensor:
    """[S, 1 or N, 1, 1 or T, V, 1] bool mask of the kept motion; arguments as in `coalition_inputs`."""
    if coalitions.dim() == 1:
        coalitions = coalitions.unsqueeze(1)
    keep = (coalitions.unsqueeze(-1) >> part_of_joint) & 1  # [S, 1 or N, V]
    keep = keep.bool()[:, :, None, None, :, None]
    if restored_frames is None:
        return keep
    frame = torch.arange(num_frames, device=coalitions.device)
    return keep & (frame < restored_frames)[:, None, None]
