"""Pickles of pyskl: NTU RGB+D in 3D and 2D, FineGYM, Kinetics-400, and others of the same form.

`{'split': {name: [ids]}, 'annotations': [{'frame_dir', 'label', 'total_frames', 'keypoint', ...}]}` with `keypoint` [M, T, V, C];
2D poses have `keypoint_score` [M, T, V] and `img_shape` (height, width). The compressed form of Kinetics lists poses instead:
`keypoint` [n, 17, 3] with `frame_inds` [n].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shapmix.data.clips import DataError
from shapmix.data.sources import Recording
from shapmix.data.sources.names import ntu_classes, parse_ntu_name
from shapmix.data.sources.restricted import load_pickle

LAYOUTS = {25: "ntu25", 17: "coco17"}


class Pyskl:
    """Annotations of one pickle, by their `frame_dir`.

    2D poses become (x, y, score) with x and y in [-1, 1] of the picture's width and height, as pyskl's PreNormalize2D has them;
    a pose that nobody found (score 0) lies in the middle. Of more than `max_people` people those stay that move most (3D: sum
    over the axes of the variance of all joints) or are seen best (2D: sum of the scores). Frames behind the last one with a person
    are left out; all clips have as many people as the fullest, zeros where nobody stands. In the compressed form, people are
    chosen frame by frame, and frames without poses are left out, as pyskl's DecompressPose does; poses that `anno_inds` does not
    list are not used.

    Class names are those of NTU RGB+D where ids are NTU names, otherwise the class numbers.

    Raises:
        DataError: not such a pickle, or it asks for anything but data.
    """

    def __init__(self, path: Path, *, max_people: int = 2) -> None:
        self.files = [path]
        self._path, self._max_people = path, max_people
        content = load_pickle(path)
        if not isinstance(content, dict) or not isinstance(content.get("annotations"), list) or not content["annotations"]:
            raise DataError(f"{path}: has no list 'annotations'; give a pickle of pyskl's form")
        self._annotations: list[dict[str, Any]] = content["annotations"]
        self.names = [str(self._field(row, "frame_dir")) for row in range(len(self._annotations))]
        labels = [self._label(row) for row in range(len(self._annotations))]
        if all(parse_ntu_name(name) for name in self.names):
            self.class_names = ntu_classes(max(labels) + 1)
        else:
            self.class_names = [str(label) for label in range(max(labels) + 1)]
        splits = content.get("split") or {}
        if not isinstance(splits, dict):
            raise DataError(f"{path}: 'split' is a {type(splits).__name__}, not lists of ids by name")
        self.splits = {str(name): [str(entry) for entry in entries] for name, entries in splits.items()}
        joints = np.shape(self._field(0, "keypoint"))[-2:-1]
        if joints not in [(number,) for number in LAYOUTS]:
            raise DataError(f"{path}: poses of {joints[0] if joints else 'no'} joints; known are {', '.join(map(str, LAYOUTS))}")
        self.layout = LAYOUTS[joints[0]]
        most = max(
            1 if "frame_inds" in entry else (np.shape(entry["keypoint"]) or (0,))[0]
            for entry in self._annotations
            if "keypoint" in entry
        )
        self._num_people = max(1, min(most, max_people))
        self.scores = "keypoint_score" in self._annotations[0] or "frame_inds" in self._annotations[0]

    def read(self, index: int) -> Recording:
        """Recording `names[index]`; see `Source`."""
        keypoint = np.asarray(self._field(index, "keypoint"))
        joints = (self._gathered if "frame_inds" in self._annotations[index] else self._people)(index, keypoint)
        stands = np.flatnonzero(joints.any((1, 2, 3)))
        if len(stands) == 0:
            raise self._error(index, "no frame holds a person")
        name = parse_ntu_name(self.names[index])
        return Recording(joints[: stands[-1] + 1], self._label(index), **(name.numbers() if name else {}))

    def _people(self, index: int, keypoint: np.ndarray) -> np.ndarray:
        """[T, M, V, C] of [M, T, V, C]."""
        if keypoint.ndim != 4 or keypoint.dtype.kind != "f":
            raise self._error(index, f"keypoint is {list(keypoint.shape)} of {keypoint.dtype}, not [M, T, V, C] floating point")
        self._check_frames(index, keypoint.shape[1])
        if not np.isfinite(keypoint).all():
            raise self._error(index, f"frame {np.argwhere(~np.isfinite(keypoint))[0][1]} is not finite")
        poses = keypoint.astype(np.float32)
        if "keypoint_score" in self._annotations[index]:
            score = np.asarray(self._annotations[index]["keypoint_score"], dtype=np.float32)
            if poses.shape[3] != 2 or score.shape != poses.shape[:3]:
                raise self._error(
                    index, f"keypoint_score is {list(score.shape)} and keypoint {list(poses.shape)}; they do not match"
                )
            poses = self._in_picture(index, np.concatenate([poses, score[..., None]], axis=-1))
            weight = score.sum((1, 2))
        else:
            weight = poses.var((1, 2)).sum(-1)
        if len(poses) > self._num_people:
            poses = poses[np.argsort(-weight, kind="stable")[: self._num_people]]
        filled = np.zeros((poses.shape[1], self._num_people, *poses.shape[2:]), np.float32)
        filled[:, : len(poses)] = poses.transpose(1, 0, 2, 3)
        return filled

    def _gathered(self, index: int, keypoint: np.ndarray) -> np.ndarray:
        """[T, M, V, 3] of the compressed form, one pose a row; T counts the frames that have one."""
        entry, frame_of = self._annotations[index], np.asarray(self._field(index, "frame_inds"))
        if keypoint.ndim != 3 or keypoint.shape[2] != 3 or frame_of.shape != keypoint.shape[:1] or frame_of.dtype.kind not in "iu":
            raise self._error(
                index,
                f"keypoint is {list(keypoint.shape)}, frame_inds {list(frame_of.shape)} of {frame_of.dtype}; they do not match",
            )
        if "anno_inds" in entry:
            chosen = np.asarray(entry["anno_inds"])
            if chosen.dtype.kind not in "iub" or (chosen.dtype.kind != "b" and (chosen >= len(keypoint)).any()):
                raise self._error(index, f"anno_inds choose poses that are not among the {len(keypoint)}")
            keypoint, frame_of = keypoint[chosen], frame_of[chosen]
        poses = self._in_picture(index, keypoint.astype(np.float32))
        if not np.isfinite(poses).all():
            raise self._error(index, f"pose {np.argwhere(~np.isfinite(poses))[0][0]} is not finite")
        frames = np.unique(frame_of)
        found = np.zeros((len(frames), self._max_people, *poses.shape[1:]), np.float32)
        seen = poses[..., 2].sum(1)
        for place, frame in enumerate(frames):
            rows = np.flatnonzero(frame_of == frame)
            if len(rows) > self._max_people:
                rows = rows[np.argsort(-seen[rows], kind="stable")[: self._max_people]]
            found[place, : len(rows)] = poses[rows]
        return found

    def _in_picture(self, index: int, poses: np.ndarray) -> np.ndarray:
        height, width = (int(side) for side in self._field(index, "img_shape"))
        if height < 1 or width < 1:
            raise self._error(index, f"img_shape is ({height}, {width})")
        centre = np.array([width / 2, height / 2], np.float32)
        poses[..., :2] = np.where(poses[..., 2:] > 0, (poses[..., :2] - centre) / centre, 0)
        return poses

    def _check_frames(self, index: int, frames: int) -> None:
        total = int(self._annotations[index].get("total_frames", frames))
        if total != frames:
            raise self._error(index, f"keypoint has {frames} frames, total_frames is {total}")

    def _label(self, index: int) -> int:
        label = self._field(index, "label")
        if not isinstance(label, (int, np.integer)) or label < 0:
            raise self._error(index, f"label is {label!r}, not a class number")
        return int(label)

    def _field(self, index: int, key: str) -> Any:
        entry = self._annotations[index]
        if not isinstance(entry, dict) or key not in entry:
            raise DataError(f"{self._path}: annotation {index} has no '{key}'")
        return entry[key]

    def _error(self, index: int, reason: str) -> DataError:
        return DataError(f"{self._path}: annotation {index} ('{self.names[index]}'): {reason}; repair or remove it")
