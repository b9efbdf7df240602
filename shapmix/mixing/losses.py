"""Losses that the balanced loss is compared with. All take what `balanced_mix_loss` takes, and the classes' sizes.

Each is a function of logits [N, K] and labels [N] that gives a loss a clip [N]; a mixed clip has that of both its labels, weighted
by their shares.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

BETA = 0.9999
GAMMA = 2.0
LARGEST_MARGIN = 0.5

Loss = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def class_weights(counts: Tensor, beta: float = BETA) -> Tensor:
    """[K]: the inverse of each class's effective number of clips, with a mean of 1 (Cui et al., CVPR 2019, equation 4)."""
    weights = (1 - beta) / (1 - beta ** counts.double()) if beta > 0 else torch.ones_like(counts, dtype=torch.float64)
    return weights / weights.mean()


def class_balanced(logits: Tensor, labels: Tensor, counts: Tensor, deferred: bool = True, *, beta: float = BETA) -> Tensor:
    """Cross-entropy weighted by the effective number of clips (Cui et al., CVPR 2019)."""
    return class_weights(counts, beta)[labels].to(logits.dtype) * cross_entropy(logits, labels, reduction="none")


def focal(logits: Tensor, labels: Tensor, counts: Tensor, deferred: bool = True, *, gamma: float = GAMMA) -> Tensor:
    """Cross-entropy weighted by (1 - p)^gamma (Lin et al., ICCV 2017)."""
    every = cross_entropy(logits, labels, reduction="none")
    return (-torch.expm1(-every)) ** gamma * every


def ldam(logits: Tensor, labels: Tensor, counts: Tensor, deferred: bool = True) -> Tensor:
    """Cross-entropy with a margin that goes by n^(-1/4), at most 0.5, of the label's logit; class weights once `deferred` is over.

    Source: Cao et al., LDAM-DRW, NeurIPS 2019, equation 13 and algorithm 1. There logits are 30 times a cosine; these networks end
    in a plain linear layer, whose logits are taken as they are.
    """
    margin = counts.double() ** -0.25
    margin = (margin * LARGEST_MARGIN / margin.max()).to(logits.dtype)
    lowered = logits.scatter_add(1, labels[:, None], -margin[labels][:, None])
    every = cross_entropy(lowered, labels, reduction="none")
    return class_weights(counts)[labels].to(logits.dtype) * every if deferred else every


LOSSES: dict[str, Loss] = {"class_balanced": class_balanced, "focal": focal, "ldam": ldam}


def mix_loss(
    loss: Loss, logits: Tensor, labels: Tensor, partner: Tensor, share: Tensor, counts: Tensor, deferred: bool = True
) -> tuple[Tensor, Tensor]:
    """(clean, mixed), as `balanced_mix_loss` has them, of another loss.

    Args:
        loss: one of `LOSSES`.
        logits: [2N, K], of the clean clips, then of the mixed ones; or [N, K] where nothing is mixed.
        labels, partner, share: [N].
        counts: [K] training clips of each class.
        deferred: whether the part of the training is reached in which LDAM weights its classes.
    """
    n = len(labels)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    clean = loss(logits[:n], labels, counts, deferred).mean()
    if len(logits) == n:
        return clean, logits.new_zeros(())
    share = share.to(logits.dtype)
    own, other = (loss(logits[n:], of, counts, deferred) for of in (labels, labels[partner]))
    return clean, ((1 - share) * own + share * other).mean()
