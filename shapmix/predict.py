"""Classifies recordings with a trained network: `python -m shapmix.predict RUN FILE...`.

A file is a `.skeleton` recording, an array [T, V, C] or [T, M, V, C] in a `.npy` or `.npz` (as `joints`), any data set that
`python -m shapmix.prepare` reads, one clip of a pose tool (a file or a folder, without a table of labels), or a prepared store. For
every recording, or every window of a long one, it prints the most probable classes, and the exact Shapley values of the body parts
for the first class: their contributions to its probability. `--per-person` predicts every person of a recording apart.

A file or recording that cannot be read is reported, the others are still predicted, and the exit code is 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated

import tyro

from shapmix.data.sources.find import AUTO, describe_formats
from shapmix.data.sources.registry import FORMATS
from shapmix.process.command import WRONG, ComputeOptions, RegisteredName, program, read_options, run_command, start_computing
from shapmix.process.errors import DataError
from shapmix.process.files import check_output_file
from shapmix.training.options import ConfigError
from shapmix.training.prediction import Prediction, describe, predict, recordings_of, write_predictions
from shapmix.training.trained import CheckpointOptions, open_run
from shapmix.training.views import ViewOptions


@dataclass(frozen=True)
class PredictConfig(CheckpointOptions, ViewOptions, ComputeOptions):
    """Predict the classes of recordings, with the contribution of each body part."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory of `python -m shapmix.train`."""
    files: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE...")]
    """Recordings, arrays, or data sets."""
    format: Annotated[
        str,
        RegisteredName(FORMATS, also=(AUTO,)),
        tyro.conf.arg(help=f"Format of the files; auto detects it. {describe_formats()}."),
    ] = AUTO
    layout: str | None = None
    """Skeleton layout of the files, where they do not name theirs; None: that of the network."""
    per_person: bool = False
    """Predict for every person apart, from their first frame to their last; otherwise for all people of a recording together."""
    min_frames: int = 1
    """With --per-person, people who are seen in fewer frames are left out, such as false detections."""
    top: int = 3
    """Number of classes to show."""
    parts: bool = True
    """Shapley values of the parts; with five parts, a clip takes 31 forward passes."""
    window: int | None = None
    """Frames of a sliding window; None: the whole recording is one clip."""
    stride: int | None = None
    """Frames between windows; None: half a window."""
    json: bool = False
    """Print one JSON line per clip instead of text."""
    out: Path | None = None
    """Write the predictions to this .json or .csv file instead of printing them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code of `shapmix.process.command`."""
    return run_command(lambda: predict_files(read_options(PredictConfig, argv, "predict")))


def predict_files(config: PredictConfig) -> int:
    """Prints the predictions of every recording, or the reason why it cannot be read; returns the exit code."""
    if not config.files:
        raise ConfigError(f"no files are given; usage: {program('predict')} RUN FILE...")
    for option in ("top", "window", "stride", "min_frames"):
        value = getattr(config, option)
        if value is not None and value < 1:
            raise ConfigError(f"--{option.replace('_', '-')}: must be at least 1, not {value}")
    config.check_views()
    if config.out is not None:
        if config.out.suffix not in (".json", ".csv"):
            raise ConfigError(f"--out: must end in .json or .csv, not '{config.out.name}'")
        check_output_file(config.out)
    trained = open_run(config.run, config.checkpoint, start_computing(config))
    views = config.views(trained.config)
    classify = partial(
        predict, trained, top=config.top, parts=config.parts, window=config.window, stride=config.stride, views=views
    )
    total = failed = 0
    kept: list[Prediction] = []
    for file in config.files:
        for recording in recordings_of(file, trained, config.format, config.layout):
            total += 1
            try:
                taken = recording.people(config.min_frames) if config.per_person else [recording.read()]
                found = [classify(each.joints, recording.name, first_frame=each.first_frame, person=each.person) for each in taken]
            except DataError as error:
                failed += 1
                where = "" if str(file) in str(error) else f"{file}: "
                print(f"error: {where}{error}", file=sys.stderr)
                continue
            kept += _shown(list(chain.from_iterable(found)), config)
    if config.out is not None:
        write_predictions(config.out, kept)
        print(f"{config.out}: {len(kept)} predictions")
    if failed:
        print(f"error: {failed} of {total} recordings have no prediction, see the errors above", file=sys.stderr)
    return WRONG if failed else 0


def _shown(found: list[Prediction], config: PredictConfig) -> list[Prediction]:
    """Prints the predictions, or returns them if they are for a file."""
    if config.out is not None:
        return found
    for each in found:
        print(json.dumps(asdict(each)) if config.json else describe(each), flush=True)
    return []


if __name__ == "__main__":
    sys.exit(main())
