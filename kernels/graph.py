"""CTR-GCN's graph convolution and its gradient, on the fastest back end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shapmix import reference

from .checks import DTYPES, check_dtype, check_tensor, in_channels_last, in_rows, sum_dtype
from .op import Gradient, op


@op(
    reference=reference.graph_conv_backward,
    outputs=("to_features", "to_relation_terms", "to_weight", "to_bias", "to_shared"),
    layouts={"grad": in_channels_last, "features": in_channels_last},
    chosen_by="features",
)
def graph_conv_backward(
    grad: Tensor,
    features: Tensor,
    relation_terms: Tensor,
    weight: Tensor,
    bias: Tensor,
    shared: Tensor,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `graph_conv`'s five arguments from that of its result; that of the features is in channels-last memory."""
    to_features = torch.empty_like(features, memory_format=torch.channels_last)
    of_terms, of_weight, of_bias, of_shared = (
        torch.empty_like(value, memory_format=torch.contiguous_format) for value in (relation_terms, weight, bias, shared)
    )
    return to_features, of_terms, of_weight, of_bias, of_shared


def differentiable_gradients(forward: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor) -> list[Tensor | None]:
    """Gradients of `forward`, built from torch ops that autograd records, for double backward."""
    wanted = [value for value in inputs if value.requires_grad]
    found = iter(torch.autograd.grad(forward(*inputs), wanted, grad, create_graph=True))
    return [next(found) if value.requires_grad else None for value in inputs]


def _backward(grad: Tensor, saved: Any) -> tuple[Tensor | None, ...]:
    inputs = (saved.features, saved.relation_terms, saved.weight, saved.bias, saved.shared)
    if torch.is_grad_enabled():
        return tuple(differentiable_gradients(reference.graph_conv, inputs, grad))
    return graph_conv_backward(grad, *inputs, backend=saved.backend)


_INPUTS = ("features", "relation_terms", "weight", "bias", "shared")


@op(
    reference=reference.graph_conv,
    layouts={"features": in_rows, "shortcut": in_rows},
    gradient=Gradient(of=_INPUTS, saves=_INPUTS, backward=_backward),
    without_gradient=("offset",),
)
def graph_conv(
    features: Tensor,
    relation_terms: Tensor,
    weight: Tensor,
    bias: Tensor,
    shared: Tensor,
    *,
    offset: Tensor | None = None,
    shortcut: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Sum over the subsets of features aggregated by their refined graphs; the graphs of only a few clips are materialised at once.

    The graph of subset s and channel c between joints u and v is
    shared[s, u, v] + bias[s, c] + sum_k weight[s, k, c] * tanh(left[u, s, k] - right[v, s, k]).

    Args:
        features: [N, S * C, T, V] in channels-last memory (copied otherwise), subset-major along the channels; may be the first
            channels of a wider tensor. C is a multiple of 8.
        relation_terms: [N, V, 2, S, K], left and right; float64 for float64 features, else float32, as are the following.
        weight: [S, K, C], alpha times the weight of conv4.
        bias: [S, C], alpha times the bias of conv4.
        shared: [S, V, V], the graphs shared by all channels.
        offset: [C], or None. If given, the epilogue relu(sum + offset + shortcut) is fused, for networks with folded batch
            normalisation; disables gradients.
        shortcut: [N, C, T, V] in the features' dtype, or None; only with `offset`.
        backend: one of `BACKENDS`; None reads SHAPMIX_BACKEND, which defaults to the fastest available.

    Returns:
        [N, C, T, V] in the features' dtype, in channels-last memory; accumulated in the dtype of the weight.

    Raises:
        TypeError: an argument has the wrong dtype.
        ValueError: an argument has the wrong shape or device, or a shortcut is given without an offset.
        BackendError: the requested back end cannot run.
    """
    check_dtype("features", features, DTYPES)
    if weight.dim() != 3 or features.dim() != 4 or 0 in (*weight.shape, *features.shape):
        raise ValueError(
            f"features and weight have shapes {list(features.shape)} and {list(weight.shape)}; give [N, S * C, T, V] and [S, K, C] "
            "with no axis empty"
        )
    n, _, frames, joints = features.shape
    subsets, relations, channels = weight.shape
    device, wide = features.device, sum_dtype(features.dtype)
    if channels % 8:
        raise ValueError(f"weight has {channels} channels; give a multiple of 8")
    check_tensor("features", features, (n, subsets * channels, frames, joints), features.dtype, device, "features")
    check_tensor("weight", weight, weight.shape, wide, device, "features")
    check_tensor("relation_terms", relation_terms, (n, joints, 2, subsets, relations), wide, device, "features")
    check_tensor("bias", bias, (subsets, channels), wide, device, "features")
    check_tensor("shared", shared, (subsets, joints, joints), wide, device, "features")
    shape = (n, channels, frames, joints)
    if offset is not None:
        check_tensor("offset", offset, (channels,), wide, device, "features")
    if shortcut is not None:
        if offset is None:
            raise ValueError("shortcut is given without an offset; add it outside, or give zeros as the offset")
        check_tensor("shortcut", shortcut, shape, features.dtype, device, "features")

    return torch.empty(shape, dtype=features.dtype, device=device, memory_format=torch.channels_last)
