"""Batch normalisation fused with shortcut and ReLU, and its gradient, on the fastest back end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shapmix import reference

from .checks import DTYPES, check_dtype, check_tensor, in_channels_last, in_rows, sum_dtype
from .graph import differentiable_gradients
from .op import Gradient, op


def _reference_backward(*, with_shortcut: bool, bias: Tensor, **arguments: Any) -> tuple[Tensor, ...]:
    to_x, passed, to_weight, to_bias = reference.batch_norm_backward(**arguments)
    return to_x, passed if with_shortcut else passed.new_empty(0), to_weight, to_bias


@op(
    reference=_reference_backward,
    outputs=("to_x", "to_shortcut", "to_weight", "to_bias"),
    layouts=dict.fromkeys(("grad", "out", "x"), in_channels_last),
    chosen_by="x",
)
def batch_norm_backward(
    grad: Tensor,
    out: Tensor,
    mean: Tensor,
    variance: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    lowest: Tensor,
    *,
    with_shortcut: bool,
    eps: float,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, shortcut (empty unless `with_shortcut`), weight and bias, from the results of `batch_norm`."""
    to_x = torch.empty_like(x, memory_format=torch.channels_last)
    to_shortcut = torch.empty_like(to_x) if with_shortcut else x.new_empty(0)
    return to_x, to_shortcut, torch.empty_like(weight), torch.empty_like(weight)


def _backward(grad: Tensor, saved: Any) -> tuple[Tensor | None, ...]:
    with_shortcut = "shortcut" in saved.wanted
    if torch.is_grad_enabled():
        return _differentiable_gradients(grad, saved, with_shortcut)
    tensors = (saved.out, saved.mean, saved.variance, saved.x, saved.weight, saved.bias, saved.lowest)
    options = {"with_shortcut": with_shortcut, "eps": saved.eps, "backend": saved.backend}
    to_x, to_shortcut, to_weight, to_bias = batch_norm_backward(grad, *tensors, **options)
    return to_x, to_weight, to_bias, to_shortcut if with_shortcut else None


def _differentiable_gradients(grad: Tensor, saved: Any, with_shortcut: bool) -> tuple[Tensor | None, ...]:
    """For double backward: the ReLU mask comes from the saved result, the rest from the reference."""
    passed = torch.where(saved.out > saved.lowest.to(saved.out.dtype)[:, None, None], grad, 0)
    unbounded = torch.full_like(saved.lowest, -torch.inf)

    def normalise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return reference.batch_norm(x, weight, bias, unbounded, eps=saved.eps)[0]

    gradients = differentiable_gradients(normalise, (saved.x, saved.weight, saved.bias), passed)
    return *gradients, passed if with_shortcut else None


@op(
    reference=reference.batch_norm,
    outputs=("out", "mean", "variance"),
    layouts={"x": in_channels_last, "shortcut": in_rows},
    gradient=Gradient(
        of=("x", "weight", "bias", "shortcut"),
        saves=("out", "mean", "variance", "x", "weight", "bias", "lowest"),
        backward=_backward,
    ),
)
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
    check_dtype("x", x, DTYPES)
    if x.dim() != 4 or x.numel() == 0:
        raise ValueError(f"x has shape {list(x.shape)}; give [N, C, T, V] with no axis empty")
    for name, value in (("weight", weight), ("bias", bias), ("lowest", lowest)):
        check_tensor(name, value, (x.shape[1],), sum_dtype(x.dtype), x.device, "x")
    if shortcut is not None:
        check_tensor("shortcut", shortcut, tuple(x.shape), x.dtype, x.device, "x")

    out = torch.empty_like(x, memory_format=torch.channels_last)
    return out, torch.empty_like(weight), torch.empty_like(weight)
