"""The CUDA back end in C++, launched on the caller's current stream. Its kernels are declared in csrc/bindings_cuda.cpp.

Values are not checked, since that would synchronise with the host: with values out of range, a kernel reads out of bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch

from .cpp import compiled
from .dispatch import kernel


@cache
def load() -> tuple[ModuleType | None, str | None]:
    """The compiled module, or None and the reason why it cannot be used."""
    return compiled("shapmix._native_cuda", remedy="reinstall shapmix with SHAPMIX_CUDA=1 and nvcc on the PATH")


def unavailable(device: torch.device) -> str | None:
    """The reason why it cannot run on tensors of a device, None if it can."""
    if device.type != "cuda":
        return f"it works on CUDA tensors, not on {device}"
    module, reason = load()
    if module is None:
        return reason
    if error := module.device_error(device.index or 0):
        return f"{error} (built with CUDA {module.toolkit_version() // 1000} for {module.architectures})"
    return None


def on_current_stream(run: Callable[..., None]) -> Callable[..., None]:
    """The kernel, launched on the device of its output and the current stream there."""

    def call(**fields: Any) -> None:
        device = fields["out"].device
        run(**fields, device=device.index, stream=torch.cuda.current_stream(device).cuda_stream)

    return call


def declare_kernels() -> None:
    """Declares the ops of the compiled module, if it was built."""
    module, _ = load()
    for op, dtypes in module.KERNELS.items() if module else ():
        run = on_current_stream(getattr(module, op))
        kernel(op, backend="cuda", dtypes=tuple(getattr(torch, name) for name in dtypes))(run)


declare_kernels()
