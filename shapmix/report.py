"""A run on one page: `python -m shapmix.report RUN` writes RUN/report.html.

Curves, accuracy by bucket and by class, confusion, what each part brings to each class, a mixed clip in motion beside what it was
made of, and the worst confusions: a clip that was taken for another class beside a training clip of that class. The page holds
everything itself and asks the network for nothing.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from shapmix.kernels import BackendError
from shapmix.pages.run import write_report
from shapmix.process.ending import ended
from shapmix.process.errors import DataError, RunError
from shapmix.skeleton.layout import LayoutError
from shapmix.training.checkpoint import CheckpointError
from shapmix.training.config import ConfigError


@dataclass(frozen=True)
class ReportConfig:
    """Put a finished run on one page."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory of `python -m shapmix.train`."""
    checkpoint: Literal["best", "last"] = "last"
    out: Path | None = None
    """Where to write; default RUN/report.html."""
    threads: int | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    config = tyro.cli(ReportConfig, args=argv, prog="python -m shapmix.report", description=ReportConfig.__doc__)

    def work() -> int:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        print(f"report: {write_report(config.run, config.checkpoint, config.out)}")
        return 0

    return ended(work, (BackendError, CheckpointError, ConfigError, DataError, LayoutError, RunError))


if __name__ == "__main__":
    sys.exit(main())
