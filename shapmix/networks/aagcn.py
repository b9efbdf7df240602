"""AAGCN: Shi, Zhang, Cheng, Lu, Skeleton-Based Action Recognition with Multi-Stream Adaptive Graph Convolutional Networks, 2020."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shapmix.networks.backbones import backbone
from shapmix.networks.fused_norm import can_be_fused, normalised
from shapmix.networks.multi_scale import from_pyskl
from shapmix.networks.skeleton_graph import (
    SkeletonNetwork,
    added_shortcut,
    aggregated,
    finished,
    norms_of,
    rows_product,
    shortcut,
    temporal_conv,
)
from shapmix.skeleton.layout import Layout


class AdaptiveGraph(nn.Module):
    """Aggregation over learned graphs plus per-clip graphs of the similarity of joints (section III-B)."""

    def __init__(self, graphs: Tensor, channels: int, width: int) -> None:
        super().__init__()
        subsets, inner = len(graphs), width // 4
        self.graphs = nn.Parameter(graphs.clone())
        self.alpha = nn.Parameter(torch.zeros(1))
        self.theta = nn.ModuleList(nn.Conv2d(channels, inner, 1) for _ in range(subsets))
        self.phi = nn.ModuleList(nn.Conv2d(channels, inner, 1) for _ in range(subsets))
        self.features = nn.ModuleList(nn.Conv2d(channels, width, 1) for _ in range(subsets))
        self.norm = nn.BatchNorm2d(width)
        self.down = shortcut(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and can_be_fused(self, [self.norm, *norms_of(self.down)]):
            return self._fused(x)
        y: Tensor | None = None
        for subset, (theta, phi, features) in enumerate(zip(self.theta, self.phi, self.features, strict=True)):
            a, b = theta(x), phi(x)
            alike = torch.tanh(torch.einsum("nctv,nctw->nvw", a, b) / (a.shape[1] * a.shape[2]))
            part = features(torch.einsum("nctv,nvw->nctw", x, self.graphs[subset] + self.alpha * alike))
            y = part if y is None else y + part
        return torch.relu(self.norm(y) + self.down(x))

    def _fused(self, x: Tensor) -> Tensor:
        """All convolutions of the joints' features as one product, and one for the sum over subsets and joints.

        The biases of the features are added after the sum, in which they would be multiplied by the graphs.
        """
        convs: list[Any] = [*self.theta, *self.phi, *self.features]
        relations, biases = convs[: 2 * len(self.theta)], [conv.bias for conv in convs[2 * len(self.theta) :]]
        bias = torch.cat([*(conv.bias for conv in relations), *map(torch.zeros_like, biases)])
        rows = rows_product(x, torch.cat([conv.weight for conv in convs]), bias)
        n, frames, joints, _ = rows.shape
        subsets, inner = len(self.theta), convs[0].out_channels
        a, b, features = rows.split([subsets * inner, subsets * inner, rows.shape[3] - 2 * subsets * inner], -1)
        a, b = (part.reshape(n, frames, joints, subsets, inner) for part in (a, b))
        alike = torch.tanh(torch.einsum("ntvsc,ntwsc->nsvw", a, b) / (inner * frames))
        y = aggregated(features.contiguous(), self.graphs + self.alpha * alike)
        y = y + torch.stack(biases).sum(0)[:, None, None].to(y.dtype)
        added = added_shortcut(x, self.down)
        assert added is not None
        return normalised(y, [self.norm], shortcut=added.to(y.dtype))


class Attention(nn.Module):
    """Sequential gates over joints, frames and channels, each with a residual connection (section III-C)."""

    def __init__(self, width: int, num_joints: int) -> None:
        super().__init__()
        odd = num_joints - (1 - num_joints % 2)
        self.joints = nn.Conv1d(width, 1, odd, padding=odd // 2)
        self.frames = nn.Conv1d(width, 1, 9, padding=4)
        last = nn.Linear(width // 2, width)
        self.channels = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), last)
        for parameter in (*self.joints.parameters(), *self.frames.parameters(), *last.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        x = x * (1 + torch.sigmoid(self.joints(x.mean(2))))[:, :, None]
        x = x * (1 + torch.sigmoid(self.frames(x.mean(3))))[..., None]
        return x * (1 + torch.sigmoid(self.channels(x.mean((2, 3)))))[..., None, None]


class Layer(nn.Module):
    """Adaptive graph convolution, attention, and temporal convolution over nine frames."""

    def __init__(self, graphs: Tensor, channels: int, width: int, stride: int, residual: bool) -> None:
        super().__init__()
        self.gcn = nn.Sequential(AdaptiveGraph(graphs, channels, width), Attention(width, graphs.shape[-1]))
        self.tcn = temporal_conv(width, width, stride=stride)
        self.residual = shortcut(channels, width, stride) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.gcn(x)
        tcn: Any = self.tcn
        if self.training and can_be_fused(self, [tcn[1], *norms_of(self.residual)]):
            return finished(y, tcn, self.residual, x)
        y = self.tcn(y)
        return torch.relu(y if self.residual is None else y + self.residual(x))


PUBLISHED_NAMES = {  # inside a layer of PYSKL's -> inside ours
    "gcn.A": "gcn.0.graphs",
    "gcn.alpha": "gcn.0.alpha",
    "gcn.conv_a.": "gcn.0.theta.",
    "gcn.conv_b.": "gcn.0.phi.",
    "gcn.conv_d.": "gcn.0.features.",
    "gcn.bn.": "gcn.0.norm.",
    "gcn.down.": "gcn.0.down.",
    "gcn.conv_sa.": "gcn.1.joints.",
    "gcn.conv_ta.": "gcn.1.frames.",
    "gcn.fc1c.": "gcn.1.channels.0.",
    "gcn.fc2c.": "gcn.1.channels.2.",
    "tcn.conv.": "tcn.0.",
    "tcn.bn.": "tcn.1.",
    "residual.conv.": "residual.0.",
    "residual.bn.": "residual.1.",
}


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of PYSKL's AAGCN -> ours, without its copy of the initial graphs; other keys are kept."""
    ours = {}
    state = {key: value for key, value in state.items() if key != "backbone.A"}
    for key, value in from_pyskl(state).items():
        layers, number, rest = (*key.split(".", 2), "", "")[:3]
        theirs = next((name for name in PUBLISHED_NAMES if layers == "layers" and rest.startswith(name)), None)
        if theirs is not None:
            key = f"layers.{number}.{PUBLISHED_NAMES[theirs]}{rest.removeprefix(theirs)}"
        ours[key] = value
    return ours


@backbone("aagcn", from_published=from_published)
def aagcn(layout: Layout, num_classes: int, *, num_people: int, in_channels: int = 3) -> nn.Module:
    """AAGCN with adaptive graphs and STC attention, ten layers."""
    graphs = torch.from_numpy(layout.adjacency())

    def layer(channels: int, width: int, stride: int, residual: bool) -> nn.Module:
        return Layer(graphs, channels, width, stride, residual)

    return SkeletonNetwork(layout, num_classes, num_people=num_people, in_channels=in_channels, make_layer=layer)
