"""CTR-GCN, the paper's network, as a direct implementation of its formulas; `shapmix.networks.ctrgcn` is a faster equivalent.

Module names match published checkpoints, so that state dicts are compatible in both directions.
Source: Chen et al., "Channel-wise Topology Refinement Graph Convolution", ICCV 2021; fixtures `ctrgcn_*`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from shapmix.networks.drop_path import DropPath
from shapmix.skeleton.layout import Layout

SUBSETS = 3  # graphs per layer: self, inward, outward
RELATION_CHANNELS = 8  # in the first layer; an eighth of the input channels in the others


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as published with the paper, whose names are ours.

    Raises:
        ValueError: they are those of PYSKL's variant, which has a ReLU between the temporal branches and the shortcut.
    """
    if any(re.fullmatch(r"(backbone\.)?net\.\d+\.gcn1\.A", name) for name in state):
        raise ValueError(
            "it is PYSKL's variant of CTR-GCN, which has one ReLU more in each layer, so that its weights compute something else "
            "in CTR-GCN as published; take the weights of CTR-GCN's or Shap-Mix's authors"
        )
    return state


class RelationGC(nn.Module):
    """One subset: a shared graph, refined per channel by the differences between joints.

    [N, C, T, V] and the shared graph [V, V] -> [N, C', T, V].
    """

    def __init__(self, in_channels: int, out_channels: int, relation_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, relation_channels, 1)
        self.conv2 = nn.Conv2d(in_channels, relation_channels, 1)
        self.conv3 = nn.Conv2d(in_channels, out_channels, 1)
        self.conv4 = nn.Conv2d(relation_channels, out_channels, 1)

    def forward(self, x: Tensor, graph: Tensor, alpha: Tensor) -> Tensor:
        a, b = self.conv1(x).mean(2), self.conv2(x).mean(2)  # [N, R, V]
        relation = torch.tanh(a.unsqueeze(-1) - b.unsqueeze(-2))  # [N, R, V, V]
        refined = self.conv4(relation) * alpha + graph  # [N, C', V, V]
        return torch.einsum("ncuv,nctv->nctu", refined, self.conv3(x))


class GraphUnit(nn.Module):
    """Sum of the three subsets, BatchNorm, shortcut, ReLU: [N, C, T, V] -> [N, C', T, V]."""

    def __init__(self, in_channels: int, out_channels: int, relation_channels: int, graphs: Tensor) -> None:
        super().__init__()
        self.PA = nn.Parameter(graphs.clone())
        self.alpha = nn.Parameter(torch.zeros(1))
        self.convs = nn.ModuleList(RelationGC(in_channels, out_channels, relation_channels) for _ in range(SUBSETS))
        self.down: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.down = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels))
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = sum(conv(x, graph, self.alpha) for conv, graph in zip(self.convs, self.PA, strict=True))
        return torch.relu(self.bn(y) + self.down(x))


class TemporalConv(nn.Module):
    """Temporal convolution with "same" padding (before the stride), and BatchNorm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, (kernel, 1), (stride, 1), (padding, 0), (dilation, 1))
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class TemporalUnit(nn.Module):
    """Four temporal branches, concatenated: kernel 5, kernel 5 dilated by 2, max-pool 3, and 1x1."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        width = channels // 4

        def reduce() -> list[nn.Module]:
            return [nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width), nn.ReLU()]

        self.branches = nn.ModuleList(
            [
                nn.Sequential(*reduce(), TemporalConv(width, width, 5, stride, dilation=1)),
                nn.Sequential(*reduce(), TemporalConv(width, width, 5, stride, dilation=2)),
                nn.Sequential(*reduce(), nn.MaxPool2d((3, 1), (stride, 1), (1, 0)), nn.BatchNorm2d(width)),
                nn.Sequential(nn.Conv2d(channels, width, 1, (stride, 1)), nn.BatchNorm2d(width)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Layer(nn.Module):
    """Graph unit, temporal unit and residual: [N, C, T, V] -> [N, C', T / stride, V]."""

    def __init__(
        self,
        gcn1: nn.Module,
        tcn1: nn.Module,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        residual: bool,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.drop_path: DropPath | None = DropPath(drop_path) if drop_path else None
        self.gcn1: Any = gcn1
        self.tcn1: Any = tcn1
        self.residual: nn.Module | None = None
        if residual and in_channels == out_channels and stride == 1:
            self.residual = nn.Identity()
        elif residual:
            self.residual = TemporalConv(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.tcn1(self.gcn1(x))
        if self.residual is None:
            return torch.relu(y)
        return torch.relu((y if self.drop_path is None else self.drop_path(y)) + self.residual(x))


class CTRGCN(nn.Module):
    """Clips [N, C, T, V, M] -> logits [N, K].

    Args:
        layout: the skeleton of the clips.
        num_classes: K.
        num_people: M.
        in_channels: C.
        widths: channels of each layer, multiples of 8; the published network has 64 x 4, 128 x 3, 256 x 3.
        halve: indices into `widths` of the layers that halve the frames; default: those that change the width.
        graph_gain: initial weight of the BatchNorm in graph units. With the published 1e-6, a layer starts as its shortcut;
            1 learns faster in short runs of small networks.
        drop_path: probability that training drops the last layer but for its shortcut, for each person of a clip; that of the
            layers before is lower, linearly to 0 for the first. Layers with it run op by op in training.

    Raises:
        ValueError: a width is not a multiple of 8.
    """

    graph_unit: type[GraphUnit] = GraphUnit
    temporal_unit: type[TemporalUnit] = TemporalUnit
    layer: type[Layer] = Layer

    def __init__(
        self,
        layout: Layout,
        num_classes: int,
        *,
        num_people: int = 2,
        in_channels: int = 3,
        widths: Sequence[int] = (64,) * 4 + (128,) * 3 + (256,) * 3,
        halve: Sequence[int] | None = None,
        graph_gain: float = 1e-6,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        for width in widths:
            if width % 8 or width < 8:
                raise ValueError(f"layer width {width} is not a multiple of 8: a layer has 4 branches and width / 8 relations")
        if halve is None:
            halve = [layer + 1 for layer, (before, after) in enumerate(pairwise(widths)) if before != after]
        self.layout_name = layout.name
        self.input_shape = (in_channels, layout.num_joints, num_people)
        self.depth = len(widths)
        self.data_bn = nn.BatchNorm1d(num_people * layout.num_joints * in_channels)
        graphs = torch.from_numpy(layout.adjacency())
        before = in_channels
        for layer, width in enumerate(widths):
            relations = RELATION_CHANNELS if layer == 0 else before // 8
            stride = 2 if layer in halve else 1
            gcn1 = self.graph_unit(before, width, relations, graphs)
            tcn1 = self.temporal_unit(width, stride)
            dropped = drop_path * layer / max(1, self.depth - 1)
            made = self.layer(gcn1, tcn1, before, width, stride, residual=layer > 0, drop_path=dropped)
            setattr(self, f"l{layer + 1}", made)
            before = width
        self.fc = nn.Linear(before, num_classes)
        self._initialise(graph_gain)

    def _initialise(self, graph_gain: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, GraphUnit):
                nn.init.constant_(module.bn.weight, graph_gain)
        nn.init.normal_(self.fc.weight, 0, (2 / self.fc.out_features) ** 0.5)

    @property
    def layers(self) -> list[Layer]:
        return [cast(Layer, self.get_submodule(f"l{layer + 1}")) for layer in range(self.depth)]

    def normalised(self, clips: Tensor) -> Tensor:
        """[N, C, T, V, M] -> [N * M, C, T, V]: the input of the first layer, one row per person.

        Raises:
            ValueError: the clips do not match the shape that the network was built for.
        """
        return self.normalised_joints(clips).permute(0, 2, 3, 1).contiguous()

    def normalised_joints(self, clips: Tensor) -> Tensor:
        """[N, C, T, V, M] -> [N * M, V, C, T]: each coordinate of each joint of each person normalised.

        Raises:
            ValueError: the clips do not match the shape that the network was built for.
        """
        self.check_shape(clips.shape)
        n, channels, frames, joints, people = clips.shape
        x = clips.permute(0, 4, 3, 1, 2).reshape(n, people * joints * channels, frames)  # [N, M V C, T]
        y: Tensor = self.data_bn(x).view(n * people, joints, channels, frames)
        return y

    def check_shape(self, shape: Sequence[int]) -> None:
        """That clips of a shape (N, C, T, V, M) match the network.

        Raises:
            ValueError: they do not.
        """
        _, channels, _, joints, people = shape
        if (channels, joints, people) != self.input_shape:
            raise ValueError(
                f"clips have (coordinates, joints, people) = {(channels, joints, people)}; "
                f"this network was built for {self.input_shape} (layout '{self.layout_name}')"
            )

    def features(self, clips: Tensor) -> Tensor:
        """[N, C, T, V, M] -> [N, width of the last layer], pooled over frames, joints and people.

        Raises:
            ValueError: the clips do not match the shape that the network was built for.
        """
        x = self.normalised(clips)
        for layer in self.layers:
            x = layer(x)
        return x.mean((2, 3)).view(clips.shape[0], clips.shape[4], -1).mean(1)

    def forward(self, clips: Tensor) -> Tensor:
        return self.fc(self.features(clips))
