"""Predictions of a trained network for recordings: classes, and the contribution of each body part."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from shapmix.data.sources import Source
from shapmix.data.sources.bounded import UNREADABLE, check_name, read_file
from shapmix.data.sources.find import detect_format, find_source
from shapmix.data.sources.ntu_raw import ENDING, LARGEST_FILE, actors, read_skeletons
from shapmix.data.sources.plain import ARRAY, read_array
from shapmix.data.sources.registry import FORMATS, SourceOptions
from shapmix.data.store import INDEX, open_store
from shapmix.process.errors import DataError
from shapmix.shapley.explanation import explain
from shapmix.shapley.game import PartGame
from shapmix.skeleton.layout import Layout, LayoutError, layout_text, layout_toml, parse_layout
from shapmix.training.trained import Trained


@dataclass(frozen=True)
class Prediction:
    """The prediction for one clip.

    Attributes:
        name: name of the recording.
        begin, end: frame range, end exclusive.
        classes: the most probable classes with their probabilities, in descending order.
        parts: part -> its contribution to the probability of the first class; with `without` they sum to it. Empty if not
            requested.
        without: the probability of the first class for the mean motion of the training clips.
    """

    name: str
    begin: int
    end: int
    classes: list[tuple[str, float]]
    parts: dict[str, float]
    without: float | None


class Unread(NamedTuple):
    """A recording that is read lazily; `read` returns [T, M, V, C] float32 or raises DataError."""

    name: str
    read: Callable[[], Tensor]


def recordings_of(file: Path, trained: Trained) -> Iterator[Unread]:
    """The recordings of a file or data set; if it cannot be opened, a single recording whose `read` raises the error."""
    if file.suffix == ENDING:
        yield Unread(file.stem, lambda: _read_skeletons(file))
    elif file.suffix == ".npy" or (file.suffix == ".npz" and _is_array(file)):
        yield Unread(file.stem, lambda: torch.from_numpy(read_array(file)))
    else:
        try:
            yield from _recordings_of_set(file, trained)
        except (DataError, LayoutError, OSError) as error:
            reason = f"{file}: cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
            yield Unread(file.stem, partial(_fail, reason))


def _recordings_of_set(file: Path, trained: Trained) -> Iterator[Unread]:
    """The recordings of a prepared store, or of a data set in a known format.

    Raises:
        DataError, LayoutError, OSError: it cannot be opened, or its joints or coordinates do not match the network.
    """
    if (file / INDEX).is_file():
        store = open_store(file).clips
        _check_fits(file, trained, store.layout, store.scores)
        yield from (Unread(name, partial(store.clip, index)) for index, name in enumerate(store.names))
        return
    source = _open_like(file, trained)
    for index, name in enumerate(source.names):
        yield Unread(check_name(name, "recording", str(file)), partial(_read_of, source, index))


def _open_like(file: Path, trained: Trained) -> Source:
    """Opens a data set with what its files do not say as it was in training: scores, coordinates, skeleton."""
    form = FORMATS[detect_format(file)]
    taken = SourceOptions(
        scores=trained.scores and "scores" in form.options,
        coordinates=trained.mean_motion.shape[0] - int(trained.scores) if "coordinates" in form.options else None,
    )
    with TemporaryDirectory() as folder:
        if form.asks_layout(file):
            layout = Path(folder) / "layout.toml"
            layout.write_text(layout_toml(trained.layout), encoding="utf-8")
            taken = replace(taken, layout=str(layout))
        source = find_source(file, options=taken)
        _check_fits(file, trained, parse_layout(layout_text(source.layout), where=str(file)), source.scores)
    return source


def _read_of(source: Source, index: int) -> Tensor:
    return torch.from_numpy(np.array(source.read(index).joints, dtype=np.float32))


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
    top: int = 3,
    parts: bool = True,
    window: int | None = None,
    stride: int | None = None,
) -> list[Prediction]:
    """Predictions for a recording [T, M, V, C]: one, or one per window.

    Windows start every `stride` frames; the last one ends with the recording. A recording shorter than a window is one clip.

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
    names = [f"{name} [{begin}:{begin + length}]" for begin in begins]
    store = trained.store([recording[begin : begin + length] for begin in begins], names)
    clips = trained.sampler(store).evaluation(torch.arange(len(begins))).to(trained.device)
    with torch.no_grad():
        probability = torch.cat([trained.network(part).float().softmax(1) for part in clips.split(16)])
    best = probability.topk(min(top, probability.shape[1]), dim=1)
    shares: list[dict[str, float]] = [{} for _ in begins]
    without: list[float | None] = [None] * len(begins)
    if parts:
        game = PartGame(trained.network, trained.layout, trained.mean_motion.to(trained.device))
        found = explain(game, clips, best.indices[:, 0], names)
        shares = [dict(zip(trained.layout.parts, row, strict=True)) for row in found.parts.tolist()]
        without = list(found.base_values.tolist())
    return [
        Prediction(
            name,
            begin,
            begin + length,
            [(trained.class_names[label], chance) for label, chance in zip(labels, chances, strict=True)],
            share,
            base,
        )
        for begin, labels, chances, share, base in zip(
            begins, best.indices.tolist(), best.values.tolist(), shares, without, strict=True
        )
    ]


def describe(found: Prediction) -> str:
    """One line with the classes, and one with the parts."""
    classes = ", ".join(f"{name} {100 * chance:.1f}%" for name, chance in found.classes)
    lines = [f"{found.name} [{found.begin}:{found.end}]: {classes}"]
    if found.without is not None:
        ranked = sorted(found.parts.items(), key=lambda item: -item[1])
        lines.append(
            f"    {100 * found.without:.1f}% without motion; " + ", ".join(f"{part} {100 * share:+.1f}" for part, share in ranked)
        )
    return "\n".join(lines)


def _is_array(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return f"{ARRAY}.npy" in archive.namelist()
    except UNREADABLE:
        return False
