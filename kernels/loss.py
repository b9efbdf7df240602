"""The logit-adjusted loss of clean and mixed clips, on the fastest back end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shapmix import reference

from .checks import DTYPES, SUM_DTYPES, check_dtype, check_tensor, in_sum_dtype, sum_dtype
from .op import Gradient, op


def _reference_backward(row_sums: Tensor, **arguments: Tensor) -> Tensor:
    return reference.balanced_mix_loss_backward(**arguments)


@op(
    reference=_reference_backward,
    outputs=("to_logits",),
    layouts={"lam": in_sum_dtype},
    check_values="check_targets",
    chosen_by="logits",
)
def balanced_mix_loss_backward(
    grad: Tensor,
    row_sums: Tensor,
    logits: Tensor,
    labels: Tensor,
    partner: Tensor,
    lam: Tensor,
    log_prior: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """Gradient of the logits [L, K] from the gradient [2] of the losses and the log-sum-exp of each row."""
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _backward(grad: Tensor, saved: Any) -> tuple[Tensor]:
    tensors = (saved.logits, saved.labels, saved.partner, saved.lam, saved.log_prior)
    if torch.is_grad_enabled():  # built from torch ops that autograd records, for double backward through the logits
        return (reference.balanced_mix_loss_backward(grad, *tensors[:3], saved.lam.detach(), saved.log_prior.detach()),)
    return (balanced_mix_loss_backward(grad, saved.row_sums, *tensors, backend=saved.backend),)


def _reference(logits: Tensor, labels: Tensor, partner: Tensor, lam: Tensor, log_prior: Tensor) -> tuple[Tensor, Tensor]:
    losses = reference.balanced_mix_loss(logits, labels, partner, lam, log_prior)
    return torch.stack(losses), (logits + log_prior).logsumexp(1)


@op(
    reference=_reference,
    outputs=("losses", "row_sums"),
    layouts={"lam": in_sum_dtype},
    check_values="check_targets",
    gradient=Gradient(
        of=("logits",), saves=("row_sums", "logits", "labels", "partner", "lam", "log_prior"), backward=_backward, apart=True
    ),
)
def balanced_mix_loss(
    logits: Tensor, labels: Tensor, partner: Tensor, lam: Tensor, log_prior: Tensor, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Logit-adjusted cross-entropy of the batch [clean; mixed], without materialising targets or log-probabilities.

    Args:
        logits: [2N, K] floating point, clean clips first, then mixed ones; or [N, K] without mixed clips. Half precision is
            accumulated in float32.
        labels: [N] int64.
        partner: [N] int64, the index of the sample mixed in.
        lam: [N] float32 or float64, the partner's share of the label (`MixPlan.label_share`).
        log_prior: [K] float32 (float64 for float64 logits), log of the class frequencies; zeros give plain cross-entropy.
        backend: one of `BACKENDS`; None reads SHAPMIX_BACKEND, which defaults to the fastest available.

    Returns:
        (clean, mixed) in the dtype of `log_prior`, each a mean over N; mixed is 0 without mixed clips. The training loss is
        their sum. Only the logits receive gradients.

    Raises:
        TypeError: an argument has the wrong dtype.
        ValueError: an argument has the wrong shape or device; on CPU tensors also if a label or partner is out of range.
        BackendError: the requested back end cannot run.
    """
    n, device = len(labels), logits.device
    if logits.dim() != 2 or n == 0 or len(logits) not in (n, 2 * n) or logits.numel() == 0:
        raise ValueError(f"logits has shape {list(logits.shape)} for {n} labels; give [2N, K] of clean and mixed clips, or [N, K]")
    check_dtype("logits", logits, DTYPES)
    check_tensor("labels", labels, (n,), torch.int64, device, "logits")
    check_tensor("partner", partner, (n,), torch.int64, device, "logits")
    check_dtype("lam", lam, SUM_DTYPES)
    check_tensor("lam", lam, (n,), lam.dtype, device, "logits")
    check_tensor("log_prior", log_prior, (logits.shape[1],), sum_dtype(logits.dtype), device, "logits")

    # the losses, and the log-sum-exp of each row, which the backward pass needs
    return log_prior.new_empty(2), log_prior.new_empty(len(logits))
