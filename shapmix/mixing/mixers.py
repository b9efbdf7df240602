"""Mixers. Each is one registered function of the batch; `--mix`, `ShapMix(mix=...)`, help texts and errors list the registry.

They mix within the batch, with separate draws per clip unless stated otherwise, and follow their papers except where stated. To add
a custom mixer, register it before `ShapMix` or a configuration uses it:

    @mixer("half")
    def half(batch: Batch) -> MixedBatch:
        partner = batch.draws().other()
        return batch.mixed((batch.clips + batch.clips[partner]) / 2, partner, torch.full(partner.shape, 0.5))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from shapmix.draws.philox import integers, random_words, uniform
from shapmix.draws.plans import MixPlan
from shapmix.draws.purposes import MIXER
from shapmix.kernels import draw_plan, mix_clips
from shapmix.process.choices import Registry
from shapmix.reference.plan import draw_window, drawn_parts, inverse_partners, mix_plan, partner_of
from shapmix.skeleton.layout import Layout


class MixedBatch(NamedTuple):
    """A batch [clean; mixed] and its mixed labels.

    clips [2N, C, T, V, M] (or [N, ...] without mixed clips), labels [N], partner [N], the partner's share of the label [N], and the
    step.
    """

    clips: Tensor
    labels: Tensor
    partner: Tensor
    share: Tensor
    step: int = 0


class Pasting(NamedTuple):
    """How shapmix and stmix paste: the arguments of `draw_plan` that are the same in every step, and other rules than the paper's.

    warmed_up: whether the saliency is already known. inverse: partners are drawn by inverse class frequency. each: every clip draws
    its own window. aligned: maps clips, a plan and the part of each joint to the batch [clean; mixed], in place of `mix_clips`.
    """

    saliency: Tensor  # [K, Q]
    priority: Tensor  # [K]
    combinations: Tensor  # [Q] bit sets
    part_of_joint: Tensor  # [V]
    temperature: float
    blend_probability: float
    warmed_up: bool
    backend: str | None
    inverse: bool = False
    each: bool = False
    aligned: Callable[[Tensor, MixPlan, Tensor], Tensor] | None = None


class Batch(NamedTuple):
    """The input of a mixer: clips [N, C, T, V, M], labels [N], training clips per class [K], the layout, and (seed, step).

    Draws are functions of (seed, step). `counter` is the step as a tensor on the device of the clips if no value may be read on the
    host; it is only passed to mixers registered with `on_device=True`.
    """

    clips: Tensor
    labels: Tensor
    counts: Tensor
    layout: Layout
    seed: int
    step: int
    counter: Tensor | None
    pasting: Pasting
    second: Tensor | None = None  # another sampling of the same clips: for mixers registered with `views=2`, or to be mixed

    def draws(self, rows: int | None = None) -> Draws:
        """Random numbers of this step, by default one row per clip."""
        return Draws(self.seed, self.step, len(self.labels) if rows is None else rows, self.clips.device)

    def mixed(self, clips: Tensor, partner: Tensor, share: Tensor) -> MixedBatch:
        """The batch [clean; mixed] of mixed clips [N, C, T, V, M], partners [N] int64 and their share [N] float32 of the label."""
        return MixedBatch(torch.cat([self.clips, clips]), self.labels, partner, share, self.step)


Unfit = Callable[[Layout, int, bool], str | None]
"""(layout, coordinates without the score, whether there is a score) -> why a mixer cannot mix such clips, None if it can."""


def _fits_all(layout: Layout, dimension: int, scores: bool) -> str | None:
    return None


def _scored(layout: Layout, dimension: int, scores: bool) -> str | None:
    return "would mix the confidence score as a coordinate" if scores else None


def _not_in_space(layout: Layout, dimension: int, scores: bool) -> str | None:
    return f"projects clips of 3 coordinates, not {dimension}" if dimension != 3 else _scored(layout, dimension, scores)


def _without_legs(layout: Layout, dimension: int, scores: bool) -> str | None:
    if any("leg" in name for name in layout.parts):
        return None
    return f"needs parts with 'leg' in their names; layout '{layout.name}' has {', '.join(layout.parts)}"


class Mixer(NamedTuple):
    """A registered mixer with its properties, see `mixer`."""

    mix: Callable[[Batch], MixedBatch]
    on_device: bool
    guided: bool
    unfit: Unfit
    views: int
    mixes: bool
    positions: bool


MIXERS = Registry[Mixer]("mix")


def mixer(
    name: str,
    *,
    on_device: bool = False,
    guided: bool = False,
    unfit: Unfit = _fits_all,
    views: int = 1,
    mixes: bool = True,
    positions: bool = False,
) -> Callable[[Callable[[Batch], MixedBatch]], Callable[[Batch], MixedBatch]]:
    """Registers a mixer under a name.

    Args:
        on_device: it reads no value on the host and draws from `batch.counter` if given, so it can be captured in a CUDA graph.
        guided: it uses the class saliency, which is then measured in every step.
        unfit: says why it cannot mix some clips, before training.
        views: 2 if it takes a second sampling of the clips as `batch.second`.
        mixes: False if no clip of its batch is a mix, so that batches of any size and any number of frames will do.
        positions: it mixes positions of joints, so that the trainer refuses other streams.

    Raises:
        ValueError: the name is already registered.
    """

    def register(mix: Callable[[Batch], MixedBatch]) -> Callable[[Batch], MixedBatch]:
        MIXERS.add(name, Mixer(mix, on_device, guided, unfit, views, mixes, positions))
        return mix

    return register


class Draws:
    """Random numbers of a step, one row per clip."""

    def __init__(self, seed: int, step: int, rows: int, device: torch.device) -> None:
        self._of, self._rows, self._device, self._at = (seed, MIXER, step), rows, device, 0
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
        """[rows] int64, a different clip of the batch for each, uniformly distributed."""
        return partner_of(self._rows, integers(self.next()[:, 0], 1, self._rows - 1))

    def same_shift(self, clips: int) -> Tensor:
        """[clips] int64, for each clip the one that is as many places on; the same number for the whole batch."""
        return partner_of(clips, integers(self.next()[0, 0], 1, clips - 1))


@mixer("none", on_device=True, mixes=False)
def none(batch: Batch) -> MixedBatch:
    """Only the clean clips."""
    itself = torch.arange(len(batch.labels), device=batch.labels.device)
    return MixedBatch(batch.clips, batch.labels, itself, torch.zeros(len(itself), device=batch.clips.device), batch.step)


@mixer("two_views", views=2, mixes=False)
def two_views(batch: Batch) -> MixedBatch:
    """A second sampling of every clip in place of a mixed one: the control of what two views and two losses do without mixing."""
    assert batch.second is not None
    itself = torch.arange(len(batch.labels), device=batch.labels.device)
    return batch.mixed(batch.second, itself, torch.zeros(len(itself), device=batch.clips.device))


@mixer("mixup", on_device=True)
def mixup(batch: Batch) -> MixedBatch:
    """Blends whole clips. Source: Zhang et al., mixup, ICLR 2018."""
    return _pasted(batch, batch.pasting._replace(blend_probability=1.0), guided=False)


@mixer("stmix", on_device=True)
def stmix(batch: Batch) -> MixedBatch:
    """Shap-Mix without saliency: pastes random parts."""
    return _pasted(batch, batch.pasting, guided=False)


@mixer("shapmix", on_device=True, guided=True)
def shapmix(batch: Batch) -> MixedBatch:
    """The rarer class of a pair keeps, or contributes, parts drawn by its saliency, once that is known."""
    return _pasted(batch, batch.pasting, guided=batch.pasting.warmed_up)


@mixer("remix")
def remix(batch: Batch) -> MixedBatch:
    """Mixup whose label is the rarer class alone if that class is at least 3 times rarer and more than half of the mix.

    Source: Chou et al., Remix, ECCV 2020 workshops, equation 5, with its kappa = 3 and tau = 0.5.
    """
    clips, labels, counts = batch.clips, batch.labels, batch.counts
    kappa, tau = 3.0, 0.5
    draws = batch.draws()
    partner, share = draws.other(), draws.share()
    mixed = clips * _column(1 - share, clips) + clips[partner] * _column(share, clips)
    ratio = counts[labels].double() / counts[labels[partner]].double()
    share = torch.where((ratio >= kappa) & (1 - share < tau), torch.ones_like(share), share)
    share = torch.where((ratio <= 1 / kappa) & (share < tau), torch.zeros_like(share), share)
    return batch.mixed(mixed, partner, share)


@mixer("cutmix")
def cutmix(batch: Batch) -> MixedBatch:
    """Pastes a window of frames of random joints of the partner; its label share is the pasted fraction of the clip.

    Source: Yun et al., CutMix, ICCV 2019. Joints have no rectangles, so as many joints are drawn as the side would have.
    """
    draws = batch.draws()
    return _cut(batch, draws.other(), draws)


@mixer("cmo")
def cmo(batch: Batch) -> MixedBatch:
    """CutMix that pastes tail classes into head classes: partners are drawn with the inverse frequency of their class.

    Source: Park et al., CMO, CVPR 2022, q(1, k). Partners are drawn from the batch instead of all training clips.
    """
    labels = batch.labels
    draws = batch.draws()
    weight = 1 / batch.counts[labels].double()
    place = uniform(draws.next()[:, 0]) * weight.sum()
    partner = torch.searchsorted(weight.cumsum(0), place).clamp(max=len(labels) - 1)
    return _cut(batch, partner, draws)


@mixer("skelemix")
def skelemix(batch: Batch) -> MixedBatch:
    """Pastes a window of frames of 1 to P - 1 body parts of the partner; the batch shares window, parts and shift.

    Source: Chen et al., SkeleMixCLR, AAAI 2023, with windows of 4 frames. The paper has no labels; the label share here is the
    fraction of pasted joints and frames.
    """
    clips, layout, n = batch.clips, batch.layout, len(batch.labels)
    num_frames = clips.shape[2]
    draws = batch.draws(1)
    partner = draws.same_shift(n)
    count = integers(draws.next()[:, 0], 1, layout.num_parts - 1)
    rank = draws.next(layout.num_parts)[0].argsort().argsort()
    joints = (rank < count)[layout.part_of_joint.to(clips.device)].expand(n, -1)  # [N, V]
    blocks = num_frames // 4
    length = integers(draws.next()[:, 0], 1, max(1, blocks - 1))
    start = integers(draws.next()[:, 0], 0, blocks - length)
    return batch.mixed(*_paste(clips, partner, (4 * start).expand(n), (4 * length).expand(n), joints))


@mixer("partial_mixup", unfit=_without_legs)
def partial_mixup(batch: Batch) -> MixedBatch:
    """Combines the clip's upper body with the partner's legs; labels by number of joints, or a class alone if it is 3 times rarer.

    Source: Liu et al., Balanced Representation Learning, arXiv 2308.14024, rebalanced partial mixup. The paper mixes a sixteenth of
    a batch and counts the pelvis as lower body on NTU; here the lower body is the layout's leg parts.
    """
    clips, labels, counts, layout = batch.clips, batch.labels, batch.counts, batch.layout
    legs = [name for name in layout.parts if "leg" in name]
    kappa, n = 3, len(labels)
    partner = batch.draws().other()
    lower = torch.zeros(layout.num_joints, dtype=torch.bool, device=clips.device)
    lower[[joint for name in legs for joint in layout.parts[name]]] = True
    all_frames = torch.full((n,), clips.shape[2], device=clips.device)
    mixed, _, share = _paste(clips, partner, torch.zeros_like(all_frames), all_frames, lower.expand(n, -1))
    mine, theirs = counts[labels], counts[labels[partner]]
    share = torch.where(mine > kappa * theirs, torch.ones_like(share), share)
    return batch.mixed(mixed, partner, torch.where(theirs > kappa * mine, torch.zeros_like(share), share))


@mixer("spatial_mix", unfit=_not_in_space)
def spatial_mix(batch: Batch) -> MixedBatch:
    """Takes each projection along an axis from the clip or the partner; a coordinate is the mean over projections that contain it.

    Source: Xiang and Wang, JMDA, TOMM 2024, SpatialMix. One draw per batch, as in the paper. Needs C = 3 coordinates.
    """
    clips, n = batch.clips, len(batch.labels)
    draws = batch.draws(1)
    partner = draws.same_shift(n)
    theirs = uniform(draws.next(3)[0]).to(clips.dtype) < 0.5  # [3], of the projection along each axis
    share_of_axis = (theirs.sum() - theirs.to(torch.int64)).to(clips.dtype) / 2  # a coordinate is seen along the other two axes
    weight = share_of_axis.view(1, 3, 1, 1, 1)
    mixed = clips * (1 - weight) + clips[partner] * weight
    return batch.mixed(mixed, partner, (theirs.sum() / 3).float().expand(n))


@mixer("temporal_mix")
def temporal_mix(batch: Batch) -> MixedBatch:
    """Concatenates the whole clip and the whole partner in time, each resized to a part of the frames.

    Source: Xiang and Wang, JMDA, TOMM 2024, TemporalMix. One draw per batch, as in the paper.
    """
    clips, n = batch.clips, len(batch.labels)
    num_frames = clips.shape[2]
    draws = batch.draws(1)
    partner = draws.same_shift(n)
    own = min(max(1, int(num_frames * draws.share())), num_frames - 1)
    mixed = torch.cat([_resized(clips, own), _resized(clips[partner], num_frames - own)], dim=2)
    return batch.mixed(mixed, partner, torch.full((n,), 1 - own / num_frames, device=clips.device))


@mixer("bone_mix", unfit=_scored, positions=True)
def bone_mix(batch: Batch) -> MixedBatch:
    """Mixup of bone directions, with root and bone lengths of the clip, so that body proportions are preserved.

    An approximation of mixing in pose space: directions are mixed linearly and renormalised per frame. Bones of zero length remain
    so.
    """
    clips, layout = batch.clips, batch.layout
    draws = batch.draws()
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
    return batch.mixed(torch.stack(joints, dim=3), partner, share)


def _pasted(batch: Batch, pasting: Pasting, *, guided: bool) -> MixedBatch:
    """Pastes parts in a window of frames, or blends whole clips, according to a drawn plan."""
    plan = _planned(batch, pasting, guided=guided)
    clips = batch.clips if batch.second is None else batch.second
    if pasting.aligned is None:
        both = mix_clips(clips, plan, pasting.part_of_joint, backend=pasting.backend)
    else:
        both = pasting.aligned(clips, plan, pasting.part_of_joint)
    if batch.second is not None:
        both = torch.cat([batch.clips, both[len(clips) :]])
    return MixedBatch(both, batch.labels, plan.partner, plan.label_share, batch.step)


def _planned(batch: Batch, pasting: Pasting, *, guided: bool) -> MixPlan:
    if pasting.inverse or pasting.each:
        return plan_on_trial(batch, pasting, guided=guided)
    tables = (pasting.saliency, pasting.priority, pasting.combinations, pasting.part_of_joint, batch.clips.shape[2])
    return draw_plan(
        batch.labels,
        *tables,
        seed=batch.seed,
        step=batch.step if batch.counter is None else batch.counter,
        guided=guided,
        temperature=pasting.temperature,
        blend_probability=pasting.blend_probability,
        backend=pasting.backend,
    )


def plan_on_trial(batch: Batch, pasting: Pasting, *, guided: bool) -> MixPlan:
    """The plan of `draw_plan`, but with partners drawn by `inverse_partners`, with windows of each clip's own, or with both.

    Raises:
        ValueError: as `draw_plan`.
    """
    labels, frames = batch.labels, batch.clips.shape[2]
    drawn: dict[str, Any] = {"seed": batch.seed, "step": batch.step if batch.counter is None else batch.counter}
    blend, each = pasting.blend_probability, pasting.each
    window = draw_window(len(labels), frames, **drawn, blend_probability=blend, device=labels.device, each=each)
    partner = inverse_partners(labels, batch.counts, **drawn) if pasting.inverse else partner_of(len(labels), window.shift)
    tables = (pasting.saliency, pasting.priority, pasting.combinations, pasting.part_of_joint)
    parts = drawn_parts(labels, labels[partner], *tables, **drawn, guided=guided, temperature=pasting.temperature, each=each)
    return replace(mix_plan(window, parts, pasting.part_of_joint, frames), partner=partner)


def _column(share: Tensor, clips: Tensor) -> Tensor:
    return share.to(clips.dtype).view(-1, 1, 1, 1, 1)


def _outwards(layout: Layout) -> list[int]:
    """All joints except the root, ordered such that parents come first."""

    def depth(joint: int) -> int:
        parent = layout.parents[joint]
        return 0 if parent == joint else 1 + depth(parent)

    return sorted((joint for joint in range(layout.num_joints) if depth(joint)), key=depth)


def _resized(clips: Tensor, num_frames: int) -> Tensor:
    n, channels, frames, joints, people = clips.shape
    flat = clips.permute(0, 1, 3, 4, 2).reshape(n, -1, frames)
    resized = interpolate(flat, size=num_frames, mode="linear", align_corners=False)
    return resized.view(n, channels, joints, people, num_frames).permute(0, 1, 4, 2, 3)


def _cut(batch: Batch, partner: Tensor, draws: Draws) -> MixedBatch:
    """Pastes a window and joints whose relative sides are the square root of a uniform share of the clip."""
    _, _, num_frames, num_joints, _ = batch.clips.shape
    side = draws.share().sqrt()
    length = (side * num_frames).round().long()
    start = integers(draws.next()[:, 0], 0, num_frames - length)
    rank = draws.next(num_joints).argsort(1).argsort(1)
    return batch.mixed(*_paste(batch.clips, partner, start, length, rank < (side * num_joints).round()[:, None]))


def _paste(clips: Tensor, partner: Tensor, start: Tensor, length: Tensor, joints: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(clips, partner, share): frames start to start + length of `joints` [N, V] bool are taken from the partner."""
    frame = torch.arange(clips.shape[2], device=clips.device)
    window = (frame >= start[:, None]) & (frame < (start + length)[:, None])
    pasted = window[:, None, :, None, None] & joints[:, None, None, :, None]
    return torch.where(pasted, clips[partner], clips), partner, pasted.float().mean((1, 2, 3, 4))
