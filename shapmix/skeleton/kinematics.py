"""Forward kinematics of the `ntu25` skeleton: rest pose, body proportions, and poses from joint angles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shapmix.skeleton.layout import Layout, load_layout

# Rest pose: standing, 1.7 m tall, pelvis at the origin; x to the person's left, y up, z forward, in metres.
_MIDDLE = {
    "pelvis": (0.0, 0.0, 0.0), "spine_mid": (0.0, 0.28, 0.0), "spine_shoulder": (0.0, 0.51, 0.0),
    "neck": (0.0, 0.59, 0.0), "head": (0.0, 0.75, 0.02),
}  # fmt: skip
_LEFT = {
    "shoulder": (0.17, 0.47, 0.0), "elbow": (0.20, 0.20, 0.0), "wrist": (0.21, -0.04, 0.02), "hand": (0.21, -0.11, 0.03),
    "hand_tip": (0.21, -0.19, 0.04), "thumb": (0.18, -0.14, 0.07),
    "hip": (0.08, -0.03, 0.0), "knee": (0.10, -0.43, 0.0), "ankle": (0.10, -0.82, -0.01), "foot": (0.11, -0.88, 0.12),
}  # fmt: skip
REST_POSE = _MIDDLE | {
    f"{side}_{joint}": (sign * x, y, z) for side, sign in (("left", 1.0), ("right", -1.0)) for joint, (x, y, z) in _LEFT.items()
}

LAYOUT: Layout = load_layout("ntu25")
ROOT = LAYOUT.joints.index("pelvis")
JOINT = {name: number for number, name in enumerate(LAYOUT.joints)}


def _chain() -> list[tuple[int, int]]:
    """(joint, parent) pairs in topological order, for the layout's tree rooted at the pelvis."""
    neighbours: dict[int, list[int]] = {joint: [] for joint in range(LAYOUT.num_joints)}
    for child, parent in LAYOUT.edges:
        neighbours[child].append(parent)
        neighbours[parent].append(child)
    chain = [(ROOT, ROOT)]
    for joint, parent in chain:  # grows during the iteration
        chain += [(further, joint) for further in neighbours[joint] if further != parent]
    return chain[1:]


CHAIN = _chain()


@dataclass(frozen=True)
class Body:
    """Proportions of a person: `bones` [V, 3] metres, the vector from the parent to each joint (zero for the root)."""

    bones: np.ndarray

    @staticmethod
    def draw(rng: np.random.Generator) -> Body:
        """Draws a random height, build, and lengths of arms, legs and trunk."""
        height = rng.normal(1.0, 0.06)
        share = dict(zip(("arm", "leg", "trunk"), rng.normal(1.0, 0.05, 3), strict=True))
        width = rng.normal(1.0, 0.06)
        bones = np.zeros((LAYOUT.num_joints, 3))
        for joint, parent in CHAIN:
            bones[joint] = np.subtract(REST_POSE[LAYOUT.joints[joint]], REST_POSE[LAYOUT.joints[parent]])
        for part, joints in LAYOUT.parts.items():
            bones[list(joints)] *= height * share[part.split("_")[-1]]
        bones[:, 0] *= width
        return Body(bones)


def rotations(angles: np.ndarray) -> np.ndarray:
    """[..., 3] radians about x, y, z -> [..., 3, 3] Rz Ry Rx, right-handed, for column vectors."""
    (cx, cy, cz), (sx, sy, sz) = np.moveaxis(np.cos(angles), -1, 0), np.moveaxis(np.sin(angles), -1, 0)
    entries = [
        *(cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx),
        *(sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx),
        *(-sy, cy * sx, cy * cx),
    ]
    return np.stack(entries, -1).reshape(*angles.shape[:-1], 3, 3)


def pose(body: Body, angles: np.ndarray) -> np.ndarray:
    """[T, V, 3] joint positions in metres, pelvis at the origin, from angles [T, V, 3] in radians.

    The angles of a joint rotate the bone that ends in it and all its descendants: those of `left_elbow` swing the upper arm, those
    of `left_wrist` bend the elbow, those of `pelvis` rotate the whole body.
    """
    turned = np.flatnonzero(angles.any((0, 2))).tolist()  # about half of the joints: hands, feet and hips follow their parent
    local = dict(zip(turned, rotations(angles[:, turned].swapaxes(0, 1)), strict=True))
    world = {ROOT: local.get(ROOT, np.broadcast_to(np.eye(3), (len(angles), 3, 3)))}
    position = np.zeros(angles.shape)
    for joint, parent in CHAIN:
        world[joint] = world[parent] @ local[joint] if joint in local else world[parent]
        position[:, joint] = position[:, parent] + world[joint] @ body.bones[joint]
    return position
