"""The CPU back end in C++, on as many threads as torch uses. Its kernels are declared in csrc/bindings*.cpp."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import torch

from .dispatch import BackendError, kernel


class InstructionSet(NamedTuple):
    """The instruction set that the kernels use, whether SHAPMIX_ISA pins it, and every set of the processor in ascending order."""

    name: str
    pinned: bool
    available: tuple[str, ...]


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
    """The reason why it cannot run on tensors of a device, None if it can.

    Raises:
        BackendError: SHAPMIX_ISA names an instruction set that is unknown or that this processor lacks.
    """
    if device.type != "cpu":
        return f"it works on CPU tensors, not on {device}"
    instruction_set()
    return load()[1]


def instruction_set() -> InstructionSet | None:
    """The instruction set of the kernels in this process, None without the compiled module.

    Raises:
        BackendError: SHAPMIX_ISA names one that is unknown or that this processor lacks.
    """
    module, _ = load()
    if module is None:
        return None
    try:
        info = module.cpu_info()
    except ValueError as error:
        raise BackendError(str(error)) from None
    return InstructionSet(info["isa"], info["isa_pinned"], info["processor_sets"])


def declare_kernels() -> None:
    """Declares the ops of the compiled module, if it was built."""
    module, _ = load()
    for op, dtypes in module.KERNELS.items() if module else ():
        kernel(op, backend="cpp", dtypes=tuple(getattr(torch, name) for name in dtypes))(getattr(module, op))


declare_kernels()
