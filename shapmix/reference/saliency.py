"""Saliency of body parts: value of a coalition, marginal of a combination, and the class table they feed."""

from __future__ import annotations

from itertools import combinations as subsets
from math import comb

import torch
from torch import Tensor


def label_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """v(A) of each row: softmax(logits)[label]. logits [N, K], labels [N] int64 -> [N]."""
    return logits.softmax(1).gather(1, labels[:, None]).squeeze(1)


def marginals(with_parts: Tensor, without_parts: Tensor) -> Tensor:
    """ReLU(v(R u P) - v(R)), elementwise; `without_parts` may be a single shared v(none) of shape [1]."""
    return (with_parts - without_parts).relu()


def expected_marginals(values: Tensor, combinations: Tensor, num_parts: int) -> Tensor:
    """Mean of the rectified marginal of each combination over all contexts, weighted as they are drawn.

    What the sampled marginal of `shapmix.plan.draw_marginals` is an estimate of: the context's size uniform on
    0..parts outside the combination, then the context uniform of that size.

    Args:
        values: [N, 2^P], v of every coalition in bit-set order.
        combinations: [Q] int64 bit sets.
        num_parts: P.

    Returns:
        [N, Q].

    Source: paper section 3.2.
    """
    columns = []
    for combination in combinations.tolist():
        outside = [part for part in range(num_parts) if not combination >> part & 1]
        contexts = [sum(1 << part for part in chosen) for size in range(len(outside) + 1) for chosen in subsets(outside, size)]
        sizes = [size for size in range(len(outside) + 1) for _ in range(comb(len(outside), size))]
        weights = [1 / ((len(outside) + 1) * comb(len(outside), size)) for size in sizes]
        context, weight = torch.tensor(contexts), values.new_tensor(weights)
        columns.append((marginals(values[:, context | combination], values[:, context]) * weight).sum(1))
    return torch.stack(columns, 1)


def update_saliency(
    table: Tensor,
    labels: Tensor,
    columns: Tensor,
    marginal: Tensor,
    joint_counts: Tensor,
    decay: float,
    *,
    scale: float = 10.0,
) -> None:
    """Class EMA, in place: table[y, P] <- decay * table[y, P] + (1 - decay) * marginal * scale / joints(P).

    Sample by sample: a class that occurs twice in the batch is updated twice, in order.

    Args:
        table: [K, Q], Q the layout's combinations.
        labels, columns: [N] int64, row and column of each update.
        marginal: [N].
        joint_counts: [Q], joints in each combination.
        decay: 0 replaces, 0.9 is the paper's.
        scale: the paper's 10 (the joints of two average parts of `ntu25`); the softmax of the mixing has its
            temperature in these units.

    Source: paper section 3.2; fixtures `ema` and `train_steps_ntu`.
    """
    weight = marginal * scale / joint_counts[columns].to(marginal.dtype)
    for label, column, value in zip(labels.tolist(), columns.tolist(), weight, strict=True):
        table[label, column] = decay * table[label, column] + (1 - decay) * value
