"""Reader of NW-UCLA: one JSON file per clip, in a folder or in an archive."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from shapmix.data.sources import Recording
from shapmix.data.sources.bounded import archive_holds, is_tar, no_body, numbers, parse_json, read_file, read_table, show, tar_files
from shapmix.data.sources.registry import source
from shapmix.process.errors import DataError

CLASS_NAMES = (
    "pick up with one hand", "pick up with two hands", "drop trash", "walk around", "sit down",
    "stand up", "donning", "doffing", "throw", "carry",
)  # fmt: skip
# Actions 7 and 10 do not exist, so the aAA of a name is not the label plus 1.
ACTION_NUMBERS = (1, 2, 3, 4, 5, 6, 8, 9, 11, 12)

LARGEST_FILE = 16 << 20  # bytes of a JSON clip: 15,000 frames; the largest real one is 127 kB

LARGEST_SET = 1 << 30  # bytes of all clips, which are loaded together; the real ones are 38 MB

DAMAGED = "the file is damaged; download it again"

_NAME = re.compile(r"(?P<performance>a(?P<action>\d\d)_s\d\d_e\d\d)_v(?P<view>\d\d)")


@dataclass(frozen=True)
class Performed:
    """One clip of NW-UCLA, as recorded in its JSON file."""

    name: str
    frames: Tensor
    """[T, 1, 20, 3] float32"""
    label: int
    performance: str
    """Identifies the performance, which several views film: `a01_s02_e03`."""
    view: int


def find_clips(root: Path) -> Path:
    """The folder or archive of JSON files: `root` itself or inside `root`."""
    if root.is_file():
        return root
    if not root.exists():
        raise DataError(f"{root}: no such folder; give the folder with NW-UCLA's all_sqe/ or all_sqe.tar.xz")
    for candidate in (root / "all_sqe", root / "all_sqe.tar.xz"):
        if candidate.exists():
            return candidate
    raise DataError(f"{root}: contains neither all_sqe/ nor all_sqe.tar.xz; give the folder that contains one of them")


def json_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yields (path for messages, content) of every JSON file."""
    left = LARGEST_SET
    for where, content in _folder(source) if source.is_dir() else _archive(source):
        left -= len(content)
        if left < 0:
            raise DataError(f"{source}: more than {LARGEST_SET} bytes of clips; NW-UCLA is 38 MB. Give its own folder")
        yield where, content
    if left == LARGEST_SET:
        raise DataError(f"{source}: contains no .json clips; NW-UCLA has 1,484, named like a01_s01_e00_v01.json")


def read_clips(source: Path) -> dict[str, Performed]:
    """Every clip of the folder or the archive, by name.

    Raises:
        DataError: as `parse_clip`, or a duplicate name.
    """
    found: dict[str, Performed] = {}
    for where, content in json_files(source):
        clip = parse_clip(where, content)
        if clip.name in found:
            raise DataError(f"{where}: a second clip of this name; remove one")
        found[clip.name] = clip
    return found


def _folder(source: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(source.glob("*.json")):
        yield str(path), read_file(path, LARGEST_FILE)


def _archive(source: Path) -> Iterator[tuple[str, bytes]]:
    for name, read in tar_files(source, ".json", LARGEST_FILE):
        yield f"{source}: {name}", read()


def parse_clip(where: str, content: bytes) -> Performed:
    """Parses a clip from its JSON text; `where` begins every error message."""
    stem = PurePosixPath(where.replace("\\", "/")).stem
    named = _NAME.fullmatch(stem)
    if named is None or int(named["action"]) not in ACTION_NUMBERS:
        actions = ", ".join(map(str, ACTION_NUMBERS))
        raise DataError(f"{where}: not the name of an NW-UCLA clip (aAA_sSS_eEE_vVV with AA one of {actions}); remove or rename it")
    data = parse_json(content, where, DAMAGED)
    if not isinstance(data, dict) or not {"skeletons", "label"} <= set(data):
        raise DataError(f"{where}: must be an object with the keys 'skeletons' and 'label'")
    skeletons, label = data["skeletons"], data["label"]
    if type(label) is not int or label not in range(1, len(CLASS_NAMES) + 1):
        raise DataError(f"{where}: label {show(label)} is out of range; NW-UCLA's labels are 1 to {len(CLASS_NAMES)}")
    expected = ACTION_NUMBERS.index(int(named["action"])) + 1
    if label != expected:
        raise DataError(f"{where}: label {label} contradicts the name, whose action {named['action']} has label {expected}")
    frames = torch.from_numpy(_coordinates(where, skeletons)).unsqueeze(1)
    return Performed(stem, frames, label - 1, named["performance"], int(named["view"]))


def _coordinates(where: str, skeletons: object) -> np.ndarray:
    """[T, 20, 3] float32 from a clip's nested lists; an error names the invalid frame."""
    if not isinstance(skeletons, list) or not skeletons:
        raise DataError(f"{where}: 'skeletons' holds no frames; remove the clip or download it again")
    for number, frame in enumerate(skeletons):
        joints = len(frame) if isinstance(frame, list) else 0
        if joints != 20:
            raise DataError(f"{where}: frame {number} has {joints} joints, NW-UCLA's skeleton has 20")
        if not all(isinstance(joint, list) and len(joint) == 3 for joint in frame) or not numbers(frame):
            joint, value = next((at, one) for at, one in enumerate(frame) if not _is_joint(one))
            raise DataError(f"{where}: frame {number}, joint {joint} is {show(value)}, not three numbers x, y, z; {DAMAGED}")
    with np.errstate(over="ignore"):  # values beyond float32 are rejected below
        frames = np.array(skeletons, dtype=np.float32)
    if not np.isfinite(frames).all():
        number, joint, _ = np.argwhere(~np.isfinite(frames))[0]
        raise DataError(f"{where}: frame {number}, joint {joint} has a coordinate that is not finite; repair or remove the clip")
    return frames


def _is_joint(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and numbers([value])


TABLES = {"train": "train.csv", "test": "test.csv"}


def _is_nw_ucla(path: Path) -> bool:
    if path.is_dir():
        return any((path / name).exists() for name in ("all_sqe", "all_sqe.tar.xz"))
    return path.is_file() and is_tar(path) and archive_holds(path, ".json")


@source("nw_ucla", "a folder with all_sqe/ or all_sqe.tar.xz, or that archive", fits=_is_nw_ucla)
class NwUcla:
    """All clips of `all_sqe/` or its archive, sorted by name; `camera` is the view, `train.csv` and `test.csv` are the splits.

    The whole data set (40 MB) is loaded at once.

    Raises:
        DataError: missing or damaged files; the message names the file, the frame and the reason.
    """

    scores = False

    def __init__(self, root: Path, *, layout: str | None = None) -> None:
        self.layout = layout or "ucla20"
        found = find_clips(root)
        clips = read_clips(found)
        self.names = sorted(clips)
        self._clips = [clips[name] for name in self.names]
        self.labels = [clip.label for clip in self._clips]
        self.class_names = list(CLASS_NAMES)
        tables = {split: found.parent / table for split, table in TABLES.items() if (found.parent / table).is_file()}
        self.splits = {split: _names(table) for split, table in tables.items()}
        self.files = [*(sorted(found.glob("*.json")) if found.is_dir() else [found]), *tables.values()]

    def read(self, index: int) -> Recording:
        """Recording `names[index]`; see `Source`."""
        clip = self._clips[index]
        if not clip.frames.any():
            raise no_body(f"recording '{clip.name}'")
        subject, replication = int(clip.name[5:7]), int(clip.name[9:11])
        return Recording(clip.frames.numpy(), clip.label, camera=clip.view, subject=subject, replication=replication)


def _names(table: Path) -> list[str]:
    return [row["name"] for _, row in read_table(table, ("name",))]
