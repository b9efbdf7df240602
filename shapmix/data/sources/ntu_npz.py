"""Reader of the preprocessed NTU RGB+D file: one npz with x_train, y_train, x_test, y_test (7 to 11 GB, mostly padding).

Rows are read one by one from the open archive. Of each row the first n frames are kept, where n counts the frames whose sum is not
zero: the frames that the standard NTU feeder crops from.
"""

from __future__ import annotations

import math
import os
import struct
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from shapmix.data.sources import Recording
from shapmix.data.sources.bounded import LARGEST_CLIP, MOST_CLASSES, MOST_CLIPS, UNREADABLE, no_body, read_list
from shapmix.data.sources.names import NtuName, ntu_classes, parse_ntu_name
from shapmix.data.sources.registry import source
from shapmix.process.errors import DataError

PEOPLE, JOINTS, COORDINATES = 2, 25, 3
ROW = PEOPLE * JOINTS * COORDINATES
PARTS = ("train", "test")
KEPT = 256 << 20  # bytes of rows of a compressed member that are buffered for other threads


class _Rows:
    """Rows of one member of the archive.

    Rows of an uncompressed member are read at their offset. A compressed member is read sequentially: rows that other threads will
    request are buffered, and a request for an earlier row restarts at the beginning.
    """

    def __init__(self, path: Path, member: str) -> None:
        self.where = f"{path}: {member}"
        self._path, self._member = path, f"{member}.npy"
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(self._member)
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                self.shape, fortran, self.dtype = read_header(file)
                self._begin = file.tell()
        if fortran or self.dtype.kind not in "fiub" or not self.shape or min(self.shape) < 1:
            raise DataError(f"{self.where}: not a C-contiguous numeric array; write it again with numpy.savez")
        self._size = math.prod(self.shape[1:]) * self.dtype.itemsize
        if self._size > LARGEST_CLIP or self.shape[0] > MOST_CLIPS:
            raise DataError(f"{self.where}: shape {list(self.shape)} is too large; the file is damaged")
        if entry.file_size != self._begin + self.shape[0] * self._size:
            raise DataError(
                f"{self.where}: {entry.file_size} bytes do not match {list(self.shape)} {self.dtype}; download it again"
            )
        self._waiting = max(1, min(KEPT // self._size, 256))
        self._plain = os.open(path, os.O_RDONLY) if entry.compress_type == zipfile.ZIP_STORED else None
        if self._plain is not None:
            # the local file header (30 bytes and two strings whose lengths are its last fields) precedes the content
            lengths = os.pread(self._plain, 4, entry.header_offset + 26)
            self._begin += entry.header_offset + 30 + sum(struct.unpack("<HH", lengths))
        self._lock = threading.Lock()
        self._packed: IO[bytes] | None = None
        self._next = 0
        self._kept: dict[int, bytes] = {}

    def read(self, row: int) -> np.ndarray:
        try:
            if self._plain is not None:
                content = os.pread(self._plain, self._size, self._begin + row * self._size)
            else:
                with self._lock:
                    content = self._unpacked(row)
        except (*UNREADABLE, ValueError) as error:
            raise DataError(f"{self.where}, row {row}: cannot be read ({error}); download the file again") from error
        if len(content) != self._size:
            raise DataError(f"{self.where}, row {row}: the file is truncated here; download it again")
        return np.frombuffer(content, self.dtype).reshape(self.shape[1:])

    def _unpacked(self, row: int) -> bytes:
        if row in self._kept:
            return self._kept.pop(row)
        if self._packed is None or row < self._next:
            self._packed = zipfile.ZipFile(self._path).open(self._member)  # noqa: SIM115 (closed with the rows)
            self._packed.read(self._begin)
            self._next, self._kept = 0, {}
        while self._next < row:
            self._kept[self._next] = self._packed.read(self._size)
            if len(self._kept) > self._waiting:
                del self._kept[min(self._kept)]
            self._next += 1
        self._next += 1
        return self._packed.read(self._size)

    def close(self) -> None:
        if self._plain is not None:
            os.close(self._plain)
            self._plain = None
        self._packed = None


class NtuNpz:
    """Recordings `train_00000`, ..., `test_00000`, ...; or named by two lists in the order of the rows.

    Joints are [n, 2, 25, 3] float32. Names provide the camera, subject, setup and replication, and each label is checked against
    its name.

    Raises:
        DataError: not such a file; labels that are not one-hot; lists that do not match the rows.
    """

    scores = False

    def __init__(
        self,
        path: Path,
        *,
        layout: str | None = None,
        train_names: Sequence[str] | None = None,
        test_names: Sequence[str] | None = None,
    ) -> None:
        self.layout = layout or "ntu25"
        self.files = [path]
        self._frames: list[tuple[_Rows, int]] = []
        self.labels: list[int] = []
        self._numbers: list[NtuName | None] = []
        self.names: list[str] = []
        self.splits: dict[str, list[str]] = {}
        classes = 0
        for part, given in zip(PARTS, (train_names, test_names), strict=True):
            rows, labels, width = _open(path, part)
            classes = max(classes, width)
            names = [f"{part}_{row:05d}" for row in range(len(labels))] if given is None else list(given)
            if len(names) != len(labels):
                raise DataError(
                    f"{path}: x_{part} has {len(labels)} rows but its list has {len(names)} names; "
                    "give the list that the file was made with"
                )
            numbers = [parse_ntu_name(name) for name in names]
            for row, (number, label) in enumerate(zip(numbers, labels, strict=True)):
                if given is not None and (number is None or number.label != label):
                    raise DataError(
                        f"{path}: row {row} of y_{part} has class {label}, which contradicts its name '{names[row]}' in the list; "
                        "give the list that the file was made with"
                    )
            self._frames += [(rows, row) for row in range(len(labels))]
            self.labels += labels
            self._numbers += numbers
            self.names += names
            self.splits[part] = names
        self.class_names = ntu_classes(classes) if classes in (60, 120) else [str(label) for label in range(classes)]

    def read(self, index: int) -> Recording:
        """Recording `names[index]`; see `Source`."""
        rows, row = self._frames[index]
        frames = rows.read(row)
        if not np.isfinite(frames).all():
            frame = int(np.argwhere(~np.isfinite(frames))[0][0])
            raise DataError(
                f"{rows.where}, row {row} ('{self.names[index]}'): frame {frame} is not finite; repair or remove the row"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # the caller rejects values beyond float32
            joints = frames.reshape(-1, PEOPLE, JOINTS, COORDINATES).astype(np.float32, copy=False)
            valid = int((joints.sum(3).sum(1).sum(1) != 0).sum())  # sums in the same axis order as the feeder
        if valid == 0:
            raise no_body(f"{rows.where}, row {row} ('{self.names[index]}')")
        number = self._numbers[index]
        return Recording(joints[:valid], self.labels[index], **(number.numbers() if number else {}))


def is_ntu_npz(path: Path) -> bool:
    """Whether a file is a zip archive with the members of this format."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return {f"{axis}_{part}.npy" for axis in "xy" for part in PARTS} <= set(archive.namelist())
    except UNREADABLE:
        return False


@source("ntu_npz", "an npz with x_train, y_train, x_test, y_test", fits=is_ntu_npz)
def open_ntu_npz(
    path: Path, *, layout: str | None = None, train_names: Path | None = None, test_names: Path | None = None
) -> NtuNpz:
    """Opens the file with the names of its rows from two list files."""
    train, test = (None if names is None else read_list(names) for names in (train_names, test_names))
    return NtuNpz(path, layout=layout, train_names=train, test_names=test)


def _open(path: Path, part: str) -> tuple[_Rows, list[int], int]:
    """Returns the rows of x, the labels of y, and the number of classes of y."""
    try:
        rows, one_hot = _Rows(path, f"x_{part}"), _Rows(path, f"y_{part}")
    except DataError:
        raise
    except Exception as error:  # NumPy and zipfile raise many types of error for a damaged file
        raise DataError(
            f"{path}: not an npz with x_{part} and y_{part} ({error}); give the file that the NTU preprocessing scripts write"
        ) from error
    if len(rows.shape) != 3 or rows.shape[2] != ROW or rows.dtype.kind != "f":
        raise DataError(f"{rows.where}: {list(rows.shape)} of {rows.dtype}, expected [clips, frames, {ROW}] floating point")
    if len(one_hot.shape) != 2 or (len(one_hot.shape) and one_hot.shape[0] != rows.shape[0]):
        raise DataError(f"{one_hot.where}: {list(one_hot.shape)}, expected [{rows.shape[0]}, classes], one row per clip")
    if one_hot.shape[1] > MOST_CLASSES:
        raise DataError(f"{one_hot.where}: {one_hot.shape[1]} classes; the limit is {MOST_CLASSES}")
    labels = []
    for row in range(rows.shape[0]):
        chosen = one_hot.read(row)
        with np.errstate(invalid="ignore"):
            label = int(chosen.argmax())
            one = chosen[label] == 1 and np.count_nonzero(chosen) == 1
        if not one:
            raise DataError(f"{one_hot.where}, row {row}: not one-hot (a single 1, all others 0)")
        labels.append(label)
    one_hot.close()
    return rows, labels, one_hot.shape[1]
