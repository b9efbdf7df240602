"""Places of the joints in a picture of a skeleton, which a layout does not have: a schematic body, seen from the front.

Joints with usual names stand where they are on a body or a hand; any others are fanned out beside their neighbours. The person's
left is on the right of the picture. Units are arbitrary: a body is 10 high.
"""

from __future__ import annotations

import re

import numpy as np

from shapmix.skeleton.doubts import side_of
from shapmix.skeleton.layout import Layout

_MIDDLE = {
    "pelvis": (0, 5.0), "hip": (0, 5.0), "mid_hip": (0, 5.0), "hip_centre": (0, 5.0), "hip_center": (0, 5.0), "root": (0, 5.0),
    "spine": (0, 6.2), "spine_mid": (0, 6.2), "torso": (0, 6.2), "spine1": (0, 5.6), "spine2": (0, 6.2), "spine3": (0, 6.8),
    "chest": (0, 6.8), "thorax": (0, 7.5), "spine_shoulder": (0, 7.5), "shoulder_centre": (0, 7.5), "shoulder_center": (0, 7.5),
    "neck": (0, 8.0), "neck_base": (0, 8.2), "nose": (0, 8.9), "head": (0, 9.8),
}  # fmt: skip
_LEFT = {
    "eye_inner": (0.25, 9.25), "eye": (0.45, 9.3), "eye_outer": (0.65, 9.25), "ear": (0.95, 9.0), "mouth": (0.25, 8.45),
    "collar": (0.5, 7.3), "shoulder": (1.2, 7.5), "elbow": (2.1, 6.2), "wrist": (2.8, 4.9), "hand": (3.1, 4.3),
    "hand_tip": (3.4, 3.7), "thumb": (2.6, 4.2), "index": (3.1, 4.0), "pinky": (3.4, 4.3),
    "hip": (0.7, 4.8), "knee": (0.85, 2.7), "ankle": (1.0, 0.7), "foot": (1.3, 0.1), "heel": (0.7, 0.2),
    "big_toe": (1.2, 0.0), "small_toe": (1.7, 0.1), "foot_index": (1.4, 0.0), "hand_root": (3.0, 4.5),
}  # fmt: skip
_FINGERS = {"thumb": 0, "index": 1, "forefinger": 1, "middle": 2, "ring": 3, "little": 4, "pinky": 4}
_FINGER = re.compile(rf"({'|'.join(_FINGERS)})_?(finger)?_?\w+")
_KNUCKLES = np.array([[1.0, 0.7], [0.9, 3.2], [0.3, 3.4], [-0.3, 3.3], [-0.9, 3.0]])  # the thumb is on the right
_ALONG = np.array([[0.65, 0.75], [0.12, 0.95], [0.03, 1.0], [-0.06, 0.95], [-0.16, 0.85]])  # a bone of each finger
_STEP, _SPREAD = 0.9, 0.6  # length and angle in radians between the bones of unknown joints


def rest_pose(layout: Layout) -> np.ndarray:
    """[V, 2] float64: x (to the person's left) and y (up) of every joint; pairs of `flips` are mirrored at x = 0."""
    places = np.full((layout.num_joints, 2), np.nan)
    for joint, name in enumerate(layout.joints):
        side, rest = side_of(name)
        known = (_MIDDLE if side is None else _LEFT).get(rest)
        if known is not None:
            places[joint] = np.multiply(known, (-1 if side == "right" else 1, 1))
    for joint, name in enumerate(layout.joints):
        if np.isnan(places[joint, 0]):
            places[joint] = _place_of_face(name) if name.startswith("face_") else _place_in_hand(layout, joint, places)
    if np.isnan(places).all():
        places[layout.root] = 0
    _fan_out(layout, places)
    mirrored = places[list(layout.flips)] * (-1, 1)
    paired = np.not_equal(layout.flips, np.arange(layout.num_joints))
    places[paired] = (places + mirrored)[paired] / 2
    return places


def _place_in_hand(layout: Layout, joint: int, places: np.ndarray) -> np.ndarray:
    """A joint of a finger, on the wrist's place or, of a hand alone, above the wrist at 0; NaN for others."""
    side, rest = side_of(layout.joints[joint])
    if side is None and rest in ("wrist", "palm"):
        return np.array([0.0, 0.0 if rest == "wrist" else 1.6])
    found = _FINGER.fullmatch(rest)
    if found is None:
        return np.full(2, np.nan)
    finger, along, walked = _FINGERS[found[1]], 0, layout.parents[joint]
    while side_of(layout.joints[walked])[1].startswith(found[1]):
        along, walked = along + 1, layout.parents[walked]
    place = _KNUCKLES[finger] + along * _ALONG[finger]
    if side is None:
        return place
    turned = 0.45 * place @ np.array([[-1, 0], [0.35, -1]])  # it hangs down at the end of the left arm, thumb inwards
    wrist = places[walked] if np.isfinite(places[walked]).all() else np.array([3.0, 4.5])
    return np.abs(wrist) * (1, 1) + turned if side == "left" else (np.abs(wrist) + turned) * (-1, 1)


def _place_of_face(name: str) -> np.ndarray:
    """A point of the 68 of a face, drawn above the key points of the head."""
    number = int(name.removeprefix("face_"))
    if number <= 16:  # jaw, from the person's right ear to the left one
        place = (-np.cos(np.pi * number / 16), 0.15 - 1.15 * np.sin(np.pi * number / 16))
    elif number <= 26:  # brows
        along = min(number - 17, 26 - number)
        place = (-0.8 + 0.15 * along, 0.55 + 0.12 * np.sin(np.pi * along / 4))
        place = place if number <= 21 else (-place[0], place[1])
    elif number <= 30:  # bridge of the nose
        place = (0.0, 0.35 - 0.14 * (number - 27))
    elif number <= 35:  # nostrils
        place = (0.1 * (number - 33), -0.24 + 0.03 * abs(number - 33))
    elif number <= 47:  # eyes, each from its corner on the person's right, over the upper lid
        angle = np.pi - np.pi / 3 * ((number - 36) % 6)
        place = ((-0.42 if number <= 41 else 0.42) + 0.19 * np.cos(angle), 0.28 + 0.09 * np.sin(angle))
    elif number <= 59:  # outer lip, from the corner on the person's right, over the upper lip
        angle = np.pi - np.pi / 6 * (number - 48)
        place = (0.4 * np.cos(angle), -0.55 + 0.2 * np.sin(angle))
    else:  # inner lip
        angle = np.pi - np.pi / 4 * (number - 60)
        place = (0.27 * np.cos(angle), -0.55 + 0.09 * np.sin(angle))
    return np.array(place) * 1.3 + (0, 11.0)


def _fan_out(layout: Layout, places: np.ndarray) -> None:
    """Places the joints that are NaN, each beside a neighbour that has a place, away from the neighbour's other bones."""
    neighbours: list[list[int]] = [[] for _ in layout.joints]
    for child, parent in layout.edges:
        neighbours[child].append(parent)
        neighbours[parent].append(child)
    queue = [joint for joint in range(layout.num_joints) if np.isfinite(places[joint, 0])]
    for joint in queue:  # grows during the iteration
        missing = [other for other in neighbours[joint] if np.isnan(places[other, 0])]
        missing.sort(key=lambda other: {"right": -1, "left": 1}.get(str(side_of(layout.joints[other])[0]), 0))
        settled = [places[other] - places[joint] for other in neighbours[joint] if np.isfinite(places[other, 0])]
        away = -np.sum(settled, axis=0)
        if settled and np.abs(away).max() > 1e-9:
            angles = np.arctan2(*away) + _SPREAD * (np.arange(len(missing)) - (len(missing) - 1) / 2)  # from straight up
        else:
            angles = 2 * np.pi * np.arange(len(missing)) / max(1, len(missing))
        steps = _STEP * np.stack([np.sin(angles), np.cos(angles)], 1)
        places[missing] = places[joint] + steps[np.argsort(steps[:, 0].round(9), kind="stable")]  # the left ones on the right
        queue += missing
