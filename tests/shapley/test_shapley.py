"""Axioms of Shapley values and related indices on random games, and independent libraries as oracles."""

from __future__ import annotations

from itertools import permutations
from math import comb

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shapmix.mixing.marginals import Request, draw_marginals
from shapmix.reference import expected_marginals, marginals
from shapmix.shapley.values import (
    Interaction,
    banzhaf_values,
    group_matrix,
    group_values,
    interaction_sets,
    interactions,
    moebius_matrix,
    shapley_values,
)
from shapmix.skeleton.layout import load_layout

NTU = load_layout("ntu25")
INDICES: tuple[Interaction, ...] = ("sii", "k_sii", "stii", "banzhaf")
CLOSE = {"rtol": 0.0, "atol": 1e-12}

parts = st.integers(1, 8)
seeds = st.integers(0, 2**31)


def game_of(num_parts: int, seed: int, *leading: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*leading, 1 << num_parts, dtype=torch.float64, generator=generator)


def bits(num_parts: int) -> Tensor:
    """[2^P, P] bool: the members of each coalition."""
    return (torch.arange(1 << num_parts)[:, None] >> torch.arange(num_parts) & 1).bool()


@given(parts, seeds)
def test_efficiency(num_parts: int, seed: int) -> None:
    game = game_of(num_parts, seed, 3)
    torch.testing.assert_close(shapley_values(game, num_parts).sum(-1), game[:, -1] - game[:, 0], **CLOSE)
    for index in ("k_sii", "stii"):
        for order in range(1, min(num_parts, 3) + 1):
            total = interactions(game, num_parts, index, order).sum(-1)
            torch.testing.assert_close(total, game[:, -1] - game[:, 0], rtol=0.0, atol=1e-10)


@given(st.integers(1, 6), seeds)
def test_values_are_means_over_orders(num_parts: int, seed: int) -> None:
    """The definition: the mean over all orders."""
    game = game_of(num_parts, seed)
    total, orders = torch.zeros(num_parts, dtype=torch.float64), list(permutations(range(num_parts)))
    for order in orders:
        shown = 0
        for part in order:
            total[part] += game[shown | 1 << part] - game[shown]
            shown |= 1 << part
    torch.testing.assert_close(shapley_values(game, num_parts), total / len(orders), **CLOSE)


@given(st.integers(2, 7), seeds)
def test_symmetry_null_player_and_permutation(num_parts: int, seed: int) -> None:
    game = game_of(num_parts, seed)
    who = bits(num_parts)
    everyone = torch.arange(1 << num_parts)
    # a game that ignores part 0, and one that is symmetric in parts 0 and 1
    null = game[everyone & ~1]
    assert float(shapley_values(null, num_parts)[0].abs()) <= 1e-12
    assert float(banzhaf_values(null, num_parts)[0].abs()) <= 1e-12
    swapped = (everyone & ~3) | (everyone & 1) << 1 | (everyone >> 1) & 1
    alike = shapley_values(game + game[swapped], num_parts)
    assert float((alike[0] - alike[1]).abs()) <= 1e-12
    # the order of the parts does not matter
    order = torch.randperm(num_parts, generator=torch.Generator().manual_seed(seed))
    renamed = (who[:, order].long() << torch.arange(num_parts)).sum(1)
    permuted = shapley_values(game[renamed], num_parts)
    torch.testing.assert_close(permuted[order], shapley_values(game, num_parts), **CLOSE)


@given(parts, seeds, st.floats(-3, 3))
def test_linearity_and_self_duality(num_parts: int, seed: int, factor: float) -> None:
    first, second = game_of(num_parts, seed), game_of(num_parts, seed + 1)
    for of in (shapley_values, banzhaf_values):
        mixed = of(first + factor * second, num_parts)
        torch.testing.assert_close(mixed, of(first, num_parts) + factor * of(second, num_parts), rtol=0.0, atol=1e-11)
        dual = first[-1] - first.flip(0)  # v*(A) = v(all) - v(not A)
        torch.testing.assert_close(of(dual, num_parts), of(first, num_parts), **CLOSE)


@given(st.integers(1, 8), st.data())
def test_unanimity_games_in_closed_form(num_parts: int, data: st.DataObject) -> None:
    """v is 1 if the coalition contains `needed`."""
    needed = data.draw(st.integers(1, (1 << num_parts) - 1))
    everyone = torch.arange(1 << num_parts)
    game = (everyone & needed == needed).double()
    members, size = bits(num_parts)[needed].double(), needed.bit_count()
    torch.testing.assert_close(shapley_values(game, num_parts), members / size, **CLOSE)
    torch.testing.assert_close(banzhaf_values(game, num_parts), members * 0.5 ** (size - 1), **CLOSE)
    torch.testing.assert_close(game @ moebius_matrix(num_parts).T, (everyone == needed).double(), **CLOSE)
    order = data.draw(st.integers(1, num_parts))
    sets = interaction_sets(num_parts, order)
    inside = (sets & ~needed == 0).double()
    sizes = torch.tensor([bits.bit_count() for bits in sets.tolist()]).double()
    torch.testing.assert_close(interactions(game, num_parts, "sii", order), inside / (size - sizes + 1).clamp(min=1), **CLOSE)
    torch.testing.assert_close(
        interactions(game, num_parts, "banzhaf", order), inside * 0.5 ** (size - sizes).clamp(min=0), **CLOSE
    )
    top = (sizes == order) * inside
    expected = top / comb(size, order) if size >= order else (sets == needed).double()
    torch.testing.assert_close(interactions(game, num_parts, "stii", order), expected, **CLOSE)


@given(seeds)
def test_group_values_of_pairs_and_triples(seed: int) -> None:
    game = game_of(5, seed, 2)
    values, single = group_values(game, NTU.combinations, 5), shapley_values(game, 5)
    matrix = group_matrix(tuple(NTU.combinations.tolist()), 5)
    assert int(torch.linalg.matrix_rank(matrix)) == 15
    # antisymmetric under complement: a game and its dual
    torch.testing.assert_close(group_values(game.flip(-1), NTU.combinations, 5), -values, **CLOSE)
    # Sum rules. In the Moebius basis, a set U contributes 1 / (|U outside P| + 1) to each group P that it intersects.
    member = (NTU.combinations[:, None] >> torch.arange(5) & 1).double()
    transform = game @ moebius_matrix(5).T
    for size, columns in ((2, slice(0, 10)), (3, slice(10, 20))):
        expected = torch.zeros(2, dtype=torch.float64)
        for bits_ in range(1, 32):
            u = bits_.bit_count()
            expected += transform[:, bits_] * sum(
                comb(u, met) * comb(5 - u, size - met) / (u - met + 1) for met in range(1, min(u, size) + 1) if size - met <= 5 - u
            )
        torch.testing.assert_close(values[:, columns].sum(-1), expected, **CLOSE)
    # additive game: the value of a group is the sum over its members
    additive = bits(5).double() @ single[0]
    torch.testing.assert_close(group_values(additive, NTU.combinations, 5), member @ single[0], **CLOSE)
    torch.testing.assert_close(group_values(game, 1 << torch.arange(5), 5), single, **CLOSE)


@given(seeds)
def test_the_rectified_mean_is_at_least_the_rectified_value(seed: int) -> None:
    game = game_of(5, seed, 4)
    rectified = expected_marginals(game, NTU.combinations, 5)
    assert bool((rectified >= group_values(game, NTU.combinations, 5).relu() - 1e-12).all())


def test_the_published_draw_is_an_unbiased_estimate() -> None:
    """Means of many draws are within 4 standard errors of the exact values, rectified and not."""
    game = game_of(5, 3)
    drawn = draw_marginals(Request(torch.zeros(60_000), NTU, 1, 0))
    upper, lower = game[NTU.combinations[drawn.columns] | drawn.contexts], game[drawn.contexts]
    for sample, exact in (
        (upper - lower, group_values(game, NTU.combinations, 5)),
        (marginals(upper, lower), expected_marginals(game[None], NTU.combinations, 5)[0]),
    ):
        for column in range(20):
            own = sample[drawn.columns == column]
            assert abs(float(own.mean() - exact[column])) <= 4 * float(own.std()) / len(own) ** 0.5


def test_what_is_asked_wrongly_is_named() -> None:
    with pytest.raises(ValueError, match="order is 6; give 1 to 5"):
        interactions(game_of(5, 0), 5, "sii", 6)
    with pytest.raises(ValueError, match="index is 'shap'; give one of sii"):
        interactions(game_of(5, 0), 5, "shap", 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"game has shape \[16\]; the last axis must hold all 32 coalitions"):
        shapley_values(game_of(4, 0), 5)


@pytest.mark.parametrize("num_parts", [2, 5, 6])
def test_shapiq_agrees(num_parts: int) -> None:
    shapiq = pytest.importorskip("shapiq", reason="shapiq is not installed (the 'oracles' extra)")
    game = game_of(num_parts, num_parts)
    values = game.numpy()

    def value(coalitions):
        return values[(coalitions.astype(int) << range(num_parts)).sum(1)]

    computer = shapiq.ExactComputer(game=value, n_players=num_parts)
    names = {"sii": "SII", "k_sii": "k-SII", "stii": "STII", "banzhaf": "BII"}
    for index, name in names.items():
        for order in range(1, num_parts + 1) if index == "sii" else (1, 2):
            theirs = computer(name, order)
            sets = interaction_sets(num_parts, order).tolist()
            ours = interactions(game, num_parts, index, order)
            for bits_, mine in zip(sets, ours.tolist(), strict=True):
                players = tuple(part for part in range(num_parts) if bits_ >> part & 1)
                if index in ("sii", "banzhaf") or len(players) <= order:
                    assert theirs[players] == pytest.approx(mine, abs=1e-6), (index, order, players)
    theirs = computer("SGV", 3 if num_parts > 2 else 2)
    for bits_ in range(1, 1 << num_parts):
        if bits_.bit_count() <= 3:
            players = tuple(part for part in range(num_parts) if bits_ >> part & 1)
            mine = group_values(game, torch.tensor([bits_]), num_parts)
            assert theirs[players] == pytest.approx(float(mine), abs=1e-6)
