"""Pasting parts of a body onto another body: moved, scaled and turned to where they hang."""

from __future__ import annotations

import torch
from torch import Tensor

from shapmix.draws.plans import MixPlan
from shapmix.reference.mix import in_window, replaced, source_frames


def mix_aligned(
    clips: Tensor,
    plan: MixPlan,
    part_of_joint: Tensor,
    anchors: Tensor,
    bones: Tensor,
    pairs: Tensor,
    *,
    dimension: int,
    scores: bool,
    up: int,
) -> Tensor:
    """`mix_clips` with every pasted part moved to the joint of the host that it hangs from.

    A pasted joint keeps its offset from its anchor, the joint of the rest of the body that its part hangs from; the offset is
    scaled by the ratio of the bone lengths of host and partner and, in three dimensions, turned about the vertical axis from the
    facing of the partner to that of the host. The anchor is followed frame by frame, so that no bone is torn. Size and facing are
    one for the window (sums over its frames): those of a single frame are as noisy as its detection, and one for each frame would
    make the part tremble. Blended clips are those of `mix_clips`.

    Persons that are absent (all zero) from a frame of the host or of the partner, and, with scores, joints whose own position or
    anchor is missing (zero), are pasted as they are.

    Args:
        clips: [N, C, T, V, M] floating point joint positions, of the joint stream.
        plan: one row per sample.
        part_of_joint: [V] int64.
        anchors: [2^P, V] int64, for each set of pasted parts the anchor of each joint: the first joint towards the root that is not
            pasted, or the root.
        bones: [B, 2] int64, joint and parent.
        pairs: [S, 2] int64, left and right joints whose difference is the facing; not used in two dimensions.
        dimension: coordinates without the score, 2 or 3.
        scores: whether the last coordinate is a score.
        up: index of the vertical axis in three dimensions.

    Returns:
        [2N, C, T, V, M]: the clips followed by the mixed clips.
    """
    source = source_frames(plan, clips.shape[2], clips.dtype)
    taken = clips.transpose(1, 2)[plan.partner[:, None], source].transpose(1, 2)
    host, theirs = clips[:, :dimension], taken[:, :dimension]
    anchor = anchors[plan.parts][:, None, None, :, None]  # [N, 1, 1, V, 1]
    mine, other = (_seen(positions, scores) for positions in (host, theirs))  # [N, 1, T, V, M]
    both = mine & other & in_window(plan, clips.shape[2])[:, None, :, None, None]
    offset = (theirs - _at(theirs, anchor)) * _relative_size(host, theirs, both, bones)
    if dimension == 3:
        offset = _turned(offset, host, theirs, both, pairs, up)
    known = other & _at(mine & other, anchor)
    moved = torch.cat([torch.where(known, _at(host, anchor) + offset, theirs), taken[:, dimension:]], dim=1)
    pasted = torch.where(replaced(plan, part_of_joint, clips.shape[2]), moved, clips)
    keep, take = (share.to(clips.dtype).view(-1, 1, 1, 1, 1) for share in (1 - plan.lam, plan.lam))
    blended = clips * keep + clips[plan.partner] * take
    return torch.cat([clips, torch.where(plan.blend.view(-1, 1, 1, 1, 1), blended, pasted)])


def _seen(positions: Tensor, scores: bool) -> Tensor:
    """[N, 1, T, V, M] bool: joints that are not missing; without scores, joints of people that are not absent."""
    nonzero = (positions != 0).any(1, keepdim=True)
    return nonzero if scores else nonzero.any(3, keepdim=True).expand_as(nonzero)


def _at(values: Tensor, joint: Tensor) -> Tensor:
    """Values [N, C, T, V, M] of the joints [N, 1, 1, V, 1]."""
    return values.gather(3, joint.expand_as(values))


def _relative_size(host: Tensor, theirs: Tensor, both: Tensor, bones: Tensor) -> Tensor:
    """[N, 1, 1, 1, M]: sum of the host's bone lengths by that of the partner's, over bones that both show; 1 if one has none."""
    child, parent = bones[:, 0], bones[:, 1]
    shown = both[:, :, :, child] & both[:, :, :, parent]  # [N, 1, T, B, M]

    def total(positions: Tensor) -> Tensor:
        lengths = (positions[:, :, :, child] - positions[:, :, :, parent]).norm(dim=1, keepdim=True)
        return torch.where(shown, lengths, 0).sum((1, 2, 3), keepdim=True)

    mine, other = total(host), total(theirs)
    usable = (mine > 0) & (other > 0)
    return torch.where(usable, mine / torch.where(usable, other, 1), 1)


def _turned(offset: Tensor, host: Tensor, theirs: Tensor, both: Tensor, pairs: Tensor, up: int) -> Tensor:
    """Offsets [N, 3, T, V, M] turned about the vertical axis, from the facing of the partner to that of the host."""
    left, right = pairs[:, 0], pairs[:, 1]
    shown = both[:, :, :, left] & both[:, :, :, right]
    a, b = (axis for axis in range(3) if axis != up)

    def facing(positions: Tensor) -> tuple[Tensor, Tensor]:
        across = torch.where(shown, positions[:, :, :, left] - positions[:, :, :, right], 0).sum((2, 3), keepdim=True)
        return across[:, a], across[:, b]  # [N, 1, 1, M]

    (mine_a, mine_b), (other_a, other_b) = facing(host), facing(theirs)
    cosine, sine = mine_a * other_a + mine_b * other_b, mine_b * other_a - mine_a * other_b
    length = torch.hypot(cosine, sine)
    turns = length > 0
    length = torch.where(turns, length, 1)
    cosine, sine = torch.where(turns, cosine / length, 1), torch.where(turns, sine / length, 0)
    axes = list(offset.unbind(1))
    axes[a], axes[b] = cosine * axes[a] - sine * axes[b], sine * axes[a] + cosine * axes[b]
    return torch.stack(axes, dim=1)
