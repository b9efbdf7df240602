"""Coalition inputs: what the network sees when only some body parts keep their motion."""

from __future__ import annotations

import torch
from torch import Tensor


def coalition_inputs(
    clips: Tensor, mean_motion: Tensor, coalitions: Tensor, part_of_joint: Tensor, *, restored_frames: int | None = None
) -> Tensor:
    """Clips with the parts outside each coalition replaced by the mean motion.

    Args:
        clips: [N, C, T, V, M] floating point.
        mean_motion: [C, T, V, M], same dtype.
        coalitions: int64 bit sets of parts (bit p = part p keeps the clip's motion): [S], shared by the batch, or
            [S, N], one a sample.
        part_of_joint: [V] int64.
        restored_frames: only frames before this one keep the clip's motion, the rest stay the mean motion whatever the
            coalition (the published code on 100-frame clips: 64); None restores every frame.

    Returns:
        [S * N, C, T, V, M]: row s * N + n is sample n under its coalition s. All people are treated alike.

    Source: paper section 3.2; fixtures `saliency_*`.
    """
    if coalitions.dim() == 1:
        coalitions = coalitions.unsqueeze(1)
    keep = (coalitions.unsqueeze(-1) >> part_of_joint) & 1  # [S, 1 or N, V]
    keep = keep.bool()[:, :, None, None, :, None]  # [S, 1 or N, C, T, V, M]
    if restored_frames is not None:
        frame = torch.arange(clips.shape[2], device=clips.device)
        keep = keep & (frame < restored_frames)[:, None, None]
    return torch.where(keep, clips, mean_motion).flatten(0, 1)
