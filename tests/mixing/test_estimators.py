"""What the estimators propose: the budget, whose marginals, and that each is right on average."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shapmix.mixing.estimators import ESTIMATORS, Measurement, pair_values
from shapmix.mixing.marginals import Request
from shapmix.reference import expected_marginals
from shapmix.shapley.values import group_values
from shapmix.skeleton.layout import load_layout

NTU = load_layout("ntu25")


def marginals_of(found: Measurement, games: Tensor, *, rectified: bool = True) -> Tensor:
    """[U]: what `saliency_update` makes of games [N, 32]."""
    rows = torch.cat([games[:1, 0], games[found.samples, found.coalitions]])
    # the empty coalition is one number for all samples
    each = rows[found.with_rows] - rows[found.without_rows]
    each = each.relu() if rectified else each
    return (each * found.weights).sum(1) if found.weights is not None else each.sum(1)


def games_of(n: int) -> Tensor:
    games = torch.rand(n, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    games[:, 0] = 0.25
    return games


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [1, 3, 16, 64])
def test_the_budget_is_two_forwards_a_sample(estimator: str, n: int) -> None:
    for step in range(3):
        found = ESTIMATORS[estimator].propose(Request(torch.zeros(n, dtype=torch.int64), NTU, 0, step))
        rows = len(found.coalitions)
        if estimator == "exact":
            assert rows == 31 * n
        else:
            assert rows <= max(2 * n, {"exact_subset": 31, "chain": 5, "chain_reverse": 9}.get(estimator, 2))
        assert bool((found.coalitions > 0).all())
        assert len({*zip(found.samples.tolist(), found.coalitions.tolist(), strict=True)}) == rows
        for row in (found.with_rows, found.without_rows):
            assert int(row.min()) >= 0
            assert int(row.max()) <= rows
        assert 0 <= int(found.owners.min()) <= int(found.owners.max()) < n


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name != "pair_table"])
def test_every_marginal_is_of_its_sample_column_and_a_context(estimator: str) -> None:
    found = ESTIMATORS[estimator].propose(Request(torch.zeros(12, dtype=torch.int64), NTU, 1, 4))
    owner_of_row = torch.cat([torch.tensor([-1]), found.samples])
    set_of_row = torch.cat([torch.tensor([0]), found.coalitions])
    weights = torch.ones(found.with_rows.shape) if found.weights is None else found.weights
    for update in range(len(found.owners)):
        combination = int(NTU.combinations[found.columns[update]])
        for with_row, without_row, weight in zip(
            found.with_rows[update].tolist(), found.without_rows[update].tolist(), weights[update].tolist(), strict=True
        ):
            if weight == 0:
                continue
            context = int(set_of_row[without_row])
            assert context & combination == 0
            assert int(set_of_row[with_row]) == context | combination
            assert int(owner_of_row[with_row]) == int(found.owners[update])
            assert int(owner_of_row[without_row]) in (-1, int(found.owners[update]))


@pytest.mark.parametrize("estimator", ["official", "chain", "chain_reverse"])
def test_drawn_marginals_are_right_on_average(estimator: str) -> None:
    """Many steps on one game: within 4 standard errors of the exact rectified mean, column by column."""
    games = games_of(1).expand(40, -1)
    exact = expected_marginals(games[:1], NTU.combinations, 5)[0]
    columns, values = [], []
    for step in range(150):
        found = ESTIMATORS[estimator].propose(Request(torch.zeros(40, dtype=torch.int64), NTU, 2, step))
        columns.append(found.columns)
        values.append(marginals_of(found, games))
    column, value = torch.cat(columns), torch.cat(values)
    for index in range(20):
        own = value[column == index]
        assert abs(float(own.mean() - exact[index])) <= 4 * float(own.std()) / len(own) ** 0.5
    if estimator == "chain_reverse":  # its marginals come in pairs, so that all columns are seen equally often
        assert int(torch.bincount(column).min()) > 0.6 * int(torch.bincount(column).max())


@pytest.mark.parametrize("estimator", ["exact", "exact_subset"])
def test_exact_marginals_are_exact(estimator: str) -> None:
    games = games_of(32)
    found = ESTIMATORS[estimator].propose(Request(torch.arange(32).flip(0), NTU, 0, 0))
    expected = expected_marginals(games, NTU.combinations, 5)
    torch.testing.assert_close(marginals_of(found, games), expected[found.owners, found.columns])
    chosen = found.owners.unique().tolist()
    assert chosen == (list(range(32)) if estimator == "exact" else [30, 31])  # the least measured


def test_pairs_are_seen_equally_often_and_give_the_group_values() -> None:
    games = games_of(8)
    total, count = torch.zeros(32, dtype=torch.float64), torch.zeros(32)
    for step in range(32):
        found = ESTIMATORS["pair_table"].propose(Request(torch.zeros(8, dtype=torch.int64), NTU, 0, step))
        value = marginals_of(found, games[:1].expand(8, -1))
        total.index_add_(0, found.columns, value)
        count.index_add_(0, found.columns, torch.ones(len(value)))
    assert count.unique().tolist() == [16.0]
    values = pair_values((total / count)[None], NTU)
    torch.testing.assert_close(values, group_values(games[:1], NTU.combinations, 5).relu())
