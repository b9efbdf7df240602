"""Reader of MediaPipe landmarks: 33 of a pose (x, y, z, visibility), or 21 of a hand (x, y, z); one file per clip.

MediaPipe returns landmarks and writes no files; these are the usual ways to save them:

- JSON: a list with one entry per frame. An entry is a result as the Pose or Hand Landmarker returns it (`pose_landmarks`,
  `hand_landmarks` in Python, `landmarks` in JavaScript; the world landmarks if there are no others), the list of people, or the
  landmarks of one person. A landmark is `{"x": ..., "y": ..., "z": ..., "visibility": ...}` or `[x, y, z, visibility]`. Nobody is
  `null` or `[]`. An entry may have its number as `frame`.
- CSV: a row per frame. With a header: `x0`, `y0`, `z0`, `visibility0` (or `v0`), ... counted from 0 or 1, also written `x_0`, and
  optionally `frame` and `person`. Without one: 33 x 4, 33 x 3 or 21 x 3 numbers a row.
- NumPy: `[frames, landmarks, 3 or 4]`, `[frames, people, landmarks, 3 or 4]`, or a row of numbers per frame as in CSV.

Rows of zeros or of NaN are frames without a person.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from shapmix.data.sources.bounded import LARGEST_CLIP, is_number, numbers, read_file, read_npy, show
from shapmix.data.sources.pose_clips import AGAIN, TABLE, Clip, PoseFiles, brief, checked_pose, nested_pose, read_json, track_id
from shapmix.data.sources.registry import source
from shapmix.data.sources.tracks import Frame, Pose
from shapmix.process.errors import DataError

POSE, HAND = 33, 21  # landmarks
SHAPES = {POSE * 4: (POSE, 4), POSE * 3: (POSE, 3), HAND * 3: (HAND, 3)}
KEYS = ("pose_landmarks", "poseLandmarks", "hand_landmarks", "handLandmarks", "landmarks")
WORLD_KEYS = ("pose_world_landmarks", "poseWorldLandmarks", "hand_world_landmarks", "worldLandmarks")
AXES = {"x": 0, "y": 1, "z": 2, "v": 3, "visibility": 3}

_COLUMN = re.compile(r"(x|y|z|v|visibility)_?(\d{1,3})")


def _fits(path: Path) -> bool:
    files = [path] if path.is_file() else [file for depth in ("", "*/", "*/*/") for file in islice(path.glob(f"{depth}*.json"), 1)]
    return any(file.suffix == ".json" and _begins_with_landmarks(file) for file in files)


def _begins_with_landmarks(file: Path) -> bool:
    try:
        with file.open("rb") as content:
            begin = content.read(4096)
    except OSError:
        return False
    return any(f'"{key}"'.encode() in begin for key in (*KEYS, *WORLD_KEYS))


@source("mediapipe", "MediaPipe landmarks, a .json, .csv or .npy file per clip", fits=_fits)
class MediaPipe(PoseFiles):
    """Clips of MediaPipe: (x, y, z, visibility) of poses, (x, y, z) of hands or of poses without visibility.

    People (or hands) are those of the file where it numbers them (`person`, the people of an array), else joined by distance.
    """

    endings = (".json", ".csv", ".npy")
    skeletons = MappingProxyType({POSE: "mediapipe33", HAND: "hand21"})
    scored = (4,)

    def is_frame(self, file: Path) -> bool:
        """A file holds a clip."""
        return False

    def frames(self, clip: Clip) -> Iterator[Frame]:
        """The frames of a file."""
        file = clip.files[0]
        if file.suffix == ".json":
            return _of_json(read_json(file), file)
        return _of_array(_array(file), file) if file.suffix == ".npy" else _of_csv(file)

    def _takes(self, file: Path) -> bool:
        return super()._takes(file) and file.name != TABLE


def _of_json(content: Any, file: Path) -> Iterator[Frame]:
    if not isinstance(content, list):
        raise DataError(f"{file}: {brief(content)} is not a list of frames; write one entry per frame")
    for row, entry in enumerate(content):
        number = row
        if isinstance(entry, dict) and "frame" in entry:
            number = entry["frame"]
            if type(number) is not int:
                raise DataError(f"{file}: entry {row}: 'frame' is {brief(number)}, not a number; {AGAIN}")
        where = f"{file}: frame {number}"
        people = _people(entry, where)
        yield Frame(number, [_pose(one, f"{where}, person {person}") for person, one in enumerate(people)], where)


def _people(entry: Any, where: str) -> list[Any]:
    """The people of a frame, each a list of landmarks."""
    if isinstance(entry, dict):
        key = next((key for key in (*KEYS, *WORLD_KEYS) if entry.get(key)), None)
        if key is None and not any(one in entry for one in (*KEYS, *WORLD_KEYS, "landmark")):
            raise DataError(f"{where}: {brief(entry)} has none of {', '.join(KEYS)}; {AGAIN}")
        entry = entry.get("landmark") if key is None else entry[key]
    if isinstance(entry, dict):  # one person of the older solutions
        entry = entry.get("landmark")
    if entry is None or entry == []:
        return []
    if not isinstance(entry, list):
        raise DataError(f"{where}: {brief(entry)} is not a list of people or landmarks; {AGAIN}")
    first = entry[0]
    single = (isinstance(first, dict) and "landmark" not in first) or (isinstance(first, list) and numbers([first]))
    return [entry] if single else entry


def _pose(landmarks: Any, where: str) -> Pose:
    if isinstance(landmarks, dict):
        landmarks = landmarks.get("landmark")
    if not isinstance(landmarks, list) or len(landmarks) not in (POSE, HAND):
        count = f"{len(landmarks)} landmarks" if isinstance(landmarks, list) else brief(landmarks)
        raise DataError(f"{where}: {count}, expected {POSE} of a pose or {HAND} of a hand")
    names = ("x", "y", "z", "visibility") if len(landmarks) == POSE else ("x", "y", "z")
    rows = []
    for joint, one in enumerate(landmarks):
        values = [one[name] for name in names if name in one] if isinstance(one, dict) else one
        if not isinstance(values, list) or len(values) < 3:
            raise DataError(f"{where}, joint {joint}: {brief(one)} is not a landmark with x, y and z; {AGAIN}")
        rows.append(values[: len(names)])
    return nested_pose(rows, where)


def _array(file: Path) -> np.ndarray:
    """[T, M, V, C] of a NumPy file."""
    try:
        with file.open("rb") as content:
            array = read_npy(content, file.stat().st_size)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not a valid NumPy file of numbers ({error}); write it again with numpy.save") from error
    if array.ndim == 2 and array.shape[1] in SHAPES:
        array = array.reshape(len(array), 1, *SHAPES[array.shape[1]])
    elif array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or array.shape[2] not in (POSE, HAND) or array.shape[3] not in (3, 4):
        raise DataError(
            f"{file}: {list(array.shape)}, expected [frames, {POSE} or {HAND}, 3 or 4], the same with people, or rows of "
            f"{', '.join(map(str, SHAPES))} numbers"
        )
    return array[..., :3] if array.shape[2] == HAND else array


def _of_array(array: np.ndarray, file: Path) -> Iterator[Frame]:
    for number, people in enumerate(array.astype(np.float64)):
        where = f"{file}: frame {number}"
        poses = [
            checked_pose(pose, f"{where}, person {person}", str(person))
            for person, pose in enumerate(people)
            if not np.isnan(pose).all()
        ]
        yield Frame(number, poses, where)


def _of_csv(file: Path) -> Iterator[Frame]:
    """Frames of a table; rows of one frame are people."""
    try:
        rows = list(csv.reader(io.StringIO(read_file(file, LARGEST_CLIP).decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not a UTF-8 table ({error})") from error
    rows = [[cell.strip() for cell in row] for row in rows]
    header = bool(rows) and any(rows[0]) and not any(map(is_number, rows[0]))
    columns = _columns(rows[0], file) if header else {}
    frames: dict[int, Frame] = {}
    for line, row in enumerate(rows[int(header) :], start=1 + int(header)):
        if not row:
            continue
        where = f"{file}, line {line}"
        number, person, pose = _row(row, columns, where) if header else (line - 1, None, _bare_row(row, where))
        frame = frames.setdefault(len(frames) if number is None else number, Frame(number or 0, [], where))
        if not np.isnan(pose).all():
            frame.poses.append(checked_pose(pose, where, person))
    yield from (frame._replace(number=number) for number, frame in frames.items())


def _columns(header: list[str], file: Path) -> dict[str, Any]:
    """Column of `frame` and `person`, and `landmarks`: the columns [V, C]."""
    names = [name.lower() for name in header]
    place: dict[tuple[int, int], int] = {}
    for column, name in enumerate(names):
        if match := _COLUMN.fullmatch(name):
            place[int(match[2]), AXES[match[1]]] = column
        elif name not in ("frame", "person"):
            raise DataError(
                f"{file}, line 1: unknown column {show(header[column])}; columns are frame, person, x0, y0, z0, visibility0, ..."
            )
    if not place:
        raise DataError(f"{file}, line 1: no landmarks; columns are frame, person, x0, y0, z0, visibility0, ...")
    if "person" in names and "frame" not in names:
        raise DataError(f"{file}, line 1: column 'person' needs column 'frame', which says which rows are of one frame")
    first, axes = min(key[0] for key in place), 1 + max(key[1] for key in place)
    for count in (POSE, HAND):
        wanted = [[(joint + first, axis) for axis in range(axes)] for joint in range(count)]
        if first in (0, 1) and set(place) == {key for row in wanted for key in row} and axes in (3, 4):
            columns = [[place[key] for key in row][: 4 if count == POSE else 3] for row in wanted]
            return {"landmarks": columns, **{name: names.index(name) for name in ("frame", "person") if name in names}}
    raise DataError(
        f"{file}, line 1: the columns are not x, y, z (and visibility) of {POSE} or {HAND} landmarks, numbered from 0 or 1"
    )


def _row(row: list[str], columns: dict[str, Any], where: str) -> tuple[int | None, str | None, np.ndarray]:
    """Frame number (None: not given), person and landmarks of a row."""
    count = 1 + max(*np.ravel(columns["landmarks"]), columns.get("frame", 0), columns.get("person", 0))
    if len(row) < count:
        raise DataError(f"{where}: {len(row)} columns, line 1 has {count}")
    values = _floats(row, where)
    pose = values[np.array(columns["landmarks"])]
    number = values[columns["frame"]] if "frame" in columns else None
    if number is not None and not (0 <= number < 1 << 53 and number == int(number)):
        raise DataError(f"{where}: frame {show(row[columns['frame']])} is not a number from 0")
    person = track_id(float(values[columns["person"]])) if "person" in columns else None
    return None if number is None else int(number), person, pose


def _bare_row(row: list[str], where: str) -> np.ndarray:
    if len(row) not in SHAPES:
        raise DataError(
            f"{where}: {len(row)} numbers, expected {', '.join(map(str, SHAPES))}, or a header line with x0, y0, z0, ..."
        )
    return _floats(row, where).reshape(SHAPES[len(row)])


def _floats(row: list[str], where: str) -> np.ndarray:
    try:
        return np.array([float(cell) if cell else np.nan for cell in row])
    except ValueError as error:
        raise DataError(f"{where}: {error}; write numbers, 0 for an undetected landmark, or an empty row for nobody") from error
