"""bench.saliency_estimators on a game with a known table: errors against the share of the step, on every budget."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bench.saliency_estimators import TRAINING, Truth, follow, on_budgets
from shapmix import load_layout

NTU = load_layout("ntu25")


@pytest.fixture(scope="module")
def truth() -> Truth:
    """Two classes of 32 clips with random games."""
    logits = torch.randn(64, 32, 2, generator=torch.Generator().manual_seed(0))
    logits[:, 0] = 0  # the mean motion is the same for all
    return Truth(logits.log_softmax(2), torch.arange(64) % 2, NTU)


@pytest.fixture(scope="module")
def batches() -> list[list[torch.Tensor]]:
    return [[torch.randperm(64, generator=torch.Generator().manual_seed(seed * 99 + step)) for step in range(8)] for seed in (0, 1)]


def test_every_budget_that_can_be_kept_has_a_column(
    truth: Truth, batches: list[list[torch.Tensor]], capsys: pytest.CaptureFixture[str]
) -> None:
    config = SimpleNamespace(saliency=SimpleNamespace(decay=0.5, temperature=0.2))
    found = on_budgets(truth, batches, config, [2.0, 0.25], [1, 2])
    assert "exact" not in found
    assert list(found["official"]) == [f"budget {budget} every {every}" for budget in ("2", "0.25") for every in (1, 2)]
    assert list(found["exact_subset"]) == ["budget 2 every 1", "budget 2 every 2"]
    assert "estimator 'exact_subset' needs a budget of at least 0.4844" in capsys.readouterr().out
    for columns in found.values():
        for name, column in columns.items():
            _, budget, _, every = name.split()
            assert len(column["error"]["seeds"]) == 2
            for rows, share in zip(column["rows a sample"]["seeds"], column["share of the step"]["seeds"], strict=True):
                assert rows <= (float(budget) + 1 / 64) / int(every)
                assert share == rows / (rows + TRAINING)


def test_without_a_budget_the_published_one_is_followed(truth: Truth, batches: list[list[torch.Tensor]]) -> None:
    given = ("exact_subset", batches[0], 0.5, 0.2, 0)
    assert follow(truth, *given) == follow(truth, *given, 2.0, 1)
    assert follow(truth, *given, 2.0, 4)["rows a sample"] == follow(truth, *given)["rows a sample"] / 4
