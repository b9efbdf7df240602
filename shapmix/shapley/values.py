"""Shapley values and related indices, as products of the table of all coalitions with constant matrices.

A game of P players is a tensor whose last axis holds v(A) of the 2^P coalitions in bit-set order. All values are linear in the
game, so each is one product with a matrix that depends only on P; the matrices are float64 and cached.
"""

from __future__ import annotations

from functools import cache
from math import comb
from typing import Literal, get_args

import torch
from torch import Tensor

from shapmix.process.choices import check_choice

Interaction = Literal["sii", "k_sii", "stii", "banzhaf"]


def shapley_values(game: Tensor, num_parts: int) -> Tensor:
    """[..., 2^P] -> [..., P]: marginal contribution of each part, averaged over all orders; they sum to v(all) - v(none)."""
    return _times(game, group_matrix(tuple(1 << part for part in range(num_parts)), num_parts))


def group_values(game: Tensor, combinations: Tensor, num_parts: int) -> Tensor:
    """[..., 2^P] -> [..., Q]: generalised Shapley value of each combination [Q] of parts, merged into one player.

    The mean of the unrectified marginal over the contexts of `shapmix.mixing.marginals.draw_marginals`.

    Source: Marichal et al. 2007; paper section 3.2.
    """
    return _times(game, group_matrix(tuple(combinations.tolist()), num_parts))


def banzhaf_values(game: Tensor, num_parts: int) -> Tensor:
    """[..., 2^P] -> [..., P]: marginal contribution of each part, averaged over all coalitions of the others."""
    return interactions(game, num_parts, "banzhaf", 1)


def interactions(game: Tensor, num_parts: int, index: Interaction, order: int) -> Tensor:
    """[..., 2^P] -> [..., I]: the interaction of every set of 1 to `order` parts, in the order of `interaction_sets`.

    Args:
        index: "sii", Shapley interaction; "k_sii", its aggregation that sums to v(all) - v(none); "stii", Shapley-Taylor
            (the same sum); "banzhaf", Banzhaf interaction.
        order: size of the largest set, 1 to P.

    Raises:
        ValueError: the index is unknown, or the order is outside 1..P.

    Source: Grabisch and Roubens 1999 (sii, banzhaf); Bord and von Luxburg 2023 (k_sii); Dhamdhere et al. 2020 (stii).
    """
    return _times(game, interaction_matrix(num_parts, index, order))


def interaction_sets(num_parts: int, order: int) -> Tensor:
    """[I] int64: the sets of 1 to `order` parts, by size, then in bit-set order."""
    sets = [bits for bits in range(1, 1 << num_parts) if bits.bit_count() <= order]
    return torch.tensor(sorted(sets, key=lambda bits: (bits.bit_count(), bits)))


@cache
def group_matrix(combinations: tuple[int, ...], num_parts: int) -> Tensor:
    """[Q, 2^P] float64: q(|R|) at R u P and -q(|R|) at R, for every context R of a combination P of p parts.

    q(r) = 1 / ((P + 1 - p) C(P - p, r)), as the size of R is drawn uniformly and then R.
    """
    matrix = torch.zeros(len(combinations), 1 << num_parts, dtype=torch.float64)
    for row, combination in enumerate(combinations):
        left = num_parts - combination.bit_count()
        for context in range(1 << num_parts):
            if not context & combination:
                weight = 1 / ((left + 1) * comb(left, context.bit_count()))
                matrix[row, context | combination] += weight
                matrix[row, context] -= weight
    return matrix


@cache
def moebius_matrix(num_parts: int) -> Tensor:
    """[2^P, 2^P] float64: (-1)^(|S| - |T|) if T is a subset of S, else 0."""
    size = 1 << num_parts
    rows = [[(-1.0) ** (s.bit_count() - t.bit_count()) if t & ~s == 0 else 0.0 for t in range(size)] for s in range(size)]
    return torch.tensor(rows, dtype=torch.float64)


@cache
def interaction_matrix(num_parts: int, index: Interaction, order: int) -> Tensor:
    """[I, 2^P] float64 of an index, a weighted sum of the Moebius transform over the supersets of each set."""
    if not 1 <= order <= num_parts:
        raise ValueError(f"order is {order}; give 1 to {num_parts}, the number of parts")
    sets = interaction_sets(num_parts, order).tolist()
    check_choice("index", index, get_args(Interaction))
    if index == "k_sii":
        return _aggregated(sets, num_parts, order)
    weighs = {"sii": _shapley_share, "banzhaf": _banzhaf_share, "stii": _taylor_share}
    share = weighs[index]
    size = 1 << num_parts
    rows = [[share(s.bit_count(), t.bit_count(), order) if s & ~t == 0 else 0.0 for t in range(size)] for s in sets]
    return torch.tensor(rows, dtype=torch.float64) @ moebius_matrix(num_parts)


def _shapley_share(size: int, of: int, _order: int) -> float:
    return 1 / (of - size + 1)


def _banzhaf_share(size: int, of: int, _order: int) -> float:
    return 0.5 ** (of - size)


def _taylor_share(size: int, of: int, order: int) -> float:
    if size < order:  # the discrete derivative at the empty set
        return float(of == size)
    return 1 / comb(of, order)


def _aggregated(sets: list[int], num_parts: int, order: int) -> Tensor:
    """k-SII: the SII of a set, corrected with Bernoulli numbers for the SII of its supersets up to the order."""
    plain = dict(zip(sets, interaction_matrix(num_parts, "sii", order), strict=True))
    bernoulli = _bernoulli_numbers(order)
    rows = []
    for small in sets:
        row = torch.zeros(1 << num_parts, dtype=torch.float64)
        for large in sets:
            if small & ~large == 0:
                row += bernoulli[large.bit_count() - small.bit_count()] * plain[large]
        rows.append(row)
    return torch.stack(rows)


def _bernoulli_numbers(count: int) -> list[float]:
    """B_0 to B_count, B_1 = -1/2."""
    numbers = [1.0]
    for n in range(1, count + 1):
        numbers.append(-sum(comb(n + 1, k) * numbers[k] for k in range(n)) / (n + 1))
    return numbers


def _times(game: Tensor, matrix: Tensor) -> Tensor:
    """game @ matrix.T, in the dtype and on the device of the game."""
    if game.shape[-1] != matrix.shape[1]:
        raise ValueError(f"game has shape {list(game.shape)}; the last axis must hold all {matrix.shape[1]} coalitions")
    return game @ matrix.T.to(game)
