"""Reader of the MS-G3D format: `train_data_joint.npy` [N, C, T, V, M] with `train_label.pkl`, and likewise `val`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shapmix.data.sources import Recording
from shapmix.data.sources.bounded import LARGEST_CLIP, MOST_CLIPS, check_label, no_body, show
from shapmix.data.sources.names import ntu_classes, parse_ntu_name
from shapmix.data.sources.registry import source
from shapmix.data.sources.restricted import load_pickle
from shapmix.data.sources.skeletons import choose_layout
from shapmix.process.errors import DataError

DATA, LABEL = "_data_joint.npy", "_label.pkl"


@source(
    "msg3d", f"a folder with train{DATA}", fits=lambda path: path.is_dir() and any(path.glob(f"*{DATA}")), asks_layout=Path.is_dir
)
class Msg3d:
    """Every part (`train`, `val`, `test`) of a folder; arrays are memory-mapped, trailing all-zero frames are removed.

    The label pickle contains (names, labels) in the order of the rows; file name extensions are removed. With `scores` the last
    coordinate is a score. If nothing is given, three coordinates of 17 joints are taken for COCO's (x, y, score).

    Raises:
        DataError: files that are missing, unreadable or inconsistent; a skeleton that is not guessed.
    """

    def __init__(self, folder: Path, *, layout: str | None = None, scores: bool = False, depth: bool = False) -> None:
        self.files: list[Path] = []
        self.names: list[str] = []
        self.splits: dict[str, list[str]] = {}
        self._rows: list[tuple[np.ndarray, int]] = []
        self.labels: list[int] = []
        for data in sorted(folder.glob(f"*{DATA}")):
            part = data.name.removesuffix(DATA)
            rows, names, labels = _open(data, data.with_name(part + LABEL))
            self.files += [data, data.with_name(part + LABEL)]
            self._rows += [(rows, row) for row in range(len(rows))]
            self.labels += labels
            self.names += names
            self.splits[part] = names
        if not self.files:
            raise DataError(f"{folder}: contains no *{DATA}")
        shapes = sorted({(rows.shape[3], rows.shape[1]) for rows, _ in self._rows})
        if len(shapes) != 1:
            found = " and ".join(f"{joints} joints of {numbers} numbers" for joints, numbers in shapes)
            raise DataError(f"{folder}: files of {found}; keep the files of one skeleton")
        self.scores = scores or (layout is None and not depth and shapes == [(17, 3)])
        self.layout = choose_layout(layout, folder, *shapes[0], scores=self.scores)
        classes = max(self.labels) + 1
        named = all(parse_ntu_name(name) for name in self.names)
        self.class_names = ntu_classes(classes) if named else [str(label) for label in range(classes)]

    def read(self, index: int) -> Recording:
        """Recording `names[index]`; see `Source`."""
        rows, row = self._rows[index]
        with np.errstate(over="ignore", invalid="ignore"):  # non-finite values are rejected below
            joints = np.ascontiguousarray(rows[row].transpose(1, 3, 2, 0), dtype=np.float32)
        if not np.isfinite(joints).all():
            frame = np.argwhere(~np.isfinite(joints))[0][0]
            raise DataError(f"recording '{self.names[index]}' (row {row}): frame {frame} is not finite; repair or remove it")
        stands = np.flatnonzero(joints.any((1, 2, 3)))
        if len(stands) == 0:
            raise no_body(f"recording '{self.names[index]}' (row {row})")
        name = parse_ntu_name(self.names[index])
        return Recording(joints[: stands[-1] + 1], self.labels[index], **(name.numbers() if name else {}))


def _open(data: Path, label: Path) -> tuple[np.ndarray, list[str], list[int]]:
    try:
        rows = np.lib.format.open_memmap(data, mode="r")
    except Exception as error:  # NumPy raises many types of error for a damaged file
        raise DataError(f"{data}: cannot be read ({error}); download it again") from error
    if rows.ndim != 5 or rows.dtype.kind != "f":
        raise DataError(f"{data}: {list(rows.shape)} of {rows.dtype}, expected [N, C, T, V, M] floating point")
    if len(rows) > MOST_CLIPS or not rows.size or rows[0].size * 4 > LARGEST_CLIP:
        raise DataError(f"{data}: {list(rows.shape)}, expected 1 to {MOST_CLIPS} clips of at most {LARGEST_CLIP} bytes")
    content = load_pickle(label)
    if not isinstance(content, (tuple, list)) or len(content) != 2 or not all(map(_is_column, content)):
        raise DataError(f"{label}: not a pair of names and labels")
    names, labels = (list(column) for column in content)
    if not len(names) == len(labels) == len(rows):
        raise DataError(f"{label}: {len(names)} names and {len(labels)} labels for {len(rows)} rows of {data.name}")
    for name in names:
        if not isinstance(name, str):
            raise DataError(f"{label}: {show(name)} is not the name of a clip")
    found = [check_label(number, f"{label}: '{name}'") for name, number in zip(names, labels, strict=True)]
    return rows, [str(name).rpartition(".")[0] or str(name) for name in names], found


def _is_column(values: object) -> bool:
    return isinstance(values, (list, tuple)) or (isinstance(values, np.ndarray) and values.ndim == 1)
