"""Predictions of a trained network for recordings: classes, and the contribution of each body part."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from shapmix.data.clips import ClipStore
from shapmix.data.sources import Source
from shapmix.data.sources.bounded import UNREADABLE, check_name, read_file
from shapmix.data.sources.find import AUTO, detect_format, find_source
from shapmix.data.sources.ntu_raw import ENDING, LARGEST_FILE, actors, read_skeletons
from shapmix.data.sources.plain import ARRAY, read_array
from shapmix.data.sources.pose_clips import PoseFiles
from shapmix.data.sources.registry import FORMATS, SourceOptions
from shapmix.data.sources.tracks import fill
from shapmix.data.store import INDEX, open_store
from shapmix.process.choices import check_choice
from shapmix.process.errors import DataError
from shapmix.process.files import write_whole
from shapmix.shapley.explanation import explain
from shapmix.shapley.game import PartGame
from shapmix.skeleton.layout import Layout, LayoutError, layout_text, layout_toml, parse_layout
from shapmix.training.metrics import write_csv
from shapmix.training.trained import Trained
from shapmix.training.views import ONE_VIEW, Views, mean_over_views

log = logging.getLogger("shapmix")


@dataclass(frozen=True)
class Prediction:
    """The prediction for one clip.

    Attributes:
        name: name of the recording.
        begin, end: frame range, end exclusive, in the numbers of the recording's file.
        classes: the most probable classes with their probabilities, in descending order.
        parts: part -> its contribution to the probability of the first class; with `without` they sum to it. Empty if not
            requested.
        without: the probability of the first class for the mean motion of the training clips.
        person: for a prediction of one person, their track id or number in the recording; else None.
    """

    name: str
    begin: int
    end: int
    classes: list[tuple[str, float]]
    parts: dict[str, float]
    without: float | None
    person: str | None = None


class Taken(NamedTuple):
    """What one prediction is for: `joints` [T, M, V, C] float32 of all people of a recording, or of one `person` (M = 1)."""

    joints: Tensor
    first_frame: int = 0
    person: str | None = None


class Unread(NamedTuple):
    """A recording that is read lazily: everybody, or everyone apart who is in so many frames. Both raise DataError if damaged."""

    name: str
    read: Callable[[], Taken]
    people: Callable[[int], list[Taken]]


def recordings_of(file: Path, trained: Trained, format: str = AUTO, layout: str | None = None) -> Iterator[Unread]:
    """The recordings of a file or data set; if it cannot be opened, a single recording whose `read` raises the error.

    Args:
        file: the file or folder.
        trained: the network, whose skeleton and scores are assumed where the files do not name theirs.
        format: of a data set or of one clip of a pose tool; `auto` detects it.
        layout: as in `SourceOptions`.

    Raises:
        ValueError: `format` is not registered.
    """
    check_choice(FORMATS.option, format, (AUTO, *FORMATS))
    if format == AUTO and file.suffix == ENDING:
        yield _unread(file.stem, lambda: Taken(_read_skeletons(file)))
    elif format == AUTO and (file.suffix == ".npy" or (file.suffix == ".npz" and _is_array(file))):
        yield _unread(file.stem, lambda: Taken(torch.from_numpy(read_array(file))))
    else:
        try:
            yield from _recordings_of_set(file, trained, format, layout)
        except (DataError, LayoutError, OSError) as error:
            reason = f"{file}: cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
            yield _unread(file.stem, partial(_fail, reason))


def _unread(name: str, read: Callable[[], Taken]) -> Unread:
    """A recording whose people are those of the array."""
    return Unread(name, read, lambda min_frames: _apart(read(), min_frames))


def _apart(taken: Taken, min_frames: int) -> list[Taken]:
    """Everyone alone, from their first frame to the last, who is in at least `min_frames` frames."""
    found = []
    for person in range(taken.joints.shape[1]):
        present = torch.nonzero(taken.joints[:, person].flatten(1).any(1)).flatten()
        if len(present) >= max(1, min_frames):
            begin, end = int(present[0]), int(present[-1]) + 1
            found.append(Taken(taken.joints[begin:end, person : person + 1], taken.first_frame + begin, str(person)))
    return found


def _recordings_of_set(file: Path, trained: Trained, format: str, layout: str | None) -> Iterator[Unread]:
    """The recordings of a prepared store, or of a data set in a known format.

    Raises:
        DataError, LayoutError, OSError: it cannot be opened, or its joints or coordinates do not match the network.
    """
    if format == AUTO and (file / INDEX).is_file():
        store = open_store(file).clips
        _check_fits(file, trained, store.layout, store.scores)
        yield from (_unread(name, partial(_clip_of, store, index)) for index, name in enumerate(store.names))
        return
    source = _open_like(file, trained, format, layout)
    for index, name in enumerate(source.names):
        check_name(name, "recording", str(file))
        read = partial(_read_of, source, index)
        yield Unread(name, read, partial(_people_of, source, index)) if isinstance(source, PoseFiles) else _unread(name, read)


def _open_like(file: Path, trained: Trained, format: str, layout: str | None) -> Source:
    """Opens a data set with what its files do not say as it was in training: scores, coordinates, skeleton."""
    format = detect_format(file) if format == AUTO else format
    form = FORMATS[format]
    taken = SourceOptions(
        layout=layout,
        scores=trained.scores and "scores" in form.options,
        coordinates=trained.mean_motion.shape[0] - int(trained.scores) if "coordinates" in form.options else None,
    )
    with TemporaryDirectory() as folder:
        if layout is None and file.exists() and form.asks_layout(file):
            log.info(
                "%s: does not name its skeleton; assuming %s, that of training (--layout names another)", file, trained.layout.name
            )
            own = Path(folder) / "layout.toml"
            write_whole(own, layout_toml(trained.layout))
            taken = replace(taken, layout=str(own))
        source = find_source(file, format, taken)
        _check_fits(file, trained, parse_layout(layout_text(source.layout), where=str(file)), source.scores)
    return source


def _clip_of(store: ClipStore, index: int) -> Taken:
    return Taken(store.clip(index))


def _read_of(source: Source, index: int) -> Taken:
    recording = source.read(index)
    return Taken(torch.from_numpy(np.array(recording.joints, dtype=np.float32)), recording.first_frame)


def _people_of(source: PoseFiles, index: int, min_frames: int) -> list[Taken]:
    """Everyone in a clip of a pose tool, also those that a store has no place for, who is in at least `min_frames` frames."""
    found = []
    for track in (one for one in source.people(index) if len(one.frames) >= min_frames):
        joints, first = fill([track], source.names[index], 1)
        found.append(Taken(torch.from_numpy(joints), first, track.person))
    return found


def _read_skeletons(file: Path) -> Tensor:
    return torch.from_numpy(actors(read_skeletons(read_file(file, LARGEST_FILE), str(file)), str(file)))


def _fail(reason: str) -> NoReturn:
    raise DataError(reason)


def _check_fits(file: Path, trained: Trained, layout: Layout, scores: bool) -> None:
    for theirs, ours in zip(layout.joints, trained.layout.joints, strict=False):
        if theirs != ours:
            raise DataError(f"{file}: its joints differ from those that the network was trained on: '{theirs}' instead of '{ours}'")
    if scores != trained.scores:
        having = ("has no scores", "with them") if trained.scores else ("has scores", "without")
        raise DataError(f"{file}: {having[0]}, the network was trained {having[1]}")


def predict(
    trained: Trained,
    recording: Tensor,
    name: str = "recording",
    *,
    first_frame: int = 0,
    person: str | None = None,
    top: int = 3,
    parts: bool = True,
    window: int | None = None,
    stride: int | None = None,
    views: Views = ONE_VIEW,
) -> list[Prediction]:
    """Predictions for a recording [T, M, V, C]: one, or one per window; of the mean probabilities of its views.

    Windows start every `stride` frames; the last one ends with the recording. A recording shorter than a window is one clip.
    Windows of zeros, in which nobody is present, have no prediction.
    The values of the parts are those of the evaluation view.
    `first_frame` is the number of the first frame, for `begin` and `end`; `person` is recorded in the predictions.

    Raises:
        DataError: joints or coordinates do not match the network.
        ValueError: window, stride or top is below 1.
    """
    if top < 1 or (window is not None and window < 1) or (stride is not None and stride < 1):
        raise ValueError("top, window and stride must be at least 1")
    frames = len(recording)
    length = min(window or frames, frames)
    begins = list(range(0, frames - length + 1, stride or max(1, length // 2)))
    if begins and begins[-1] + length < frames:
        begins.append(frames - length)
    if window is not None and frames:
        begins = [begin for begin in begins if recording[begin : begin + length].any()]
        if not begins:
            return []
    names = [f"{name} [{begin}:{begin + length}]" for begin in begins]
    store = trained.store([recording[begin : begin + length] for begin in begins], names)
    sampler, windows = trained.sampler(store), torch.arange(len(begins))
    probability = torch.cat(
        [mean_over_views(trained.network, views.of(sampler, part), trained.device) for part in windows.split(16)]
    )
    best = probability.topk(min(top, probability.shape[1]), dim=1)
    shares: list[dict[str, float]] = [{} for _ in begins]
    without: list[float | None] = [None] * len(begins)
    if parts:
        game = PartGame(trained.network, trained.layout, trained.mean_motion.to(trained.device))
        clips = sampler.evaluation(windows).to(trained.device)
        found = explain(game, clips, best.indices[:, 0].to(trained.device), names)
        shares = [dict(zip(trained.layout.parts, row, strict=True)) for row in found.parts.tolist()]
        without = list(found.base_values.tolist())
    return [
        Prediction(
            name,
            first_frame + begin,
            first_frame + begin + length,
            [(trained.class_names[label], chance) for label, chance in zip(labels, chances, strict=True)],
            share,
            base,
            person,
        )
        for begin, labels, chances, share, base in zip(
            begins, best.indices.tolist(), best.values.tolist(), shares, without, strict=True
        )
    ]


def describe(found: Prediction) -> str:
    """One line with the classes, and one with the parts."""
    classes = ", ".join(f"{name} {100 * chance:.1f}%" for name, chance in found.classes)
    who = "" if found.person is None else f", person {found.person}"
    lines = [f"{found.name}{who} [{found.begin}:{found.end}]: {classes}"]
    if found.without is not None:
        ranked = sorted(found.parts.items(), key=lambda item: -item[1])
        lines.append(
            f"    {100 * found.without:.1f}% without motion; " + ", ".join(f"{part} {100 * share:+.1f}" for part, share in ranked)
        )
    return "\n".join(lines)


def write_predictions(path: Path, found: Sequence[Prediction]) -> None:
    """Writes predictions to a `.json` file (a list of objects) or a `.csv` file (a line each), atomically.

    The columns are name, person, begin, end, class, probability, class_2, probability_2, ..., without_motion, and a column
    `part_NAME` for each part; cells without a value are empty.

    Raises:
        OSError: with the file name.
    """
    if path.suffix == ".json":
        write_whole(path, json.dumps([asdict(one) for one in found], indent=1) + "\n")
        return
    ranks = max((len(one.classes) for one in found), default=0)
    parts = list(dict.fromkeys(part for one in found for part in one.parts))
    numbered = ["" if rank == 0 else f"_{rank + 1}" for rank in range(ranks)]
    head = ["name", "person", "begin", "end", *(column + rank for rank in numbered for column in ("class", "probability"))]
    rows: list[list[str | int | float]] = [[*head, "without_motion", *(f"part_{part}" for part in parts)]]
    for one in found:
        classes = [value for pair in one.classes for value in pair]
        without = "" if one.without is None else one.without
        rows.append(
            [one.name, one.person or "", one.begin, one.end, *classes, without, *(one.parts.get(part, "") for part in parts)]
        )
    write_csv(path, rows)


def _is_array(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return f"{ARRAY}.npy" in archive.namelist()
    except UNREADABLE:
        return False
