"""Checkpoints: written atomically, verified by SHA-256 when read, loaded without executing code."""

from __future__ import annotations

import hashlib
import io
import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import shapmix
from shapmix.process.errors import ShapmixError
from shapmix.process.files import synced, whole_file

log = logging.getLogger("shapmix")

# Appended to torch's archive, where readers of torch files ignore it.
_TRAILER = b"\nshapmix sha256 "
_TRAILER_LENGTH = len(_TRAILER) + 64


class CheckpointError(ShapmixError, ValueError):
    """A checkpoint cannot be used or written; the message names the file and the reason."""


def save_checkpoint(path: Path, state: dict[str, Any], *, keep: int = 1) -> None:
    """Writes tensors, numbers, strings and containers of them atomically to `path`, via a temporary file and a rename.

    Keeps `keep` checkpoints: `path` is the newest; an existing `last.pt` becomes `last-1.pt`, that one `last-2.pt` and so on. All
    of them remain valid if the process is killed at any time.

    Raises:
        CheckpointError: the folder cannot be written; existing checkpoints are unchanged.
    """
    content = io.BytesIO()
    torch.save(state, content)
    content.write(_TRAILER + hashlib.sha256(content.getbuffer()).hexdigest().encode())
    try:
        with whole_file(path) as file:
            file.write(content.getbuffer())
            synced(file)  # before older checkpoints are renamed
            for age in range(keep - 1, 0, -1):
                older, newer = _aged(path, age), _aged(path, age - 1)
                if newer.exists():
                    newer.replace(older)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot write the checkpoint: {error.strerror}; earlier checkpoints are intact, "
            f"free space or give write permission, then continue with --resume {path.parent.parent}"
        ) from error


def kept_checkpoints(path: Path) -> list[Path]:
    """The existing checkpoints of `save_checkpoint(path, keep=...)`, newest first."""
    older = path.parent.glob(f"{path.stem}-*{path.suffix}")
    aged = sorted((int(each.stem.rpartition("-")[2]), each) for each in older if each.stem.rpartition("-")[2].isdigit())
    return [each for each in (path, *(each for _, each in aged)) if each.exists()]


def load_newest(path: Path, *, layout: str, class_names: list[str]) -> dict[str, Any] | None:
    """The newest valid checkpoint of `path`; damaged ones are logged. None if there is no checkpoint.

    Raises:
        CheckpointError: all are damaged, or the newest valid one belongs to a different layout or class list.
    """
    found = kept_checkpoints(path)
    for each in found:
        try:
            state = _read(each)
        except CheckpointError as error:
            log.warning("%s; trying the one before", error)
            continue
        _check(each, state, layout, class_names)
        log.info("resuming from %s: epoch %d, batch %d", each, state.get("epoch", 0) + 1, state.get("batch", 0))
        return state
    if found:
        raise CheckpointError(f"{path.parent}: all {len(found)} checkpoints are damaged; start a new run with another --run-dir")
    return None


def is_checkpoint(content: bytes) -> bool:
    """Whether a file with this content ends as `save_checkpoint` ends it, damaged or not."""
    return content[-_TRAILER_LENGTH:].startswith(_TRAILER)


def load_checkpoint(path: Path, *, layout: str, class_names: list[str]) -> dict[str, Any]:
    """Reads a checkpoint and checks its layout and classes.

    Raises:
        CheckpointError: it is missing, damaged, or belongs to a different layout or class list.
    """
    state = _read(path)
    _check(path, state, layout, class_names)
    return state


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint without checking its layout and classes.

    Raises:
        CheckpointError: it is missing, damaged, or was not written by this trainer.
    """
    state = _read(path)
    check_fields(path, state, {"layout_toml": str, "class_names": list, "network": dict, "mixer": dict})
    return state


def check_fields(path: Path | str, state: Any, fields: dict[str, type | tuple[type, ...]]) -> None:
    """Checks that a checkpoint has these fields with these types, and that class names are strings.

    Raises:
        CheckpointError: names the first missing or wrong field.
    """
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not a checkpoint of this trainer: it is a {type(state).__name__}, not a dict")
    for key, kind in fields.items():
        if key not in state:
            raise CheckpointError(f"{path}: not a checkpoint of this trainer: '{key}' is missing")
        if not isinstance(state[key], kind) or isinstance(state[key], bool):
            raise CheckpointError(f"{path}: not a checkpoint of this trainer: '{key}' is a {type(state[key]).__name__}")
    if not all(isinstance(name, str) for name in state.get("class_names", ())):
        raise CheckpointError(f"{path}: not a checkpoint of this trainer: a class name is not a string")


def load_weights(module: nn.Module, state: dict[str, Any], path: Path | str) -> None:
    """Loads the state of a module from a checkpoint.

    Raises:
        CheckpointError: the state belongs to a different module, or is non-finite (except where the module is, as in a mask).
    """
    for name, fresh in module.state_dict().items():
        value = state.get(name) if isinstance(state, dict) else None
        if isinstance(value, Tensor) and not value.isfinite().all() and (value.isnan().any() or fresh.isfinite().all()):
            raise not_finite(path, name)
    try:
        module.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: the checkpoint belongs to a different network: {reason}") from error


def not_finite(path: Path | str, name: str) -> CheckpointError:
    """The error for a tensor with NaN or infinity."""
    return CheckpointError(
        f"{path}: '{name}' is not finite, and neither is what it gives; take an earlier checkpoint or train anew"
    )


def _aged(path: Path, age: int) -> Path:
    return path if age == 0 else path.with_stem(f"{path.stem}-{age}")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the checkpoint: {error.strerror}") from error
    body, trailer = memoryview(content)[:-_TRAILER_LENGTH], content[-_TRAILER_LENGTH:]
    if not trailer.startswith(_TRAILER):
        raise CheckpointError(f"{path}: damaged or not a checkpoint: it does not end with a checksum")
    if trailer[len(_TRAILER) :] != hashlib.sha256(body).hexdigest().encode():
        raise CheckpointError(f"{path}: damaged or not a checkpoint: its checksum does not match")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # the checksum is valid, so the file was written like this
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: damaged or not a checkpoint: {reason}") from error
    check_fields(path, state, {})
    theirs, ours = _release(state.get("shapmix_version")), _release(shapmix.__version__)
    if theirs is not None and ours is not None and theirs > ours:
        raise CheckpointError(
            f"{path}: written by shapmix {state['shapmix_version']}, this is {shapmix.__version__}; a later release may use "
            "the same fields differently: update shapmix"
        )
    return state


def _release(version: object) -> tuple[int, int] | None:
    """Major and minor version; checkpoints of the same release are read, those of earlier ones if their fields are compatible."""
    found = re.match(r"(\d{1,9})\.(\d{1,9})", version) if isinstance(version, str) else None
    return None if found is None else (int(found[1]), int(found[2]))


def _check(path: Path, state: dict[str, Any], layout: str, class_names: list[str]) -> None:
    check_fields(path, state, {"layout": str, "class_names": list, "network": dict})
    if state["layout"] != layout:
        raise CheckpointError(f"{path}: trained on layout '{state['layout']}', the data has layout '{layout}'")
    if len(state["class_names"]) != len(class_names):
        raise CheckpointError(f"{path}: trained on {len(state['class_names'])} classes, the data has {len(class_names)}")
    for label, (theirs, ours) in enumerate(zip(state["class_names"], class_names, strict=True)):
        if theirs != ours:
            raise CheckpointError(f"{path}: class {label} was '{theirs}', in the data it is '{ours}'")
