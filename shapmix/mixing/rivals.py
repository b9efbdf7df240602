"""Mixers that Shap-Mix is compared with, each one function of the batch.

All take clips [N, C, T, V, M], labels [N], the training clips of each class [K], the layout, and (seed, step), of which every draw
is a function; all return the mixed clips [N, C, T, V, M], the partner [N] of each and the partner's share [N] of its label. They
mix within the batch, clip by clip with draws of its own unless they say otherwise, and follow their papers except where they say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from shapmix.draws.philox import integers, random_words, uniform
from shapmix.skeleton.layout import Layout

_RIVAL = 6  # what the random words are for; see shapmix.draws.crops


class Mixed(NamedTuple):
    """Mixed clips [N, C, T, V, M], partners [N] int64 and their share [N] float32 of the label."""

    clips: Tensor
    partner: Tensor
    share: Tensor


class Draws:
    """Uniform numbers of a step, one row a clip."""

    def __init__(self, seed: int, step: int, rows: int, device: torch.device) -> None:
        self._of, self._rows, self._device, self._at = (seed, _RIVAL, step), rows, device, 0
        self._words = random_words(*self._of, rows, 64, device)

    def next(self, columns: int = 1) -> Tensor:
        """[rows, columns] int64 words."""
        self._at += columns
        if self._at > self._words.shape[1]:  # a row of more words begins with the same ones
            self._words = random_words(*self._of, self._rows, -(-self._at // 4) * 4, self._device)
        return self._words[:, self._at - columns : self._at]

    def share(self) -> Tensor:
        """[rows] float32 between 0 and 1: Beta(1, 1)."""
        return uniform(self.next()[:, 0]).float()

    def other(self) -> Tensor:
        """[rows] int64, another clip of the batch for each, all alike."""
        shift = integers(self.next()[:, 0], 1, self._rows - 1)
        return (torch.arange(self._rows, device=shift.device) + shift) % self._rows


def remix(clips: Tensor, labels: Tensor, counts: Tensor, layout: Layout, seed: int, step: int) -> Mixed:
    """Mixup whose label belongs to the rarer class alone where that class is 3 times rarer and its clip has less than half.

    Source: Chou et al., Remix, ECCV 2020 workshops, equation 5, with its kappa = 3 and tau = 0.5.
    """
    kappa, tau = 3.0, 0.5
    draws = Draws(seed, step, len(labels), clips.device)
    partner, share = draws.other(), draws.share()
    mixed = clips * _column(1 - share, clips) + clips[partner] * _column(share, clips)
    ratio = counts[labels].double() / counts[labels[partner]].double()
    share = torch.where((ratio >= kappa) & (1 - share < tau), torch.ones_like(share), share)
    share = torch.where((ratio <= 1 / kappa) & (share < tau), torch.zeros_like(share), share)
    return Mixed(mixed, partner, share)


def cutmix(clips: Tensor, labels: Tensor, counts: Tensor, layout: Layout, seed: int, step: int) -> Mixed:
    """A window of frames of random joints is the partner's; the label goes by its share of the clip.

    Source: Yun et al., CutMix, ICCV 2019. A skeleton has no rectangle of joints: as many are drawn as a side would have.
    """
    draws = Draws(seed, step, len(labels), clips.device)
    return _cut(clips, draws.other(), draws)


def cmo(clips: Tensor, labels: Tensor, counts: Tensor, layout: Layout, seed: int, step: int) -> Mixed:
    """CutMix that pastes the tail into the head: partners are drawn with the inverse of their class's size.

    Source: Park et al., CMO, CVPR 2022, q(1, k). There partners come from all training clips, here from the batch.
    """
    draws = Draws(seed, step, len(labels), clips.device)
    weight = 1 / counts[labels].double()
    place = uniform(draws.next()[:, 0]) * weight.sum()
    partner = torch.searchsorted(weight.cumsum(0), place).clamp(max=len(labels) - 1)
    return _cut(clips, partner, draws)


def skelemix(clips: Tensor, labels: Tensor, counts: Tensor, layout: Layout, seed: int, step: int) -> Mixed:
    """A window of frames of 1 to P - 1 body parts is the partner's, the same window, parts and shift for the whole batch.

    Source: Chen et al., SkeleMixCLR, AAAI 2023, whose windows are of 4 frames. It has no labels; their share here is that of the
    pasted joints and frames.
    """
    n, num_frames = len(labels), clips.shape[2]
    draws = Draws(seed, step, 1, clips.device)
    shift = integers(draws.next()[:, 0], 1, n - 1)
    partner = (torch.arange(n, device=clips.device) + shift) % n
    count = integers(draws.next()[:, 0], 1, layout.num_parts - 1)
    rank = draws.next(layout.num_parts)[0].argsort().argsort()
    joints = (rank < count)[layout.part_of_joint.to(clips.device)].expand(n, -1)  # [N, V]
    blocks = num_frames // 4
    length = integers(draws.next()[:, 0], 1, max(1, blocks - 1))
    start = integers(draws.next()[:, 0], 0, blocks - length)
    return _paste(clips, partner, (4 * start).expand(n), (4 * length).expand(n), joints)


def partial_mixup(clips: Tensor, labels: Tensor, counts: Tensor, layout: Layout, seed: int, step: int) -> Mixed:
    """The clip's upper body on the partner's legs; the label goes by the joints, or to the class that is 3 times rarer alone.

    Source: Liu et al., Balanced Representation Learning, arXiv 2308.14024, rebalanced partial mixup. There a sixteenth of a batch
    is mixed, and the pelvis counts as lower body on NTU; here the lower body is the layout's leg parts.

    Raises:
        ValueError: the layout has no parts with `leg` in their names.
    """
    legs = [name for name in layout.parts if "leg" in name]
    if not legs:
        raise ValueError(
            f"partial mixup needs parts with 'leg' in their names; layout '{layout.name}' has {', '.join(layout.parts)}"
        )
    kappa, n = 3, len(labels)
    partner = Draws(seed, step, n, clips.device).other()
    lower = torch.zeros(layout.num_joints, dtype=torch.bool, device=clips.device)
    lower[[joint for name in legs for joint in layout.parts[name]]] = True
    all_frames = torch.full((n,), clips.shape[2], device=clips.device)
    mixed, _, share = _paste(clips, partner, torch.zeros_like(all_frames), all_frames, lower.expand(n, -1))
    mine, theirs = counts[labels], counts[labels[partner]]
    share = torch.where(mine > kappa * theirs, torch.ones_like(share), share)
    return Mixed(mixed, partner, torch.where(theirs > kappa * mine, torch.zeros_like(share), share))


def spatial_mix(clips: Tensor, labels: Tensor, counts: Tensor, layout: Layout, seed: int, step: int) -> Mixed:
    """Each projection along an axis is the clip's or the partner's, and a coordinate is the mean of the projections that show it.

    Source: Xiang and Wang, JMDA, TOMM 2024, SpatialMix. One draw for the batch, as there. C = 3 coordinates.

    Raises:
        ValueError: clips without three coordinates.
    """
    if clips.shape[1] != 3:
        raise ValueError(f"SpatialMix projects clips of 3 coordinates, not {clips.shape[1]}")
    n = len(labels)
    draws = Draws(seed, step, 1, clips.device)
    shift = integers(draws.next()[:, 0], 1, n - 1)
    partner = (torch.arange(n, device=clips.device) + shift) % n
    theirs = uniform(draws.next(3)[0]).to(clips.dtype) < 0.5  # [3], of the projection along each axis
    share_of_axis = (theirs.sum() - theirs.to(torch.int64)).to(clips.dtype) / 2  # a coordinate is seen along the other two axes
    weight = share_of_axis.view(1, 3, 1, 1, 1)
    mixed = clips * (1 - weight) + clips[partner] * weight
    return Mixed(mixed, partner, (theirs.sum() / 3).float().expand(n))


def temporal_mix(clips: Tensor, labels: Tensor, counts: Tensor, layout: Layout, seed: int, step: int) -> Mixed:
    """The whole clip, resized to a part of the frames, and behind it the whole partner in the rest of them.

    Source: Xiang and Wang, JMDA, TOMM 2024, TemporalMix. One draw for the batch, as there.
    """
    n, num_frames = len(labels), clips.shape[2]
    draws = Draws(seed, step, 1, clips.device)
    shift = integers(draws.next()[:, 0], 1, n - 1)
    partner = (torch.arange(n, device=clips.device) + shift) % n
    own = min(max(1, int(num_frames * draws.share())), num_frames - 1)
    mixed = torch.cat([_resized(clips, own), _resized(clips[partner], num_frames - own)], dim=2)
    return Mixed(mixed, partner, torch.full((n,), 1 - own / num_frames, device=clips.device))


def bone_mix(clips: Tensor, labels: Tensor, counts: Tensor, layout: Layout, seed: int, step: int) -> Mixed:
    """Mixup of the directions of the bones, with the clip's own root and bone lengths: the body keeps its proportions.

    An approximation of mixing in the space of poses: directions are mixed linearly and made unit again, frame by frame. Joint
    stream only; a bone without length stays without.
    """
    draws = Draws(seed, step, len(labels), clips.device)
    partner, share = draws.other(), draws.share()
    parents = torch.tensor(layout.parents, device=clips.device)
    own, other = (x - x[:, :, :, parents] for x in (clips, clips[partner]))
    length = own.norm(dim=1, keepdim=True)
    tiny = torch.finfo(clips.dtype).tiny
    weight = _column(share, clips)
    direction = own / length.clamp(min=tiny) * (1 - weight) + other / other.norm(dim=1, keepdim=True).clamp(min=tiny) * weight
    bone = direction / direction.norm(dim=1, keepdim=True).clamp(min=tiny) * length
    joints = list(clips.unbind(3))
    for joint in _outwards(layout):
        joints[joint] = joints[layout.parents[joint]] + bone[:, :, :, joint]
    return Mixed(torch.stack(joints, dim=3), partner, share)


RIVALS: dict[str, Callable[[Tensor, Tensor, Tensor, Layout, int, int], Mixed]] = {
    "remix": remix,
    "cutmix": cutmix,
    "cmo": cmo,
    "skelemix": skelemix,
    "partial_mixup": partial_mixup,
    "spatial_mix": spatial_mix,
    "temporal_mix": temporal_mix,
    "bone_mix": bone_mix,
}


def _column(share: Tensor, clips: Tensor) -> Tensor:
    return share.to(clips.dtype).view(-1, 1, 1, 1, 1)


def _outwards(layout: Layout) -> list[int]:
    """Every joint but the root, behind its parent."""

    def depth(joint: int) -> int:
        parent = layout.parents[joint]
        return 0 if parent == joint else 1 + depth(parent)

    return sorted((joint for joint in range(layout.num_joints) if depth(joint)), key=depth)


def _resized(clips: Tensor, num_frames: int) -> Tensor:
    n, channels, frames, joints, people = clips.shape
    flat = clips.permute(0, 1, 3, 4, 2).reshape(n, -1, frames)
    resized = interpolate(flat, size=num_frames, mode="linear", align_corners=False)
    return resized.view(n, channels, joints, people, num_frames).permute(0, 1, 4, 2, 3)


def _cut(clips: Tensor, partner: Tensor, draws: Draws) -> Mixed:
    """A window and joints whose sides are the root of a uniform share of the clip."""
    _, _, num_frames, num_joints, _ = clips.shape
    side = draws.share().sqrt()
    length = (side * num_frames).round().long()
    start = integers(draws.next()[:, 0], 0, num_frames - length)
    rank = draws.next(num_joints).argsort(1).argsort(1)
    return _paste(clips, partner, start, length, rank < (side * num_joints).round()[:, None])


def _paste(clips: Tensor, partner: Tensor, start: Tensor, length: Tensor, joints: Tensor) -> Mixed:
    """Frames start to start + length of `joints` [N, V] bool are the partner's."""
    frame = torch.arange(clips.shape[2], device=clips.device)
    window = (frame >= start[:, None]) & (frame < (start + length)[:, None])
    pasted = window[:, None, :, None, None] & joints[:, None, None, :, None]
    return Mixed(torch.where(pasted, clips[partner], clips), partner, pasted.float().mean((1, 2, 3, 4)))
