"""What a trained network sees in recordings: `python -m shapmix.predict RUN FILE...`.

A file is one `.skeleton` recording, one array [T, V, C] or [T, M, V, C] of a `.npy` or `.npz` (as `joints`), any data set that
`python -m shapmix.prepare` reads, or a store that it wrote. Every recording, or every window of a long one, gets its most probable
classes, and for the first of them the exact Shapley values of the body parts: how much of its probability each part brought.

A file or recording that cannot be read is named with the reason, the others are predicted all the same, and the exit code is 1.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, NoReturn

import numpy as np
import torch
import tyro
from torch import Tensor

from shapmix.checkpoint import CheckpointError
from shapmix.command import ended
from shapmix.config import ConfigError
from shapmix.data.bounded import UNREADABLE, check_name, read_file
from shapmix.data.clips import DataError
from shapmix.data.sources import Source
from shapmix.data.sources.find import find_source
from shapmix.data.sources.ntu_raw import ENDING, LARGEST_FILE, actors, read_skeletons
from shapmix.data.sources.plain import ARRAY, TABLE, read_array
from shapmix.data.store import INDEX, open_store
from shapmix.explanation import explain
from shapmix.game import PartGame
from shapmix.kernels import BackendError
from shapmix.layout import Layout, LayoutError, layout_text, parse_layout
from shapmix.run import RunError
from shapmix.trained import Trained, open_run


@dataclass(frozen=True)
class PredictConfig:
    """Classes of recordings, and the body parts that spoke for them."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory of `python -m shapmix.train`."""
    files: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE...")]
    """Recordings, arrays, or data sets."""
    top: int = 3
    """Classes that are shown."""
    parts: bool = True
    """Shapley values of the parts; 31 forwards of a clip with five parts."""
    window: int | None = None
    """Frames of a sliding window; None: a recording is one clip."""
    stride: int | None = None
    """Frames between windows; None: half a window."""
    checkpoint: Literal["best", "last"] = "best"
    json: bool = False
    """One line of JSON a clip in place of text."""
    threads: int | None = None


@dataclass(frozen=True)
class Prediction:
    """Of one clip.

    Attributes:
        name: of the recording.
        begin, end: its frames, the end exclusive.
        classes: the most probable ones with their probabilities, first the most probable.
        parts: part -> its share of the first class's probability; together with `without` they sum to it. Empty if not asked for.
        without: the first class's probability when every part moves as the mean of the training clips.
    """

    name: str
    begin: int
    end: int
    classes: list[tuple[str, float]]
    parts: dict[str, float]
    without: float | None


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    config = tyro.cli(PredictConfig, args=argv, prog="python -m shapmix.predict", description=PredictConfig.__doc__)
    return ended(lambda: _main(config), (BackendError, CheckpointError, ConfigError, DataError, LayoutError, RunError))


def _main(config: PredictConfig) -> int:
    if not config.files:
        print("error: no files are given; usage: python -m shapmix.predict RUN FILE...", file=sys.stderr)
        return 2
    for option in ("top", "window", "stride", "threads"):
        value = getattr(config, option)
        if value is not None and value < 1:
            raise ConfigError(f"--{option}: at least 1, not {value}")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    trained = open_run(config.run, config.checkpoint)
    total = failed = 0
    for file in config.files:
        for recording in recordings_of(file, trained):
            total += 1
            try:
                found = predict(
                    trained,
                    recording.read(),
                    recording.name,
                    top=config.top,
                    parts=config.parts,
                    window=config.window,
                    stride=config.stride,
                )
            except DataError as error:
                failed += 1
                where = "" if str(file) in str(error) else f"{file}: "
                print(f"error: {where}{error}", file=sys.stderr)
                continue
            for each in found:
                print(json.dumps(asdict(each)) if config.json else describe(each), flush=True)
    if failed:
        print(f"error: {failed} of {total} recordings are without a prediction, for the reasons above", file=sys.stderr)
    return 1 if failed else 0


class Unread(NamedTuple):
    """A recording that nobody has read yet; `read` gives [T, M, V, C] float32, or raises a DataError."""

    name: str
    read: Callable[[], Tensor]


def recordings_of(file: Path, trained: Trained) -> Iterator[Unread]:
    """The recordings of a file or data set; one that fails to be read, where the file cannot be opened."""
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
    """Of a prepared store, or of a data set in one of the known formats.

    Raises:
        DataError, LayoutError, OSError: it cannot be opened, or has other joints or coordinates than the network.
    """
    if (file / INDEX).is_file():
        store = open_store(file).clips
        _check_fits(file, trained, store.layout, store.scores)
        yield from (Unread(name, partial(store.clip, index)) for index, name in enumerate(store.names))
        return
    # the plain form does not say whether it has scores: it is taken as what the network was trained on
    source = find_source(file, scores=trained.scores and (file / TABLE).is_file())
    _check_fits(file, trained, parse_layout(layout_text(source.layout), where=source.layout), source.scores)
    for index, name in enumerate(source.names):
        yield Unread(check_name(name, "recording", str(file)), partial(_read_of, source, index))


def _read_of(source: Source, index: int) -> Tensor:
    return torch.from_numpy(np.array(source.read(index).joints, dtype=np.float32))


def _read_skeletons(file: Path) -> Tensor:
    return torch.from_numpy(actors(read_skeletons(read_file(file, LARGEST_FILE), str(file)), str(file)))


def _fail(reason: str) -> NoReturn:
    raise DataError(reason)


def _check_fits(file: Path, trained: Trained, layout: Layout, scores: bool) -> None:
    for theirs, ours in zip(layout.joints, trained.layout.joints, strict=False):
        if theirs != ours:
            raise DataError(f"{file}: its joints are not those that the network was trained on: '{theirs}' in place of '{ours}'")
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
    """Predictions of a recording [T, M, V, C], one, or one for each window of it.

    Windows begin every `stride` frames; the last one ends with the recording. A recording shorter than a window is one clip.

    Raises:
        DataError: joints or coordinates that the network was not trained on.
        ValueError: a window, stride or top below 1.
    """
    if top < 1 or (window is not None and window < 1) or (stride is not None and stride < 1):
        raise ValueError("top, window and stride are at least 1")
    frames = len(recording)
    length = min(window or frames, frames)
    begins = list(range(0, frames - length + 1, stride or max(1, length // 2)))
    if begins and begins[-1] + length < frames:
        begins.append(frames - length)
    names = [f"{name} [{begin}:{begin + length}]" for begin in begins]
    store = trained.store([recording[begin : begin + length] for begin in begins], names)
    clips = trained.sampler(store).evaluation(torch.arange(len(begins)))
    with torch.no_grad():
        probability = torch.cat([trained.network(part).float().softmax(1) for part in clips.split(16)])
    best = probability.topk(min(top, probability.shape[1]), dim=1)
    shares: list[dict[str, float]] = [{} for _ in begins]
    without: list[float | None] = [None] * len(begins)
    if parts:
        game = PartGame(trained.network, trained.layout, trained.mean_motion)
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
    """A line for the classes, and one for the parts."""
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


if __name__ == "__main__":
    sys.exit(main())
