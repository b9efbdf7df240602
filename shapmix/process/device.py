"""The device that a command computes on."""

from __future__ import annotations

import os

import torch

from shapmix.process.errors import RunError


def choose_device(name: str) -> torch.device:
    """ "auto" takes the GPU where there is one, and under torchrun the one of the process.

    A GPU becomes the process's current one, on which kernels run and streams are made where nothing else is said.

    Raises:
        RunError: a device that this machine lacks.
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
            raise RunError(f"device '{name}': torch {torch.__version__} sees no CUDA device on this machine")
        # with its number, as tensors name it: "cuda" and "cuda:0" compare as different devices
        device = torch.device("cuda", local if "LOCAL_RANK" in os.environ else device.index or 0)
        if device.index >= torch.cuda.device_count():
            raise RunError(f"device '{device}': this machine has {torch.cuda.device_count()} CUDA devices; start fewer processes")
        torch.cuda.set_device(device)
    return device
