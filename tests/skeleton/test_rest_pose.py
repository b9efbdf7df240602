"""Places of the joints in a picture of a skeleton: known joints where they are on a body, others beside their neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from shapmix.skeleton.layout import BUILT_IN, Layout, load_layout, parse_layout
from shapmix.skeleton.rest_pose import rest_pose

HORSE = """
name = "horse"
centre = "back"
joints = ["back", "withers", "poll", "croup", "dock", "left_fore", "right_fore", "left_hind", "right_hind"]
flips = [["left_fore", "right_fore"], ["left_hind", "right_hind"]]
[parents]
withers = "back"
poll = "withers"
croup = "back"
dock = "croup"
left_fore = "withers"
right_fore = "withers"
left_hind = "croup"
right_hind = "croup"
[parts]
front = ["back", "withers", "poll", "left_fore", "right_fore"]
rear = ["croup", "dock", "left_hind", "right_hind"]
"""
LAYOUTS = {name: load_layout(name) for name in BUILT_IN} | {"horse": parse_layout(HORSE)}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_joints_are_apart_and_pairs_are_mirrored(layout: Layout) -> None:
    places = rest_pose(layout)
    assert places.shape == (layout.num_joints, 2)
    assert np.isfinite(places).all()
    apart = np.linalg.norm(places[:, None] - places, axis=-1) + np.eye(layout.num_joints)
    assert apart.min() > 0.01 * np.ptp(places, axis=0).max()
    if layout.flips != tuple(range(layout.num_joints)):
        np.testing.assert_allclose(places[list(layout.flips)] * [-1, 1], places, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name not in ("hand21", "shrec22")])
def test_heads_are_above_feet_and_left_is_on_the_right_of_the_picture(name: str) -> None:
    layout, places = LAYOUTS[name], rest_pose(LAYOUTS[name])
    height = {joint: places[number, 1] for number, joint in enumerate(layout.joints)}
    head = max(height[joint] for joint in ("head", "nose") if joint in height)
    knee, low = height["left_knee"], min(height.values())
    assert head > height["left_shoulder"] > height["left_hip"] if "left_hip" in height else True
    assert head > knee > low
    for joint, (x, _) in zip(layout.joints, places, strict=True):
        assert x > 0 if joint.startswith("left_") else x < 0 if joint.startswith("right_") else True


def test_fingers_point_away_from_the_wrist() -> None:
    for name in ("hand21", "shrec22"):
        layout, places = LAYOUTS[name], rest_pose(LAYOUTS[name])
        for child, parent in layout.edges:
            if layout.parents[parent] != parent and layout.joints[parent] != "palm":
                step, before = places[child] - places[parent], places[parent] - places[layout.parents[parent]]
                assert step @ before > 0
