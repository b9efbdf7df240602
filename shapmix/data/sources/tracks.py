"""People of a clip: the poses that a pose tool finds in each frame become tracks, one per person.

Poses with the tool's track id are joined by it. Without ids they are linked from frame to frame by the distance of their joints,
see `shapmix.data.sources.people`. The order and the scores of the poses within a frame are never used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from shapmix.data.sources.bounded import LARGEST_CLIP, no_body
from shapmix.data.sources.people import MOST_IN_FRAME, link_people, seat_people
from shapmix.process.errors import DataError

LARGEST_FRAME = 10_000_000  # frame number; 90 hours of video


class Pose(NamedTuple):
    """One person in one frame: `joints` [V, C] float32, and the tool's track id, if it gives one."""

    joints: np.ndarray
    person: str | None = None


class Frame(NamedTuple):
    """The poses of one frame; `where` begins error messages about it."""

    number: int
    poses: list[Pose]
    where: str


class Track(NamedTuple):
    """One person of a clip.

    Attributes:
        person: the tool's track id, or the number of the track, counted from 0 by first appearance.
        frames: [n] int64 frame numbers, ascending.
        poses: [n, V, C] float32.
    """

    person: str
    frames: np.ndarray
    poses: np.ndarray


def follow(frames: Iterable[Frame], coordinates: int) -> list[Track]:
    """Joins the poses of a clip's frames to people: by the tool's track ids if every pose of the clip has one, else by distance.

    Args:
        frames: in any order.
        coordinates: the first so many columns of the joints are coordinates; a score follows.

    Returns:
        Tracks, those with most frames first; then those that begin earlier.

    Raises:
        DataError: too many people, a frame number out of range, or two poses of a frame with the same id.
    """
    in_order = sorted(frames, key=lambda frame: frame.number)
    for frame in in_order:
        if not 0 <= frame.number <= LARGEST_FRAME:
            raise DataError(f"{frame.where}: frame number {frame.number} is not from 0 to {LARGEST_FRAME}; rename it")
    if not any(frame.poses for frame in in_order):
        return []
    poses = np.stack([pose.joints for frame in in_order for pose in frame.poses])
    numbers = np.array([frame.number for frame in in_order for _ in frame.poses])
    if all(pose.person is not None for frame in in_order for pose in frame.poses):
        names = _ids(in_order)
    else:
        crowd = next((frame for frame in in_order if len(frame.poses) > MOST_IN_FRAME), None)
        if crowd is not None:
            raise DataError(
                f"{crowd.where}: {len(crowd.poses)} people without track ids in one frame, the limit is {MOST_IN_FRAME}; track "
                "them, or raise the detection threshold of the pose tool"
            )
        names = link_people(numbers, poses[..., :coordinates], np.any(poses[..., :coordinates], axis=2)).astype(str).tolist()
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows_of.setdefault(name, []).append(row)
    tracks = [Track(name, numbers[rows], poses[rows]) for name, rows in rows_of.items()]
    return sorted(tracks, key=lambda track: (-len(track.frames), track.frames[0]))


def fill(tracks: Sequence[Track], where: str, people: int) -> tuple[np.ndarray, int]:
    """Joints [T, M, V, C] of at most `people` people, and the number of the first frame.

    T runs from the first frame with one of these people to the last. Where a person is missing, all coordinates are zero. People
    with more frames come first; one who leaves before another enters shares the place of that one.

    Raises:
        DataError: no tracks, or an array larger than `LARGEST_CLIP`.
    """
    if not tracks:
        raise no_body(where)
    numbers = np.concatenate([track.frames for track in tracks])
    person = np.repeat(np.arange(len(tracks)), [len(track.frames) for track in tracks])
    seat = seat_people(numbers, person, np.ones(len(person)), people)
    poses, seated = np.concatenate([track.poses for track in tracks]), seat >= 0
    first, last = int(numbers[seated].min()), int(numbers[seated].max())
    shape = (last - first + 1, int(seat.max()) + 1, *poses.shape[1:])
    if int(np.prod(shape)) * np.dtype(np.float32).itemsize > LARGEST_CLIP:
        raise DataError(
            f"{where}: frames {first} to {last} with {shape[1]} people take more than {LARGEST_CLIP} bytes; "
            "check the frame numbers, or split the clip"
        )
    joints = np.zeros(shape, np.float32)
    joints[numbers[seated] - first, seat[seated]] = poses[seated]
    return joints, first


def _ids(frames: Sequence[Frame]) -> list[str]:
    """The tool's track id of every pose."""
    names = []
    for frame in frames:
        ids = [str(pose.person) for pose in frame.poses]
        if len(set(ids)) < len(ids):
            twice = next(one for one in ids if ids.count(one) > 1)
            raise DataError(f"{frame.where}: two people have the track id {twice}; track again, or remove the ids")
        names += ids
    return names
