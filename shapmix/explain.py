"""`python -m shapmix.explain RUN`: which body parts a trained network looks at, clip by clip and class by class.

Writes pictures, the exact games (`explanation.npz`) and one self-contained page (`index.html`) into RUN/explanation.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shapmix.pages.explanation import explain_run
from shapmix.process.command import ComputeOptions, read_options, run_command, start_computing
from shapmix.shapley.game import Output
from shapmix.training.trained import CheckpointOptions


@dataclass(frozen=True)
class ExplainConfig(CheckpointOptions, ComputeOptions):
    """Explain a trained network by the exact Shapley values of body parts."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory of `python -m shapmix.train`."""
    clips: tuple[str, ...] = ()
    """Names of clips to explain; none takes the first --per-class clips of every class of the split."""
    per_class: int = 8
    """Clips of a class; with five parts a clip costs 31 forwards."""
    split: Literal["test", "val", "train"] = "test"
    output: Output = "probability"
    """What a coalition is worth: the probability of the clip's own class, its logit or its log-probability."""
    out: Path | None = None
    """Where to write; default RUN/explanation."""
    max_rows: int = 64
    """Clips forwarded at once."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code of `shapmix.process.command`."""
    return run_command(lambda: explain(read_options(ExplainConfig, argv, "explain")))


def explain(config: ExplainConfig) -> None:
    """Writes the page and prints its path."""
    page = explain_run(
        config.run,
        config.checkpoint,
        config.out or config.run / "explanation",
        start_computing(config),
        clips=config.clips,
        per_class=config.per_class,
        split=config.split,
        output=config.output,
        max_rows=config.max_rows,
    )
    print(f"explanation: {page}")


if __name__ == "__main__":
    sys.exit(main())
