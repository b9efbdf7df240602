"""ST-GCN++: Duan, Wang, Chen, Lin, PYSKL: Towards Good Practices for Skeleton Action Recognition, ACM MM 2022."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shapmix.networks.backbones import backbone
from shapmix.networks.fused_norm import can_be_fused, normalised
from shapmix.networks.multi_scale import Layer, MultiScaleNetwork, MultiScaleTemporal, from_pyskl
from shapmix.networks.skeleton_graph import WIDTHS, added_shortcut, aggregated, norms_of, rows_product, shortcut
from shapmix.skeleton.layout import Layout


class GraphUnit(nn.Module):
    """Graph convolution over learned graphs, initially those of ST-GCN, with a shortcut: [N, C, T, V] -> [N, C', T, V]."""

    def __init__(self, graphs: Tensor, channels: int, width: int) -> None:
        super().__init__()
        self.subsets = len(graphs)
        self.A = nn.Parameter(graphs.clone())
        self.conv = nn.Conv2d(channels, width * len(graphs), 1)
        self.bn = nn.BatchNorm2d(width)
        self.down = shortcut(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and can_be_fused(self, [self.bn, *norms_of(self.down)]):
            y, added = aggregated(rows_product(x, self.conv.weight, self.conv.bias), self.A), added_shortcut(x, self.down)
            return normalised(y, [self.bn], shortcut=None if added is None else added.to(y.dtype))
        n, _, frames, joints = x.shape
        features = self.conv(x).view(n, self.subsets, -1, frames, joints)
        y = torch.einsum("nsctv,svw->nctw", features, self.A)
        return torch.relu(self.bn(y) + self.down(x))


@backbone("stgcnpp", options=("widths", "halve"), from_published=from_pyskl)
def stgcnpp(
    layout: Layout,
    num_classes: int,
    *,
    num_people: int,
    in_channels: int = 3,
    widths: Sequence[int] = WIDTHS,
    halve: Sequence[int] | None = None,
) -> nn.Module:
    """ST-GCN++ with the spatial partition, ten layers; people share the input norm."""
    graphs = torch.from_numpy(layout.adjacency())

    def layer(channels: int, width: int, stride: int, residual: bool) -> nn.Module:
        return Layer(GraphUnit(graphs, channels, width), MultiScaleTemporal(width, stride), channels, width, stride, residual)

    options = {"make_layer": layer, "widths": widths, "halve": halve}
    return MultiScaleNetwork(layout, num_classes, num_people=num_people, in_channels=in_channels, **options)
