"""Losses for long tails against their formulas, written in float64 NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy

from shapmix.mixing.losses import LOSSES, Classes, action_aware, action_aware_weights, label_aware_smoothing, smoothing
from shapmix.mixing.mixers import MixedBatch

COUNTS = np.array([600, 120, 40, 6])
LABELS = np.arange(12) % 4


def made_logits() -> tuple[torch.Tensor, npt.NDArray[np.float64]]:
    logits = torch.randn(len(LABELS), len(COUNTS), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return logits.requires_grad_(), logits.detach().numpy()


def log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return logits - logits.max(1, keepdims=True) - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))


def test_label_aware_smoothing_is_its_formula() -> None:
    given, logits = made_logits()
    head, tail = 0.4, 0.1
    share = tail + (head - tail) * np.sin(np.pi * (COUNTS - 6) / (2 * (600 - 6)))
    target = np.stack([np.full(4, share[label] / 3) for label in LABELS])
    target[np.arange(len(LABELS)), LABELS] = 1 - share[LABELS]
    expected = -(target * log_softmax(logits)).sum(1)
    found = label_aware_smoothing(given, torch.tensor(LABELS), torch.tensor(COUNTS))
    np.testing.assert_allclose(found.detach().numpy(), expected)
    found = smoothing(torch.tensor(COUNTS), head, tail)
    np.testing.assert_allclose(found.numpy(), share)
    assert (float(found[0]), float(found[-1])) == pytest.approx((head, tail))


def test_smoothing_of_the_same_share_is_torchs() -> None:
    """torch spreads the share over all K classes, the label among them: a share of s there is s (K - 1) / K here."""
    given, _ = made_logits()
    labels = torch.tensor(LABELS)
    found = label_aware_smoothing(given, labels, torch.tensor(COUNTS), head=0.2 * 3 / 4, tail=0.2 * 3 / 4)
    torch.testing.assert_close(found, cross_entropy(given, labels, reduction="none", label_smoothing=0.2))


def test_no_smoothing_is_cross_entropy() -> None:
    given, _ = made_logits()
    labels = torch.tensor(LABELS)
    found = label_aware_smoothing(given, labels, torch.tensor(COUNTS), head=0.0, tail=0.0)
    torch.testing.assert_close(found, cross_entropy(given, labels, reduction="none"))


def test_classes_of_one_size_are_smoothed_alike() -> None:
    assert smoothing(torch.full((4,), 50)).tolist() == pytest.approx([0.1] * 4)


def test_action_aware_weights_are_their_formula() -> None:
    beta = 0.99 + 0.0099 * (COUNTS - 6) / (600 - 6)
    weights = (1 - beta) / (1 - beta**COUNTS)
    weights = weights / weights.sum() * 4
    np.testing.assert_allclose(action_aware_weights(torch.tensor(COUNTS)).numpy(), weights)
    assert (np.diff(weights) > 0).all()
    given, logits = made_logits()
    plain = -log_softmax(logits)[np.arange(len(LABELS)), LABELS]
    for deferred, expected in ((False, plain), (True, weights[LABELS] * plain)):
        found = action_aware(given, torch.tensor(LABELS), torch.tensor(COUNTS), deferred)
        np.testing.assert_allclose(found.detach().numpy(), expected)


def test_classes_of_one_size_have_the_weight_one() -> None:
    assert action_aware_weights(torch.full((4,), 50)).tolist() == pytest.approx([1.0] * 4)


@pytest.mark.parametrize("name", ["label_aware_smoothing", "action_aware"])
def test_rows_that_another_process_computes_have_no_gradient(name: str) -> None:
    """Several processes and passes pad the logits with zeros that have no gradient; theirs add up to that of the batch."""
    torch.manual_seed(0)
    n = len(LABELS)
    batch = MixedBatch(torch.zeros(0), torch.tensor(LABELS), torch.randperm(n), torch.rand(n))
    classes = Classes(torch.tensor(COUNTS), torch.tensor(COUNTS).double().log(), True)
    whole = torch.randn(2 * n, 4, dtype=torch.float64, requires_grad=True)
    sum(LOSSES[name].of_batch(whole, batch, classes)).backward()
    for rows in (torch.arange(0, 2 * n, 2), torch.arange(1, 2 * n, 2)):
        mine = whole.detach()[rows].requires_grad_()
        sum(LOSSES[name].of_batch(torch.zeros(2 * n, 4, dtype=torch.float64).index_copy(0, rows, mine), batch, classes)).backward()
        torch.testing.assert_close(mine.grad, whole.grad[rows])


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.on_device])
def test_losses_on_the_device_read_no_value(name: str) -> None:
    """A fake tensor has no values: a loss that reads one raises, and so would its capture in a CUDA graph."""
    n = len(LABELS)
    with FakeTensorMode():
        labels, partner, counts = (torch.zeros(size, dtype=torch.int64) for size in (n, n, 4))
        batch = MixedBatch(torch.zeros(0), labels, partner, torch.zeros(n))
        clean, mixed = LOSSES[name].of_batch(torch.zeros(2 * n, 4), batch, Classes(counts, torch.zeros(4), True))
    assert clean.shape == mixed.shape == ()
