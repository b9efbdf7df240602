"""A trained network for elsewhere: `python -m shapmix.export RUN OUT.onnx` or `OUT.pt2`, checked against the network itself.

What is exported maps clips [N, C, T, V, M], as the run's sampler makes them, to logits [N, K], for any N. CTR-GCN is exported in
the plain form of `shapmix.networks.ctrgcn_reference`, which needs no kernel. ONNX needs `pip install shapmix[export]`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shapmix.kernels import BackendError
from shapmix.process.ending import ended
from shapmix.process.errors import DataError, RunError
from shapmix.skeleton.layout import LayoutError
from shapmix.training.checkpoint import CheckpointError
from shapmix.training.config import ConfigError
from shapmix.training.export import ExportError, check_out, export
from shapmix.training.trained import open_run


@dataclass(frozen=True)
class ExportConfig:
    """Export a trained network and check that it computes the same."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory of `python -m shapmix.train`."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """.onnx, or .pt2 for torch.export."""
    checkpoint: Literal["best", "last"] = "best"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    config = tyro.cli(ExportConfig, args=argv, prog="python -m shapmix.export", description=ExportConfig.__doc__)
    return ended(lambda: _main(config), (BackendError, CheckpointError, ConfigError, DataError, ExportError, LayoutError, RunError))


def _main(config: ExportConfig) -> int:
    check_out(config.out)
    trained = open_run(config.run, config.checkpoint)
    off = export(trained, config.out)
    shape = ", ".join(map(str, trained.mean_motion.shape))
    print(f"{config.out}: clips [N, {shape}] -> logits [N, {len(trained.class_names)}], within {off:.1e} of the network")
    return 0


if __name__ == "__main__":
    sys.exit(main())
