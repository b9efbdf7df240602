"""Saliency of body parts: coalition values, marginals of combinations, and the class table of their moving averages."""

from __future__ import annotations

from itertools import combinations as subsets
from math import comb
from typing import NamedTuple

import torch
from torch import Tensor


def label_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """v(A) of each row: softmax(logits)[label]. logits [N, K], labels [N] int64 -> [N]."""
    return logits.softmax(1).gather(1, labels[:, None]).squeeze(1)


def marginals(with_parts: Tensor, without_parts: Tensor) -> Tensor:
    """ReLU(v(R u P) - v(R)), elementwise; `without_parts` may be a single shared v(none) of shape [1]."""
    return (with_parts - without_parts).relu()


def expected_marginals(values: Tensor, combinations: Tensor, num_parts: int) -> Tensor:
    """Expected rectified marginal of each combination over all contexts, weighted by their probability.

    The sampled marginals of `shapmix.mixing.marginals` estimate this value: the size of the context is uniform on 0..parts outside
    the combination, then the context is uniform among those of that size.

    Args:
        values: [N, 2^P], v of every coalition in bit-set order.
        combinations: [Q] int64 bit sets.
        num_parts: P.

    Returns:
        [N, Q].

    Source: paper section 3.2.
    """
    with_sets, without_sets, weights = contexts(combinations, num_parts)
    each = marginals(values[:, with_sets], values[:, without_sets])  # [N, Q, J]
    return (each * weights.to(values)).sum(2)


class Contexts(NamedTuple):
    """Every context R of every combination P: the sets R u P and R, and the probability of R.

    [Q, J] each, where J is the number of contexts of the smallest combination; rows of larger ones are padded with weight 0.
    """

    with_sets: Tensor
    without_sets: Tensor
    weights: Tensor


def contexts(combinations: Tensor, num_parts: int) -> Contexts:
    """Contexts of [Q] int64 bit sets: size of R uniform on 0..parts outside P, then R uniform among those of that size."""
    rows = []
    for combination in combinations.tolist():
        outside = [part for part in range(num_parts) if not combination >> part & 1]
        rows.append(
            [
                (sum(1 << part for part in chosen), 1 / ((len(outside) + 1) * comb(len(outside), size)))
                for size in range(len(outside) + 1)
                for chosen in subsets(outside, size)
            ]
        )
    width = max(map(len, rows))
    padded = [row + [(0, 0.0)] * (width - len(row)) for row in rows]
    without_sets = torch.tensor([[context for context, _ in row] for row in padded])
    weights = torch.tensor([[weight for _, weight in row] for row in padded], dtype=torch.float64)
    return Contexts(combinations.cpu()[:, None] | without_sets, without_sets, weights)


def saliency_update(
    table: Tensor,
    logits: Tensor,
    labels: Tensor,
    columns: Tensor,
    with_rows: Tensor,
    without_rows: Tensor,
    joint_counts: Tensor,
    decay: float,
    *,
    weights: Tensor | None = None,
    scale: float = 10.0,
) -> Tensor:
    """Updates the class table in place from the logits of coalitions.

    Update u measures combination P = columns[u] on a sample of class y = labels[u]: its marginal is
    ReLU(v(R u P) - v(R)), v the probability of y, or the weighted sum of several such marginals; `average_in` updates the
    table.

    Args:
        table: [K, Q] floating point, Q combinations of the layout.
        logits: [L, K] floating point, one row per coalition; no gradient flows.
        labels, columns: [U] int64.
        with_rows, without_rows: [U] int64, rows of `logits` for R u P and R; or [U, J] for J contexts. Rows may be shared: one
            row of the mean motion serves every empty context.
        joint_counts: [Q] int64, joints in each combination.
        decay: 0 replaces the old value; the paper uses 0.9.
        weights: [U, J] floating point, weights of the contexts; None is 1 for each.
        scale: as in `average_in`.

    Returns:
        [U] marginals with the table's dtype.

    Source: paper section 3.2; fixtures `saliency_*`, `ema` and `train_steps_ntu`.
    """
    probability = logits.detach().to(table.dtype).softmax(1)
    several = labels.unsqueeze(1) if with_rows.dim() == 2 else labels
    marginal = marginals(probability[with_rows, several], probability[without_rows, several])
    if weights is not None:
        marginal = marginal * weights.to(table.dtype)
    if marginal.dim() == 2:
        marginal = marginal.sum(1)
    average_in(table, labels, columns, marginal, joint_counts, decay, scale=scale)
    return marginal


def average_in(
    table: Tensor,
    labels: Tensor,
    columns: Tensor,
    marginal: Tensor,
    joint_counts: Tensor,
    decay: float,
    *,
    scale: float = 10.0,
) -> None:
    """Moving average per class, in place: table[y, P] <- decay * table[y, P] + (1 - decay) * marginal * scale / joints(P).

    Sequential: a class that occurs twice in the batch is updated twice, in order. Non-finite marginals are skipped, as they would
    never leave the average.

    Args:
        table: [K, Q], Q combinations of the layout.
        labels, columns: [U] int64, row and column of each update.
        marginal: [U].
        joint_counts: [Q], joints in each combination.
        decay: 0 replaces the old value; the paper uses 0.9.
        scale: 10 in the paper (the joints of two average parts of `ntu25`); the temperature of the mixing softmax is in these
            units.

    Source: paper section 3.2; fixtures `ema` and `train_steps_ntu`.
    """
    weight = marginal * scale / joint_counts[columns].to(marginal.dtype)
    for label, column, value in zip(labels.tolist(), columns.tolist(), weight, strict=True):
        if value.isfinite():
            table[label, column] = decay * table[label, column] + (1 - decay) * value
