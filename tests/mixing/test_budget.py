"""The saliency on a budget: at most so many forward passes per clip, and only in every K-th step."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shapmix.mixing.estimators import ESTIMATORS, Measurement, check_budget, estimator, exact
from shapmix.mixing.marginals import Request
from shapmix.mixing.mixer import ShapMix
from shapmix.skeleton.layout import load_layout

NTU = load_layout("ntu25")
SIZE = (3, 8, 25, 1)
BUDGETED = [name for name in ESTIMATORS if name != "exact"]


class Probe(nn.Module):
    """A linear network that counts its calls and rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3 * 8 * 25, 4)
        self.rows: list[int] = []

    def forward(self, clips: Tensor) -> Tensor:
        self.rows.append(len(clips))
        logits: Tensor = self.linear(clips.flatten(1))
        return logits


def mixer_of(**options: Any) -> ShapMix:
    mean = torch.randn(SIZE, generator=torch.Generator().manual_seed(9)) * 0.1
    return ShapMix(NTU, [90, 30, 9, 3], mean, **options)


def batch(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *SIZE, generator=generator), torch.randint(4, (n,), generator=generator)


def state(mixer: ShapMix) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in mixer.state_dict().items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("name", BUDGETED)
@pytest.mark.parametrize("budget", [0.5, 1.0, 2.0, 3.7])
def test_a_budget_is_an_upper_bound(name: str, budget: float) -> None:
    """Of the rows that the network sees, the one of the empty coalition aside, in every step and both phases of the schedule."""
    n, network, mixer = 64, Probe(), mixer_of(estimator=name, budget=budget, warmup_steps=2)
    for step in range(5):
        mixer.observe(network, *batch(n, step), step)
    assert min(network.rows) > 1
    assert max(network.rows) - 1 <= budget * n
    assert int(mixer.class_saliency.measured.sum()) > 0


@pytest.mark.parametrize("name", BUDGETED)
def test_a_smaller_budget_measures_the_least_measured_samples(name: str) -> None:
    n, times = 64, torch.arange(64).flip(0)
    whole = ESTIMATORS[name].propose(Request(times, NTU, 0, 0))
    found = ESTIMATORS[name].propose(Request(times, NTU, 0, 0, budget=0.5))
    owners = found.owners.unique().tolist()
    assert owners == list(range(n - len(owners), n))
    assert 0 < len(found.samples) <= n // 2
    assert set(found.samples.tolist()) <= set(owners)
    assert len(found.owners) < len(whole.owners)
    assert max(int(found.with_rows.max()), int(found.without_rows.max())) <= len(found.samples)


@pytest.mark.parametrize("name", [name for name, entry in ESTIMATORS.items() if entry.on_device and name != "exact"])
def test_a_budget_is_the_same_with_a_counter(name: str) -> None:
    """A step of a graph measures the same samples and marginals as one of a plain loop."""
    plain, other = (mixer_of(estimator=name, budget=0.5, every=2) for _ in range(2))
    for step in range(5):
        plain.observe(Probe(), *batch(64, step), step)
        other.observe(Probe(), *batch(64, step), step, counter=torch.tensor(step))
    for name_of, value in state(plain).items():
        torch.testing.assert_close(state(other)[name_of], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_published_budget_in_every_step_is_the_default(name: str) -> None:
    default, told = mixer_of(estimator=name), mixer_of(estimator=name, budget=31.0 if name == "exact" else 2.0, every=1)
    for step in range(3):
        default.observe(Probe(), *batch(32, step), step)
        told.observe(Probe(), *batch(32, step), step)
    assert_same(state(told), state(default))


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("every", [2, 3])
def test_every_k_measures_in_steps_0_k_2k(name: str, every: int, counted: bool) -> None:
    if counted and not ESTIMATORS[name].on_device:
        pytest.skip("drawn on the host")
    network, mixer = Probe(), mixer_of(estimator=name, every=every)
    measured = []
    for step in range(7):
        before, calls = state(mixer), len(network.rows)
        mixer.observe(network, *batch(32, step), step, counter=torch.tensor(step) if counted else None)
        assert mixer.measures(step) == (len(network.rows) > calls)
        if len(network.rows) > calls:
            measured.append(step)
        else:
            assert_same(state(mixer), before)
    assert measured == list(range(0, 7, every))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_table_remembers_as_many_measurements_for_any_k(name: str) -> None:
    """The decay and the draws are those of a measurement: the batches of steps 0, K, 2K make the table that they make alone."""
    sparse, alone = mixer_of(estimator=name, every=3), mixer_of(estimator=name)
    for step in range(9):
        sparse.observe(Probe(), *batch(32, step), step)
    for number, step in enumerate(range(0, 9, 3)):
        alone.observe(Probe(), *batch(32, step), number)
    assert_same(state(sparse), state(alone))


def test_every_pair_is_still_seen_where_k_and_the_batch_share_a_factor() -> None:
    """A batch of 8 begins at every second half of the 16 pairs in turn; counting steps, K = 2 would only see the first half."""
    mixer = mixer_of(estimator="pair_table", every=2)
    for step in range(4):
        mixer.observe(Probe(), *batch(8, step), step)
    seen = (mixer.class_saliency.pairs != 0).any(0)
    assert bool(seen[:8].any())
    assert bool(seen[8:16].any())


LEAST = [
    ("exact", 2.0, 64, "estimator 'exact' needs a budget of at least 31 forward passes per clip in batches of 64, not 2"),
    ("exact_subset", 0.25, 64, "estimator 'exact_subset' needs a budget of at least 0.4844 forward passes per clip"),
    ("exact_subset", 0.25, 70, "estimator 'exact_subset' needs a budget of at least 0.4429 forward passes"),
    ("exact_subset", 2.0, 8, "estimator 'exact_subset' needs a budget of at least 3.875 forward passes per clip in batches of 8"),
    ("chain", 0.07, 64, "estimator 'chain' needs a budget of at least 0.0782 forward passes"),
    ("chain_reverse", 0.07, 64, "estimator 'chain_reverse' needs a budget of at least 0.1407 forward passes"),
    ("official", 0.01, 64, "estimator 'official' needs a budget of at least 0.0313 forward passes"),
    ("pair_table", 0.01, 64, "estimator 'pair_table' needs a budget of at least 0.0313 forward passes"),
    ("naive", 0.01, 64, "estimator 'naive' needs a budget of at least 0.0157 forward passes"),
]


@pytest.mark.parametrize(("name", "budget", "n", "message"), LEAST)
def test_a_budget_that_measures_nothing_names_the_least(name: str, budget: float, n: int, message: str) -> None:
    mixer, network = mixer_of(estimator=name, budget=budget), Probe()
    before = state(mixer)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        mixer.observe(network, *batch(n), 0)
    assert not network.rows
    assert_same(state(mixer), before)
    least = float(str(error.value).partition("at least ")[2].partition(" ")[0])
    check_budget(name, NTU, least, n)
    mixer_of(estimator=name, budget=least).observe(network, *batch(n), 0)
    assert network.rows[0] - 1 <= least * n


def test_without_a_budget_a_small_batch_is_measured_all_the_same() -> None:
    network = Probe()
    mixer_of().observe(network, *batch(4), 0)
    assert network.rows == [1 + 31]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.0}, "budget is 0.0; give the forward passes per clip, a number above 0"),
        ({"budget": -1.0}, "budget is -1.0; give the forward passes per clip"),
        ({"budget": float("nan")}, "budget is nan; give the forward passes per clip"),
        ({"budget": float("inf")}, "budget is inf; give the forward passes per clip"),
        ({"every": 0}, "every is 0; give 1 to measure in every step, K for every K-th"),
        ({"every": -2}, "every is -2; give 1"),
        ({"every": 1.5}, "every is 1.5; give 1"),
        ({"every": 2.0}, "every is 2.0; give 1"),
        ({"every": float("inf")}, "every is inf; give 1"),
    ],
)
def test_numbers_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        mixer_of(**options)


def test_an_estimator_of_ones_own_says_what_it_needs_or_takes_no_budget() -> None:
    def propose(request: Request) -> Measurement:
        return exact(request._replace(times_measured=request.times_measured[:1]))

    try:
        estimator("first", least=lambda layout, clips: layout.all_parts)(propose)
        estimator("untold")(propose)
        mixer_of(estimator="first", budget=2.0).observe(Probe(), *batch(32), 0)
        with pytest.raises(ValueError, match=r"estimator 'first' needs a budget of at least 3\.875 forward passes"):
            mixer_of(estimator="first", budget=2.0).observe(Probe(), *batch(8), 0)
        mixer_of(estimator="untold").observe(Probe(), *batch(8), 0)
        with pytest.raises(ValueError, match="estimator 'untold' takes no budget; register it with least="):
            mixer_of(estimator="untold", budget=2.0).observe(Probe(), *batch(8), 0)
    finally:
        for name in ("first", "untold"):
            ESTIMATORS.pop(name, None)
