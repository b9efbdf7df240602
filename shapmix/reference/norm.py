"""Batch normalisation fused with residual shortcut and ReLU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, lowest: Tensor, *, shortcut: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """max(normalised(x) * weight + bias + shortcut, lowest), with the statistics of the batch.

    Args:
        x: [N, C, T, V] floating point.
        weight, bias: [C], float64 for float64 x, else float32, like `lowest`.
        lowest: [C], 0 applies ReLU to a channel, -infinity does not.
        shortcut: [N, C, T, V] with x's dtype, or None.

    Returns:
        (result [N, C, T, V] with x's dtype, mean [C], biased variance [C]); no gradient flows through the returned statistics.
        Computed in float64: torch's batch norm loses float32 precision if a mean is large relative to its deviation.
    """
    wide = x.double()
    variance, mean = torch.var_mean(wide.detach(), (0, 2, 3), correction=0)
    y = functional.batch_norm(wide, None, None, weight.double(), bias.double(), training=True, eps=eps)
    if shortcut is not None:
        y = y + shortcut
    return torch.maximum(y, lowest[:, None, None].double()).to(x.dtype), mean.to(weight.dtype), variance.to(weight.dtype)


def batch_norm_backward(
    grad: Tensor, out: Tensor, mean: Tensor, variance: Tensor, x: Tensor, weight: Tensor, lowest: Tensor, *, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to x, shortcut, weight and bias, given that of `batch_norm`'s result `out`."""
    passed = torch.where(out > lowest.to(out.dtype)[:, None, None], grad, 0).to(weight.dtype)
    inverse = (variance + eps).rsqrt()[:, None, None]
    normalised = (x.to(weight.dtype) - mean[:, None, None]) * inverse
    to_weight, to_bias = (passed * normalised).sum((0, 2, 3)), passed.sum((0, 2, 3))
    rows = x.numel() // x.shape[1]
    to_x = passed - (normalised * to_weight[:, None, None] + to_bias[:, None, None]) / rows
    return (to_x * weight[:, None, None] * inverse).to(x.dtype), passed.to(x.dtype), to_weight, to_bias
