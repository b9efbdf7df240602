"""Data sets of pose files: what the readers of pose tools have in common.

A data set is a folder with one file or one folder per clip. The labels come from one of two places:

```
my_data/                          my_data/
    clips.csv   name,label            wave/           one folder per class
    wave_01/    or wave_01.json           anna_01/    or anna_01.json
    wave_02/                          kick/
```

`clips.csv` has the columns of the plain form's table (`shapmix.data.sources.plain`): `name`, `label`, and optional ones such as
`split`. A name is that of a folder or file, without the ending; where a tool writes the frames of several clips to one folder, it
is what precedes `_` and the frame number. Class folders may lie in `train`, `val` and `test`.

Frames are placed by their number: missing ones are zero, and a clip runs from the first frame with a person to the last. A single
clip without a label can be predicted, not prepared.
"""

from __future__ import annotations

import logging
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from shapmix.data.sources import Recording
from shapmix.data.sources.bounded import LARGEST_CLIP, MOST_CLIPS, numbers, parse_json, read_file, show
from shapmix.data.sources.skeletons import choose_layout
from shapmix.data.sources.table import Labels, number_classes, read_labels
from shapmix.data.sources.tracks import Frame, Pose, Track, fill, follow
from shapmix.process.errors import DataError
from shapmix.skeleton.layout import BUILT_IN, Layout, load_layout

log = logging.getLogger("shapmix")

TABLE = "clips.csv"
SPLITS = ("train", "val", "test")
MOST_PEOPLE = 2  # of a clip in a store, unless told otherwise; predictions per person have no such limit
MOST_DIGITS = 12  # of a frame number
AGAIN = "write it again with the pose tool"

_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 2
_NUMBERED = re.compile(r"(.*?)_?(\d+)", re.DOTALL)


class Clip(NamedTuple):
    """One clip: its only file, or one file per frame."""

    name: str
    files: tuple[Path, ...]


class PoseFiles:
    """Base of the readers of pose tools; a subclass says what its files look like and reads the frames of one clip.

    The skeleton follows from the number of joints of the first pose, if the tool defines it, or is given by `layout`. Of each clip,
    the `people` who are in most frames are read (None: `MOST_PEOPLE`).

    Attributes:
        endings: of the tool's files, those looked for first in front.
        inside: folders within a clip's folder that the tool writes to.
        fixed: the name of a clip's only file, where the tool does not name it after the clip.
        skeletons: number of joints -> built-in layout.
        scored: numbers of columns of a pose whose last one is a score.

    Raises:
        DataError: no clips, an invalid table, clips both with and without a class folder, no pose in any clip, or a number of
            joints without a layout.
    """

    endings: ClassVar[tuple[str, ...]] = (".json",)
    inside: ClassVar[tuple[str, ...]] = ()
    fixed: ClassVar[str | None] = None
    skeletons: ClassVar[Mapping[int, str]] = {}
    scored: ClassVar[tuple[int, ...]] = (3,)

    def __init__(self, path: Path, *, layout: str | None = None, people: int | None = None) -> None:
        self._path, self._people = path, people or MOST_PEOPLE
        self._clips, self._labels = self._find(path)
        if not self._clips:
            raise DataError(f"{path}: holds no clips; expected files *{' or *'.join(self.endings)}, or one folder of them per clip")
        if len(self._clips) > MOST_CLIPS:
            raise DataError(f"{path}: {len(self._clips)} clips; the limit is {MOST_CLIPS}")
        self.names = [clip.name for clip in self._clips]
        self._joints, self._columns = self._first_pose()
        self.scores = self._columns in self.scored
        self.layout: str | Layout = layout or self._skeleton()
        known = load_layout(self.layout) if isinstance(self.layout, str) else self.layout
        if known.num_joints != self._joints:
            raise DataError(
                f"{path}: poses of {self._joints} joints, layout '{known.name}' has {known.num_joints}; give another --layout"
            )

    def frames(self, clip: Clip) -> Iterator[Frame]:
        """The frames of a clip, in any order.

        Raises:
            DataError: a damaged file; the message names the file, the frame, the person, the joint and the remedy.
        """
        raise NotImplementedError

    def is_frame(self, file: Path) -> bool:
        """Whether a file holds one frame, rather than a whole clip."""
        raise NotImplementedError

    @property
    def class_names(self) -> Sequence[str]:
        """K names.

        Raises:
            DataError: the clips have no labels.
        """
        return self._labelled.class_names

    @property
    def labels(self) -> Sequence[int]:
        """Class id of every clip.

        Raises:
            DataError: the clips have no labels.
        """
        return self._labelled.labels

    @property
    def splits(self) -> Mapping[str, Sequence[str]]:
        """Lists of names of the table, or of the folders `train`, `val` and `test`."""
        return self._labels.splits if self._labels else {}

    @cached_property
    def files(self) -> list[Path]:
        """All files of the clips, and the table."""
        table = self._path / TABLE
        return [*([table] if table.is_file() else []), *(file for clip in self._clips for file in clip.files)]

    def read(self, index: int) -> Recording:
        """Recording `names[index]` with the people of most frames; see `Source`. Its label is 0 if there are no labels."""
        joints, first = fill(self.people(index), self._where(index), self._people)
        found = Recording(joints, 0) if self._labels is None else self._labels.recording(index, joints)
        return replace(found, first_frame=first)

    def people(self, index: int) -> list[Track]:
        """All people of clip `names[index]`, see `follow`.

        Raises:
            DataError: as `read`.
        """
        frames = [self._checked(frame) for frame in self.frames(self._clips[index])]
        return follow(frames, self._columns - int(self.scores))

    @property
    def _labelled(self) -> Labels:
        if self._labels is None:
            raise DataError(
                f"{self._path}: the clips have no labels; write {TABLE} with the columns name,label, or move the clips to one "
                "folder per class"
            )
        return self._labels

    def _where(self, index: int) -> str:
        files = self._clips[index].files
        return str(files[0] if len(files) == 1 else files[0].parent)

    def _checked(self, frame: Frame) -> Frame:
        """Without poses whose coordinates are zero (nobody); each pose must have the shape of the first one."""
        coordinates = self._columns - int(self.scores)
        for person, pose in enumerate(frame.poses):
            if pose.joints.shape != (self._joints, self._columns):
                joints, columns = pose.joints.shape
                raise DataError(
                    f"{frame.where}, person {person}: {joints} joints of {columns} numbers, the other poses have {self._joints} of "
                    f"{self._columns}; use one model for all clips"
                )
        return frame._replace(poses=[pose for pose in frame.poses if pose.joints[:, :coordinates].any()])

    def _first_pose(self) -> tuple[int, int]:
        for clip in self._clips:
            for frame in self.frames(clip):
                for pose in frame.poses:
                    return pose.joints.shape[0], pose.joints.shape[1]
        raise DataError(f"{self._path}: no frame holds a person; run the pose tool again")

    def _skeleton(self) -> str | Layout:
        """The layout that the tool defines for so many joints, or else the one that any format may assume."""
        if name := self.skeletons.get(self._joints):
            log.info("%s: poses of %d joints: layout %s", self._path, self._joints, name)
            return name
        return choose_layout(None, self._path, self._joints, self._columns, scores=self.scores)

    # Finding the clips

    def _find(self, path: Path) -> tuple[list[Clip], Labels | None]:
        if path.is_file():
            return [Clip(self._stem(path), (path,))], None
        if (path / TABLE).is_file():
            labels = read_labels(path / TABLE)
            return [Clip(name, self._named(path, name)) for name in labels.names], labels
        whole = self._clip_files(path)
        if whole:
            return [Clip(path.name, whole)], None
        plain = [Clip(self._stem(file), (file,)) for file in self._files_in(path)]
        folders = [folder for folder in _folders(path) if folder.name not in self.inside]
        if folders and {folder.name for folder in folders} <= set(SPLITS):
            loose = [clip.name for clip in plain]
            loose += [f"{folder.name}/{self._stem(file)}" for folder in folders for file in self._files_in(folder)]
            if loose:
                raise DataError(
                    f"{path}: '{loose[0]}' is a clip without a class folder; write {TABLE}, or move every clip to the folder of "
                    "its class"
                )
            return self._classes({split: _folders(path / split) for split in SPLITS if path / split in folders}, path)
        found = {folder: self._clip_files(folder) for folder in folders}
        plain += [Clip(folder.name, files) for folder, files in found.items() if files]
        clips, labels_of_folders = self._classes({"": [folder for folder, files in found.items() if not files]}, path)
        if plain and clips:
            raise DataError(
                f"{path}: '{plain[0].name}' is a clip without a class folder, '{clips[0].name}' is in one; write {TABLE}, or move "
                "every clip to the folder of its class"
            )
        return (plain, None) if plain else (clips, labels_of_folders)

    def _classes(self, folders: Mapping[str, Sequence[Path]], path: Path) -> tuple[list[Clip], Labels]:
        """The clips in class folders, by split."""
        clips: list[Clip] = []
        labels: list[str] = []
        splits: dict[str, list[str]] = {}
        for split, classes in folders.items():
            for folder in classes:
                if split and self._clip_files(folder):
                    raise DataError(
                        f"{path}: '{split}/{folder.name}' is a clip without a class folder; write {TABLE}, or move every clip to "
                        "the folder of its class"
                    )
                for entry in sorted(folder.iterdir()):
                    if not (files := self._clip_files(entry)):
                        continue
                    name = "/".join(filter(None, (split, folder.name, self._stem(entry))))
                    clips.append(Clip(name, files))
                    labels.append(folder.name)
                    if split:
                        splits.setdefault(split, []).append(name)
        names = [clip.name for clip in clips]
        ids, class_names = number_classes(names, labels, str(path))
        return clips, Labels(names, ids, class_names, splits, [{}] * len(clips), [{}] * len(clips))

    def _clip_files(self, path: Path) -> tuple[Path, ...]:
        """The files of a clip: `path` itself, or what is in that folder; empty if it is not a clip."""
        if path.is_file():
            return (path,) if self._takes(path) else ()
        files = self._files_in(path)
        if self.fixed and path / self.fixed in files:
            return (path / self.fixed,)
        return tuple(files) if files and self.is_frame(files[0]) else ()

    def _files_in(self, path: Path) -> list[Path]:
        for folder in (path, *(path / name for name in self.inside)):
            if not folder.is_dir():
                continue
            with os.scandir(folder) as entries:  # needs no call per file, of which there may be hundreds of thousands
                names = sorted(entry.name for entry in entries if entry.name.endswith(self.endings) and entry.is_file())
            found = [file for name in names if self._takes(file := folder / name)]
            for ending in self.endings:
                if of_ending := [file for file in found if file.name.endswith(ending)]:
                    return of_ending
        return []

    def _takes(self, file: Path) -> bool:
        return file.name.endswith(self.endings) and not file.name.startswith(".")

    def _named(self, folder: Path, name: str) -> tuple[Path, ...]:
        """The files of the clip that the table names."""
        path = folder / name
        if path.is_dir() and (files := self._clip_files(path)):
            return files
        for file in (
            place / f"{name}{ending}" for ending in self.endings for place in (folder, *map(folder.joinpath, self.inside))
        ):
            if file.is_file():
                return (file,)
        if frames := self._by_prefix.get(name):
            return tuple(frames)
        raise DataError(f"{folder / TABLE}: clip '{name}': no folder {path} with files *{self.endings[0]}, and no such file")

    @cached_property
    def _by_prefix(self) -> dict[str, list[Path]]:
        """Frames of several clips in one folder, by what precedes the number."""
        found: dict[str, list[Path]] = {}
        for file in self._files_in(self._path):
            if (match := _NUMBERED.fullmatch(self._stem(file))) and self.is_frame(file):
                found.setdefault(match[1], []).append(file)
        return found

    def _stem(self, path: Path) -> str:
        for ending in self.endings:
            if path.name.endswith(ending):
                return path.name.removesuffix(ending)
        return path.name

    # Frames

    def numbered(self, files: Iterable[Path]) -> Iterator[tuple[int, Path]]:
        """The files of frames with the numbers that end their names.

        Raises:
            DataError: no number, or the same number twice.
        """
        seen: dict[int, Path] = {}
        for file in files:
            number = frame_number(self._stem(file), str(file))
            if number in seen:
                raise DataError(
                    f"{file}: frame {number} is also in {seen[number].name}; give each clip a folder, or name the clips in {TABLE}"
                )
            seen[number] = file
            yield number, file


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def frame_number(name: str, where: str) -> int:
    """The number that ends a name, such as 12 of `wave_000000000012`.

    Raises:
        DataError: no number, or one with too many digits.
    """
    match = _NUMBERED.fullmatch(name)
    if match is None or len(match[2]) > MOST_DIGITS:
        raise DataError(f"{where}: {show(name)} does not end in a frame number of at most {MOST_DIGITS} digits; rename it")
    return int(match[2])


def read_json(file: Path, advice: str = AGAIN) -> Any:
    """The value of a JSON file; `advice` ends the message about one that is damaged or too large.

    Raises:
        DataError: missing, larger than `LARGEST_CLIP`, or not JSON.
    """
    if file.is_file() and file.stat().st_size > LARGEST_CLIP:
        raise DataError(f"{file}: is larger than the limit of {LARGEST_CLIP} bytes; {advice}")
    return parse_json(read_file(file, LARGEST_CLIP), str(file), advice)


def named_layout(names: Sequence[str], where: Path) -> str:
    """The built-in layout whose joints have these names, in this order; it is logged.

    Raises:
        DataError: there is none.
    """
    joints = tuple(name.lower().replace("-", "_") for name in names)
    for name in BUILT_IN:
        if load_layout(name).joints == joints:
            log.info("%s: names the joints of layout %s", where, name)
            return name
    raise DataError(f"{where}: names the joints {brief(list(names))}, which no built-in layout has; give --layout")


def flat_pose(values: object, columns: int, where: str, person: str | None = None) -> Pose:
    """The pose [V, columns] of a flat list such as x0, y0, c0, x1, ...

    Raises:
        DataError: not a list of finite numbers, or not a multiple of `columns`; the message names the joint.
    """
    if not isinstance(values, list) or not values or len(values) % columns:
        length = f"{len(values)} values" if isinstance(values, list) else brief(values)
        raise DataError(f"{where}: the pose is {length}, not {columns} numbers for each joint; {AGAIN}")
    if not numbers([values]):
        at, value = next((at, one) for at, one in enumerate(values) if not numbers([[one]]))
        raise DataError(f"{where}, joint {at // columns}: {brief(value)} is not a number; {AGAIN}")
    return checked_pose(np.array(values, np.float64).reshape(-1, columns), where, person)


def nested_pose(values: object, where: str, person: str | None = None) -> Pose:
    """The pose [V, C] of a list with one list of C numbers for each joint.

    Raises:
        DataError: not such a list, or not finite; the message names the joint.
    """
    if not isinstance(values, list) or not values:
        raise DataError(f"{where}: the pose is {brief(values)}, not a list of joints; {AGAIN}")
    columns = len(values[0]) if isinstance(values[0], list) else 0
    alike = 1 <= columns <= 4 and all(isinstance(one, list) and len(one) == columns for one in values)
    if not alike or not numbers(values):
        joint, one = next((joint, one) for joint, one in enumerate(values) if not _is_joint(one, columns))
        raise DataError(f"{where}, joint {joint}: {brief(one)} is not {columns or 'a list of'} numbers; {AGAIN}")
    return checked_pose(np.array(values, np.float64), where, person)


def _is_joint(one: object, columns: int) -> bool:
    return isinstance(one, list) and 1 <= columns <= 4 and len(one) == columns and numbers([one])


def checked_pose(joints: np.ndarray, where: str, person: str | None = None) -> Pose:
    """The pose in float32.

    Raises:
        DataError: a value that is not finite in float32; the message names the joint.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # rejected below
        pose = joints.astype(np.float32)
    if not np.isfinite(pose).all():
        joint = int(np.argwhere(~np.isfinite(pose))[0][0])
        raise DataError(f"{where}, joint {joint}: a coordinate is not finite; write 0 for an undetected joint")
    return Pose(pose, person)


def brief(value: object) -> str:
    """`repr`, truncated to the first few elements of the outer lists and objects."""
    return _BRIEF.repr(value)


def track_id(value: object) -> str | None:
    """A tool's track id as text; None if there is none (missing, negative, or not a number)."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1 << 53:
        return None
    return str(int(value)) if value == int(value) else None
