"""The table of labels of a data set of one's own: `name,label`, a line per clip, as the plain format specifies it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from shapmix.data.sources import Numbers, Recording
from shapmix.data.sources.bounded import MOST_CLASSES, MOST_SPLITS, check_label, check_name, read_table, show
from shapmix.process.errors import DataError

COLUMNS = ("name", "label", "split", "subject", "camera", "setup", "replication")
RESERVED = ("length", "crc32", "random")  # columns of a store, and a value of --split
MOST_DIGITS = 18  # per number in the table


class Labels(NamedTuple):
    """What a table says about its clips.

    Attributes:
        names: of the clips, in the order of the table.
        labels: class id of each clip.
        class_names: K names.
        splits: lists of names by the column `split`.
        numbers: of each clip: subject, camera, setup, replication.
        columns: of each clip, the text of every further column.
    """

    names: Sequence[str]
    labels: Sequence[int]
    class_names: Sequence[str]
    splits: Mapping[str, Sequence[str]]
    numbers: Sequence[Numbers]
    columns: Sequence[Mapping[str, str]]

    def recording(self, index: int, joints: np.ndarray) -> Recording:
        """Recording `names[index]` with its joints [T, M, V, C]."""
        return Recording(joints, self.labels[index], **self.numbers[index], columns=self.columns[index])


def read_labels(table: Path) -> Labels:
    """Reads the table of a data set; names are those of files or folders beside it.

    Raises:
        DataError: no table, an invalid line, or a name outside the folder.
    """
    names: list[str] = []
    labels: list[str] = []
    splits: dict[str, list[str]] = {}
    numbers: list[Numbers] = []
    columns: list[Mapping[str, str]] = []
    zeros: dict[str, int] = {}  # column of a number -> the first line that has the number 0 there
    for line, row in read_table(table, COLUMNS[:2]):
        where, name = f"{table}, line {line}", row["name"]
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or "\\" in name:
            raise DataError(f"{where}: {show(name)} is not the name of a file inside {table.parent}")
        if not row["label"]:
            raise DataError(f"{where}: '{name}' has no label")
        check_name(name, "clip", where)
        check_name(row["label"], "class", where)
        names.append(name)
        labels.append(row["label"])
        if row.get("split"):
            splits.setdefault(check_name(row["split"], "list", where), []).append(name)
            if len(splits) > MOST_SPLITS:
                raise DataError(f"{where}: column 'split' names more than {MOST_SPLITS} lists")
        numbers.append(_numbers(row, where))
        for column, number in numbers[-1].items():
            if row.get(column) and number == 0:
                zeros.setdefault(column, line)
        columns.append(_further(row, where))
    if not names:
        raise DataError(f"{table}: lists no clips")
    for column, line in zeros.items():
        if any(dict(row)[column] for row in numbers):
            raise DataError(
                f"{table}, line {line}: {column} '0' beside others: 0 is an unknown number; count from 1, or leave it empty"
            )
    ids, class_names = number_classes(names, labels, str(table))
    return Labels(names, ids, class_names, splits, numbers, columns)


def number_classes(names: Sequence[str], labels: Sequence[str], where: str) -> tuple[list[int], list[str]]:
    """Class ids of the clips, and the names of the classes: numbers stay, names are numbered alphabetically.

    Raises:
        DataError: too many classes, or a number that is too large.
    """
    if all(label.isdecimal() for label in labels):
        ids = [check_label(int(label[:MOST_DIGITS]), f"{where}: '{name}'") for name, label in zip(names, labels, strict=True)]
        return ids, [str(label) for label in range(max(ids, default=-1) + 1)]
    class_names = sorted(set(labels))
    if len(class_names) > MOST_CLASSES:
        raise DataError(f"{where}: {len(class_names)} classes; the limit is {MOST_CLASSES}")
    number_of = {name: number for number, name in enumerate(class_names)}
    return [number_of[label] for label in labels], class_names


def _numbers(row: Mapping[str, str], where: str) -> Numbers:
    def number(column: str) -> int:
        text = row.get(column)
        if not text:
            return 0  # unknown
        if not text.isdecimal() or len(text) > MOST_DIGITS:
            raise DataError(f"{where}: {column} {show(text)} is not a number of at most {MOST_DIGITS} digits")
        return int(text)

    return {
        "subject": number("subject"),
        "camera": number("camera"),
        "setup": number("setup"),
        "replication": number("replication"),
    }


def _further(row: Mapping[str, str], where: str) -> dict[str, str]:
    """The columns of a line that are not `COLUMNS`."""
    found = {column: text for column, text in row.items() if column not in COLUMNS}
    for column, text in found.items():
        check_name(column, "column", where)
        if column in RESERVED:
            raise DataError(f"{where}: a column cannot be named '{column}'; rename it")
        if text:
            check_name(text, f"value of '{column}'", where)
    return found
