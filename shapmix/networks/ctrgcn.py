"""CTR-GCN, fast: function, parameters and checkpoints of `shapmix.networks.ctrgcn_reference`, in fewer and larger passes.

What is rewritten, exactly:
- the time mean is taken before conv1 and conv2, not after: they are linear, and their input shrinks by T;
- the three subsets' conv3 are one product; tanh, conv4, the shared graphs and the aggregation are one op, `graph_conv`, which
  never holds the graphs of more than a few clips;
- the three temporal branches that begin alike begin with one product;
- BatchNorm, shortcut and ReLU are one op, `batch_norm`, in training; in eval mode they are folded into the products that come
  before them, anew at each call (a fold costs about as much as copying the weights);
- activations lie channels-last, where a 1x1 convolution is a plain matrix product;
- without gradient, eval mode takes a few clips at a time through all layers, so that activations stay in the CPU's caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from shapmix.kernels import batch_norm, graph_conv, join_branches
from shapmix.networks import ctrgcn_reference
from shapmix.networks.backbones import backbone
from shapmix.networks.synced_norm import SyncedBatchNorm, synced_batch_norm

CHANNELS_LAST = torch.channels_last
CACHED_BYTES = 4 * 64 * 25 * 64 * 4  # of one layer's activations a thread: four people's clips of the published network
FEWEST_ROWS = 16  # torch's convolutions leave oneDNN for a slow path below this, on one thread


class GraphUnit(ctrgcn_reference.GraphUnit):
    """The reference's graph unit."""

    def forward(self, x: Tensor) -> Tensor:
        subsets: list[Any] = list(self.convs)
        down: Any = self.down
        terms = self._relation_terms(x)
        with torch.autocast(x.device.type, enabled=False):  # alpha times a small weight: kept in the parameters' type
            relation_weight = torch.stack([conv.conv4.weight[:, :, 0, 0].T for conv in subsets]) * self.alpha  # [S, K, C]
            relation_bias = torch.stack([conv.conv4.bias for conv in subsets]) * self.alpha
        products = [conv.conv3 for conv in subsets]
        graphs = (terms, relation_weight, relation_bias, self.PA)
        if self.training:
            shortcut = x if isinstance(down, nn.Identity) else _normalised(down[0](x), [down[1]], rectify=False)
            y = graph_conv(conv2d(x, *_merged(products)), *graphs)
            return _normalised(y, [self.bn], shortcut=shortcut.to(y.dtype))

        # what conv3 makes of a channel is that channel's share of the sum, so the norm behind the sum folds into conv3
        scale, offset = _affine(self.bn)
        weight, bias = _merged(products)
        scale = scale.repeat(len(products))
        channels, weight, bias = len(offset), weight * scale[:, None, None, None], bias * scale
        if isinstance(down, nn.Identity):
            features = conv2d(x, weight, bias)
            shortcut = x.to(features.dtype)
        else:
            down_weight, down_bias = _folded(down[0], down[1])
            both = conv2d(x, torch.cat([weight, down_weight]), torch.cat([bias, down_bias]))
            features, shortcut = both[:, : len(bias)], both[:, len(bias) :]
        assert features.shape[1] == len(products) * channels
        if torch.is_grad_enabled():
            return torch.relu(graph_conv(features, *graphs) + offset[:, None, None] + shortcut).to(features.dtype)
        return graph_conv(features, *graphs, offset=offset, shortcut=shortcut)

    def _relation_terms(self, x: Tensor) -> Tensor:
        """[N, V, 2, S, K]: conv1 and conv2 of the time mean, in the parameters' type."""
        n, _, _, v = x.shape
        convs = [getattr(conv, name) for name in ("conv1", "conv2") for conv in self.convs]
        weight, bias = _merged(convs)
        with torch.autocast(x.device.type, enabled=False):
            frames = x.permute(0, 2, 3, 1).flatten(2)  # [N, T, V C]: torch adds up whole rows of memory ten times faster
            pooled = frames.mean(1, dtype=weight.dtype).view(n, v, -1)
            return linear(pooled, weight[:, :, 0, 0], bias).view(n, v, 2, len(self.convs), -1)


class TemporalUnit(ctrgcn_reference.TemporalUnit):
    """The reference's four branches, and with them the layer's shortcut and ReLU."""

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        branches: list[Any] = list(self.branches)
        narrow, wide, pool, skip = branches
        begin, end = [narrow, wide, pool], [narrow[3].bn, wide[3].bn, pool[4], skip[1]]
        if self.training:
            reduced = _normalised(conv2d(x, *_merged([branch[0] for branch in begin])), [branch[1] for branch in begin])
            a, b, c = reduced.chunk(3, 1)
            y = torch.cat([narrow[3].conv(a), wide[3].conv(b), pool[3](c), skip[0](x)], 1)
            return _normalised(y, end, shortcut=None if shortcut is None else shortcut.to(y.dtype))

        weights, biases = zip(*(_folded(branch[0], branch[1]) for branch in begin), strict=True)
        reduced = conv2d(x, torch.cat(weights), torch.cat(biases)).relu_()
        a, b, c = reduced.chunk(3, 1)
        return join_branches(
            _folded_call(a, narrow[3].conv, narrow[3].bn),
            _folded_call(b, wide[3].conv, wide[3].bn),
            c,
            _folded_call(x, skip[0], skip[1]),
            *_affine(pool[4]),
            frame_stride=skip[0].stride[0],
            shortcut=None if shortcut is None else shortcut.to(c.dtype),
        )


class Layer(ctrgcn_reference.Layer):
    """The reference's layer; the shortcut joins inside the temporal unit's last pass."""

    def forward(self, x: Tensor) -> Tensor:
        residual: Any = self.residual
        shortcut: Tensor | None
        if residual is None:
            shortcut = None
        elif isinstance(residual, nn.Identity):
            shortcut = x
        elif self.training:
            shortcut = _normalised(residual.conv(x), [residual.bn], rectify=False)
        else:
            shortcut = _folded_call(x, residual.conv, residual.bn)
        y: Tensor = self.tcn1(self.gcn1(x), shortcut)
        return y


@backbone("ctrgcn", on_device=True, options=("widths", "halve", "graph_gain"))
class CTRGCN(ctrgcn_reference.CTRGCN):
    """Clips [N, C, T, V, M] -> logits [N, K]; arguments, parameters and state dict of the reference."""

    graph_unit = GraphUnit
    temporal_unit = TemporalUnit
    layer = Layer

    def normalised(self, clips: Tensor) -> Tensor:
        """As the reference's, in channels-last memory."""
        return super().normalised(clips).contiguous(memory_format=CHANNELS_LAST)

    def features(self, clips: Tensor) -> Tensor:
        """As the reference's."""
        x = self.normalised(clips)
        pooled = []
        for rows in x.split(self._rows_together(x)):
            for layer in self.layers:
                rows = layer(rows)
            pooled.append(rows.mean((2, 3)))
        return torch.cat(pooled).view(len(clips), clips.shape[4], -1).mean(1)

    def _rows_together(self, x: Tensor) -> int:
        """People's clips [rows, C, T, V] that go through the layers at once."""
        if x.device.type != "cpu" or self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return len(x)
        width = self.layers[0].gcn1.bn.num_features
        rows = CACHED_BYTES * torch.get_num_threads() // (width * x[0, 0].numel() * 4)
        return max(rows, 1 if torch.get_num_threads() > 1 else FEWEST_ROWS)


def _merged(convs: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Weight and bias of several convolutions of one input as one."""
    return torch.cat([conv.weight for conv in convs]), torch.cat([conv.bias for conv in convs])


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and offset [C] of a BatchNorm in eval mode."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def _folded(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution and the BatchNorm behind it, in eval mode, as one convolution."""
    scale, offset = _affine(norm)
    return conv.weight * scale[:, None, None, None], conv.bias * scale + offset


def _folded_call(x: Tensor, conv: Any, norm: Any) -> Tensor:
    return conv2d(x, *_folded(conv, norm), conv.stride, conv.padding, conv.dilation)


def _normalised(x: Tensor, norms: Sequence[Any], *, rectify: bool = True, shortcut: Tensor | None = None) -> Tensor:
    """Several `nn.BatchNorm2d` in training mode, each on its share of the channels, as one; they keep their statistics."""
    weight, bias = (torch.cat([getattr(norm, name) for norm in norms]) for name in ("weight", "bias"))
    if isinstance(norms[0], SyncedBatchNorm):
        y, mean, variance, all_rows = synced_batch_norm(x, weight, bias, norms[0].eps)
        y = y if shortcut is None else y + shortcut
        y = torch.relu(y) if rectify else y
        rows = int(all_rows)
    else:
        lowest = torch.full_like(bias.detach(), 0.0 if rectify else -torch.inf)
        y, mean, variance = batch_norm(x, weight, bias, lowest, shortcut=shortcut, eps=norms[0].eps)
        rows = x.numel() // x.shape[1]
    with torch.no_grad():
        unbiased = variance * (rows / max(rows - 1, 1))
        widths = [norm.num_features for norm in norms]
        for norm, new_mean, new_var in zip(norms, mean.split(widths), unbiased.split(widths), strict=True):
            norm.running_mean.lerp_(new_mean, norm.momentum)
            norm.running_var.lerp_(new_var, norm.momentum)
            norm.num_batches_tracked.add_(1)
    return y
