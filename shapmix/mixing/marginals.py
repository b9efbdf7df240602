"""Whose marginal the published estimator measures: a combination and a context for each sample."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from shapmix.draws.philox import integers, random_words
from shapmix.skeleton.layout import Layout

# What a random word is for; the numbers are part of what a seed means, so they never change. `draw_plan` has 1 and 2.
_MARGINAL = 3


class Marginals(NamedTuple):
    """Whose marginal is measured on each sample: columns [N] int64 of the layout's combinations, contexts [N] bit sets."""

    columns: Tensor
    contexts: Tensor


def draw_marginals(
    batch: int,
    layout: Layout,
    *,
    seed: int,
    step: int | Tensor,
    shared: bool = False,
    naive: bool = False,
    combinations: Tensor | None = None,
) -> Marginals:
    """A combination P and a context R, disjoint from it, for each sample: the size of R uniform, then R uniform of that size.

    Args:
        shared: one draw for the whole batch (the published code); otherwise one a sample.
        naive: R empty (the published code's first epochs).
        combinations: the layout's, on the device where the draw is wanted; a `step` of that device is not read by the host.

    Source: paper section 3.2.
    """
    parts = layout.num_parts
    combinations = layout.combinations if combinations is None else combinations
    words = random_words(seed, _MARGINAL, step, 1 if shared else batch, 12, combinations.device)
    columns = integers(words[:, 0], 0, len(combinations) - 1)
    each_part = torch.arange(parts, device=combinations.device)
    combination = combinations[columns]
    taken = (combination[:, None] >> each_part & 1).bool()  # [N, P]
    size = integers(words[:, 1], 0, (~taken).sum(1))
    # the parts outside P in random order; R is the first `size` of them
    order = words[:, 4 : 4 + parts].masked_fill(taken, 1 << 32).argsort(dim=1, stable=True)
    first = each_part < size[:, None]
    contexts = (first.long() << order).sum(1)
    if naive:
        contexts = torch.zeros_like(contexts)
    return Marginals(columns.expand(batch), contexts.expand(batch))
