"""Sampling pipelines: frame selection of 2D poses, streams, and prefetched batches."""

from __future__ import annotations

import pytest
import torch

from shapmix.data import sampling
from shapmix.data.clips import ClipStore, join_clips
from shapmix.data.sampling import ClipSampler, mean_motion, resident, training_batches
from shapmix.data.synthetic import make_synthetic
from shapmix.draws.crops import draw_segments, middle_segments
from shapmix.reference import to_stream
from shapmix.skeleton.layout import load_layout

CPU = torch.device("cpu")


def store(layout: str = "coco17", *, scores: bool = True) -> ClipStore:
    torch.manual_seed(0)
    skeleton = load_layout(layout)
    clips = [torch.randn(length, 2, skeleton.num_joints, 3) for length in (1, 5, 16, 40)]
    return join_clips(clips, [0, 1, 0, 1], list("abcd"), skeleton, ["x", "y"], scores=scores)


def test_segments_hold_a_frame_each() -> None:
    clips, lengths = torch.arange(3), torch.tensor([1, 24, 100])
    plans = [draw_segments(clips, lengths, num_frames=10, seed=1, step=step).frames for step in range(200)]
    for row, length in enumerate(lengths.tolist()):
        drawn = torch.stack([plan[row] for plan in plans])
        edges = torch.arange(11) * length / 10
        assert (drawn >= edges[:-1].floor()).all()
        assert (drawn <= edges[1:].ceil() - 1).all()
        assert set(drawn.flatten().tolist()) == set(range(length))  # every frame can be drawn
    assert torch.equal(plans[3], draw_segments(clips, lengths, num_frames=10, seed=1, step=3).frames)
    assert middle_segments(clips, lengths, num_frames=10).frames[2].tolist() == list(range(5, 100, 10))


def test_picked_clips_are_recorded_frames() -> None:
    sampler = ClipSampler(store(), "segments", "joint", 8)
    clips = sampler.evaluation(torch.tensor([2, 0]))
    assert torch.equal(clips[0], sampler.store.clip(2)[1::2].permute(3, 0, 2, 1))
    assert torch.equal(clips[1], sampler.store.clip(0).expand(8, -1, -1, -1).permute(3, 0, 2, 1))
    assert torch.equal(sampler.training(torch.tensor([2]), 5), sampler.training(torch.tensor([2]), 5))
    assert not torch.equal(sampler.training(torch.tensor([3]), 5), sampler.training(torch.tensor([3]), 6))


def test_a_score_is_averaged_and_not_subtracted() -> None:
    layout = load_layout("coco17")
    parents = torch.tensor(layout.parents)
    x = torch.randn(2, 3, 6, 17, 2, dtype=torch.float64)
    bone = to_stream(x, parents, "bone", scores=True)
    assert torch.equal(bone[:, :2], to_stream(x, parents, "bone")[:, :2])
    assert torch.equal(bone[:, 2], (x[:, 2] + x[:, 2][:, :, parents]) / 2)
    motion = to_stream(x, parents, "motion", scores=True)
    assert torch.equal(motion[:, 2, :-1], (x[:, 2, 1:] + x[:, 2, :-1]) / 2)
    assert not motion[:, :, -1].any()
    assert torch.equal(to_stream(x, parents, "bone_motion", scores=True), to_stream(bone, parents, "motion", scores=True))


@pytest.mark.parametrize("pipeline", ["crop", "segments"])
def test_skip_bones_end_two_joints_away(pipeline: sampling.Pipeline) -> None:
    data = store("ntu25", scores=False)
    layout, chosen = data.layout, torch.tensor([2, 3])
    joint = ClipSampler(data, pipeline, "joint", 8).evaluation(chosen)
    skip = ClipSampler(data, pipeline, "skip_bone", 8).evaluation(chosen)
    ends = {joint: layout.parents[parent] for joint, parent in enumerate(layout.parents)}
    ends |= {joint: joint for joint, parent in enumerate(layout.parents) if layout.parents[parent] == parent}
    # the published pairs of the NTU skeleton, 0-based
    published = (20, 1, 2, 20, 4, 20, 4, 5, 8, 20, 8, 9, 1, 0, 12, 13, 1, 0, 16, 17, 20, 7, 6, 11, 10)
    assert tuple(ends.values()) == published
    for number, end in ends.items():
        torch.testing.assert_close(skip[:, :, :, number], joint[:, :, :, number] - joint[:, :, :, end])
    moving = ClipSampler(data, pipeline, "skip_bone_motion", 8).evaluation(chosen)
    torch.testing.assert_close(moving[:, :, :-1], skip[:, :, 1:] - skip[:, :, :-1])


def test_recordings_stay_where_the_network_is() -> None:
    sampler = ClipSampler(store(), "segments", "joint", 8)
    same, where = resident(sampler, CPU)
    assert same is sampler
    assert "in host memory" in where


@pytest.mark.parametrize("ahead", [False, True])
def test_batches_made_ahead_are_the_same_batches(ahead: bool) -> None:
    """`meta` replaces a second device; it stores shapes only, so the values are checked before the copy."""
    sampler = ClipSampler(store(), "segments", "joint", 8)
    batches = [(torch.tensor([step % 4, 1]), step) for step in range(5)]
    made: list[torch.Tensor] = []
    original = sampling._copied

    def copied(*arguments: object) -> torch.Tensor:
        made.append(sampler.training(arguments[1], arguments[2]))
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_copied", copied)
        found = list(training_batches(sampler, iter(batches), torch.device("meta") if ahead else CPU))
    assert [step for _, _, step in found] == list(range(5))
    for number, (clips, chosen, step) in enumerate(found):
        assert torch.equal(chosen, batches[number][0])
        assert torch.equal(made[number] if ahead else clips, sampler.training(chosen, step))


def test_no_batches_are_no_batches() -> None:
    sampler = ClipSampler(store(), "segments", "joint", 8)
    assert list(training_batches(sampler, [], torch.device("meta"))) == []


def test_mean_motion_of_picked_clips() -> None:
    sampler = ClipSampler(store(), "segments", "joint", 8)
    views = sampler.training(torch.arange(4), 0)
    torch.testing.assert_close(mean_motion(sampler, torch.arange(4)), views.mean(0))


def test_a_second_view_is_drawn_apart_from_the_first_and_from_every_step() -> None:
    splits = make_synthetic(num_classes=4, n_max=6, imbalance=2, val_per_class=1, test_per_class=1)
    sampler, chosen = ClipSampler(splits.store, "crop", "joint", 8), splits.train[:4]
    first, second = sampler.views(chosen, 5, 2).chunk(2)
    assert torch.equal(first, sampler.training(chosen, 5))
    assert not any(torch.equal(second, sampler.training(chosen, step)) for step in range(8))
    ((clips, _, _),) = training_batches(sampler, [(chosen, 5)], CPU, views=2)
    assert torch.equal(clips, torch.cat([first, second]))
