"""DG-STGCN: Duan, Wang, Chen, Lin, Dynamic Spatial-Temporal Modeling for Skeleton-based Action Recognition, 2022."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shapmix.networks.backbones import backbone
from shapmix.networks.multi_scale import Layer, MultiScaleNetwork, MultiScaleTemporal, from_pyskl
from shapmix.networks.skeleton_graph import WIDTHS, MakeLayer, shortcut
from shapmix.skeleton.layout import Layout

GROUPS = 8  # of channels, each with graphs of its own
MEAN, DEVIATION = 0.04, 0.02  # of the initial graphs, which are random: the skeleton's bones are not used


class DynamicGraphUnit(nn.Module):
    """Groups of channels, each aggregated over its own graphs: [N, C, T, V] -> [N, C', T, V].

    The graph of a channel is learned and shared, plus tanh of the differences between joints, plus a softmax of the similarity of
    joints that all channels of the group have in common. CTR-GCN's op `graph_conv` sums over groups and has no such softmax.
    """

    def __init__(self, joints: int, channels: int, width: int) -> None:
        super().__init__()
        self.width = width // GROUPS  # of a group
        self.A = nn.Parameter(torch.randn(GROUPS, joints, joints) * DEVIATION + MEAN)
        self.alpha = nn.Parameter(torch.zeros(GROUPS))  # published with a value per group, of which the first is used
        self.beta = nn.Parameter(torch.zeros(GROUPS))
        inner = self.width * GROUPS
        self.pre = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner), nn.ReLU())
        self.conv1 = nn.Conv2d(channels, inner, 1)
        self.conv2 = nn.Conv2d(channels, inner, 1)
        self.post = nn.Conv2d(inner, width, 1)
        self.bn = nn.BatchNorm2d(width)
        self.down = shortcut(channels, width, 1)

    def graphs_of_clips(self, x: Tensor) -> Tensor:
        """[N, C, T, V] -> [N, groups, channels of a group, V, V], the part of the graphs that a clip decides.

        The time mean is taken before the products instead of after, which is the same, since they are linear.
        """
        mean = x.mean(2, keepdim=True)
        a, b = (conv(mean).reshape(x.shape[0], GROUPS, self.width, x.shape[3]) for conv in (self.conv1, self.conv2))
        differences = torch.tanh(a.unsqueeze(-1) - b.unsqueeze(-2))
        alike = torch.softmax(a.transpose(2, 3) @ b, dim=-2).unsqueeze(2)
        return differences * self.alpha[0] + alike * self.beta[0]

    def aggregated(self, x: Tensor, graphs: Tensor) -> Tensor:
        """The unit's result with graphs [N, groups, channels of a group, V, V]."""
        n, _, frames, joints = x.shape
        features = self.pre(x).reshape(n, GROUPS, self.width, frames, joints)
        y = (features @ graphs.to(features.dtype)).reshape(n, -1, frames, joints)
        return torch.relu(self.bn(self.post(y)) + self.down(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.aggregated(x, self.graphs_of_clips(x) + self.A.unsqueeze(1))


class FusedTemporal(MultiScaleTemporal):
    """Temporal convolutions at several scales of the joints and of their mean, which is added to each joint with a weight."""

    def __init__(self, joints: int, channels: int, stride: int) -> None:
        super().__init__(channels, stride)
        self.joints = joints
        self.add_coeff = nn.Parameter(torch.zeros(joints))

    def joined(self, x: Tensor, fused: bool) -> Tensor:
        y = super().joined(torch.cat([x, x.mean(-1, keepdim=True)], -1), fused)
        return y[..., : self.joints] + y[..., self.joints :] * self.add_coeff


def dynamic_layer(joints: int) -> MakeLayer:
    """Makes layers (channels, width, stride, residual) of a dynamic graph unit and a fused temporal one; ProtoGCN's, too."""

    def layer(channels: int, width: int, stride: int, residual: bool) -> nn.Module:
        gcn, tcn = DynamicGraphUnit(joints, channels, width), FusedTemporal(joints, width, stride)
        return Layer(gcn, tcn, channels, width, stride, residual)

    return layer


@backbone("dgstgcn", options=("widths", "halve"), from_published=from_pyskl)
def dgstgcn(
    layout: Layout,
    num_classes: int,
    *,
    num_people: int,
    in_channels: int = 3,
    widths: Sequence[int] = WIDTHS,
    halve: Sequence[int] | None = None,
) -> nn.Module:
    """DG-STGCN with eight groups, ten layers; people share the input norm."""
    options = {"make_layer": dynamic_layer(layout.num_joints), "widths": widths, "halve": halve}
    return MultiScaleNetwork(layout, num_classes, num_people=num_people, in_channels=in_channels, **options)
