"""HD-GCN: levels of joints around a centre, edges of every two adjacent levels, and the published size and names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shapmix import load_layout
from shapmix.networks.hdgcn import EdgeConv, edges, from_published, hdgcn, levels
from shapmix.skeleton.layout import BUILT_IN

# published levels of NTU RGB+D around its three centres, joints from 1
PUBLISHED = {
    "spine_shoulder": "21 | 2 3 5 9 | 4 6 10 1 | 7 11 13 17 | 8 12 14 18 | 22 23 24 25 15 19 | 16 20",
    "spine_mid": "2 | 1 21 | 13 17 3 5 9 | 14 18 4 6 10 | 15 19 7 11 | 16 20 8 12 | 22 23 24 25",
    "pelvis": "1 | 2 13 17 | 14 18 21 | 3 5 9 15 19 | 4 6 10 16 20 | 7 11 | 8 12 22 23 24 25",
}


@pytest.mark.parametrize("centre", PUBLISHED)
def test_levels_of_ntu_are_the_published_ones(centre: str) -> None:
    expected = [sorted(int(joint) - 1 for joint in level.split()) for level in PUBLISHED[centre].split("|")]
    assert [sorted(level) for level in levels(load_layout("ntu25"), centre)] == expected


def test_the_centre_is_the_root_if_none_is_given() -> None:
    layout = load_layout("ntu25")
    assert levels(layout, None) == levels(layout, "spine_shoulder")
    with pytest.raises(ValueError, match="centre 'pelvsi' is no joint of layout 'ntu25'; did you mean 'pelvis'"):
        levels(layout, "pelvsi")


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_joint_of_every_layout_is_in_one_level(name: str) -> None:
    layout = load_layout(name)
    found = levels(layout, None)
    assert sorted(joint for level in found for joint in level) == list(range(layout.num_joints))
    assert found[0] == [layout.root]
    assert 2 <= len(found) <= 7


def test_edges_join_all_joints_of_two_levels() -> None:
    graphs = edges([[0], [1, 2], [3]], 4)
    assert graphs.shape == (2, 3, 4, 4)
    assert torch.equal(graphs[0, 0], torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0])))
    assert torch.equal(graphs[0, 1].nonzero(), torch.tensor([[1, 0], [2, 0]]))  # to the outer level
    assert torch.equal(graphs[1, 2].nonzero(), torch.tensor([[1, 3], [2, 3]]))  # to the inner level
    totals = graphs[:, 1:].sum(2)  # each joint gives one in all
    assert torch.equal(totals[totals > 0], torch.ones(int((totals > 0).sum())))


def test_edge_conv_takes_the_nearest_nodes_in_its_features() -> None:
    torch.manual_seed(0)
    unit = EdgeConv(3, 5, 2).double().eval()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    weight = unit.conv[0].weight[:, :, 0, 0]

    def response(clip: int, node: int) -> Tensor:
        here = x[clip, :, node]
        order = (x[clip] - here[:, None]).square().sum(0).argsort()[:2]  # the node itself is the nearest
        pairs = torch.stack([torch.cat([x[clip, :, other] - here, here]) for other in order])
        return torch.nn.functional.leaky_relu(pairs @ weight.T / (1 + 1e-5) ** 0.5, 0.2).amax(0)

    expected = torch.stack([torch.stack([response(clip, node) for node in range(6)], 1) for clip in range(2)])
    torch.testing.assert_close(unit(x), expected)


def test_size_is_that_of_the_published_network() -> None:
    """1,675,400 parameters for 120 classes, as its code has and its paper rounds to 1.68 M."""
    network = hdgcn(load_layout("ntu25"), 120, num_people=2)
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_675_400


def test_published_names_are_translated() -> None:
    names = {
        "data_bn.weight": "data_bn.weight",
        "l1.gcn1.PA": "layers.0.gcn1.PA",
        "l10.tcn1.branches.1.3.conv.weight": "layers.9.tcn1.branches.1.3.conv.weight",
        "l10.tcn1.branches.1.3.bn.bias": "layers.9.tcn1.branches.1.3.bn.bias",
        "other": "other",
    }
    state = {name: torch.zeros(2) for name in names} | {"l2.tcn1.branches.0.3.bias": torch.ones(1, 16, 1, 1)}
    renamed = from_published(state | {"l2.gcn1.conv_d.0.0.weight": torch.zeros(2)})  # the same as conv.5.0.0.weight
    assert set(renamed) == {*names.values(), "layers.1.tcn1.branches.0.3.conv.bias"}
    assert renamed["layers.1.tcn1.branches.0.3.conv.bias"].shape == (16,)
