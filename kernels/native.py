"""The CPU back end: C++ on raw addresses, on as many threads as torch uses."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from shapmix.reference import MixPlan

from .checks import dtype_name, set_strides

DTYPES = (torch.float32, torch.float64)


@cache
def load() -> tuple[ModuleType | None, str | None]:
    """The compiled module, or None and why it cannot be imported."""
    try:
        return import_module("shapmix._native"), None
    except ImportError as error:
        return None, f"shapmix._native cannot be imported ({error}): install shapmix again, with a C++ compiler on the PATH"


def unavailable(device: torch.device) -> str | None:
    """Why it cannot run on tensors of a device, None where it can."""
    if device.type != "cpu":
        return f"it works on CPU tensors, not on {device}"
    return load()[1]


def coalition_inputs(
    out: Tensor, clips: Tensor, mean_motion: Tensor, coalitions: Tensor, part_of_joint: Tensor, restored_frames: int
) -> None:
    """Writes `out` [S * N, C, T, V, M]; coalitions [S] or [S, N], 0 <= restored_frames <= T, planes [T, V, M] contiguous.

    Raises:
        ValueError: a coalition holds a bit that is no part's.
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
        torch.get_num_threads(),
    )


def mix_clips(out: Tensor, clips: Tensor, plan: MixPlan, part_of_joint: Tensor) -> None:
    """Writes `out` [2N, C, T, V, M]; the plan's fields and the planes [T, V, M] are contiguous.

    Raises:
        ValueError: a row of the plan points outside the batch, the clip or the parts.
    """
    _module().mix_clips(
        out.data_ptr(),
        clips.data_ptr(),
        clips.shape,
        clips.stride()[:2],
        plan_addresses(plan),
        part_of_joint.data_ptr(),
        dtype_name(clips.dtype),
        torch.get_num_threads(),
    )


def plan_addresses(plan: MixPlan) -> tuple[int, ...]:
    """The fields in the order the native modules read them."""
    return (
        plan.partner.data_ptr(),
        plan.parts.data_ptr(),
        plan.start.data_ptr(),
        plan.length.data_ptr(),
        plan.source_start.data_ptr(),
        plan.source_length.data_ptr(),
        plan.lam.data_ptr(),
        plan.blend.data_ptr(),
    )


def check_coalitions(coalitions: Tensor, part_of_joint: Tensor, shape: torch.Size) -> None:
    """What `coalition_inputs` checks, for the other back ends on CPU tensors.

    Raises:
        ValueError: as `coalition_inputs`.
    """
    if module := load()[0]:
        module.check_coalitions(coalitions.data_ptr(), len(coalitions), set_strides(coalitions), shape, part_of_joint.data_ptr())


def check_plan(plan: MixPlan, part_of_joint: Tensor, shape: torch.Size) -> None:
    """What `mix_clips` checks, for the other back ends on CPU tensors.

    Raises:
        ValueError: as `mix_clips`.
    """
    if module := load()[0]:
        module.check_plan(plan_addresses(plan), shape, part_of_joint.data_ptr())


def _module() -> ModuleType:
    module, reason = load()
    if module is None:
        raise ImportError(reason)
    return module
