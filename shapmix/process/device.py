"""Selection of the compute device."""

from __future__ import annotations

import os

import torch

from shapmix.process.errors import RunError


def choose_device(name: str) -> torch.device:
    """Resolves a device name; "auto" is the GPU if there is one, under torchrun the GPU of the process.

    A GPU becomes the current CUDA device of the process, the default for kernels and streams.

    Raises:
        RunError: an unknown or unavailable device.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RunError(f"device '{name}': choose auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise RunError(f"device '{name}': choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise RunError(f"device '{name}': torch {torch.__version__} finds no CUDA device on this machine")
        # with an index, because "cuda" and "cuda:0" compare as different devices
        device = torch.device("cuda", local if "LOCAL_RANK" in os.environ else device.index or 0)
        if device.index >= torch.cuda.device_count():
            raise RunError(f"device '{device}': this machine has {torch.cuda.device_count()} CUDA devices; start fewer processes")
        torch.cuda.set_device(device)
    return device
