"""BlockGCN: Zhou et al., BlockGCN: Redefine Topology Awareness for Skeleton-Based Action Recognition, CVPR 2024.

The names of parameters are the published ones, so that published weights load unchanged. Two things differ from the published
code, and agree with it for a batch of one clip: distances between joints are normalised per clip, not over the batch, and the
topology of a clip is added to its own people. (The published code adds those of other clips of the batch.) The topology is that of
the clips that the network is given; published runs on bones and motion pass the joints beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import conv2d

from shapmix.networks.backbones import backbone
from shapmix.networks.ctrgcn_reference import Layer, TemporalUnit
from shapmix.networks.skeleton_graph import hops, initialise, shortcut
from shapmix.skeleton.layout import Layout

WIDTHS = (128,) * 4 + (256,) * 6
HALVE = (4, 7)
SUBSETS = 3  # graphs per layer and group
GROUPS = 8  # of channels, each with graphs and products of its own
ELEMENTS = 64  # of the topology of a clip
EPSILON = 1e-4  # added to the norm of a graph's column
COINCIDENT = 1e-6  # joints that are closer, in units of the coordinates or of the largest distance, are at the same place


class BlockGraph(nn.Module):
    """Graph convolution by groups of channels, BatchNorm, shortcut, ReLU: [N, C, T, V] -> [N, C', T, V].

    Each group has three graphs. A graph is the sum of a free one and of a weight per distance in bones.
    """

    def __init__(self, hops: Tensor, channels: int, width: int) -> None:
        super().__init__()
        joints = len(hops)
        self.hops: Tensor
        self.register_buffer("hops", hops, persistent=False)
        self.fc1 = nn.Parameter(torch.eye(joints).repeat(SUBSETS, GROUPS, 1, 1))
        self.rpe = nn.Parameter(torch.zeros(SUBSETS, GROUPS, int(hops.max()) + 1))
        self.fc2 = nn.ModuleList(nn.Conv2d(channels, width, 1, groups=GROUPS) for _ in range(SUBSETS))
        self.down = shortcut(channels, width, 1)
        self.bn = nn.BatchNorm2d(width)

    def aggregated(self, x: Tensor) -> Tensor:
        """[N, C, T, V] -> [N, C', T, V], the sum over the subsets; their products are one product."""
        n, channels, frames, joints = x.shape
        graphs = _unit_columns(self.fc1) + _unit_columns(self.rpe[:, :, self.hops])
        groups = x.view(n, GROUPS, channels // GROUPS, frames, joints)
        mixed = torch.einsum("ngctv,sgvw->ngsctw", groups, graphs).reshape(n, SUBSETS * channels, frames, joints)
        products: list[Any] = list(self.fc2)
        weight = torch.cat([product.weight for product in products], 1)
        bias = torch.stack([product.bias for product in products]).sum(0)
        return conv2d(mixed, weight, bias, groups=GROUPS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.aggregated(x)) + self.down(x))


def _unit_columns(graphs: Tensor) -> Tensor:
    """Graphs [..., V, V], each column divided by its norm."""
    return graphs / (graphs.norm(dim=-2, keepdim=True) + EPSILON)


@fx.wrap
def barcode(clips: Tensor) -> Tensor:
    """Clips [N, C, T, V, M] -> [N, V - 1], at least float32: where the clusters of joints merge, from 0 (nothing) upwards.

    A joint is described by its distances to all joints, averaged over frames and people and divided by the largest of the clip.
    """
    joints = clips.double().mean((2, 4)).transpose(1, 2)  # differences of means are means of differences
    between = _roots((joints[:, :, None] - joints[:, None]).square().sum(3))
    largest = between.flatten(1).max(1).values[:, None, None]
    rows = between / largest.clamp_min(COINCIDENT)
    products = rows @ rows.transpose(1, 2)  # autocast leaves float64 alone
    squares = products.diagonal(dim1=1, dim2=2)
    lengths = spanning_tree(_roots(squares[:, :, None] + squares[:, None] - 2 * products))
    return lengths.to(torch.promote_types(clips.dtype, torch.float32))


def _roots(squared: Tensor) -> Tensor:
    """Square roots, 0 with gradient 0 where two joints coincide."""
    apart = squared > COINCIDENT**2
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)


def spanning_tree(distances: Tensor) -> Tensor:
    """Edge lengths [N, V - 1] of a minimum spanning tree of distances [N, V, V], in the order of Prim's algorithm.

    They are the finite bars of persistent homology in dimension 0.
    """
    found = distances.detach()
    joints = found.shape[1]
    order = torch.arange(joints, device=found.device)
    nearest, via = found[:, 0], torch.zeros_like(found[:, 0], dtype=torch.int64)  # the nearest joint of the tree to each joint
    reached = (order == 0).expand_as(nearest)
    edges = []
    for _ in range(joints - 1):
        joint = nearest.masked_fill(reached, torch.inf).argmin(1, keepdim=True)
        edges.append(via.gather(1, joint) * joints + joint)
        row = found.gather(1, joint[:, :, None].expand(-1, -1, joints))[:, 0]
        via = torch.where(row < nearest, joint, via)
        nearest = torch.minimum(nearest, row)
        reached = reached | (order == joint)
    return distances.flatten(1).gather(1, torch.cat(edges, 1))


class Elements(nn.Module):
    """Lengths of bars [N, V - 1] -> [N, ELEMENTS]: sums of bell curves of (birth, death) around learned centres.

    Every bar of dimension 0 is born at 0. Bars without length, those of joints at the same place, do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.rand(ELEMENTS, 2))
        self.sharpness = nn.Parameter(torch.full((ELEMENTS, 2), 3.0))

    def forward(self, lengths: Tensor) -> Tensor:
        birth, death = self.centres.unbind(1)
        of_birth, of_death = self.sharpness.square().unbind(1)
        far = of_birth * birth.square() + of_death * (death - lengths[:, :, None]).square()
        return (torch.exp(-far) * (lengths > 0)[:, :, None]).sum(1)


class Topology(nn.Module):
    """Clips [N, C, T, V, M] -> [N, ELEMENTS]: the topology of the distances between the joints of each clip."""

    def __init__(self) -> None:
        super().__init__()
        self.pl = Elements()

    def forward(self, clips: Tensor) -> Tensor:
        codes: Tensor = self.pl(barcode(clips))
        return codes


class Encoding(nn.Module):
    """The topology [N, ELEMENTS] as an offset of the channels of a layer's input [N, C, 1, 1]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Linear(ELEMENTS, width)
        self.bn = nn.BatchNorm1d(width)

    def forward(self, codes: Tensor) -> Tensor:
        if self.training and type(self.bn) is nn.BatchNorm1d and len(codes) == 1:
            raise ValueError("one clip of one person has no batch statistics of its topology: give at least two clips to train on")
        return torch.relu(self.bn(self.mlp(codes)))[:, :, None, None]


@backbone("blockgcn", options=("widths", "halve"))
class BlockGCN(nn.Module):
    """Clips [N, C, T, V, M] -> logits [N, K].

    Args:
        layout: the skeleton of the clips.
        num_classes: K.
        num_people, in_channels: M and C.
        widths: channels of each layer, multiples of 8.
        halve: indices of the layers that halve the frames; None: those that change the width. As published, (4, 7).

    Raises:
        ValueError: a width is not a multiple of 8; or, in a training pass, one clip of one person.
    """

    def __init__(
        self,
        layout: Layout,
        num_classes: int,
        *,
        num_people: int,
        in_channels: int = 3,
        widths: Sequence[int] = WIDTHS,
        halve: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        for width in widths:
            if width % GROUPS or width < GROUPS:
                raise ValueError(f"layer width {width} is not a multiple of {GROUPS}, the groups of channels")
        if halve is None:
            changes = [layer + 1 for layer, (before, after) in enumerate(pairwise(widths)) if before != after]
            halve = HALVE if tuple(widths) == WIDTHS else changes
        first, distance = widths[0], hops(layout)
        self.depth = len(widths)
        self.to_joint_embedding = nn.Linear(in_channels, first)
        self.pos_embedding = nn.Parameter(torch.randn(1, layout.num_joints, first))
        self.data_bn = nn.BatchNorm1d(num_people * layout.num_joints * first)
        self.topo = Topology()
        before = first
        for number, width in enumerate(widths):
            stride = 2 if number in halve else 1
            unit = BlockGraph(distance, before, width)
            setattr(self, f"t{number}", Encoding(before))
            setattr(self, f"l{number + 1}", Layer(unit, TemporalUnit(width, stride), before, width, stride, residual=True))
            before = width
        self.fc = nn.Linear(before, num_classes)
        initialise(self, self.fc)

    def embedded(self, clips: Tensor) -> Tensor:
        """[N, C, T, V, M] -> [N M, width of the first layer, T, V]."""
        n, _, frames, joints, people = clips.shape
        x = self.to_joint_embedding(clips.permute(0, 4, 2, 3, 1)) + self.pos_embedding  # [N, M, T, V, width]
        x = self.data_bn(x.permute(0, 1, 3, 4, 2).reshape(n, -1, frames))
        return x.view(n * people, joints, -1, frames).permute(0, 2, 3, 1).contiguous()

    def forward(self, clips: Tensor) -> Tensor:
        n, people = clips.shape[0], clips.shape[4]
        codes = self.topo(clips)
        codes = codes[:, None].expand(-1, people, -1).reshape(n * people, -1)
        x = self.embedded(clips)
        for number in range(self.depth):
            x = self.get_submodule(f"l{number + 1}")(x + self.get_submodule(f"t{number}")(codes))
        logits: Tensor = self.fc(x.mean((2, 3)).view(n, people, -1).mean(1))
        return logits
