"""Losses. Each is one registered function; `--loss`, `ShapMix(loss=...)`, help texts and errors list the registry.

Most map logits [N, K], labels [N], training clips per class [K] and `weighted` to a loss per clip [N]; a mixed clip is the average
over its two labels, weighted by their shares. To add a custom loss, register it before `ShapMix` or a configuration uses it:

    @loss("twice", on_device=True)
    def twice(logits: Tensor, labels: Tensor, counts: Tensor, weighted: bool) -> Tensor:
        return 2 * cross_entropy(logits, labels, reduction="none")
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from shapmix.kernels import balanced_mix_loss
from shapmix.mixing.mixers import MixedBatch
from shapmix.process.choices import Registry

BETA = 0.9999
GAMMA = 2.0
LARGEST_MARGIN = 0.5
HEAD_SMOOTHING, TAIL_SMOOTHING = 0.4, 0.1  # of the largest and the smallest class; MiSLAS's for CIFAR-100-LT of imbalance 100

ClipLoss = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


class Classes(NamedTuple):
    """Class information for a loss: training clips [K], log frequencies [K], and the phase of the schedule."""

    counts: Tensor
    log_prior: Tensor
    weighted: bool  # whether the losses that defer their class weights apply them by now: from `deferred_steps` on
    backend: str | None = None
    label_smoothing: float = 0.0  # share of each label that is spread over all classes


MixLoss = Callable[[Tensor, MixedBatch, Classes], tuple[Tensor, Tensor]]


class Loss(NamedTuple):
    """A loss (clean, mixed) of logits and a mixed batch, and whether it can be captured in a CUDA graph."""

    of_batch: MixLoss
    on_device: bool


LOSSES = Registry[Loss]("loss")


def loss(name: str, *, on_device: bool = False) -> Callable[[ClipLoss], ClipLoss]:
    """Registers a loss of logits [N, K] and labels [N], given the training clips [K] and `weighted`, that returns [N] losses.

    Args:
        on_device: it depends on neither `weighted` nor values on the host, so it can be captured in a CUDA graph.

    Raises:
        ValueError: the name is already registered.
    """

    def register(of_clips: ClipLoss) -> ClipLoss:
        LOSSES.add(name, Loss(partial(mix_loss, of_clips), on_device))
        return of_clips

    return register


def batch_loss(name: str) -> Callable[[MixLoss], MixLoss]:
    """Registers a loss that computes (clean, mixed) of a whole batch in one op, on the device."""

    def register(of_batch: MixLoss) -> MixLoss:
        LOSSES.add(name, Loss(of_batch, on_device=True))
        return of_batch

    return register


def mix_loss(of_clips: ClipLoss, logits: Tensor, batch: MixedBatch, classes: Classes) -> tuple[Tensor, Tensor]:
    """(clean, mixed), as in `balanced_mix_loss`, from a per-clip loss.

    Args:
        of_clips: maps logits [N, K] and labels [N] to losses [N].
        logits: [2N, K], clean clips first, then mixed ones; or [N, K] without mixed clips.
    """
    labels, n = batch.labels, len(batch.labels)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if classes.label_smoothing:
        of_clips = partial(_smoothed, of_clips, classes.label_smoothing)
    clean = of_clips(logits[:n], labels, classes.counts, classes.weighted).mean()
    if len(logits) == n:
        return clean, logits.new_zeros(())
    share = batch.share.to(logits.dtype)
    own, other = (of_clips(logits[n:], of, classes.counts, classes.weighted) for of in (labels, labels[batch.partner]))
    return clean, ((1 - share) * own + share * other).mean()


def _smoothed(of_clips: ClipLoss, share: float, logits: Tensor, labels: Tensor, counts: Tensor, weighted: bool) -> Tensor:
    """[N]: a per-clip loss with `share` of each label spread over all classes."""
    n, classes = logits.shape
    every_label = torch.arange(classes, device=labels.device).repeat(n)
    spread = of_clips(logits.repeat_interleave(classes, 0), every_label, counts, weighted).view(n, classes).mean(1)
    return (1 - share) * of_clips(logits, labels, counts, weighted) + share * spread


@batch_loss("ce")
def ce(logits: Tensor, batch: MixedBatch, classes: Classes) -> tuple[Tensor, Tensor]:
    """Plain cross-entropy."""
    return balanced(logits, batch, classes._replace(log_prior=torch.zeros_like(classes.log_prior)))


@batch_loss("balanced")
def balanced(logits: Tensor, batch: MixedBatch, classes: Classes) -> tuple[Tensor, Tensor]:
    """Cross-entropy of logits adjusted by the class prior."""
    clean, mixed = balanced_mix_loss(logits, batch.labels, batch.partner, batch.share, classes.log_prior, backend=classes.backend)
    share = classes.label_smoothing
    if not share:
        return clean, mixed
    shifted = logits.to(classes.log_prior.dtype) + classes.log_prior
    spread = shifted.logsumexp(1) - shifted.mean(1)  # mean over the classes of their negative log probabilities
    n = len(batch.labels)
    of_mixed = spread[n:].mean() if len(logits) > n else mixed
    return (1 - share) * clean + share * spread[:n].mean(), (1 - share) * mixed + share * of_mixed


def class_weights(counts: Tensor, beta: float = BETA) -> Tensor:
    """[K]: the inverse of each class's effective number of clips, with a mean of 1 (Cui et al., CVPR 2019, equation 4)."""
    weights = (1 - beta) / (1 - beta ** counts.double()) if beta > 0 else torch.ones_like(counts, dtype=torch.float64)
    return weights / weights.mean()


@loss("class_balanced", on_device=True)
def class_balanced(logits: Tensor, labels: Tensor, counts: Tensor, weighted: bool = True, *, beta: float = BETA) -> Tensor:
    """Cross-entropy weighted by the effective number of clips (Cui et al., CVPR 2019)."""
    return class_weights(counts, beta)[labels].to(logits.dtype) * cross_entropy(logits, labels, reduction="none")


@loss("focal", on_device=True)
def focal(logits: Tensor, labels: Tensor, counts: Tensor, weighted: bool = True, *, gamma: float = GAMMA) -> Tensor:
    """Cross-entropy weighted by (1 - p)^gamma (Lin et al., ICCV 2017)."""
    every = cross_entropy(logits, labels, reduction="none")
    return (-torch.expm1(-every)) ** gamma * every


@loss("ldam")
def ldam(logits: Tensor, labels: Tensor, counts: Tensor, weighted: bool = True) -> Tensor:
    """Cross-entropy with a margin that goes by n^(-1/4), at most 0.5, of the label's logit; with class weights if `weighted`.

    Source: Cao et al., LDAM-DRW, NeurIPS 2019, equation 13 and algorithm 1. There logits are 30 times a cosine; these networks end
    in a plain linear layer, whose logits are taken as they are.
    """
    margin = counts.double() ** -0.25
    margin = (margin * LARGEST_MARGIN / margin.max()).to(logits.dtype)
    lowered = logits.scatter_add(1, labels[:, None], -margin[labels][:, None])
    every = cross_entropy(lowered, labels, reduction="none")
    return class_weights(counts)[labels].to(logits.dtype) * every if weighted else every


@loss("label_aware_smoothing", on_device=True)
def label_aware_smoothing(
    logits: Tensor,
    labels: Tensor,
    counts: Tensor,
    weighted: bool = True,
    *,
    head: float = HEAD_SMOOTHING,
    tail: float = TAIL_SMOOTHING,
) -> Tensor:
    """Cross-entropy of smoothed labels: the larger the class, the more of its label goes to the other classes.

    Source: Zhong et al., MiSLAS, CVPR 2021, section 3.2. There it trains the classifier alone, in a second stage. As in the paper,
    the share of the label is divided among the other K - 1 classes; the published code divides it among all K.
    """
    share = smoothing(counts, head, tail)[labels].to(logits.dtype)
    log_p = logits.log_softmax(1)
    own = log_p.gather(1, labels[:, None])[:, 0]
    return -(1 - share) * own - share / (logits.shape[1] - 1) * (log_p.sum(1) - own)


def smoothing(counts: Tensor, head: float = HEAD_SMOOTHING, tail: float = TAIL_SMOOTHING) -> Tensor:
    """[K]: the share of a label that goes to other classes: `tail` for the smallest class, `head` for the largest, concave."""
    return tail + (head - tail) * torch.sin(torch.pi / 2 * _relative_size(counts))


def _relative_size(counts: Tensor) -> Tensor:
    """[K] float64: 0 for the smallest class, 1 for the largest, linear between; all 0 where classes have one size."""
    least = counts.min()
    return (counts - least).double() / (counts.max() - least).clamp(min=1)


@loss("action_aware")
def action_aware(logits: Tensor, labels: Tensor, counts: Tensor, weighted: bool = True) -> Tensor:
    """Cross-entropy; if `weighted`, weighted by an effective number of clips with a beta of each class.

    Source: Liu et al., BRL, arXiv 2308.14024, the detached action-aware learning schedule. BRL weights the last 5 of its 24
    epochs, and so does the trainer's schedule (the last fifth, rounded up). BRL's code divides by the sum of the weights in a
    batch; here the loss is a mean over the clips, as of `class_balanced`. BRL's code also swaps beta and 1 - beta in every other
    epoch, where its weights are nearly uniform; here they are those of the paper in each of these epochs.
    """
    every = cross_entropy(logits, labels, reduction="none")
    return action_aware_weights(counts)[labels].to(logits.dtype) * every if weighted else every


def action_aware_weights(counts: Tensor) -> Tensor:
    """[K]: (1 - b) / (1 - b^n), with a mean of 1; b is 0.99 for the smallest class, 0.9999 for the largest, linear in n."""
    beta = 0.99 + 0.0099 * _relative_size(counts)
    weights = (1 - beta) / (1 - beta**counts)
    return weights / weights.mean()
