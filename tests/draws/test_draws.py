"""Random draws: known answers, ranges, and the distributions stated in the paper."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shapmix.draws.crops import centre_crops, draw_crops, draw_frames, even_frames
from shapmix.draws.philox import integers, philox, random_words, uniform
from shapmix.mixing.marginals import Request, draw_marginals
from shapmix.reference import draw_plan
from shapmix.reference.plan import draw_window, pasted_parts, window_range
from shapmix.skeleton.layout import load_layout
from tests.reference.examples import stmix_plan

NTU = load_layout("ntu25")


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [  # published with Random123
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter: str, key: str, answer: str) -> None:
    words = torch.tensor([int(word, 16) for word in counter.split()])
    first, second = (int(word, 16) for word in key.split())
    assert [f"{word:08x}" for word in philox(words, (first, second)).tolist()] == answer.split()


def test_draws_depend_on_seed_purpose_step_and_row_alone() -> None:
    words = random_words(3, 1, 7, 5, 8)
    assert torch.equal(words[:2], random_words(3, 1, 7, 2, 8))  # independent of the batch size
    for other in (random_words(4, 1, 7, 5, 8), random_words(3, 2, 7, 5, 8), random_words(3, 1, 8, 5, 8)):
        assert not (words == other).any()
    assert not torch.equal(random_words(3 + (1 << 32), 1, 7, 5, 8), words)  # all 64 bits of the seed are used


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 2**63))
def test_integers_stay_in_range(low: int, span: int, seed: int) -> None:
    drawn = integers(random_words(seed, 1, 0, 64, 4), low, low + span)
    assert int(drawn.min()) >= low
    assert int(drawn.max()) <= low + span
    edge = torch.tensor([0, 0xFFFFFFFF])
    assert integers(edge, low, low + span).tolist() == [low, low + span]
    assert 0 < float(uniform(edge)[0]) < float(uniform(edge)[1]) < 1


@pytest.mark.parametrize(("num_frames", "published"), [(64, (7, 11)), (100, (13, 20))])
def test_windows_cover_the_published_ranges(num_frames: int, published: tuple[int, int]) -> None:
    assert window_range(num_frames) == published
    windows = [draw_window(16, num_frames, seed=0, step=step) for step in range(2000)]
    lengths = {int(window.length) // 4 for window in windows}
    assert lengths == set(range(published[0], published[1] + 1))
    assert {int(window.shift) for window in windows} == set(range(1, 15))
    for window in windows:
        assert 0 <= int(window.start) <= num_frames - int(window.length)
        assert int(window.length) <= int(window.source_length) <= num_frames
        assert 0 <= int(window.source_start) <= num_frames - int(window.source_length)
    share = sum(bool(window.blend) for window in windows) / len(windows)
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5


@given(st.integers(3, 40), st.integers(2, 40), st.integers(0, 10**6))
def test_label_share_is_the_share_of_replaced_coordinates(batch: int, units: int, step: int) -> None:
    plan = stmix_plan(batch, 4 * units, step, blend_probability=0.0)
    joints = NTU.joints_in(plan.parts)
    assert torch.equal(plan.lam, (plan.length * joints).double() / (4 * units * 25))
    assert (plan.partner != torch.arange(batch)).all()
    assert (plan.start + plan.length <= 4 * units).all()


@pytest.mark.parametrize("num_frames", [4, 30, 63])
def test_clip_lengths_without_windows_are_refused(num_frames: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 4 and at least 8, not {num_frames}"):
        stmix_plan(8, num_frames, 0)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_below_three_is_refused(batch: int) -> None:
    with pytest.raises(ValueError, match=f"at least 3 clips, not {batch}"):
        stmix_plan(batch, 64, 0)


def test_the_rarer_class_keeps_or_brings_its_parts() -> None:
    priority = torch.tensor([100, 10, 10])
    labels, partners = torch.tensor([0, 1, 1]), torch.tensor([1, 0, 2])
    drawn = NTU.combinations[[4, 4, 4]]
    combination = int(drawn[0])
    complement = NTU.all_parts ^ combination
    # frequent sample: the rare partner's parts are pasted; rare sample or tie: the sample keeps its parts
    assert pasted_parts(drawn, labels, partners, priority, NTU.part_of_joint).tolist() == [combination, complement, complement]


def test_combinations_follow_the_softmax_of_the_rarer_class() -> None:
    torch.manual_seed(0)
    saliency = torch.rand(2, 20)
    priority = torch.tensor([50, 5])
    labels = torch.tensor([0, 1] * 2000)
    seen = torch.zeros(20)
    for step in range(20):
        plan = draw_plan(
            labels, saliency, priority, NTU.combinations, NTU.part_of_joint, 64, seed=0, step=step, blend_probability=0.0
        )
        mixed_pairs = labels != labels[plan.partner]
        rare_in_frequent = mixed_pairs & (labels == 0)
        kept = plan.parts[mixed_pairs & (labels == 1)] ^ NTU.all_parts
        drawn = torch.cat([plan.parts[rare_in_frequent], kept])
        seen += torch.stack([(drawn == bits).sum() for bits in NTU.combinations])
    expected = (saliency[1] / 0.2).softmax(0) * seen.sum()
    assert float(((seen - expected) ** 2 / expected).sum()) < 50  # chi-square, 19 degrees of freedom: p < 2e-4 above


@pytest.mark.parametrize("shared", [False, True])
def test_contexts_are_disjoint_and_their_sizes_uniform(shared: bool) -> None:
    draws = [draw_marginals(Request(torch.zeros(64), NTU, 5, step, shared)) for step in range(300)]
    columns, contexts = (torch.cat(parts) for parts in zip(*draws, strict=True))
    combination = NTU.combinations[columns]
    assert not (combination & contexts).any()
    assert set(columns.tolist()) == set(range(20))
    size = torch.stack([contexts >> part & 1 for part in range(5)]).sum(0)
    samples = len(draws) if shared else len(columns)
    for rows, largest in ((columns < 10, 3), (columns >= 10, 2)):
        share = torch.stack([(size[rows] == r).double().mean() for r in range(largest + 1)])
        tolerance = 4 * (0.25 / (samples / 2)) ** 0.5
        assert ((share - 1 / (largest + 1)).abs() < tolerance).all()
    assert all(len(set(draw.columns.tolist())) == 1 for draw in draws) == shared
    naive = draw_marginals(Request(torch.zeros(64), NTU, 5, 0, shared, naive=True))
    assert not naive.contexts.any()
    assert torch.equal(naive.columns, draws[0].columns)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30), st.integers(4, 100), st.integers(0, 10**6))
def test_crops_lie_inside_their_clips(lengths: list[int], num_frames: int, step: int) -> None:
    clips, sizes = torch.arange(len(lengths)), torch.tensor(lengths)
    for plan in (draw_crops(clips, sizes, num_frames=num_frames, seed=0, step=step), centre_crops(clips, sizes)):
        assert (plan.start >= 0).all()
        assert (plan.length >= 1).all()
        assert (plan.start + plan.length <= sizes).all()
    plan = draw_crops(clips, sizes, num_frames=num_frames, seed=0, step=step)
    assert (plan.length >= torch.clamp(sizes, max=num_frames)).all()
    assert float(plan.angles.abs().max()) <= 0.3


@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.integers(1, 400), st.integers(0, 10**6))
def test_picked_frames_are_sorted_and_inside(lengths: list[int], num_frames: int, step: int) -> None:
    clips, sizes = torch.arange(len(lengths)), torch.tensor(lengths)
    for plan in (
        draw_frames(clips, sizes, num_frames=num_frames, seed=0, step=step),
        even_frames(clips, sizes, num_frames=num_frames),
    ):
        assert plan.frames.shape == (len(lengths), num_frames)
        assert (plan.frames.diff(dim=1) >= 0).all()
        assert (plan.frames >= 0).all()
        assert (plan.frames < sizes[:, None]).all()
