"""Reader of PKU-MMD, phase I and II: long recordings as text, cut into clips by their label files.

```
PKUMMD/
    Data/PKU_Skeleton_Renew/0002-L.txt     150 numbers per frame: 2 people x 25 joints x (x, y, z)
    Label/Train_Label_PKU_final/0002-L.txt action,start,end,confidence
    Split/cross-subject.txt, cross-view.txt
```

The folders may have other names: files are found by theirs (`0002-L` in phase I, `A01N01-L` in phase II, at most three folders
deep), and a label file by its commas. L, M and R are the cameras.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np

from shapmix.data.sources import Recording
from shapmix.data.sources.bounded import MOST_CLIPS, no_body, read_file, show
from shapmix.data.sources.kept import KeptFiles
from shapmix.data.sources.registry import source
from shapmix.process.errors import DataError

PEOPLE, JOINTS, COORDINATES = 2, 25, 3
NUMBERS = PEOPLE * JOINTS * COORDINATES
ENDING = ".txt"
DEEP = 3  # folders
LARGEST_FILE = 256 << 20  # bytes; the real ones have 7 MB
LARGEST_LIST = 16 << 20
KEPT = 4  # recordings of 7 MB
CAMERAS = {"L": 1, "M": 2, "R": 3}
ACTIONS = (
    "bow", "brush hair", "brush teeth", "check the time", "cheer up", "clap", "cross hands in front", "drink water", "drop",
    "eat a meal or snack", "fall", "give something to someone", "wave a hand", "shake hands", "hop on one foot", "hug someone",
    "jump up", "kick someone", "kick something", "phone call", "pat someone's back", "pick up", "play with a phone or tablet",
    "point at someone", "point at something", "punch or slap someone", "push someone", "put on a hat", "put something in a pocket",
    "read", "rub hands", "salute", "sit down", "stand up", "take off a hat", "take off glasses", "take off a jacket",
    "take something out of a pocket", "take a selfie", "tear up paper", "throw", "touch back, backache",
    "touch chest, stomachache or heart pain", "touch head, headache", "touch neck, neckache", "type on a keyboard",
    "use a fan, feel warm", "put on a jacket", "put on glasses", "wipe face", "write",
)  # fmt: skip

_NAME = re.compile(r"(?:\d{4}|A\d\dN\d\d)-(?P<view>[LMR])")


def _is_pku_mmd(path: Path) -> bool:
    return path.is_dir() and any(
        _NAME.fullmatch(file.stem) for deep in range(DEEP + 1) for file in path.glob(f"{'*/' * deep}*-[LMR]{ENDING}")
    )


@source("pku_mmd", "a folder with the skeleton, label and split files of PKU-MMD", fits=_is_pku_mmd)
class PkuMmd:
    """One clip per line of a label file, named `0002-L_000`, `0002-L_001`, ...; the label is the action minus 1.

    A clip has the frames from start (included) to end (excluded), counted from 0. The confidence is not used. Recordings without
    a label file are not read. The lists are `xsub_train`, `xsub_test`, `xview_train` and `xview_test`, from the training and
    validation videos of the split files.

    Raises:
        DataError: no such files, skeleton files of two phases, an invalid line of a label or split file.
    """

    scores = False

    def __init__(self, folder: Path, *, layout: str | None = None) -> None:
        self.layout = layout or "pku25"
        skeletons, labels = _find(folder)
        self.class_names = [f"A{action:02d} {name}" for action, name in enumerate(ACTIONS, start=1)]
        self.names: list[str] = []
        self.labels: list[int] = []
        self._clips: list[tuple[Path, int, int, int]] = []  # file, first and last frame, place among the clips of the file
        of_video: dict[str, list[str]] = {}
        for stem in sorted(skeletons.keys() & labels.keys()):
            for number, (action, start, end) in enumerate(_segments(labels[stem])):
                name = f"{stem}_{number:03d}"
                self.names.append(name)
                self.labels.append(action - 1)
                self._clips.append((skeletons[stem], start, end, number))
                of_video.setdefault(stem, []).append(name)
            if len(self.names) > MOST_CLIPS:
                raise DataError(f"{folder}: more than {MOST_CLIPS} clips")
        if not self.names:
            raise DataError(f"{folder}: no skeleton file has a label file of the same name; give the folder that contains both")
        lists = {name: path for name, path in (("xsub", _list_of(folder, "subject")), ("xview", _list_of(folder, "view"))) if path}
        self.splits = {}
        for name, path in lists.items():
            for part, videos in zip(("train", "test"), _videos(path), strict=True):
                self.splits[f"{name}_{part}"] = [clip for video in videos for clip in of_video.get(video, ())]
        self.files = [*(skeletons[stem] for stem in of_video), *(labels[stem] for stem in of_video), *lists.values()]
        self._kept = KeptFiles(_read_lines, KEPT)

    def read(self, index: int) -> Recording:
        """Recording `names[index]`; see `Source`."""
        path, start, end, number = self._clips[index]
        content, ends = self._kept.read(path)
        where = f"{path}, frames {start} to {end} ('{self.names[index]}')"
        if start >= len(ends):
            raise DataError(f"{where}: the file has {len(ends)} frames; download it again, or correct the label file")
        first, last = (int(ends[start - 1]) if start else 0), int(ends[min(end, len(ends)) - 1])
        joints = _numbers(content[first:last], path, start).reshape(-1, PEOPLE, JOINTS, COORDINATES)
        if not np.isfinite(joints).all():
            frame, person, joint, _ = np.argwhere(~np.isfinite(joints))[0]
            raise DataError(
                f"{path}, line {start + frame + 1}: person {person}, joint {joint} is not finite; the file is damaged, "
                "download it again"
            )
        stands = np.flatnonzero(joints.any((1, 2, 3)))
        if len(stands) == 0:
            raise no_body(where)
        recording = int("".join(filter(str.isdecimal, path.stem)))  # the three cameras have the same, with the same clips
        return Recording(
            joints[: stands[-1] + 1], self.labels[index], camera=CAMERAS[path.stem[-1]], setup=recording, replication=number + 1
        )


def _find(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Skeleton files and label files, by the name of the recording."""
    skeletons: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for deep in range(DEEP + 1):
        for path in sorted(folder.glob(f"{'*/' * deep}*-[LMR]{ENDING}")):
            if not _NAME.fullmatch(path.stem):
                continue
            kind = labels if _has_commas(path) else skeletons
            if path.stem in kind:
                raise DataError(f"{path}: {kind[path.stem]} has the same name; give the folder of one phase, without copies")
            kind[path.stem] = path
    if not skeletons or not labels:
        missing = "skeleton files (150 numbers per line)" if labels else "label files (action,start,end,confidence per line)"
        raise DataError(f"{folder}: contains no {missing}; give the folder that contains both")
    return skeletons, labels


def _has_commas(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"," in file.read(200).lstrip()[:100]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _segments(path: Path) -> list[tuple[int, int, int]]:
    """(action, start, end) of every line of a label file."""
    found = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split(",")]
        if len(fields) < 3 or not all(re.fullmatch(r"\d{1,9}", field) for field in fields[:3]):
            raise DataError(f"{path}, line {number}: {show(line)} is not action,start,end,confidence; correct the line")
        action, start, end = map(int, fields[:3])
        if not 1 <= action <= len(ACTIONS):
            raise DataError(f"{path}, line {number}: action {action} is not 1 to {len(ACTIONS)}; correct the line")
        if start >= end:
            raise DataError(f"{path}, line {number}: starts at frame {start} and ends at {end}; correct or remove the line")
        found.append((action, start, end))
    return found


def _list_of(folder: Path, kind: str) -> Path | None:
    """The split file `cross-KIND.txt` (`_` for `-`, `_v2` in phase II)."""
    found = [
        path
        for deep in range(DEEP)
        for path in sorted(folder.glob(f"{'*/' * deep}cross*{ENDING}"))
        if re.fullmatch(rf"cross[-_]{kind}(_v2)?", path.stem.lower())
    ]
    if len(found) > 1:
        raise DataError(f"{found[1]}: {found[0]} is another list for the same protocol; keep the one of this phase")
    return found[0] if found else None


def _videos(path: Path) -> tuple[list[str], list[str]]:
    """Training and validation videos of a split file: each a line of names with commas, after a line that says which."""
    parts: dict[str, list[str]] = {}
    part = None
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.rstrip().endswith(":"):
            part = "train" if line.strip().lower().startswith("train") else "val"
        elif line.strip():
            if part is None:
                raise DataError(f"{path}, line {number}: expected 'Training videos:' before the names of videos; download it again")
            parts.setdefault(part, []).extend(name.strip() for name in line.split(",") if name.strip())
    for part, kind in (("train", "training"), ("val", "validation")):
        if part not in parts:
            raise DataError(f"{path}: lists no {kind} videos; download it again")
    return parts["train"], parts["val"]


def _text(path: Path) -> str:
    try:
        return read_file(path, LARGEST_LIST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); download it again") from error


def _read_lines(path: Path) -> tuple[bytes, np.ndarray]:
    """The content of a skeleton file, and where each line ends."""
    content = read_file(path, LARGEST_FILE).rstrip() + b"\n"
    return content, np.flatnonzero(np.frombuffer(content, np.uint8) == 0x0A) + 1


def _numbers(content: bytes, path: Path, start: int) -> np.ndarray:
    """[T, 150] float32 of some lines; `start` is the number of the first one, from 0."""
    try:
        with np.errstate(over="ignore"):
            values = np.loadtxt(io.BytesIO(content), dtype=np.float32, ndmin=2, comments=None)
    except ValueError:
        values = np.empty((0, 0), np.float32)
    if values.shape == (content.count(b"\n"), NUMBERS):
        return values
    for number, line in enumerate(content.splitlines(), start=start + 1):
        fields = line.split()
        if len(fields) != NUMBERS:
            raise DataError(
                f"{path}, line {number}: {len(fields)} numbers, expected {NUMBERS} (2 people x 25 joints x 3); "
                "the file is damaged, download it again"
            )
        for field in fields:
            if not re.fullmatch(rb"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf)", field, re.IGNORECASE):
                raise DataError(f"{path}, line {number}: {show(field)} is not a number; the file is damaged, download it again")
    raise DataError(f"{path}, line {start + 1}: not lines of {NUMBERS} numbers; the file is damaged, download it again")
