"""Kernels by op and back end, and the choice: the argument if given, else the variable SHAPMIX_BACKEND, else the fastest available.

A back end is the module of its name: `cpp`, `cuda`, `triton`. It has `unavailable(device)`; importing it, and every module whose
name begins with `cpp_`, `cuda_` or `triton_`, declares its kernels.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from shapmix.process.errors import ShapmixError

from .checks import DTYPES, dtype_name

BACKENDS = ("reference", "cpp", "triton", "cuda")

_FASTEST_FIRST = {"cpu": ("cpp", "reference"), "cuda": ("cuda", "triton", "reference")}
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_log = logging.getLogger("shapmix")


OPS: dict[str, Callable[..., Any]] = {}  # the reference of each op, but not of the gradients of others


class Kernel(NamedTuple):
    """A kernel and the dtypes it supports."""

    run: Callable[..., None]
    dtypes: tuple[torch.dtype, ...]


KERNELS: dict[tuple[str, str], Kernel] = {}  # by op and back end


class BackendError(ShapmixError, RuntimeError):
    """A back end was requested by name and cannot run; the message says why and what to do."""


class UnknownBackendError(BackendError, ValueError):
    """There is no back end of that name."""


def unavailable(backend: str, device: torch.device, dtype: torch.dtype | None = None, op: str | None = None) -> str | None:
    """The reason why a back end cannot run (an op, with a dtype) on tensors of a device, None if it can.

    Raises:
        ValueError: no back end of that name.
    """
    if backend not in BACKENDS:
        raise UnknownBackendError(f"backend is '{backend}'; give one of {', '.join(BACKENDS)}")
    if backend == "reference":
        return None
    if reason := import_module(f".{backend}", __package__).unavailable(device):
        return str(reason)
    if op is None:
        return None
    _load_kernels(backend)
    if (op, backend) not in KERNELS:
        return f"it has no kernel for {op}; leave the choice to 'auto'"
    dtypes = KERNELS[op, backend].dtypes
    if dtype is not None and dtype not in dtypes:
        return f"it supports {', '.join(map(dtype_name, dtypes))}, not {dtype_name(dtype)}"
    return None


def kernel(
    op: str, *, backend: str, dtypes: tuple[torch.dtype, ...] = DTYPES
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declares the decorated function as a kernel of an op.

    The function takes the op's arguments and its outputs, which it writes, by name only. Dataclasses come as their fields, and
    tensors in the layout that the op declares.

    Args:
        dtypes: the dtypes it supports, of the tensor that selects the back end.
    """

    def declare(run: Callable[..., None]) -> Callable[..., None]:
        KERNELS[op, backend] = Kernel(run, dtypes)
        return run

    return declare


def kernel_of(op: str, backend: str) -> Callable[..., None]:
    """The kernel that `choose` selected."""
    return KERNELS[op, backend].run


def check_values(check: str, arguments: dict[str, Any]) -> None:
    """Runs a check of the C++ module on CPU tensors, if the module was built.

    Raises:
        ValueError: a value is out of range.
    """
    if module := import_module(".cpp", __package__).load()[0]:
        getattr(module, check)(**arguments)


@cache
def _load_kernels(backend: str) -> None:
    """Imports the modules that declare the kernels of a back end."""
    for found in iter_modules([str(Path(__file__).parent)]):
        if found.name.startswith(f"{backend}_"):
            import_module(f".{found.name}", __package__)


def choose(op: str, tensor: torch.Tensor, backend: str | None) -> str:
    """Name of the back end that runs `op` on `tensor`; the first call per device logs the back ends of all ops.

    Args:
        backend: a name; None reads SHAPMIX_BACKEND. If that is unset or `auto`, the fastest available is selected.

    Raises:
        BackendError: the requested back end cannot run on this tensor.
        ValueError: no back end of that name.
    """
    asked_by = "backend"
    if backend is None:
        backend, asked_by = os.environ.get("SHAPMIX_BACKEND", "auto"), "SHAPMIX_BACKEND"
    if backend == "auto":
        return _fastest(op, tensor.device, tensor.dtype)
    if backend not in BACKENDS:
        raise UnknownBackendError(f"{asked_by} is '{backend}'; give one of auto, {', '.join(BACKENDS)}")
    if reason := _reason(backend, tensor.device, tensor.dtype, op):
        raise BackendError(f"{op}: {asked_by}={backend} cannot run on {tensor.device}: {reason}")
    return backend


def needs_registered_op(tensors: Iterable[torch.Tensor | None]) -> bool:
    """True if the call must go through the registered torch op, because a back end may not read the tensors' pointers.

    That is so under torch.compile and dispatch modes such as `FakeTensorMode`, for tensor subclasses, whose storage may be
    elsewhere, and for tensors with the lazy negative bit set.
    """
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return True
    # loops here and in `wants_gradient`: a generator costs a microsecond, which every call pays
    for tensor in tensors:  # noqa: SIM110
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_neg()):
            return True
    return False


def wants_gradient(tensors: Iterable[torch.Tensor | None]) -> bool:
    """True if autograd would record an op on one of the tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


# The available back ends do not change while a process runs.
_reason = cache(unavailable)


@cache
def _fastest(op: str, device: torch.device, dtype: torch.dtype) -> str:
    skipped: list[str] = []
    for backend in _FASTEST_FIRST.get(device.type, ("reference",)):
        reason = _reason(backend, device, dtype, op)
        if reason is None:
            _log_choices(device)
            if backend == "reference" and op in _choices(device) and _choices(device)[op][0] != backend:
                why = "; ".join(skipped)
                _log.warning("%s of %s on %s runs on back end 'reference' (%s)", op, dtype_name(dtype), device, why)
            return backend
        skipped.append(f"{backend}: {reason}")
    raise AssertionError("the reference runs everywhere")


@cache
def _choices(device: torch.device) -> dict[str, tuple[str, str]]:
    """The float32 back end of each op on a device, and why each faster back end cannot run there."""
    choices = {}
    for op in OPS:
        backends = _FASTEST_FIRST.get(device.type, ("reference",))
        chosen = next(name for name in backends if _reason(name, device, torch.float32, op) is None)
        reasons = {name: _reason(name, device) for name in backends[: backends.index(chosen)]}
        choices[op] = chosen, "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)
    return choices


@cache
def _log_choices(device: torch.device) -> None:
    """Logs one line per device; a warning if an op falls back to the slow reference on a device that has fast back ends."""
    choices = _choices(device)
    groups: dict[tuple[str, str], list[str]] = {}
    for op, choice in choices.items():
        groups.setdefault(choice, []).append(op)
    parts = [
        f"{backend} for {f'all {len(ops)} ops' if len(groups) == 1 else ', '.join(ops)}{f' ({why})' if why else ''}"
        for (backend, why), ops in groups.items()
    ]
    slow = device.type in _FASTEST_FIRST and any(backend == "reference" for backend, _ in choices.values())
    _log.log(logging.WARNING if slow else logging.INFO, "back ends on %s: %s", device, "; ".join(parts))
