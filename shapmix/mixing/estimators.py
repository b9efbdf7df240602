"""Estimators of the class saliency: they select coalitions of a batch to forward, and the marginals to compute from the logits.

Every estimator keeps to a budget of forward passes per sample, except `exact`; the published budget is two. A smaller one measures
the samples whose classes were measured least. The marginals are applied with `saliency_update`, so all estimators update the same
table. They differ in marginals per forward pass and in variance: `python -m bench.saliency_estimators` measures their error on a
trained network.

Each is one registered function of a `Request`; `--saliency.estimator`, `ShapMix(estimator=...)`, help texts and errors list the
registry. To add a custom estimator, register it before `ShapMix` or a configuration uses it:

    @estimator("first_half", on_device=True)
    def first_half(request: Request) -> Measurement:
        return exact(request._replace(times_measured=request.times_measured[: len(request.times_measured) // 2]))
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from shapmix.draws.philox import random_words
from shapmix.draws.purposes import COALITIONS
from shapmix.mixing.marginals import Request, draw_marginals
from shapmix.process.choices import Registry
from shapmix.reference.saliency import Contexts, contexts
from shapmix.shapley.values import group_matrix
from shapmix.skeleton.layout import Layout


class Measurement(NamedTuple):
    """Coalitions to forward, and the marginals to compute from their logits.

    Row 0 of the logits is the empty coalition, the same for all samples; row l + 1 is sample `samples[l]` of the batch under
    `coalitions[l]`. Update u applies to the class of sample `owners[u]` and to column `columns[u]`; its rows and weights are as in
    `saliency_update`. All int64 except the weights.
    """

    samples: Tensor  # [L]
    coalitions: Tensor  # [L] bit sets
    owners: Tensor  # [U]
    columns: Tensor  # [U]
    with_rows: Tensor  # [U, J]
    without_rows: Tensor  # [U, J]
    weights: Tensor | None  # [U, J] float64


Least = Callable[[Layout, int], int]


class Estimator(NamedTuple):
    """A registered estimator with its properties, see `estimator`."""

    propose: Callable[[Request], Measurement]
    on_device: bool
    pairs: bool
    least: Least | None


ESTIMATORS = Registry[Estimator]("estimator")


def estimator(
    name: str, *, on_device: bool = False, pairs: bool = False, least: Least | None = None
) -> Callable[[Callable[[Request], Measurement]], Callable[[Request], Measurement]]:
    """Registers an estimator under a name.

    Args:
        on_device: it reads no value on the host if the request's step is a tensor, so it can be captured in a CUDA graph.
        pairs: its columns are coalitions A in bit-set order, with values ReLU(v(A) - v(not A)) (see `pair_values`); otherwise
            columns are the layout's combinations.
        least: (layout, clips of a batch) -> the fewest forward passes that measure anything on it; with a budget of at least that
            many it forwards no more than the budget. None: it takes no budget.

    Raises:
        ValueError: the name is already registered.
    """

    def register(propose: Callable[[Request], Measurement]) -> Callable[[Request], Measurement]:
        ESTIMATORS.add(name, Estimator(propose, on_device, pairs, least))
        return propose

    return register


def drawn_on_device() -> list[str]:
    """Names of the estimators that can be captured in a CUDA graph."""
    return [name for name, entry in ESTIMATORS.items() if entry.on_device]


def check_budget(name: str, layout: Layout, budget: float, clips: int) -> None:
    """Checks that an estimator can measure something on a batch of `clips` with `budget` forward passes per clip.

    Raises:
        ValueError: it cannot; the message names the estimator and its least budget.
    """
    least = ESTIMATORS.find(name).least
    if least is None:
        raise ValueError(f"estimator '{name}' takes no budget; register it with least=, or leave the budget out")
    rows = least(layout, clips)
    if budget * clips < rows:
        enough = ceil(rows / clips * 1e4) / 1e4
        raise ValueError(
            f"estimator '{name}' needs a budget of at least {enough:g} forward passes per clip in batches of {clips}, "
            f"not {budget:g}; raise it, or measure in every K-th step instead"
        )


def affordable(request: Request, rows: int) -> Tensor:
    """The least measured samples, as many as the budget allows with `rows` forward passes each, at least one."""
    return request.times_measured.argsort(stable=True)[: max(1, int(request.budget * len(request.times_measured) // rows))]


def on_affordable(propose: Callable[[Request], Measurement], request: Request, rows: int) -> Measurement:
    """What `propose` measures on the affordable samples of the batch, with `rows` forward passes each."""
    if request.budget >= rows:
        return propose(request)
    chosen = affordable(request, rows)
    found = propose(request._replace(times_measured=request.times_measured[chosen]))
    chosen = chosen.to(found.samples.device)
    return found._replace(samples=chosen[found.samples], owners=chosen[found.owners])


@estimator("official", on_device=True, least=lambda layout, clips: 2)
def official(request: Request) -> Measurement:
    """One marginal of a random combination and context on every sample, as in the paper."""
    propose = _official_on_device if isinstance(request.step, Tensor) else _official
    return on_affordable(propose, request, 1 if request.naive else 2)


@estimator("naive", on_device=True, least=lambda layout, clips: 1)
def naive(request: Request) -> Measurement:
    """A random combination alone on every sample: what it is worth without any other part, in every epoch."""
    return official(request._replace(naive=True))


@estimator("exact", on_device=True, least=lambda layout, clips: layout.all_parts * clips)
def exact(request: Request) -> Measurement:
    """Every coalition of every sample, 31 forward passes per sample with five parts."""
    return _exact(request.times_measured.argsort(stable=True), request.layout)


@estimator("exact_subset", on_device=True, least=lambda layout, clips: layout.all_parts)
def exact_subset(request: Request) -> Measurement:
    """Every coalition of as many samples as the budget allows."""
    return _exact(affordable(request, request.layout.all_parts), request.layout)


@estimator("pair_table", pairs=True, least=lambda layout, clips: 2)
def pair_table(request: Request) -> Measurement:
    """One coalition and its complement on every sample.

    All pairs occur equally often, up to one, in a random order of samples.
    """
    return on_affordable(_pairs, request, 2)


@estimator("chain", least=lambda layout, clips: layout.num_parts)
def chain(request: Request) -> Measurement:
    """The prefixes of a random order of the parts: a prefix is a context, and the parts after it are a combination."""
    return _chains(affordable(request, request.layout.num_parts), request, both_ways=False)


@estimator("chain_reverse", least=lambda layout, clips: 2 * layout.num_parts - 1)
def chain_reverse(request: Request) -> Measurement:
    """The prefixes of a random order of the parts and of its reverse."""
    return _chains(affordable(request, 2 * request.layout.num_parts - 1), request, both_ways=True)


def pair_values(pairs: Tensor, layout: Layout) -> Tensor:
    """[K, 2^P] averages of ReLU(v(A) - v(not A)) -> [K, Q] rectified group values of the layout's combinations.

    Averages are linear, so the difference of two columns is the average of v(A) - v(not A); group values are antisymmetric under
    complement, so these differences are sufficient.
    """
    matrix = group_matrix(tuple(layout.combinations.tolist()), layout.num_parts).to(pairs)
    return ((pairs - pairs.flip(1)) @ matrix.T / 2).relu()


def _pairs(request: Request) -> Measurement:
    n, parts = len(request.times_measured), request.layout.num_parts
    pairs = 1 << parts - 1
    order = random_words(request.seed, COALITIONS, request.step, 1, -(-n // 4) * 4)[0, :n].argsort()
    coalition = (order + request.step * n) % pairs  # without the last part; its complement holds it
    complement = (1 << parts) - 1 - coalition
    everyone = torch.arange(n)
    some = torch.nonzero(coalition).flatten()
    row = torch.zeros(n, dtype=torch.int64)
    row[some] = 1 + n + torch.arange(len(some))
    return Measurement(
        samples=torch.cat([everyone, some]),
        coalitions=torch.cat([complement, coalition[some]]),
        owners=everyone.repeat(2),
        columns=torch.cat([complement, coalition]),
        with_rows=torch.cat([1 + everyone, row])[:, None],
        without_rows=torch.cat([row, 1 + everyone])[:, None],
        weights=None,
    )


def _official_on_device(request: Request) -> Measurement:
    """The same marginals in tensors of fixed shape: every context has a separate row, also an empty one."""
    batch, combinations = len(request.times_measured), request.combinations
    assert combinations is not None
    columns, context = draw_marginals(request)
    everyone = torch.arange(batch, device=combinations.device)
    measured = combinations[columns] | context
    return Measurement(
        samples=everyone if request.naive else everyone.repeat(2),
        coalitions=measured if request.naive else torch.cat([measured, context]),
        owners=everyone,
        columns=columns,
        with_rows=(1 + everyone)[:, None],
        without_rows=(everyone * 0 if request.naive else 1 + batch + everyone)[:, None],
        weights=None,
    )


def _official(request: Request) -> Measurement:
    n = len(request.times_measured)
    columns, context = draw_marginals(request)
    some = torch.nonzero(context).flatten()
    everyone = torch.arange(n)
    without_rows = torch.zeros(n, dtype=torch.int64)
    without_rows[some] = 1 + n + torch.arange(len(some))
    return Measurement(
        samples=torch.cat([everyone, some]),
        coalitions=torch.cat([request.layout.combinations[columns] | context, context[some]]),
        owners=everyone,
        columns=columns,
        with_rows=(1 + everyone)[:, None],
        without_rows=without_rows[:, None],
        weights=None,
    )


def _exact(chosen: Tensor, layout: Layout) -> Measurement:
    n, sets, device = len(chosen), layout.all_parts, chosen.device
    every = _contexts_on(layout.combination_bits, layout.num_parts, device)
    combinations, together = every.weights.shape

    def rows(of_sets: Tensor) -> Tensor:
        """[Q, J] sets -> [n Q, J] rows: sample by sample all sets but the empty one, which is row 0."""
        each = torch.where(of_sets == 0, 0, torch.arange(n, device=device)[:, None, None] * sets + of_sets)
        return each.reshape(n * combinations, together)

    return Measurement(
        samples=chosen.repeat_interleave(sets),
        coalitions=torch.arange(1, sets + 1, device=device).repeat(n),
        owners=chosen.repeat_interleave(combinations),
        columns=torch.arange(combinations, device=device).repeat(n),
        with_rows=rows(every.with_sets),
        without_rows=rows(every.without_sets),
        weights=every.weights.repeat(n, 1),
    )


@cache
def _contexts_on(combination_bits: tuple[int, ...], num_parts: int, device: torch.device) -> Contexts:
    every = contexts(torch.tensor(combination_bits), num_parts)
    return Contexts(*(value.to(device) for value in every))


def _chains(chosen: Tensor, request: Request, *, both_ways: bool) -> Measurement:
    chosen, layout = chosen.cpu(), request.layout
    parts = layout.num_parts
    column_of = {bits: column for column, bits in enumerate(layout.combinations.tolist())}
    sizes = sorted({bits.bit_count() for bits in column_of})
    words = random_words(request.seed, COALITIONS, request.step, len(chosen), -(-parts // 4) * 4)[:, :parts]
    samples: list[int] = []
    coalitions: list[int] = []
    owners: list[int] = []
    columns: list[int] = []
    with_rows: list[list[int]] = []
    without_rows: list[list[int]] = []
    for sample, order in zip(chosen.tolist(), words.argsort(1).tolist(), strict=True):
        row_of = {0: 0}
        for chain in (order, order[::-1]) if both_ways else (order,):
            prefixes = [0]
            for part in chain:
                prefixes.append(prefixes[-1] | 1 << part)
                if prefixes[-1] not in row_of:
                    row_of[prefixes[-1]] = 1 + len(samples)
                    samples.append(sample)
                    coalitions.append(prefixes[-1])
            for size in sizes:
                for begin in range(parts - size + 1):
                    before, after = prefixes[begin], prefixes[begin + size]
                    owners.append(sample)
                    columns.append(column_of[after ^ before])
                    with_rows.append([row_of[after]])
                    without_rows.append([row_of[before]])
    return Measurement(
        samples=torch.tensor(samples),
        coalitions=torch.tensor(coalitions),
        owners=torch.tensor(owners),
        columns=torch.tensor(columns),
        with_rows=torch.tensor(with_rows),
        without_rows=torch.tensor(without_rows),
        weights=None,
    )
