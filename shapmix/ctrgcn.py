"""CTR-GCN with its products merged: function, parameters and checkpoints of `shapmix.reference.ctrgcn`, in fewer passes.

What is rewritten, exactly:
- the time mean is taken before conv1 and conv2, not after: they are linear, and their input shrinks by T;
- the three subsets' products are one batched product each, alpha is folded into conv4, and the sum over subsets is
  accumulated by the aggregation itself;
- the temporal branches' 1x1 convolutions share their input: one product and one BatchNorm;
- the branches' last BatchNorms act on the concatenated channels: one call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from shapmix.reference import ctrgcn as reference


class GraphUnit(reference.GraphUnit):
    """The reference's graph unit; the subset i leads every stacked tensor."""

    def forward(self, x: Tensor) -> Tensor:
        n, _, t, v = x.shape
        pooled = x.mean(2)  # [N, C, V]
        a, b = self._product("conv1", pooled), self._product("conv2", pooled)  # [3, N, R, V]
        relation = torch.tanh(a.unsqueeze(-1) - b.unsqueeze(-2))  # [3, N, R, V, V]
        weight, bias = self._stacked("conv4")
        shared = self.alpha * bias[:, :, None] + self.PA.flatten(1)[:, None]  # [3, C', V V]
        graphs = (self.alpha * weight)[:, None] @ relation.flatten(3)  # [3, N, C', V V]
        graphs += shared[:, None]

        products = self._product("conv3", x.flatten(2))  # [3, N, C', T V]
        channels = products.shape[2]
        # unbind, not indexing: the gradient of an index is a tensor of zeros of the whole stack
        features = products.view(-1, n * channels, t, v).unbind()
        graph, *graphs_left = graphs.view(-1, n * channels, v, v).transpose(2, 3).unbind()
        y = torch.bmm(features[0], graph)
        for feature, graph in zip(features[1:], graphs_left, strict=True):
            y = torch.baddbmm(y, feature, graph)
        return torch.relu(self.bn(y.view(n, channels, t, v)) + self.down(x))

    def _product(self, name: str, x: Tensor) -> Tensor:
        """The 1x1 convolution `name` of every subset: [N, C, L] -> [3, N, C', L]."""
        weight, bias = self._stacked(name)
        y = weight[:, None] @ x
        y += bias[:, None, :, None]
        return y

    def _stacked(self, name: str) -> tuple[Tensor, Tensor]:
        """Weight [3, C', C] and bias [3, C'] of the 1x1 convolution `name` of every subset."""
        convs = [getattr(conv, name) for conv in self.convs]
        return torch.stack([conv.weight[:, :, 0, 0] for conv in convs]), torch.stack([conv.bias for conv in convs])


class TemporalUnit(reference.TemporalUnit):
    """The reference's four branches."""

    def forward(self, x: Tensor) -> Tensor:
        n, channels, t, v = x.shape
        branches: list[Any] = list(self.branches)
        narrow, wide, pool, skip = branches
        first = [branch[0] for branch in branches]
        weight = torch.cat([conv.weight[:, :, 0, 0] for conv in first])
        bias = torch.cat([conv.bias for conv in first])
        y = weight @ x.flatten(2)
        y += bias[:, None]
        y = y.view(n, channels, t, v)
        reduced, skipped = y.split([3 * channels // 4, channels // 4], 1)
        reduced = torch.relu(_merged_batch_norm(reduced, [narrow[1], wide[1], pool[1]]))
        parts = reduced.chunk(3, 1)
        stride = skip[0].stride[0]
        outputs = [narrow[3].conv(parts[0]), wide[3].conv(parts[1]), pool[3](parts[2]), skipped[:, :, ::stride]]
        return _merged_batch_norm(torch.cat(outputs, 1), [narrow[3].bn, wide[3].bn, pool[4], skip[1]])


class CTRGCN(reference.CTRGCN):
    """Clips [N, C, T, V, M] -> logits [N, K]; arguments, parameters and state dict of the reference."""

    graph_unit = GraphUnit
    temporal_unit = TemporalUnit


def _merged_batch_norm(x: Tensor, norms: Sequence[Any]) -> Tensor:
    """Several `nn.BatchNorm2d`, each on its share of the channels, as one; their running statistics are kept up to date."""
    weight, bias = (torch.cat([getattr(norm, name) for norm in norms]) for name in ("weight", "bias"))
    mean, var = (torch.cat([getattr(norm, name) for norm in norms]) for name in ("running_mean", "running_var"))
    head = norms[0]
    y = batch_norm(x, mean, var, weight, bias, head.training, head.momentum, head.eps)
    if head.training:
        widths = [norm.num_features for norm in norms]
        for norm, new_mean, new_var in zip(norms, mean.split(widths), var.split(widths), strict=True):
            norm.running_mean.copy_(new_mean)
            norm.running_var.copy_(new_var)
            norm.num_batches_tracked.add_(1)
    return y


def check_state_dict(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A field's or our state dict, ready for `network.load_state_dict`: the prefix of a parallel wrapper is dropped.

    Raises:
        ValueError: another layout, class count or width; the message names the first key that disagrees.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    own = network.state_dict()
    meaning = {"fc.weight": "class count", "data_bn.weight": "layout, people or coordinates"}
    for key in ("fc.weight", "data_bn.weight", *own):
        if key not in own:
            continue
        if key not in state:
            raise ValueError(f"the checkpoint has no '{key}': it is of another network, or of another depth")
        if state[key].shape != own[key].shape:
            raise ValueError(
                f"the checkpoint is of another {meaning.get(key, 'network')}: '{key}' is {list(state[key].shape)}, "
                f"this network has {list(own[key].shape)}"
            )
    unknown = [key for key in state if key not in own]
    if unknown:
        raise ValueError(f"the checkpoint holds '{unknown[0]}', which this network lacks: it is of another network or depth")
    return state
