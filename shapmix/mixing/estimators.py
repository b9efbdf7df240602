"""Estimators of the class saliency: which coalitions of a batch to forward, and what their logits tell of which combination.

Every estimator spends about as much as the published one, two forwards a sample, except `exact`. What it proposes is applied
by `saliency_update`, so all feed one table. They differ in how many marginals a forward yields, and in their variance:
`python -m bench.saliency_estimators` measures their error on a trained network.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from shapmix.draws.philox import random_words
from shapmix.mixing.marginals import draw_marginals
from shapmix.process.choices import check_choice
from shapmix.reference.saliency import Contexts, contexts
from shapmix.shapley.values import group_matrix
from shapmix.skeleton.layout import Layout

Estimator = Literal["official", "exact", "exact_subset", "pair_table", "chain", "chain_reverse"]
ESTIMATORS: tuple[Estimator, ...] = ("official", "exact", "exact_subset", "pair_table", "chain", "chain_reverse")

ON_DEVICE: tuple[Estimator, ...] = ("official", "exact", "exact_subset")  # can be proposed without the host

FORWARDS = 2  # a sample, the published budget
_ORDER = 5  # purpose of the random words (see `shapmix.draws.crops`)


class Measurement(NamedTuple):
    """Coalitions to forward, and the marginals to take of their logits.

    Row 0 of the logits is the empty coalition, the same for all samples; row l + 1 is sample `samples[l]` of the batch under
    `coalitions[l]`. Update u is of the class of sample `owners[u]` and of column `columns[u]`; its rows and weights are those
    of `saliency_update`. All int64 but the weights.
    """

    samples: Tensor  # [L]
    coalitions: Tensor  # [L] bit sets
    owners: Tensor  # [U]
    columns: Tensor  # [U]
    with_rows: Tensor  # [U, J]
    without_rows: Tensor  # [U, J]
    weights: Tensor | None  # [U, J] float64


def propose(
    estimator: Estimator,
    times_measured: Tensor,
    layout: Layout,
    *,
    seed: int,
    step: int,
    shared: bool = False,
    naive: bool = False,
) -> Measurement:
    """What an estimator measures on a batch.

    Args:
        estimator: "official", one marginal of a drawn combination and context on every sample (the paper's); "exact", every
            coalition of every sample, 31 forwards each with five parts; "exact_subset", the same on as many samples as the
            budget allows; "chain", the prefixes of a random order of the parts, and "chain_reverse", also of its reverse: a
            prefix and what follows it are a context and a combination; "pair_table", one coalition and its complement on
            every sample.
        times_measured: [N] how often the class of each sample was measured; estimators that choose samples take the least
            measured first.
        shared, naive: of `draw_marginals`, for "official".

    Columns are the layout's combinations, for "pair_table" coalitions in bit-set order: column A is where v(A) - v(not A) is
    positive, by how much (see `pair_values`).

    Raises:
        ValueError: no estimator of that name.
    """
    check_choice("estimator", estimator, ESTIMATORS)
    n, parts = len(times_measured), layout.num_parts
    if estimator == "official":
        return _official(n, layout, seed, step, shared, naive)
    if estimator == "pair_table":
        return _pairs(n, parts, seed, step)
    rows = {
        "exact": 1,
        "exact_subset": (1 << parts) - 1,
        "chain": parts,
        "chain_reverse": 2 * parts - 1,
    }[estimator]
    count = n if estimator == "exact" else max(1, FORWARDS * n // rows)
    chosen = times_measured.argsort(stable=True)[:count]
    if estimator.startswith("exact"):
        return _exact(chosen, layout)
    return _chains(chosen.cpu(), layout, seed, step, both_ways=estimator == "chain_reverse")


def propose_on_device(
    batch: int, layout: Layout, combinations: Tensor, *, seed: int, step: Tensor, shared: bool = False, naive: bool = False
) -> Measurement:
    """What "official" measures, drawn without the host: the same marginals, in tensors whose shapes no draw changes.

    Every sample's context is a row of its own, an empty one too.

    Args:
        combinations: the layout's, on the device where all results are wanted.
        step: 0-dim int64 of that device.
    """
    columns, context = draw_marginals(batch, layout, seed=seed, step=step, shared=shared, naive=naive, combinations=combinations)
    everyone = torch.arange(batch, device=combinations.device)
    measured = combinations[columns] | context
    return Measurement(
        samples=everyone if naive else everyone.repeat(2),
        coalitions=measured if naive else torch.cat([measured, context]),
        owners=everyone,
        columns=columns,
        with_rows=(1 + everyone)[:, None],
        without_rows=(everyone * 0 if naive else 1 + batch + everyone)[:, None],
        weights=None,
    )


def pair_values(pairs: Tensor, layout: Layout) -> Tensor:
    """[K, 2^P] averages of ReLU(v(A) - v(not A)) -> [K, Q] rectified group values of the layout's combinations.

    Averages are linear, so the difference of two columns is the average of v(A) - v(not A) itself; and the group values are
    odd under complement, so these differences are all they need.
    """
    matrix = group_matrix(tuple(layout.combinations.tolist()), layout.num_parts).to(pairs)
    return ((pairs - pairs.flip(1)) @ matrix.T / 2).relu()


def _official(n: int, layout: Layout, seed: int, step: int, shared: bool, naive: bool) -> Measurement:
    columns, context = draw_marginals(n, layout, seed=seed, step=step, shared=shared, naive=naive)
    some = torch.nonzero(context).flatten()
    everyone = torch.arange(n)
    without_rows = torch.zeros(n, dtype=torch.int64)
    without_rows[some] = 1 + n + torch.arange(len(some))
    return Measurement(
        samples=torch.cat([everyone, some]),
        coalitions=torch.cat([layout.combinations[columns] | context, context[some]]),
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


def _chains(chosen: Tensor, layout: Layout, seed: int, step: int, *, both_ways: bool) -> Measurement:
    parts = layout.num_parts
    column_of = {bits: column for column, bits in enumerate(layout.combinations.tolist())}
    sizes = sorted({bits.bit_count() for bits in column_of})
    words = random_words(seed, _ORDER, step, len(chosen), -(-parts // 4) * 4)[:, :parts]
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


def _pairs(n: int, parts: int, seed: int, step: int) -> Measurement:
    """Every pair of a coalition and its complement as often as every other, up to one, in a random order of samples."""
    pairs = 1 << parts - 1
    order = random_words(seed, _ORDER, step, 1, -(-n // 4) * 4)[0, :n].argsort()
    coalition = (order + step * n) % pairs  # without the last part; its complement holds it
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
