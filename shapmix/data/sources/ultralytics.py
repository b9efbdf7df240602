"""Reader of the pose predictions of Ultralytics YOLO.

- `save_txt=True`: one text file per frame, `labels/NAME_12.txt`; a line per person: class, x, y, width and height of the box, then
  x, y and confidence of each joint (normalised to the image's size), then the box's confidence (`save_conf=True`) and the track
  id (`model.track`). Frames without a person have no file.
- `results.to_json()`: one JSON file per frame (the number ends the name), or one per clip with a list of frames:
  `json.dump([json.loads(result.to_json()) for result in results], file)`.

`predictions.json` of `yolo val` is in COCO's format: `--format coco_results`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shapmix.data.sources.bounded import LARGEST_CLIP, is_number, numbers, read_file, show
from shapmix.data.sources.pose_clips import AGAIN, Clip, PoseFiles, brief, checked_pose, read_json, track_id
from shapmix.data.sources.registry import source
from shapmix.data.sources.tracks import Frame, Pose
from shapmix.process.errors import DataError
from shapmix.skeleton.layout import load_layout

BOX = 5  # class, x, y, width, height
COCO = 17  # joints of the published models


def _fits(path: Path) -> bool:
    if path.is_file():
        return path.suffix == ".txt" and path.stem[-1:].isdecimal() and _is_label(path)
    files = [next(path.glob(f"{depth}labels/*_*[0-9].txt"), None) for depth in ("", "*/", "*/*/", "*/*/*/")]
    return any(file is not None and _is_label(file) for file in files)


def _is_label(file: Path) -> bool:
    with file.open("rb") as content:
        words = content.readline(1 << 16).split()
    return len(words) > BOX + 4 and words[0].isdigit()


@source(
    "ultralytics",
    "pose predictions of Ultralytics YOLO, a folder of labels/NAME_FRAME.txt per clip",
    fits=_fits,
    asks_layout=lambda path: True,
)
class Ultralytics(PoseFiles):
    """Clips of YOLO: (x, y, confidence), or (x, y) of a model without confidences; YOLO may place joints of low confidence at 0, 0.

    People are joined by the track id, if there is one, else by distance. Models other than the published ones (17 joints of COCO)
    need `layout`.
    """

    endings = (".txt", ".json")
    inside = ("labels",)

    def __init__(self, path: Path, *, layout: str | None = None, people: int | None = None) -> None:
        self._given = None if layout is None else load_layout(layout).num_joints
        super().__init__(path, layout=layout, people=people)

    def is_frame(self, file: Path) -> bool:
        """Text files are frames; a JSON file is one if it holds people rather than lists of people."""
        if file.suffix == ".txt":
            return True
        content = read_json(file)
        return isinstance(content, list) and (content == [] or isinstance(content[0], dict))

    def frames(self, clip: Clip) -> Iterator[Frame]:
        """One frame per file, or those of a JSON file."""
        if len(clip.files) == 1 and not self.is_frame(clip.files[0]):
            content = read_json(clip.files[0])
            if not isinstance(content, list):
                raise DataError(f"{clip.files[0]}: {brief(content)} is not a list of frames; {AGAIN}")
            yield from (_frame(row, entry, f"{clip.files[0]}: frame {row}") for row, entry in enumerate(content))
            return
        for number, file in self.numbered(clip.files):
            where = f"{file}: frame {number}"
            yield self._lines(number, file) if file.suffix == ".txt" else _frame(number, read_json(file), where)

    def _takes(self, file: Path) -> bool:
        return super()._takes(file) and (file.suffix == ".json" or file.stem[-1:].isdecimal())

    def _lines(self, number: int, file: Path) -> Frame:
        """The people of a text file."""
        poses = []
        rows = read_file(file, LARGEST_CLIP).decode("ascii", "replace").splitlines()
        values = [row.split() for row in rows]
        for line, words in enumerate(values, start=1):
            where = f"{file}, line {line}"
            try:
                row = [float(word) for word in words]
            except ValueError:
                wrong = next(word for word in words if not is_number(word))
                raise DataError(f"{where}: {show(wrong)} is not a number; {AGAIN}") from None
            joints, columns = self._shape(len(row) - BOX, where)
            extra = row[BOX + joints * columns :]
            pose = np.array(row[BOX : BOX + joints * columns]).reshape(joints, columns)
            poses.append(checked_pose(pose, where, track_id(_id_of(extra))))
        return Frame(number, poses, f"{file}: frame {number}")

    def _shape(self, length: int, where: str) -> tuple[int, int]:
        """Joints and numbers per joint of a line, which ends with up to two numbers: the box's confidence and the track id."""
        joints = self._given or COCO
        for columns in (3, 2):
            if 0 <= length - joints * columns <= 2:
                return joints, columns
        raise DataError(
            f"{where}: {length} numbers after the box; {joints} joints have {3 * joints}, or {2 * joints} without confidence, and "
            "up to 2 may follow. Give the --layout of the model"
        )


def _id_of(extra: list[float]) -> float | None:
    """The track id among the numbers that end a line: the last of two; a single one is a confidence unless it is whole."""
    if not extra or (len(extra) == 1 and not float(extra[0]).is_integer()):
        return None
    return extra[-1]


def _frame(number: int, entries: Any, where: str) -> Frame:
    """The people of one `to_json()`."""
    if not isinstance(entries, list):
        raise DataError(f"{where}: {brief(entries)} is not a list of people; {AGAIN}")
    return Frame(number, [_pose(entry, f"{where}, person {person}") for person, entry in enumerate(entries)], where)


def _pose(entry: Any, where: str) -> Pose:
    keypoints = entry.get("keypoints") if isinstance(entry, dict) else None
    if not isinstance(keypoints, dict):
        raise DataError(f"{where}: {brief(entry)} has no 'keypoints'; use a pose model")
    columns: list[Any] = [keypoints.get(name) for name in ("x", "y", "visible") if name in keypoints]
    if len(columns) < 2 or any(not isinstance(column, list) or len(column) != len(columns[0]) or not column for column in columns):
        raise DataError(f"{where}: 'keypoints' is {brief(keypoints)}, not lists 'x' and 'y' of one length; {AGAIN}")
    for column in columns:
        if not numbers([column]):
            joint, value = next((joint, one) for joint, one in enumerate(column) if not numbers([[one]]))
            raise DataError(f"{where}, joint {joint}: {brief(value)} is not a number; {AGAIN}")
    return checked_pose(np.array(columns, np.float64).T, where, track_id(entry.get("track_id")))
