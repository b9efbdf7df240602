"""Clips of an epoch and their order, for every sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shapmix.data.order import SAMPLERS, epoch_batches, epoch_order

LABELS = torch.tensor([0] * 60 + [1] * 20 + [2] * 4)
CLIPS = torch.arange(84) + 100


def share(sampler: str) -> torch.Tensor:
    """Class frequencies over many epochs."""
    counts = torch.zeros(3)
    for epoch in range(200):
        counts += torch.bincount(LABELS[epoch_order(CLIPS, 0, epoch, labels=LABELS, sampler=sampler) - 100], minlength=3)
    return counts / counts.sum()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_epoch_is_a_function_of_seed_and_number(sampler: str) -> None:
    one, same, other, seeded = (
        epoch_order(CLIPS, seed, epoch, labels=LABELS, sampler=sampler) for seed, epoch in ((3, 1), (3, 1), (3, 2), (4, 1))
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, seeded)
    assert len(one) == len(other)
    assert set(one.tolist()) <= set(CLIPS.tolist())
    rest = list(epoch_batches(one, 16, first=2))
    assert torch.equal(torch.cat(rest), one[32 : len(one) // 16 * 16])


def test_instance_takes_every_clip_once_and_as_always() -> None:
    order = epoch_order(CLIPS, 3, 1)
    assert sorted(order.tolist()) == CLIPS.tolist()
    assert torch.equal(order, CLIPS[torch.from_numpy(np.random.default_rng((3, 1)).permutation(84))])


def test_classes_come_as_often_as_the_definition_says() -> None:
    spread = 4 * (0.25 / (84 * 200)) ** 0.5  # 4 standard errors
    torch.testing.assert_close(share("class_balanced"), torch.full((3,), 1 / 3), rtol=0, atol=spread)
    roots = torch.tensor([60.0, 20.0, 4.0]).sqrt()
    torch.testing.assert_close(share("square_root"), roots / roots.sum(), rtol=0, atol=spread)


def test_tail_repeat_repeats_the_tail_and_loses_nothing() -> None:
    order = epoch_order(CLIPS, 0, 0, labels=LABELS, sampler="tail_repeat")
    times = torch.bincount(order - 100, minlength=84)
    assert (times[LABELS == 0] == 1).all()
    assert (times[LABELS == 1] == 1).all()  # sqrt(28 / 20) rounds to 1
    assert (times[LABELS == 2] == 3).all()  # sqrt(28 / 4)


def test_oversample_fills_every_class_up_to_the_largest_and_loses_nothing() -> None:
    order = epoch_order(CLIPS, 0, 0, labels=LABELS, sampler="oversample") - 100
    assert torch.equal(torch.bincount(LABELS[order]), torch.tensor([60, 60, 60]))
    times = torch.bincount(order, minlength=84)
    assert (times >= 1).all()
    assert (times[LABELS == 0] == 1).all()
    even = torch.arange(6).repeat_interleave(5)
    assert sorted(epoch_order(torch.arange(30), 0, 0, labels=even, sampler="oversample").tolist()) == list(range(30))


def test_class_balanced_4x_has_each_class_as_often_exactly() -> None:
    labels = torch.tensor([0] * 11 + [1] * 3 + [2] * 2)  # 64 draws of 3 classes
    order = epoch_order(torch.arange(16), 0, 0, labels=labels, sampler="class_balanced_4x")
    assert torch.equal(torch.bincount(labels[order]), torch.tensor([22, 21, 21]))
    drawn = torch.zeros(16)
    for epoch in range(400):
        drawn += torch.bincount(epoch_order(torch.arange(16), 0, epoch, labels=labels, sampler="class_balanced_4x"), minlength=16)
    for label in range(3):  # within a class, each clip as often
        share = drawn[labels == label] / drawn[labels == label].sum()
        spread = 5 * (float(share.mean()) / float(drawn[labels == label].sum())) ** 0.5
        torch.testing.assert_close(share, torch.full_like(share, 1 / len(share)), rtol=0, atol=spread)


def test_tail_third_repeats_the_smallest_third_of_the_classes() -> None:
    sizes = torch.tensor([12, 60, 7, 30, 25, 60, 5])  # int(7 / 3) * 2 = 4 classes are left alone: 60, 60, 30, 25
    labels = torch.repeat_interleave(torch.arange(7), sizes)
    order = epoch_order(torch.arange(len(labels)), 0, 0, labels=labels, sampler="tail_third")
    times = torch.bincount(order, minlength=len(labels))
    for label in (1, 3, 4, 5):
        assert (times[labels == label] == 1).all()
    assert (times[labels == 0] == 5).all()  # 60 / 12
    assert (times[labels == 6] == 12).all()  # 60 / 5
    assert sorted(times[labels == 2].tolist()) == [8] * 4 + [9] * 3  # 60 / 7 = 8 + 4 / 7: int(7 * 4 / 7 in floating point) = 3
