"""A run's directory: what is written there besides checkpoints and pictures."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

import shapmix
from shapmix import metrics, parallel
from shapmix.config import TrainConfig
from shapmix.data.clips import Splits


class RunError(RuntimeError):
    """A run that cannot start or go on; the message says why and what to do."""

    exit_code = 1


class RunRefusedError(RunError):
    """A run that would do what it is told, but hardly what is meant; --force insists."""

    exit_code = 2


def create_run_dir(config: TrainConfig) -> Path:
    """A new directory; one that exists is never written to.

    Raises:
        RunError: it exists, or cannot be made.
    """
    numbered = (Path("runs") / f"{config.dataset}-{config.mix}-{number}" for number in count(1))
    for run_dir in numbered if config.run_dir is None else [config.run_dir]:
        try:
            run_dir.parent.mkdir(parents=True, exist_ok=True)
            run_dir.mkdir()
        except OSError as error:
            if not run_dir.is_dir():
                raise RunError(f"run directory {run_dir} cannot be made: {error.strerror}; give another --run-dir") from error
        else:
            return run_dir
    raise RunError(f"run directory {config.run_dir} exists; give another --run-dir, or --resume {config.run_dir}")


def data_hash(splits: Splits) -> str:
    """SHA-256 of the clips, their names and labels, and of which train, validate and test."""
    digest, store = hashlib.sha256(), splits.store
    content = (store.offsets, store.labels) if store.sha256 else (store.frames, store.offsets, store.labels)
    digest.update((store.sha256 or "").encode())
    for tensor in (*content, splits.train, splits.val, splits.test):
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).view(np.uint8).data)
    digest.update(json.dumps([store.names, store.class_names, store.layout.name]).encode())
    return digest.hexdigest()


def record_start(path: Path, data: str, device: torch.device) -> None:
    """Appends what this start of the run ran on, as one line of JSON."""
    content = {
        "versions": versions(),
        "commit": commit(),
        "data_sha256": data,
        "processes": parallel.ranks(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "environment": {key: value for key, value in os.environ.items() if key.startswith(("SHAPMIX_", "OMP_", "CUBLAS_"))},
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")


def versions() -> dict[str, str | None]:
    """Of what computes."""
    return {
        "shapmix": shapmix.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
    }


def commit() -> str | None:
    """The commit of the source, with `+` behind it where files differ from it; None outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def forget_later_epochs(path: Path, epochs: int) -> None:
    """Drops the lines of `metrics.jsonl` behind the epoch that a run goes on from, and a line that was cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if row["epoch"] <= epochs:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)


def write_result(run_dir: Path, config: TrainConfig, accuracy: dict[str, metrics.Accuracy]) -> None:
    """`result.json`: test accuracy by checkpoint and what produced it."""
    content: dict[str, Any] = {
        "test": {name: row.as_dict() for name, row in accuracy.items()},
        "dataset": config.dataset,
        "mix": config.mix,
        "loss": config.loss,
        "compat": config.compat,
        "seed": config.seed,
        "versions": versions(),
    }
    (run_dir / "result.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
