"""Post-hoc logit adjustment: predictions of a trained network without its bias to frequent classes.

Source: Menon et al., ICLR 2021, section 4.1: the class with the largest logit minus tau times the log of its share of the training
clips. It is for networks trained with plain cross-entropy; a loss that adjusts its logits has removed this bias already.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from shapmix.data.clips import Splits
from shapmix.process.errors import RunError
from shapmix.reference import log_class_prior
from shapmix.training import metrics
from shapmix.training.options import Adjustment

TAUS = tuple(number / 10 for number in range(31))

log = logging.getLogger("shapmix")


def adjusted(probabilities: Tensor, class_counts: Tensor, tau: float | None) -> Tensor:
    """Probabilities [N, K] float64 divided by the class prior to the power of tau, with a sum of 1; unchanged for 0 or None.

    Args:
        class_counts: [K] training clips of each class.
    """
    if not tau:
        return probabilities
    return (probabilities.log() - tau * log_class_prior(class_counts).to(probabilities)).softmax(1)


def choose_tau(probabilities: Tensor, labels: Tensor, class_counts: Tensor) -> float:
    """The best tau (`best_tau`) of 0, 0.1, ..., 3 on probabilities [N, K] of clips with labels [N]."""
    return best_tau(TAUS, lambda tau: adjusted(probabilities, class_counts, tau).clamp(min=1e-12).log(), labels)


def best_tau(taus: Sequence[float], logits: Callable[[float], Tensor], labels: Tensor) -> float:
    """The tau with the highest class mean of `logits(tau)` [N, K] for labels [N].

    Few clips give the same class mean to many values; of these it is the one with the lowest log loss, averaged over classes.
    """

    def badness(tau: float) -> tuple[float, float]:
        found = logits(tau)
        clips = torch.bincount(labels, minlength=found.shape[1])
        every_class_alike = torch.where(clips > 0, 1 / clips, 0).to(found)
        by_class = metrics.class_accuracy(metrics.confusion_matrix(found, labels))
        return -float(by_class.nanmean()), float(cross_entropy(found, labels, every_class_alike))

    return min(taus, key=badness)


def find_tau(asked: Adjustment | None, splits: Splits, score: Callable[[Tensor], Tensor]) -> float | None:
    """The tau that was asked for, chosen on the validation clips if that was; None if none was.

    Args:
        score: clips [N] of the store -> their probabilities [N, K] without adjustment.

    Raises:
        RunError: there are no validation clips to choose on.
    """
    if asked != "validation":
        return asked
    if not len(splits.val):
        raise RunError("logit_adjustment: there are no validation clips to choose tau on; give a number")
    tau = choose_tau(score(splits.val), splits.store.labels[splits.val], splits.class_counts())
    log.info("logit adjustment: tau %g is the best on %d validation clips", tau, len(splits.val))
    return tau
