"""The plain form, for data of your own: a folder with a table, a skeleton and one array a clip.

```
my_data/
    labels.csv      name,label            one line a clip; more columns as below
    layout.toml     the skeleton          or a built-in one, by --layout ntu25
    wave_01.npy     [T, V, C] float       frames, joints, coordinates; or [T, M, V, C] with M people
    wave_02.npz     the same, as the array `joints`
```

`labels.csv` is UTF-8, with a first line that names its columns, in any order:

- `name`: of the clip's file, without `.npy` or `.npz`; it may lie in a folder below (`anna/wave_01`).
- `label`: the class, by name or by number from 0. Names are numbered in alphabetical order.
- `split` (if wanted): `train`, `val` or `test`.
- `subject`, `camera`, `setup`, `replication` (if wanted): numbers; protocols and held-out clips go by them.

C is 2 or 3 coordinates, or 2 and a score of the pose's estimator (`--scores`). A joint that was not found is zero in all of them.
"""

from __future__ import annotations

import csv
from pathlib import Path, PurePosixPath

import numpy as np

from shapmix.data.clips import DataError
from shapmix.data.sources import Recording

TABLE, LAYOUT, ARRAY = "labels.csv", "layout.toml", "joints"
NUMBERS = ("subject", "camera", "setup", "replication")
COLUMNS = ("name", "label", "split", *NUMBERS)


class Plain:
    """Clips of a folder in the plain form, in the order of its table.

    Raises:
        DataError: no table, a line that does not say what it must, a name outside the folder, or a file that is missing.
    """

    def __init__(self, folder: Path, *, layout: str | None = None, scores: bool = False) -> None:
        self.scores = scores
        self._folder, self._table = folder, folder / TABLE
        if layout is None and not (folder / LAYOUT).is_file():
            raise DataError(f"{folder}: has no {LAYOUT}; add one (copy one of shapmix/layouts) or give --layout")
        self.layout = layout or str(folder / LAYOUT)
        self.names: list[str] = []
        self.splits: dict[str, list[str]] = {}
        self._numbers: list[dict[str, int]] = []
        labels: list[str] = []
        for line, row in self._rows():
            name = row["name"]
            path = PurePosixPath(name)
            if not name or path.is_absolute() or ".." in path.parts or "\\" in name:
                raise DataError(f"{self._table}, line {line}: '{name}' is not the name of a file below {folder}")
            if not row["label"]:
                raise DataError(f"{self._table}, line {line}: '{name}' has no label")
            self.names.append(name)
            labels.append(row["label"])
            if row.get("split"):
                self.splits.setdefault(row["split"], []).append(name)
            numbers = {}
            for column in NUMBERS:
                given = row.get(column) or "0"
                if not given.isdecimal():
                    raise DataError(f"{self._table}, line {line}: {column} '{given}' is not a number")
                numbers[column] = int(given)
            self._numbers.append(numbers)
        if not self.names:
            raise DataError(f"{self._table}: lists no clips")
        if all(label.isdecimal() for label in labels):
            self.class_names = [str(label) for label in range(max(map(int, labels)) + 1)]
            self._labels = [int(label) for label in labels]
        else:
            self.class_names = sorted(set(labels))
            self._labels = [self.class_names.index(label) for label in labels]
        self._paths = [self._path(name) for name in self.names]
        self.files = [self._table, *([folder / LAYOUT] if layout is None else []), *self._paths]

    def read(self, index: int) -> Recording:
        """Recording `names[index]`; see `Source`."""
        return Recording(read_array(self._paths[index]), self._labels[index], **self._numbers[index])

    def _rows(self) -> list[tuple[int, dict[str, str]]]:
        try:
            with self._table.open(newline="", encoding="utf-8-sig") as file:
                rows = csv.DictReader(file)
                columns = [column.strip() for column in rows.fieldnames or []]
                missing = [column for column in ("name", "label") if column not in columns]
                unknown = [column for column in columns if column not in COLUMNS]
                if missing or unknown:
                    wrong = f"has no column '{missing[0]}'" if missing else f"has an unknown column '{unknown[0]}'"
                    raise DataError(f"{self._table}, line 1: {wrong}; columns are {', '.join(COLUMNS)}")
                rows.fieldnames = columns
                found = []
                for row in rows:
                    if None in row or None in row.values():
                        raise DataError(f"{self._table}, line {rows.line_num}: not {len(columns)} columns, as line 1 has")
                    found.append((rows.line_num, {key: value.strip() for key, value in row.items()}))
                return found
        except OSError as error:
            raise DataError(f"{self._table}: cannot be read: {error.strerror}") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self._table}: not a table in UTF-8 ({error})") from error

    def _path(self, name: str) -> Path:
        for ending in (".npy", ".npz"):
            path = self._folder / f"{name}{ending}"
            if path.is_file():
                return path
        raise DataError(f"{self._table}: '{name}' has no file {self._folder / name}.npy or .npz")


def read_array(path: Path) -> np.ndarray:
    """[T, M, V, C] float32 of a file in the plain form.

    Raises:
        DataError: unreadable, not such an array, empty, or a coordinate that is not finite.
    """
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.lib.npyio.NpzFile):
            with content:
                if ARRAY not in content:
                    raise DataError(f"{path}: holds {', '.join(content) or 'nothing'}, not the array '{ARRAY}'")
                content = content[ARRAY]
    except DataError:
        raise
    except Exception as error:  # NumPy and zipfile have many words for a damaged file
        raise DataError(f"{path}: not a whole NumPy file of numbers ({error}); write it again with numpy.save") from error
    if content.dtype.kind not in "fiu" or content.ndim not in (3, 4):
        raise DataError(f"{path}: {list(content.shape)} of {content.dtype}, not [T, V, C] or [T, M, V, C] numbers")
    joints = np.ascontiguousarray(content if content.ndim == 4 else content[:, None], dtype=np.float32)
    if len(joints) == 0:
        raise DataError(f"{path}: has no frames; remove the clip")
    if not np.isfinite(joints).all():
        frame, person, joint, _ = np.argwhere(~np.isfinite(joints))[0]
        raise DataError(f"{path}: frame {frame}, person {person}, joint {joint} is not finite; write 0 where a joint was not found")
    return joints
