"""Files that somebody else wrote, read within stated limits: what they say of themselves is checked before memory is taken for it.

The limits lie far above every data set of the field; a file beyond one is damaged or was made to harm.
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

MOST_CLIPS = 2_000_000  # of a data set; Kinetics-400 has 260,000
MOST_CLASSES = 10_000
MOST_SPLITS = 64
LONGEST_NAME = 1000
LARGEST_CLIP = 256 << 20  # bytes of one clip's array: a thousand times a clip of NTU RGB+D
LARGEST_TABLE = 256 << 20  # bytes of a table or an index; that of Kinetics-400 has 30 MB
MOST_BRACKETS = 2_000_000  # lists and objects of one JSON text
PACKED = 200  # times smaller than its content an archive may be; recordings shrink to a third, text of one number to a hundredth
UNPACKED_ANYWAY = 64 << 20  # bytes that a small archive may unpack to
LARGEST_TAR_HEADER = 64 << 10

_OPENERS: tuple[tuple[bytes, Callable[[IO[bytes]], Any]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\x00", lzma.LZMAFile),
    (b"\x5d\x00\x00", lzma.LZMAFile),
)
UNREADABLE = (OSError, EOFError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)  # of archives


def show(value: object) -> str:
    """`repr`, of a length that fits a message whatever `value` holds."""
    return reprlib.repr(value)


def read_file(path: Path, largest: int) -> bytes:
    """The content of a file of at most `largest` bytes.

    Raises:
        DataError: larger, missing or unreadable.
    """
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > largest:
        raise DataError(f"{path}: has more than {largest} bytes, the most that such a file may have; the file is damaged")
    return content


def parse_json(content: bytes, where: str, advice: str) -> Any:
    """The value of a JSON text.

    Raises:
        DataError: not JSON, nested too deep, more lists than any clip or store has, or a number of too many digits.
    """
    if content.count(b"[") + content.count(b"{") > MOST_BRACKETS:
        raise DataError(f"{where}: holds more than {MOST_BRACKETS} lists; {advice}")
    try:
        return json.loads(content)
    except RecursionError:
        raise DataError(f"{where}: its lists are nested too deep; {advice}") from None
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error}); {advice}") from error


def numbers(values: list[Any]) -> bool:
    """Whether nested lists, two levels deep, hold numbers that float can hold, and nothing else (a boolean is none)."""
    inner = list(chain.from_iterable(values))
    return set(map(type, inner)) <= {int, float} and all(abs(value) < 1 << 1000 for value in inner if type(value) is int)


def read_table(path: Path, needed: tuple[str, ...], known: tuple[str, ...] | None = None) -> Iterator[tuple[int, dict[str, str]]]:
    """(line from 1, column -> text) of every row of a CSV file in UTF-8 whose first line names its columns.

    Args:
        path: the file.
        needed: columns that it must have.
        known: columns that it may have; None: any.

    Raises:
        DataError: unreadable, too large, no table, a column that is missing or unknown, or a row of another length.
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
            raise DataError(f"{path}, line 1: names a column twice")
        rows.fieldnames = columns
        for number, row in enumerate(rows):
            if None in row or None in row.values():
                raise DataError(f"{path}, line {rows.line_num}: not {len(columns)} columns, as line 1 has")
            if number == MOST_CLIPS:
                raise DataError(f"{path}, line {rows.line_num}: more than {MOST_CLIPS} clips")
            yield rows.line_num, {key: value.strip() for key, value in row.items()}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a table in UTF-8 ({error})") from error


def check_name(name: object, what: str, where: str) -> str:
    """`name`, of a class, a recording or a list, as text that fits one line everywhere it is shown.

    Raises:
        DataError: not text, empty, too long, or with a line break or another control character, which is refused and not
            replaced: two names could become one.
    """
    if not isinstance(name, str) or not name or len(name) > LONGEST_NAME:
        raise DataError(f"{where}: {show(name)} is not the name of a {what} (text of 1 to {LONGEST_NAME} characters)")
    for character in name:
        if not character.isprintable() and unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            raise DataError(f"{where}: {what} {show(name)} has a line break or another control character in its name; rename it")
    return name


def check_label(label: object, what: str) -> int:
    """A class number from 0 as an int; `what` begins the error and names the clip.

    Raises:
        DataError: not a whole number, negative, or more than a data set can have classes.
    """
    if isinstance(label, bool) or not isinstance(label, (int, np.integer)) or label < 0:
        raise DataError(f"{what}: label is {show(label)}, not a class number")
    if label >= MOST_CLASSES:
        raise DataError(f"{what}: label {show(label)}; classes are numbered from 0 and are at most {MOST_CLASSES}")
    return int(label)


def read_npy(file: IO[bytes], size: int, largest: int = LARGEST_CLIP) -> np.ndarray:
    """The array of numbers of an .npy file, or of a member of an .npz, of `size` bytes.

    Raises:
        ValueError: not such a file, objects or records, or a shape that its bytes do not hold or that exceeds `largest`.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"of version {version[0]}.{version[1]}")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.kind not in "fiu":
        raise ValueError(f"{list(shape)} of {show(dtype.name)}")
    if len(shape) > 32 or any(length < 0 for length in shape):
        raise ValueError("a shape that no array has")
    count = 1
    for length in shape:
        count *= length
    taken = count * dtype.itemsize
    if taken > largest:
        raise ValueError(f"{list(shape)} of {dtype} are {taken} bytes, the most of a clip are {largest}")
    if taken != size - file.tell():
        raise ValueError(f"{size} bytes do not hold {list(shape)} of {dtype}")
    content = bytearray(file.read(taken))  # an array that may be written to
    if len(content) != taken:
        raise ValueError("it ends inside the array")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def tar_files(path: Path, ending: str, largest: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(name, how to read it) of each file of a tar archive, packed or not, whose name ends so; valid until the next one.

    The archive is a stream: packed archives cannot seek.

    Raises:
        DataError: damaged, a file larger than `largest`, or an archive that unpacks to far more than recordings do.
    """
    with path.open("rb") as packed:
        most = UNPACKED_ANYWAY + PACKED * os.fstat(packed.fileno()).st_size
        begin = packed.read(6)
        packed.seek(0)
        opener = next((opened for magic, opened in _OPENERS if begin.startswith(magic)), None)
        content: IO[bytes] = packed if opener is None else opener(packed)
        try:
            with tarfile.open(fileobj=cast(IO[bytes], _Counted(content, most, path)), mode="r|", tarinfo=_Member) as archive:
                while (member := archive.next()) is not None:
                    cast(Any, archive).members.clear()  # a stream's list of what is past would only grow
                    if not member.isreg() or not member.name.endswith(ending):
                        continue
                    if not 0 <= member.size <= largest:
                        raise DataError(f"{path}: {show(member.name)} unpacks to {member.size} bytes; no recording has as many")
                    yield member.name, _reads(archive, member, path)
        except DataError:
            raise
        except (*UNREADABLE, ValueError) as error:
            raise DataError(f"{path}: the archive cannot be read ({error}); fetch it again") from error


def is_tar(path: Path) -> bool:
    """Whether a file begins as a tar archive does, packed or not."""
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


def zip_files(path: Path, ending: str, largest: int) -> list[str]:
    """Names of the members of a zip archive that end so.

    Raises:
        DataError: damaged, a member larger than `largest`, or an archive that unpacks to far more than recordings do.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except UNREADABLE as error:
        raise DataError(f"{path}: the archive cannot be read ({error}); fetch it again") from error
    for entry in entries:
        if entry.filename.endswith(ending) and entry.file_size > largest:
            raise DataError(f"{path}: {show(entry.filename)} unpacks to {entry.file_size} bytes; no recording has as many")
    if sum(entry.file_size for entry in entries) > UNPACKED_ANYWAY + PACKED * path.stat().st_size:
        _refuse_packed(path)
    return [entry.filename for entry in entries if entry.filename.endswith(ending)]


class _Member(tarfile.TarInfo):
    """Refuses headers, such as a long name's, that a tar reader would take whole into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type not in tarfile.REGULAR_TYPES and member.size > LARGEST_TAR_HEADER):
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member


class _Counted:
    """A stream that is refused once more than `most` bytes came out of it."""

    def __init__(self, file: IO[bytes], most: int, path: Path) -> None:
        self._file, self._left, self._path = file, most, path

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        self._left -= len(content)
        if self._left < 0:
            _refuse_packed(self._path)
        return content


def _refuse_packed(path: Path) -> NoReturn:
    raise DataError(f"{path}: unpacks to more than {PACKED} times its size, which recordings do not; the archive is damaged")


def _reads(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            file = archive.extractfile(member)
            content = b"" if file is None else file.read()
        except DataError:
            raise
        except (*UNREADABLE, ValueError) as error:
            raise DataError(f"{path}: {show(member.name)} cannot be read ({error}); fetch the archive again") from error
        if len(content) != member.size:
            raise DataError(f"{path}: the archive ends inside {show(member.name)}; fetch it again")
        return content

    return read
