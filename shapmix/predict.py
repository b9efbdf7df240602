"""What a trained network sees in recordings: `python -m shapmix.predict RUN FILE...`.

A file is one `.skeleton` recording, one array [T, V, C] or [T, M, V, C] of a `.npy` or `.npz` (as `joints`), or any data set that
`python -m shapmix.prepare` reads. Every recording, or every window of a long one, gets its most probable classes, and for the first
of them the exact Shapley values of the body parts: how much of its probability each part brought.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from shapmix.checkpoint import CheckpointError
from shapmix.config import ConfigError
from shapmix.data.bounded import UNREADABLE, read_file
from shapmix.data.clips import DataError
from shapmix.data.sources.find import find_source
from shapmix.data.sources.ntu_raw import ENDING, LARGEST_FILE, actors, read_skeletons
from shapmix.data.sources.plain import ARRAY, read_array
from shapmix.explanation import explain
from shapmix.game import PartGame
from shapmix.layout import LayoutError
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
    try:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        trained = open_run(config.run, config.checkpoint)
        for name, recording in read_recordings(config.files):
            for found in predict(
                trained, recording, name, top=config.top, parts=config.parts, window=config.window, stride=config.stride
            ):
                print(json.dumps(asdict(found)) if config.json else describe(found), flush=True)
    except (CheckpointError, ConfigError, DataError, LayoutError, RunError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def read_recordings(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """(name, [T, M, V, C] float32) of every recording of the files.

    Raises:
        DataError: as the readers have it.
    """
    for file in files:
        if file.suffix == ENDING:
            content = read_file(file, LARGEST_FILE)
            yield file.stem, torch.from_numpy(actors(read_skeletons(content, str(file)), str(file)))
        elif file.suffix == ".npy" or (file.suffix == ".npz" and _is_array(file)):
            yield file.stem, torch.from_numpy(read_array(file))
        else:
            source = find_source(file)
            for index, name in enumerate(source.names):
                yield name, torch.from_numpy(np.array(source.read(index).joints, dtype=np.float32))


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
