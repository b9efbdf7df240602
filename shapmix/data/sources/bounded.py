"""Bounded readers of untrusted files: the sizes that a file declares are checked before memory is allocated.

The limits are far above every published data set; a file that exceeds one is damaged or malicious.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import reprlib
import sys
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import numpy as np

from shapmix.process.errors import DataError

MOST_CLIPS = 2_000_000  # per data set; Kinetics-400 has 260,000
MOST_CLASSES = 10_000
MOST_SPLITS = 64
LONGEST_NAME = 1000
LARGEST_CLIP = 256 << 20  # bytes of one clip's array: 1000x a clip of NTU RGB+D
LARGEST_TABLE = 256 << 20  # bytes of a table or an index; that of Kinetics-400 is 30 MB
MOST_BRACKETS = 2_000_000  # lists and objects in one JSON text
PACKED = 200  # highest compression ratio of an archive; recordings reach 3x, repetitive text 100x
UNPACKED_ANYWAY = 64 << 20  # bytes that any archive may unpack to, whatever its compression ratio
LARGEST_TAR_HEADER = 64 << 10

_OPENERS: tuple[tuple[bytes, Callable[[IO[bytes]], Any]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\x00", lzma.LZMAFile),
    (b"\x5d\x00\x00", lzma.LZMAFile),
)
UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)  # raised by archives


def show(value: object) -> str:
    """`repr`, truncated to a length that fits an error message."""
    return reprlib.repr(value)


def read_file(path: Path, largest: int) -> bytes:
    """The content of a file of at most `largest` bytes.

    Raises:
        DataError: the file is larger, missing or unreadable.
    """
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: an invalid file name
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > largest:
        raise DataError(f"{path}: is larger than the limit of {largest} bytes for such a file; the file is damaged")
    return content


def parse_json(content: bytes, where: str, advice: str) -> Any:
    """The value of a JSON text.

    Raises:
        DataError: not JSON, nested too deeply, more lists than any clip or store has, or a number with too many digits.
    """
    if content.count(b"[") + content.count(b"{") > MOST_BRACKETS:
        raise DataError(f"{where}: contains more than {MOST_BRACKETS} lists; {advice}")
    try:
        return json.loads(content)
    except RecursionError:
        raise DataError(f"{where}: nested too deeply; {advice}") from None
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error}); {advice}") from error


def numbers(values: list[Any]) -> bool:
    """Whether two-level nested lists contain only numbers that fit a float (booleans do not count)."""
    inner = list(chain.from_iterable(values))
    return set(map(type, inner)) <= {int, float} and all(abs(value) < 1 << 1000 for value in inner if type(value) is int)


def read_table(path: Path, needed: tuple[str, ...], known: tuple[str, ...] | None = None) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line number from 1, column -> text) for every row of a UTF-8 CSV file with a header line.

    Args:
        path: the file.
        needed: required columns.
        known: permitted columns; None permits any.

    Raises:
        DataError: unreadable, too large, not a table, a missing or unknown column, or a row with a different number of columns.
    """
    content = read_file(path, LARGEST_TABLE)
    try:
        rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        columns = [column.strip() for column in rows.fieldnames or []]
        missing = [column for column in needed if column not in columns]
        unknown = [column for column in columns if known is not None and column not in known]
        if missing or unknown:
            wrong = f"has no column '{missing[0]}'" if missing else f"has an unknown column {show(unknown[0])}"
            raise DataError(f"{path}, line 1: {wrong}; columns are {', '.join(known or needed)}")
        if len(set(columns)) != len(columns):
            raise DataError(f"{path}, line 1: duplicate column name")
        rows.fieldnames = columns
        for number, row in enumerate(rows):
            if None in row or None in row.values():
                raise DataError(f"{path}, line {rows.line_num}: does not have {len(columns)} columns as line 1 does")
            if number == MOST_CLIPS:
                raise DataError(f"{path}, line {rows.line_num}: more than {MOST_CLIPS} clips")
            yield rows.line_num, {key: value.strip() for key, value in row.items()}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a UTF-8 table ({error})") from error


def read_list(path: str | Path) -> list[str]:
    """Reads a list file: one name per line, CRLF or LF; blank lines are skipped.

    Raises:
        DataError: unreadable file, no names, or a duplicate name (with both line numbers).
    """
    return list(line_of_name(Path(path)))


def line_of_name(path: Path) -> dict[str, int]:
    """Line number (from 1) of every name of a list file, in the file's order; errors as `read_list`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot read the list: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the list is not UTF-8 text ({error}); write one clip name per line") from error
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name = line.strip()
        if name in lines:
            raise DataError(f"{path}, line {number}: '{name}' is already on line {lines[name]}; remove one of the two")
        if name:
            lines[name] = number
    if not lines:
        raise DataError(f"{path}: the list is empty; write one clip name per line")
    return lines


def check_name(name: object, what: str, where: str) -> str:
    """Validates the name of a class, a recording or a list: one line of printable text.

    Raises:
        DataError: not text, empty, too long, or with a line break or another control character. These are rejected rather
            than replaced, because replacing could make two names equal.
    """
    if not isinstance(name, str) or not name or len(name) > LONGEST_NAME:
        raise DataError(f"{where}: {show(name)} is not the name of a {what} (text of 1 to {LONGEST_NAME} characters)")
    for character in name:
        if not character.isprintable() and unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            raise DataError(f"{where}: {what} {show(name)} has a line break or another control character in its name; rename it")
    return name


def no_body(where: str) -> DataError:
    """The error of a clip whose coordinates are all zero, the same for every source."""
    return DataError(f"{where}: no frame holds a body, all coordinates are zero; remove the clip")


def check_label(label: object, what: str) -> int:
    """Validates a class id and returns it as an int; `what` names the clip and begins the error message.

    Raises:
        DataError: not an integer, negative, or at least `MOST_CLASSES`.
    """
    if isinstance(label, bool) or not isinstance(label, (int, np.integer)) or label < 0:
        raise DataError(f"{what}: label is {show(label)}, not a class number")
    if label >= MOST_CLASSES:
        raise DataError(f"{what}: label {show(label)}; class ids are 0 to {MOST_CLASSES - 1}")
    return int(label)


def read_npy(file: IO[bytes], size: int, largest: int = LARGEST_CLIP) -> np.ndarray:
    """Reads a numeric array from an .npy file, or from a member of an .npz, of `size` bytes.

    Raises:
        ValueError: not an .npy file, an object or record array, or a shape that does not match the size or exceeds `largest` bytes.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"unsupported .npy version {version[0]}.{version[1]}")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.kind not in "fiu":
        raise ValueError(f"element type {show(dtype.name)} is not numeric")
    if len(shape) > 32 or any(length < 0 for length in shape):
        raise ValueError("invalid array shape")
    count = 1
    for length in shape:
        count *= length
    taken = count * dtype.itemsize
    if taken > largest:
        raise ValueError(f"{list(shape)} of {dtype} takes {taken} bytes; the limit for a clip is {largest}")
    if taken != size - file.tell():
        raise ValueError(f"{size} bytes do not match {list(shape)} of {dtype}")
    content = bytearray(file.read(taken))  # makes the array writable
    if len(content) != taken:
        raise ValueError("truncated inside the array")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def tar_files(path: Path, ending: str, largest: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yields (name, function that reads it) for each file of a tar archive, compressed or not, whose name ends in `ending`.

    The archive is read as a stream, because compressed archives cannot seek: a file can be read until the next one is yielded.

    Raises:
        DataError: damaged, a file larger than `largest` bytes, or a compression ratio above `PACKED`.
    """
    with path.open("rb") as packed:
        most = UNPACKED_ANYWAY + PACKED * os.fstat(packed.fileno()).st_size
        begin = packed.read(6)
        packed.seek(0)
        opener = next((opened for magic, opened in _OPENERS if begin.startswith(magic)), None)
        content: IO[bytes] = packed if opener is None else opener(packed)
        try:
            with tarfile.open(fileobj=cast(IO[bytes], _LimitedStream(content, most, path)), mode="r|", tarinfo=_Member) as archive:
                while (member := archive.next()) is not None:
                    cast(Any, archive).members.clear()  # the list of past members would grow without bound
                    if not member.isreg() or not member.name.endswith(ending):
                        continue
                    if not 0 <= member.size <= largest:
                        raise DataError(f"{path}: {show(member.name)} unpacks to {member.size} bytes; the limit is {largest}")
                    yield member.name, _reader(archive, member, path)
        except DataError:
            raise
        except (*UNREADABLE, ValueError) as error:
            raise DataError(f"{path}: the archive cannot be read ({error}); download it again") from error


def is_tar(path: Path) -> bool:
    """Whether a file starts like a tar archive, compressed or not."""
    try:
        with path.open("rb") as packed:
            begin = packed.read(6)
            packed.seek(0)
            opener = next((opened for magic, opened in _OPENERS if begin.startswith(magic)), None)
            block = (packed if opener is None else opener(packed)).read(tarfile.BLOCKSIZE)
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (*UNREADABLE, ValueError):
        return False
    return True


def archive_holds(path: Path, ending: str) -> bool:
    """Whether an archive contains files with that suffix (of a tar archive, only the first file is checked); False for other paths.

    Raises:
        DataError: a damaged archive.
    """
    if not path.is_file():
        return False
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith(ending) for name in archive.namelist())
        if is_tar(path):
            first = next(tar_files(path, "", sys.maxsize), None)
            return first is not None and first[0].endswith(ending)
    except UNREADABLE as error:
        raise DataError(f"{path}: the archive cannot be read ({error}); download it again") from error
    return False


def zip_files(path: Path, ending: str, largest: int) -> list[str]:
    """Names of the members of a zip archive that end in `ending`.

    Raises:
        DataError: damaged, a member larger than `largest`, or an archive that unpacks to far more than recordings do.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except UNREADABLE as error:
        raise DataError(f"{path}: the archive cannot be read ({error}); download it again") from error
    for entry in entries:
        if entry.filename.endswith(ending) and entry.file_size > largest:
            raise DataError(f"{path}: {show(entry.filename)} unpacks to {entry.file_size} bytes; the limit is {largest}")
    if sum(entry.file_size for entry in entries) > UNPACKED_ANYWAY + PACKED * path.stat().st_size:
        _refuse_packed(path)
    return [entry.filename for entry in entries if entry.filename.endswith(ending)]


class _Member(tarfile.TarInfo):
    """Rejects oversized headers (such as those of long names), which a tar reader would load entirely into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type not in tarfile.REGULAR_TYPES and member.size > LARGEST_TAR_HEADER):
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member


class _LimitedStream:
    """A stream that fails once more than `most` bytes have been read from it."""

    def __init__(self, file: IO[bytes], most: int, path: Path) -> None:
        self._file, self._left, self._path = file, most, path

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        self._left -= len(content)
        if self._left < 0:
            _refuse_packed(self._path)
        return content


def _refuse_packed(path: Path) -> NoReturn:
    raise DataError(f"{path}: unpacks to more than {PACKED} times its size; the archive is damaged or malicious")


def _reader(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            file = archive.extractfile(member)
            content = b"" if file is None else file.read()
        except DataError:
            raise
        except (*UNREADABLE, ValueError) as error:
            raise DataError(f"{path}: {show(member.name)} cannot be read ({error}); download the archive again") from error
        if len(content) != member.size:
            raise DataError(f"{path}: the archive is truncated inside {show(member.name)}; download it again")
        return content

    return read


def is_number(text: str) -> bool:
    """Whether a word or a cell of a table is a number; nan and inf are."""
    try:
        float(text)
    except ValueError:
        return False
    return True
