"""Exports a trained network to ONNX or .pt2, and compares the result with the network."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from shapmix.networks import ctrgcn_reference
from shapmix.networks.ctrgcn import CTRGCN
from shapmix.process.errors import ShapmixError
from shapmix.process.files import check_output_file, whole_file
from shapmix.training.build import backbone_options
from shapmix.training.trained import Trained

TOLERANCE = 1e-5  # of the logits, relative to the largest


class ExportError(ShapmixError, RuntimeError):
    """The network cannot be exported; the message says why."""


def check_out(out: Path) -> None:
    """Checks in advance that `out` can be written.

    Raises:
        ExportError: the suffix is unknown, or a package is missing.
        OSError: `out` cannot be written.
    """
    if out.suffix not in (".onnx", ".pt2"):
        raise ExportError(f"{out}: give a file that ends in .onnx or .pt2")
    check_output_file(out)
    for package in ("onnxruntime", "onnxscript") if out.suffix == ".onnx" else ():
        if find_spec(package) is None:
            raise ExportError(f"{out}: ONNX needs '{package}', which is not installed; pip install 'shapmix[export]'")


def export(trained: Trained, out: Path) -> float:
    """Writes `out` atomically; returns the largest difference of its logits from the network's, relative to the largest logit.

    Raises:
        ExportError: the suffix is unknown, a package is missing, or the logits differ by more than 1e-5.
        OSError: `out` cannot be written.
    """
    check_out(out)
    plain = plain_network(trained)
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(3, *trained.mean_motion.shape, generator=generator) * 0.1 + trained.mean_motion
    shapes = {"clips": {0: torch.export.Dim("clips", min=1)}}
    program = torch.export.export(_Named(plain), (clips,), dynamic_shapes=shapes)
    with TemporaryDirectory() as folder:
        temporary = Path(folder) / out.name
        if out.suffix == ".pt2":
            torch.export.save(program, temporary)
            with torch.no_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given buffer is not writable")  # raised by the reader of torch 2.10
                found = torch.export.load(temporary).module()(clips)
        else:
            found = _through_onnx(program, clips, temporary)
        with torch.no_grad():
            expected = trained.network(clips)
        off = float((found - expected).abs().max() / expected.abs().max())
        if not off <= TOLERANCE:
            raise ExportError(f"{out}: its logits differ by {off:.1e} from the network's, above {TOLERANCE}; nothing was written")
        with whole_file(out) as file:
            file.write(temporary.read_bytes())
    return off


def plain_network(trained: Trained) -> nn.Module:
    """The network without custom kernels, in eval mode."""
    network = trained.network
    if isinstance(network, CTRGCN):
        plain = ctrgcn_reference.CTRGCN(
            trained.layout,
            len(trained.class_names),
            num_people=trained.num_people,
            in_channels=trained.mean_motion.shape[0],
            **backbone_options(trained.config),
        )
        plain.load_state_dict(network.state_dict())
        return plain.eval()
    return network


class _Named(nn.Module):
    """Wraps a network so that its argument is named `clips`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.network(clips)
        return logits


def _through_onnx(program: Any, clips: Tensor, path: Path) -> Tensor:
    runtime: Any = import_module("onnxruntime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # raised by the exporter itself
        warnings.simplefilter("ignore", DeprecationWarning)
        exported = torch.onnx.export(program, verbose=False, input_names=["clips"], output_names=["logits"])
    assert exported is not None
    exported.save(str(path), external_data=False)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"clips": clips.numpy()})[0])
