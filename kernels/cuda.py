"""The CUDA back end: compiled kernels called with raw pointers, launched on the caller's current stream."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from shapmix.reference import MixPlan

from .checks import DTYPES as ALL_DTYPES
from .checks import dtype_name, set_strides
from .native import plan_addresses

DTYPES = {"coalition_inputs": ALL_DTYPES, "normalised_coalition_inputs": ALL_DTYPES, "mix_clips": ALL_DTYPES}


@cache
def load() -> tuple[ModuleType | None, str | None]:
    """The compiled module, or None and the reason why it cannot be imported."""
    try:
        return import_module("shapmix._native_cuda"), None
    except ImportError as error:
        remedy = "reinstall shapmix with SHAPMIX_CUDA=1 and nvcc on the PATH"
        return None, f"shapmix._native_cuda cannot be imported ({error}): {remedy}"


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


def coalition_inputs(
    out: Tensor, clips: Tensor, mean_motion: Tensor, coalitions: Tensor, part_of_joint: Tensor, restored_frames: int
) -> None:
    """Writes `out` [S * N, C, T, V, M]; coalitions [S] or [S, N], 0 <= restored_frames <= T, planes [T, V, M] contiguous.

    Values are not checked, since that would synchronise with the host: `part_of_joint` must be in 0..62.
    """
    _module().coalition_inputs(
        out.data_ptr(),
        clips.data_ptr(),
        clips.shape,
        clips.stride()[:2],
        mean_motion.data_ptr(),
        mean_motion.stride(0),
        coalitions.data_ptr(),
        coalitions.shape[0],
        set_strides(coalitions),
        part_of_joint.data_ptr(),
        restored_frames,
        clips.element_size(),
        clips.device.index,
        torch.cuda.current_stream(clips.device).cuda_stream,
    )


def normalised_coalition_inputs(
    out: Tensor,
    clips: Tensor,
    mean_motion: Tensor,
    coalitions: Tensor,
    part_of_joint: Tensor,
    weight: Tensor,
    bias: Tensor,
    restored_frames: int,
) -> None:
    """Writes `out` [S * N * M, C, T, V]; weight and bias [M, V, C] contiguous, the rest as in `coalition_inputs`."""
    _module().normalised_coalition_inputs(
        out.data_ptr(),
        clips.data_ptr(),
        clips.shape,
        clips.stride()[:2],
        mean_motion.data_ptr(),
        mean_motion.stride(0),
        coalitions.data_ptr(),
        coalitions.shape[0],
        set_strides(coalitions),
        part_of_joint.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        restored_frames,
        clips.element_size(),
        dtype_name(clips.dtype),
        clips.device.index,
        torch.cuda.current_stream(clips.device).cuda_stream,
    )


def mix_clips(out: Tensor, clips: Tensor, plan: MixPlan, part_of_joint: Tensor) -> None:
    """Writes `out` [2N, C, T, V, M]; the plan's fields and the planes [T, V, M] are contiguous.

    Values are not checked, since that would synchronise with the host: partners must be in 0..N-1 and both windows inside
    0..T with lengths of at least 1; otherwise the kernel reads out of bounds.
    """
    _module().mix_clips(
        out.data_ptr(),
        clips.data_ptr(),
        clips.shape,
        clips.stride()[:2],
        plan_addresses(plan),
        part_of_joint.data_ptr(),
        dtype_name(clips.dtype),
        clips.device.index,
        torch.cuda.current_stream(clips.device).cuda_stream,
    )


def _module() -> ModuleType:
    module, reason = load()
    if module is None:
        raise ImportError(reason)
    return module
