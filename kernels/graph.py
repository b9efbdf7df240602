"""CTR-GCN's graph convolution and its gradient, on the fastest back end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shapmix import reference

from .checks import DTYPES, check_dtype, check_tensor, row_stride, sum_dtype
from .dispatch import choose, needs_registered_op, run, wants_gradient

CHANNELS_LAST = torch.channels_last


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
    tensors = (features, relation_terms, weight, bias, shared)
    if not torch.compiler.is_compiling() and offset is not None and wants_gradient(*tensors):
        raise ValueError("offset is given but a gradient is required; use torch.no_grad(), or apply offset and ReLU outside")
    if needs_registered_op(*tensors, offset, shortcut) or wants_gradient(*tensors):
        return torch.ops.shapmix.graph_conv(*tensors, offset, shortcut, backend)
    return _convolve(*tensors, offset, shortcut, backend)


def _convolve(
    features: Tensor,
    relation_terms: Tensor,
    weight: Tensor,
    bias: Tensor,
    shared: Tensor,
    offset: Tensor | None,
    shortcut: Tensor | None,
    backend: str | None,
) -> Tensor:
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

    chosen = choose("graph_conv", features, backend)
    if chosen == "reference":
        return reference.graph_conv(features, relation_terms, weight, bias, shared, offset=offset, shortcut=shortcut)
    out = torch.empty(shape, dtype=features.dtype, device=device, memory_format=CHANNELS_LAST)
    run(
        chosen,
        "graph_conv",
        out,
        rows_of_channels(features),
        relation_terms.contiguous(),
        weight.contiguous(),
        bias.contiguous(),
        shared.contiguous(),
        None if offset is None else offset.contiguous(),
        None if shortcut is None else rows_of_channels(shortcut),
    )
    return out


def rows_of_channels(x: Tensor) -> Tensor:
    """[N, C, T, V] with contiguous channels and evenly spaced joints: the input if it is so laid out, else a channels-last copy.

    A channel slice of a channels-last tensor is not copied.
    """
    return x.contiguous(memory_format=CHANNELS_LAST) if row_stride(x) is None else x


def differentiable_gradients(forward: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor) -> list[Tensor | None]:
    """Gradients of `forward`, built from torch ops that autograd records, for double backward."""
    wanted = [value for value in inputs if value.requires_grad]
    found = iter(torch.autograd.grad(forward(*inputs), wanted, grad, create_graph=True))
    return [next(found) if value.requires_grad else None for value in inputs]


# The op and its gradient as registered ops, for autograd and torch.compile.


@torch.library.custom_op(
    "shapmix::graph_conv",
    mutates_args=(),
    schema="(Tensor features, Tensor relation_terms, Tensor weight, Tensor bias, Tensor shared, Tensor? offset, "
    "Tensor? shortcut, str? backend) -> Tensor",
)
def _graph_conv(
    features: Tensor,
    relation_terms: Tensor,
    weight: Tensor,
    bias: Tensor,
    shared: Tensor,
    offset: Tensor | None,
    shortcut: Tensor | None,
    backend: str | None,
) -> Tensor:
    with torch.no_grad():
        y = _convolve(features, relation_terms, weight, bias, shared, offset, shortcut, backend)
        return y.contiguous(memory_format=CHANNELS_LAST)


@_graph_conv.register_fake
def _(features: Tensor, _terms: Tensor, weight: Tensor, *_arguments: object) -> Tensor:
    n, _, frames, joints = features.shape
    return torch.empty(
        (n, weight.shape[2], frames, joints), dtype=features.dtype, device=features.device, memory_format=CHANNELS_LAST
    )


@torch.library.custom_op(
    "shapmix::graph_conv_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor features, Tensor relation_terms, Tensor weight, Tensor bias, Tensor shared, str? backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _graph_conv_backward(
    grad: Tensor, features: Tensor, relation_terms: Tensor, weight: Tensor, bias: Tensor, shared: Tensor, backend: str | None
) -> tuple[Tensor, ...]:
    chosen = choose("graph_conv", features, backend)
    inputs = (features, relation_terms, weight, bias, shared)
    if chosen == "reference":
        of_features, *of_others = reference.graph_conv_backward(grad, *inputs)
        return of_features.contiguous(memory_format=CHANNELS_LAST), *(value.contiguous() for value in of_others)
    to_features = torch.empty(features.shape, dtype=features.dtype, device=features.device, memory_format=CHANNELS_LAST)
    others = [value.contiguous() for value in inputs[1:]]
    to_others = [torch.empty_like(value) for value in others]
    features = features.contiguous(memory_format=CHANNELS_LAST)
    grad = grad.contiguous(memory_format=CHANNELS_LAST)
    run(chosen, "graph_conv_backward", to_features, *to_others, grad, features, *others)
    return to_features, *to_others


@_graph_conv_backward.register_fake
def _(grad: Tensor, features: Tensor, *others: Any) -> tuple[Tensor, ...]:
    tensors = [torch.empty(value.shape, dtype=value.dtype, device=value.device) for value in others[:4]]
    return torch.empty_like(features, memory_format=CHANNELS_LAST), *tensors


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, offset, _shortcut, ctx.backend = inputs
    if offset is not None:
        raise ValueError("graph_conv with an offset is not differentiable; apply offset and ReLU outside")
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        return *differentiable_gradients(reference.graph_conv, ctx.saved_tensors, grad), None, None, None
    return *torch.ops.shapmix.graph_conv_backward(grad, *ctx.saved_tensors, ctx.backend), None, None, None


_graph_conv.register_autograd(_backward, setup_context=_save)
