"""ST-GCN: Yan, Xiong, Lin, Spatial Temporal Graph Convolutional Networks, AAAI 2018."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shapmix.networks.backbones import backbone
from shapmix.networks.fused_norm import can_be_fused, normalised
from shapmix.networks.skeleton_graph import SkeletonNetwork, aggregated, finished, norms_of, rows_product, shortcut, temporal_conv
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
        tcn: Any = self.tcn
        if self.training and can_be_fused(self, [tcn[0], tcn[2][1], *norms_of(self.residual)]):
            y = normalised(self._aggregated(x), [tcn[0]])
            return finished(y, tcn[2], self.residual, x, dropout=tcn[3])
        n, _, frames, joints = x.shape
        features = self.gcn(x).view(n, len(self.graphs), -1, frames, joints)
        y = torch.einsum("nsctv,svw->nctw", features, self.graphs * self.edge_importance)
        y = self.tcn(y)
        return torch.relu(y if self.residual is None else y + self.residual(x))

    def _aggregated(self, x: Tensor) -> Tensor:
        """[N, C, T, V] -> [N, C', T, V] in channels-last memory: two products without copies of activations between them."""
        features = rows_product(x, self.gcn.weight, self.gcn.bias)
        return aggregated(features, self.graphs * self.edge_importance)


@backbone("stgcn")
def stgcn(layout: Layout, num_classes: int, *, num_people: int, in_channels: int = 3, dropout: float = 0.0) -> nn.Module:
    """ST-GCN with the spatial partition and learned edge importance, ten layers."""
    graphs = torch.from_numpy(layout.adjacency())

    def layer(channels: int, width: int, stride: int, residual: bool) -> nn.Module:
        return Layer(graphs, channels, width, stride, residual, dropout)

    return SkeletonNetwork(layout, num_classes, num_people=num_people, in_channels=in_channels, make_layer=layer)
