"""Reader of the plain format for custom data: a folder with a table, a skeleton and one array per clip.

```
my_data/
    labels.csv      name,label            one line per clip; optional columns below
    layout.toml     the skeleton          or a built-in one with --layout ntu25
    wave_01.npy     [T, V, C] float       frames, joints, coordinates; or [T, M, V, C] for M people
    wave_02.npz     the same, as the array `joints`
```

`labels.csv` is UTF-8 with a header line; the columns may be in any order:

- `name`: the clip's file without `.npy` or `.npz`, possibly in a subfolder (`anna/wave_01`).
- `label`: the class, as a name or as a number from 0. Names are numbered alphabetically.
- `split` (optional): `train`, `val` or `test`.
- `subject`, `camera`, `setup`, `replication` (optional): numbers from 1 (empty, or 0 in every line: unknown). The hold-out of
  validation clips uses them to keep the clips of one performance together.
- any further column, such as `session`: text. Clips can be split by every column (`train --split session`).

Clips may have different numbers of people: `prepare` pads them with zeros to the clip with the most, or to `--people`. C is 1 to 4
coordinates, as the layout declares, and with `--scores` the confidence score of a pose estimator after them. All coordinates of an
undetected joint are zero. A clip whose coordinates are all zero is an error (`--skip-damaged` skips it), as is a name with a line
break.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from shapmix.data.sources import Recording
from shapmix.data.sources.bounded import LARGEST_CLIP, no_body, read_npy, show
from shapmix.data.sources.registry import source
from shapmix.data.sources.table import read_labels
from shapmix.process.errors import DataError

TABLE, LAYOUT, ARRAY = "labels.csv", "layout.toml", "joints"


@source(
    "plain",
    f"a folder with {TABLE}",
    fits=lambda path: (path / TABLE).is_file(),
    asks_layout=lambda path: not (path / LAYOUT).is_file(),
)
class Plain:
    """Clips of a folder in the plain format, in the order of the table.

    Raises:
        DataError: no table, an invalid line, a name outside the folder, or a missing file.
    """

    def __init__(self, folder: Path, *, layout: str | None = None, scores: bool = False) -> None:
        self.scores = scores
        self._folder, self._table = folder, folder / TABLE
        if layout is None and not (folder / LAYOUT).is_file():
            raise DataError(f"{folder}: has no {LAYOUT}; add one (copy one of shapmix/skeleton/layouts) or give --layout")
        self.layout = layout or str(folder / LAYOUT)
        self._labelled = read_labels(self._table)
        self.names, self.labels = self._labelled.names, self._labelled.labels
        self.class_names, self.splits = self._labelled.class_names, self._labelled.splits
        self._paths = [self._path(name) for name in self.names]
        self.files = [self._table, *([folder / LAYOUT] if layout is None else []), *self._paths]

    def read(self, index: int) -> Recording:
        """Recording `names[index]`; see `Source`."""
        return self._labelled.recording(index, read_array(self._paths[index]))

    def _path(self, name: str) -> Path:
        for ending in (".npy", ".npz"):
            path = self._folder / f"{name}{ending}"
            try:
                if path.is_file():
                    return path
            except OSError as error:
                raise DataError(f"{self._table}: {show(name)} is not a valid file name: {error.strerror}") from error
        raise DataError(f"{self._table}: clip '{name}': no file {self._folder / name}.npy or .npz")


def read_array(path: Path) -> np.ndarray:
    """Reads [T, M, V, C] float32 from a file of the plain format, up to the last frame that is not all zero: padding ends there.

    Raises:
        DataError: missing or unreadable, not such an array, larger than `LARGEST_CLIP` bytes, empty, all zero, or with non-finite
            coordinates.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            content = _member(path, file) if zipped else read_npy(file, path.stat().st_size)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # NumPy and zipfile raise many types of error for a damaged file
        raise DataError(f"{path}: not a valid NumPy file of numbers ({error}); write it again with numpy.save") from error
    if content.dtype.kind not in "fiu" or content.ndim not in (3, 4):
        raise DataError(f"{path}: {list(content.shape)} of {content.dtype}, expected numbers [T, V, C] or [T, M, V, C]")
    with np.errstate(over="ignore", invalid="ignore"):  # non-finite values are rejected below
        joints = np.ascontiguousarray(content if content.ndim == 4 else content[:, None], dtype=np.float32)
    if len(joints) == 0:
        raise DataError(f"{path}: has no frames; remove the clip")
    if not np.isfinite(joints).all():
        frame, person, joint, _ = np.argwhere(~np.isfinite(joints))[0]
        raise DataError(f"{path}: frame {frame}, person {person}, joint {joint} is not finite; write 0 for an undetected joint")
    if not joints.any():
        raise no_body(str(path))
    return joints[: 1 + np.flatnonzero(joints.any((1, 2, 3)))[-1]]


def _member(path: Path, file: IO[bytes]) -> np.ndarray:
    """The array `joints` of an npz."""
    with zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if ARRAY not in names:
            raise DataError(f"{path}: contains {show(names)} but no array '{ARRAY}'")
        entry = archive.getinfo(f"{ARRAY}.npy")
        if entry.file_size > LARGEST_CLIP:
            raise DataError(f"{path}: '{ARRAY}' unpacks to {entry.file_size} bytes; the limit for a clip is {LARGEST_CLIP}")
        with archive.open(entry) as member:
            return read_npy(member, entry.file_size)
