"""Which back end runs an op: the argument, else the variable SHAPMIX_BACKEND, else the fastest that can."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from shapmix.process.errors import ShapmixError

from .checks import dtype_name

BACKENDS = ("reference", "cpp", "triton", "cuda")

_FASTEST_FIRST = {"cpu": ("cpp", "reference"), "cuda": ("cuda", "triton", "reference")}
_MODULES = {"cpp": "native", "triton": "triton_ops", "cuda": "cuda"}
_log = logging.getLogger("shapmix")


class BackendError(ShapmixError, RuntimeError):
    """A back end was asked for by name and cannot run; the message says why and what to do."""


class UnknownBackendError(BackendError, ValueError):
    """There is no back end of that name."""


def unavailable(backend: str, device: torch.device, dtype: torch.dtype | None = None, op: str | None = None) -> str | None:
    """Why a back end cannot run (an op, on an element type) on tensors of a device, None where it can.

    Raises:
        ValueError: no back end of that name.
    """
    if backend not in BACKENDS:
        raise UnknownBackendError(f"backend is '{backend}'; give one of {', '.join(BACKENDS)}")
    if backend == "reference":
        return None
    if backend == "triton" and (reason := _triton_missing()):
        return reason
    module = implementation(backend)
    if reason := module.unavailable(device):
        return str(reason)
    if op is not None and op not in module.DTYPES:
        return f"it has no kernel for {op}; leave the choice to 'auto'"
    if op is not None and dtype is not None and dtype not in module.DTYPES[op]:
        return f"it takes {', '.join(map(dtype_name, module.DTYPES[op]))}, not {dtype_name(dtype)}"
    return None


@cache
def implementation(backend: str) -> ModuleType:
    """The module of a back end: `DTYPES` of each of its ops, `unavailable(device)`, and the ops, which write into buffers."""
    return import_module(f".{_MODULES[backend]}", __package__)


def run(backend: str, op: str, *arguments: Any) -> None:
    """Runs an op of a back end on the device of its first argument, a buffer that it writes.

    Triton launches on the current device, whatever device the addresses belong to.
    """
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        getattr(implementation(backend), op)(*arguments)


def choose(op: str, tensor: torch.Tensor, backend: str | None) -> str:
    """Name of the back end that runs `op` on `tensor`; the first choice on a device logs those of all ops.

    Args:
        backend: a name to insist on; None leaves it to SHAPMIX_BACKEND, and that unset or `auto` to the machine.

    Raises:
        BackendError: the back end asked for cannot run on this tensor.
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


def by_registered_op(*tensors: torch.Tensor | None) -> bool:
    """True where torch must see a call before a back end takes the tensors' addresses.

    Under torch.compile and dispatch modes such as `FakeTensorMode`, for subclasses, whose memory may lie elsewhere, and for
    negations that torch has put off.
    """
    return torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or not all(map(_is_plain, tensors))


def _is_plain(tensor: torch.Tensor | None) -> bool:
    if tensor is None:
        return True
    return type(tensor) in (torch.Tensor, torch.nn.Parameter) and not tensor.is_neg()


def wants_gradient(*tensors: torch.Tensor) -> bool:
    """True where autograd would record what is done to one of the tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


# What a machine can do does not change while a process runs.
_reason = cache(unavailable)


@cache
def _fastest(op: str, device: torch.device, dtype: torch.dtype) -> str:
    passed_over: list[str] = []
    for backend in _FASTEST_FIRST.get(device.type, ("reference",)):
        reason = _reason(backend, device, dtype, op)
        if reason is None:
            _tell(device)
            if backend == "reference" and op in _choices(device) and _choices(device)[op][0] != backend:
                why = "; ".join(passed_over)
                _log.warning("%s of %s on %s runs on back end 'reference' (%s)", op, dtype_name(dtype), device, why)
            return backend
        passed_over.append(f"{backend}: {reason}")
    raise AssertionError("the reference runs everywhere")


@cache
def _choices(device: torch.device) -> dict[str, tuple[str, str]]:
    """Each op's back end for float32 on a device, and which faster ones cannot run there at all."""
    choices = {}
    for op in implementation("cpp").DTYPES:  # has every op
        backends = _FASTEST_FIRST.get(device.type, ("reference",))
        chosen = next(name for name in backends if _reason(name, device, torch.float32, op) is None)
        reasons = {name: _reason(name, device) for name in backends[: backends.index(chosen)]}
        choices[op] = chosen, "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)
    return choices


@cache
def _tell(device: torch.device) -> None:
    """One line for a device; a warning where the slow reference is all that is left on one that has a fast back end."""
    choices = _choices(device)
    groups: dict[tuple[str, str], list[str]] = {}
    for op, choice in choices.items():
        groups.setdefault(choice, []).append(op)
    told = [
        f"{backend} for {f'all {len(ops)} ops' if len(groups) == 1 else ', '.join(ops)}{f' ({why})' if why else ''}"
        for (backend, why), ops in groups.items()
    ]
    slow = device.type in _FASTEST_FIRST and any(backend == "reference" for backend, _ in choices.values())
    _log.log(logging.WARNING if slow else logging.INFO, "back ends on %s: %s", device, "; ".join(told))


@cache
def _triton_missing() -> str | None:
    try:
        import_module("triton")
    except ImportError as error:
        return f"triton cannot be imported ({error}): install it with `pip install triton`"
    return None
