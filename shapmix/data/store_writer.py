"""Writes a data set as a store, recording by recording, so that a stopped conversion resumes."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from tqdm import tqdm

import shapmix
from shapmix.data.sources import Recording, Source
from shapmix.data.sources.bounded import LARGEST_TABLE, MOST_CLASSES, MOST_CLIPS, check_name, parse_json, read_file
from shapmix.data.sources.plain import Plain
from shapmix.data.sources.pyskl import Pyskl
from shapmix.data.store import COLUMNS, FRAMES, INDEX, LAYOUT, NUMBERS, VERSION
from shapmix.process.errors import DataError
from shapmix.process.files import UNFINISHED, InUseError, only_writer, sync_folder, write_whole
from shapmix.skeleton.layout import Layout, layout_text, parse_layout

log = logging.getLogger("shapmix")


JOURNAL, ORIGIN = "clips.jsonl", "origin.json"

CUT_OFF = re.compile(rf"({re.escape(ORIGIN)}|{re.escape(INDEX)})\.\d+-[0-9a-f]+{re.escape(UNFINISHED)}")  # names of `whole_file`

OF_A_SCORE = 1.0  # a pose estimator's score is at most this ...

OF_PIXELS = 20.0  # ... and coordinates in metres or of a normalised picture stay below this

HASHED_ONE_BY_ONE = 16


class PrepareError(RuntimeError):
    """A store that cannot be made; the message says why and what to do."""


def prepare(
    source: Source,
    out: Path,
    *,
    people: int | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    depth: bool = False,
    skip_damaged: bool = False,
    workers: int = 2,
) -> None:
    """Writes the recordings of `source`, in its order, as the store `out`, which must not exist.

    `depth` says that the third coordinate is one, where it looks like the score of a pose's estimator.

    Raises:
        DataError: a damaged recording (unless they are skipped), or names that repeat.
        PrepareError: `out` exists, another process writes it, its `.partial` is not of this command, the third coordinate looks
            like a score, or the disk is full.
    """
    if os.path.lexists(out):
        raise PrepareError(f"{out} exists; give another folder, or remove it (--check verifies a store)")
    text = layout_text(source.layout)
    layout = parse_layout(text, where=source.layout)
    _check_source(source)
    partial = out.with_name(f"{out.name}.partial")
    if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
        raise PrepareError(f"{partial} is a link or a file, not a folder of this command; move it away or give another OUT")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with only_writer(partial, out.with_name(f"{out.name}.lock")):
            if os.path.lexists(out):  # another process has just finished
                raise PrepareError(f"{out} exists; give another folder, or remove it")
            _check_own(partial)
            origin = {**_origin(source), "people": people, "dtype": dtype, "skip_damaged": skip_damaged}
            rows = _resumed(partial, origin, source.names)
            with ThreadPoolExecutor(1) as aside:
                hashes = aside.submit(_hashes, source.files)
                looks = None if depth or source.scores else _asks_for_scores
                _convert(source, layout, partial, rows, people, np.dtype(dtype), skip_damaged, workers, looks)
                index = _index(source, rows, dtype, hashes.result())
            (partial / LAYOUT).write_text(text, encoding="utf-8")
            write_whole(partial / INDEX, json.dumps(index))
            for name in (JOURNAL, ORIGIN):  # with the index, a folder without its origin is known as one's own
                (partial / name).unlink()
            sync_folder(partial)
            partial.rename(out)
            sync_folder(out.parent)
    except InUseError as error:
        raise PrepareError(str(error)) from None
    except OSError as error:
        reason = f"{error.filename or partial}: {error.strerror or error}"
        raise PrepareError(f"{reason}; mend it and repeat the command, which goes on from here") from error
    _tell_empty_classes(index)
    damaged = index["source"]["damaged"]
    for entry in damaged:
        log.warning("left out: %s", entry["reason"])
    log.info(
        "%s: %d recordings of %d classes, %d frames, layout %s%s",
        out,
        len(index["clips"]["name"]),
        len(source.class_names),
        sum(index["clips"]["length"]),
        layout.name,
        f"; {len(damaged)} damaged ones left out" if damaged else "",
    )


def _check_source(source: Source) -> None:
    if not 1 <= len(source.names) <= MOST_CLIPS:
        raise DataError(f"{_place(source)}: holds {'no' if not source.names else len(source.names)} recordings")
    if len(source.class_names) > MOST_CLASSES:
        raise DataError(f"{_place(source)}: {len(source.class_names)} classes; there are at most {MOST_CLASSES}")
    for what, texts in (("class", source.class_names), ("recording", source.names), ("list", source.splits)):
        for text in texts:
            check_name(text, what, _place(source))
    seen: set[str] = set()
    for name in source.names:
        if name in seen:
            raise DataError(f"{_place(source)}: two recordings have the name '{name}'; rename one")
        seen.add(name)
    for split, names in source.splits.items():
        for name in names:
            if name not in seen:
                raise DataError(f"{_place(source)}: split '{split}' lists '{name}', which is no recording; correct the list")


def _place(source: Source) -> str:
    return str(source.files[0].parent if len(source.files) > 1 else source.files[0]) if source.files else type(source).__name__


def _check_own(partial: Path) -> None:
    """Refuses a folder that this command did not begin, as what lies in it would be overwritten; removes files that were cut off.

    A run writes its origin first, and the index before it takes the origin away.
    """
    found = sorted(partial.iterdir())
    cut_off = [path for path in found if CUT_OFF.fullmatch(path.name)]
    own = {JOURNAL, ORIGIN, FRAMES, INDEX, LAYOUT, *(path.name for path in cut_off)}
    foreign = [path.name for path in found if path.name not in own or path.is_symlink() or not path.is_file()]
    begun = len(found) == len(cut_off) or any(_is_own(partial / name) for name in (ORIGIN, INDEX))
    if foreign or not begun:
        named = foreign[0] if foreign else found[0].name
        raise PrepareError(f"{partial} is not of this command: it holds '{named}'; move it away or give another OUT")
    for path in cut_off:
        path.unlink()


def _is_own(path: Path) -> bool:
    """Whether an origin or an index was written by this command."""
    try:
        content = parse_json(read_file(path, LARGEST_TABLE), str(path), "")
    except DataError:
        return False
    return isinstance(content, dict) and "shapmix" in content


def _origin(source: Source) -> dict[str, Any]:
    """What a store came from, as far as it is known before anything is read: the same for a run that goes on."""
    digest = hashlib.sha256("\n".join(source.names).encode())
    for file in source.files:
        status = file.stat()
        digest.update(f"\n{file.name} {status.st_size} {status.st_mtime_ns}".encode())
    return {
        "shapmix": shapmix.__version__,
        "format": type(source).__name__,
        "layout": source.layout,
        "names_and_files": digest.hexdigest(),
    }


def _resumed(partial: Path, origin: dict[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """The journal's lines of an earlier run from the same source with the same options; otherwise the folder is emptied."""
    try:
        same = parse_json(read_file(partial / ORIGIN, LARGEST_TABLE), ORIGIN, "") == origin
    except DataError:
        same = False
    if not same:
        if (partial / JOURNAL).exists():
            log.info("%s: of another source or other options; starting again", partial)
        for name in (JOURNAL, FRAMES, INDEX, LAYOUT):
            (partial / name).unlink(missing_ok=True)
        write_whole(partial / ORIGIN, json.dumps(origin))
        return []
    rows: list[dict[str, Any]] = []
    journal = partial / JOURNAL
    for line in journal.read_bytes().splitlines() if journal.exists() else []:
        try:
            row = parse_json(line, JOURNAL, "")
        except DataError:  # the last line of a run that was killed
            break
        if not _is_row(row) or len(rows) == len(names) or row["name"] != names[len(rows)]:
            break
        rows.append(row)
    return rows


def _is_row(row: Any) -> bool:
    """Whether a line of the journal tells of a recording that is whole or of a damaged one."""
    if not isinstance(row, dict):
        return False
    if "length" not in row:
        return isinstance(row.get("damaged"), str)
    return row["length"] != 0 and all(type(row.get(column)) is int and row[column] >= 0 for column in COLUMNS[1:])


def _convert(
    source: Source,
    layout: Layout,
    partial: Path,
    rows: list[dict[str, Any]],
    people: int | None,
    dtype: np.dtype,
    skip_damaged: bool,
    workers: int,
    refuse: Callable[[Source, str, np.ndarray], None] | None,
) -> None:
    """Appends the recordings behind the last of `rows` to the frames, and to `rows`."""
    with (partial / FRAMES).open("a+b") as frames, (partial / JOURNAL).open("w", encoding="utf-8") as journal:
        shape = _cut_to(frames, rows, dtype)
        for row in rows:
            journal.write(json.dumps(row) + "\n")
        journal.flush()
        names = source.names[len(rows) :]
        for name, read in tqdm(
            zip(names, _in_order(source, len(rows), workers), strict=True),
            total=len(source.names),
            initial=len(rows),
            unit=" recordings",
            disable=None,
        ):
            try:
                recording = read.result()
                shape = shape or (people or recording.joints.shape[1], *recording.joints.shape[2:])
                joints = _fitted(name, recording, layout, len(source.class_names), shape, dtype)
            except DataError as error:
                if not skip_damaged:
                    raise DataError(f"{error} (--skip-damaged leaves such recordings out)") from error
                row = {"name": name, "damaged": str(error)}
            else:
                if refuse is not None:
                    refuse(source, name, recording.joints)
                if frames.tell() == 0:
                    frames.write(_header(0, shape, dtype))
                frames.write(joints.data)
                frames.flush()
                numbers = {number: getattr(recording, number) for number in NUMBERS}
                row = {"name": name, "label": recording.label, "length": len(joints), "crc32": zlib.crc32(joints.data), **numbers}
            journal.write(json.dumps(row) + "\n")
            journal.flush()
            rows.append(row)
        if shape is None:
            raise DataError(f"{_place(source)}: every recording is damaged; the first: {rows[0]['damaged']}")
        os.fsync(frames.fileno())
    with (partial / FRAMES).open("r+b") as frames:
        frames.write(_header(sum(row.get("length", 0) for row in rows), shape, dtype))
        os.fsync(frames.fileno())


def _in_order(source: Source, first: int, workers: int) -> Iterator[Future[Recording]]:
    """Recordings from `first` on, read by several threads a little ahead, so that memory holds a few at a time."""
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Recording]] = deque()
        try:
            for index in range(first, len(source.names)):
                ahead.append(pool.submit(source.read, index))
                if len(ahead) > 4 * workers:
                    yield ahead.popleft()
            while ahead:
                yield ahead.popleft()
        finally:
            for waiting in ahead:
                waiting.cancel()


def _fitted(
    name: str, recording: Recording, layout: Layout, num_classes: int, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """[T, M, V, C] of the store's shape and type, or a DataError that says what does not fit."""
    joints = recording.joints
    if joints.ndim != 4 or len(joints) == 0:
        raise DataError(f"recording '{name}': shape {list(joints.shape)}, not [frames, people, joints, coordinates]")
    if joints.shape[2] != layout.num_joints:
        raise DataError(f"recording '{name}': {joints.shape[2]} joints, layout '{layout.name}' has {layout.num_joints}")
    if not 0 <= recording.label < num_classes:
        raise DataError(f"recording '{name}': label {recording.label}, the {num_classes} classes are 0 to {num_classes - 1}")
    if joints.shape[1] > shape[0]:
        raise DataError(f"recording '{name}': {joints.shape[1]} people, the store has {shape[0]}; give --people {joints.shape[1]}")
    if joints.shape[3] != shape[2]:
        raise DataError(f"recording '{name}': {joints.shape[3]} coordinates, the first recording has {shape[2]}")
    with np.errstate(over="ignore", invalid="ignore"):
        fitted = np.zeros((len(joints), *shape), dtype)
        fitted[:, : joints.shape[1]] = joints
    if not np.isfinite(fitted).all():
        frame, person, joint, _ = np.argwhere(~np.isfinite(fitted))[0]
        raise DataError(
            f"recording '{name}': frame {frame}, person {person}, joint '{layout.joints[joint]}' has a coordinate that is not "
            f"finite{' in float16' if np.isfinite(joints).all() else ''}; repair or remove the recording"
        )
    return fitted


def _asks_for_scores(source: Source, name: str, joints: np.ndarray) -> None:
    """Stops at a third coordinate from 0 to 1 beside pixels: a score that is taken for a depth would be turned as one."""
    if joints.shape[3] != 3:
        return
    third = joints[..., 2]
    reach = float(np.abs(joints[..., :2]).max())
    if third.min() < 0 or not 0 < third.max() <= OF_A_SCORE or reach < OF_PIXELS:
        return
    if isinstance(source, Plain):
        scores = "give --scores"
    elif isinstance(source, Pyskl):
        scores = "write it as 'keypoint_score'"
    else:
        scores = "write the data in the plain form and give --scores"
    raise PrepareError(
        f"recording '{name}': the third coordinate lies from 0 to 1 and the others reach {reach:.0f}, as the score of a pose's "
        f"estimator beside pixels does; if it is one, {scores}; if it is a depth, give --depth"
    )


def _tell_empty_classes(index: Mapping[str, Any]) -> None:
    """Logs which classes have no recording: training asks for one of each."""
    labels, names = set(index["clips"]["label"]), index["class_names"]
    empty = [names[label] for label in range(len(names)) if label not in labels]
    if not empty:
        return
    shown = ", ".join(empty[:10]) + (", ..." if len(empty) > 10 else "")
    first = "; labels start at 1, classes are numbered from 0" if names[0] == "0" and empty[0] == "0" else ""
    log.warning("%d of %d classes have no recording: %s%s", len(empty), len(names), shown, first)


def _cut_to(frames: BinaryIO, rows: list[dict[str, Any]], dtype: np.dtype) -> tuple[int, ...] | None:
    """Cuts the frames behind the last recording of the journal that is whole in both; returns [M, V, C] where it is known."""
    frames.seek(0, os.SEEK_END)
    written = frames.tell()
    if written == 0 or not any("length" in row for row in rows):
        del rows[next((at for at, row in enumerate(rows) if "length" in row), len(rows)) :]
        frames.truncate(0)
        return None
    frames.seek(0)
    try:
        np.lib.format.read_magic(frames)
        (_, *shape), _, found = np.lib.format.read_array_header_1_0(frames)
        if found != dtype or len(shape) != 3 or min(shape) < 1:
            raise ValueError("not a header of this command")
    except ValueError:
        rows.clear()
        frames.truncate(0)
        return None
    end, size = frames.tell(), int(np.prod(shape)) * dtype.itemsize
    kept = 0
    for row in rows:
        block = frames.read(row.get("length", 0) * size)
        if "length" in row and (len(block) != row["length"] * size or zlib.crc32(block) != row["crc32"]):
            break
        end += len(block)
        kept += 1
    del rows[kept:]
    frames.truncate(end)
    frames.seek(end)
    if rows:
        log.info("going on behind '%s', recording %d", rows[-1]["name"], len(rows))
    return tuple(shape)


def _header(num_frames: int, shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """Of frames.npy; NumPy leaves room in it for the number of frames to grow, so that it can be written again in place."""
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (num_frames, *shape)}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


def _hashes(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of each source file; of many files one line for all, in their order."""
    found = []
    for file in files:
        digest = hashlib.sha256()
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
        found.append({"file": file.name, "bytes": file.stat().st_size, "sha256": digest.hexdigest()})
    if len(found) <= HASHED_ONE_BY_ONE:
        return found
    lines = "".join(f"{entry['sha256']}  {entry['file']}\n" for entry in found)
    size = sum(file.stat().st_size for file in files)
    return [{"files": len(found), "bytes": size, "sha256": hashlib.sha256(lines.encode()).hexdigest()}]


def _index(source: Source, rows: list[dict[str, Any]], dtype: str, hashes: list[dict[str, Any]]) -> dict[str, Any]:
    whole = [row for row in rows if "length" in row]
    place = {row["name"]: at for at, row in enumerate(whole)}
    return {
        "version": VERSION,
        "shapmix": shapmix.__version__,
        "dtype": dtype,
        "scores": source.scores,
        "class_names": list(source.class_names),
        "splits": {split: [place[name] for name in names if name in place] for split, names in source.splits.items()},
        "source": {
            "format": type(source).__name__,
            "files": hashes,
            "damaged": [{"name": row["name"], "reason": row["damaged"]} for row in rows if "damaged" in row],
        },
        "clips": {column: [row[column] for row in whole] for column in COLUMNS},
    }
