"""Properties of the reference ops that need no recordings."""

from __future__ import annotations

from dataclasses import replace
from math import comb

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shapmix.reference import (
    CropPlan,
    FramePlan,
    average_in,
    balanced_mix_loss,
    coalition_inputs,
    expected_marginals,
    label_probability,
    log_class_prior,
    marginals,
    mix_clips,
    saliency_update,
    sample_clips,
    sample_frames,
    to_stream,
)
from shapmix.skeleton.layout import load_layout
from tests.reference.examples import stmix_plan

NTU = load_layout("ntu25")
PARENTS = torch.tensor(NTU.parents)
ALL = NTU.all_parts


def clips_of(n: int, frames: int = 16, people: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 3, frames, 25, people, dtype=dtype, generator=torch.Generator().manual_seed(n))


def test_full_and_empty_coalitions_are_the_clip_and_the_mean() -> None:
    clips, mean = clips_of(4), clips_of(1)[0]
    rows = coalition_inputs(clips, mean, torch.tensor([ALL, 0]), NTU.part_of_joint)
    assert torch.equal(rows[:4], clips)
    assert torch.equal(rows[4:], mean.expand(4, -1, -1, -1, -1))


@given(st.integers(0, 31))
def test_a_coalition_and_its_complement_share_the_clip(coalition: int) -> None:
    clips, mean = clips_of(2), clips_of(1)[0]
    rows = coalition_inputs(clips, mean, torch.tensor([coalition, ALL ^ coalition]), NTU.part_of_joint)
    torch.testing.assert_close(rows[:2] + rows[2:], clips + mean, rtol=0, atol=1e-6)
    for joint, part in enumerate(NTU.part_of_joint.tolist()):
        source = clips if coalition >> part & 1 else mean.expand_as(clips)
        assert torch.equal(rows[:2, :, :, joint], source[:, :, :, joint])


def test_per_sample_coalitions_and_restored_frames() -> None:
    clips, mean = clips_of(3), clips_of(1)[0]
    coalitions = torch.tensor([[1, 6, 31]])
    rows = coalition_inputs(clips, mean, coalitions, NTU.part_of_joint, restored_frames=5)
    for n in range(3):
        alone = coalition_inputs(clips[n : n + 1], mean, coalitions[0, n : n + 1], NTU.part_of_joint)[0]
        assert torch.equal(rows[n, :, :5], alone[:, :5])
        assert torch.equal(rows[n, :, 5:], mean[:, 5:])


@given(st.integers(3, 9), st.integers(0, 10**6))
def test_pasting_touches_the_window_of_the_parts_alone(n: int, step: int) -> None:
    clips = clips_of(n)
    plan = stmix_plan(n, 16, step, blend_probability=0.0)
    both = mix_clips(clips, plan, NTU.part_of_joint)
    assert torch.equal(both[:n], clips)
    changed = (both[n:] != clips).any(1).any(-1)  # [N, T, V]
    frame = torch.arange(16)
    window = (frame >= plan.start[:, None]) & (frame < (plan.start + plan.length)[:, None])
    parts = (plan.parts[:, None] >> NTU.part_of_joint & 1).bool()
    assert torch.equal(changed, window[:, :, None] & parts[:, None])
    torch.testing.assert_close(changed.double().mean((1, 2)), plan.lam.double())
    nothing = mix_clips(clips, replace(plan, parts=torch.zeros(n, dtype=torch.int64)), NTU.part_of_joint)
    assert torch.equal(nothing[n:], clips)


def test_the_whole_clip_pasted_or_blended_at_one_is_the_partner() -> None:
    clips = clips_of(5)
    plan = stmix_plan(5, 16, 0, blend_probability=1.0)
    one = torch.ones(5, dtype=torch.float64)
    assert torch.equal(mix_clips(clips, replace(plan, lam=one), NTU.part_of_joint)[5:], clips[plan.partner])
    whole = replace(
        plan,
        parts=torch.full((5,), ALL),
        start=torch.zeros(5, dtype=torch.int64),
        source_start=torch.zeros(5, dtype=torch.int64),
        length=torch.full((5,), 16),
        source_length=torch.full((5,), 16),
        blend=torch.zeros(5, dtype=torch.bool),
    )
    assert torch.equal(mix_clips(clips, whole, NTU.part_of_joint)[5:], clips[plan.partner])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_windows_are_resized_like_torch_resizes(dtype: torch.dtype) -> None:
    """Equals torch's nearest-neighbour resize on the window, for every published pair of lengths."""
    units = {16: range(7, 12), 25: range(13, 21)}
    for total, lengths in units.items():
        for length in lengths:
            for source in range(length, total + 1):
                ramp = torch.arange(4.0 * total, dtype=dtype).view(1, 1, -1, 1, 1).repeat(2, 1, 1, 25, 1)
                plan = stmix_plan(3, 4 * total, 0, blend_probability=0.0)
                plan = type(plan)(**{name: value[:2] for name, value in vars(plan).items()})
                plan = replace(
                    plan,
                    partner=torch.tensor([1, 0]),
                    start=torch.zeros(2, dtype=torch.int64),
                    source_start=torch.zeros(2, dtype=torch.int64),
                    length=torch.full((2,), 4 * length),
                    source_length=torch.full((2,), 4 * source),
                    parts=torch.full((2,), ALL),
                )
                ours = mix_clips(ramp, plan, NTU.part_of_joint)[2, 0, : 4 * length, 0, 0]
                if dtype == torch.float64:
                    theirs = torch.arange(4 * length) * source // length
                else:
                    window = ramp[:1, :, : 4 * source, 0, 0]
                    theirs = torch.nn.functional.interpolate(window, size=4 * length, mode="nearest")[0, 0]
                assert torch.equal(ours, theirs.to(dtype)), (length, source)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.floats(0, 1)), min_size=1, max_size=20), st.floats(0, 1))
def test_repeated_labels_are_averaged_in_order(updates: list[tuple[int, int, float]], decay: float) -> None:
    table = torch.full((4, 5), 0.5, dtype=torch.float64)
    expected = table.tolist()
    counts = torch.tensor([5, 6, 6, 4, 10])
    for label, column, value in updates:
        expected[label][column] = decay * expected[label][column] + (1 - decay) * value * 10 / counts[column].item()
    labels, columns, values = (torch.tensor(part) for part in zip(*updates, strict=True))
    average_in(table, labels, columns, values.double(), counts, decay)
    torch.testing.assert_close(table, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7)


def test_marginals_are_rectified_differences_of_probabilities() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    value = label_probability(logits, labels)
    torch.testing.assert_close(value, logits.exp()[range(6), labels] / logits.exp().sum(1))
    shared = torch.tensor([0.25], dtype=torch.float64)
    assert torch.equal(marginals(value, shared), (value - 0.25).clamp(min=0))


def test_the_update_is_softmax_marginal_and_average() -> None:
    """One context per row, several weighted contexts, and a shared row equal the separate ops in sequence."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 4, dtype=torch.float64, generator=generator)
    labels, columns = torch.tensor([1, 3, 1]), torch.tensor([0, 2, 0])
    counts = torch.tensor([5, 6, 4])
    value = logits.softmax(1)
    rows, shared = torch.tensor([0, 1, 2]), torch.tensor([8, 8, 8])
    expected = marginals(value[rows, labels], value[8, labels])
    table, averaged = torch.full((4, 3), 0.5, dtype=torch.float64), torch.full((4, 3), 0.5, dtype=torch.float64)
    assert torch.equal(saliency_update(table, logits, labels, columns, rows, shared, counts, 0.9), expected)
    average_in(averaged, labels, columns, expected, counts, 0.9)
    assert torch.equal(table, averaged)

    with_rows, without_rows = torch.tensor([[0, 1], [2, 3], [4, 5]]), torch.tensor([[8, 6], [8, 7], [8, 1]])
    weights = torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]])
    found = saliency_update(table, logits, labels, columns, with_rows, without_rows, counts, 0.9, weights=weights)
    for update in range(3):
        pairs = zip(with_rows[update], without_rows[update], weights[update].double(), strict=True)
        by_hand = sum(share * (value[w, labels[update]] - value[r, labels[update]]).relu() for w, r, share in pairs)
        torch.testing.assert_close(found[update], by_hand)


@given(st.integers(1, 31))
def test_a_combination_earns_what_it_completes(needed: int) -> None:
    """Unanimity game: v is 1 if all of `needed` are present. P earns the probability q of the contexts that contain the rest."""
    values = torch.tensor([[float(coalition & needed == needed) for coalition in range(32)]], dtype=torch.float64)
    expected = expected_marginals(values, NTU.combinations, 5)[0]
    for column, combination in enumerate(NTU.combinations.tolist()):
        rest = bin(needed & ~combination).count("1")
        outside = 5 - bin(combination).count("1")
        share = sum(comb(outside - rest, size - rest) / comb(outside, size) for size in range(rest, outside + 1)) / (outside + 1)
        assert float(expected[column]) == pytest.approx(share if combination & needed else 0.0)


def test_loss_is_cross_entropy_of_adjusted_logits() -> None:
    n, classes = 6, 5
    logits = torch.randn(2 * n, classes, dtype=torch.float64, requires_grad=True)
    labels, partner = torch.randint(classes, (n,)), torch.arange(n).roll(1)
    counts = torch.tensor([50, 20, 9, 4, 1])
    prior = log_class_prior(counts)
    assert torch.isclose(prior.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    lam = torch.rand(n)
    clean, mixed = balanced_mix_loss(logits, labels, partner, lam, prior)
    score = (logits + prior).log_softmax(1)
    rows = torch.arange(n)
    torch.testing.assert_close(clean, -score[rows, labels].mean())
    own, other = -score[n + rows, labels], -score[n + rows, labels[partner]]
    torch.testing.assert_close(mixed, ((1 - lam.double()) * own + lam.double() * other).mean())
    assert torch.autograd.gradcheck(lambda x: sum(balanced_mix_loss(x, labels, partner, lam, prior)), logits)
    alone, nothing = balanced_mix_loss(logits[:n], labels, partner, lam, prior)
    assert torch.equal(alone, clean)
    assert float(nothing) == 0


def recordings(lengths: list[int], people: int = 2) -> tuple[Tensor, Tensor]:
    frames = torch.randn(sum(lengths), people, 25, 3, generator=torch.Generator().manual_seed(1))
    return frames, torch.tensor([0, *lengths]).cumsum(0)


def test_a_crop_of_the_right_length_is_copied() -> None:
    frames, offsets = recordings([20, 30])
    plan = CropPlan(torch.tensor([1, 0]), torch.tensor([3, 2]), torch.tensor([16, 16]), torch.zeros(2, 3))
    x = sample_clips(frames, offsets, plan, PARENTS, num_frames=16)
    assert torch.equal(x[0], frames[23:39].permute(3, 0, 2, 1))
    assert torch.equal(x[1], frames[2:18].permute(3, 0, 2, 1))


@given(st.integers(1, 60), st.floats(-0.3, 0.3), st.floats(-0.3, 0.3))
def test_turning_keeps_bone_lengths_and_empty_people(length: int, about_x: float, about_z: float) -> None:
    frames, offsets = recordings([length])
    frames[:, 1] = 0
    plan = CropPlan(torch.tensor([0]), torch.tensor([0]), torch.tensor([length]), torch.tensor([[about_x, 0.1, about_z]]))
    turned = sample_clips(frames, offsets, plan, PARENTS, stream="bone", num_frames=12)
    still = sample_clips(frames, offsets, replace(plan, angles=torch.zeros(1, 3)), PARENTS, stream="bone", num_frames=12)
    torch.testing.assert_close(turned.norm(dim=1), still.norm(dim=1), rtol=1e-4, atol=1e-5)
    assert not turned[..., 1].any()


def test_streams_are_differences() -> None:
    joint = clips_of(2)
    bone = to_stream(joint, PARENTS, "bone")
    assert not bone[:, :, :, NTU.root].any()
    rebuilt = joint[:, :, :, NTU.root].clone()
    chain = [24]
    while chain[-1] != NTU.root:
        chain.append(NTU.parents[chain[-1]])
    torch.testing.assert_close(rebuilt + bone[:, :, :, chain].sum(3), joint[:, :, :, 24])
    motion = to_stream(joint, PARENTS, "motion")
    assert not motion[:, :, -1].any()
    torch.testing.assert_close(joint[:, :, :1] + motion[:, :, :-1].cumsum(2), joint[:, :, 1:])
    torch.testing.assert_close(to_stream(joint, PARENTS, "bone_motion"), to_stream(bone, PARENTS, "motion"))


def test_boxed_clips_fill_the_box_and_a_still_pose_stays_finite() -> None:
    frames, offsets = recordings([9, 1], people=1)
    frames[9:, :, :, 2] = 0.7  # constant depth
    picked = torch.tensor([[0, 2, 4, 8], [0, 0, 0, 0]])
    plan = FramePlan(torch.tensor([0, 1]), picked, torch.zeros(2, 2), torch.ones(2))
    x = sample_frames(frames, offsets, plan, PARENTS, NTU.centre)
    everything = FramePlan(torch.tensor([0]), torch.arange(9)[None], torch.zeros(1, 2), torch.ones(1))
    box = sample_frames(frames, offsets, everything, PARENTS, NTU.centre)[0]
    torch.testing.assert_close(box.amax((1, 2, 3)), torch.ones(3))
    torch.testing.assert_close(box.amin((1, 2, 3)), -torch.ones(3))
    assert x.isfinite().all()
    assert not x[1, 2].any()
    assert not sample_frames(frames, offsets, plan, PARENTS, NTU.centre, stream="motion")[1].any()
