"""Deviations of the published code from its paper, reproduced with `compat="official"`.

Here: class id instead of class size (`priority`), NTU's joint counts for every layout (`joint_counts`), 64 restored frames on
Kinetics (`restored_frames`), and the mean of first frames as the mean motion (`mean_motion`). Elsewhere: one coalition draw for
the whole batch (`Request(shared=True)`). Not reproduced: checkpoint selection on the test set, and a running sum instead of a mean
in the first epoch on Kinetics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shapmix.data.sampling import ClipSampler
from shapmix.draws.plans import FramePlan
from shapmix.process.errors import DataError
from shapmix.reference import sample_frames
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


def mean_motion(sampler: ClipSampler, clips: Tensor) -> Tensor:
    """[C, T, V, M]: mean of the first T frames of `clips` in the network's coordinates, zero-padded, in joint space.

    The stream does not matter. Frames are as recorded, except in pipeline "frames": each recording is centred and put into its box,
    as the network's input is, because a rest pose outside of the clips' range is no rest pose.

    Args:
        clips: [N] int64 indices of the training clips; one that is not finite is left out.

    Raises:
        DataError: no clip is finite.
    """
    store, frames = sampler.store, torch.arange(sampler.num_frames)
    total, finite = store.frames.new_zeros(sampler.num_frames, *store.frames.shape[1:], dtype=torch.float64), 0
    for clip in clips.tolist():
        begin, end = int(store.offsets[clip]), int(store.offsets[clip + 1])
        length = min(end - begin, sampler.num_frames)
        head = store.frames[begin : begin + length]
        if sampler.pipeline == "frames":
            head = _boxed(sampler, clip, frames[:length])
        if head.isfinite().all():
            total[:length] += head
            finite += 1
    if not finite:
        raise DataError(f"all {len(clips)} training clips are non-finite, so there is no mean motion; prepare the data again")
    return (total / finite).permute(3, 0, 2, 1).to(store.frames.dtype).contiguous()


def _boxed(sampler: ClipSampler, clip: int, frames: Tensor) -> Tensor:
    """[L, M, V, C]: frames [L] of a clip, centred and in its box, not turned."""
    store = sampler.store
    plan = FramePlan(torch.tensor([clip]), frames[None], torch.zeros(1, 3), torch.ones(1))
    parents = torch.tensor(store.layout.parents)
    found = sample_frames(store.frames, store.offsets, plan, parents, store.layout.centre)  # [1, C, L, V, M]
    return found[0].permute(1, 3, 2, 0)
