"""A prepared data set (store) on disk: a folder that `python -m shapmix.prepare` writes atomically.

- `frames.npy`: [F, M, V, C] float32 or float16, the concatenated valid frames of all recordings;
- `store.json`: names, labels, lengths, checksums and numbers of the recordings, splits, classes, provenance;
- `layout.toml`: the skeleton.

All three are common formats that cannot execute code. float32 frames are memory-mapped, so opening such a store does not depend on
its size; float16 frames are read into memory as float32.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from shapmix.data.clips import ClipStore
from shapmix.data.sources.bounded import (
    LARGEST_TABLE,
    MOST_CLASSES,
    MOST_CLIPS,
    MOST_SPLITS,
    check_name,
    parse_json,
    read_file,
    show,
)
from shapmix.process.errors import DataError
from shapmix.skeleton.layout import Layout, layout_text, parse_layout

FRAMES, INDEX, LAYOUT = "frames.npy", "store.json", "layout.toml"
VERSION = 1
NUMBERS = ("camera", "subject", "setup", "replication")
AGAIN = "prepare the data set again"
COLUMNS = ("name", "label", "length", "crc32", *NUMBERS)


@dataclass(frozen=True)
class Prepared:
    """An open store.

    Attributes:
        clips: the recordings, with memory-mapped frames.
        numbers: [n] int64 of `camera`, `subject`, `setup` and `replication`; 0 if unknown.
        splits: indices [k] int64 of the lists of the source, by name.
        source: format, options that were given for it, files with their hashes, and skipped recordings.
        columns: further columns of the source's table, n texts each, '' if unknown.
    """

    clips: ClipStore
    numbers: dict[str, torch.Tensor]
    splits: dict[str, torch.Tensor]
    source: dict[str, Any]
    columns: dict[str, list[str]] = field(default_factory=dict)


def open_store(folder: str | Path) -> Prepared:
    """Opens a store without reading its frames.

    Raises:
        DataError: not a store, an incomplete store, or inconsistent files.
    """
    folder = Path(folder)
    index = read_index(folder)
    mapped, layout = _opened(folder, index)
    clips = index["clips"]
    lengths = np.asarray(clips["length"], dtype=np.int64)
    frames = torch.from_numpy(mapped)
    store = ClipStore(
        frames.float() if frames.dtype == torch.float16 else frames,
        torch.from_numpy(np.concatenate([[0], lengths.cumsum()])),
        torch.tensor(clips["label"], dtype=torch.int64),
        clips["name"],
        layout,
        index["class_names"],
        scores=index["scores"],
        sha256=hashlib.sha256((folder / INDEX).read_bytes()).hexdigest(),
    )
    return Prepared(
        store,
        {name: torch.tensor(clips[name], dtype=torch.int64) for name in NUMBERS},
        {name: torch.tensor(chosen, dtype=torch.int64) for name, chosen in index["splits"].items()},
        index["source"],
        index["columns"],
    )


def _opened(folder: Path, index: dict[str, Any]) -> tuple[np.ndarray, Layout]:
    """The frames [F, M, V, C], memory-mapped, and the layout, as the index describes them."""
    try:
        mapped = np.lib.format.open_memmap(folder / FRAMES, mode="c")
        layout = parse_layout(layout_text(folder / LAYOUT), where=str(folder / LAYOUT))
    except Exception as error:  # NumPy raises many types of error for a damaged file
        raise DataError(f"{folder}: damaged store ({error}); prepare it again") from error
    total = sum(index["clips"]["length"])
    if mapped.ndim != 4 or not mapped.flags.c_contiguous:
        raise DataError(f"{folder}: {FRAMES} is {list(mapped.shape)}, not [frames, people, joints, coordinates]; prepare it again")
    if list(mapped.shape[:1]) != [total] or str(mapped.dtype) != index["dtype"]:
        raise DataError(
            f"{folder}: {FRAMES} contains {len(mapped)} frames of {mapped.dtype}, {INDEX} expects {total} of "
            f"{index['dtype']}; prepare it again"
        )
    if wrong := layout.wrong_dimension(mapped.shape[3], scores=index["scores"]):
        raise DataError(f"{folder}: {wrong}; prepare it again")
    return mapped, layout


def read_index(folder: Path) -> dict[str, Any]:
    """Reads and validates `store.json`.

    Raises:
        DataError: missing, unreadable, a different version, or inconsistent columns.
    """
    path = folder / INDEX
    try:
        exists = path.is_file()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not exists:
        raise DataError(f"{folder}: not a prepared data set (no {INDEX}); make one with python -m shapmix.prepare")
    index = parse_json(read_file(path, LARGEST_TABLE), str(path), AGAIN)
    if not isinstance(index, dict) or type(index.get("version")) is not int or index["version"] != VERSION:
        raise DataError(f"{path}: the format version is not {VERSION}; {AGAIN} with this version of shapmix")
    _check_index(path, index)
    return index


def _check_index(path: Path, index: dict[str, Any]) -> None:
    """Checks the type and range of every value, so that users of the index can rely on it."""

    def fail(reason: str) -> NoReturn:
        raise DataError(f"{path}: {reason}; {AGAIN}")

    kinds = {"clips": dict, "class_names": list, "splits": dict, "columns": dict, "source": dict, "scores": bool, "dtype": str}
    for key, kind in kinds.items():
        if type(index.get(key)) is not kind:
            fail(f"'{key}' is {show(index.get(key))}, not a {kind.__name__}")
    if index["dtype"] not in ("float32", "float16"):
        fail(f"'dtype' is {show(index['dtype'])}, not float32 or float16")
    names = index["class_names"]
    if not 1 <= len(names) <= MOST_CLASSES:
        fail(f"{len(names)} classes, not 1 to {MOST_CLASSES}")
    for name in names:
        check_name(name, "class", str(path))
    if len(set(names)) != len(names):
        fail("duplicate class name")
    clips = index["clips"]
    for column in COLUMNS:
        if not isinstance(clips.get(column), list):
            fail(f"column '{column}' is missing")
    count = len(clips["name"])
    if not 1 <= count <= MOST_CLIPS or any(len(clips[column]) != count for column in COLUMNS):
        fail(f"columns of different lengths, or not 1 to {MOST_CLIPS} recordings")
    for name in clips["name"]:
        check_name(name, "recording", str(path))
    if len(set(clips["name"])) != count:
        fail("duplicate recording name")
    bounds = {"label": (0, len(names)), "length": (1, 1 << 40), "crc32": (0, 1 << 32)}
    for column in COLUMNS[1:]:
        low, high = bounds.get(column, (0, 1 << 63))
        if not _are_integers(clips[column], low, high):
            fail(f"column '{column}' contains a value that is not an integer from {low} to {high - 1}")
    for column, values in index["columns"].items():
        if column in COLUMNS or not isinstance(values, list) or len(values) != count or set(map(type, values)) != {str}:
            fail(f"column {show(column)} is not a text per recording")
    if len(index["splits"]) > MOST_SPLITS:
        fail(f"{len(index['splits'])} splits; the limit is {MOST_SPLITS}")
    for split, rows in index["splits"].items():
        if not isinstance(rows, list) or not _are_integers(rows, 0, count) or len(set(rows)) != len(rows):
            fail(f"split {show(split)} is not a list of distinct recordings")


def _are_integers(values: list[Any], low: int, high: int) -> bool:
    """Whether all values are integers from `low` to `high` (exclusive); booleans are rejected."""
    return set(map(type, values)) <= {int} and (not values or (min(values) >= low and max(values) < high))


def damaged_clips(folder: str | Path) -> Iterator[tuple[str, str]]:
    """Verifies every frame of a store; yields (name, reason) for each recording with a wrong checksum.

    Raises:
        DataError: as `open_store`.
    """
    folder = Path(folder)
    index = read_index(folder)
    frames, _ = _opened(folder, index)
    columns = index["clips"]
    begin = 0
    for name, length, expected in zip(columns["name"], columns["length"], columns["crc32"], strict=True):
        found = zlib.crc32(np.ascontiguousarray(frames[begin : begin + length]).data)
        begin += length
        if found != expected:
            yield name, f"checksum {found:08x}, expected {expected:08x}"
