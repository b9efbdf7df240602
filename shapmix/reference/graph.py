"""CTR-GCN's graph convolution: every channel aggregates the joints with its own graph."""

from __future__ import annotations

import torch
from torch import Tensor


def graph_conv(
    features: Tensor,
    relation_terms: Tensor,
    weight: Tensor,
    bias: Tensor,
    shared: Tensor,
    *,
    offset: Tensor | None = None,
    shortcut: Tensor | None = None,
) -> Tensor:
    """Sum over the subsets of features aggregated with their refined graphs.

    The graph of subset s and channel c between joints u and v is
    shared[s, u, v] + bias[s, c] + sum_k weight[s, k, c] * tanh(left[u, s, k] - right[v, s, k]).

    Args:
        features: [N, S * C, T, V], concatenated over the subsets.
        relation_terms: [N, V, 2, S, K], left and right; float64 for float64 features, else float32, as all following arguments.
        weight: [S, K, C], alpha * weight of conv4.
        bias: [S, C], alpha * bias of conv4.
        shared: [S, V, V], graphs shared by all channels.
        offset: [C], or None. If given, the result is relu(sum + offset + shortcut), for networks whose normalisation is folded
            into the weights.
        shortcut: [N, C, T, V] with the features' dtype, or None; only with `offset`.

    Returns:
        [N, C, T, V] with the features' dtype, V indexing u.

    Source: Chen et al., ICCV 2021, equations 5 to 9; fixtures `ctrgcn_*`.
    """
    _, graphs = refined_graphs(relation_terms, weight, bias, shared)
    products = features.unflatten(1, bias.shape).to(graphs.dtype)  # [N, S, C, T, V]
    y = torch.einsum("nsuvc,nsctv->nctu", graphs, products)
    if offset is not None:
        y = y + offset[:, None, None]
        y = torch.relu(y if shortcut is None else y + shortcut)
    return y.to(features.dtype)


def refined_graphs(relation_terms: Tensor, weight: Tensor, bias: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
    """The relations [N, U, V, S, K] and the graphs [N, S, U, V, C]; arguments as in `graph_conv`."""
    left, right = relation_terms.unbind(2)  # [N, V, S, K]
    relation = torch.tanh(left[:, :, None] - right[:, None])
    return relation, torch.einsum("nuvsk,skc->nsuvc", relation, weight) + bias[:, None, None] + shared[..., None]


def graph_conv_backward(
    grad: Tensor, features: Tensor, relation_terms: Tensor, weight: Tensor, bias: Tensor, shared: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to features, relation terms, weight, bias and shared graphs, given that of `graph_conv`'s result."""
    relation, graphs = refined_graphs(relation_terms, weight, bias, shared)
    grad = grad.to(graphs.dtype)
    products = features.unflatten(1, bias.shape).to(graphs.dtype)
    to_features = torch.einsum("nsuvc,nctu->nsctv", graphs, grad).flatten(1, 2).to(features.dtype)
    to_graphs = torch.einsum("nctu,nsctv->nsuvc", grad, products)
    to_difference = torch.einsum("nsuvc,skc->nuvsk", to_graphs, weight) * (1 - relation.square())
    to_terms = torch.stack([to_difference.sum(2), -to_difference.sum(1)], 2)
    to_weight = torch.einsum("nsuvc,nuvsk->skc", to_graphs, relation)
    return to_features, to_terms, to_weight, to_graphs.sum((0, 2, 3)), to_graphs.sum((0, 4))
