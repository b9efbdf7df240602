"""Self-attention over the joints of a frame: the spatial stream of ST-TR (Plizzari, Cannici, Matteucci, CVIU 2021).

As there, the first layers (here those of 64 channels) are graph convolutions, and in every later one each joint attends to all
joints of its frame, with nine frames of convolution behind it. Attention is torch's own; unlike there it drops no joints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from shapmix.networks.backbones import backbone
from shapmix.networks.skeleton_graph import SkeletonNetwork, shortcut, temporal_conv
from shapmix.networks.stgcn import Layer as GraphLayer
from shapmix.skeleton.layout import Layout

HEADS = 8
GRAPH_WIDTH = 64  # layers of this width are graph convolutions


class JointAttention(nn.Module):
    """[N, C, T, V] -> [N, C', T, V]; keys have a quarter of the channels."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.keys, self.width = width // 4, width
        self.project = nn.Conv2d(channels, 2 * self.keys + width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, frames, joints = x.shape
        projected = self.project(self.norm(x)).permute(0, 2, 3, 1)  # [N, T, V, ...]
        query, key, value = projected.split([self.keys, self.keys, self.width], dim=-1)

        def heads(part: Tensor) -> Tensor:
            return part.reshape(n, frames, joints, HEADS, -1).transpose(2, 3)

        seen = scaled_dot_product_attention(heads(query), heads(key), heads(value)).transpose(2, 3).reshape(n, frames, joints, -1)
        y: Tensor = self.out(seen.permute(0, 3, 1, 2))
        return y


class Layer(nn.Module):
    """Attention over joints, then temporal convolution over nine frames, each with a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.attention = JointAttention(channels, width)
        self.skip = shortcut(channels, width, 1)
        self.norm = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())
        self.tcn = temporal_conv(width, width, stride=stride)
        self.residual = shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.attention(x) + self.skip(x))
        return (self.tcn(y) + self.residual(x)).relu()


@backbone("attention")
def attention(layout: Layout, num_classes: int, *, num_people: int, in_channels: int = 3) -> nn.Module:
    """Four graph layers of 64 channels, then six layers of attention."""
    graphs = torch.from_numpy(layout.adjacency())

    def layer(channels: int, width: int, stride: int, residual: bool) -> nn.Module:
        if width == GRAPH_WIDTH:
            return GraphLayer(graphs, channels, width, stride, residual, 0.0)
        return Layer(channels, width, stride)

    return SkeletonNetwork(layout, num_classes, num_people=num_people, in_channels=in_channels, make_layer=layer)
