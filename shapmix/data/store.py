"""A prepared data set on disk: one folder that `python -m shapmix.prepare` writes whole or not at all.

- `frames.npy`: [F, M, V, C] float32 or float16, the valid frames of all recordings, one after the other;
- `store.json`: names, labels, lengths, checksums and numbers of the recordings, splits, classes, where it all came from;
- `layout.toml`: the skeleton.

All three are formats that other tools read, and none of them can run code. `frames.npy` is mapped into memory, so that a store
of any size opens at once.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shapmix.data.clips import ClipStore, DataError
from shapmix.layout import parse_layout

FRAMES, INDEX, LAYOUT = "frames.npy", "store.json", "layout.toml"
VERSION = 1
NUMBERS = ("camera", "subject", "setup", "replication")
COLUMNS = ("name", "label", "length", "crc32", *NUMBERS)


@dataclass(frozen=True)
class Prepared:
    """A store that was opened.

    Attributes:
        clips: the recordings, their frames mapped into memory.
        numbers: [n] int64 of `camera`, `subject`, `setup` and `replication`; 0 where the source did not say.
        splits: indices [k] int64 of the lists that the source brought along, by name.
        source: format, files and their hashes, recordings that were left out.
    """

    clips: ClipStore
    numbers: dict[str, torch.Tensor]
    splits: dict[str, torch.Tensor]
    source: dict[str, Any]


def open_store(folder: str | Path) -> Prepared:
    """Opens a store without reading its frames.

    Raises:
        DataError: no store, an unfinished one, or files that do not fit together.
    """
    folder = Path(folder)
    index = read_index(folder)
    try:
        mapped = np.load(folder / FRAMES, mmap_mode="c", allow_pickle=False)
        layout = parse_layout((folder / LAYOUT).read_text(encoding="utf-8"), where=str(folder / LAYOUT))
    except (OSError, ValueError) as error:  # LayoutError is a ValueError
        raise DataError(f"{folder}: damaged store ({error}); prepare it again") from error
    clips = index["clips"]
    lengths = np.asarray(clips["length"], dtype=np.int64)
    if list(mapped.shape[:1]) != [int(lengths.sum())] or str(mapped.dtype) != index["dtype"]:
        raise DataError(
            f"{folder}: {FRAMES} holds {len(mapped)} frames of {mapped.dtype}, {INDEX} speaks of {lengths.sum()} of "
            f"{index['dtype']}; prepare it again"
        )
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
    )


def read_index(folder: Path) -> dict[str, Any]:
    """The content of `store.json`.

    Raises:
        DataError: none, unreadable, of another version, or columns that do not match.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder}: not a prepared data set (no {INDEX}); make one with python -m shapmix.prepare") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); prepare the data set again") from error
    if not isinstance(index, dict) or index.get("version") != VERSION:
        raise DataError(f"{path}: not of version {VERSION}; prepare the data set again with this version of shapmix")
    lengths = {len(index.get("clips", {}).get(column, ())) for column in COLUMNS}
    if len(lengths) != 1 or lengths == {0}:
        raise DataError(f"{path}: its columns do not match; prepare the data set again")
    return index


def damaged_clips(folder: str | Path) -> Iterator[tuple[str, str]]:
    """Reads every frame of a store; yields (name, reason) of each recording whose checksum is wrong.

    Raises:
        DataError: as `open_store`.
    """
    folder = Path(folder)
    open_store(folder)
    columns = read_index(folder)["clips"]
    frames = np.load(folder / FRAMES, mmap_mode="r", allow_pickle=False)
    begin = 0
    for name, length, expected in zip(columns["name"], columns["length"], columns["crc32"], strict=True):
        found = zlib.crc32(np.ascontiguousarray(frames[begin : begin + length]).data)
        begin += length
        if found != expected:
            yield name, f"checksum {found:08x} instead of {expected:08x}"
