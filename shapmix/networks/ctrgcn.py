"""Fast CTR-GCN: equivalent to `shapmix.networks.ctrgcn_reference`, with the same parameters and checkpoints, in fewer passes.

Exact transformations:
- the time mean is taken before conv1 and conv2 instead of after, since they are linear; this shrinks their input by T;
- conv3 of the three subsets is one product; tanh, conv4, shared graphs and aggregation are fused into one op, `graph_conv`, which
  materialises the graphs of only a few clips;
- the 1x1 convolutions at the start of three temporal branches are one product;
- BatchNorm, shortcut and ReLU are fused into one op, `batch_norm`, in training; in eval mode they are folded into the preceding
  products, at every call (folding costs about as much as copying the weights);
- activations are channels-last, where a 1x1 convolution is a matrix product;
- on a GPU, each layer is a few kernels, cut at its batch norms (`shapmix.networks.ctrgcn_layer`);
- on a CPU, in eval mode without gradients, a few clips at a time pass through all layers, so that activations stay in its caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from shapmix.kernels import expanded, graph_conv, join_branches, layer_steps
from shapmix.networks import ctrgcn_reference
from shapmix.networks.backbones import backbone
from shapmix.networks.convolution import convolution, pointwise
from shapmix.networks.ctrgcn_layer import can_be_fused, folded_layers, fused_layers, parts_of
from shapmix.networks.fused_norm import convolved, normalised, normalised_conv
from shapmix.process.parallel import SharedForward
from shapmix.reference.coalition import CoalitionClips

CHANNELS_LAST = torch.channels_last
CACHED_BYTES = 4 * 64 * 25 * 64 * 4  # activations of one layer per thread: four rows of the published network
FEWEST_ROWS = 32  # with fewer, the calls of ten layers cost more than caches save


class GraphUnit(ctrgcn_reference.GraphUnit):
    """Fast equivalent of the reference's graph unit."""

    def forward(self, x: Tensor) -> Tensor:
        subsets: list[Any] = list(self.convs)
        down: Any = self.down
        terms = self._relation_terms(x)
        with torch.autocast(x.device.type, enabled=False):  # alpha times a small weight: kept in the parameters' dtype
            relation_weight = torch.stack([conv.conv4.weight[:, :, 0, 0].T for conv in subsets]) * self.alpha  # [S, K, C]
            relation_bias = torch.stack([conv.conv4.bias for conv in subsets]) * self.alpha
        products = [conv.conv3 for conv in subsets]
        graphs = (terms, relation_weight, relation_bias, self.PA)
        if self.training:
            shortcut = x if isinstance(down, nn.Identity) else normalised_conv(x, down[0], down[1])
            y = graph_conv(pointwise(x, *_merged(products)), *graphs)
            return normalised(y, [self.bn], shortcut=shortcut.to(y.dtype))

        # the sum is linear in the output channels of conv3, so the norm after the sum folds into conv3
        scale, offset = _affine(self.bn)
        weight, bias = _merged(products)
        scale = scale.repeat(len(products))
        channels, weight, bias = len(offset), weight * scale[:, None, None, None], bias * scale
        if isinstance(down, nn.Identity):
            features = pointwise(x, weight, bias)
            shortcut = x.to(features.dtype)
        else:
            down_weight, down_bias = _folded(down[0], down[1])
            both = pointwise(x, torch.cat([weight, down_weight]), torch.cat([bias, down_bias]))
            features, shortcut = both[:, : len(bias)], both[:, len(bias) :]
        assert features.shape[1] == len(products) * channels
        if torch.is_grad_enabled():
            return torch.relu(graph_conv(features, *graphs) + offset[:, None, None] + shortcut).to(features.dtype)
        return graph_conv(features, *graphs, offset=offset, shortcut=shortcut)

    def _relation_terms(self, x: Tensor) -> Tensor:
        """[N, V, 2, S, K]: conv1 and conv2 of the time mean, in the parameters' dtype."""
        n, _, _, v = x.shape
        convs = [getattr(conv, name) for name in ("conv1", "conv2") for conv in self.convs]
        weight, bias = _merged(convs)
        with torch.autocast(x.device.type, enabled=False):
            frames = x.permute(0, 2, 3, 1).flatten(2)  # [N, T, V C]: torch sums contiguous rows ten times faster
            pooled = frames.mean(1, dtype=weight.dtype).view(n, v, -1)
            return linear(pooled, weight[:, :, 0, 0], bias).view(n, v, 2, len(self.convs), -1)


class TemporalUnit(ctrgcn_reference.TemporalUnit):
    """Fast equivalent of the reference's four branches, fused with the layer's shortcut and ReLU."""

    def forward(self, x: Tensor, shortcut: Tensor | None = None, *, rectify: bool = True) -> Tensor:
        """[N, C, T, V] -> [N, C, T / stride, V]; without `rectify`, which is for training, no ReLU follows."""
        branches: list[Any] = list(self.branches)
        narrow, wide, pool, skip = branches
        begin, end = [narrow, wide, pool], [narrow[3].bn, wide[3].bn, pool[4], skip[1]]
        if self.training:
            reduced = convolved(x, [branch[0] for branch in begin])
            reduced = normalised(reduced, [branch[1] for branch in begin], biases=[branch[0].bias for branch in begin])
            a, b, c = reduced.chunk(3, 1)
            y = torch.cat([convolved(a, [narrow[3].conv]), convolved(b, [wide[3].conv]), pool[3](c), convolved(x, [skip[0]])], 1)
            biases = [narrow[3].conv.bias, wide[3].conv.bias, None, skip[0].bias]
            shortcut = None if shortcut is None else shortcut.to(y.dtype)
            return normalised(y, end, rectify=rectify, shortcut=shortcut, biases=biases)

        folded = [_folded(branch[0], branch[1]) for branch in begin]
        reduced = pointwise(x, torch.cat([weight for weight, _ in folded]), torch.cat([bias for _, bias in folded]))
        reduced = reduced.relu() if torch.is_grad_enabled() else reduced.relu_()
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
    """Fast equivalent of the reference's layer; the shortcut is added in the last pass of the temporal unit."""

    def forward(self, x: Tensor) -> Tensor:
        residual: Any = self.residual
        shortcut: Tensor | None
        if residual is None:
            shortcut = None
        elif isinstance(residual, nn.Identity):
            shortcut = x
        elif self.training:
            shortcut = normalised_conv(x, residual.conv, residual.bn)
        else:
            shortcut = _folded_call(x, residual.conv, residual.bn)
        y: Tensor
        if self.drop_path is not None and self.training and shortcut is not None:
            y = self.drop_path(self.tcn1(self.gcn1(x), rectify=False))
            return torch.relu(y + shortcut.to(y.dtype))
        y = self.tcn1(self.gcn1(x), shortcut)
        return y


@backbone(
    "ctrgcn", on_device=True, options=("widths", "halve", "graph_gain", "drop_path"), from_published=ctrgcn_reference.from_published
)
class CTRGCN(ctrgcn_reference.CTRGCN):
    """Clips [N, C, T, V, M] -> logits [N, K]; arguments, parameters and state dict of the reference.

    Also takes `CoalitionClips`, whose rows are expanded only where the layers are not fused.
    """

    graph_unit = GraphUnit
    temporal_unit = TemporalUnit
    layer = Layer

    def normalised(self, clips: Tensor) -> Tensor:
        """Same as the reference, in channels-last memory."""
        return super().normalised(clips).contiguous(memory_format=CHANNELS_LAST)

    def features(self, clips: Tensor | CoalitionClips) -> Tensor:
        """Same as the reference."""
        if (steps := self.steps_on(clips)) is not None:
            return self._fused(steps, clips)
        x = self.normalised(expanded(clips) if isinstance(clips, CoalitionClips) else clips)
        pooled = []
        for rows in x.split(self._rows_together(x)):
            for layer in self.layers:
                rows = layer(rows)
            pooled.append(rows.mean((2, 3)))
        return torch.cat(pooled).view(len(clips), clips.shape[4], -1).mean(1)

    def steps_on(self, clips: Tensor | CoalitionClips) -> Any:
        """The kernels of fused layers for the back end of the clips, None where the layers run op by op.

        Layers run op by op in training with drop_path or some modules in eval mode, in eval mode with gradients, inside
        torch.compile, and if a module has hooks or was replaced, since fused layers call no module.
        """
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            return None
        if not self.training and torch.is_grad_enabled():
            return None
        if self.training and any(layer.drop_path is not None for layer in self.layers):
            return None
        steps = layer_steps(clips.clips if isinstance(clips, CoalitionClips) else clips)
        return steps if steps is not None and can_be_fused(self.layers, self.data_bn, self.training) else None

    def _fused(self, steps: Any, clips: Tensor | CoalitionClips) -> Tensor:
        """[N, C, T, V, M] -> [N, width of the last layer] in the parameters' dtype, through fused layers."""
        device = clips.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else clips.dtype
        with torch.autocast(device, enabled=False):
            layers = [parts_of(layer) for layer in self.layers]
            if self.training:
                joints = self.normalised_joints(expanded(clips) if isinstance(clips, CoalitionClips) else clips)  # [N M, V, C, T]
                rows = joints.permute(0, 3, 1, 2).to(dtype, memory_format=torch.contiguous_format)
                pooled = fused_layers(steps, layers, rows)
            else:
                self.check_shape(clips.shape)
                pooled = folded_layers(steps, layers, self.data_bn, clips, dtype)
            return pooled.view(len(clips), -1, *pooled.shape[1:]).mean((1, 2))

    def forward(self, clips: Tensor | CoalitionClips) -> Tensor:
        """Same as the reference; after fused layers, the product with the classes is in the parameters' dtype."""
        features = self.features(clips)
        enabled = torch.is_autocast_enabled(clips.device.type) and features.dtype != self.fc.weight.dtype
        with torch.autocast(clips.device.type, enabled=enabled):
            logits: Tensor = self.fc(features)
        return logits

    def _rows_together(self, x: Tensor) -> int:
        """Number of rows [rows, C, T, V] forwarded through all layers at once."""
        if x.device.type != "cpu" or self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return len(x)
        width = self.layers[0].gcn1.bn.num_features
        rows = CACHED_BYTES * torch.get_num_threads() // (width * x[0, 0].numel() * 4)
        return max(rows, FEWEST_ROWS)


def takes_coalitions(network: nn.Module) -> bool:
    """Whether a network takes `CoalitionClips` in place of clips: CTR-GCN itself, alone or with its rows shared among processes.

    A subclass or a hook may expect clips.
    """
    inner = network.network if isinstance(network, SharedForward) else network
    hooks = [hook for each in (network, inner) for hook in (*each._forward_pre_hooks, *each._forward_hooks)]
    return type(inner) is CTRGCN and not hooks


def _merged(convs: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Weight and bias of several convolutions of one input, concatenated to one convolution."""
    return torch.cat([conv.weight for conv in convs]), torch.cat([conv.bias for conv in convs])


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and offset [C] of a BatchNorm in eval mode."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def _folded(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the BatchNorm after it folded in, in eval mode."""
    scale, offset = _affine(norm)
    return conv.weight * scale[:, None, None, None], conv.bias * scale + offset


def _folded_call(x: Tensor, conv: Any, norm: Any) -> Tensor:
    return convolution(x, *_folded(conv, norm), conv)
