"""Provenance of a results file: machine type, versions, commit."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bench import ROOT

MEASURED = ("shapmix", "kernels", "csrc", "bench/*.py")
SOURCES = (".py", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".toml")


def machine() -> dict[str, Any]:
    """Machine type and versions, without identifying the machine."""
    return {
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "driver": driver_version(),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version(),
    }


def cpu_model() -> str:
    """CPU model as reported by the system."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def driver_version() -> str | None:
    """Version of the GPU driver."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else None


def triton_version() -> str | None:
    """Version of Triton, without importing it."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


def commit() -> str:
    """Commit of the working tree, with `+` if what is measured has changes; `uncommitted` outside a repository."""
    if shutil.which("git") is None:
        return "uncommitted"
    described, changed = (
        subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        for arguments in (
            ["describe", "--always", "--abbrev=12"],
            ["status", "--porcelain", "--untracked-files=no", "--", *MEASURED],
        )
    )
    return described.stdout.strip() + "+" * bool(changed.stdout) if described.returncode == 0 else "uncommitted"


def tree() -> str:
    """Digest of what is measured and of its tests; also works outside a repository."""
    digest = hashlib.sha256()
    for folder in ("shapmix", "csrc", "bench", "tests"):
        for file in sorted(glob(f"{folder}/**/*", root_dir=ROOT, recursive=True)):  # also through the link shapmix/kernels
            if Path(file).suffix in SOURCES:
                digest.update(f"{file}\n".encode() + (ROOT / file).read_bytes())
    return digest.hexdigest()[:12]


def peak_bytes(call: Callable[[], object]) -> int:
    """Increase in peak resident memory during a call; process-wide, so use a fresh process."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current resident size
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(entry: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry))
    return int(line.split()[1]) << 10
