"""Logit-adjusted losses of clean and mixed clips."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot


def balanced_mix_loss(logits: Tensor, labels: Tensor, partner: Tensor, lam: Tensor, log_prior: Tensor) -> tuple[Tensor, Tensor]:
    """Logit-adjusted cross-entropy of the batch [clean; mixed].

    Args:
        logits: [2N, K], clean clips followed by mixed clips; or [N, K] without mixing. Half-precision logits are accumulated in
            the dtype of `log_prior`.
        labels: [N] int64.
        partner: [N] int64, the sample mixed in.
        lam: [N], the partner's share of the label (`MixPlan.label_share`).
        log_prior: [K] float32 (float64 for float64 logits), log class frequencies; zeros give plain cross-entropy.

    Returns:
        (clean, mixed), each a mean over N; mixed is 0 without mixing. The training loss is their sum.

    Source: paper section 3.3; fixture `loss`.
    """
    n, num_classes = len(labels), logits.shape[1]
    adjusted = logits + log_prior
    clean = cross_entropy(adjusted[:n], labels)
    if len(logits) == n:
        return clean, adjusted.new_zeros(())
    share = lam.to(adjusted.dtype)[:, None]
    target = one_hot(labels, num_classes) * (1 - share) + one_hot(labels[partner], num_classes) * share
    return clean, cross_entropy(adjusted[n:], target)


def balanced_mix_loss_backward(
    grad: Tensor, logits: Tensor, labels: Tensor, partner: Tensor, lam: Tensor, log_prior: Tensor
) -> Tensor:
    """Gradient with respect to the logits, given the gradients [2] of both losses; arguments as in `balanced_mix_loss`."""
    n, num_classes = len(labels), logits.shape[1]
    share = lam.to(log_prior.dtype)[:, None]
    clean = one_hot(labels, num_classes).to(log_prior.dtype)
    mixed = clean * (1 - share) + one_hot(labels[partner], num_classes) * share
    target = torch.cat([clean, mixed])[: len(logits)]
    each = grad.repeat_interleave(n)[: len(logits), None] / n
    return ((logits + log_prior).softmax(1) - target).mul(each).to(logits.dtype)


def log_class_prior(class_counts: Tensor) -> Tensor:
    """[K] training clips per class, all > 0 -> [K] float64 log frequencies."""
    counts = class_counts.double()
    return (counts / counts.sum()).log()
