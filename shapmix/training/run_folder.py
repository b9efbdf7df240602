"""The run directory: its creation, its lock, and its records other than checkpoints and pictures."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

import shapmix
from shapmix.data.clips import Splits
from shapmix.process import parallel
from shapmix.process.errors import RunError, ShapmixError
from shapmix.process.files import UNFINISHED, append_line, named, only_writer, write_whole
from shapmix.training import metrics
from shapmix.training.checkpoint import CheckpointError
from shapmix.training.options import TrainConfig

log = logging.getLogger("shapmix")


STARTED = {
    "lock",
    "config.yaml",
    "environment.jsonl",
    "metrics.jsonl",
    "tensorboard",
    "checkpoints",
}  # exist without checkpoints


def new_run_dir(config: TrainConfig, held: ExitStack) -> Path:
    """Creates the directory of a new run, locked until `held` closes.

    A directory created here is removed if an error occurs before the first checkpoint.

    Raises:
        RunError: it already has a run with a checkpoint, another process has locked it, or it cannot be created.
    """
    numbered = (Path("runs") / f"{config.dataset}-{config.mix}-{number}" for number in count(1))
    for run_dir in numbered if config.run_dir is None else [config.run_dir]:
        try:
            run_dir.parent.mkdir(parents=True, exist_ok=True)
            made = _made(run_dir)
        except OSError as error:
            raise RunError(f"run directory {run_dir} cannot be created: {error.strerror}; give a different --run-dir") from error
        if not made and config.run_dir is None:
            continue
        hold_run_dir(run_dir, held)
        if made:
            held.push(partial(_forget, run_dir))
        check_run_dir(run_dir)
        return run_dir
    raise AssertionError("unreachable")


def check_run_dir(run_dir: Path) -> None:
    """Checks that a new run can be written to `run_dir`, without creating it.

    Raises:
        RunError: it already has a run, or cannot be created.
    """
    there = next(each for each in (run_dir, *run_dir.absolute().parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = f"no permission to write in {there}" if there.is_dir() else f"{there} is a file"
        raise RunError(f"run directory {run_dir} cannot be created: {reason}; give a different --run-dir")
    if there == run_dir and has_begun(run_dir):
        raise RunError(f"run directory {run_dir} exists; give a different --run-dir, or --resume {run_dir}")


def has_begun(run_dir: Path) -> bool:
    """Whether a new run in `run_dir` would overwrite something: a checkpoint, or files that do not belong to a run."""
    inside = [path for path in run_dir.iterdir() if not path.name.endswith(UNFINISHED)]
    checkpoints = run_dir / "checkpoints"
    saved = checkpoints.is_dir() and any(not path.name.endswith(UNFINISHED) for path in checkpoints.iterdir())
    return saved or any(path.name not in STARTED for path in inside)


def hold_run_dir(run_dir: Path, held: ExitStack) -> None:
    """Locks `run_dir` until `held` closes, and removes temporary files of a killed process.

    Raises:
        InUseError: another process has locked it.
        RunError: it is not a directory.
    """
    if not run_dir.is_dir():
        raise RunError(f"run directory {run_dir} does not exist; give the directory of a run")
    held.enter_context(only_writer(run_dir, run_dir / "lock"))
    for folder in (run_dir, run_dir / "checkpoints"):
        for path in folder.glob(f"*{UNFINISHED}"):
            path.unlink(missing_ok=True)


def of_process_0(work: Callable[[], Path]) -> Path:
    """Runs `work` on process 0 and returns its result, or raises its error, on every process.

    Raises:
        ShapmixError, OSError: raised by `work`.
    """
    done: Path | ShapmixError | OSError | None = None
    if parallel.rank() == 0:
        try:
            done = work()
        except (ShapmixError, OSError) as error:
            done = error
    done = parallel.shared(done)
    if isinstance(done, Exception):
        raise done
    assert done is not None
    return done


def _made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise
        return False
    return True


def _forget(run_dir: Path, kind: object, error: BaseException | None, trace: object) -> None:
    full = isinstance(error, (OSError, CheckpointError))  # can resume once there is free space
    if error is not None and not full and run_dir.is_dir() and not has_begun(run_dir):
        shutil.rmtree(run_dir, ignore_errors=True)


def data_hash(splits: Splits) -> str:
    """SHA-256 of the clips, their names and labels, and of the splits."""
    digest, store = hashlib.sha256(), splits.store
    content = (store.offsets, store.labels) if store.sha256 else (store.frames, store.offsets, store.labels)
    digest.update((store.sha256 or "").encode())
    for tensor in (*content, splits.train, splits.val, splits.test):
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).view(np.uint8).data)
    digest.update(json.dumps([store.names, store.class_names, store.layout.name]).encode())
    return digest.hexdigest()


def record_start(
    path: Path, data: str, device: torch.device, changed: dict[str, tuple[Any, Any]], started_from: dict[str, dict[str, str]]
) -> None:
    """Appends the environment of this start of the run, changed options (option -> [before, now]), and the files of weights that
    it read (option -> file and SHA-256), as one JSON line."""
    content = {
        "versions": versions(),
        "commit": commit(),
        "data_sha256": data,
        "processes": parallel.ranks(),
        "changed": changed,
        "started_from": started_from,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "environment": {key: value for key, value in os.environ.items() if key.startswith(("SHAPMIX_", "OMP_", "CUBLAS_"))},
    }
    append_line(path, json.dumps(content))


def last_start(path: Path) -> dict[str, Any]:
    """What `record_start` wrote at the last start of a run.

    Raises:
        RunError: the file is not there, or its last line is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    except (OSError, ValueError, IndexError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict) or not {"commit", "versions", "data_sha256"} <= set(found):
        raise RunError(f"{path}: its last line is not the start of a run")
    return found


def versions() -> dict[str, str | None]:
    """Versions of the software that affects results."""
    return {
        "shapmix": shapmix.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
    }


def commit() -> str | None:
    """The commit of the source, with `+` if files were modified; None outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def forget_later_epochs(path: Path, epochs: int) -> None:
    """Drops the lines of `metrics.jsonl` after the epoch from which a run resumes; damaged lines are dropped and logged."""
    if not path.exists():
        return
    kept = []
    with named(path):
        lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        row = _epoch(line)
        if row is None:
            log.warning("%s: line %d is not the record of an epoch and was removed", path, number)
        elif row["epoch"] <= epochs:
            kept.append(line.decode() + "\n")
    write_whole(path, "".join(kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The epoch records of a run.

    Raises:
        RunError: the file cannot be read, or a line is not the record of an epoch.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        row = _epoch(line)
        if row is None:
            raise RunError(f"{path}: line {number} is not the record of an epoch; --resume {path.parent} removes such lines")
        rows.append(row)
    return rows


def _epoch(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("epoch")) is int else None


def write_result(run_dir: Path, config: TrainConfig, accuracy: dict[str, metrics.Accuracy], training_list: str) -> None:
    """Writes `result.json`: test accuracy by checkpoint, with options, versions and the hash of the training list."""
    content: dict[str, Any] = {
        "test": {name: row.as_dict() for name, row in accuracy.items()},
        "dataset": config.dataset,
        "mix": config.mix,
        "loss": config.loss,
        "compat": config.compat,
        "seed": config.seed,
        "training_list": training_list,
        "versions": versions(),
    }
    write_whole(run_dir / "result.json", json.dumps(content, indent=2) + "\n")
