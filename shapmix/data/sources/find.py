"""Detection of the format of a data set."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from shapmix.data.sources import Source
from shapmix.data.sources.bounded import UNREADABLE, is_tar, tar_files
from shapmix.data.sources.msg3d import DATA, Msg3d
from shapmix.data.sources.ntu_npz import NtuNpz, is_ntu_npz
from shapmix.data.sources.ntu_raw import NtuRaw
from shapmix.data.sources.nw_ucla import NwUcla
from shapmix.data.sources.plain import TABLE, Plain
from shapmix.data.sources.pyskl import Pyskl
from shapmix.process.errors import DataError

Format = Literal["auto", "ntu_raw", "ntu_npz", "pyskl", "nw_ucla", "msg3d", "plain"]
DESCRIPTIONS = {
    "ntu_raw": "a folder or an archive of .skeleton files",
    "ntu_npz": "an npz with x_train, y_train, x_test, y_test",
    "pyskl": "a .pkl with annotations",
    "nw_ucla": "a folder with all_sqe/ or all_sqe.tar.xz, or that archive",
    "msg3d": f"a folder with train{DATA}",
    "plain": f"a folder with {TABLE}",
}


def find_source(
    path: Path,
    format: Format = "auto",
    *,
    layout: str | None = None,
    scores: bool = False,
    depth: bool = False,
    train_names: Sequence[str] | None = None,
    test_names: Sequence[str] | None = None,
) -> Source:
    """Opens a data set.

    Args:
        path: file or folder.
        format: its format; `auto` detects it.
        layout: skeleton of the plain form.
        scores: the last coordinate of the plain form is a confidence score.
        depth: the third coordinate of 17 joints in MS-G3D's form is a depth, not a confidence score.
        train_names, test_names: names of the rows of an NTU npz.

    Raises:
        DataError: the path does not exist, its format is unknown or ambiguous, an option belongs to a different format, or the
            reader fails.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if format == "auto":
        format = _detect(path)
    if (layout is not None or scores) and format != "plain":
        raise DataError(f"{path}: the format is {format}, whose skeleton and scores are known; remove --layout and --scores")
    if (train_names is not None or test_names is not None) and format != "ntu_npz":
        raise DataError(f"{path}: the format is {format}, which contains names; remove the lists of names")
    if format == "ntu_raw":
        return NtuRaw(path)
    if format == "ntu_npz":
        return NtuNpz(path, train_names=train_names, test_names=test_names)
    if format == "pyskl":
        return Pyskl(path)
    if format == "nw_ucla":
        return NwUcla(path)
    if format == "msg3d":
        return Msg3d(path, depth=depth)
    return Plain(path, layout=layout, scores=scores)


def _detect(path: Path) -> Format:
    if path.is_dir():
        fits = {
            "ntu_raw": any(path.glob("*.skeleton")) or any(path.glob("*/*.skeleton")),
            "nw_ucla": any((path / name).exists() for name in ("all_sqe", "all_sqe.tar.xz")),
            "msg3d": any(path.glob(f"*{DATA}")),
            "plain": (path / TABLE).is_file(),
        }
    else:
        skeletons = _holds(path, ".skeleton")
        fits = {
            "ntu_npz": is_ntu_npz(path),
            "ntu_raw": skeletons,
            "nw_ucla": not skeletons and is_tar(path) and _holds(path, ".json"),
            "pyskl": path.suffix in (".pkl", ".pickle"),
        }
    found = [name for name in get_args(Format) if fits.get(name)]
    if len(found) != 1:
        known = "; ".join(f"{name}: {what}" for name, what in DESCRIPTIONS.items())
        reason = f"could be {' or '.join(found)}; choose with --format" if found else f"unknown format ({known})"
        raise DataError(f"{path}: {reason}")
    return found[0]


def _holds(path: Path, ending: str) -> bool:
    """Whether an archive contains files with that suffix (of a tar archive, only the first file is checked)."""
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
