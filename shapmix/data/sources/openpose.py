"""Reader of OpenPose's JSON files (`--write_json`): one file per frame, `NAME_000000000012_keypoints.json`.

`{"version": 1.3, "people": [{"person_id": [-1], "pose_keypoints_2d": [x0, y0, c0, ...], ...}]}`: BODY_25 or COCO (18 joints) by the
number of joints. Hands, faces and 3-D points of the same file are ignored. OpenPose up to 2017 names the list `pose_keypoints`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shapmix.data.sources.pose_clips import AGAIN, Clip, PoseFiles, brief, flat_pose, read_json, track_id
from shapmix.data.sources.registry import source
from shapmix.data.sources.tracks import Frame, Pose
from shapmix.process.errors import DataError

ENDING = "_keypoints.json"
LISTS = ("pose_keypoints_2d", "pose_keypoints")


def _fits(path: Path) -> bool:
    return path.is_dir() and any(next(path.glob(depth + "*" + ENDING), None) for depth in ("", "*/", "*/*/", "*/*/*/"))


@source("openpose", f"OpenPose's folders of *{ENDING}, one folder per clip", fits=_fits)
class OpenPose(PoseFiles):
    """Clips of OpenPose: (x, y, confidence) as the tool scaled them; undetected joints are zero.

    People are joined by `person_id`, if OpenPose tracked them (`--tracking`, `--identification`), else by distance.
    """

    endings = (ENDING,)
    skeletons = MappingProxyType({25: "body25", 18: "openpose18"})

    def is_frame(self, file: Path) -> bool:
        """Every file is one frame."""
        return True

    def frames(self, clip: Clip) -> Iterator[Frame]:
        """One frame per file."""
        for number, file in self.numbered(clip.files):
            yield Frame(number, list(_people(read_json(file), f"{file}: frame {number}")), f"{file}: frame {number}")


def _people(content: Any, where: str) -> Iterator[Pose]:
    if not isinstance(content, dict) or not isinstance(content.get("people"), list):
        raise DataError(f"{where}: has no list 'people'; {AGAIN}")
    for person, entry in enumerate(content["people"]):
        name = next((name for name in LISTS if isinstance(entry, dict) and name in entry), None)
        if name is None:
            raise DataError(f"{where}, person {person}: {brief(entry)} has no '{LISTS[0]}'; {AGAIN}")
        if entry[name] != []:  # only a face or hands
            yield flat_pose(entry[name], 3, f"{where}, person {person}", track_id(entry.get("person_id")))
