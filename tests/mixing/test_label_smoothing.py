"""Smoothed labels, against torch's cross-entropy."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from shapmix.mixing.losses import LOSSES, Classes, class_weights
from shapmix.mixing.mixer import ShapMix
from shapmix.mixing.mixers import MixedBatch
from shapmix.skeleton.layout import load_layout

N, K = 6, 5
COUNTS = torch.tensor([50, 20, 9, 4, 1])
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(2 * N, K, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
PARTNER = torch.tensor([1, 2, 3, 4, 5, 0])
SHARE = torch.rand(N, generator=GENERATOR, dtype=torch.float64)
PRIOR = (COUNTS.double() / COUNTS.sum()).log()


def losses(name: str, smoothing: float, logits: torch.Tensor = LOGITS) -> tuple[torch.Tensor, torch.Tensor]:
    classes = Classes(COUNTS, PRIOR, True, label_smoothing=smoothing)
    return LOSSES[name].of_batch(logits, MixedBatch(torch.zeros(0), LABELS, PARTNER, SHARE), classes)


def expected(smoothing: float, prior: torch.Tensor, weight: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's loss of the clean clips, and of the mixed ones with each of their labels."""

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits + prior, labels, weight=weight, label_smoothing=smoothing, reduction="none")

    mixed = (1 - SHARE) * loss(LOGITS[N:], LABELS) + SHARE * loss(LOGITS[N:], LABELS[PARTNER])
    return loss(LOGITS[:N], LABELS).mean(), mixed.mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("name", ["ce", "balanced", "class_balanced"])
def test_smoothed_losses_are_those_of_torch(name: str, smoothing: float) -> None:
    prior = PRIOR if name == "balanced" else torch.zeros(K, dtype=torch.float64)
    weight = class_weights(COUNTS) if name == "class_balanced" else None
    torch.testing.assert_close(losses(name, smoothing), expected(smoothing, prior, weight))


def test_a_smoothed_mixed_label_is_a_soft_target() -> None:
    soft = (1 - SHARE)[:, None] * one_hot(LABELS, K) + SHARE[:, None] * one_hot(LABELS[PARTNER], K)
    torch.testing.assert_close(losses("ce", 0.2)[1], cross_entropy(LOGITS[N:], 0.8 * soft + 0.2 / K))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_is_smoothed_and_has_gradients(name: str) -> None:
    logits = LOGITS.clone().requires_grad_()
    smoothed, plain = losses(name, 0.3, logits), losses(name, 0.0, logits)
    assert all(not torch.allclose(a, b) for a, b in zip(smoothed, plain, strict=True))
    sum(smoothed).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad.abs().sum(1) > 0).all()


def test_clean_clips_alone_have_no_mixed_loss() -> None:
    for name in ("balanced", "focal"):
        clean, mixed = losses(name, 0.1, LOGITS[:N])
        assert float(mixed) == 0
        torch.testing.assert_close(clean, losses(name, 0.1)[0])


def test_the_mixer_smooths_as_it_is_told() -> None:
    layout = load_layout("ntu25")
    batch = MixedBatch(torch.zeros(2 * N, 3, 8, 25, 1), LABELS, PARTNER, SHARE)
    mixer = ShapMix(layout, COUNTS, torch.zeros(3, 8, 25, 1, dtype=torch.float64), label_smoothing=0.1)
    torch.testing.assert_close(mixer.loss(LOGITS, batch), losses("balanced", 0.1))
    with pytest.raises(ValueError, match=r"^label_smoothing is at least 0 and below 1, not 1"):
        ShapMix(layout, COUNTS, torch.zeros(3, 8, 25, 1), label_smoothing=1)
