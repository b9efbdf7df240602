"""bench.mixing_reasons on games with a known answer."""

from __future__ import annotations

import pytest
import torch

from bench.mixing_reasons import held, of_table, shares_of_the_rarer
from bench.saliency_estimators import Truth
from shapmix import ShapMix, load_layout

NTU = load_layout("ntu25")


def truth() -> Truth:
    """Two classes of four clips: the class has probability 0.9 if its part moves (part 0 of class 0, 3 of class 1), else 0.1."""
    labels = torch.arange(8) % 2
    coalition = torch.arange(32)
    moves = torch.stack([coalition & 1, coalition >> 3 & 1]).bool()[labels]  # [n, 32]
    own = torch.where(moves, 0.9, 0.1)
    probability = torch.stack([own, 1 - own], 2)
    probability[labels == 1] = probability[labels == 1].flip(2)
    return Truth(probability.log(), labels, NTU)


def test_what_a_combination_holds() -> None:
    holds = torch.stack([NTU.combinations & 1, NTU.combinations >> 3 & 1]).bool()
    torch.testing.assert_close(held(truth()).float(), torch.where(holds, 1.0, 1 / 9))


def test_the_true_table_is_not_wrong_and_keeps_more_than_chance() -> None:
    known = truth()
    found = of_table(known, known.table, 0.2)
    assert found["error"].abs().max() < 1e-12
    assert found["wrong"].abs().max() < 1e-12
    torch.testing.assert_close(found["kept_guided"], found["kept_true"])
    torch.testing.assert_close(found["kept_random"], torch.full((2,), (1 + 1 / 9) / 2, dtype=torch.float64))  # half contain it
    torch.testing.assert_close(found["kept_best"], torch.ones(2, dtype=torch.float64))
    assert (found["kept_true"] > found["kept_random"] + 0.1).all()
    assert (of_table(known, known.table, 0.02)["kept_true"] > 0.95).all()  # a low temperature selects the best


def test_an_empty_table_does_not_guide() -> None:
    found = of_table(truth(), torch.zeros(2, 20, dtype=torch.float64), 0.2)
    assert found["from_uniform"].abs().max() < 1e-12
    torch.testing.assert_close(found["kept_guided"], found["kept_random"])
    torch.testing.assert_close(found["wrong"], found["true_from_uniform"])
    assert found["error"].square().mean().sqrt() == pytest.approx(1)


def test_the_share_is_that_of_the_rarer_class() -> None:
    counts = torch.tensor([30, 10, 4])
    mixer = ShapMix(NTU, counts, torch.zeros(3, 64, 25, 2))
    labels = torch.cat([torch.full((int(count),), label) for label, count in enumerate(counts)])
    share = shares_of_the_rarer(torch.arange(44), labels, mixer, 11)
    assert share[0].isnan()  # the most frequent class is never the rarer
    assert ((share[1:] > 0.3) & (share[1:] < 0.7)).all()
