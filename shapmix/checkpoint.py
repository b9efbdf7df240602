"""Checkpoints: written whole or not at all, read without running code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the reason."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes tensors, numbers, strings and containers of them to `path` through a temporary file and a rename."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself survives a power cut
    finally:
        os.close(folder)


def load_checkpoint(path: Path, *, layout: str, class_names: list[str]) -> dict[str, Any]:
    """Reads a checkpoint of the same layout and classes.

    Raises:
        CheckpointError: missing, damaged, or of another layout or class list.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except Exception as error:  # whatever the reader trips over, the bytes are at fault
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: damaged or not a checkpoint: {reason}") from error
    missing = {"layout", "class_names", "network"} - set(state)
    if missing:
        raise CheckpointError(f"{path}: not a checkpoint of this trainer: '{sorted(missing)[0]}' is missing")
    if state["layout"] != layout:
        raise CheckpointError(f"{path}: trained on layout '{state['layout']}', the data has layout '{layout}'")
    if len(state["class_names"]) != len(class_names):
        raise CheckpointError(f"{path}: trained on {len(state['class_names'])} classes, the data has {len(class_names)}")
    for label, (theirs, ours) in enumerate(zip(state["class_names"], class_names, strict=True)):
        if theirs != ours:
            raise CheckpointError(f"{path}: class {label} was '{theirs}', in the data it is '{ours}'")
    return state
