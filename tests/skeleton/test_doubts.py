"""Doubts about a layout that parses: what a reader of its file would ask about."""

from __future__ import annotations

import pytest

from shapmix.skeleton.doubts import doubts
from shapmix.skeleton.layout import BUILT_IN, layout_toml, load_layout, parse_layout

FIGURE = """
name = "figure"
dimensions = [2]
centre = "hip"
joints = ["hip", "neck", "left_hand", "right_hand", "left_foot", "right_foot"]
flips = [["left_hand", "right_hand"], ["left_foot", "right_foot"]]
[parents]
neck = "hip"
left_hand = "neck"
right_hand = "neck"
left_foot = "hip"
right_foot = "hip"
[parts]
body = ["hip", "neck"]
left_arm = ["left_hand"]
right_arm = ["right_hand"]
left_leg = ["left_foot"]
right_leg = ["right_foot"]
"""


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_layouts_leave_no_doubt(name: str) -> None:
    assert doubts(load_layout(name)) == []


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ([("dimensions = [2]\n", "")], "no 'dimensions': clips of any number of coordinates are accepted"),
        (
            [(', ["left_foot", "right_foot"]]', "]")],
            "'left_foot' and 'right_foot' are not a pair in 'flips'",
        ),
        (
            [('["left_hand", "right_hand"], ["left_foot", "right_foot"]', '["left_hand", "left_foot"]')],
            "'flips' swaps 'left_hand' and 'left_foot'",
        ),
        ([('right_hand = "neck"', 'right_hand = "hip"')], "the bone from 'left_hand' to 'neck' has no mirror image"),
        (
            [('left_arm = ["left_hand"]\n', ""), ('body = ["hip", "neck"]', 'body = ["hip", "neck", "left_hand"]')],
            "part 'body' has no mirror image",
        ),
        (
            [
                ('left_arm = ["left_hand"]\n', ""),
                ('left_leg = ["left_foot"]\n', 'left = ["left_foot", "left_hand"]\n'),
                ('right_arm = ["right_hand"]\n', ""),
                ('right_leg = ["right_foot"]\n', 'right = ["right_foot", "right_hand"]\n'),
            ],
            "part 'left' is in 2 pieces: 'left_foot'; 'left_hand'",
        ),
        ([('centre = "hip"', 'centre = "left_hand"')], "'centre' is 'left_hand', which 'flips' swaps with 'right_hand'"),
    ],
)
def test_a_doubt_names_the_joint_or_part(changes: list[tuple[str, str]], doubt: str) -> None:
    assert doubts(parse_layout(FIGURE)) == []
    text = FIGURE
    for change in changes:
        assert change[0] in text
        text = text.replace(*change)
    found = doubts(parse_layout(text))
    assert any(one.startswith(doubt) for one in found), found


@pytest.mark.parametrize("names", [("l_hand", "r_hand"), ("LHand", "RHand"), ("hand_left", "hand_right"), ("L_Hand", "R_Hand")])
def test_sides_are_recognised_in_every_usual_spelling(names: tuple[str, str]) -> None:
    text = FIGURE.replace("left_hand", names[0]).replace("right_hand", names[1])
    assert doubts(parse_layout(text)) == []
    unpaired = text.replace(f'["{names[0]}", "{names[1]}"], ', "")
    assert any(f"'{names[0]}' and '{names[1]}' are not a pair" in one for one in doubts(parse_layout(unpaired)))


def test_joints_of_a_built_in_layout_in_another_order_are_named() -> None:
    coco = load_layout("coco17")
    text = layout_toml(coco).replace('"nose", "left_eye", "right_eye"', '"nose", "right_eye", "left_eye"')
    assert any(one.startswith("the name is that of a built-in layout") for one in doubts(parse_layout(text)))
    found = doubts(parse_layout(text.replace('name = "coco17"', 'name = "mine"')))
    assert any(
        one.startswith("the joints are those of 'coco17' and 'uav17' in a different order, from joint 1 on") for one in found
    )
