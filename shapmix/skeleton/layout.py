"""Skeleton layouts: joints, bones, left/right flips, body parts and their combinations.

Layouts are data, not code: built-in (`layouts/*.toml`) and custom layouts are read by the same function.
"""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from shapmix.process.choices import nearest
from shapmix.process.errors import ShapmixError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "layouts"
BUILT_IN = tuple(sorted(file.stem for file in FOLDER.glob("*.toml")))
UP = ("x", "-x", "y", "-y", "z", "-z")
MOST_DIMENSIONS = 4  # coordinates of a joint, without a score
MIN_PARTS, MAX_PARTS = 2, 8
MOST_JOINTS = 1024
LARGEST_FILE = 1 << 20  # characters of a layout file


class LayoutError(ShapmixError, ValueError):
    """An invalid layout; the message names the file, the joint or part, and what to change."""


@dataclass(frozen=True)
class Layout:
    """One skeleton, in 0-based joint indices.

    Attributes:
        name: compared with the layout of checkpoints and clip stores.
        joints: joint names, in the order of the V axis of clips.
        parents: parent joint of each joint; the root is its own parent.
        flips: for each joint, its counterpart when left and right are swapped.
        parts: part name -> joints; every joint is in exactly one part.
        centre: joint whose place in the first frame is the origin in the pipeline "frames"; others keep the coordinates.
        dimensions: numbers of coordinates, without a score, that clips of this skeleton have; empty for any.
        up: the axis that points up, with a minus sign if it points down; None for the usual one, see `upward`.
    """

    name: str
    joints: tuple[str, ...]
    parents: tuple[int, ...]
    flips: tuple[int, ...]
    parts: dict[str, tuple[int, ...]]
    centre: int
    dimensions: tuple[int, ...] = ()
    up: str | None = None

    @property
    def num_joints(self) -> int:
        return len(self.joints)

    @property
    def num_parts(self) -> int:
        return len(self.parts)

    @property
    def root(self) -> int:
        return next(joint for joint, parent in enumerate(self.parents) if joint == parent)

    def upward(self, dimension: int) -> tuple[int, int]:
        """Index and sign of the axis that points up in clips of so many coordinates (without a score).

        It is `up` if the clips have that axis. Otherwise y points down in two dimensions, as in an image, and up in three.
        """
        axis = "xyz".index(self.up[-1]) if self.up else dimension
        if self.up and axis < dimension:
            return axis, -1 if self.up.startswith("-") else 1
        return 1, -1 if dimension == 2 else 1

    def sideways(self, dimension: int) -> int:
        """Index of the left-right axis, which a mirrored clip negates: x, or y where x points up; see `upward`.

        With a third axis there are two horizontal ones, and mirroring along either gives the same poses up to a turn about the
        vertical.
        """
        return 1 if self.upward(dimension)[0] == 0 and dimension > 1 else 0

    def wrong_dimension(self, coordinates: int, *, scores: bool, declare: str = "declare it (--scores)") -> str | None:
        """Why clips of so many coordinates, the last a score with `scores`, do not fit, and what to do; None if they fit.

        `declare` says how the data would say that its last coordinate is a score.
        """
        dimension = coordinates - int(scores)
        if not self.dimensions or dimension in self.dimensions:
            return None
        has = f"{coordinates} coordinates" if coordinates != 1 else "one coordinate"
        has += ", the last a score," if scores else " and no score"
        wanted = " or ".join(map(str, self.dimensions))
        if not scores and dimension - 1 in self.dimensions:
            remedy = f"if the last one is a score, {declare}; otherwise "
        elif scores and coordinates in self.dimensions:
            remedy = "if the last one is not a score, omit --scores; otherwise "
        else:
            remedy = ""
        return (
            f"clips have {has} but layout '{self.name}' is for {wanted} coordinates: {remedy}choose another layout, or copy "
            f"{self.name}.toml, set dimensions = [{dimension}] and give the copy (--layout FILE)"
        )

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(child, parent) of every bone; the root has none."""
        return tuple((child, parent) for child, parent in enumerate(self.parents) if child != parent)

    @cached_property
    def part_of_joint(self) -> Tensor:
        """[V] int64: index of the part of each joint."""
        part = torch.empty(self.num_joints, dtype=torch.int64)
        for index, joints in enumerate(self.parts.values()):
            part[list(joints)] = index
        return part

    @cached_property
    def joint_counts(self) -> Tensor:
        """[P] int64: number of joints in each part."""
        return torch.tensor([len(joints) for joints in self.parts.values()])

    @cached_property
    def combination_bits(self) -> tuple[int, ...]:
        """Q bit sets of parts, the columns of every saliency table (bit p = part p).

        All sets of half the parts, rounded down and up, smaller sets first, each size in lexicographic order: for five parts the
        10 pairs and 10 triples of the paper. The complement of a combination is also a combination.
        """
        sizes = sorted({self.num_parts // 2, -(-self.num_parts // 2)})
        return tuple(sum(1 << part for part in chosen) for size in sizes for chosen in combinations(range(self.num_parts), size))

    @cached_property
    def combinations(self) -> Tensor:
        """[Q] int64: `combination_bits`."""
        return torch.tensor(self.combination_bits)

    @property
    def all_parts(self) -> int:
        """Bit set of every part."""
        return (1 << self.num_parts) - 1

    def joints_in(self, coalitions: Tensor) -> Tensor:
        """Number of joints in each bit set of parts: any shape int64 -> same shape int64."""
        member = (coalitions.unsqueeze(-1) >> torch.arange(self.num_parts, device=coalitions.device)) & 1
        return (member * self.joint_counts.to(coalitions.device)).sum(-1)

    def part_names(self, coalition: int) -> str:
        """`"trunk+left_arm"` for a bit set of parts."""
        return "+".join(name for part, name in enumerate(self.parts) if coalition >> part & 1) or "none"

    def adjacency(self) -> np.ndarray:
        """[3, V, V] float32: initial graphs of CTR-GCN (self, inward, outward), each divided by its column sums."""
        inward = np.zeros((self.num_joints, self.num_joints), dtype=np.float32)
        for child, parent in self.edges:
            inward[parent, child] = 1.0

        def by_column(matrix: np.ndarray) -> np.ndarray:
            total = matrix.sum(0)
            return matrix / np.where(total > 0, total, 1.0)

        return np.stack([np.eye(self.num_joints, dtype=np.float32), by_column(inward), by_column(inward.T)])


def load_layout(source: str | Path) -> Layout:
    """Loads a built-in layout by name, or a custom layout from a TOML file in the format of `shapmix/skeleton/layouts/*.toml`.

    Raises:
        LayoutError: unknown name, unreadable file, or an invalid layout.
    """
    return parse_layout(layout_text(source), where=str(layout_file(source)))


def layout_file(source: str | Path) -> Path:
    """Path of the TOML file of a built-in or custom layout.

    Raises:
        LayoutError: neither a built-in name nor a `.toml` file.
    """
    if str(source) in BUILT_IN:
        return FOLDER / f"{source}.toml"
    if Path(source).suffix != ".toml":
        raise LayoutError(
            f"unknown layout '{source}'{nearest(str(source), BUILT_IN)}: give one of {', '.join(BUILT_IN)} or a .toml file"
        )
    return Path(source)


def layout_text(source: str | Path | Layout) -> str:
    """Text of the TOML file of a layout, given by name, by file, or as an object.

    Raises:
        LayoutError: unknown name or unreadable file.
    """
    if isinstance(source, Layout):
        return layout_toml(source)
    path = layout_file(source)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise LayoutError(f"{path}: cannot read the layout: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LayoutError(f"{path}: cannot read the layout: it is not UTF-8 text ({error})") from error
    if len(text) > LARGEST_FILE:
        raise LayoutError(f"{path}: more than {LARGEST_FILE} characters; a layout has a few thousand")
    return text


def parse_layout(text: str, where: str = "layout") -> Layout:
    """Parses and validates the text of a layout's TOML file; `where` begins every error message.

    Raises:
        LayoutError: not TOML, unknown, missing or mistyped keys, or an inconsistent skeleton.
    """
    data = _read_toml(text, where)
    _check_kinds(where, data)
    joints = tuple(data["joints"])
    if len(joints) > MOST_JOINTS:
        raise LayoutError(f"{where}: {len(joints)} joints; a layout has at most {MOST_JOINTS}")
    index = {joint: number for number, joint in enumerate(joints)}
    if len(index) != len(joints):
        twice = next(joint for joint in joints if joints.count(joint) > 1)
        raise LayoutError(f"{where}: joint '{twice}' is listed twice in 'joints'")

    def joint_index(name: object, place: str) -> int:
        if name not in index:
            raise LayoutError(f"{where}: {place} names the unknown joint '{name}'{nearest(str(name), joints)}")
        return index[str(name)]

    parents = list(range(len(joints)))
    for child, parent in data["parents"].items():
        parents[joint_index(child, "[parents]")] = joint_index(parent, f"[parents] {child}")
    _check_tree(where, joints, parents)

    flips = list(range(len(joints)))
    for pair in data.get("flips", []):
        if len(pair) != 2:
            raise LayoutError(f"{where}: 'flips' contains {pair}; each entry must be a pair of joints")
        left, right = (joint_index(name, "'flips'") for name in pair)
        if left == right or flips[left] != left or flips[right] != right:
            raise LayoutError(f"{where}: 'flips' uses a joint of {pair} twice")
        flips[left], flips[right] = right, left

    parts = {part: tuple(joint_index(name, f"[parts] {part}") for name in names) for part, names in data["parts"].items()}
    _check_parts(where, joints, parts)
    centre = joint_index(data["centre"], "'centre'")
    dimensions = tuple(data.get("dimensions", ()))
    return Layout(str(data["name"]), joints, tuple(parents), tuple(flips), parts, centre, dimensions, data.get("up"))


def _read_toml(text: str, where: str) -> dict[str, Any]:
    """The tables of a layout's text, which has all required keys and no others."""
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise LayoutError(f"{where}: not valid TOML: nested too deeply") from None
    except ValueError as error:  # includes TOMLDecodeError and numbers with too many digits
        raise LayoutError(f"{where}: not valid TOML: {error}") from error
    required, optional = ("name", "joints", "centre", "parents", "parts"), ("flips", "dimensions", "up")
    known = (*required, *optional)
    for key in data:
        if key not in known:
            raise LayoutError(f"{where}: unknown key '{key}'{nearest(key, known)}")
    for key in required:
        if key not in data:
            raise LayoutError(f"{where}: key '{key}' is missing")
    return data


def layout_toml(layout: Layout) -> str:
    """Serialises a layout as TOML; the inverse of `parse_layout`."""

    def text(value: object) -> str:
        return json.dumps(value, ensure_ascii=False)  # JSON strings and lists of strings are valid TOML

    def names(joints: Iterable[int]) -> list[str]:
        return [layout.joints[joint] for joint in joints]

    flips = [names((left, right)) for left, right in enumerate(layout.flips) if left < right]
    lines = [f"name = {text(layout.name)}", f"centre = {text(layout.joints[layout.centre])}"]
    lines += [f"dimensions = {text(list(layout.dimensions))}"] if layout.dimensions else []
    lines += [f"up = {text(layout.up)}"] if layout.up else []
    lines += [f"joints = {text(list(layout.joints))}", f"flips = {text(flips)}", "[parents]"]
    lines += [f"{text(child)} = {text(parent)}" for child, parent in map(names, layout.edges)]
    lines += ["[parts]", *(f"{text(part)} = {text(names(joints))}" for part, joints in layout.parts.items())]
    return "\n".join(lines) + "\n"


def _check_kinds(where: str, data: dict[str, object]) -> None:
    """Checks the types: names are printable text, lists are lists of names, tables are tables."""

    def names(value: object) -> bool:
        return isinstance(value, list) and all(map(name, value))

    def name(value: object) -> bool:
        return isinstance(value, str) and value.isprintable() and value != ""

    def fail(key: str, wanted: str) -> NoReturn:
        raise LayoutError(f"{where}: '{key}' is {reprlib.repr(data[key])}, not {wanted}")

    for key in ("name", "centre"):
        if not name(data[key]):
            fail(key, "a name (one line of text)")
    if not names(data["joints"]):
        fail("joints", "a list of names")
    if "up" in data and data["up"] not in UP:
        fail("up", f"one of {', '.join(UP)}")
    dimensions = data.get("dimensions", [2])
    valid = range(1, MOST_DIMENSIONS + 1)
    if not isinstance(dimensions, list) or not dimensions or not all(type(one) is int and one in valid for one in dimensions):
        fail("dimensions", f"a list of numbers of coordinates from 1 to {MOST_DIMENSIONS}, such as [2] or [2, 3]")
    flips = data.get("flips", [])
    if not isinstance(flips, list) or not all(map(names, flips)):
        fail("flips", "a list of pairs of joints")
    if not isinstance(data["parents"], dict) or not all(map(name, data["parents"].values())):
        fail("parents", "a table of joints and their parents")
    parts = data["parts"]
    if not isinstance(parts, dict) or not all(map(name, parts)) or not all(map(names, parts.values())):
        fail("parts", "a table of parts and lists of their joints")


def _check_tree(where: str, joints: tuple[str, ...], parents: list[int]) -> None:
    roots = [joints[joint] for joint, parent in enumerate(parents) if joint == parent]
    if len(roots) != 1:
        raise LayoutError(
            f"{where}: the bones must form one tree; exactly one joint, the root, must be missing from [parents], "
            f"but {', '.join(roots) + ' are' if roots else 'none is'} missing"
        )
    for joint in range(len(parents)):
        walked = joint
        for _ in range(len(parents)):
            walked = parents[walked]
        if parents[walked] != walked:
            raise LayoutError(f"{where}: the bones above joint '{joints[joint]}' form a cycle; they must form a tree")


def _check_parts(where: str, joints: tuple[str, ...], parts: dict[str, tuple[int, ...]]) -> None:
    if not MIN_PARTS <= len(parts) <= MAX_PARTS:
        raise LayoutError(f"{where}: {len(parts)} parts; a layout has {MIN_PARTS} to {MAX_PARTS}")
    holder: dict[int, str] = {}
    for part, members in parts.items():
        if not members:
            raise LayoutError(f"{where}: part '{part}' has no joints")
        for joint in members:
            if joint in holder:
                raise LayoutError(
                    f"{where}: joint '{joints[joint]}' is in both '{holder[joint]}' and '{part}'; it must be in one part"
                )
            holder[joint] = part
    missing = [name for joint, name in enumerate(joints) if joint not in holder]
    if missing:
        raise LayoutError(f"{where}: no part has joint {', '.join(repr(name) for name in missing)}; every joint must be in one")
