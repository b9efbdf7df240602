"""The state of the saliency: what it averages, and how far samples spread around it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from shapmix.mixing.estimators import ESTIMATORS
from shapmix.mixing.marginals import Request
from shapmix.mixing.saliency import SALIENCY_SCALE, ClassSaliency, average_in
from shapmix.reference import expected_marginals
from shapmix.reference.saliency import average_in as looped
from shapmix.reference.saliency import contexts
from shapmix.skeleton.layout import load_layout

NTU = load_layout("ntu25")
JOINTS = NTU.joints_in(NTU.combinations)
CLASSES = 3


def games(n: int, seed: int) -> torch.Tensor:
    """Logits of every coalition of n samples, [n, 32, CLASSES]; the empty one is the same for all."""
    found = torch.randn(n, 32, CLASSES, generator=torch.Generator().manual_seed(seed))
    found[:, 0] = found[0, 0]
    return found


def state(estimator: str, decay: float = 0.9) -> ClassSaliency:
    return ClassSaliency(CLASSES, NTU, JOINTS, estimator, decay)


def measure(saliency: ClassSaliency, logits: torch.Tensor, labels: torch.Tensor, step: int, replace: bool = False) -> None:
    found = ESTIMATORS[saliency.estimator].propose(Request(saliency.measured[labels], NTU, 0, step))
    saliency.update(found, torch.cat([logits[0, :1], logits[found.samples, found.coalitions]]), labels, replace=replace)


@given(st.integers(1, 40), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.integers(0, 1 << 20))
def test_averages_at_once_are_the_loop(updates: int, decay: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.randint(0, 3, (updates,), generator=generator) for _ in range(2))
    values = torch.rand(updates, generator=generator, dtype=torch.float64)
    found = torch.rand(3, 3, generator=generator, dtype=torch.float64)
    expected = found.clone()
    average_in(found, rows, columns, values, decay)
    looped(expected, rows, columns, values, torch.ones(3, dtype=torch.int64), decay, scale=1.0)
    torch.testing.assert_close(found, expected)


def test_averages_have_one_order_of_sums() -> None:
    """A sum of floats by atomic additions, as `index_add_` has it on a GPU, has another one each time."""
    seen: set[str] = set()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    table = torch.rand(3, 3)
    with Recorder():
        average_in(table, torch.tensor([0, 1, 0, 0]), torch.tensor([2, 1, 2, 2]), torch.rand(4), 0.9)
    assert "index_copy" in seen
    assert not {name for name in seen if "add_" in name or "scatter" in name or "index_put" in name}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_averages_leave_out_what_is_not_finite(bad: float) -> None:
    table, expected = torch.full((2, 2), 0.5), torch.full((2, 2), 0.5)
    average_in(table, torch.tensor([0, 1, 0, 0]), torch.tensor([1, 1, 1, 1]), torch.tensor([0.3, bad, bad, 0.9]), 0.9)
    average_in(expected, torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([0.3, 0.9]), 0.9)
    assert torch.equal(table, expected)


def test_spread_is_that_of_the_samples() -> None:
    """Replacing keeps the last sample of each class: no spread between, and its own within."""
    logits, labels = games(3, 0), torch.tensor([0, 1, 2])
    saliency = state("exact")
    measure(saliency, logits, labels, 0, replace=True)
    assert float(saliency.variance.max()) < 1e-5 * float(saliency.mean.square().max())

    values = logits.double().softmax(2).gather(2, labels.view(3, 1, 1).expand(3, 32, 1)).squeeze(2)
    every = contexts(NTU.combinations, 5)
    each = (values[:, every.with_sets] - values[:, every.without_sets]).relu() * SALIENCY_SCALE / JOINTS[:, None]
    mean = (each * every.weights).sum(2)
    within = ((each - mean[:, :, None]).square() * every.weights).sum(2)
    torch.testing.assert_close(saliency.within.double(), within, rtol=1e-4, atol=1e-7)


def test_variance_is_that_between_samples() -> None:
    """An exponential average follows the samples, so that its variance lacks (1 - d) / (1 + d) of theirs."""
    decay, steps = 0.2, 400
    saliency = state("exact", decay)
    each = decay ** (1 / 20)  # a sample updates 20 columns, each forgets a 20th of what one update a sample would
    samples, found = [], []
    for step in range(steps):
        logits, labels = games(3, step), torch.tensor([0, 0, 0])
        values = logits.double().softmax(2)[:, :, 0]
        samples.append(expected_marginals(values, NTU.combinations, 5) * SALIENCY_SCALE / JOINTS)
        measure(saliency, logits, labels, step)
        if step >= 40:
            found.append(saliency.variance[0].double())
    expected = torch.cat(samples).var(0) * (1 - (1 - each) / (1 + each))
    torch.testing.assert_close(torch.stack(found).mean(0), expected, rtol=0.15, atol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_state_goes_through_state_dict(estimator: str) -> None:
    saliency = state(estimator)
    for step in range(3):
        measure(saliency, games(40, step), torch.arange(40) % CLASSES, step)
    assert int(saliency.measured.sum()) > 0
    other = state(estimator)
    other.load_state_dict(saliency.state_dict())
    logits, labels = games(40, 9), torch.arange(40) % CLASSES
    for one in (saliency, other):
        measure(one, logits, labels, 3)
    for name, value in saliency.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert bool((saliency.variance >= 0).all())
    assert bool(saliency.within.any()) == estimator.startswith("exact")
    assert bool(saliency.squares.any()) == (estimator != "pair_table")
