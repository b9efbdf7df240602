"""Draws the marginals of the published estimator: a combination and a context for each sample."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from shapmix.draws.philox import integers, random_words
from shapmix.draws.purposes import MARGINAL
from shapmix.skeleton.layout import Layout

FORWARDS = 2  # per sample, the published budget


class Marginals(NamedTuple):
    """The marginal to measure on each sample: columns [N] int64 of the layout's combinations, contexts [N] bit sets."""

    columns: Tensor
    contexts: Tensor


class Request(NamedTuple):
    """The batch to measure, and the state of its random draws.

    times_measured [N]: how often the class of each sample was measured; estimators that select samples take the least measured
    first. seed, step: determine every draw; `step` counts measurements. A tensor `step` is not read by the host, and `combinations`
    are then on its device.
    shared: one draw for the whole batch (the published code) instead of one per sample. naive: all contexts are empty (the first
    epochs of the published code). budget: forward passes per sample, the empty coalition of the batch aside.
    """

    times_measured: Tensor
    layout: Layout
    seed: int
    step: int | Tensor
    shared: bool = False
    naive: bool = False
    combinations: Tensor | None = None
    budget: float = FORWARDS


def draw_marginals(request: Request) -> Marginals:
    """A combination P and a context R, disjoint from it, for each sample: the size of R uniform, then R uniform of that size.

    Source: paper section 3.2.
    """
    batch, layout, combinations = len(request.times_measured), request.layout, request.combinations
    parts = layout.num_parts
    combinations = layout.combinations if combinations is None else combinations
    words = random_words(request.seed, MARGINAL, request.step, 1 if request.shared else batch, 12, combinations.device)
    columns = integers(words[:, 0], 0, len(combinations) - 1)
    each_part = torch.arange(parts, device=combinations.device)
    combination = combinations[columns]
    taken = (combination[:, None] >> each_part & 1).bool()  # [N, P]
    size = integers(words[:, 1], 0, (~taken).sum(1))
    # the parts outside P in random order; R is the first `size` of them
    order = words[:, 4 : 4 + parts].masked_fill(taken, 1 << 32).argsort(dim=1, stable=True)
    first = each_part < size[:, None]
    contexts = (first.long() << order).sum(1)
    if request.naive:
        contexts = torch.zeros_like(contexts)
    return Marginals(columns.expand(batch), contexts.expand(batch))
