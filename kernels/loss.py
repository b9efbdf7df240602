"""The logit-adjusted loss of clean and mixed clips, on the fastest back end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shapmix import reference

from . import native
from .checks import DTYPES, SUM_DTYPES, check_dtype, check_tensor, sum_dtype
from .dispatch import choose, needs_registered_op, run, wants_gradient


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
    arguments = (logits, labels, partner, lam, log_prior, backend)
    if needs_registered_op(*arguments[:5]):
        clean, mixed = torch.ops.shapmix.balanced_mix_loss(*arguments)[0].unbind()
    elif wants_gradient(logits):
        clean, mixed = _BalancedMixLoss.apply(*arguments)  # type: ignore[no-untyped-call]
    else:
        clean, mixed = _forward(*arguments)[0].unbind()
    return clean, mixed


def _forward(
    logits: Tensor, labels: Tensor, partner: Tensor, lam: Tensor, log_prior: Tensor, backend: str | None
) -> tuple[Tensor, Tensor]:
    """The losses [2] and the log-sum-exp of each row, which the backward pass needs."""
    n, device = len(labels), logits.device
    if logits.dim() != 2 or n == 0 or len(logits) not in (n, 2 * n) or logits.numel() == 0:
        raise ValueError(f"logits has shape {list(logits.shape)} for {n} labels; give [2N, K] of clean and mixed clips, or [N, K]")
    check_dtype("logits", logits, DTYPES)
    check_tensor("labels", labels, (n,), torch.int64, device, "logits")
    check_tensor("partner", partner, (n,), torch.int64, device, "logits")
    check_dtype("lam", lam, SUM_DTYPES)
    check_tensor("lam", lam, (n,), lam.dtype, device, "logits")
    check_tensor("log_prior", log_prior, (logits.shape[1],), sum_dtype(logits.dtype), device, "logits")

    chosen = choose("balanced_mix_loss", logits, backend)
    labels, partner, lam, log_prior = _for_kernels(labels, partner, lam, log_prior)
    if logits.is_cpu and chosen != "cpp":
        native.check_targets(labels, partner, logits.shape[1])
    if chosen == "reference":
        losses = torch.stack(reference.balanced_mix_loss(logits, labels, partner, lam, log_prior))
        return losses, (logits + log_prior).logsumexp(1)

    losses, row_sums = log_prior.new_empty(2), log_prior.new_empty(len(logits))
    run(chosen, "balanced_mix_loss", losses, row_sums, logits.contiguous(), labels, partner, lam, log_prior)
    return losses, row_sums


def _for_kernels(labels: Tensor, partner: Tensor, lam: Tensor, log_prior: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The layout that the kernels read: contiguous, `lam` in the accumulation dtype."""
    return labels.contiguous(), partner.contiguous(), lam.to(log_prior.dtype).contiguous(), log_prior.contiguous()


def _gradient(
    grad: Tensor,
    row_sums: Tensor,
    logits: Tensor,
    labels: Tensor,
    partner: Tensor,
    lam: Tensor,
    log_prior: Tensor,
    backend: str | None,
) -> Tensor:
    """Gradient of the logits [L, K] from the gradient of the losses [2]."""
    chosen = choose("balanced_mix_loss", logits, backend)
    labels, partner, lam, log_prior = _for_kernels(labels, partner, lam, log_prior)
    if chosen == "reference":
        return reference.balanced_mix_loss_backward(grad, logits, labels, partner, lam, log_prior)
    to_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    rest = (row_sums, logits.contiguous(), labels, partner, lam, log_prior)
    run(chosen, "balanced_mix_loss_backward", to_logits, grad.contiguous(), *rest)
    return to_logits


def _differentiable_gradient(
    grad: Tensor, logits: Tensor, labels: Tensor, partner: Tensor, lam: Tensor, log_prior: Tensor
) -> Tensor:
    """Like `_gradient`, built from torch ops that autograd records, for double backward through the logits."""
    return reference.balanced_mix_loss_backward(grad, logits, labels, partner, lam.detach(), log_prior.detach())


class _BalancedMixLoss(torch.autograd.Function):
    """The op with a gradient in eager mode, where the overhead of a registered op exceeds the time of the kernels."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        losses, row_sums = _forward(*arguments)
        *tensors, ctx.backend = arguments
        ctx.save_for_backward(row_sums, *tensors)
        clean, mixed = losses.unbind()
        return clean.clone(), mixed.clone()  # autograd forbids in-place changes of one of several output views

    @staticmethod
    def backward(ctx: Any, clean: Tensor, mixed: Tensor) -> tuple[Tensor | None, ...]:
        grad, (row_sums, *tensors) = torch.stack((clean, mixed)), ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable_gradient(grad, *tensors), None, None, None, None, None
        return _gradient(grad, row_sums, *(*tensors, ctx.backend)), None, None, None, None, None


# The op and its gradient as registered ops, for torch.compile.


@torch.library.custom_op(
    "shapmix::balanced_mix_loss",
    mutates_args=(),
    schema="(Tensor logits, Tensor labels, Tensor partner, Tensor lam, Tensor log_prior, str? backend) -> (Tensor, Tensor)",
)
def _balanced_mix_loss(
    logits: Tensor, labels: Tensor, partner: Tensor, lam: Tensor, log_prior: Tensor, backend: str | None
) -> tuple[Tensor, Tensor]:
    return _forward(logits, labels, partner, lam, log_prior, backend)


@_balanced_mix_loss.register_fake
def _(
    logits: Tensor, labels: Tensor, partner: Tensor, lam: Tensor, log_prior: Tensor, backend: str | None
) -> tuple[Tensor, Tensor]:
    return log_prior.new_empty(2), log_prior.new_empty(len(logits))


@torch.library.custom_op(
    "shapmix::balanced_mix_loss_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor row_sums, Tensor logits, Tensor labels, Tensor partner, Tensor lam, Tensor log_prior, "
    "str? backend) -> Tensor",
)
def _balanced_mix_loss_backward(
    grad: Tensor,
    row_sums: Tensor,
    logits: Tensor,
    labels: Tensor,
    partner: Tensor,
    lam: Tensor,
    log_prior: Tensor,
    backend: str | None,
) -> Tensor:
    return _gradient(grad, row_sums, logits, labels, partner, lam, log_prior, backend)


@_balanced_mix_loss_backward.register_fake
def _(grad: Tensor, row_sums: Tensor, logits: Tensor, *_arguments: object) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _grad_row_sums: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        return _differentiable_gradient(grad, *ctx.saved_tensors[1:]), None, None, None, None, None
    to_logits = torch.ops.shapmix.balanced_mix_loss_backward(grad, *ctx.saved_tensors, ctx.backend)
    return to_logits, None, None, None, None, None


_balanced_mix_loss.register_autograd(_backward, setup_context=_save)
