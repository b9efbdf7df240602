"""Clips that are padded to one array [N, C, T, V, M] per part, which is memory-mapped: the common part of several formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shapmix.data.sources import Recording
from shapmix.data.sources.bounded import LARGEST_CLIP, MOST_CLIPS, check_label, no_body, show
from shapmix.data.sources.names import class_names_of, parse_ntu_name
from shapmix.data.sources.people import link_people, seat_people
from shapmix.data.sources.restricted import load_pickle
from shapmix.data.sources.skeletons import choose_layout
from shapmix.process.errors import DataError


class Part(NamedTuple):
    """The clips of one array: its name, its files, and the names and labels of its rows."""

    name: str
    data: Path
    label: Path
    names: Sequence[str]
    labels: Sequence[int]


class PaddedRows:
    """Every part of a data set; trailing all-zero frames are removed. The parts are the lists of the data.

    With `scores` the last coordinate is a score. If nothing is given, three coordinates of 17 joints are taken for COCO's
    (x, y, score). Where the people of a clip are sorted by their score in every frame, so that they change places, they are linked
    from frame to frame, and the one with the highest total score comes first.

    Raises:
        DataError: no parts, arrays that are unreadable or of different skeletons, or a skeleton that is not guessed.
    """

    def __init__(self, path: Path, parts: Sequence[Part], *, layout: str | None, scores: bool = False, depth: bool = False) -> None:
        self.files: list[Path] = []
        self.names: list[str] = []
        self.labels: list[int] = []
        self.splits: dict[str, list[str]] = {}
        self._rows: list[tuple[np.ndarray, Path, int]] = []
        for part in parts:
            rows = _mapped(part.data)
            if not len(part.names) == len(part.labels) == len(rows):
                raise DataError(
                    f"{part.label}: {len(part.names)} names and {len(part.labels)} labels for {len(rows)} rows of "
                    f"{part.data.name}; give the files that belong together"
                )
            self.files += [part.data, part.label]
            self._rows += [(rows, part.data, row) for row in range(len(rows))]
            self.names += part.names
            self.labels += [
                check_label(label, f"{part.label}: '{name}'") for name, label in zip(part.names, part.labels, strict=True)
            ]
            self.splits[part.name] = list(part.names)
        shapes = sorted({(rows.shape[3], rows.shape[1]) for rows, _, _ in self._rows})
        if len(shapes) != 1:
            found = " and ".join(f"{joints} joints of {numbers} numbers" for joints, numbers in shapes)
            raise DataError(f"{path}: files of {found}; keep the files of one skeleton")
        self.scores = scores or (layout is None and not depth and shapes == [(17, 3)])
        self.layout = choose_layout(layout, path, *shapes[0], scores=self.scores, takes_scores=True)
        self.class_names = class_names_of(self.names, self.labels)

    def read(self, index: int) -> Recording:
        """Recording `names[index]`; see `Source`."""
        rows, data, row = self._rows[index]
        where = f"{data}, row {row} ('{self.names[index]}')"
        with np.errstate(over="ignore", invalid="ignore"):  # non-finite values are rejected below
            joints = np.ascontiguousarray(rows[row].transpose(1, 3, 2, 0), dtype=np.float32)
        if not np.isfinite(joints).all():
            raise DataError(f"{where}: frame {np.argwhere(~np.isfinite(joints))[0][0]} is not finite; repair or remove it")
        stands = np.flatnonzero(joints.any((1, 2, 3)))
        if len(stands) == 0:
            raise no_body(where)
        joints = joints[: stands[-1] + 1]
        name = parse_ntu_name(self.names[index])
        return Recording(_relinked(joints) if self.scores else joints, self.labels[index], **(name.numbers() if name else {}))


def named_rows(label: Path) -> tuple[list[str], list[int]]:
    """Names (without file name extensions) and labels of a pickle of (names, labels).

    Raises:
        DataError: not such a pickle.
    """
    content = load_pickle(label)
    if not isinstance(content, (tuple, list)) or len(content) != 2 or not all(map(is_column, content)):
        raise DataError(f"{label}: not a pair of names and labels")
    names, labels = (list(column) for column in content)
    for name in names:
        if not isinstance(name, str):
            raise DataError(f"{label}: {show(name)} is not the name of a clip")
    return [str(name).rpartition(".")[0] or str(name) for name in names], labels


def is_column(values: object) -> bool:
    """Whether a value lists one thing per row."""
    return isinstance(values, (list, tuple)) or (isinstance(values, np.ndarray) and values.ndim == 1)


def _mapped(data: Path) -> np.ndarray:
    try:
        rows = np.lib.format.open_memmap(data, mode="r")
    except Exception as error:  # NumPy raises many types of error for a damaged file
        raise DataError(f"{data}: cannot be read ({error}); download it again") from error
    if rows.ndim != 5 or rows.dtype.kind != "f":
        raise DataError(f"{data}: {list(rows.shape)} of {rows.dtype}, expected [N, C, T, V, M] floating point")
    if len(rows) > MOST_CLIPS or not rows.size or rows[0].size * 4 > LARGEST_CLIP:
        raise DataError(f"{data}: {list(rows.shape)}, expected 1 to {MOST_CLIPS} clips of at most {LARGEST_CLIP} bytes")
    return rows


def _relinked(joints: np.ndarray) -> np.ndarray:
    """[T, M, V, C] with every person at one place, if they are sorted by their score in every frame."""
    with np.errstate(over="ignore", invalid="ignore"):  # of values that no score has
        total = joints[..., -1].sum(2)  # [T, M]
        steps = np.diff(total, axis=1)
    if joints.shape[1] < 2 or (steps > 0).any() or not (total[:, 1] > 0).any():
        return joints
    frame_of, place = np.nonzero(joints.any((2, 3)))
    poses = joints[frame_of, place]
    person = link_people(frame_of, poses[..., :-1], poses[..., -1] > 0)
    seat = seat_people(frame_of, person, total[frame_of, place].astype(np.float64), joints.shape[1])
    linked = np.zeros_like(joints)
    linked[frame_of[seat >= 0], seat[seat >= 0]] = poses[seat >= 0]
    return linked
