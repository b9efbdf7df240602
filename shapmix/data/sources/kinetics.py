"""Reader of Kinetics-400 as pyskl releases it: a table of contents `k400_hrnet.pkl`, and the poses in `kpfiles/*.pkl` beside it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from shapmix.data.sources.annotations import Annotated, check_splits
from shapmix.data.sources.bounded import show
from shapmix.data.sources.kept import KeptFiles
from shapmix.data.sources.pyskl import TABLE_FIELD, is_pickle
from shapmix.data.sources.registry import source
from shapmix.data.sources.restricted import load_pickle, mentions
from shapmix.process.errors import DataError

FOLDER = "kpfiles"
KEPT = 3  # files of poses; several threads read clips on both sides of the border between two files


def _is_kinetics(path: Path) -> bool:
    if path.is_dir():
        return len(_tables(path)) == 1
    return is_pickle(path) and mentions(path, TABLE_FIELD)


def _tables(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.glob("*.pkl")) if mentions(file, TABLE_FIELD)]


@source("kinetics", f"pyskl's table of contents of Kinetics-400 (a .pkl with '{TABLE_FIELD}'), or its folder", fits=_is_kinetics)
class Kinetics(Annotated):
    """The clips of the table, in the order of their files; see `Annotated` for the compressed format.

    An annotation has `raw_file`, the file of its poses, whose last parts are looked up in `kpfiles/` or beside the table;
    `frame_inds` [n] and `box_score` [n], the frame and the detection score of each pose; and `valid`, which is not used. A file
    of poses is `{frame_dir: {'keypoint': [n, 17, 3]}}`; it is read when its first clip is, and only a few are kept.

    With `box_threshold` only poses with at least this `box_score` are read.

    Raises:
        DataError: not such a table, a threshold outside 0 to 1, or missing files.
    """

    def __init__(
        self, path: Path, *, layout: str | None = None, box_threshold: float | None = None, people: int | None = None
    ) -> None:
        tables = _tables(path) if path.is_dir() else [path]
        if len(tables) != 1:
            found = " and ".join(file.name for file in tables) or f"no .pkl with '{TABLE_FIELD}'"
            raise DataError(f"{path}: contains {found}; give the table of contents, k400_hrnet.pkl")
        table = tables[0]
        if box_threshold is not None and not 0 <= box_threshold <= 1:
            raise DataError(f"{table}: box scores are from 0 to 1, not {box_threshold:g}; correct --box-threshold")
        content = load_pickle(table)
        annotations = content.get("annotations") if isinstance(content, dict) else None
        if not isinstance(annotations, list) or not annotations:
            raise DataError(f"{table}: has no list 'annotations'; give pyskl's table of contents of Kinetics-400")
        splits = check_splits(table, content.get("split"), len(annotations))
        self._box_threshold = box_threshold
        self._kept: KeptFiles[dict[str, Any]] = KeptFiles(_poses, KEPT)
        self._file_of = _found(table, annotations)
        in_order = sorted(range(len(annotations)), key=lambda row: self._file_of[annotations[row][TABLE_FIELD]])
        files = sorted(set(self._file_of.values()))
        super().__init__(
            table, [annotations[row] for row in in_order], splits, files=files, layout=layout or "coco17", people=people
        )

    def _keypoint(self, index: int) -> np.ndarray:
        file = self._file_of[self._annotations[index][TABLE_FIELD]]
        entry = self._kept.read(file).get(self.names[index])
        keypoint = entry.get("keypoint") if isinstance(entry, dict) else None
        if not isinstance(keypoint, np.ndarray) or keypoint.dtype.kind not in "fiu":
            raise DataError(
                f"{file}: clip '{self.names[index]}' has {show(entry)}, not an array 'keypoint'; extract the file again"
            )
        return keypoint

    def _selected(self, index: int, poses: int) -> np.ndarray | None:
        if self._box_threshold is None:
            return super()._selected(index, poses)
        score = self._array(index, "box_score")
        if score.shape != (poses,):
            raise self._error(index, f"box_score has shape {list(score.shape)} for {poses} poses")
        chosen = score.astype(np.float32) >= np.float32(self._box_threshold)
        if not chosen.any():
            raise DataError(
                f"{self._where(index)}: no box has a score of {self._box_threshold:g} or more (highest: "
                f"{score.max(initial=0):.3g}); lower --box-threshold, or skip such clips"
            )
        return np.asarray(chosen)


def _found(table: Path, annotations: list[Any]) -> dict[str, Path]:
    """The file of every `raw_file` of the table."""
    found: dict[str, Path] = {}
    for number, entry in enumerate(annotations):
        name = entry.get(TABLE_FIELD) if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise DataError(
                f"{table}: annotation {number}: '{TABLE_FIELD}' is {show(name)}, not the name of a file; download it again"
            )
        if name not in found:
            found[name] = _file(table, name)
    return found


def _file(table: Path, name: str) -> Path:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if parts and ".." not in parts:
        for begin in range(len(parts)):
            for folder in (table.parent, table.parent / FOLDER):
                path = folder.joinpath(*parts[begin:])
                if not Path(parts[begin]).is_absolute() and path.is_file():
                    return path
    raise DataError(
        f"{table}: '{TABLE_FIELD}' names {show(name)}, which is not in {table.parent / FOLDER}; extract pyskl's kpfiles for "
        "Kinetics-400 beside the table"
    )


def _poses(path: Path) -> dict[str, Any]:
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: is a {type(content).__name__}, not clips by name; extract the file again")
    return content
