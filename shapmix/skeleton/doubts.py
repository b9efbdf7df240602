"""Doubts about a layout that is valid: mistakes that only its names, its symmetry or a built-in layout give away."""

from __future__ import annotations

import re
from collections.abc import Iterator

from shapmix.skeleton.layout import BUILT_IN, Layout, load_layout

_SIDED = re.compile(  # left_hand, l_hand, L_Hand, LHand, leftHand, hand_left, hand_l
    r"(?P<front>left|right|[lr](?=_)|[lr](?-i:(?=[A-Z])))_?(?P<after>.+)|(?P<before>.+)_(?P<end>left|right|[lr])", re.IGNORECASE
)


def side_of(joint: str) -> tuple[str | None, str]:
    """Side (`left`, `right` or None) and the rest of a joint's name, in lower case with underscores."""
    found = _SIDED.fullmatch(joint)
    rest = joint if found is None else found["after"] or found["before"]
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", rest).lower()
    if found is None:
        return None, plain
    return ("left" if (found["front"] or found["end"]).lower().startswith("l") else "right"), plain


def doubts(layout: Layout) -> list[str]:
    """What looks like a mistake in a valid layout, one sentence each, with the joint or part; empty if nothing does."""
    found = [] if layout.dimensions else [_NO_DIMENSIONS]
    found += [*_unpaired(layout), *_crooked(layout), *_asymmetric(layout), *_scattered(layout), *_reordered(layout)]
    centre = layout.joints[layout.centre]
    if layout.flips[layout.centre] != layout.centre:
        swapped = layout.joints[layout.flips[layout.centre]]
        found.append(f"'centre' is '{centre}', which 'flips' swaps with '{swapped}'; clips are usually centred on the trunk")
    return found


_NO_DIMENSIONS = (
    "no 'dimensions': clips of any number of coordinates are accepted; write dimensions = [2], [3] or [2, 3] (without the score)"
)


def _unpaired(layout: Layout) -> Iterator[str]:
    """Joints whose names are left and right of each other, but which are no pair."""
    sides = {side_of(joint): number for number, joint in enumerate(layout.joints)}
    for (side, rest), number in sides.items():
        other = sides.get(("right", rest))
        if side == "left" and other is not None and (layout.flips[number] == number or layout.flips[other] == other):
            yield f"'{layout.joints[number]}' and '{layout.joints[other]}' are not a pair in 'flips'"


def _crooked(layout: Layout) -> Iterator[str]:
    """Pairs whose names say otherwise."""
    for joint, swapped in enumerate(layout.flips):
        (side, rest), (other, other_rest) = side_of(layout.joints[joint]), side_of(layout.joints[swapped])
        if joint < swapped and None not in (side, other) and (side == other or rest != other_rest):
            yield f"'flips' swaps '{layout.joints[joint]}' and '{layout.joints[swapped]}', which are no left and right of one joint"


def _asymmetric(layout: Layout) -> Iterator[str]:
    """Bones and parts without a mirror image."""
    if layout.flips == tuple(range(layout.num_joints)):
        return
    for child, parent in layout.edges:
        mirrored = layout.flips[child]
        if layout.parents[mirrored] != layout.flips[parent] and child <= mirrored:
            yield (
                f"the bone from '{layout.joints[child]}' to '{layout.joints[parent]}' has no mirror image: the parent of "
                f"'{layout.joints[mirrored]}' is '{layout.joints[layout.parents[mirrored]]}'"
            )
    parts = {frozenset(joints): part for part, joints in layout.parts.items()}
    for joints, part in parts.items():
        if frozenset(layout.flips[joint] for joint in joints) not in parts:
            yield f"part '{part}' has no mirror image: 'flips' maps its joints to those of no part"


def _scattered(layout: Layout) -> Iterator[str]:
    """Parts in several pieces, other than limbs that hang on one joint (fingers) or on joints of one part."""
    for part, joints in layout.parts.items():
        pieces = [joint for joint in joints if layout.parents[joint] not in joints or layout.parents[joint] == joint]
        hang_on = {layout.parents[joint] for joint in pieces}
        if len(pieces) > 1 and len(hang_on) > 1:
            names = "; ".join(f"'{layout.joints[joint]}'" for joint in pieces)
            yield f"part '{part}' is in {len(pieces)} pieces: {names}; a part is usually connected"


def _reordered(layout: Layout) -> Iterator[str]:
    """The joints of a built-in layout in a different order."""
    if layout.name in BUILT_IN:
        if load_layout(layout.name).joints != layout.joints:
            yield f"the name is that of a built-in layout, whose joints differ; choose another than '{layout.name}'"
        return
    same: dict[int, list[str]] = {}
    for name in BUILT_IN:
        known = load_layout(name)
        if known.joints != layout.joints and set(known.joints) == set(layout.joints):
            first = next(at for at, (one, other) in enumerate(zip(known.joints, layout.joints, strict=True)) if one != other)
            same.setdefault(first, []).append(f"'{name}'")
    if same:
        first = max(same)
        names = " and ".join(same[first])
        yield f"the joints are those of {names} in a different order, from joint {first} on; is the order that of the arrays?"
