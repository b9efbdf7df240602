"""Losses of clean and mixed clips, adjusted by the class prior."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot


def balanced_mix_loss(logits: Tensor, labels: Tensor, partner: Tensor, lam: Tensor, log_prior: Tensor) -> tuple[Tensor, Tensor]:
    """Logit-adjusted cross-entropy of the batch [clean; mixed].

    Args:
        logits: [2N, K], of the clean clips, then of the mixed ones; or [N, K] where nothing is mixed.
        labels: [N] int64.
        partner: [N] int64, the sample mixed in.
        lam: [N], the partner's share of the label (`MixPlan.label_share`).
        log_prior: [K], log of the class frequencies; zeros give plain cross-entropy.

    Returns:
        (clean, mixed), each a mean over N; mixed is 0 where nothing is mixed. The training loss is their sum.

    Source: paper section 3.3; fixture `loss`.
    """
    n, num_classes = len(labels), logits.shape[1]
    adjusted = logits + log_prior
    clean = cross_entropy(adjusted[:n], labels)
    if len(logits) == n:
        return clean, logits.new_zeros(())
    share = lam.to(adjusted.dtype)[:, None]
    target = one_hot(labels, num_classes) * (1 - share) + one_hot(labels[partner], num_classes) * share
    return clean, cross_entropy(adjusted[n:], target)


def log_class_prior(class_counts: Tensor) -> Tensor:
    """[K] training clips of each class, all > 0 -> [K] float64 log frequencies."""
    counts = class_counts.double()
    return (counts / counts.sum()).log()
