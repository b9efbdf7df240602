"""Selects the back end of an op: the argument if given, else the variable SHAPMIX_BACKEND, else the fastest available."""

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
    if backend == "triton" and (reason := _triton_missing()):
        return reason
    module = implementation(backend)
    if reason := module.unavailable(device):
        return str(reason)
    if op is not None and op not in module.DTYPES:
        return f"it has no kernel for {op}; leave the choice to 'auto'"
    if op is not None and dtype is not None and dtype not in module.DTYPES[op]:
        return f"it supports {', '.join(map(dtype_name, module.DTYPES[op]))}, not {dtype_name(dtype)}"
    return None


@cache
def implementation(backend: str) -> ModuleType:
    """The module of a back end: `DTYPES` per op, `unavailable(device)`, and the ops, which write into given buffers."""
    return import_module(f".{_MODULES[backend]}", __package__)


def run(backend: str, op: str, *arguments: Any) -> None:
    """Runs an op of a back end with the device of its first argument, the output buffer, as the current device.

    Triton launches on the current device, not on the device that owns the tensors.
    """
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        getattr(implementation(backend), op)(*arguments)


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


def needs_registered_op(*tensors: torch.Tensor | None) -> bool:
    """True if the call must go through the registered torch op, because a back end may not read the tensors' pointers.

    That is so under torch.compile and dispatch modes such as `FakeTensorMode`, for tensor subclasses, whose storage may be
    elsewhere, and for tensors with the lazy negative bit set.
    """
    return torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or not all(map(_is_plain, tensors))


def _is_plain(tensor: torch.Tensor | None) -> bool:
    if tensor is None:
        return True
    return type(tensor) in (torch.Tensor, torch.nn.Parameter) and not tensor.is_neg()


def wants_gradient(*tensors: torch.Tensor) -> bool:
    """True if autograd would record an op on one of the tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


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
    for op in implementation("cpp").DTYPES:  # the only back end with all ops
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


@cache
def _triton_missing() -> str | None:
    try:
        import_module("triton")
    except ImportError as error:
        return f"triton cannot be imported ({error}): install it with `pip install triton`"
    return None
