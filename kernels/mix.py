"""Mixing clips on the fastest back end."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from shapmix import reference
from shapmix.reference import MixPlan

from . import native
from .checks import check_clips, check_out, check_tensor, with_whole_planes
from .dispatch import choose, implementation

_FIELDS = tuple(field.name for field in fields(MixPlan))
_FIELD_DTYPES = {"lam": torch.float64, "blend": torch.bool}
_COLUMNS = tuple((name, f"plan.{name}", _FIELD_DTYPES.get(name, torch.int64)) for name in _FIELDS)


def mix_clips(
    clips: Tensor, plan: MixPlan, part_of_joint: Tensor, *, backend: str | None = None, out: Tensor | None = None
) -> Tensor:
    """The training batch [clean; mixed].

    Args:
        clips: [N, C, T, V, M] floating point. Planes [T, V, M] that are not contiguous are copied first.
        plan: one row a sample, on the clips' device. On CPU tensors its values are checked; elsewhere they must be as
            `MixPlan` says: partners in 0..N-1, windows inside the clip, lengths of at least 1.
        part_of_joint: [V] int64.
        backend: one of `BACKENDS`; None takes SHAPMIX_BACKEND, else the fastest that can run.
        out: where to put the result, for loops that reuse a buffer.

    Returns:
        [2N, C, T, V, M]: the clips, then the mixed clips, bit-equal to the reference.

    Raises:
        TypeError: an argument's dtype.
        ValueError: an argument's shape or device; on CPU tensors also a row of the plan that points outside.
        BackendError: the back end asked for cannot run.
    """
    check_clips(clips)
    device = clips.device
    n, *clip_shape = clips.shape
    for name, label, dtype in _COLUMNS:
        check_tensor(label, getattr(plan, name), (n,), dtype, device)
    check_tensor("part_of_joint", part_of_joint, (clip_shape[2],), torch.int64, device)
    if out is not None:
        check_out(out, (2 * n, *clip_shape), clips)

    chosen = choose("mix_clips", clips, backend, torch.is_grad_enabled() and clips.requires_grad)
    plan, part_of_joint = _contiguous(plan), part_of_joint.contiguous()
    if clips.is_cpu and chosen != "cpp" and not torch.compiler.is_compiling():
        native.check_plan(plan, part_of_joint, clips.shape)
    if chosen == "reference":
        result = reference.mix_clips(clips, plan, part_of_joint)
        return result if out is None else out.copy_(result)

    if out is None:
        out = clips.new_empty((2 * n, *clip_shape))
    implementation(chosen).mix_clips(out, with_whole_planes(clips), plan, part_of_joint)
    return out


def _contiguous(plan: MixPlan) -> MixPlan:
    """The plan itself where every field is contiguous, as planners make it."""
    if all(getattr(plan, name).is_contiguous() for name in _FIELDS):
        return plan
    return MixPlan(*(getattr(plan, name).contiguous() for name in _FIELDS))
