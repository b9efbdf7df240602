"""Reader of MMPose 1.x predictions: the files of the inferencer (`pred_out_dir`) and of the demos (`--save-predictions`).

- a video: one file, `[{"frame_id": 0, "instances": [...]}, ...]`; the demos put that list into `{"instance_info": [...]}`;
- images: a folder of files, one per image, each a list of instances; the frame is the number that ends the name;
- results of the Python interface, as one list of instances per frame, in order.

An instance is `{"keypoints": [[x, y], ...], "keypoint_scores": [...]}`; x, y, z in 3-D. MMPose writes no track ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from shapmix.data.sources.bounded import numbers
from shapmix.data.sources.pose_clips import AGAIN, Clip, PoseFiles, brief, checked_pose, named_layout, nested_pose, read_json
from shapmix.data.sources.registry import source
from shapmix.data.sources.tracks import Frame, Pose
from shapmix.process.errors import DataError
from shapmix.skeleton.layout import Layout


def _fits(path: Path) -> bool:
    files = [path] if path.is_file() else [file for depth in ("", "*/", "*/*/") for file in islice(path.glob(f"{depth}*.json"), 1)]
    return any(file.suffix == ".json" and _begins_with_instances(file) for file in files)


def _begins_with_instances(file: Path) -> bool:
    try:
        with file.open("rb") as content:
            begin = content.read(1 << 16)
    except OSError:
        return False
    return b'"keypoint_scores"' in begin or (b'"frame_id"' in begin and b'"instances"' in begin)


@source(
    "mmpose", "MMPose predictions, one JSON file per clip or a folder of one per frame", fits=_fits, asks_layout=lambda path: True
)
class MMPose(PoseFiles):
    """Clips of MMPose: (x, y, score), or (x, y, z, score); people are joined by distance.

    Files of the demos name the joints; otherwise 17 joints in two dimensions are taken for COCO's, and other models need `layout`.
    """

    inside = ("predictions",)
    scored = (3, 4)

    def is_frame(self, file: Path) -> bool:
        """Whether the file is a list of instances: a frame."""
        content = read_json(file)
        return isinstance(content, list) and (content == [] or (isinstance(content[0], dict) and "instances" not in content[0]))

    def frames(self, clip: Clip) -> Iterator[Frame]:
        """The frames of a video's file, or those of one file per frame."""
        if len(clip.files) > 1:
            for number, file in self.numbered(clip.files):
                yield _frame(number, read_json(file), f"{file}: frame {number}")
        else:
            yield from _frames(read_json(clip.files[0]), clip.files[0])

    def _skeleton(self) -> str | Layout:
        content = read_json(self._clips[0].files[0])
        info = content.get("meta_info") if isinstance(content, dict) else None
        names = info.get("keypoint_id2name") if isinstance(info, dict) else None
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            return super()._skeleton()
        return named_layout(list(names.values()), self._clips[0].files[0])


def _frames(content: Any, file: Path) -> Iterator[Frame]:
    if isinstance(content, dict) and "instance_info" in content:
        content = content["instance_info"]
    if isinstance(content, dict) and "bboxes" in content:
        raise DataError(f"{file}: boxes without keypoints, as MMDetection writes them; run a pose model of MMPose")
    if not isinstance(content, list):
        raise DataError(f"{file}: {brief(content)} is not a list of frames; {AGAIN}")
    if content and isinstance(content[0], dict) and "instances" not in content[0]:
        yield _frame(0, content, f"{file}: frame 0")  # a single image
        return
    for row, entry in enumerate(content):
        if isinstance(entry, list):
            yield _frame(row, entry, f"{file}: frame {row}")
            continue
        number = entry.get("frame_id") if isinstance(entry, dict) else None
        if type(number) is not int or "instances" not in entry:
            raise DataError(f"{file}: entry {row} is {brief(entry)}, without 'frame_id' and 'instances'; {AGAIN}")
        yield _frame(number, entry["instances"], f"{file}: frame {number}")


def _frame(number: int, instances: Any, where: str) -> Frame:
    if not isinstance(instances, list):
        raise DataError(f"{where}: {brief(instances)} is not a list of instances; {AGAIN}")
    return Frame(number, [_pose(entry, f"{where}, person {person}") for person, entry in enumerate(instances)], where)


def _alone(values: Any, depth: int) -> Any:
    """The only element of a list that is nested `depth` deep: lifted poses of some versions keep the axis of frames."""
    inner = values
    for _ in range(depth - 1):
        inner = inner[0] if isinstance(inner, list) and inner else None
    return values[0] if isinstance(inner, list) and len(values) == 1 else values


def _pose(entry: Any, where: str) -> Pose:
    if not isinstance(entry, dict) or "keypoints" not in entry:
        raise DataError(f"{where}: {brief(entry)} has no 'keypoints'; {AGAIN}")
    places = nested_pose(_alone(entry["keypoints"], 3), where).joints
    scores = _alone(entry.get("keypoint_scores"), 2)
    if places.shape[1] not in (2, 3):
        raise DataError(f"{where}: joints of {places.shape[1]} numbers, not x, y or x, y, z; {AGAIN}")
    if not isinstance(scores, list) or len(scores) != len(places) or not numbers([scores]):
        raise DataError(f"{where}: 'keypoint_scores' is {brief(scores)}, not {len(places)} numbers; {AGAIN}")
    return checked_pose(np.concatenate([places, np.array(scores, np.float64)[:, None]], axis=1), where)
