"""Clips as a list of dictionaries, one per clip, in a pickle: the common part of pyskl's and mmaction2's formats.

`{'frame_dir', 'label', 'total_frames', 'keypoint', ...}` with `keypoint` [M, T, V, C] of any numeric type, one row per person; 2D
poses have `keypoint_score` [M, T, V] and `img_shape` (height, width). The compressed format lists poses instead: `keypoint`
[n, V, 3] (x, y, score) with `frame_inds` [n].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shapmix.data.sources import Recording
from shapmix.data.sources.bounded import LARGEST_CLIP, MOST_CLIPS, MOST_SPLITS, check_label, no_body, show
from shapmix.data.sources.names import class_names_of, parse_ntu_name
from shapmix.data.sources.people import MOST_IN_FRAME, link_people, seat_people
from shapmix.data.sources.skeletons import choose_layout
from shapmix.process.errors import DataError


class Annotated:
    """Annotations of a file, named by their `frame_dir`.

    2D poses become (x, y, score) with x and y normalised to [-1, 1] by the image's width and height, as in pyskl's PreNormalize2D;
    undetected joints (score 0) are placed at the centre. A person keeps one place through the clip. If a clip has more people than
    `people`, by default two, those with the most motion are kept (3D: variance of all joints, summed over the axes), or those with
    the highest total score (2D). Frames after the last one with a person are removed; all clips are padded with zeros to the same
    number of people.

    In the compressed format, frames without poses are removed, as in pyskl's DecompressPose; poses that `anno_inds` does not list
    are ignored. Poses of one person are linked from frame to frame by their joints (`shapmix.data.sources.people`), because their
    order within a frame changes.

    Class names are those of NTU RGB+D if the ids are NTU names, otherwise the class numbers.

    Raises:
        DataError: invalid annotations, or a skeleton that is not guessed.
    """

    def __init__(
        self,
        path: Path,
        annotations: Sequence[Any],
        splits: Mapping[str, list[str]],
        *,
        files: Sequence[Path] = (),
        layout: str | None = None,
        people: int | None = None,
    ) -> None:
        max_people = people or 2
        self.files = [path, *files]
        self._path, self._max_people = path, max_people
        self._annotations: Sequence[dict[str, Any]] = annotations
        if len(annotations) > MOST_CLIPS:
            raise DataError(f"{path}: {len(annotations)} annotations; the limit is {MOST_CLIPS}")
        self.names = [self._name(row) for row in range(len(annotations))]
        self.labels = [self._label(row) for row in range(len(annotations))]
        self.class_names = class_names_of(self.names, self.labels)
        self.splits = dict(splits)
        compressed, apart = "frame_inds" in annotations[0], "keypoint_score" in annotations[0]
        self.scores = compressed or apart
        self.layout = layout or self._guessed_layout(apart and not compressed)
        found = (
            max_people if "frame_inds" in entry else (np.shape(entry["keypoint"]) or (0,))[0]
            for entry in annotations
            if "frame_inds" in entry or isinstance(entry.get("keypoint"), np.ndarray)
        )
        most = max(found, default=1)  # without an array, `read` says what is wrong
        self._num_people = max(1, min(most, max_people))

    def read(self, index: int) -> Recording:
        """Recording `names[index]`; see `Source`."""
        keypoint = self._keypoint(index)
        if keypoint.size * np.dtype(np.float32).itemsize > LARGEST_CLIP:
            raise self._error(index, f"keypoint has shape {list(keypoint.shape)}, more than {LARGEST_CLIP} bytes")
        with np.errstate(over="ignore", invalid="ignore"):  # non-finite values are rejected below
            joints = (self._from_compressed if "frame_inds" in self._annotations[index] else self._people)(index, keypoint)
        if not np.isfinite(joints).all():
            raise self._error(index, f"frame {np.argwhere(~np.isfinite(joints))[0][0]} is not finite")
        stands = np.flatnonzero(joints.any((1, 2, 3)))
        if len(stands) == 0:
            raise no_body(self._where(index))
        name = parse_ntu_name(self.names[index])
        return Recording(joints[: stands[-1] + 1], self.labels[index], **(name.numbers() if name else {}))

    def _keypoint(self, index: int) -> np.ndarray:
        return self._array(index, "keypoint")

    def _guessed_layout(self, scores_apart: bool) -> str:
        shape = self._keypoint(0).shape
        if len(shape) < 3:
            raise self._error(0, f"keypoint has shape {list(shape)}, expected [M, T, V, C]")
        return choose_layout(None, self._path, shape[-2], shape[-1] + int(scores_apart), scores=self.scores)

    def _people(self, index: int, keypoint: np.ndarray) -> np.ndarray:
        """[M, T, V, C] -> [T, M, V, C] of the selected people."""
        if keypoint.ndim != 4 or keypoint.dtype.kind not in "fiu":
            raise self._error(index, f"keypoint is {list(keypoint.shape)} of {keypoint.dtype}, expected numbers [M, T, V, C]")
        self._check_frames(index, keypoint.shape[1])
        if not np.isfinite(keypoint).all():
            raise self._error(index, f"frame {np.argwhere(~np.isfinite(keypoint))[0][1]} is not finite")
        poses = keypoint.astype(np.float32)
        if not poses.size:
            raise no_body(self._where(index))
        if "keypoint_score" in self._annotations[index]:
            score = self._array(index, "keypoint_score").astype(np.float32)
            if poses.shape[3] != 2 or score.shape != poses.shape[:3]:
                raise self._error(
                    index, f"shapes of keypoint_score {list(score.shape)} and keypoint {list(poses.shape)} do not match"
                )
            poses = self._normalised(index, np.concatenate([poses, score[..., None]], axis=-1))
            weight = score.sum((1, 2))
        else:
            weight = poses.var((1, 2)).sum(-1)
        if len(poses) > self._num_people:
            poses = poses[np.argsort(-weight, kind="stable")[: self._num_people]]
        filled = np.zeros((poses.shape[1], self._num_people, *poses.shape[2:]), np.float32)
        filled[:, : len(poses)] = poses.transpose(1, 0, 2, 3)
        return filled

    def _selected(self, index: int, poses: int) -> np.ndarray | None:
        """Indices or mask of the poses that are read; None: all `poses`."""
        if "anno_inds" not in self._annotations[index]:
            return None
        chosen = self._array(index, "anno_inds")
        if not _is_selection(chosen, poses):
            raise self._error(index, f"anno_inds contains indices outside the {poses} poses")
        return chosen

    def _from_compressed(self, index: int, keypoint: np.ndarray) -> np.ndarray:
        """[T, M, V, 3] from the compressed format (one pose per row); T counts the frames with at least one pose."""
        frame_of = self._array(index, "frame_inds")
        if keypoint.ndim != 3 or keypoint.shape[2] != 3 or frame_of.shape != keypoint.shape[:1] or frame_of.dtype.kind not in "iu":
            raise self._error(
                index,
                f"shapes of keypoint {list(keypoint.shape)} and frame_inds {list(frame_of.shape)} of {frame_of.dtype} do not match",
            )
        chosen = self._selected(index, len(keypoint))
        if chosen is not None:
            keypoint, frame_of = keypoint[chosen], frame_of[chosen]
        if not len(frame_of):
            raise no_body(self._where(index))
        poses = keypoint.astype(np.float32)
        if not np.isfinite(poses).all():
            raise self._error(index, f"pose {np.argwhere(~np.isfinite(poses))[0][0]} is not finite")
        frame_of = frame_of.astype(np.int64)
        seen = poses[..., 2].sum(1)
        in_order = np.lexsort((-seen, frame_of))
        frame_of, poses, seen = frame_of[in_order], poses[in_order], seen[in_order]
        frames, first, place = np.unique(frame_of, return_index=True, return_inverse=True)
        crowd = np.arange(len(frame_of)) - first[place] >= MOST_IN_FRAME
        if crowd.any():  # the most certain ones are compared
            frame_of, poses, seen, place = frame_of[~crowd], poses[~crowd], seen[~crowd], place[~crowd]
        person = link_people(frame_of, poses[..., :2], poses[..., 2] > 0)
        seat = seat_people(frame_of, person, seen.astype(np.float64), self._max_people)
        found = np.zeros((len(frames), self._max_people, *poses.shape[1:]), np.float32)
        seated = np.flatnonzero(seat >= 0)
        found[place[seated], seat[seated]] = self._normalised(index, poses[seated])
        return found[found.any((1, 2, 3))]

    def _normalised(self, index: int, poses: np.ndarray) -> np.ndarray:
        """Poses [..., 3] in units of the image, changed in place."""
        shape = self._field(index, "img_shape")
        sides = list(shape) if isinstance(shape, (tuple, list)) or (isinstance(shape, np.ndarray) and shape.ndim == 1) else []
        if len(sides) != 2 or not all(isinstance(side, (int, np.integer)) and 1 <= side < 1 << 31 for side in sides):
            raise self._error(index, f"img_shape is {show(shape)}, not the height and width of an image")
        height, width = map(int, sides)
        centre = np.array([width / 2, height / 2], np.float32)
        poses[..., :2] -= centre
        poses[..., :2] /= centre
        poses[~(poses[..., 2] > 0), :2] = 0
        return poses

    def _check_frames(self, index: int, frames: int) -> None:
        total = self._annotations[index].get("total_frames", frames)
        if not isinstance(total, (int, np.integer)) or total != frames:
            raise self._error(index, f"keypoint has {frames} frames but total_frames is {show(total)}")

    def _label(self, index: int) -> int:
        return check_label(self._field(index, "label"), self._where(index))

    def _name(self, index: int) -> str:
        name = self._field(index, "frame_dir")
        if not isinstance(name, (str, int, np.integer)):
            raise DataError(f"{self._path}: annotation {index}: frame_dir is {show(name)}, not a name")
        return str(name)

    def _array(self, index: int, key: str) -> np.ndarray:
        value = self._field(index, key)
        if isinstance(value, list) and all(type(number) is int and abs(number) < 1 << 62 for number in value):
            return np.array(value, np.int64)
        if not isinstance(value, np.ndarray):
            raise self._error(index, f"{key} is a {type(value).__name__}, not an array")
        if value.dtype.kind not in "fiub":
            raise self._error(index, f"{key} has element type {value.dtype}, which is not numeric")
        return value

    def _field(self, index: int, key: str) -> Any:
        entry = self._annotations[index]
        if not isinstance(entry, dict) or key not in entry:
            raise DataError(f"{self._path}: annotation {index} has no '{key}'; add it, or remove the annotation")
        return entry[key]

    def _error(self, index: int, reason: str) -> DataError:
        return DataError(f"{self._where(index)}: {reason}; repair or remove it")

    def _where(self, index: int) -> str:
        return f"{self._path}: annotation {index} ('{self.names[index]}')"


def check_splits(path: Path, splits: Any, clips: int) -> dict[str, list[str]]:
    """The splits of a file: lists of ids by name, whatever the names are.

    Raises:
        DataError: not such lists, or one that is longer than the list of all clips.
    """
    if splits is None:
        return {}
    if not isinstance(splits, dict) or len(splits) > MOST_SPLITS:
        raise DataError(f"{path}: 'split' is {show(splits)}, not up to {MOST_SPLITS} lists of ids by name")
    found = {}
    for name, entries in splits.items():
        one_by_one = isinstance(entries, (list, tuple)) or (isinstance(entries, np.ndarray) and entries.ndim == 1)
        if not one_by_one or len(entries) > clips or not all(isinstance(entry, (str, int, np.integer)) for entry in entries):
            raise DataError(f"{path}: split {show(name)} is not a list of ids of these {clips} annotations; correct it")
        found[str(name)] = [str(entry) for entry in entries]
    return found


def _is_selection(chosen: np.ndarray, poses: int) -> bool:
    """Whether `chosen` is a valid index [k] or mask [poses] into so many poses."""
    if chosen.ndim != 1 or chosen.dtype.kind not in "iub":
        return False
    if chosen.dtype.kind == "b":
        return len(chosen) == poses
    return len(chosen) <= poses and bool(((chosen >= -poses) & (chosen < poses)).all())
