"""Exports a trained network: `python -m shapmix.export RUN OUT.onnx` or `OUT.pt2`, verified against the network.

The exported model maps clips [N, C, T, V, M], as produced by the run's sampler, to logits [N, K], for any N. CTR-GCN is exported as
`shapmix.networks.ctrgcn_reference`, which needs no custom kernels. ONNX needs `pip install shapmix[export]`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from shapmix.process.command import read_options, run_command
from shapmix.training.export import check_out, export
from shapmix.training.trained import CheckpointOptions, open_run


@dataclass(frozen=True)
class ExportConfig(CheckpointOptions):
    """Export a trained network and verify its outputs."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory of `python -m shapmix.train`."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Output file: .onnx, or .pt2 for torch.export."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code of `shapmix.process.command`."""
    return run_command(lambda: export_run(read_options(ExportConfig, argv, "export")))


def export_run(config: ExportConfig) -> None:
    """Writes the file and prints its input, output and accuracy."""
    check_out(config.out)
    trained = open_run(config.run, config.checkpoint)
    off = export(trained, config.out)
    shape = ", ".join(map(str, trained.mean_motion.shape))
    print(f"{config.out}: clips [N, {shape}] -> logits [N, {len(trained.class_names)}], within {off:.1e} of the network")


if __name__ == "__main__":
    sys.exit(main())
