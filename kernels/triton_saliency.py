"""`saliency_update` as two Triton kernels: the marginals of all updates, then the moving averages, in order."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .dispatch import kernel
from .triton import DTYPES

MAX_BLOCK_CLASSES = 1024
BLOCK_UPDATES = 128
NUM_WARPS = 4


@triton.jit
def probability(logits, row, label, classes, SUM: tl.constexpr, BLOCK: tl.constexpr):
    """softmax(logits[row])[label], online over blocks of classes."""
    logits += row * classes
    largest = tl.full([], float("-inf"), SUM)
    total = tl.zeros([], SUM)
    for begin in range(0, classes, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        block = tl.load(logits + column, mask=column < classes, other=float("-inf")).to(SUM)
        new_largest = tl.maximum(largest, tl.max(block, 0))
        total = total * tl.exp(largest - new_largest) + tl.sum(tl.exp(block - new_largest), 0)
        # exp(-inf - -inf) is NaN: a row whose first block is all -inf becomes NaN, and its update is skipped
        largest = new_largest
    return tl.exp(tl.load(logits + label).to(SUM) - largest) / total


@triton.jit
def marginal_kernel(
    marginal,
    logits,
    labels,
    with_rows,
    without_rows,
    weights,
    classes,
    contexts,
    WEIGHTED: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program computes one update: the weighted sum of its rectified differences."""
    update = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + update)
    total = tl.zeros([], SUM)
    for context in range(contexts):
        at = update * contexts + context
        upper = probability(logits, tl.load(with_rows + at), label, classes, SUM, BLOCK)
        lower = probability(logits, tl.load(without_rows + at), label, classes, SUM, BLOCK)
        difference = upper - lower
        difference = tl.where(difference < 0, 0.0, difference)  # keeps NaN
        if WEIGHTED:
            difference *= tl.load(weights + at)
        total += difference
    tl.store(marginal + update, total)


@triton.jit
def compose(keep, add, later_keep, later_add):
    """Composes two affine maps t -> keep * t + add."""
    return keep * later_keep, add * later_keep + later_add


@triton.jit
def average_kernel(
    table,
    marginal,
    labels,
    columns,
    joint_counts,
    updates,
    combinations,
    decay,
    scale,
    SUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The program of the first update of an entry applies all updates of that entry, in order; the others return."""
    first = tl.program_id(0).to(tl.int64)
    label, column = tl.load(labels + first), tl.load(columns + first)
    key = label * combinations + column
    earlier = first * 0
    for chunk in range(0, first, BLOCK):
        place = chunk + tl.arange(0, BLOCK)
        before = place < first
        its_key = tl.load(labels + place, mask=before, other=-1) * combinations + tl.load(columns + place, mask=before, other=0)
        earlier += tl.sum(((its_key == key) & before).to(tl.int64), 0)
    if earlier == 0:
        forget = tl.load(decay)
        factor = tl.load(scale) / tl.load(joint_counts + column).to(SUM)
        value = tl.load(table + key)
        for begin in range(0, updates, BLOCK):
            at = begin + tl.arange(0, BLOCK)
            some = at < updates
            theirs = tl.load(labels + at, mask=some, other=-1) * combinations + tl.load(columns + at, mask=some, other=0)
            mine = (theirs == key) & some
            share = tl.load(marginal + at, mask=mine, other=0.0) * factor
            counts = mine & (tl.abs(share) < float("inf"))  # a non-finite value would never leave the average
            keep = tl.where(counts, forget, 1.0).to(SUM)
            add = tl.where(counts, (1.0 - forget) * share, 0.0).to(SUM)
            keeps, adds = tl.associative_scan((keep, add), 0, compose)
            last = tl.arange(0, BLOCK) == BLOCK - 1
            all_kept = tl.sum(tl.where(last, keeps, 0.0), 0)
            all_added = tl.sum(tl.where(last, adds, 0.0), 0)
            value = value * all_kept + all_added
        tl.store(table + key, value)


@kernel("saliency_update", backend="triton", dtypes=DTYPES)
def saliency_update(
    *,
    marginal: Tensor,
    table: Tensor,
    logits: Tensor,
    labels: Tensor,
    columns: Tensor,
    with_rows: Tensor,
    without_rows: Tensor,
    weights: Tensor | None,
    joint_counts: Tensor,
    decay: float,
    scale: float,
) -> None:
    """Writes `marginal` [U] and updates `table` [K, Q]; rows [U] or [U, J] and weights [U, J], all tensors contiguous."""
    updates, contexts = len(labels), with_rows.numel() // len(labels)
    classes, combinations = table.shape
    of_sums = tl.float64 if table.element_size() == 8 else tl.float32
    marginal_kernel[(updates,)](
        marginal,
        logits,
        labels,
        with_rows,
        without_rows,
        marginal if weights is None else weights,
        classes,
        contexts,
        WEIGHTED=weights is not None,
        SUM=of_sums,
        BLOCK=min(triton.next_power_of_2(classes), MAX_BLOCK_CLASSES),
        num_warps=NUM_WARPS,
    )
    average_kernel[(updates,)](
        table,
        marginal,
        labels,
        columns,
        joint_counts,
        updates,
        combinations,
        table.new_full((), decay),  # a float argument would be rounded to float32
        table.new_full((), scale),
        SUM=of_sums,
        BLOCK=BLOCK_UPDATES,
        num_warps=NUM_WARPS,
    )
