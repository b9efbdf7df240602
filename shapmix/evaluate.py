"""`python -m shapmix.evaluate RUN...`: metrics of a run, or of an ensemble of runs such as the streams of one data set.

`python -m shapmix.evaluate FILE --preset ... --data-root ...` measures weights that were trained elsewhere, without training. FILE
is what --init-from of `python -m shapmix.train` takes, and the options are those of training. With --run-dir it becomes a run
directory, which the other commands take.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import tyro

from shapmix.process.command import ComputeOptions, read_options, run_command, start_computing
from shapmix.process.files import check_output_folder
from shapmix.training import metrics
from shapmix.training.config import parse_config
from shapmix.training.ensemble import score_runs
from shapmix.training.foreign import write_run
from shapmix.training.options import Adjustment, ConfigError, check_range
from shapmix.training.scores import accuracy_of, save_scores, write_tables
from shapmix.training.trained import CheckpointOptions, DataOptions
from shapmix.training.views import ViewOptions
from shapmix.training.weights import run_of


@dataclass(frozen=True)
class EvaluateConfig(CheckpointOptions, DataOptions, ViewOptions, ComputeOptions):
    """Measure runs on their test split; several runs are an ensemble.

    A single FILE of weights instead of RUN is measured on the data and with the network of the options that follow it, which are
    those of shapmix.train, with --out, --save-scores and --tau-norm."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Run directories."""
    weights: tuple[float, ...] | None = None
    """Weight of each run's probabilities; None: equal weights."""
    fit_weights: bool = False
    """Fit the weights on validation clips."""
    logit_adjustment: Adjustment | None = None
    """Post-hoc logit adjustment: tau, validation to choose it on each run's validation clips, or None for that of the run's own
    test; 0 turns it off."""
    tau_norm: Adjustment | None = None
    """tau-normalisation of the head: tau, or validation to choose it on each run's validation clips."""
    save_scores: Path | None = None
    """An .npz with names, labels and probabilities of the test clips."""
    out: Path | None = None
    """Folder of the tables; None: RUN/evaluation for one run, nothing written for an ensemble."""

    def tables(self) -> Path | None:
        """Folder of the tables, None if none are written."""
        return self.out or (self.runs[0] / "evaluation" if len(self.runs) == 1 else None)

    def check(self) -> None:
        """Checks in advance that the options are valid and that the outputs can be written.

        Raises:
            ConfigError: options contradict each other.
            OSError: an output cannot be written.
        """
        if not self.runs:
            raise ConfigError("runs: give at least one run directory")
        if file := next((run for run in self.runs if run.is_file()), None):
            raise ConfigError(
                f"runs: '{file}' is a file; give it first and alone, with the options of shapmix.train for data and network, and "
                "with --run-dir to make a run directory of it for an ensemble"
            )
        self.check_views()
        if self.weights is not None and self.fit_weights:
            raise ConfigError("weights and fit_weights both choose the weights; give one")
        if self.weights is not None and len(self.weights) != len(self.runs):
            raise ConfigError(f"weights: {len(self.weights)} given for {len(self.runs)} runs")
        if self.weights is not None and (min(self.weights) < 0 or sum(self.weights) <= 0):
            raise ConfigError("weights: must be non-negative and not all 0")
        check_range("logit_adjustment", self.logit_adjustment)
        if self.tau_norm not in (None, "validation") and not 0 <= float(self.tau_norm) < inf:
            raise ConfigError(f"tau_norm: a tau of at least 0, or validation, not {self.tau_norm:g}")
        if self.save_scores is not None:
            if self.save_scores.suffix != ".npz":
                raise ConfigError(f"save_scores: the file is an .npz, not '{self.save_scores}'")
            check_output_folder(self.save_scores.parent)
            if self.save_scores.is_dir():
                raise ConfigError(f"save_scores: '{self.save_scores}' is a folder; give a file")
        tables = self.tables()
        if tables is not None and (self.out is not None or self.runs[0].is_dir()):
            check_output_folder(tables)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code of `shapmix.process.command`."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments and Path(arguments[0]).is_file():
        return run_command(lambda: evaluate_file(Path(arguments[0]), arguments[1:]))
    return run_command(lambda: evaluate(read_options(EvaluateConfig, arguments, "evaluate")))


def evaluate_file(file: Path, arguments: Sequence[str]) -> None:
    """Measures a file of weights as a run directory, which is kept if --run-dir names one."""
    mine = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    names = ("out", "save_scores", "tau_norm")
    for name in names:
        mine.add_argument(f"--{name.replace('_', '-')}")
    given, others = mine.parse_known_args(arguments)
    if (run := run_of(file)) is not None:
        raise ConfigError(f"runs: '{file}' is a checkpoint of a run; give the run directory {run}, and --checkpoint {file.stem}")
    of_training = parse_config(["--init-from", str(file), *others])
    with TemporaryDirectory() as folder:
        run_dir = of_training.run_dir or Path(folder) / file.stem
        words = [word for name in names if (value := getattr(given, name)) for word in (f"--{name.replace('_', '-')}", value)]
        compute = ["--device", of_training.device, *(["--threads", str(of_training.threads)] if of_training.threads else [])]
        config = read_options(EvaluateConfig, [str(run_dir), *words, *compute], "evaluate")
        config.check()
        write_run(replace(of_training, run_dir=run_dir))
        evaluate(config)


def evaluate(config: EvaluateConfig) -> None:
    """Prints one table and writes the requested files."""
    config.check()
    device = start_computing(config)
    rows, whole, weights, views = score_runs(
        config.runs,
        config.checkpoint,
        device,
        views=config,
        weights=config.weights,
        fit=config.fit_weights,
        adjustment=config.logit_adjustment,
        tau_norm=config.tau_norm,
        data_root=config.data_root,
    )
    print(metrics.table({name: accuracy_of(each) for name, each in rows.items()}))
    tables = config.tables()
    if tables is not None:
        write_tables(tables, whole, {"checkpoint": config.checkpoint, "views": views, "weights": weights.tolist()})
    if config.save_scores is not None:
        save_scores(config.save_scores, whole)


if __name__ == "__main__":
    sys.exit(main())
