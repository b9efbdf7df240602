"""`python -m shapmix.evaluate RUN...`: metrics of a run, or of an ensemble of runs such as the streams of one data set."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from shapmix.kernels import BackendError
from shapmix.process.device import choose_device
from shapmix.process.ending import check_output_folder, ended
from shapmix.process.errors import DataError, RunError
from shapmix.skeleton.layout import LayoutError
from shapmix.training import metrics
from shapmix.training.checkpoint import CheckpointError
from shapmix.training.config import ConfigError
from shapmix.training.scores import (
    CALIBRATION_BINS,
    accuracy_of,
    align,
    calibration_error,
    fit_weights,
    open_member,
    save_scores,
    weight_clips,
    write_tables,
)


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure runs on their test split; several runs are an ensemble."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Run directories."""
    checkpoint: Literal["best", "last"] = "best"
    crops: int = 1
    """Views of a clip whose probabilities are averaged; 1 is the view of the training log."""
    weights: tuple[float, ...] | None = None
    """Of each run's probabilities; None: equal."""
    fit_weights: bool = False
    """Choose the weights on validation clips."""
    save_scores: Path | None = None
    """An .npz with names, labels and probabilities of the test clips."""
    out: Path | None = None
    """Folder of the tables; None: RUN/evaluation for one run, nothing written for an ensemble."""
    device: str = "auto"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    config = tyro.cli(EvaluateConfig, args=argv, prog="python -m shapmix.evaluate")
    return ended(lambda: _main(config), (BackendError, CheckpointError, ConfigError, DataError, LayoutError, RunError))


def _main(config: EvaluateConfig) -> int:
    evaluate(config)
    return 0


def evaluate(config: EvaluateConfig) -> dict[str, float | int | None]:
    """Prints one table, writes what was asked for, and returns the ensemble's (or the one run's) metrics."""
    check(config)
    out = config.out or (config.runs[0] / "evaluation" if len(config.runs) == 1 else None)
    device = choose_device(config.device)
    members = [open_member(run, config.checkpoint, config.crops, device) for run in config.runs]
    tests = align([member.score(member.splits.test) for member in members], config.runs)
    weights = torch.tensor(config.weights or [1.0] * len(tests), dtype=torch.float64)
    if config.fit_weights:
        chosen = weight_clips([member.splits for member in members], config.runs)
        validations = align([member.score(clips) for member, clips in zip(members, chosen, strict=True)], config.runs)
        weights = fit_weights(torch.stack([each.probabilities for each in validations]), validations[0].labels)
    weights = weights / weights.sum()
    views = "single crop" if config.crops == 1 else f"{config.crops} crops"
    rows = {f"{run.name} {config.checkpoint}, {views}": test for run, test in zip(config.runs, tests, strict=True)}
    whole = tests[0]
    if len(tests) > 1:
        shown = " ".join(f"{weight:.3f}" for weight in weights.tolist())
        mixed = torch.einsum("r,rnk->nk", weights, torch.stack([each.probabilities for each in tests]))
        whole = replace(whole, probabilities=mixed)
        rows[f"ensemble ({'fitted' if config.fit_weights else 'given' if config.weights else 'equal'} weights {shown})"] = whole
    print(metrics.table({name: accuracy_of(each) for name, each in rows.items()}))
    result: dict[str, float | int | None] = accuracy_of(whole).as_dict()
    for name, each in rows.items():
        print(f"{name}: calibration error {100 * calibration_error(each):.1f}% ({CALIBRATION_BINS} bins)")
    result["calibration_error"] = calibration_error(whole)
    if out is not None:
        write_tables(out, whole, {**result, "checkpoint": config.checkpoint, "views": views, "weights": weights.tolist()})
    if config.save_scores is not None:
        save_scores(config.save_scores, whole)
    return result


def check(config: EvaluateConfig) -> None:
    """That a measurement can be made and written, before any work.

    Raises:
        ConfigError: options that contradict each other.
        OSError: no place to write what is asked for.
    """
    if not config.runs:
        raise ConfigError("runs: give at least one run directory")
    if config.crops < 1:
        raise ConfigError(f"crops: at least 1, not {config.crops}")
    if config.weights is not None and config.fit_weights:
        raise ConfigError("weights and fit_weights both choose the weights; give one")
    if config.weights is not None and len(config.weights) != len(config.runs):
        raise ConfigError(f"weights: {len(config.weights)} given for {len(config.runs)} runs")
    if config.weights is not None and (min(config.weights) < 0 or sum(config.weights) <= 0):
        raise ConfigError("weights: none below 0 and not all 0")
    if config.save_scores is not None and config.save_scores.suffix != ".npz":
        raise ConfigError(f"save_scores: the file is an .npz, not '{config.save_scores}'")
    if config.save_scores is not None:
        check_output_folder(config.save_scores.parent)
        if config.save_scores.is_dir():
            raise ConfigError(f"save_scores: '{config.save_scores}' is a folder; give a file")
    if config.out is not None:
        check_output_folder(config.out)
    elif len(config.runs) == 1 and config.runs[0].is_dir():
        check_output_folder(config.runs[0] / "evaluation")


if __name__ == "__main__":
    sys.exit(main())
