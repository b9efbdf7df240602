"""Losses for long tails: their formulas in float64, their gradients, and what they do to the two labels of a mixed clip."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy

from shapmix.mixing.losses import (
    LOSSES,
    Classes,
    action_aware,
    action_aware_weights,
    class_balanced,
    class_weights,
    focal,
    label_aware_smoothing,
    ldam,
    smoothing,
)
from shapmix.mixing.mixers import MixedBatch

COUNTS = np.array([600, 120, 40, 6])
LABELS = np.arange(12) % 4
N, SIZES, OF_CLIPS = len(LABELS), torch.tensor(COUNTS), torch.tensor(LABELS)
PER_CLIP = {
    "class_balanced": class_balanced,
    "focal": focal,
    "ldam": ldam,
    "label_aware_smoothing": label_aware_smoothing,
    "action_aware": action_aware,
}


def made_logits() -> tuple[torch.Tensor, npt.NDArray[np.float64]]:
    logits = torch.randn(len(LABELS), len(COUNTS), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return logits.requires_grad_(), logits.detach().numpy()


def log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return logits - logits.max(1, keepdims=True) - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))


def test_without_their_point_losses_are_cross_entropy() -> None:
    logits, labels = made_logits()[0], OF_CLIPS
    plain = cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(focal(logits, labels, SIZES, gamma=0.0), plain)
    torch.testing.assert_close(class_balanced(logits, labels, SIZES, beta=0.0), plain)
    alike = torch.full((4,), 50)
    torch.testing.assert_close(class_balanced(logits, labels, alike), plain)


def test_class_weights_go_by_the_effective_number() -> None:
    weights = class_weights(torch.tensor([1, 10, 1000]), beta=0.99)
    effective = torch.tensor([1.0, (1 - 0.99**10) / 0.01, (1 - 0.99**1000) / 0.01], dtype=torch.float64)
    torch.testing.assert_close(weights * effective, (weights * effective)[:1].expand(3))
    assert float(weights.mean()) == pytest.approx(1)
    near = class_weights(SIZES, beta=1 - 1e-7) * SIZES
    torch.testing.assert_close(near, near[:1].expand(4), rtol=1e-4, atol=0)  # beta near 1: the inverse of the size


def test_focal_weighs_by_what_is_missing() -> None:
    logits, labels = made_logits()[0], OF_CLIPS
    p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(focal(logits, labels, SIZES), -((1 - p) ** 2) * p.log())


def test_ldam_lowers_the_logit_of_rare_labels_most() -> None:
    logits, labels = made_logits()[0], OF_CLIPS
    margin = SIZES.double() ** -0.25
    margin = margin / margin.max() * 0.5
    lowered = logits.detach().clone()
    lowered[torch.arange(N), labels] -= margin[labels]
    plain = cross_entropy(lowered, labels, reduction="none")
    torch.testing.assert_close(ldam(logits, labels, SIZES, False), plain)
    torch.testing.assert_close(ldam(logits, labels, SIZES, True), plain * class_weights(SIZES)[labels])


@pytest.mark.parametrize("name", PER_CLIP)
def test_gradients(name: str) -> None:
    logits, labels = made_logits()[0], OF_CLIPS
    assert torch.autograd.gradcheck(lambda x: PER_CLIP[name](x, labels, SIZES, True), logits)


@pytest.mark.parametrize("name", PER_CLIP)
def test_a_mixed_clip_has_the_loss_of_both_labels(name: str) -> None:
    torch.manual_seed(0)
    logits, partner, share = torch.randn(2 * N, 4, dtype=torch.float64), torch.randperm(N), torch.rand(N)
    batch, classes = MixedBatch(torch.zeros(0), OF_CLIPS, partner, share), Classes(SIZES, SIZES.double().log(), True)
    clean, both = LOSSES[name].of_batch(logits, batch, classes)
    torch.testing.assert_close(clean, PER_CLIP[name](logits[:N], OF_CLIPS, SIZES, True).mean())
    own, other = (PER_CLIP[name](logits[N:], of, SIZES, True) for of in (OF_CLIPS, OF_CLIPS[partner]))
    torch.testing.assert_close(both, (own * (1 - share.double()) + other * share.double()).mean())
    alone, none = LOSSES[name].of_batch(logits[:N], batch, classes)
    assert float(none) == 0
    torch.testing.assert_close(alone, clean)


def test_label_aware_smoothing_is_its_formula() -> None:
    given, logits = made_logits()
    head, tail = 0.4, 0.1
    share = tail + (head - tail) * np.sin(np.pi * (COUNTS - 6) / (2 * (600 - 6)))
    target = np.stack([np.full(4, share[label] / 3) for label in LABELS])
    target[np.arange(len(LABELS)), LABELS] = 1 - share[LABELS]
    expected = -(target * log_softmax(logits)).sum(1)
    found = label_aware_smoothing(given, OF_CLIPS, SIZES)
    np.testing.assert_allclose(found.detach().numpy(), expected)
    found = smoothing(SIZES, head, tail)
    np.testing.assert_allclose(found.numpy(), share)
    assert (float(found[0]), float(found[-1])) == pytest.approx((head, tail))


def test_smoothing_of_the_same_share_is_torchs() -> None:
    """torch spreads the share over all K classes, the label among them: a share of s there is s (K - 1) / K here."""
    given, _ = made_logits()
    found = label_aware_smoothing(given, OF_CLIPS, SIZES, head=0.2 * 3 / 4, tail=0.2 * 3 / 4)
    torch.testing.assert_close(found, cross_entropy(given, OF_CLIPS, reduction="none", label_smoothing=0.2))


def test_no_smoothing_is_cross_entropy() -> None:
    given, _ = made_logits()
    found = label_aware_smoothing(given, OF_CLIPS, SIZES, head=0.0, tail=0.0)
    torch.testing.assert_close(found, cross_entropy(given, OF_CLIPS, reduction="none"))


def test_classes_of_one_size_are_smoothed_alike() -> None:
    assert smoothing(torch.full((4,), 50)).tolist() == pytest.approx([0.1] * 4)


def test_action_aware_weights_are_their_formula() -> None:
    beta = 0.99 + 0.0099 * (COUNTS - 6) / (600 - 6)
    weights = (1 - beta) / (1 - beta**COUNTS)
    weights = weights / weights.sum() * 4
    np.testing.assert_allclose(action_aware_weights(SIZES).numpy(), weights)
    assert (np.diff(weights) > 0).all()
    given, logits = made_logits()
    plain = -log_softmax(logits)[np.arange(len(LABELS)), LABELS]
    for deferred, expected in ((False, plain), (True, weights[LABELS] * plain)):
        found = action_aware(given, OF_CLIPS, SIZES, deferred)
        np.testing.assert_allclose(found.detach().numpy(), expected)


def test_classes_of_one_size_have_the_weight_one() -> None:
    assert action_aware_weights(torch.full((4,), 50)).tolist() == pytest.approx([1.0] * 4)


@pytest.mark.parametrize("name", ["label_aware_smoothing", "action_aware"])
def test_rows_that_another_process_computes_have_no_gradient(name: str) -> None:
    """Several processes and passes pad the logits with zeros that have no gradient; theirs add up to that of the batch."""
    torch.manual_seed(0)
    batch = MixedBatch(torch.zeros(0), OF_CLIPS, torch.randperm(N), torch.rand(N))
    classes = Classes(SIZES, SIZES.double().log(), True)
    whole = torch.randn(2 * N, 4, dtype=torch.float64, requires_grad=True)
    sum(LOSSES[name].of_batch(whole, batch, classes)).backward()
    for rows in (torch.arange(0, 2 * N, 2), torch.arange(1, 2 * N, 2)):
        mine = whole.detach()[rows].requires_grad_()
        sum(LOSSES[name].of_batch(torch.zeros(2 * N, 4, dtype=torch.float64).index_copy(0, rows, mine), batch, classes)).backward()
        torch.testing.assert_close(mine.grad, whole.grad[rows])


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.on_device])
def test_losses_on_the_device_read_no_value(name: str) -> None:
    """A fake tensor has no values: a loss that reads one raises, and so would its capture in a CUDA graph."""
    with FakeTensorMode():
        labels, partner, counts = (torch.zeros(size, dtype=torch.int64) for size in (N, N, 4))
        batch = MixedBatch(torch.zeros(0), labels, partner, torch.zeros(N))
        clean, mixed = LOSSES[name].of_batch(torch.zeros(2 * N, 4), batch, Classes(counts, torch.zeros(4), True))
    assert clean.shape == mixed.shape == ()
