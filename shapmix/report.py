"""Summarises a run on one page: `python -m shapmix.report RUN` writes RUN/report.html.

Curves, accuracy by bucket and by class, confusion matrix, contribution of each part to each class, an animated mixed clip next to
its sources, and the worst confusions: a misclassified clip next to a training clip of the predicted class. The page is
self-contained and loads nothing from the internet.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from shapmix.pages.run import write_report
from shapmix.process.command import ComputeOptions, read_options, run_command, start_computing
from shapmix.training.trained import CheckpointOptions, DataOptions


@dataclass(frozen=True)
class ReportConfig(CheckpointOptions, DataOptions, ComputeOptions):
    """Summarise a finished run on one page."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory of `python -m shapmix.train`."""
    out: Path | None = None
    """Output file; default: RUN/report.html."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code of `shapmix.process.command`."""
    return run_command(lambda: report(read_options(ReportConfig, argv, "report")))


def report(config: ReportConfig) -> None:
    """Writes the page and prints its path."""
    page = write_report(config.run, config.checkpoint, config.out, start_computing(config), data_root=config.data_root)
    print(f"report: {page}")


if __name__ == "__main__":
    sys.exit(main())
