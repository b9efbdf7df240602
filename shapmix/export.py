"""A trained network for elsewhere: `python -m shapmix.export RUN OUT.onnx` or `OUT.pt2`, checked against the network itself.

What is exported maps clips [N, C, T, V, M], as the run's sampler makes them, to logits [N, K], for any N. CTR-GCN is exported in
the plain form of `shapmix.reference.ctrgcn`, which needs no kernel. ONNX needs `pip install shapmix[export]`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn

from shapmix.checkpoint import CheckpointError
from shapmix.command import check_output_file, ended
from shapmix.config import ConfigError
from shapmix.ctrgcn import CTRGCN
from shapmix.data.clips import DataError
from shapmix.kernels import BackendError
from shapmix.layout import LayoutError
from shapmix.reference import ctrgcn as reference
from shapmix.run import RunError
from shapmix.trained import Trained, open_run

TOLERANCE = 1e-5  # of the logits, relative to the largest


@dataclass(frozen=True)
class ExportConfig:
    """Export a trained network and check that it computes the same."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory of `python -m shapmix.train`."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """.onnx, or .pt2 for torch.export."""
    checkpoint: Literal["best", "last"] = "best"


class ExportError(RuntimeError):
    """What cannot be exported; the message says why."""


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


def check_out(out: Path) -> None:
    """That `out` can be written, before any work.

    Raises:
        ExportError: an unknown ending or a missing package.
        OSError: no place to write it.
    """
    if out.suffix not in (".onnx", ".pt2"):
        raise ExportError(f"{out}: give a file that ends in .onnx or .pt2")
    check_output_file(out)
    for package in ("onnxruntime", "onnxscript") if out.suffix == ".onnx" else ():
        if find_spec(package) is None:
            raise ExportError(f"{out}: ONNX needs '{package}', which is not installed; pip install 'shapmix[export]'")


def export(trained: Trained, out: Path) -> float:
    """Writes `out`, whole or not at all; returns how far its logits are from the network's, relative to the largest.

    Raises:
        ExportError: an unknown ending, a missing package, or logits that differ by more than 1e-5.
        OSError: no place to write it.
    """
    check_out(out)
    plain = plain_network(trained)
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(3, *trained.mean_motion.shape, generator=generator) * 0.1 + trained.mean_motion
    shapes = {"clips": {0: torch.export.Dim("clips", min=1)}}
    program = torch.export.export(_Named(plain), (clips,), dynamic_shapes=shapes)
    with TemporaryDirectory(prefix=f".{out.stem}-", dir=out.parent) as folder:
        temporary = Path(folder) / out.name
        if out.suffix == ".pt2":
            torch.export.save(program, temporary)
            with torch.no_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.10's own reader
                found = torch.export.load(temporary).module()(clips)
        else:
            found = _through_onnx(program, clips, temporary)
        with torch.no_grad():
            expected = trained.network(clips)
        off = float((found - expected).abs().max() / expected.abs().max())
        if not off <= TOLERANCE:
            raise ExportError(f"{out}: its logits are {off:.1e} from the network's, more than {TOLERANCE}; nothing was written")
        temporary.replace(out)
    return off


def plain_network(trained: Trained) -> nn.Module:
    """The network without kernels, in eval mode."""
    network = trained.network
    if isinstance(network, CTRGCN):
        options = trained.config.network
        plain = reference.CTRGCN(
            trained.layout,
            len(trained.class_names),
            num_people=trained.num_people,
            in_channels=trained.mean_motion.shape[0],
            widths=options.widths,
            halve=options.halve,
        )
        plain.load_state_dict(network.state_dict())
        return plain.eval()
    return network


class _Named(nn.Module):
    """Its argument is called `clips`, whatever the network's is called."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.network(clips)
        return logits


def _through_onnx(program: Any, clips: Tensor, path: Path) -> Tensor:
    runtime: Any = import_module("onnxruntime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the exporter's, about itself
        warnings.simplefilter("ignore", DeprecationWarning)
        exported = torch.onnx.export(program, verbose=False, input_names=["clips"], output_names=["logits"])
    assert exported is not None
    exported.save(str(path), external_data=False)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"clips": clips.numpy()})[0])


if __name__ == "__main__":
    sys.exit(main())
