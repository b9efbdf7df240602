"""`balanced_mix_loss` and its gradient as Triton kernels: one program per row, deterministic sums."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import kernel
from .triton import DTYPES

MAX_BLOCK_CLASSES = 1024
BLOCK_ROWS = 1024
NUM_WARPS = 4


@triton.jit
def row_kernel(
    row_losses,
    row_sums,
    logits,
    labels,
    partner,
    lam,
    log_prior,
    samples,
    classes,
    SUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program writes the log-sum-exp of one row of adjusted logits, and its loss."""
    row = tl.program_id(0).to(tl.int64)
    sample = row % samples
    logits += row * classes
    largest = tl.full([], float("-inf"), SUM)
    total = tl.zeros([], SUM)
    for begin in range(0, classes, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        inside = column < classes
        block = tl.load(logits + column, mask=inside, other=float("-inf")).to(SUM) + tl.load(
            log_prior + column, mask=inside, other=0.0
        )
        new_largest = tl.maximum(largest, tl.max(block, 0))
        total = total * tl.exp(largest - new_largest) + tl.sum(tl.exp(block - new_largest), 0)
        largest = new_largest
    row_sum = largest + tl.log(total)
    tl.store(row_sums + row, row_sum)

    label = tl.load(labels + sample)
    own = tl.load(logits + label).to(SUM) + tl.load(log_prior + label)
    loss = row_sum - own
    if row >= samples:
        share = tl.load(lam + sample)
        other_label = tl.load(labels + tl.load(partner + sample))
        other = tl.load(logits + other_label).to(SUM) + tl.load(log_prior + other_label)
        loss = (1.0 - share) * loss + share * (row_sum - other)
    tl.store(row_losses + row, loss)


@triton.jit(do_not_specialize=["samples"])  # an argument of 1 would become a constexpr without .to
def mean_kernel(losses, row_losses, samples, rows, SUM: tl.constexpr, BLOCK: tl.constexpr):
    """Program 0 averages the clean rows, program 1 the mixed ones (0 if there are none)."""
    first = tl.program_id(0) * samples
    total = tl.zeros([], SUM)
    if first < rows:
        for begin in range(0, samples, BLOCK):
            at = begin + tl.arange(0, BLOCK)
            total += tl.sum(tl.load(row_losses + first + at, mask=at < samples, other=0.0), 0)
    tl.store(losses + tl.program_id(0), total / samples.to(SUM))


@triton.jit(do_not_specialize=["samples"])
def gradient_kernel(
    to_logits,
    grad,
    row_sums,
    logits,
    labels,
    partner,
    lam,
    log_prior,
    samples,
    classes,
    SUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program writes one block of classes of one row: (softmax - target) times the gradient of the loss / N."""
    row = tl.program_id(0).to(tl.int64)
    sample = row % samples
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < classes
    logit = tl.load(logits + row * classes + column, mask=inside, other=0.0).to(SUM)
    softmax = tl.exp(logit + tl.load(log_prior + column, mask=inside, other=0.0) - tl.load(row_sums + row))
    share = tl.load(lam + sample) * (row >= samples).to(SUM)
    label, other_label = tl.load(labels + sample), tl.load(labels + tl.load(partner + sample))
    target = tl.where(column == label, 1.0 - share, 0.0) + tl.where(column == other_label, share, 0.0)
    each = tl.load(grad + row // samples) / samples.to(SUM)
    tl.store(to_logits + row * classes + column, ((softmax - target) * each).to(to_logits.dtype.element_ty), mask=inside)


@kernel("balanced_mix_loss", backend="triton", dtypes=DTYPES)
def balanced_mix_loss(
    *, losses: Tensor, row_sums: Tensor, logits: Tensor, labels: Tensor, partner: Tensor, lam: Tensor, log_prior: Tensor
) -> None:
    """Writes `losses` [2] and `row_sums` [L]; all tensors are contiguous, `lam` and `log_prior` in the accumulation dtype."""
    rows, classes = logits.shape
    samples = len(labels)
    of_sums = tl.float64 if log_prior.dtype == torch.float64 else tl.float32
    row_losses = torch.empty_like(row_sums)
    row_kernel[(rows,)](
        row_losses,
        row_sums,
        logits,
        labels,
        partner,
        lam,
        log_prior,
        samples,
        classes,
        SUM=of_sums,
        BLOCK=min(triton.next_power_of_2(classes), MAX_BLOCK_CLASSES),
        num_warps=NUM_WARPS,
    )
    mean_kernel[(2,)](losses, row_losses, samples, rows, SUM=of_sums, BLOCK=BLOCK_ROWS, num_warps=NUM_WARPS)


@kernel("balanced_mix_loss_backward", backend="triton", dtypes=DTYPES)
def balanced_mix_loss_backward(
    *,
    to_logits: Tensor,
    grad: Tensor,
    row_sums: Tensor,
    logits: Tensor,
    labels: Tensor,
    partner: Tensor,
    lam: Tensor,
    log_prior: Tensor,
) -> None:
    """Writes `to_logits` [L, K]; `grad` [2] is the gradient of the losses, the others are as in the forward pass."""
    rows, classes = logits.shape
    block = min(triton.next_power_of_2(classes), MAX_BLOCK_CLASSES)
    gradient_kernel[(rows, triton.cdiv(classes, block))](
        to_logits,
        grad,
        row_sums,
        logits,
        labels,
        partner,
        lam,
        log_prior,
        len(labels),
        classes,
        SUM=tl.float64 if log_prior.dtype == torch.float64 else tl.float32,
        BLOCK=block,
        num_warps=NUM_WARPS,
    )
