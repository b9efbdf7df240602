"""SkateFormer: groups of joints, windows of frames, the four kinds of attention, and the published size and names."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from shapmix import load_layout
from shapmix.networks.drop_path import DropPath
from shapmix.networks.skateformer import (
    HEADS,
    FramesError,
    Kind,
    SkateFormer,
    attended,
    from_published,
    joint_groups,
    kinds_of,
    relative_bias,
    window_of,
)
from shapmix.skeleton.layout import BUILT_IN
from shapmix.training.build import backbone_options
from shapmix.training.config import parse_config

# published orders of the joints, from 1
NTU = "7 8 22 23  11 12 24 25  13 14 15 16  17 18 19 20  5 9 6 10  2 3 1 4"
UCLA = "5 6 7 8  9 10 11 12  13 14 15 16  17 18 19 20  2 3 1 4"


@pytest.mark.parametrize(("layout", "order"), [("ntu25", NTU), ("pku25", NTU), ("ucla20", UCLA)])
def test_groups_are_the_published_ones(layout: str, order: str) -> None:
    assert joint_groups(load_layout(layout)) == [int(joint) - 1 for joint in order.split()]


@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - {"ntu25", "pku25", "ucla20"}))
def test_groups_of_other_layouts_are_in_one_part_and_hold_every_joint(name: str) -> None:
    layout = load_layout(name)
    groups = torch.tensor(joint_groups(layout)).view(-1, 4)
    assert set(groups.flatten().tolist()) == set(range(layout.num_joints))
    assert all(len(set(parts)) == 1 for parts in layout.part_of_joint[groups].tolist())
    assert len(groups) == sum(-(-len(joints) // 4) for joints in layout.parts.values())


def test_windows_of_frames() -> None:
    assert [window_of(frames) for frames in (64, 32, 16, 8, 4, 13, 26, 6, 1)] == [8, 8, 8, 8, 4, 1, 2, 6, 1]


@pytest.mark.parametrize("frames", [52, 4])
def test_frames_that_cannot_be_halved_are_named(frames: int) -> None:
    network = SkateFormer(load_layout("ucla20"), 3, num_people=1)
    wanted = {52: "--num-frames 48 or 56", 4: "--num-frames 8"}[frames]
    with pytest.raises(
        FramesError, match=re.escape(f"clips have {frames} frames, which SkateFormer cannot halve 3 times: give {wanted}")
    ):
        network(torch.zeros(1, 3, frames, 20, 1))


def members(kind: Kind, frames: int, tokens: int, frame: int, token: int) -> list[tuple[int, int]]:
    """(frame, token) of the window of a token, in order."""
    window = window_of(frames)
    near, stride = frame // window * window, frames // window
    in_time = [near + k for k in range(window)] if kind.near_frames else [frame % stride + k * stride for k in range(window)]
    first, step = token // kind.joints * kind.joints, tokens // kind.joints
    joints = range(kind.joints)
    in_space = [first + k for k in joints] if kind.near_joints else [token % step + k * step for k in joints]
    return [(t, w) for t in in_time for w in in_space]


@pytest.mark.parametrize("kind", kinds_of(6, 2))
def test_attention_is_within_the_window_of_each_kind(kind: Kind) -> None:
    torch.manual_seed(0)
    frames, tokens, channels = 16, 48, 2 * HEADS
    x = torch.randn(1, frames, tokens, 3 * channels, dtype=torch.float64)
    of_joints = () if kind.near_joints else (kind.joints, kind.joints)
    table = torch.randn(15, *of_joints, HEADS, dtype=torch.float64)
    found = attended(x, table, kind, 0.0)
    query, key, value = x[0].view(frames, tokens, 3, HEADS, 2).unbind(2)
    for frame, token in ((0, 0), (5, 13), (15, 47)):
        window = members(kind, frames, tokens, frame, token)
        here = window.index((frame, token))

        def bias(other: int, here: int = here) -> Tensor:
            if kind.near_joints:  # as published, where the frame of a token is not what this takes for it
                return table[here % 8 - other % 8 + 7]
            return table[here // kind.joints - other // kind.joints + 7, here % kind.joints, other % kind.joints]

        scores = torch.stack([(query[frame, token] * key[t, w]).sum(1) * 0.5 + bias(k) for k, (t, w) in enumerate(window)])
        weights = scores.softmax(0)  # [members, HEADS]
        expected = sum(weights[k][:, None] * value[t, w] for k, (t, w) in enumerate(window))
        torch.testing.assert_close(found[0, frame, token], torch.as_tensor(expected).flatten())


def test_a_short_window_uses_the_middle_of_the_bias_table() -> None:
    table = torch.arange(15.0)[:, None].expand(15, HEADS)
    assert torch.equal(relative_bias(table, 2, 1)[0], torch.tensor([[7.0, 6.0], [8.0, 7.0]]))


@pytest.mark.parametrize(("layout", "people", "classes", "count"), [("ntu25", 2, 60, 3_616_083), ("ucla20", 1, 10, 1_925_921)])
def test_sizes_are_those_of_the_published_networks(layout: str, people: int, classes: int, count: int) -> None:
    """As the published code has them for NTU RGB+D and NW-UCLA."""
    network = SkateFormer(load_layout(layout), classes, num_people=people)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_size_of_narrow_last_products_is_that_of_the_page() -> None:
    network = SkateFormer(load_layout("ntu25"), 60, num_people=2, mlp_ratio=1)
    assert f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.3f} M" == "2.174 M"


def test_published_names_are_ours_but_for_the_indices_of_biases() -> None:
    network = SkateFormer(load_layout("ucla20"), 10, num_people=1)
    state = network.state_dict()
    index = "stages.0.blocks.0.transformer.attention.0.relative_position_index"
    assert set(from_published(state | {index: torch.zeros(8, 8)})) == set(state)
    assert "stages.1.blocks.0.downsample.reduction.weight" in state


@pytest.mark.parametrize(("option", "last"), [([], 0.2), (["--network.drop-path", "0.1"], 0.1)])
def test_drop_path_rises_to_the_last_block(option: list[str], last: float) -> None:
    options = backbone_options(parse_config(["--network.backbone", "skateformer", "--network.widths", "None", *option]))
    network = SkateFormer(load_layout("ucla20"), 3, num_people=1, **options)
    shares = [module.share for module in network.modules() if isinstance(module, DropPath)]
    assert shares == pytest.approx([last * block / 7 for block in range(1, 8)])  # the first block drops nothing
