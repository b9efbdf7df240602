"""Deviations of the published code from its paper, reproduced with `compat="official"`.

Three of them are options of other functions: one coalition draw for the whole batch (`Request(shared=True)`), class id
instead of class size (`priority`), and the mean of raw frames as the mean motion (`mean_motion`). Not reproduced: checkpoint
selection on the test set, and a running sum instead of a mean in the first epoch on Kinetics.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from shapmix.process.errors import DataError
from shapmix.skeleton.layout import Layout

NTU_JOINT_COUNTS = (5, 6, 6, 4, 4)
RESTORED_FRAMES = 64


def priority(num_classes: int) -> Tensor:
    """[K] priority where a smaller class id counts as more training samples."""
    return num_classes - torch.arange(num_classes)


def joint_counts(layout: Layout) -> Tensor:
    """[Q] joints in each combination for the scaling of the saliency: the counts of NTU, for every five-part layout.

    Raises:
        ValueError: the layout does not have five parts; the published code has no rule for it.
    """
    if layout.num_parts != len(NTU_JOINT_COUNTS):
        raise ValueError(f"compat='official' is defined for five parts; layout '{layout.name}' has {layout.num_parts}")
    member = layout.combinations[:, None] >> torch.arange(layout.num_parts) & 1
    return (member * torch.tensor(NTU_JOINT_COUNTS)).sum(1)


def restored_frames(layout: Layout) -> int | None:
    """Frames that a coalition keeps: only the first 64 for the Kinetics layout, all otherwise."""
    return RESTORED_FRAMES if layout.name == "coco17" else None


def mean_motion(frames: Tensor, offsets: Tensor, clips: Tensor, num_frames: int) -> Tensor:
    """[C, T, V, M]: mean of the first T raw frames of `clips`, zero-padded, in joint space whatever the stream.

    Args:
        frames: [F, M, V, C]; offsets: [n + 1] int64, as in `ClipStore`.
        clips: [N] int64 indices of the training clips; one that is not finite is left out.

    Raises:
        DataError: no clip is finite.
    """
    total, finite = frames.new_zeros(num_frames, *frames.shape[1:], dtype=torch.float64), 0
    for clip in clips.tolist():
        head = frames[int(offsets[clip]) : int(offsets[clip + 1])][:num_frames]
        if head.isfinite().all():
            total += pad(head, (0, 0, 0, 0, 0, 0, 0, num_frames - len(head)))
            finite += 1
    if not finite:
        raise DataError(f"all {len(clips)} training clips are non-finite, so there is no mean motion; prepare the data again")
    return (total / finite).permute(3, 0, 2, 1).to(frames.dtype).contiguous()
