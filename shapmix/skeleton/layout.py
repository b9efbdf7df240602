"""Skeleton layouts: joints, bones, left/right flips, body parts and the part combinations that follow from them.

A layout is data, not code: the built-in ones (`layouts/*.toml`) and a user's own are read by the same function.
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
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from shapmix.process.choices import nearest
from shapmix.process.errors import ShapmixError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BUILT_IN = ("ntu25", "coco17", "ucla20")
MIN_PARTS, MAX_PARTS = 2, 8
MOST_JOINTS = 1024
LARGEST_FILE = 1 << 20  # bytes of a layout's text


class LayoutError(ShapmixError, ValueError):
    """A layout that contradicts itself; the message names the file, the joint or part, and what to change."""


@dataclass(frozen=True)
class Layout:
    """One skeleton, in 0-based joint indices.

    Attributes:
        name: what checkpoints and clip stores are checked against.
        joints: joint names; their order is the V axis of every clip.
        parents: parent joint of each joint; the root is its own parent.
        flips: for each joint, the joint it becomes when left and right change sides.
        parts: part name -> joints; every joint is in exactly one part.
        centre: the joint that clips are centred on.
    """

    name: str
    joints: tuple[str, ...]
    parents: tuple[int, ...]
    flips: tuple[int, ...]
    parts: dict[str, tuple[int, ...]]
    centre: int

    @property
    def num_joints(self) -> int:
        return len(self.joints)

    @property
    def num_parts(self) -> int:
        return len(self.parts)

    @property
    def root(self) -> int:
        return next(joint for joint, parent in enumerate(self.parents) if joint == parent)

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(child, parent) of every bone; the root has none."""
        return tuple((child, parent) for child, parent in enumerate(self.parents) if child != parent)

    @cached_property
    def part_of_joint(self) -> Tensor:
        """[V] int64: index of the part that holds each joint."""
        part = torch.empty(self.num_joints, dtype=torch.int64)
        for index, joints in enumerate(self.parts.values()):
            part[list(joints)] = index
        return part

    @cached_property
    def joint_counts(self) -> Tensor:
        """[P] int64: joints in each part."""
        return torch.tensor([len(joints) for joints in self.parts.values()])

    @cached_property
    def combination_bits(self) -> tuple[int, ...]:
        """Q bit sets of parts, the columns of every saliency table (bit p = part p).

        The sets of half the parts, rounded down and up, the smaller size first, each size in lexicographic order: with
        five parts the 10 pairs and the 10 triples of the paper. The complement of a combination is a combination.
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
        """Joints in each bit set of parts: any shape int64 -> same shape int64."""
        member = (coalitions.unsqueeze(-1) >> torch.arange(self.num_parts, device=coalitions.device)) & 1
        return (member * self.joint_counts.to(coalitions.device)).sum(-1)

    def part_names(self, coalition: int) -> str:
        """`"trunk+left_arm"` for a bit set of parts."""
        return "+".join(name for part, name in enumerate(self.parts) if coalition >> part & 1) or "none"

    def adjacency(self) -> np.ndarray:
        """[3, V, V] float32: CTR-GCN's start of its graphs (self, inward, outward), each divided by its column sums."""
        inward = np.zeros((self.num_joints, self.num_joints), dtype=np.float32)
        for child, parent in self.edges:
            inward[parent, child] = 1.0

        def by_column(matrix: np.ndarray) -> np.ndarray:
            total = matrix.sum(0)
            return matrix / np.where(total > 0, total, 1.0)

        return np.stack([np.eye(self.num_joints, dtype=np.float32), by_column(inward), by_column(inward.T)])


def load_layout(source: str | Path) -> Layout:
    """A built-in layout by its name, or a user's own from a TOML file of the same form as `shapmix/skeleton/layouts/*.toml`.

    Raises:
        LayoutError: unknown name, unreadable file, or a layout that fails its checks.
    """
    return parse_layout(layout_text(source), where=str(layout_file(source)))


def layout_file(source: str | Path) -> Path:
    """The TOML file of a built-in layout, or the path itself.

    Raises:
        LayoutError: neither a built-in name nor a `.toml` file's.
    """
    if isinstance(source, str) and source in BUILT_IN:
        return Path(__file__).parent / "layouts" / f"{source}.toml"
    if Path(source).suffix != ".toml":
        raise LayoutError(
            f"unknown layout '{source}'{nearest(str(source), BUILT_IN)}: give one of {', '.join(BUILT_IN)} or a .toml file"
        )
    return Path(source)


def layout_text(source: str | Path) -> str:
    """The text of a layout's TOML file.

    Raises:
        LayoutError: unknown name or unreadable file.
    """
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
    """Checks and builds a layout from the text of its TOML file; `where` begins every error message.

    Raises:
        LayoutError: not TOML, keys that are unknown, missing or of another kind, or a skeleton that contradicts itself.
    """
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise LayoutError(f"{where}: not valid TOML: nested too deep") from None
    except ValueError as error:  # TOMLDecodeError is one, as are numbers of too many digits
        raise LayoutError(f"{where}: not valid TOML: {error}") from error
    known = ("name", "joints", "centre", "flips", "parents", "parts")
    for key in data:
        if key not in known:
            raise LayoutError(f"{where}: unknown key '{key}'{nearest(key, known)}")
    for key in known:
        if key not in data and key != "flips":
            raise LayoutError(f"{where}: key '{key}' is missing")

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
            raise LayoutError(f"{where}: 'flips' holds {pair}; each entry is a pair of joints")
        left, right = (joint_index(name, "'flips'") for name in pair)
        if left == right or flips[left] != left or flips[right] != right:
            raise LayoutError(f"{where}: 'flips' uses a joint of {pair} twice")
        flips[left], flips[right] = right, left

    parts = {part: tuple(joint_index(name, f"[parts] {part}") for name in names) for part, names in data["parts"].items()}
    _check_parts(where, joints, parts)
    centre = joint_index(data["centre"], "'centre'")
    return Layout(str(data["name"]), joints, tuple(parents), tuple(flips), parts, centre)


def layout_toml(layout: Layout) -> str:
    """The text of a layout's TOML file: `parse_layout` gives the layout back."""

    def text(value: object) -> str:
        return json.dumps(value, ensure_ascii=False)  # a JSON string or list of strings is one of TOML's

    def names(joints: Iterable[int]) -> list[str]:
        return [layout.joints[joint] for joint in joints]

    flips = [names((left, right)) for left, right in enumerate(layout.flips) if left < right]
    lines = [f"name = {text(layout.name)}", f"centre = {text(layout.joints[layout.centre])}"]
    lines += [f"joints = {text(list(layout.joints))}", f"flips = {text(flips)}", "[parents]"]
    lines += [f"{text(child)} = {text(parent)}" for child, parent in map(names, layout.edges)]
    lines += ["[parts]", *(f"{text(part)} = {text(names(joints))}" for part, joints in layout.parts.items())]
    return "\n".join(lines) + "\n"


def _check_kinds(where: str, data: dict[str, object]) -> None:
    """Names are text without control characters, lists are lists of names, tables are tables."""

    def names(value: object) -> bool:
        return isinstance(value, list) and all(map(name, value))

    def name(value: object) -> bool:
        return isinstance(value, str) and value.isprintable() and value != ""

    def fail(key: str, wanted: str) -> NoReturn:
        raise LayoutError(f"{where}: '{key}' is {reprlib.repr(data[key])}, not {wanted}")

    for key in ("name", "centre"):
        if not name(data[key]):
            fail(key, "a name in one line of text")
    if not names(data["joints"]):
        fail("joints", "a list of names")
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
            f"{where}: the bones must form one tree, with one joint left out of [parents] as its root; "
            f"{'no joint is' if not roots else ', '.join(roots) + ' are'} left out"
        )
    for joint in range(len(parents)):
        walked = joint
        for _ in range(len(parents)):
            walked = parents[walked]
        if parents[walked] != walked:
            raise LayoutError(f"{where}: the bones above joint '{joints[joint]}' run in a circle; they must form a tree")


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
                    f"{where}: joint '{joints[joint]}' is in part '{holder[joint]}' and in part '{part}'; it must be in one"
                )
            holder[joint] = part
    missing = [name for joint, name in enumerate(joints) if joint not in holder]
    if missing:
        raise LayoutError(f"{where}: no part holds joint {', '.join(repr(name) for name in missing)}; every joint must be in one")
