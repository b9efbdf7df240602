"""ST-GCN: Yan, Xiong, Lin, Spatial Temporal Graph Convolutional Networks, AAAI 2018."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shapmix.networks.backbones import backbone
from shapmix.networks.skeleton_graph import SkeletonNetwork, shortcut, temporal_conv
from shapmix.skeleton.layout import Layout


class Layer(nn.Module):
    """Graph convolution over three subsets of neighbours with learned edge weights, then temporal convolution over nine frames."""

    def __init__(self, graphs: Tensor, channels: int, width: int, stride: int, residual: bool, dropout: float) -> None:
        super().__init__()
        self.graphs: Tensor
        self.register_buffer("graphs", graphs, persistent=False)
        self.edge_importance = nn.Parameter(torch.ones_like(graphs))
        self.gcn = nn.Conv2d(channels, width * len(graphs), 1)
        self.tcn = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), temporal_conv(width, width, stride=stride), nn.Dropout(dropout))
        self.residual = shortcut(channels, width, stride) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        n, _, frames, joints = x.shape
        features = self.gcn(x).view(n, len(self.graphs), -1, frames, joints)
        y = torch.einsum("nsctv,svw->nctw", features, self.graphs * self.edge_importance)
        y = self.tcn(y)
        return torch.relu(y if self.residual is None else y + self.residual(x))


@backbone("stgcn")
def stgcn(layout: Layout, num_classes: int, *, num_people: int, in_channels: int = 3, dropout: float = 0.0) -> nn.Module:
    """ST-GCN with the spatial partition and learned edge importance, ten layers."""
    graphs = torch.from_numpy(layout.adjacency())

    def layer(channels: int, width: int, stride: int, residual: bool) -> nn.Module:
        return Layer(graphs, channels, width, stride, residual, dropout)

    return SkeletonNetwork(layout, num_classes, num_people=num_people, in_channels=in_channels, make_layer=layer)
