"""Reads files of trained weights and of class saliency, ours and others', without executing code that they may hold."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shapmix.networks.published import unwrapped
from shapmix.training.checkpoint import CheckpointError, is_checkpoint, not_finite, read_checkpoint


@dataclass(frozen=True)
class Weights:
    """Weights of a file under its own names; of a checkpoint of ours also the layout and the classes that it was trained on."""

    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    layout: str | None = None
    class_names: list[str] | None = None

    @property
    def record(self) -> dict[str, str]:
        """Which file this is."""
        return {"file": str(self.path.resolve()), "sha256": self.sha256}


def run_of(path: Path) -> Path | None:
    """The run directory that `path` is, or in which it is a checkpoint; None if it is no run's."""
    run = path if path.is_dir() else path.parent.parent
    within = path.is_dir() or path.parent.name == "checkpoints"
    return run if within and (run / "config.yaml").is_file() else None


def checkpoint_of(path: Path) -> Path:
    """The file itself, or the last checkpoint of a run directory."""
    return path / "checkpoints" / "last.pt" if path.is_dir() else path


def read_weights(path: Path) -> Weights:
    """Reads a checkpoint of ours, a run directory (its last checkpoint), or a file that torch.save wrote elsewhere.

    Raises:
        CheckpointError: it cannot be read, is damaged, holds code or no weights; weights that are not finite.
    """
    path = checkpoint_of(path)
    content = _content(path)
    sha256 = hashlib.sha256(content).hexdigest()
    if is_checkpoint(content):
        state = read_checkpoint(path)
        return Weights(path, sha256, state["network"], str(state.get("layout")), state["class_names"])
    try:
        tensors = unwrapped(_loaded(path, content))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise not_finite(path, name)
    return Weights(path, sha256, tensors)


def read_saliency(path: Path, layout: str, class_names: list[str], columns: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(buffers of `ClassSaliency`, which file it is): of a checkpoint of ours, or `mean` alone of a published table [K, Q] in .npy.

    Raises:
        CheckpointError: it cannot be read, or belongs to other classes or another layout.
    """
    path = checkpoint_of(path)
    content = _content(path)
    record = {"file": str(path.resolve()), "sha256": hashlib.sha256(content).hexdigest()}
    if is_checkpoint(content):
        state = read_checkpoint(path)
        if state.get("layout") != layout or state["class_names"] != class_names:
            theirs = f"layout '{state.get('layout')}' and the {len(state['class_names'])} classes {_shown(state['class_names'])}"
            raise CheckpointError(
                f"{path}: its saliency is of {theirs}, the data has layout '{layout}' and the {len(class_names)} classes "
                f"{_shown(class_names)}; a table has a row per class: omit --saliency-from, and the saliency is measured"
            )
        prefix = "class_saliency."
        found = {name.removeprefix(prefix): value for name, value in state["mixer"].items() if name.startswith(prefix)}
    else:
        try:
            found = {"mean": torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False).astype(np.float32))}
        except (ValueError, EOFError, AttributeError, TypeError, OSError) as error:
            raise CheckpointError(f"{path}: neither a checkpoint nor a table of numbers in a .npy file") from error
    mean = found.get("mean")
    if mean is None or mean.shape != (len(class_names), columns):
        shape = "missing" if mean is None else list(mean.shape)
        raise CheckpointError(
            f"{path}: the table of saliency is {shape}; it needs [{len(class_names)}, {columns}]: a row per class, and a column "
            f"per combination of parts of layout '{layout}'"
        )
    if not all(value.isfinite().all() for value in found.values()):
        raise not_finite(path, "the table of saliency")
    return found, record


def _shown(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _loaded(path: Path, content: bytes) -> object:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)|class ([\w.]+)|function ([\w.<>]+)", str(error))
        if code is None:
            raise CheckpointError(f"{path}: damaged, or not a file of torch.save") from error
        raise CheckpointError(
            f"{path}: holds {next(filter(None, code.groups()))}, which would run code when loaded, and is refused; only tensors, "
            "numbers and texts are read. Where you trust the file, load it with the program that wrote it, and save its state_dict"
        ) from error
    except Exception as error:  # whatever a damaged archive makes of torch's reader
        raise CheckpointError(f"{path}: damaged, or not a file of torch.save") from error
