"""The built-in layouts: laws that hold for each, and the joint orders that the tools document."""

from __future__ import annotations

from itertools import combinations

import pytest

from shapmix.skeleton.layout import BUILT_IN, MAX_PARTS, Layout, layout_toml, load_layout, parse_layout

LAYOUTS = {name: load_layout(name) for name in BUILT_IN}
ONE_HAND = ("hand21", "shrec22")

# Joint orders in the tools' own names, as their documentation lists them.
OPENPOSE_BODY_25 = (
    "Nose Neck RShoulder RElbow RWrist LShoulder LElbow LWrist MidHip RHip RKnee RAnkle LHip LKnee LAnkle REye LEye REar LEar "
    "LBigToe LSmallToe LHeel RBigToe RSmallToe RHeel"
)
OPENPOSE_COCO = "Nose Neck RShoulder RElbow RWrist LShoulder LElbow LWrist RHip RKnee RAnkle LHip LKnee LAnkle REye LEye REar LEar"
HALPE_26 = (
    "Nose LEye REye LEar REar LShoulder RShoulder LElbow RElbow LWrist RWrist LHip RHip LKnee RKnee LAnkle RAnkle Head Neck Hip "
    "LBigToe RBigToe LSmallToe RSmallToe LHeel RHeel"
)
COCO = "Nose LEye REye LEar REar LShoulder RShoulder LElbow RElbow LWrist RWrist LHip RHip LKnee RKnee LAnkle RAnkle"
H36M = "Pelvis RHip RKnee RAnkle LHip LKnee LAnkle Spine Thorax NeckBase Head LShoulder LElbow LWrist RShoulder RElbow RWrist"
SMPL_24 = (
    "Pelvis LHip RHip Spine1 LKnee RKnee Spine2 LAnkle RAnkle Spine3 LFoot RFoot Neck LCollar RCollar Head LShoulder RShoulder "
    "LElbow RElbow LWrist RWrist LHand RHand"
)
BLAZEPOSE = (
    "nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer left_ear right_ear mouth_left "
    "mouth_right left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_pinky right_pinky left_index "
    "right_index left_thumb right_thumb left_hip right_hip left_knee right_knee left_ankle right_ankle left_heel right_heel "
    "left_foot_index right_foot_index"
)
KINECT_1 = (
    "HipCentre Spine ShoulderCentre Head LShoulder LElbow LWrist LHand RShoulder RElbow RWrist RHand LHip LKnee LAnkle LFoot "
    "RHip RKnee RAnkle RFoot"
)
KINECT_2 = (
    "Pelvis SpineMid Neck Head LShoulder LElbow LWrist LHand RShoulder RElbow RWrist RHand LHip LKnee LAnkle LFoot RHip RKnee "
    "RAnkle RFoot SpineShoulder LHandTip LThumb RHandTip RThumb"
)
LCR_NET = "RAnkle LAnkle RKnee LKnee RHip LHip RWrist LWrist RElbow LElbow RShoulder LShoulder Head"
SBU = "Head Neck Torso LShoulder LElbow LHand RShoulder RElbow RHand LHip LKnee LFoot RHip RKnee RFoot"
FLORENCE = "Head Neck Spine LShoulder LElbow LWrist RShoulder RElbow RWrist LHip LKnee LAnkle RHip RKnee RAnkle"
GOLDEN = {
    "body25": OPENPOSE_BODY_25,
    "openpose18": OPENPOSE_COCO,
    "halpe26": HALPE_26,
    "coco17": COCO,
    "uav17": COCO,
    "h36m17": H36M,
    "smpl24": SMPL_24,
    "smpl22": " ".join(SMPL_24.split()[:22]),
    "mediapipe33": BLAZEPOSE,
    "kinect20": KINECT_1,
    "ucla20": KINECT_1,
    "ntu25": KINECT_2,
    "pku25": KINECT_2,
    "smarthome13": LCR_NET,
    "sbu15": SBU,
    "florence15": FLORENCE,
}


def snake(name: str) -> str:
    """`left_big_toe` for `LBigToe`."""
    if name.islower():
        return name
    side, rest = {"L": "left", "R": "right"}.get(name[0]), name[1:]
    if side is None or not rest[0].isupper():
        side, rest = None, name
    words = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in rest).strip("_")
    return f"{side}_{words}" if side else words


@pytest.mark.parametrize("name", GOLDEN)
def test_joints_have_the_order_of_the_tool(name: str) -> None:
    assert list(LAYOUTS[name].joints) == [snake(joint) for joint in GOLDEN[name].split()]


def test_whole_body_joints_have_the_published_ranges() -> None:
    joints = LAYOUTS["coco_wholebody133"].joints
    assert joints[:17] == LAYOUTS["coco17"].joints
    feet = ["left_big_toe", "left_small_toe", "left_heel", "right_big_toe", "right_small_toe", "right_heel"]
    assert list(joints[17:23]) == feet
    assert list(joints[23:91]) == [f"face_{number}" for number in range(68)]
    for first, side in ((91, "left"), (112, "right")):
        fingers = ("thumb", "forefinger", "middle_finger", "ring_finger", "pinky_finger")
        expected = [f"{side}_hand_root", *(f"{side}_{finger}{number}" for finger in fingers for number in (1, 2, 3, 4))]
        assert list(joints[first : first + 21]) == expected


def test_hands_begin_at_the_wrist_and_go_finger_by_finger() -> None:
    for name, before in (("hand21", 1), ("shrec22", 2)):
        layout = LAYOUTS[name]
        assert layout.joints[0] == "wrist"
        fingers = [layout.joints[first : first + 4] for first in range(before, layout.num_joints, 4)]
        assert [finger[0].split("_")[0] for finger in fingers][:4] == ["thumb", "index", "middle", "ring"]
        for first, finger in zip(range(before, layout.num_joints, 4), fingers, strict=True):
            assert len({joint.split("_")[0] for joint in finger}) == 1
            assert finger[-1].endswith("tip")
            assert [layout.parents[joint] for joint in range(first + 1, first + 4)] == [first, first + 1, first + 2]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_a_layout_is_named_after_its_file_and_its_joints(layout: Layout) -> None:
    assert layout.name in BUILT_IN
    assert layout.name.endswith(str(layout.num_joints))
    assert parse_layout(layout_toml(layout)) == layout


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_parents_form_a_tree(layout: Layout) -> None:
    assert len(layout.edges) == layout.num_joints - 1
    for joint in range(layout.num_joints):
        seen = {joint}
        while layout.parents[joint] != joint:
            joint = layout.parents[joint]
            assert joint not in seen
            seen.add(joint)
        assert joint == layout.root


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_flips_mirror_joints_bones_and_parts(layout: Layout) -> None:
    parts = {frozenset(joints) for joints in layout.parts.values()}
    for joint, mirrored in enumerate(layout.flips):
        assert layout.flips[mirrored] == joint
        assert layout.flips[layout.parents[joint]] == layout.parents[mirrored]
        swapped = layout.joints[joint].replace("left", "L").replace("right", "left").replace("L", "right")
        if not swapped.startswith("face_"):
            assert layout.joints[mirrored] == swapped
    for joints in parts:
        assert frozenset(layout.flips[joint] for joint in joints) in parts
    assert (layout.flips == tuple(range(layout.num_joints))) == (layout.name in ONE_HAND)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_parts_hold_every_joint_once_and_are_connected(layout: Layout) -> None:
    assert sorted(joint for joints in layout.parts.values() for joint in joints) == list(range(layout.num_joints))
    assert 5 <= layout.num_parts <= MAX_PARTS
    assert layout.num_parts == 5 or layout.name == "coco_wholebody133"
    for part, joints in layout.parts.items():
        if part in ("trunk", "head"):
            continue  # shoulders and hips hang on a head where no joint is between them
        above = {layout.parents[joint] for joint in joints if layout.parents[joint] not in joints} | (
            {layout.root} if layout.root in joints else set()
        )
        assert len(above) == 1, f"{part}: a limb hangs on one joint"


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_a_layout_declares_its_dimensions(layout: Layout) -> None:
    assert layout.dimensions in ((2,), (3,), (2, 3))
    for dimension in layout.dimensions:
        assert layout.wrong_dimension(dimension, scores=False) is None
        assert layout.wrong_dimension(dimension + 1, scores=True) is None
        axis, sign = layout.upward(dimension)
        assert axis in range(1, dimension)
        assert sign in (1, -1)
    wrong = str(layout.wrong_dimension(4, scores=False))
    assert f"layout '{layout.name}' is for " in wrong
    assert wrong.endswith("set dimensions = [4] and give the copy (--layout FILE)")


def test_skeletons_of_as_many_joints_differ_in_their_order() -> None:
    """Those of equal joints are the same skeleton under the name of its data set."""
    same = [("ntu25", "pku25"), ("coco17", "uav17"), ("kinect20", "ucla20")]
    for one, other in combinations(BUILT_IN, 2):
        assert (LAYOUTS[one].joints == LAYOUTS[other].joints) == ((one, other) in same)
