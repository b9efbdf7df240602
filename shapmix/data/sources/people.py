"""People of poses that have a frame but no identity: poses are linked from frame to frame, and people take seats.

The order and the score of a pose within its frame say nothing about who it is: both change from frame to frame.
"""

from __future__ import annotations

import numpy as np

REACH = 0.5  # largest distance of a link, in diagonals of the person's box
GAP = 30  # frames that a person may be missing and still be linked
MOST_IN_FRAME = 64  # people; the links of a frame are quadratic in their number


def link_people(frame_of: np.ndarray, places: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Person of each pose [n] int64, numbered from 0 in order of appearance.

    The distance between two poses is the mean over the joints that both have, in units of the diagonal of the earlier pose's box.
    If no frame has two poses, all are one person. Otherwise poses of consecutive frames are linked in ascending order of the
    distance, up to `REACH`; what is left is compared with the people who were missed for at most `GAP` frames, and otherwise begins
    a new person.

    Args:
        frame_of: [n] integers, ascending; at most `MOST_IN_FRAME` poses have the same frame.
        places: [n, V, D] finite coordinates.
        seen: [n, V] bool, whether the joint was detected.
    """
    if not len(frame_of):
        return np.empty(0, np.int64)
    starts = np.flatnonzero(np.r_[True, np.diff(frame_of) != 0])
    ends = np.r_[starts[1:], len(frame_of)]
    if len(starts) == len(frame_of):
        return np.zeros(len(frame_of), np.int64)  # one person in every frame: nothing to tell apart
    poses = _Poses(places, seen)
    earlier, later = _pairs(starts, ends, frame_of)
    distance = poses.distances(earlier, later)
    near = np.flatnonzero(distance <= REACH)
    near = near[np.lexsort((distance[near], frame_of[later[near]]))]
    links: dict[int, list[tuple[int, int]]] = {}  # frame -> pairs of poses, closest first
    for frame, before, after in zip(frame_of[later[near]].tolist(), earlier[near].tolist(), later[near].tolist(), strict=True):
        links.setdefault(frame, []).append((before, after))
    person = [-1] * len(frame_of)
    people = 0
    present: dict[int, int] = {}  # person -> last pose
    missed: dict[int, int] = {}
    frames = frame_of.tolist()
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        now: dict[int, int] = {}
        for before, after in links.get(frames[start], ()):
            who = person[before]
            if person[after] < 0 and who not in now:
                person[after] = who
                now[who] = after
        if missed or len(now) < len(present):
            missed |= {who: pose for who, pose in present.items() if who not in now}
            missed = {who: pose for who, pose in missed.items() if frames[start] - frames[pose] <= GAP}
        if len(now) < end - start:
            left = [pose for pose in range(start, end) if person[pose] < 0]
            for who, pose in _found_again(missed, left, poses):
                person[pose] = who
                now[who] = pose
                del missed[who]
            for pose in left:
                if person[pose] < 0:
                    person[pose] = people
                    now[people] = pose
                    people += 1
        present = now
    return np.array(person)


def _found_again(missed: dict[int, int], left: list[int], poses: _Poses) -> list[tuple[int, int]]:
    """Pairs of a missed person (given with the last pose) and one of the poses `left`, closest first, each at most once."""
    if not missed:
        return []
    names = list(missed)
    before, after = (grid.ravel() for grid in np.meshgrid(np.array(list(missed.values())), left, indexing="ij"))
    distance = poses.distances(before, after)
    found: dict[int, int] = {}
    for at in np.argsort(distance, kind="stable").tolist():
        who, pose = names[at // len(left)], int(after[at])
        if distance[at] <= REACH and who not in found and pose not in found.values():
            found[who] = pose
    return list(found.items())


def seat_people(frame_of: np.ndarray, person: np.ndarray, weight: np.ndarray, seats: int) -> np.ndarray:
    """Seat of each pose [n] int64, -1 for poses that get none.

    People are seated in descending order of their total weight. Each takes the first seat that is free in all of their frames, so
    that a person who was lost and found again, or who leaves before another enters, does not hide anybody.

    Args:
        frame_of: [n] frames.
        person: [n] people; a person has one pose per frame.
        weight: [n] weight of each pose, such as its score.
        seats: people of a clip.
    """
    seat = np.full(len(person), -1, np.int64)
    names, inverse = np.unique(person, return_inverse=True)
    taken: list[set[int]] = [set() for _ in range(seats)]
    for who in np.argsort(-np.bincount(inverse, weight, len(names)), kind="stable"):
        rows = np.flatnonzero(inverse == who)
        frames = set(frame_of[rows].tolist())
        for number, busy in enumerate(taken):
            if busy.isdisjoint(frames):
                busy |= frames
                seat[rows] = number
                break
    return seat


def _pairs(starts: np.ndarray, ends: np.ndarray, frame_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every pose of a frame with every pose of the next one, if they are at most `GAP` frames apart."""
    counts = ends - starts
    pairs = counts[:-1] * counts[1:] * (np.diff(frame_of[starts]) <= GAP)
    number = np.arange(pairs.sum()) - np.repeat(np.cumsum(pairs) - pairs, pairs)  # of a pair, within its two frames
    width = np.repeat(counts[1:], pairs)
    return np.repeat(starts[:-1], pairs) + number // width, np.repeat(starts[1:], pairs) + number % width


class _Poses:
    """Distances between poses; the poses are the last axis, along which NumPy is fastest."""

    def __init__(self, places: np.ndarray, seen: np.ndarray) -> None:
        self._places = np.ascontiguousarray(places.transpose(2, 1, 0), np.float32)  # [D, V, n]
        self._seen = None if seen.all() else np.ascontiguousarray(seen.T)  # [V, n]
        with np.errstate(over="ignore", invalid="ignore"):  # coordinates that large are not linked
            self._sizes = self._diagonals()

    def _diagonals(self) -> np.ndarray:
        """[n]: diagonal of the box of each pose's detected joints."""
        low = high = self._places
        if self._seen is not None:
            low = np.where(self._seen, self._places, np.inf)
            high = np.where(self._seen, self._places, -np.inf)
        extent = np.maximum(high.max(1) - low.min(1), 0)  # 0 if no joint was detected
        return np.maximum(np.sqrt((extent * extent).sum(0)), 1e-6)

    def distances(self, earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
        """[pairs]: mean distance of the joints that both have, in diagonals of the earlier one; infinite if they share none."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self._distances(earlier, later)

    def _distances(self, earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
        step = self._places[:, :, earlier] - self._places[:, :, later]
        length = np.sqrt((step * step).sum(0))
        if self._seen is None:
            return length.mean(0) / self._sizes[earlier]
        both = self._seen[:, earlier] & self._seen[:, later]
        count = both.sum(0)
        mean = np.where(both, length, 0).sum(0) / np.maximum(count, 1) / self._sizes[earlier]
        return np.where(count > 0, mean, np.inf)
