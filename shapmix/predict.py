"""What a trained network sees in recordings: `python -m shapmix.predict RUN FILE...`.

A file is one `.skeleton` recording, one array [T, V, C] or [T, M, V, C] of a `.npy` or `.npz` (as `joints`), any data set that
`python -m shapmix.prepare` reads, or a store that it wrote. Every recording, or every window of a long one, gets its most probable
classes, and for the first of them the exact Shapley values of the body parts: how much of its probability each part brought.

A file or recording that cannot be read is named with the reason, the others are predicted all the same, and the exit code is 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from shapmix.kernels import BackendError
from shapmix.process.ending import ended
from shapmix.process.errors import DataError, RunError
from shapmix.skeleton.layout import LayoutError
from shapmix.training.checkpoint import CheckpointError
from shapmix.training.config import ConfigError
from shapmix.training.prediction import describe, predict, recordings_of
from shapmix.training.trained import open_run


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


if __name__ == "__main__":
    sys.exit(main())
