"""Augmentation of training clips: what each one does, and that it draws the same whatever else is on."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from shapmix.data.augmentation import augment_clips
from shapmix.data.clips import ClipStore, join_clips
from shapmix.data.sampling import ClipSampler, NetworkStream, Pipeline, mean_motion
from shapmix.draws.augment import AugmentConfig
from shapmix.draws.plans import AugmentPlan
from shapmix.process.errors import DataError
from shapmix.reference import Stream
from shapmix.skeleton.layout import BUILT_IN, Layout, load_layout

CHOSEN = torch.tensor([3, 0, 2, 1, 2, 3])
ONE_HAND = ("hand21", "shrec22")
STILL = AugmentConfig(rotation=0.0)
ALONE: dict[str, dict[str, Any]] = {
    "mirror": {"mirror": 0.5},
    "swap": {"swap": 0.5},
    "scale": {"scale": (0.7, 1.4)},
    "stretch": {"stretch": (0.7, 1.4)},
    "shear": {"shear": 0.4},
    "jitter": {"jitter": 0.1},
    "reverse": {"reverse": 0.5},
    "speed": {"speed": (0.5, 2.0)},
    "part_drop": {"part_drop": 0.5},
    "joint_drop": {"joint_drop": 0.3},
}


def store(layout: str | Layout = "ntu25", dimension: int = 3, *, scores: bool = False) -> ClipStore:
    """Four clips; the second person of the last one is missing."""
    torch.manual_seed(0)
    skeleton = load_layout(layout) if isinstance(layout, str) else layout
    clips = [torch.randn(length, 2, skeleton.num_joints, dimension + scores) for length in (3, 8, 16, 40)]
    clips[3][:, 1] = 0
    return join_clips(clips, [0, 1, 0, 1], list("abcd"), skeleton, ["x", "y"], scores=scores)


def sampler(
    pipeline: Pipeline = "crop", stream: NetworkStream = "joint", *, of: ClipStore | None = None, **options: Any
) -> ClipSampler:
    """Does not rotate 3D clips, so that views with and without augmentation can be compared."""
    data = of or store()
    still = {"rotation": 0.0} if data.dimension == 3 else {}
    return ClipSampler(data, pipeline, stream, 16, seed=3, augment=AugmentConfig(**still | options))


def plan_of(config: AugmentConfig, step: int = 5) -> AugmentPlan:
    found = replace(sampler(), augment=config).augmentation(torch.full((64,), 30), step)
    assert found is not None
    return found


def drawn(plan: AugmentPlan) -> dict[str, Tensor]:
    return {field.name: value for field in fields(plan) if (value := getattr(plan, field.name)) is not None}


def same(left: AugmentPlan, right: AugmentPlan) -> bool:
    ours, theirs = drawn(left), drawn(right)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_everything_is_off_by_default() -> None:
    plain = ClipSampler(store(), "crop", "joint", 16, seed=3)
    assert plain.augmentation(torch.full((4,), 30), 0) is None
    assert plain.augment == AugmentConfig()


@pytest.mark.parametrize("pipeline", ["crop", "frames", "segments"])
@pytest.mark.parametrize("name", BUILT_IN)
def test_mirrored_twice_is_the_clip_for_every_layout(name: str, pipeline: Pipeline) -> None:
    layout = load_layout(name)
    for dimension in layout.dimensions:
        data = store(layout, dimension)
        ours = ClipSampler(data, pipeline, "joint", 16)
        if name in ONE_HAND:
            with pytest.raises(DataError, match=f"mirrored: layout '{name}' has no left-right pairs.*flips = "):
                ours.evaluation(CHOSEN, mirrored=True)
            continue
        clips, mirrored = ours.evaluation(CHOSEN), ours.evaluation(CHOSEN, mirrored=True)
        back = mirrored[:, :, :, list(layout.flips)]
        axis = layout.sideways(dimension)
        assert axis != layout.upward(dimension)[0]
        back[:, axis] = -back[:, axis]
        assert torch.equal(back, clips)
        assert not torch.equal(mirrored, clips)
        flipped = replace(data, frames=data.frames[:, :, list(layout.flips)].clone())
        flipped.frames[..., axis] = -flipped.frames[..., axis]
        if pipeline != "frames":  # its centre joint, at zero, may be one of a pair
            twice = ClipSampler(flipped, pipeline, "joint", 16).evaluation(CHOSEN, mirrored=True)
            assert torch.equal(twice, clips)


@pytest.mark.parametrize("stream", ["bone", "motion", "skip_bone_motion"])
@pytest.mark.parametrize("scores", [False, True])
def test_streams_follow_the_mirrored_joints(stream: NetworkStream, scores: bool) -> None:
    """The layout's bones are mirrored with its joints, so the stream of a mirrored clip is the mirrored stream."""
    layout = load_layout("coco17")
    ours = ClipSampler(store("coco17", 2, scores=scores), "segments", stream, 16)
    clips, mirrored = ours.crop(CHOSEN, 1), ours.crop(CHOSEN, 1, mirrored=True)
    expected = clips[:, :, :, list(layout.flips)].clone()
    expected[:, 0] = -expected[:, 0]
    assert torch.equal(mirrored, expected)


def test_the_left_right_axis_is_horizontal() -> None:
    layout = load_layout("ntu25")
    assert layout.sideways(3) == layout.sideways(2) == layout.sideways(1) == 0
    assert [replace(layout, up=up).sideways(3) for up in ("x", "-x", "-y", "z")] == [1, 1, 0, 0]


@pytest.mark.parametrize("pipeline", ["crop", "frames", "segments"])
@pytest.mark.parametrize("name", ["mirror", "swap", "reverse"])
def test_a_probability_is_a_share_of_the_clips(name: str, pipeline: Pipeline) -> None:
    plain, always = sampler(pipeline), sampler(pipeline, **{name: 1.0})
    sometimes = sampler(pipeline, **{name: 0.5})
    changed = torch.cat(
        [(sometimes.training(CHOSEN, step) != plain.training(CHOSEN, step)).flatten(1).any(1) for step in range(40)]
    )
    assert 0.3 < changed.double().mean() < 0.7
    assert (always.training(CHOSEN, 2) != plain.training(CHOSEN, 2)).flatten(1).any(1).all()


@pytest.mark.parametrize("pipeline", ["crop", "segments"])
def test_a_reversed_clip_is_the_clip_from_its_end(pipeline: Pipeline) -> None:
    plain, reverse = sampler(pipeline).training(CHOSEN, 4), sampler(pipeline, reverse=1.0).training(CHOSEN, 4)
    assert torch.equal(reverse.flip(2), plain)
    motion = sampler(pipeline, "motion", reverse=1.0).training(CHOSEN, 4)
    assert torch.equal(motion[:, :, :-1], reverse[:, :, 1:] - reverse[:, :, :-1])


@pytest.mark.parametrize("pipeline", ["crop", "frames", "segments"])
def test_scale_multiplies_the_length_of_every_bone(pipeline: Pipeline) -> None:
    plain, half = (sampler(pipeline, "bone", scale=(s, s)).training(CHOSEN, 4).norm(dim=1) for s in (1.0, 0.5))
    torch.testing.assert_close(half, plain * 0.5)
    factors = plan_of(replace(STILL, scale=(0.7, 1.4))).linear
    assert factors is not None
    assert torch.equal(factors, torch.eye(3, dtype=torch.float64) * factors[:, :1, :1])
    assert factors[:, 0, 0].min() > 0.7
    assert factors[:, 0, 0].max() < 1.4
    assert factors[:, 0, 0].max() - factors[:, 0, 0].min() > 0.5


def test_stretch_and_shear_are_drawn_for_each_axis() -> None:
    stretch, shear = plan_of(replace(STILL, stretch=(0.5, 2.0))).linear, plan_of(replace(STILL, shear=0.4)).linear
    assert stretch is not None
    assert shear is not None
    diagonal = stretch.diagonal(dim1=1, dim2=2)
    assert torch.equal(stretch, torch.diag_embed(diagonal))
    assert (diagonal[:, 0] != diagonal[:, 1]).all()
    assert (shear.diagonal(dim1=1, dim2=2) == 1).all()
    off = shear[:, ~torch.eye(3, dtype=torch.bool)]  # [N, 6]
    assert off.abs().max() < 0.4
    assert off.std(0).min() > 0.15
    assert off.T.corrcoef().fill_diagonal_(0).abs().max() < 0.5


@pytest.mark.parametrize("pipeline", ["crop", "segments"])
def test_jitter_has_the_stated_deviation(pipeline: Pipeline) -> None:
    plain, jittered = sampler(pipeline), sampler(pipeline, jitter=0.25)
    noise = torch.cat([jittered.training(CHOSEN, step) - plain.training(CHOSEN, step) for step in range(30)])
    present = torch.cat([plain.training(CHOSEN, step) for step in range(30)]).abs().amax(1, keepdim=True) > 0
    assert not present.all()
    moved = noise.movedim(1, -1)[present[:, 0]]  # [points, C]
    torch.testing.assert_close(moved.std(0), torch.full((3,), 0.25), rtol=0.01, atol=0)
    assert moved.mean(0).abs().max() < 0.005
    assert moved.T.corrcoef().fill_diagonal_(0).abs().max() < 0.02
    kurtosis = (moved / moved.std()).pow(4).mean()
    assert 2.75 < kurtosis < 2.95  # 3 - 1.2 / 8 for the sum of eight uniform bytes
    assert not noise.movedim(1, -1)[~present[:, 0]].any()  # missing people stay missing


def test_jitter_and_scale_leave_the_score() -> None:
    data = store("coco17", 2, scores=True)
    plain = sampler("segments", of=data).training(CHOSEN, 1)
    found = sampler("segments", of=data, jitter=0.3, scale=(0.5, 2.0), shear=0.3, stretch=(0.5, 2.0)).training(CHOSEN, 1)
    assert torch.equal(found[:, 2], plain[:, 2])
    assert not torch.equal(found[:, :2], plain[:, :2])


@pytest.mark.parametrize("stream", ["joint", "bone", "bone_motion"])
@pytest.mark.parametrize("pipeline", ["crop", "frames", "segments"])
def test_a_dropped_part_leaves_the_others(pipeline: Pipeline, stream: NetworkStream) -> None:
    plain, drops = sampler(pipeline, stream), sampler(pipeline, stream, part_drop=1.0)
    lost = set()
    for step in range(10):
        before, after = plain.training(CHOSEN, step), drops.training(CHOSEN, step)
        for row in range(len(CHOSEN)):
            gone = [
                part for part, joints in enumerate(drops.store.layout.parts.values()) if not after[row][:, :, list(joints)].any()
            ]
            kept = drops.store.layout.part_of_joint != gone[0]
            assert torch.equal(after[row][:, :, kept], before[row][:, :, kept])
            lost |= set(gone)
    assert lost == set(range(5))


def test_joints_are_dropped_at_their_rate() -> None:
    kept = torch.cat([drawn(plan_of(replace(STILL, joint_drop=0.2), step))["kept"] for step in range(50)])
    assert abs(float((~kept).double().mean()) - 0.2) < 0.01
    assert (~kept).double().mean(0).min() > 0.15


@pytest.mark.parametrize("pipeline", ["crop", "segments"])
def test_speed_plays_a_part_or_stands_still(pipeline: Pipeline) -> None:
    """The x coordinate of every joint is its frame in the recording."""
    data = store()
    frames = (torch.arange(len(data.frames)) - data.offsets[:-1].repeat_interleave(data.lengths)).float()
    data = replace(data, frames=(frames + 1)[:, None, None, None].expand(data.frames.shape) / 10)
    chosen = torch.tensor([3] * 64)
    plain = sampler(pipeline, of=data).training(chosen, 0)[:, 0, :, 0, 0] * 10
    fast = sampler(pipeline, of=data, speed=(2.0, 2.0)).training(chosen, 0)[:, 0, :, 0, 0] * 10
    slow = sampler(pipeline, of=data, speed=(0.5, 0.5)).training(chosen, 0)[:, 0, :, 0, 0] * 10
    reach = plain[:, -1] - plain[:, 0]
    assert (slow.diff(dim=1) >= 0).all()
    assert (fast.diff(dim=1) >= 0).all()
    assert ((slow[:, -1] - slow[:, 0]) / reach).sub(0.5).abs().max() < 0.15
    still = (fast.diff(dim=1) == 0).sum(1)  # of 15 differences, about half; the frames of segments are not evenly spaced
    assert 6 < still.double().mean() < 8
    assert ((fast[:, 0] == fast[:, 1]) & (fast[:, -1] > fast[:, -2])).any()  # before
    assert ((fast[:, 0] < fast[:, 1]) & (fast[:, -1] == fast[:, -2])).any()  # after


@pytest.mark.parametrize("name", ALONE)
def test_a_draw_does_not_depend_on_the_others(name: str) -> None:
    """Alone it draws what it draws with all others on; matrices are compared where the others do nothing."""
    others: dict[str, Any] = {}
    for other, options in ALONE.items():
        joined = ("mirror", "swap", "scale", "stretch", "shear")  # in one field of the plan
        others |= options if other not in joined or other == name else {}
    alone, together = drawn(plan_of(AugmentConfig(**ALONE[name]))), drawn(plan_of(AugmentConfig(**others)))
    for field in alone.keys() - {"kept"}:
        assert torch.equal(alone[field], together[field])
    if "kept" in alone:
        assert not (together["kept"] & ~alone["kept"]).any()


def test_the_factors_of_a_matrix_are_drawn_apart() -> None:
    both = plan_of(AugmentConfig(mirror=0.5, scale=(0.7, 1.4), stretch=(0.7, 1.4), shear=0.4)).linear
    mirror, scale, stretch, shear = (
        plan_of(AugmentConfig(**ALONE[name])).linear for name in ("mirror", "scale", "stretch", "shear")
    )
    assert both is not None
    torch.testing.assert_close(both, shear @ stretch @ scale @ mirror)
    plans = [plan_of(AugmentConfig(mirror=mirror, swap=swap)) for mirror, swap in ((0.5, 0.5), (0.5, 0.0), (0.0, 0.5))]
    flipped = [plan.source[:, 4] == 8 for plan in plans]
    assert torch.equal(flipped[0], flipped[1] ^ flipped[2])
    assert not torch.equal(flipped[1], flipped[2])


def test_swapped_joints_keep_their_coordinates() -> None:
    swapped = sampler(swap=1.0).training(CHOSEN, 1)
    assert torch.equal(swapped, sampler().training(CHOSEN, 1)[:, :, :, list(load_layout("ntu25").flips)])
    with pytest.raises(DataError, match=r"augment\.swap: layout 'hand21' has no left-right pairs"):
        sampler(of=store("hand21"), swap=0.5)


def test_draws_are_functions_of_seed_and_step() -> None:
    config = AugmentConfig(**{name: value for options in ALONE.values() for name, value in options.items()})
    assert same(plan_of(config), plan_of(config))
    assert not same(plan_of(config), plan_of(config, 6))
    ours = sampler(**{name: value for options in ALONE.values() for name, value in options.items()})
    lengths = torch.full((8,), 30)
    found = ours.augmentation(lengths, torch.tensor(5))
    assert same(found, ours.augmentation(lengths, 5))
    assert not same(found, replace(ours, seed=4).augmentation(lengths, 5))
    # a process that takes the first half of a batch draws what one process draws for it
    half = ours.augmentation(lengths[:4], 5)
    assert all(torch.equal(value, drawn(found)[name][:4]) for name, value in drawn(half).items())


@pytest.mark.parametrize("pipeline", ["crop", "frames", "segments"])
def test_evaluation_is_not_augmented(pipeline: Pipeline) -> None:
    changed = sampler(pipeline, **{name: value for options in ALONE.values() for name, value in options.items()})
    assert torch.equal(changed.evaluation(CHOSEN), sampler(pipeline).evaluation(CHOSEN))
    assert torch.equal(changed.crop(CHOSEN, 2), sampler(pipeline).crop(CHOSEN, 2))
    assert mean_motion(changed, CHOSEN).isfinite().all()


def test_rotation_is_that_of_the_pipeline() -> None:
    for pipeline in ("crop", "frames", "segments"):
        published = ClipSampler(store(), pipeline, "joint", 16)
        small = replace(published, augment=AugmentConfig(rotation=0.1))
        still = sampler(pipeline)
        if pipeline == "crop":
            lengths = published.store.lengths[CHOSEN]
            assert published.crops(CHOSEN, lengths, 1).angles.abs().max() > 0.2
            assert 0.05 < small.crops(CHOSEN, lengths, 1).angles.abs().max() <= 0.1
            assert not still.crops(CHOSEN, lengths, 1).angles.any()
        assert not torch.equal(published.training(CHOSEN, 1), small.training(CHOSEN, 1))


@pytest.mark.parametrize(
    ("of", "options", "message"),
    [
        (("hand21", 3), {"mirror": 0.5}, "augment.mirror: layout 'hand21' has no left-right pairs.*leave augment.mirror out"),
        (("coco17", 2), {"rotation": 0.3}, "augment.rotation: only clips of 3 coordinates are rotated, and these have 2"),
    ],
)
def test_what_does_not_fit_the_clips_is_refused(of: tuple[str, int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ClipSampler(store(*of), "crop", "joint", 16, augment=AugmentConfig(**options))


def test_clips_beside_zero_are_not_mirrored() -> None:
    """Coordinates from 0 to 1, relative to an image's corner: mirrored about it they would lie where no clip is."""
    data = store()
    beside = replace(data, frames=data.frames.abs())
    with pytest.raises(DataError, match=r"augment.mirror: .* no left-right coordinate of these is negative"):
        sampler("segments", of=beside, mirror=0.5)
    with pytest.raises(DataError, match=r"mirrored: .* no left-right coordinate of these is negative"):
        sampler("segments", of=beside).evaluation(CHOSEN, mirrored=True)
    assert sampler("segments", of=beside, stretch=(0.9, 1.1)).training(CHOSEN, 0).isfinite().all()
    assert sampler("segments", of=data, mirror=0.5).training(CHOSEN, 0).isfinite().all()
    clips = torch.rand(2, 3, 8, 25, 1)
    with pytest.raises(DataError, match=r"augment.mirror: .* no left-right coordinate of these is negative"):
        augment_clips(clips, load_layout("ntu25"), AugmentConfig(mirror=0.5), seed=0, step=0)


def test_pixels_are_not_multiplied() -> None:
    data = store("coco17", 2, scores=True)
    frames = data.frames.clone()
    frames[..., :2] = frames[..., :2] * 100 + 500
    pixels = replace(data, frames=frames)
    for options in ({"mirror": 0.5}, {"scale": (0.9, 1.1)}, {"shear": 0.1}):
        with pytest.raises(DataError, match=rf"augment.{next(iter(options))}: .* beyond 20 \(\d+.*\), such as pixels"):
            sampler("segments", of=pixels, **options)
    assert sampler("segments", of=pixels, jitter=1.0, part_drop=0.5).training(CHOSEN, 0).isfinite().all()
    with pytest.raises(DataError, match="mirrored: coordinates are multiplied about zero"):
        sampler("segments", of=pixels).evaluation(CHOSEN, mirrored=True)


@pytest.mark.parametrize("stream", ["joint", "bone_motion"])
def test_clips_of_a_loop_of_your_own(stream: Stream) -> None:
    """The sampler's clips, cropped before, are augmented as a store of such clips."""
    layout = load_layout("ntu25")
    clips = ClipSampler(store(), "crop", "joint", 16).evaluation(CHOSEN)
    config = AugmentConfig(**{name: value for options in ALONE.values() for name, value in options.items()})
    data = join_clips(list(clips.permute(0, 2, 4, 3, 1)), [0, 1, 0, 1, 0, 1], list("abcdef"), layout, ["x", "y"])
    expected = ClipSampler(data, "crop", stream, 16, seed=3, augment=replace(config, rotation=0.0)).training(torch.arange(6), 5)
    kept = clips.clone()
    found = augment_clips(clips, layout, config, seed=3, step=5, stream=stream)
    assert torch.equal(found, expected)
    assert torch.equal(clips, kept)
    turned = augment_clips(clips, layout, replace(config, rotation=0.3), seed=3, step=5, stream=stream)
    assert not torch.equal(turned, found)
    assert torch.equal(augment_clips(clips, layout, AugmentConfig(), seed=3, step=5), clips)
    with pytest.raises(ValueError, match=r"clips has shape \[6, 3, 16, 24, 2\]; give \[N, C, T, 25, M\]"):
        augment_clips(clips[:, :, :, 1:], layout, config, seed=3, step=5)
    with pytest.raises(DataError, match="these clips have coordinates beyond 20"):
        augment_clips(clips * 100, layout, config, seed=3, step=5)
