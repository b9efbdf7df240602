"""Shared parts of the graph networks: input normalisation, layer widths, and global pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from shapmix.networks.convolution import is_by_onednn, pointwise
from shapmix.networks.fused_norm import convolved, normalised, normalised_conv
from shapmix.skeleton.layout import Layout

WIDTHS = (64, 64, 64, 64, 128, 128, 128, 256, 256, 256)  # ST-GCN and its successors

MakeLayer = Callable[[int, int, int, bool], nn.Module]  # input and output channels, temporal stride, with shortcut


class SkeletonNetwork(nn.Module):
    """Clips [N, C, T, V, M] -> logits [N, K]; people are separate rows until the global pooling.

    Args:
        layout: skeleton of the clips.
        num_classes: K.
        num_people, in_channels: M and C.
        make_layer: makes a layer on [N M, C, T, V].
        widths, halve: channels per layer, and indices of the layers that halve the frames; None: those that change the width.
        dropout: before the last linear layer.
        norm_of_person: the input norm has a channel per coordinate of a joint of a person; False: people share the channels.
    """

    def __init__(
        self,
        layout: Layout,
        num_classes: int,
        *,
        num_people: int,
        in_channels: int,
        make_layer: MakeLayer,
        widths: Sequence[int] = WIDTHS,
        halve: Sequence[int] | None = None,
        dropout: float = 0.0,
        norm_of_person: bool = True,
    ) -> None:
        super().__init__()
        if halve is None:
            halve = [layer + 1 for layer, (before, after) in enumerate(pairwise(widths)) if before != after]
        self.data_bn = nn.BatchNorm1d((num_people if norm_of_person else 1) * layout.num_joints * in_channels)
        inputs = [in_channels, *widths[:-1]]
        self.layers = nn.Sequential(
            *(
                make_layer(channels, width, 2 if number in halve else 1, number > 0)
                for number, (channels, width) in enumerate(zip(inputs, widths, strict=True))
            )
        )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(widths[-1], num_classes)

    def normalised(self, clips: Tensor) -> Tensor:
        """[N, C, T, V, M] -> [N M, C, T, V], the input of the first layer."""
        n, channels, frames, joints, people = clips.shape
        x = clips.permute(0, 4, 3, 1, 2).reshape(-1, self.data_bn.num_features, frames)
        x = self.data_bn(x).view(n, people, joints, channels, frames).permute(0, 1, 3, 4, 2)
        return x.reshape(n * people, channels, frames, joints)

    def classified(self, x: Tensor, clips: Tensor) -> Tensor:
        """Output of the last layer [N M, C', T', V] -> logits [N, K]."""
        logits: Tensor = self.fc(self.dropout(x.mean((2, 3)).view(clips.shape[0], clips.shape[4], -1).mean(1)))
        return logits

    def forward(self, clips: Tensor) -> Tensor:
        return self.classified(self.layers(self.normalised(clips)), clips)


def temporal_conv(channels: int, width: int, size: int = 9, stride: int = 1) -> nn.Sequential:
    """Temporal convolution over `size` frames, and BatchNorm."""
    conv = nn.Conv2d(channels, width, (size, 1), (stride, 1), ((size - 1) // 2, 0))
    return nn.Sequential(conv, nn.BatchNorm2d(width))


def shortcut(channels: int, width: int, stride: int) -> nn.Module:
    """Identity if the shapes agree, else a 1x1 convolution and BatchNorm."""
    return nn.Identity() if channels == width and stride == 1 else temporal_conv(channels, width, 1, stride)


def rows_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution as a product of rows: x [N, C, T, V], weight [C', C, 1, 1] -> [N, T, V, C'] contiguous."""
    return (
        pointwise(x, weight, bias).permute(0, 2, 3, 1)
        if is_by_onednn(x)
        else linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias)
    )


def aggregated(features: Tensor, graphs: Tensor) -> Tensor:
    """Sum over subsets and joints of features, as one product.

    Args:
        features: [N, T, V, S C'], subsets first.
        graphs: [S, V, W], or [N, S, V, W] of each clip: the weight of joint v in joint w.

    Returns:
        [N, C', T, W] in channels-last memory.
    """
    n, frames, joints, _ = features.shape
    subsets = graphs.shape[-3]
    wide = graphs.transpose(-3, -1).flatten(-2).to(features.dtype)  # [..., W, V S]
    wide = wide.expand(n, *wide.shape[-2:])[:, None].expand(n, frames, -1, -1).flatten(0, 1)
    y = torch.bmm(wide, features.view(n * frames, joints * subsets, -1))
    return y.view(n, frames, joints, -1).permute(0, 3, 1, 2)


def norms_of(module: nn.Module | None) -> list[nn.Module]:
    """The BatchNorm of a `shortcut`, none if it is the identity."""
    return [] if module is None or isinstance(module, nn.Identity) else list(module.children())[1:]


def added_shortcut(x: Tensor, module: Any) -> Tensor | None:
    """The `shortcut` of x in training mode, None without one."""
    if module is None or isinstance(module, nn.Identity):
        return None if module is None else x
    return normalised_conv(x, *module)


def finished(y: Tensor, temporal: Any, residual: Any, x: Tensor, *, dropout: nn.Module | None = None) -> Tensor:
    """The end of a layer in training mode: temporal convolution of y, plus the residual of the layer's input x, rectified."""
    conv, norm = temporal
    y, added = convolved(y, [conv]), added_shortcut(x, residual)
    added = None if added is None else added.to(y.dtype)
    if dropout is None or (type(dropout) is nn.Dropout and dropout.p == 0):
        return normalised(y, [norm], shortcut=added, biases=[conv.bias])
    y = dropout(normalised(y, [norm], rectify=False, biases=[conv.bias]))
    return torch.relu(y if added is None else y + added)


def hops(layout: Layout) -> Tensor:
    """[V, V] int64: the number of bones between each two joints.

    A hand tip hangs from the hand, as the thumb beside it does: published networks that count bones do so, although their graph of
    NTU RGB+D is otherwise that of CTR-GCN, where the tip hangs from the thumb.
    """
    near = torch.eye(layout.num_joints)
    for child, parent in layout.edges:
        if layout.joints[child].endswith("hand_tip") and layout.joints[parent].endswith("thumb"):
            parent = layout.parents[parent]
        near[child, parent] = near[parent, child] = 1
    reached = torch.eye(layout.num_joints)
    distance = torch.zeros(layout.num_joints, layout.num_joints, dtype=torch.int64)
    while not reached.all():
        distance += reached == 0
        reached = ((reached @ near) > 0).float()
    return distance


def initialise(network: nn.Module, head: nn.Linear) -> None:
    """Initial weights of 2D convolutions and of the last product, as published with CTR-GCN and its successors."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(head.weight, 0, (2 / head.out_features) ** 0.5)
