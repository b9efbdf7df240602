"""Reader of BABEL's action recognition features: `train_ntu_sk_60.npy` with `train_label_60.pkl`, and likewise `val`, `test`."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from shapmix.data.sources.bounded import LARGEST_TABLE, MOST_CLASSES, parse_json, read_file, show
from shapmix.data.sources.registry import source
from shapmix.data.sources.restricted import load_pickle
from shapmix.data.sources.rows import PaddedRows, Part, is_column
from shapmix.process.errors import DataError

CLASSES = "action_label_2_idx.json"

_DATA = re.compile(r"(?P<part>(train|val|test)(_extra)?)_ntu_sk_(?P<classes>60|120)\.npy")


def _is_babel(path: Path) -> bool:
    if path.is_dir():
        return any(_DATA.fullmatch(file.name) for file in path.glob("*_ntu_sk_*.npy"))
    return _DATA.fullmatch(path.name) is not None


@source("babel", "a folder with BABEL's train_ntu_sk_60.npy, or that file if 120 classes lie beside it", fits=_is_babel)
class Babel(PaddedRows):
    """The 5-second chunks of BABEL's segments, 25 joints as in NTU RGB+D; see `PaddedRows`.

    The label pickle contains (segments, (labels, sequences, chunks, annotators)). A clip is named SEGMENT_SEQUENCE_CHUNK_ANNOTATOR,
    with the number of the repetition if a chunk has several labels. Classes have the names of `action_label_2_idx.json`, if that
    file of BABEL lies in the folder.

    Raises:
        DataError: as `PaddedRows`; or arrays of both 60 and 120 classes in a folder.
    """

    def __init__(self, path: Path, *, layout: str | None = None) -> None:
        folder = path if path.is_dir() else path.parent
        found = [match for file in sorted(folder.glob("*_ntu_sk_*.npy")) if (match := _DATA.fullmatch(file.name))]
        classes = sorted({match["classes"] for match in found}) if path.is_dir() else [_DATA.fullmatch(path.name)["classes"]]  # type: ignore[index]
        if len(classes) > 1:
            raise DataError(f"{folder}: has clips of {' and '.join(classes)} classes; give one file, such as {found[0][0]}")
        seen: Counter[str] = Counter()
        parts = [
            _part(match["part"], folder / match[0], folder / f"{match['part']}_label_{classes[0]}.pkl", seen)
            for match in found
            if match["classes"] == classes[0]
        ]
        super().__init__(path, parts, layout=layout or "ntu25")
        self.class_names = [str(label) for label in range(max(int(classes[0]), max(self.labels) + 1))]
        if (folder / CLASSES).is_file():
            self.files.append(folder / CLASSES)
            self.class_names = _class_names(folder / CLASSES, len(self.class_names))


def _part(name: str, data: Path, label: Path, seen: Counter[str]) -> Part:
    content = load_pickle(label)
    whole = isinstance(content, (tuple, list)) and len(content) == 2 and is_column(content[0]) and is_column(content[1])
    if not whole or len(content[1]) != 4 or not all(map(is_column, content[1])):
        raise DataError(f"{label}: not (segments, (labels, sequences, chunks, annotators)); give BABEL's file for {data.name}")
    segments, (labels, *others) = content
    if any(len(column) != len(segments) for column in (labels, *others)):
        raise DataError(f"{label}: columns of different lengths; download it again")
    names = []
    for row in zip(segments, *others, strict=True):
        text = "_".join(map(str, row))
        seen[text] += 1
        names.append(text if seen[text] == 1 else f"{text}_{seen[text]}")
    return Part(name, data, label, names, list(labels))


def _class_names(path: Path, classes: int) -> list[str]:
    """The names of the first classes, from BABEL's object of name -> number."""
    content = parse_json(read_file(path, LARGEST_TABLE), str(path), "download it again")
    numbers = {number: name for name, number in content.items()} if isinstance(content, dict) else {}
    if not all(type(number) is int and 0 <= number < MOST_CLASSES for number in numbers) or not set(range(classes)) <= set(numbers):
        raise DataError(f"{path}: {show(content)} does not name the classes 0 to {classes - 1}; download it again, or remove it")
    return [numbers[number] for number in range(classes)]
