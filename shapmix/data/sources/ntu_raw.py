"""Reader of raw NTU RGB+D: `.skeleton` files in a folder or an archive, with the standard selection of actors.

The steps match the preprocessing scripts that produce the common npz files, bit for bit (fixture `ntu_raw`): bodies that are too
short or too wide are dropped, the body with the most motion is actor 1, the others fill the gaps of actors 1 and 2, and the clip is
translated so that actor 1's spine starts at the origin.
"""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath

import numpy as np

from shapmix.data.sources import Recording
from shapmix.data.sources.bounded import UNREADABLE, archive_holds, no_body, read_file, tar_files, zip_files
from shapmix.data.sources.names import NtuName, ntu_classes, parse_ntu_name
from shapmix.data.sources.registry import source
from shapmix.process.errors import DataError

ENDING = ".skeleton"
JOINTS = 25
SPINE = 1
FEWEST_FRAMES = 12  # per body, if there are several
WIDEST = 0.8  # of a person: extent in x / extent in y
MOST_UNCLEAN = 0.69754  # fraction of a body's frames that are wider
LARGEST_FILE = 256 << 20  # bytes; the longest real recordings are 5 MB
MOST_BODIES = 1000  # per recording; the sensor assigns a new id to a person who re-enters
KEPT, KEPT_BYTES = 256, 256 << 20  # files of a tar stream that are buffered for other threads


@dataclass(frozen=True)
class Skeletons:
    """Content of a `.skeleton` file.

    Attributes:
        frame_of: [B] int64, the frame of each body; frames without a body are not counted.
        body: [B] uint64 ids.
        joints: [B, 25, 3] float32 metres.
    """

    frame_of: np.ndarray
    body: np.ndarray
    joints: np.ndarray


def read_skeletons(content: bytes, where: str) -> Skeletons:
    """Parses the bodies of a `.skeleton` file; `where` begins every error message.

    Raises:
        DataError: invalid text (with its line number), or no body at all.
    """
    try:
        _, frame_of, body, joints = import_module("shapmix._native").parse_ntu_skeleton(content)
    except RuntimeError as error:
        raise DataError(f"{where}, {error}; the file is damaged, download it again") from error
    if len(body) == 0:
        raise no_body(f"{where} (302 recordings of NTU RGB+D 60 and 535 of 120 are known to have none)")
    if (bodies := len(np.unique(body))) > MOST_BODIES:
        raise DataError(f"{where}: {bodies} bodies; the limit is {MOST_BODIES}. The file is damaged, download it again")
    return Skeletons(frame_of, body, joints)


def _is_ntu_raw(path: Path) -> bool:
    if path.is_dir():
        return any(path.glob(f"*{ENDING}")) or any(path.glob(f"*/*{ENDING}"))
    return archive_holds(path, ENDING)


@source("ntu_raw", f"a folder or an archive of {ENDING} files", fits=_is_ntu_raw)
class NtuRaw:
    """The `.skeleton` files of a folder (or its subfolders), a zip archive or a tar archive (compressed or not), sorted by name.

    Archives are read in place; nothing is unpacked to disk. A tar archive is read sequentially: it is listed once, and `names`
    has the order of the archive.

    Raises:
        DataError: no such files, a name that is not `SsssCcccPpppRrrrAaaa`, a duplicate name, or a damaged archive.
    """

    scores = False

    def __init__(self, path: Path, *, layout: str | None = None) -> None:
        self.layout = layout or "ntu25"
        self._path = path
        self.splits: dict[str, list[str]] = {}  # the data comes without lists
        if path.is_dir():
            self.files = sorted([*path.glob(f"*{ENDING}"), *path.glob(f"*/*{ENDING}")], key=lambda file: file.name)
            members = [str(file) for file in self.files]
            self._read = self._from_folder
        else:
            self.files = [path]
            zipped = zipfile.is_zipfile(path)
            members = (
                zip_files(path, ENDING, LARGEST_FILE) if zipped else [name for name, _ in tar_files(path, ENDING, LARGEST_FILE)]
            )
            self._read = self._from_zip if zipped else self._from_tar
        self._members = members
        if not self._members:
            raise DataError(f"{path}: contains no {ENDING} files")
        if not path.is_dir() and self._read == self._from_zip:
            self._members.sort(key=lambda member: PurePosixPath(member).name)
        self.names = [PurePosixPath(member).name.removesuffix(ENDING) for member in self._members]
        self._numbers: list[NtuName] = []
        seen: dict[str, str] = {}
        for name, member in zip(self.names, self._members, strict=True):
            number = parse_ntu_name(name)
            if number is None:
                raise DataError(f"{path}: the name of '{member}' is not of the form SsssCcccPpppRrrrAaaa; rename or remove it")
            if name in seen:
                raise DataError(f"{path}: '{member}' and '{seen[name]}' are the same recording; remove one")
            seen[name] = member
            self._numbers.append(number)
        self.labels = [number.label for number in self._numbers]
        self.class_names = ntu_classes(max(self.labels) + 1)
        self._lock = threading.Lock()
        self._archive: zipfile.ZipFile | None = None
        self._stream: Iterator[tuple[str, Callable[[], bytes]]] | None = None
        self._next = 0
        self._kept: dict[int, bytes] = {}

    def read(self, index: int) -> Recording:
        """Recording `names[index]`; see `Source`."""
        number = self._numbers[index]
        where = self._members[index] if self._path.is_dir() else f"{self._path}: {self._members[index]}"
        joints = actors(read_skeletons(self._read(index), where), where)
        return Recording(joints, number.label, **number.numbers())

    def _from_folder(self, index: int) -> bytes:
        return read_file(self.files[index], LARGEST_FILE)

    def _from_zip(self, index: int) -> bytes:
        with self._lock:
            if self._archive is None:
                self._archive = zipfile.ZipFile(self._path)
        try:
            return self._archive.read(self._members[index])  # ZipFile is thread-safe for reading
        except UNREADABLE as error:
            raise DataError(f"{self._path}: {self._members[index]}: cannot be read ({error}); download it again") from error

    def _from_tar(self, index: int) -> bytes:
        with self._lock:
            if index in self._kept:
                return self._kept.pop(index)
            if self._stream is None or index < self._next:
                self._stream = tar_files(self._path, ENDING, LARGEST_FILE)
                self._next, self._kept = 0, {}
            for _, read in self._stream:
                content = read()
                self._next += 1
                if self._next == index + 1:
                    return content
                self._kept[self._next - 1] = content
                while len(self._kept) > KEPT or sum(map(len, self._kept.values())) > KEPT_BYTES:
                    del self._kept[min(self._kept)]
        raise DataError(f"{self._path}: the archive changed while it was being read")


def actors(skeletons: Skeletons, where: str = "recording") -> np.ndarray:
    """[T, 2, 25, 3] float32: the one or two actors, as in the preprocessed npz files but without padding.

    Raises:
        DataError: no valid body.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # non-finite values are rejected below
        return _actors(skeletons, where)


def _actors(skeletons: Skeletons, where: str) -> np.ndarray:
    frames = int(skeletons.frame_of[-1]) + 1
    bodies = [_body(skeletons, skeletons.body == body) for body in dict.fromkeys(skeletons.body.tolist())]
    several = len(bodies) > 1
    if several:
        bodies = _plausible(bodies)
        if not bodies:
            raise DataError(f"{where}: no body lasts {FEWEST_FRAMES} frames; exclude the recording")
    two = several and len(bodies) > 1
    placed = _placed(bodies, frames) if two else _alone(bodies[0], frames)
    if several:
        placed = placed[placed.reshape(len(placed), -1).sum(1) != 0]
    first = placed[:, 0].reshape(len(placed), -1).any(1)
    if not first.any():
        raise no_body(f"{where}, main actor")
    missing = placed.reshape(len(placed), placed.shape[1], -1).sum(2) == 0
    origin = placed[int(first.argmax()), 0, SPINE].copy()
    placed -= origin
    if two:
        placed[missing] = 0
    joints = np.zeros((len(placed), 2, JOINTS, 3), np.float32)
    joints[:, : placed.shape[1]] = placed
    if not np.isfinite(joints).all():
        raise DataError(f"{where}: distances between joints overflow float32; the file is damaged, download it again")
    # the feeder crops from the first n frames, where n counts the frames whose sum is not zero
    return joints[: int((joints.sum(3).sum(1).sum(1) != 0).sum())]


@dataclass(eq=False)
class _Body:
    joints: np.ndarray  # [T, 25, 3]
    start: int
    motion: float

    @property
    def end(self) -> int:
        """Last frame; the frames of a body are contiguous."""
        return self.start + len(self.joints) - 1


def _body(skeletons: Skeletons, rows: np.ndarray) -> _Body:
    joints = skeletons.joints[rows]
    return _Body(joints, int(skeletons.frame_of[rows.argmax()]), _motion(joints))


def _motion(joints: np.ndarray) -> float:
    return np.sum(np.var(joints.reshape(-1, 3), axis=0))


def _plausible(bodies: list[_Body]) -> list[_Body]:
    """Drops bodies that are too short or too wide; sorts by decreasing motion in the frames that are not too wide."""
    bodies = [body for body in bodies if len(body.joints) >= FEWEST_FRAMES]
    if len(bodies) < 2:
        return bodies
    kept = list(bodies)
    for body in bodies:
        if len(kept) == 1:
            return kept
        extent = body.joints.max(1) - body.joints.min(1)  # [T, 3]
        clean = extent[:, 0] <= WIDEST * extent[:, 1].astype(np.float64)
        unclean = len(clean) - int(clean.sum())
        if unclean / len(clean) >= MOST_UNCLEAN:
            kept.remove(body)
        elif unclean:
            body.motion = min(body.motion, _motion(body.joints[clean]))
    return sorted(kept, key=lambda body: body.motion, reverse=True)


def _alone(body: _Body, frames: int) -> np.ndarray:
    placed = np.zeros((frames, 1, JOINTS, 3), np.float32)
    placed[body.start : body.end + 1, 0] = body.joints
    return placed


def _placed(bodies: list[_Body], frames: int) -> np.ndarray:
    """[T, 2, 25, 3]: each body extends actor 1 if the two overlap by at most one frame, else actor 2, else it is dropped."""
    placed = np.zeros((frames, 2, JOINTS, 3), np.float32)
    placed[bodies[0].start : bodies[0].end + 1, 0] = bodies[0].joints
    intervals = [(bodies[0].start, bodies[0].end), (0, 0)]
    for body in bodies[1:]:
        for actor, (start, end) in enumerate(intervals):
            if min(end, body.end) - max(start, body.start) <= 0:
                placed[body.start : body.end + 1, actor] = body.joints
                intervals[actor] = (min(start, body.start), max(end, body.end))
                break
    return placed
