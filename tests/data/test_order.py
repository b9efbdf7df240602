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
