"""Writer of stores: converts a data set recording by recording; an interrupted conversion resumes."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

import numpy as np
from tqdm import tqdm

import shapmix
from shapmix.data.clips import OF_PIXELS
from shapmix.data.sources import Recording, Source
from shapmix.data.sources.annotations import Annotated
from shapmix.data.sources.bounded import LARGEST_TABLE, MOST_CLASSES, MOST_CLIPS, check_name, parse_json, read_file
from shapmix.data.sources.registry import FORMATS
from shapmix.data.sources.rows import PaddedRows
from shapmix.data.sources.skeletons import fitting_layouts
from shapmix.data.store import COLUMNS, FRAMES, INDEX, LAYOUT, NUMBERS, VERSION
from shapmix.process.errors import DataError, ShapmixError
from shapmix.process.files import UNFINISHED, only_writer, sync_folder, whole_file, write_whole
from shapmix.skeleton.layout import Layout, layout_text, parse_layout

log = logging.getLogger("shapmix")


JOURNAL, ORIGIN = "clips.jsonl", "origin.json"

TEMPORARY = re.compile(
    rf"({'|'.join(map(re.escape, (ORIGIN, INDEX, LAYOUT, FRAMES)))})\.\d+-[0-9a-f]+{re.escape(UNFINISHED)}"
)  # temporary files

OF_A_SCORE = 1.0  # the highest confidence score


CHECKED_FRAMES = 10_000  # of a store, whose third coordinate may be a score

HASHED_ONE_BY_ONE = 16  # source files; more get one combined hash


class PrepareError(ShapmixError, RuntimeError):
    """A store cannot be written; the message says why and what to do."""


def prepare(
    source: Source,
    out: Path,
    *,
    people: int | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    depth: bool = False,
    skip_damaged: bool = False,
    label_offset: int | None = None,
    workers: int = 2,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Converts `source`, in its order, to the store `out`, which must not exist.

    Clips with fewer people than the clip with the most are padded with zeros.

    Args:
        source: the data set.
        out: the folder of the store.
        people: people per clip; None: as many as the clip with the most has.
        dtype: of the frames.
        depth: confirms that the third coordinate is a depth even if it looks like a confidence score.
        skip_damaged: skip and list damaged recordings.
        label_offset: the label of the first class, subtracted from all labels; None: 0, and labels that start at 1 are an error.
        workers: reader threads.
        options: how `source` was opened, by name, such as {"box_threshold": 0.5}; recorded in the store, and a conversion that was
            interrupted starts over if they differ.

    Raises:
        DataError: a damaged recording (unless `skip_damaged`), duplicate names, or labels that do not match `label_offset`.
        PrepareError: `out` exists, another process writes it, its `.partial` was not created by this command, the third
            coordinate looks like a score, the layout is for a different number of coordinates, or the disk is full.
    """
    if os.path.lexists(out):
        raise PrepareError(f"{out} exists; give another folder, or remove it (--check verifies a store)")
    text = layout_text(source.layout)
    layout = parse_layout(text, where=source.layout if isinstance(source.layout, str) else _place(source))
    _check_source(source)
    given = {name: str(value) if isinstance(value, Path) else value for name, value in (options or {}).items()}
    offset = check_offset(source, label_offset)
    partial = out.with_name(f"{out.name}.partial")
    if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
        raise PrepareError(f"{partial} is a link or a file, not a folder of this command; move it away or give another OUT")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with only_writer(partial, out.with_name(f"{out.name}.lock")):
            if os.path.lexists(out):  # another process has finished meanwhile
                raise PrepareError(f"{out} exists; give another folder, or remove it")
            _check_own(partial)
            origin = {
                **_origin(source, text),
                "people": people,
                "dtype": dtype,
                "skip_damaged": skip_damaged,
                "label_offset": offset,
                "options": given,
            }
            rows = _resumed(partial, origin, source.names)
            stopped = threading.Event()
            with ThreadPoolExecutor(1) as aside:
                hashes = aside.submit(_hashes, source.files, stopped)
                try:
                    _convert(_Form(source, layout, people, np.dtype(dtype), depth), partial, rows, skip_damaged, workers)
                except BaseException:
                    stopped.set()  # the pool waits for the hashes before the error is raised
                    raise
                index = _index(source, rows, dtype, offset, hashes.result(), given)
            write_whole(partial / LAYOUT, text)
            write_whole(partial / INDEX, json.dumps(index))
            for name in (JOURNAL, ORIGIN):  # the index identifies the folder from here on
                (partial / name).unlink()
            sync_folder(partial)
            partial.rename(out)
            sync_folder(out.parent)
    except OSError as error:
        reason = f"{error.filename or partial}: {error.strerror or error}"
        raise PrepareError(f"{reason}; fix the cause and repeat the command, which resumes here") from error
    if not depth and not source.scores:
        _warn_of_scores(out)
    _log_summary(out, layout, index, {row["people"] for row in rows if "length" in row})


def _log_summary(out: Path, layout: Layout, index: Mapping[str, Any], people: set[int]) -> None:
    _warn_of_empty_classes(index)
    damaged = index["source"]["damaged"]
    for entry in damaged:
        log.warning("skipped: %s", entry["reason"])
    log.info(
        "%s: %d recordings of %d classes, %d frames, layout %s%s%s%s",
        out,
        len(index["clips"]["name"]),
        len(index["class_names"]),
        sum(index["clips"]["length"]),
        layout.name,
        "; the last coordinate is a confidence score" if index["scores"] else "",
        f"; {min(people)} to {max(people)} people per clip, padded with zeros" if len(people) > 1 else "",
        f"; {len(damaged)} damaged recordings skipped" if damaged else "",
    )


def _check_source(source: Source) -> None:
    if not 1 <= len(source.names) <= MOST_CLIPS:
        raise DataError(
            f"{_place(source)}: contains {'no' if not source.names else len(source.names)} recordings; the limit is {MOST_CLIPS}"
        )
    if len(source.class_names) > MOST_CLASSES:
        raise DataError(f"{_place(source)}: {len(source.class_names)} classes; the limit is {MOST_CLASSES}")
    for what, texts in (("class", source.class_names), ("recording", source.names), ("list", source.splits)):
        for text in texts:
            check_name(text, what, _place(source))
    seen: set[str] = set()
    for name in source.names:
        if name in seen:
            raise DataError(f"{_place(source)}: two recordings are named '{name}'; rename one")
        seen.add(name)
    for split, names in source.splits.items():
        listed: set[str] = set()
        for name in names:
            if name not in seen:
                raise DataError(f"{_place(source)}: split '{split}' lists '{name}', which is not a recording; correct the list")
            if name in listed:
                raise DataError(f"{_place(source)}: split '{split}' lists '{name}' twice; remove one")
            listed.add(name)


def check_offset(source: Source, label_offset: int | None) -> int:
    """The label of the first class: `label_offset`, or 0.

    Raises:
        DataError: labels that start at 1 without `label_offset`, classes with names, or a label below the offset.
    """
    numbered = list(source.class_names) == [str(number) for number in range(len(source.class_names))]
    first = min(source.labels)
    if label_offset is None and numbered and first == 1:
        raise DataError(
            f"{_place(source)}: labels start at 1: use --label-offset 1, so that class '1' is the first; "
            "--label-offset 0 keeps class '0' without clips"
        )
    if label_offset and not numbered:
        raise DataError(
            f"{_place(source)}: --label-offset is for numbered classes, but class 0 is '{source.class_names[0]}'; remove it"
        )
    if not 0 <= (label_offset or 0) <= first:
        name = source.names[list(source.labels).index(first)]
        raise DataError(f"{_place(source)}: --label-offset {label_offset} contradicts the label of '{name}', which is {first}")
    return label_offset or 0


def _place(source: Source) -> str:
    return str(source.files[0].parent if len(source.files) > 1 else source.files[0]) if source.files else type(source).__name__


def _check_own(partial: Path) -> None:
    """Rejects a folder that this command did not create, since its content would be overwritten; removes leftover temporary files.

    A run writes the origin first, and writes the index before it deletes the origin.
    """
    found = sorted(partial.iterdir())
    temporary = [path for path in found if TEMPORARY.fullmatch(path.name)]
    own = {JOURNAL, ORIGIN, FRAMES, INDEX, LAYOUT, *(path.name for path in temporary)}
    foreign = [path.name for path in found if path.name not in own or path.is_symlink() or not path.is_file()]
    begun = len(found) == len(temporary) or any(_is_own(partial / name) for name in (ORIGIN, INDEX))
    if foreign or not begun:
        named = foreign[0] if foreign else found[0].name
        raise PrepareError(f"{partial} was not created by this command: it contains '{named}'; move it away or give another OUT")
    for path in temporary:
        path.unlink()


def _is_own(path: Path) -> bool:
    """Whether an origin or index file was written by this command."""
    try:
        content = parse_json(read_file(path, LARGEST_TABLE), str(path), "")
    except DataError:
        return False
    return isinstance(content, dict) and "shapmix" in content


def _origin(source: Source, text: str) -> dict[str, Any]:
    """Identifies the source before anything is read; an interrupted run with the same origin resumes. `text` is its layout."""
    digest = hashlib.sha256("\n".join(source.names).encode())
    for file in source.files:
        status = file.stat()
        digest.update(f"\n{file.name} {status.st_size} {status.st_mtime_ns}".encode())
    return {
        "shapmix": shapmix.__version__,
        "format": type(source).__name__,
        "layout": text,
        "scores": source.scores,
        "names_and_files": digest.hexdigest(),
    }


def _resumed(partial: Path, origin: dict[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Journal entries of an interrupted run with the same source and options; otherwise the folder is emptied."""
    try:
        same = parse_json(read_file(partial / ORIGIN, LARGEST_TABLE), ORIGIN, "") == origin
    except DataError:
        same = False
    if not same:
        if (partial / JOURNAL).exists():
            log.info("%s: the source or the options have changed; starting over", partial)
        for name in (JOURNAL, FRAMES, INDEX, LAYOUT):
            (partial / name).unlink(missing_ok=True)
        write_whole(partial / ORIGIN, json.dumps(origin))
        return []
    rows: list[dict[str, Any]] = []
    journal = partial / JOURNAL
    for line in journal.read_bytes().splitlines() if journal.exists() else []:
        try:
            row = parse_json(line, JOURNAL, "")
        except DataError:  # the truncated last line of a killed run
            break
        if not _is_row(row) or len(rows) == len(names) or row["name"] != names[len(rows)]:
            break
        rows.append(row)
    return rows


def _is_row(row: Any) -> bool:
    """Whether a journal entry is valid, for a complete or a damaged recording."""
    if not isinstance(row, dict):
        return False
    if "length" not in row:
        return isinstance(row.get("damaged"), str)
    texts = row.get("columns")
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        return False
    return row["length"] != 0 and all(type(row.get(column)) is int and row[column] >= 0 for column in (*COLUMNS[1:], "people"))


@dataclass(frozen=True)
class _Form:
    """What every recording of a store is checked against and padded to."""

    source: Source
    layout: Layout
    people: int | None
    dtype: np.dtype
    depth: bool

    def fit(self, name: str, recording: Recording, shape: tuple[int, ...] | None) -> np.ndarray:
        """[T, M, V, C] as the store has it; `shape` [M, V, C] is the store's so far.

        Raises:
            DataError: the recording is damaged.
            PrepareError: the layout, or what the third coordinate is, does not fit the data: such recordings are not skipped.
        """
        if shape is None:
            _check_skeleton(self.source, self.layout, recording.joints)
        wanted = _fitting(shape, recording.joints, self.people)
        joints = _fitted(name, recording, self.layout, len(self.source.class_names), wanted, self.dtype)
        check_third_coordinate(self.source, name, recording.joints, self.depth)
        return joints


@dataclass
class _Unfinished:
    """Frames and journal of a `.partial` folder, open behind the last recording that is complete in both.

    `rows` are the entries of the journal, and `shape` [M, V, C] that of the frames once there are any.
    """

    path: Path
    rows: list[dict[str, Any]]
    dtype: np.dtype
    frames: BinaryIO
    journal: TextIO
    shape: tuple[int, ...] | None

    def add(self, name: str, recording: Recording, joints: np.ndarray) -> None:
        """Appends a recording that was fitted to `joints` [T, M, V, C]."""
        shape = joints.shape[1:]
        if self.shape is None:
            self.frames.write(_header(0, shape, self.dtype))
        elif self.shape != shape:
            before, self.frames = self.frames, _widened(self.path, self.frames, self.rows, shape, self.dtype)
            before.close()
            _write_journal(self.journal, self.rows)
        self.shape = shape
        self.frames.write(joints.data)
        self.frames.flush()
        self.note(_row(name, recording, joints))

    def note(self, row: dict[str, Any]) -> None:
        """Appends an entry to the journal."""
        self.journal.write(json.dumps(row) + "\n")
        self.journal.flush()
        self.rows.append(row)


@contextmanager
def _unfinished(partial: Path, rows: list[dict[str, Any]], dtype: np.dtype) -> Iterator[_Unfinished]:
    # the journal is opened for appending, which keeps it until the frames are verified
    with (partial / FRAMES).open("a+b") as frames, (partial / JOURNAL).open("a", encoding="utf-8") as journal:
        store = _Unfinished(partial / FRAMES, rows, dtype, frames, journal, _truncate(frames, rows, dtype))
        _write_journal(journal, rows)
        try:
            yield store
        finally:
            store.frames.close()


def _convert(form: _Form, partial: Path, rows: list[dict[str, Any]], skip_damaged: bool, workers: int) -> None:
    """Converts the recordings after the last of `rows`; appends them to the frames, to the journal and to `rows`."""
    source = form.source
    with _unfinished(partial, rows, form.dtype) as store:
        names, first = source.names[len(rows) :], len(rows)
        reads = zip(names, _in_order(source, first, workers), strict=True)
        for name, read in tqdm(reads, total=len(source.names), initial=first, unit=" recordings", disable=None):
            try:
                recording = read.result()
                joints = form.fit(name, recording, store.shape)
            except DataError as error:
                if not skip_damaged:
                    raise DataError(f"{error} (--skip-damaged skips such recordings)") from error
                store.note({"name": name, "damaged": str(error)})
            else:
                store.add(name, recording, joints)
        if store.shape is None:
            raise DataError(f"{_place(source)}: every recording is damaged; the first: {rows[0]['damaged']}")
        os.fsync(store.frames.fileno())
    with (partial / FRAMES).open("r+b") as frames:
        frames.write(_header(sum(row.get("length", 0) for row in rows), store.shape, form.dtype))
        os.fsync(frames.fileno())


def _row(name: str, recording: Recording, joints: np.ndarray) -> dict[str, Any]:
    """Journal entry of a recording that was written as `joints`."""
    return {
        "name": name,
        "label": recording.label,
        "length": len(joints),
        "crc32": zlib.crc32(joints.data),
        **{number: getattr(recording, number) for number in NUMBERS},
        "people": recording.joints.shape[1],
        "columns": dict(recording.columns),
    }


def _write_journal(journal: TextIO, rows: list[dict[str, Any]]) -> None:
    journal.seek(0)
    journal.truncate()
    journal.writelines(json.dumps(row) + "\n" for row in rows)
    journal.flush()


def _fitting(shape: tuple[int, ...] | None, joints: np.ndarray, people: int | None) -> tuple[int, ...]:
    """[M, V, C] of the store from this recording on: `shape`, with more people if the recording has more and `people` is None."""
    if shape is None:
        return (people or joints.shape[1], *joints.shape[2:])
    return (max(shape[0], joints.shape[1]), *shape[1:]) if people is None and joints.ndim == 4 else shape


def _widened(path: Path, frames: BinaryIO, rows: list[dict[str, Any]], shape: tuple[int, ...], dtype: np.dtype) -> BinaryIO:
    """Replaces the frames by the same with more people (zeros), and updates the checksums of `rows`.

    After a kill before the journal is written, no checksum matches, and the conversion starts over.
    """
    frames.seek(0)
    np.lib.format.read_magic(frames)
    before = np.lib.format.read_array_header_1_0(frames)[0][1:]
    with whole_file(path) as wider:
        wider.write(_header(0, shape, dtype))
        for row in rows:
            if "length" in row:
                block = np.frombuffer(frames.read(row["length"] * int(np.prod(before)) * dtype.itemsize), dtype)
                padded = np.zeros((row["length"], *shape), dtype)
                padded[:, : before[0]] = block.reshape(-1, *before)
                wider.write(padded.data)
                row["crc32"] = zlib.crc32(padded.data)
    return path.open("a+b")


def _check_skeleton(source: Source, layout: Layout, joints: np.ndarray) -> None:
    """Checks the layout on the first recording [T, M, V, C]: another skeleton is no damage, and is not skipped.

    Raises:
        PrepareError: a different number of joints or of coordinates; the message says what to give.
    """
    if joints.ndim != 4:
        return  # damage, which is named where the recording is fitted
    if joints.shape[2] != layout.num_joints:
        choices = fitting_layouts(joints.shape[2], joints.shape[3] - int(source.scores))
        raise PrepareError(
            f"{_place(source)}: recordings of {joints.shape[2]} joints, layout '{layout.name}' has {layout.num_joints}; "
            f"give --layout: {choices}"
        )
    if source.scores and joints.shape[3] == 1:
        raise PrepareError(f"{_place(source)}: one number per joint, which cannot be a score alone; omit --scores")
    if wrong := layout.wrong_dimension(joints.shape[3], scores=source.scores, declare=how_to_declare_scores(source)):
        raise PrepareError(f"{_place(source)}: {wrong}")


def _in_order(source: Source, first: int, workers: int) -> Iterator[Future[Recording]]:
    """Recordings from `first` on, prefetched by several threads; only a few are in memory at a time."""
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
    """[T, M, V, C] padded and cast to the store's shape and type; DataError if the recording does not match."""
    joints = recording.joints
    if joints.ndim != 4 or len(joints) == 0:
        raise DataError(f"recording '{name}': has shape {list(joints.shape)}, expected [frames, people, joints, coordinates]")
    if joints.shape[2] != layout.num_joints:
        raise DataError(
            f"recording '{name}': {joints.shape[2]} joints, layout '{layout.name}' has {layout.num_joints}; "
            "repair or remove the recording"
        )
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
            f"recording '{name}': frame {frame}, person {person}, joint '{layout.joints[joint]}' has a non-finite "
            f"coordinate{' in float16' if np.isfinite(joints).all() else ''}; repair or remove the recording"
        )
    return fitted


def check_third_coordinate(source: Source, name: str, joints: np.ndarray, depth: bool) -> None:
    """Checks that the third or last coordinate of `joints` is what the source says: a score or not; not checked with `depth`.

    Raises:
        PrepareError: it looks like the other; the message says which option declares it.
    """
    if not depth:
        (_reject_depth if source.scores else _reject_undeclared_scores)(source, name, joints)


def _reject_undeclared_scores(source: Source, name: str, joints: np.ndarray) -> None:
    """Rejects a third coordinate from 0 to 1 beside pixels: a score taken for a depth would be rotated."""
    if joints.shape[3] != 3:
        return
    third = joints[..., 2]
    reach = float(np.abs(joints[..., :2]).max())
    if third.min() < 0 or not 0 < third.max() <= OF_A_SCORE or reach < OF_PIXELS:
        return
    raise PrepareError(
        f"recording '{name}': the third coordinate is from 0 to 1 and the others reach {reach:.0f}, which looks like a "
        f"confidence score beside pixels. If it is a score, {how_to_declare_scores(source)}; if it is a depth, give --depth"
    )


def how_to_declare_scores(source: Source) -> str:
    """What to do where the last coordinate is a score and the source does not say so."""
    if any(form.open is type(source) and "scores" in form.options for form in FORMATS.values()):
        return "declare it (--scores)"
    if isinstance(source, Annotated):
        return "write it as 'keypoint_score'"
    return "write the data in the plain format and give --scores"


def _reject_depth(source: Source, name: str, joints: np.ndarray) -> None:
    """Refuses a last coordinate outside 0 to 1 where an array [N, C, T, V, M] is read with a score."""
    last = joints[..., -1]
    least, most = float(last.min()), float(last.max())
    if isinstance(source, PaddedRows) and (least < 0 or most > OF_A_SCORE):
        raise PrepareError(
            f"recording '{name}': the last coordinate is read as a score, but it is between {least:.3g} and {most:.3g}; "
            "if it is a depth, give --layout (and not --scores)"
        )


def _warn_of_scores(out: Path) -> None:
    """Logs that the third of three coordinates may be a score: from 0 to 1 in the whole store, unlike the others."""
    frames = np.load(out / FRAMES, mmap_mode="r", allow_pickle=False)
    seen = frames[:: -(-len(frames) // CHECKED_FRAMES)]
    if seen.shape[-1] != 3 or seen[..., 2].min() < 0 or not 0 < seen[..., 2].max() <= OF_A_SCORE:
        return
    if seen[..., :2].min() < 0 or seen[..., :2].max() > 1:
        log.warning(
            "%s: the third coordinate is from 0 to 1, like a score; if it is one, prepare the data again with --scores", out
        )


def _warn_of_empty_classes(index: Mapping[str, Any]) -> None:
    """Logs the classes without recordings, since training requires at least one per class."""
    labels, names = set(index["clips"]["label"]), index["class_names"]
    if len(labels) == 1:
        log.warning("all recordings are of class '%s'; training needs at least two classes", names[min(labels)])
    empty = [names[label] for label in range(len(names)) if label not in labels]
    if not empty:
        return
    shown = ", ".join(empty[:10]) + (", ..." if len(empty) > 10 else "")
    log.warning("%d of %d classes have no recording: %s", len(empty), len(names), shown)


def _truncate(frames: BinaryIO, rows: list[dict[str, Any]], dtype: np.dtype) -> tuple[int, ...] | None:
    """Truncates frames and journal after the last recording that is complete in both; returns [M, V, C] if known."""
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
            raise ValueError("not a header written by this command")
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
        log.info("resuming after '%s', recording %d", rows[-1]["name"], len(rows))
    return tuple(shape)


def _header(num_frames: int, shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """Header of frames.npy; NumPy reserves space for the number of frames to grow, so it can be rewritten in place."""
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (num_frames, *shape)}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


def _hashes(files: Sequence[Path], stopped: threading.Event) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of each source file; a single combined entry if there are many files. Ends early once `stopped`."""
    found = []
    for file in files:
        if stopped.is_set():
            break
        digest = hashlib.sha256()
        with file.open("rb") as content:
            while not stopped.is_set() and (block := content.read(1 << 20)):
                digest.update(block)
        found.append({"file": file.name, "bytes": file.stat().st_size, "sha256": digest.hexdigest()})
    if len(found) <= HASHED_ONE_BY_ONE:
        return found
    lines = "".join(f"{entry['sha256']}  {entry['file']}\n" for entry in found)
    size = sum(file.stat().st_size for file in files)
    return [{"files": len(found), "bytes": size, "sha256": hashlib.sha256(lines.encode()).hexdigest()}]


def _index(
    source: Source,
    rows: list[dict[str, Any]],
    dtype: str,
    offset: int,
    hashes: list[dict[str, Any]],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    complete = [row | {"label": row["label"] - offset} for row in rows if "length" in row]
    place = {row["name"]: at for at, row in enumerate(complete)}
    columns = dict.fromkeys(name for row in complete for name in row["columns"])
    return {
        "version": VERSION,
        "shapmix": shapmix.__version__,
        "dtype": dtype,
        "scores": source.scores,
        "class_names": list(source.class_names)[offset:],
        "columns": {name: [row["columns"].get(name, "") for row in complete] for name in columns},
        "splits": {split: [place[name] for name in names if name in place] for split, names in source.splits.items()},
        "source": {
            "format": type(source).__name__,
            "options": options,
            "files": hashes,
            "damaged": [{"name": row["name"], "reason": row["damaged"]} for row in rows if "damaged" in row],
        },
        "clips": {column: [row[column] for row in complete] for column in COLUMNS},
    }
