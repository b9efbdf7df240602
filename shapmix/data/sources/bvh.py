"""Reader of BVH motion capture (`.bvh`), one file per clip: joint positions by forward kinematics.

The hierarchy gives the skeleton: joints in the order of the file, without end sites, which have no motion of their own. The layout
is built from it, see `hierarchy_layout`; with `layout`, its joints are picked by name. Every file must have the same hierarchy.

Rotations are in degrees and multiplied in the order of the channels, so that `Zrotation Xrotation Yrotation` is Rz Rx Ry on a
column. Position channels replace the joint's offset. Lengths stay in the file's unit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import NoReturn

import numpy as np

from shapmix.data.sources.bounded import LARGEST_CLIP, read_file, show
from shapmix.data.sources.pose_clips import Clip, PoseFiles, checked_pose
from shapmix.data.sources.registry import source
from shapmix.data.sources.tracks import Frame
from shapmix.process.choices import nearest
from shapmix.process.errors import DataError
from shapmix.skeleton.layout import MAX_PARTS, MIN_PARTS, MOST_JOINTS, Layout, load_layout

CHANNELS = ("xposition", "yposition", "zposition", "xrotation", "yrotation", "zrotation")
REPAIR = "export the file again"

_LEFT_RIGHT = (
    re.compile(r"(?P<side>left|right)", re.IGNORECASE),
    re.compile(r"(?:^|[:_. ])(?P<side>[lLrR])(?=[A-Z_. ])"),
    re.compile(r"[_. ](?P<side>[lLrR])$"),
)
_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l"}


@dataclass
class Hierarchy:
    """Joints in the order of the file: names, parents (the root is its own), offsets, and channels of the motion's columns."""

    names: list[str] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    offsets: list[tuple[float, ...]] = field(default_factory=list)
    channels: list[list[str]] = field(default_factory=list)

    @property
    def columns(self) -> int:
        """Numbers per frame."""
        return sum(map(len, self.channels))


class _Lines:
    """The lines of a file that hold something, braces apart, with the number of the current one."""

    def __init__(self, text: str, file: Path) -> None:
        self._lines = iter(enumerate(text.splitlines(), start=1))
        self._left: list[str] = []
        self.number, self.file = 0, file

    def next(self) -> str:
        """The next piece; an error at the end of the file."""
        while not self._left:
            self.number, line = next(self._lines, (self.number, None))
            if line is None:
                self.fail("the file ends here")
            self._left = [piece for piece in (part.strip() for part in re.split(r"([{}])", line)) if piece]
        return self._left.pop(0)

    def expect(self, wanted: str) -> str:
        """The rest of a line that begins with the word `wanted`."""
        piece = self.next()
        word, _, rest = piece.partition(" ")
        if word.upper() != wanted:
            self.fail(f"{show(piece)} instead of {wanted}")
        return rest.strip()

    def rest(self) -> Iterator[tuple[int, str]]:
        """The lines that follow, with their numbers."""
        return self._lines

    def fail(self, reason: str) -> NoReturn:
        raise DataError(f"{self.file}, line {self.number}: {reason}; {REPAIR}")


def read_bvh(content: bytes, file: Path) -> tuple[Hierarchy, np.ndarray]:
    """The hierarchy, and the motion [T, columns] float64.

    Raises:
        DataError: not BVH, or damaged; the message names the line.
    """
    lines = _Lines(content.decode("utf-8", "replace").replace("\t", " "), file)
    lines.expect("HIERARCHY")
    hierarchy = _read_hierarchy(lines)
    words = lines.next().replace(":", " ").split()
    if len(words) != 2 or words[0].lower() != "frames" or not words[1].isdecimal():
        lines.fail(f"{show(' '.join(words))} instead of 'Frames: N'")
    frames = int(words[1][:12])
    if not lines.next().lower().startswith("frame time"):
        lines.fail("no 'Frame Time:'")
    if frames * max(hierarchy.columns, 3 * len(hierarchy.names)) * 8 > LARGEST_CLIP:
        lines.fail(f"{frames} frames of {len(hierarchy.names)} joints take more than {LARGEST_CLIP} bytes")
    motion = np.empty((frames, hierarchy.columns))
    row = 0
    for number, line in lines.rest():
        if not (words := line.split()):
            continue
        lines.number = number
        if row == frames or len(words) != hierarchy.columns:
            lines.fail(f"frame {row} has {len(words)} numbers, expected {frames} frames of {hierarchy.columns}")
        try:
            motion[row] = words
        except ValueError as error:
            lines.fail(f"frame {row}: {error}")
        if not np.isfinite(motion[row]).all():
            lines.fail(f"frame {row} has a number that is not finite")
        row += 1
    if row < frames:
        lines.fail(f"the file ends after {row} of {frames} frames")
    return hierarchy, motion


def _read_hierarchy(lines: _Lines) -> Hierarchy:
    """The joints up to the line MOTION."""
    found = Hierarchy()
    above: list[int] = []  # joints whose braces are open; -1 for an end site
    name = lines.expect("ROOT")
    while True:
        if name in found.names or not name:
            lines.fail(f"joint {show(name)} has no name of its own")
        if len(found.names) == MOST_JOINTS:
            lines.fail(f"more than {MOST_JOINTS} joints")
        found.parents.append(above[-1] if above else len(found.names))
        above.append(len(found.names))
        found.names.append(name)
        found.channels.append([])
        _open_joint(lines, found)
        while True:
            piece = lines.next()
            word = piece.split(" ")[0].upper()
            if word == "JOINT":
                name = piece[len(word) :].strip()
                break
            if word == "END":  # an end site
                if lines.next() != "{":
                    lines.fail("no '{' after the end site")
                _offset(lines)
                if lines.next() != "}":
                    lines.fail("no '}' after the end site")
            elif piece == "}":
                above.pop()
                if not above:
                    lines.expect("MOTION")
                    return found
            else:
                lines.fail(f"{show(piece)} instead of JOINT, End Site or '}}'")


def _open_joint(lines: _Lines, found: Hierarchy) -> None:
    """Brace, offset and channels of the joint that was added last."""
    if lines.next() != "{":
        lines.fail(f"no '{{' after joint '{found.names[-1]}'")
    found.offsets.append(_offset(lines))
    count, *channels = [*lines.expect("CHANNELS").split(), ""][: 1 + 6 + 1]
    channels = [channel.lower() for channel in channels if channel]
    if count != str(len(channels)) or not set(channels) <= set(CHANNELS) or len(set(channels)) != len(channels):
        lines.fail(f"joint '{found.names[-1]}': the channels are not {show(count)} of {', '.join(CHANNELS)}")
    found.channels[-1] = channels


def _offset(lines: _Lines) -> tuple[float, ...]:
    words = lines.expect("OFFSET").split()
    try:
        offset = tuple(map(float, words))
    except ValueError:
        offset = ()
    if len(offset) != 3 or not np.isfinite(offset).all():
        lines.fail(f"the offset is {show(' '.join(words))}, not three numbers")
    return offset


def positions(hierarchy: Hierarchy, motion: np.ndarray) -> np.ndarray:
    """Joint positions [T, V, 3] float64 from the motion [T, columns], by forward kinematics."""
    frames = len(motion)
    places = np.empty((frames, len(hierarchy.names), 3))
    turned = np.empty((len(hierarchy.names), frames, 3, 3))
    column = 0
    for joint, (parent, channels) in enumerate(zip(hierarchy.parents, hierarchy.channels, strict=True)):
        local = np.tile(np.array(hierarchy.offsets[joint]), (frames, 1))
        rotation = np.broadcast_to(np.eye(3), (frames, 3, 3))
        for channel in channels:
            axis, values = CHANNELS.index(channel) % 3, motion[:, column]
            if channel.endswith("position"):
                local[:, axis] = values
            else:
                rotation = rotation @ _about(axis, np.radians(values))
            column += 1
        if parent == joint:
            places[:, joint], turned[joint] = local, rotation
        else:
            places[:, joint] = places[:, parent] + np.einsum("tij,tj->ti", turned[parent], local)
            turned[joint] = turned[parent] @ rotation
    return places


def _about(axis: int, angles: np.ndarray) -> np.ndarray:
    """Rotations [T, 3, 3] about an axis, counter-clockwise."""
    rotation = np.zeros((len(angles), 3, 3))
    rotation[:, axis, axis] = 1
    one, two = (axis + 1) % 3, (axis + 2) % 3
    cosine, sine = np.cos(angles), np.sin(angles)
    rotation[:, one, one], rotation[:, two, two] = cosine, cosine
    rotation[:, one, two], rotation[:, two, one] = -sine, sine
    return rotation


def hierarchy_layout(hierarchy: Hierarchy, where: Path) -> Layout:
    """The layout of a hierarchy whose joint names tell left from right.

    The trunk is every joint without a side. Each subtree that begins with a sided joint is a part of its own, named after that
    joint; a single joint is too small for that and stays in the trunk.

    Raises:
        DataError: fewer than `MIN_PARTS` or more than `MAX_PARTS` parts.
    """
    names, parents = hierarchy.names, hierarchy.parents
    limb_of: list[int | None] = []
    for joint, parent in enumerate(parents):
        above = limb_of[parent] if joint else None
        limb_of.append(above if above is not None else joint if _mirrored(names[joint]) else None)
    limbs = [limb for limb in dict.fromkeys(limb_of) if limb is not None and limb_of.count(limb) > 1]
    parts = {"trunk": tuple(joint for joint, limb in enumerate(limb_of) if limb not in limbs)}
    parts |= {names[limb]: tuple(joint for joint, one in enumerate(limb_of) if one == limb) for limb in limbs}
    parts = {part: joints for part, joints in parts.items() if joints}
    if not MIN_PARTS <= len(parts) <= MAX_PARTS:
        raise DataError(
            f"{where}: the joints' names give {len(parts)} body parts ({show(list(parts))}), a layout has {MIN_PARTS} to "
            f"{MAX_PARTS}; write a layout with these joints and give --layout"
        )
    index = {name: joint for joint, name in enumerate(names)}
    flips = tuple(index.get(_mirrored(name) or name, joint) for joint, name in enumerate(names))
    flips = tuple(other if flips[other] == joint else joint for joint, other in enumerate(flips))
    return Layout("bvh", tuple(names), tuple(parents), flips, parts, 0, dimensions=(3,))


def _mirrored(name: str) -> str | None:
    """The name of the joint on the other side; None if the name has no side."""
    for pattern in _LEFT_RIGHT:
        if match := pattern.search(name):
            side = match["side"]
            other = _OTHER[side.lower()]
            other = other.upper() if side.isupper() else other.capitalize() if side[0].isupper() else other
            return name[: match.start("side")] + other + name[match.end("side") :]
    return None


def _fits(path: Path) -> bool:
    if path.is_file():
        return path.suffix == ".bvh"
    return any(next(path.glob(f"{depth}*.bvh"), None) for depth in ("", "*/", "*/*/", "*/*/*/"))


@source("bvh", "BVH motion capture, one .bvh file per clip", fits=_fits, asks_layout=lambda path: True)
class Bvh(PoseFiles):
    """Clips of BVH files: one person, (x, y, z) in the file's unit."""

    endings = (".bvh",)
    scored = ()

    def __init__(self, path: Path, *, layout: str | None = None, people: int | None = None) -> None:
        self._given = None if layout is None else load_layout(layout)
        self._first: tuple[Hierarchy, Path] | None = None
        super().__init__(path, layout=layout, people=people)

    def is_frame(self, file: Path) -> bool:
        """A file holds a clip."""
        return False

    def frames(self, clip: Clip) -> Iterator[Frame]:
        """All frames of a file."""
        file = clip.files[0]
        hierarchy, motion = read_bvh(read_file(file, LARGEST_CLIP), file)
        chosen = self._chosen(hierarchy, file)
        for number, joints in enumerate(positions(hierarchy, motion)[:, chosen]):
            where = f"{file}: frame {number}"
            yield Frame(number, [checked_pose(joints, where, "0")], where)

    def _chosen(self, hierarchy: Hierarchy, file: Path) -> list[int]:
        """The joints of a clip: those of the given layout, else all, which must be those of the first file."""
        if self._given is not None:
            index = {name: joint for joint, name in enumerate(hierarchy.names)}
            for name in self._given.joints:
                if name not in index:
                    hint = nearest(name, index) or f"; it has {show(hierarchy.names)}"
                    raise DataError(f"{file}: has no joint '{name}' of layout '{self._given.name}'{hint}")
            return [index[name] for name in self._given.joints]
        first, of = self._first = self._first or (hierarchy, file)
        if (first.names, first.parents) != (hierarchy.names, hierarchy.parents):
            ours, theirs = zip(first.names, first.parents, strict=True), zip(hierarchy.names, hierarchy.parents, strict=True)
            joint = next(joint for joint, (one, other) in enumerate(zip_longest(ours, theirs)) if one != other)
            name = f"'{hierarchy.names[joint]}'" if joint < len(hierarchy.names) else "missing"
            raise DataError(
                f"{file}: joint {joint} is {name}, which differs from {of}; give --layout with the joints that all files have"
            )
        return list(range(len(hierarchy.names)))

    def _skeleton(self) -> str | Layout:
        assert self._first is not None, "the first pose has been read"
        return hierarchy_layout(*self._first)
