"""`python -m shapmix.explain RUN`: the contribution of body parts to a trained network's predictions, by clip and by class.

Writes pictures, the exact games (`explanation.npz`) and one self-contained page (`index.html`) to RUN/explanation.
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
from shapmix.training.trained import CheckpointOptions, DataOptions


@dataclass(frozen=True)
class ExplainConfig(CheckpointOptions, DataOptions, ComputeOptions):
    """Explain a trained network with exact Shapley values of body parts."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory of `python -m shapmix.train`."""
    clips: tuple[str, ...] = ()
    """Names of clips to explain; default: the first --per-class clips of every class of the split."""
    per_class: int = 8
    """Clips per class; with five parts, a clip takes 31 forward passes."""
    split: Literal["test", "val", "train"] = "test"
    output: Output = "probability"
    """Value of a coalition: probability, logit or log-probability of the clip's class."""
    out: Path | None = None
    """Output folder; default: RUN/explanation."""
    max_rows: int = 64
    """Clips per forward pass."""


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
        data_root=config.data_root,
    )
    print(f"explanation: {page}")


if __name__ == "__main__":
    sys.exit(main())
