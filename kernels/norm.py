"""Batch normalisation fused with shortcut and ReLU, and its gradient, on the fastest back end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shapmix import reference

from .checks import DTYPES, check_dtype, check_tensor, sum_dtype
from .dispatch import choose, needs_registered_op, run, wants_gradient
from .graph import CHANNELS_LAST, differentiable_gradients, rows_of_channels


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    lowest: Tensor,
    *,
    shortcut: Tensor | None = None,
    eps: float = 1e-5,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """max(normalised(x) * weight + bias + shortcut, lowest), with batch statistics.

    Args:
        x: [N, C, T, V] floating point in channels-last memory (copied otherwise).
        weight, bias: [C], float64 for float64 x, else float32, like `lowest`.
        lowest: [C], the lower bound per channel: 0 is a ReLU, -infinity none.
        shortcut: [N, C, T, V] in the dtype of x, or None.
        eps: added to the variance.
        backend: one of `BACKENDS`; None reads SHAPMIX_BACKEND, which defaults to the fastest available.

    Returns:
        (result [N, C, T, V] in the dtype of x and in channels-last memory, mean [C], biased variance [C]). The statistics
        are not differentiable. Partial sums over a few rows use the dtype of the weight and are taken relative to one of the
        rows; they are combined in float64, so that a mean far from zero loses no precision.

    Raises:
        TypeError: an argument has the wrong dtype.
        ValueError: an argument has the wrong shape or device.
        BackendError: the requested back end cannot run.
    """
    tensors = (x, weight, bias) if shortcut is None else (x, weight, bias, shortcut)
    if needs_registered_op(*tensors, lowest) or wants_gradient(*tensors):
        return torch.ops.shapmix.batch_norm(x, weight, bias, lowest, shortcut, eps, backend)
    return _normalise(x, weight, bias, lowest, shortcut, eps, backend)


def _normalise(
    x: Tensor, weight: Tensor, bias: Tensor, lowest: Tensor, shortcut: Tensor | None, eps: float, backend: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    check_dtype("x", x, DTYPES)
    if x.dim() != 4 or x.numel() == 0:
        raise ValueError(f"x has shape {list(x.shape)}; give [N, C, T, V] with no axis empty")
    for name, value in (("weight", weight), ("bias", bias), ("lowest", lowest)):
        check_tensor(name, value, (x.shape[1],), sum_dtype(x.dtype), x.device, "x")
    if shortcut is not None:
        check_tensor("shortcut", shortcut, tuple(x.shape), x.dtype, x.device, "x")

    chosen = choose("batch_norm", x, backend)
    if chosen == "reference":
        return reference.batch_norm(x, weight, bias, lowest, shortcut=shortcut, eps=eps)
    x = x.contiguous(memory_format=CHANNELS_LAST)
    out, mean, variance = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    shortcut = None if shortcut is None else rows_of_channels(shortcut)
    per_channel = (weight.contiguous(), bias.contiguous(), lowest.contiguous())
    run(chosen, "batch_norm", out, mean, variance, x, shortcut, *per_channel, eps)
    return out, mean, variance


# The op and its gradient as registered ops, for autograd and torch.compile.


@torch.library.custom_op(
    "shapmix::batch_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, Tensor lowest, Tensor? shortcut, float eps, str? backend) "
    "-> (Tensor, Tensor, Tensor)",
)
def _batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, lowest: Tensor, shortcut: Tensor | None, eps: float, backend: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        out, mean, variance = _normalise(x, weight, bias, lowest, shortcut, eps, backend)
        return out.contiguous(memory_format=CHANNELS_LAST), mean, variance


@_batch_norm.register_fake
def _(x: Tensor, weight: Tensor, *_arguments: object) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x, memory_format=CHANNELS_LAST), torch.empty_like(weight), torch.empty_like(weight)


@torch.library.custom_op(
    "shapmix::batch_norm_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor out, Tensor mean, Tensor variance, Tensor x, Tensor weight, Tensor bias, Tensor lowest, "
    "bool with_shortcut, float eps, str? backend) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _batch_norm_backward(
    grad: Tensor,
    out: Tensor,
    mean: Tensor,
    variance: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    lowest: Tensor,
    with_shortcut: bool,
    eps: float,
    backend: str | None,
) -> tuple[Tensor, ...]:
    chosen = choose("batch_norm", x, backend)
    grad, x = grad.contiguous(memory_format=CHANNELS_LAST), x.contiguous(memory_format=CHANNELS_LAST)
    to_shortcut = torch.empty_like(x) if with_shortcut else x.new_empty(0)
    if chosen == "reference":
        to_x, passed, *to_others = reference.batch_norm_backward(grad, out, mean, variance, x, weight, lowest, eps=eps)
        return to_x, to_shortcut.copy_(passed) if with_shortcut else to_shortcut, *to_others
    to_x, to_weight, to_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    run(
        chosen,
        "batch_norm_backward",
        to_x,
        to_shortcut if with_shortcut else None,
        to_weight,
        to_bias,
        grad,
        out,
        mean,
        variance,
        x,
        weight.contiguous(),
        bias.contiguous(),
        lowest.contiguous(),
        eps,
    )
    return to_x, to_shortcut, to_weight, to_bias


@_batch_norm_backward.register_fake
def _(
    grad: Tensor,
    out: Tensor,
    mean: Tensor,
    variance: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    lowest: Tensor,
    with_shortcut: bool,
    eps: float,
    backend: str | None,
) -> tuple[Tensor, ...]:
    like_x = torch.empty_like(x, memory_format=CHANNELS_LAST)
    to_shortcut = torch.empty_like(like_x) if with_shortcut else x.new_empty(0)
    return like_x, to_shortcut, torch.empty_like(weight), torch.empty_like(weight)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, lowest, shortcut, ctx.eps, ctx.backend = inputs
    ctx.with_shortcut = shortcut is not None
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output, x, weight, bias, lowest)


def _backward(ctx: Any, grad: Tensor, *_of_statistics: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        return _differentiable_gradients(ctx, grad)
    options = (ctx.with_shortcut, ctx.eps, ctx.backend)
    to_x, to_shortcut, to_weight, to_bias = torch.ops.shapmix.batch_norm_backward(grad, *ctx.saved_tensors, *options)
    return to_x, to_weight, to_bias, None, to_shortcut if ctx.with_shortcut else None, None, None


def _differentiable_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Like `_backward`, for double backward: the ReLU mask comes from the saved result, the rest from the reference."""
    out, _, _, x, weight, bias, lowest = ctx.saved_tensors
    passed = torch.where(out > lowest.to(out.dtype)[:, None, None], grad, 0)
    unbounded = torch.full_like(lowest, -torch.inf)

    def normalise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return reference.batch_norm(x, weight, bias, unbounded, eps=ctx.eps)[0]

    to_x, to_weight, to_bias = differentiable_gradients(normalise, (x, weight, bias), passed)
    return to_x, to_weight, to_bias, None, passed if ctx.with_shortcut else None, None, None


_batch_norm.register_autograd(_backward, setup_context=_save)
