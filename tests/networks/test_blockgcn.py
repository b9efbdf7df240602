"""BlockGCN: distances in bones, the barcode of the distances between joints, and the published size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from shapmix import load_layout
from shapmix.networks.blockgcn import BlockGCN, BlockGraph, Topology, spanning_tree
from shapmix.networks.skeleton_graph import hops
from shapmix.skeleton.layout import BUILT_IN

# bones of the published graph of NTU RGB+D: joints from 1, a hand tip and a thumb both hang from the hand
PUBLISHED_BONES = (
    "1-2 2-21 3-21 4-3 5-21 6-5 7-6 8-7 9-21 10-9 11-10 12-11 13-1 14-13 15-14 16-15 17-1 18-17 19-18 20-19 22-8 23-8 24-12 25-12"
)


def test_distances_of_ntu_are_those_of_the_published_graph() -> None:
    distance = torch.full((25, 25), 99).fill_diagonal_(0)
    for bone in PUBLISHED_BONES.split():
        a, b = (int(joint) - 1 for joint in bone.split("-"))
        distance[a, b] = distance[b, a] = 1
    for middle in range(25):
        distance = torch.minimum(distance, distance[:, middle, None] + distance[None, middle])
    assert torch.equal(hops(load_layout("ntu25")), distance)
    assert int(distance.max()) == 11


@pytest.mark.parametrize("name", BUILT_IN)
def test_distances_of_every_layout_are_a_tree_metric(name: str) -> None:
    layout = load_layout(name)
    distance = hops(layout)
    assert torch.equal(distance, distance.T)
    assert torch.equal(distance == 0, torch.eye(layout.num_joints, dtype=torch.bool))
    assert int((distance == 1).sum()) == 2 * (layout.num_joints - 1)  # as many bones as a tree has
    assert (distance[:, :, None] + distance[None] >= distance[:, None].transpose(1, 2)).all()


def kruskal(distances: Tensor) -> list[float]:
    """Edge lengths of a minimum spanning tree of distances [V, V]."""
    group = list(range(len(distances)))
    lengths = []
    edges = [(float(distances.detach()[a, b]), a, b) for a in range(len(distances)) for b in range(a)]
    for length, a, b in sorted(edges):
        if group[a] != group[b]:
            lengths.append(length)
            group = [group[a] if one == group[b] else one for one in group]
    return lengths


def test_spanning_tree_is_that_of_kruskal() -> None:
    points = torch.randn(4, 13, 3, dtype=torch.float64, requires_grad=True)
    distances = torch.cdist(points, points)
    lengths = spanning_tree(distances)
    for found, each in zip(lengths.sort(1).values, distances, strict=True):
        torch.testing.assert_close(found, torch.tensor(kruskal(each), dtype=torch.float64))
    lengths.sum().backward()
    assert points.grad is not None
    assert (points.grad.abs().sum(2) > 0).all()


def test_topology_ignores_where_a_person_stands_and_how_large_they_are() -> None:
    torch.manual_seed(0)
    topology = Topology().double()
    clips = torch.randn(3, 3, 6, 25, 2, dtype=torch.float64)
    codes = topology(clips)
    assert codes.shape == (3, 64)
    torch.testing.assert_close(topology(clips * 1.7 + torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)), codes)
    assert (codes[0] - codes[1]).abs().max() > 1e-3


def test_a_clip_of_nothing_has_no_topology() -> None:
    clips = torch.zeros(2, 3, 6, 25, 1, requires_grad=True)
    codes = Topology()(clips)
    assert torch.equal(codes, torch.zeros_like(codes))
    codes.sum().backward()
    assert clips.grad is None or clips.grad.isfinite().all()


def test_graphs_are_normalised_by_column_and_apply_to_groups_of_channels() -> None:
    torch.manual_seed(0)
    distance = hops(load_layout("ucla20"))
    unit = BlockGraph(distance, 16, 16).double()
    with torch.no_grad():
        unit.rpe.normal_()
        unit.fc1.normal_()
    x = torch.randn(2, 16, 5, 20, dtype=torch.float64)
    total = torch.zeros(2, 16, 5, 20, dtype=torch.float64)
    for subset, product in enumerate(unit.fc2):
        for group in range(8):
            free, of_distance = unit.fc1[subset, group], unit.rpe[subset, group][distance]
            graph = free / (free.norm(dim=0) + 1e-4) + of_distance / (of_distance.norm(dim=0) + 1e-4)
            channels = slice(2 * group, 2 * group + 2)
            mixed = torch.einsum("nctv,vw->nctw", x[:, channels], graph)
            weight, bias = product.weight[channels, :, 0, 0], product.bias[channels]
            total[:, channels] += torch.einsum("nctv,dc->ndtv", mixed, weight) + bias[:, None, None]
    torch.testing.assert_close(unit.aggregated(x), total)


def test_one_clip_of_one_person_cannot_be_trained_on() -> None:
    network = BlockGCN(load_layout("ucla20"), 3, num_people=1, widths=(8,))
    with pytest.raises(ValueError, match="one clip of one person has no batch statistics"):
        network(torch.randn(1, 3, 4, 20, 1))
    assert network(torch.randn(2, 3, 4, 20, 1)).shape == (2, 3)
    assert network.eval()(torch.randn(1, 3, 4, 20, 1)).shape == (1, 3)


def test_size_is_that_of_the_published_network() -> None:
    """1,372,780 parameters and 1.99 G multiplications for 60 classes and two people, as its code counts; its paper says 1.3 M."""
    network = BlockGCN(load_layout("ntu25"), 60, num_people=2).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_372_780
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.randn(1, 3, 64, 25, 2))
    assert counter.get_total_flops() / 2 == pytest.approx(1.98845952e9, rel=1e-3)
