"""The CPU back end in C++, on as many threads as torch uses. Its kernels are declared in csrc/bindings*.cpp."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch

from .dispatch import kernel


@cache
def load() -> tuple[ModuleType | None, str | None]:
    """The compiled module, or None and the reason why it cannot be used."""
    return compiled("shapmix._native", remedy="reinstall shapmix with a C++ compiler on the PATH")


def compiled(name: str, remedy: str) -> tuple[ModuleType | None, str | None]:
    """A module of csrc/, or None and the reason why it cannot be used."""
    try:
        module = import_module(name)
    except ImportError as error:
        return None, f"{name} cannot be imported ({error}): {remedy}"
    if not hasattr(module, "KERNELS"):
        return None, f"{name} was built from older sources: rerun `pip install -e .`"
    return module, None


def unavailable(device: torch.device) -> str | None:
    """The reason why it cannot run on tensors of a device, None if it can."""
    if device.type != "cpu":
        return f"it works on CPU tensors, not on {device}"
    return load()[1]


def declare_kernels() -> None:
    """Declares the ops of the compiled module, if it was built."""
    module, _ = load()
    for op, dtypes in module.KERNELS.items() if module else ():
        kernel(op, backend="cpp", dtypes=tuple(getattr(torch, name) for name in dtypes))(getattr(module, op))


declare_kernels()
