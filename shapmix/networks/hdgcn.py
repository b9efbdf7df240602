"""HD-GCN: Lee et al., Hierarchically Decomposed Graph Convolutional Networks for Skeleton-Based Action Recognition, ICCV 2023.

The joints form levels by their distance in bones from a centre. Every two adjacent levels have a graph of their own, with edges
between all their joints; where a graph counts is decided per clip, from the features of its joints.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from shapmix.networks.backbones import backbone
from shapmix.networks.ctrgcn_reference import Layer, TemporalUnit
from shapmix.networks.skeleton_graph import WIDTHS, SkeletonNetwork, hops, initialise, shortcut
from shapmix.process.choices import nearest
from shapmix.skeleton.layout import Layout

MOST_LEVELS = 7  # joints farther from the centre are in the last level, as published
SUBSETS = 3  # graphs of two levels: self, outward, inward
NEAREST_JOINTS, NEAREST_LEVELS = 5, 3


def levels(layout: Layout, centre: str | None) -> list[list[int]]:
    """Joints by their distance in bones from the centre, None for the layout's root.

    Raises:
        ValueError: the centre is no joint of the layout.
    """
    if centre is not None and centre not in layout.joints:
        hint = nearest(centre, layout.joints)
        raise ValueError(f"centre '{centre}' is no joint of layout '{layout.name}'{hint}")
    start = layout.root if centre is None else layout.joints.index(centre)
    distance = hops(layout)[start].clamp_max(MOST_LEVELS - 1)
    return [torch.nonzero(distance == level).flatten().tolist() for level in range(int(distance.max()) + 1)]


def edges(levels: Sequence[Sequence[int]], joints: int) -> Tensor:
    """[L - 1, 3, V, V]: for every two adjacent levels the joints themselves, and edges from all joints of one to all of the other.

    Entry [.., v, w] is the weight of joint w in joint v; the weights of an edge's source sum to one.
    """
    graphs = torch.zeros(len(levels) - 1, SUBSETS, joints, joints)
    for graph, inner, outer in zip(graphs, levels[:-1], levels[1:], strict=True):
        both = [*inner, *outer]
        graph[0, both, both] = 1
        for number, (source, target) in enumerate(((inner, outer), (outer, inner)), start=1):
            graph[number][torch.tensor(target)[:, None], torch.tensor(source)] = 1 / len(target)
    return graphs


@fx.wrap
def closest(x: Tensor, most: int) -> Tensor:
    """[N, C, V] -> [N, V, k]: the nodes with the nearest features, each node first; k is `most` or V."""
    wide = x.detach().double()  # autocast leaves float64 alone
    closeness = 2 * wide.transpose(1, 2) @ wide - wide.square().sum(1)[:, None]
    return closeness.topk(min(most, x.shape[2])).indices


class EdgeConv(nn.Module):
    """A product of each node and its difference to each of the nearest nodes, and the largest of them: [N, C, V] -> [N, C', V]."""

    def __init__(self, channels: int, width: int, most: int) -> None:
        super().__init__()
        self.most = most
        product = nn.Conv2d(2 * channels, width, 1, bias=False)
        self.conv = nn.Sequential(product, nn.BatchNorm2d(width), nn.LeakyReLU(0.2))

    def forward(self, x: Tensor) -> Tensor:
        chosen = closest(x, self.most)[:, None].expand(-1, x.shape[1], -1, -1)  # [N, C, V, k]
        here = x[..., None].expand_as(chosen)
        there = x[:, :, None].expand(-1, -1, x.shape[2], -1).gather(3, chosen)
        y: Tensor = self.conv(torch.cat([there - here, here], 1)).amax(3)
        return y


class LevelAttention(nn.Module):
    """Sum over the graphs, weighted per clip and channel by the features of their joints: G times [N, C, T, V] -> [N, C, T, V]."""

    def __init__(self, graphs: Tensor, width: int) -> None:
        super().__init__()
        inner = width // 4
        self.members: Tensor
        self.register_buffer("members", graphs[:, 0].diagonal(dim1=1, dim2=2).clone(), persistent=False)  # [G, V], 1 or 0
        self.conv_down = nn.Sequential(nn.Conv2d(width, inner, 1), nn.BatchNorm2d(inner), nn.ReLU())
        self.edge_conv = EdgeConv(inner, inner, NEAREST_LEVELS)
        self.aggregate = nn.Conv1d(inner, width, 1)

    def forward(self, parts: list[Tensor]) -> Tensor:
        largest = torch.stack([part.amax(2) for part in parts], 2)  # [N, C, G, V]
        nodes = (self.conv_down(largest) * self.members).sum(3) / self.members.sum(1)
        gates = torch.sigmoid(self.aggregate(self.edge_conv(nodes)))
        return torch.stack([part * gates[:, :, number, None, None] for number, part in enumerate(parts)]).sum(0)


class LevelGraphs(nn.Module):
    """Graph convolution over the graphs of adjacent levels, BatchNorm, shortcut, ReLU: [N, C, T, V] -> [N, C', T, V].

    A quarter of the channels of a graph is of each subset, and one of the joints that are nearest in their features.
    """

    def __init__(self, graphs: Tensor, channels: int, width: int, gain: float, *, attention: bool) -> None:
        super().__init__()
        inner = width // (SUBSETS + 1)
        self.PA = nn.Parameter(graphs.clone())

        def product() -> nn.Module:
            return nn.Sequential(nn.Conv2d(inner, inner, 1), nn.BatchNorm2d(inner))

        self.conv_down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner), nn.ReLU()) for _ in graphs
        )
        self.conv = nn.ModuleList(
            nn.ModuleList([*(product() for _ in range(SUBSETS)), EdgeConv(inner, inner, NEAREST_JOINTS)]) for _ in graphs
        )
        self.aha = LevelAttention(graphs, width) if attention else None
        self.down = shortcut(channels, width, 1)
        self.bn = nn.BatchNorm2d(width)
        nn.init.constant_(self.bn.weight, gain)

    def of_graph(self, x: Tensor, number: int) -> Tensor:
        """[N, C, T, V] -> [N, C', T, V], the features of one graph."""
        units = self.conv.get_submodule(str(number))
        *products, nearby = units.children()
        x = self.conv_down[number](x)
        parts = [product(torch.einsum("nctw,vw->nctv", x, self.PA[number, subset])) for subset, product in enumerate(products)]
        parts.append(nearby(x.mean(2))[:, :, None].expand_as(x))
        return torch.cat(parts, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.of_graph(x, number) for number in range(len(self.conv))]
        y = torch.stack(parts).sum(0) if self.aha is None else self.aha(parts)
        return torch.relu(self.bn(y) + self.down(x))


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of the published code -> ours: layers are counted from 0, and the bias of a temporal convolution is its own.

    Published files have the last graph's products twice, also as `conv_d`.
    """
    renamed = {}
    for name, value in state.items():
        if ".gcn1.conv_d." in name:
            continue
        ours = re.sub(r"^l(\d+)\.", lambda found: f"layers.{int(found[1]) - 1}.", name)
        bias = re.sub(r"(tcn1\.branches\.\d+\.3)\.bias$", r"\1.conv.bias", ours)
        renamed[bias] = value if bias == ours else value.flatten()
    return renamed


@backbone("hdgcn", options=("widths", "halve", "graph_gain"), from_published=from_published)
def hdgcn(
    layout: Layout,
    num_classes: int,
    *,
    num_people: int,
    in_channels: int = 3,
    widths: Sequence[int] = WIDTHS,
    halve: Sequence[int] | None = None,
    graph_gain: float = 1e-6,
    centre: str | None = None,
) -> nn.Module:
    """HD-GCN, ten layers; `centre` is the joint that the levels are counted from, None for the layout's root.

    Raises:
        ValueError: a width is not a multiple of 4, or the centre is no joint.
    """
    for width in widths:
        if width % 4 or width < 4:
            raise ValueError(f"layer width {width} is not a multiple of 4: a layer has 4 branches and a graph 4 parts")
    graphs = edges(levels(layout, centre), layout.num_joints)

    def layer(channels: int, width: int, stride: int, residual: bool) -> nn.Module:
        unit = LevelGraphs(graphs, channels, width, graph_gain, attention=residual)  # none in the first layer, as published
        return Layer(unit, TemporalUnit(width, stride), channels, width, stride, residual=residual)

    network = SkeletonNetwork(
        layout, num_classes, num_people=num_people, in_channels=in_channels, make_layer=layer, widths=widths, halve=halve
    )
    initialise(network, network.fc)
    return network
