"""Reader of AlphaPose's `alphapose-results.json`: one file per clip, in a folder of the clip's name or named after the clip.

- default format: `[{"image_id": "12.jpg", "category_id": 1, "keypoints": [x0, y0, c0, ...], "score": s, "idx": n}, ...]`;
- `--format open` and `cmu`: `{"12.jpg": {"people": [{"pose_keypoints_2d": [...]}]}}`, or `bodies` and `joints`, with the 18 joints
  of OpenPose. AlphaPose computes them from the 17 of COCO; with a Halpe model their neck is wrong, so use the default format there.
- PoseFlow's tracked results (`alphapose-results-forvis-tracked.json`): `{"12.jpg": [{"keypoints": [...], "idx": n}, ...]}`.

The frame is the number that ends `image_id`. Frames without a person are not in the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from shapmix.data.sources.coco_results import ALPHAPOSE as NAME
from shapmix.data.sources.coco_results import by_frame, holds_results, read_results
from shapmix.data.sources.pose_clips import AGAIN, Clip, PoseFiles, brief, flat_pose, frame_number, read_json
from shapmix.data.sources.registry import source
from shapmix.data.sources.tracks import Frame
from shapmix.process.errors import DataError

LISTS = {"people": "pose_keypoints_2d", "bodies": "joints"}  # of --format open and cmu


def _fits(path: Path) -> bool:
    if path.is_dir() and any(next(path.glob(depth + NAME), None) for depth in ("", "*/", "*/*/", "*/*/*/")):
        return True
    return path.name == NAME or holds_results(path, "alphapose")


@source("alphapose", f"AlphaPose's {NAME}, one per clip", fits=_fits)
class AlphaPose(PoseFiles):
    """Clips of AlphaPose: (x, y, score) in pixels of the image.

    People are joined by `idx`, if AlphaPose tracked them (`--pose_track`, `--pose_flow`), else by distance: without tracking,
    AlphaPose writes the same `idx` for everybody.
    """

    fixed = NAME
    skeletons = MappingProxyType({17: "coco17", 26: "halpe26", 133: "coco_wholebody133", 18: "openpose18"})

    def is_frame(self, file: Path) -> bool:
        """A file holds a clip."""
        return False

    def frames(self, clip: Clip) -> Iterator[Frame]:
        """The frames with at least one person."""
        content = read_json(clip.files[0])
        if isinstance(content, dict) and content and all(isinstance(people, list) for people in content.values()):
            content = _listed(content)
        if isinstance(content, dict):
            yield from _of_openpose_form(content, clip.files[0])
            return
        frames = list(by_frame(read_results(content, clip.files[0], "idx")))
        ids = {pose.person for frame in frames for pose in frame.poses}
        if len(ids) == 1 and any(len(frame.poses) > 1 for frame in frames):
            frames = [frame._replace(poses=[pose._replace(person=None) for pose in frame.poses]) for frame in frames]
        yield from frames

    def _stem(self, path: Path) -> str:
        return path.parent.name if path.name == NAME else super()._stem(path)


def _listed(content: dict[str, list[Any]]) -> list[Any]:
    """PoseFlow's results as a list like the default format."""
    return [
        {**entry, "image_id": image} if isinstance(entry, dict) else entry for image, people in content.items() for entry in people
    ]


def _of_openpose_form(content: dict[str, Any], file: Path) -> Iterator[Frame]:
    """Frames of `--format open` and `cmu`."""
    for image, entry in content.items():
        number = frame_number(PurePosixPath(image).stem, str(file))
        where = f"{file}: frame {number}"
        key = next((key for key in LISTS if isinstance(entry, dict) and isinstance(entry.get(key), list)), None)
        if key is None:
            raise DataError(f"{where}: {brief(entry)} has neither 'people' nor 'bodies'; {AGAIN}")
        poses = []
        for person, one in enumerate(entry[key]):
            if not isinstance(one, dict) or LISTS[key] not in one:
                raise DataError(f"{where}, person {person}: {brief(one)} has no '{LISTS[key]}'; {AGAIN}")
            poses.append(flat_pose(one[LISTS[key]], 3, f"{where}, person {person}"))
        yield Frame(number, poses, where)
