"""Mixing clips on the fastest back end."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from shapmix import reference
from shapmix.reference import MixPlan
from shapmix.reference.mix import replaced, source_frames

from . import native
from .checks import check_apart, check_clips, check_out, check_tensor, with_whole_planes, written_to
from .dispatch import by_registered_op, choose, run, wants_gradient

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
        out: where to put the result, for loops that reuse a buffer; no gradient flows then.

    Returns:
        [2N, C, T, V, M]: the clips, then the mixed clips, bit-equal to the reference.

    Raises:
        TypeError: an argument's dtype.
        ValueError: an argument's shape or device; on CPU tensors also a row of the plan that points outside.
        BackendError: the back end asked for cannot run.
    """
    columns = [getattr(plan, name) for name in _FIELDS]
    if not by_registered_op(clips, *columns, part_of_joint, out) and (out is not None or not wants_gradient(clips)):
        return _mix(clips, plan, part_of_joint, backend, out)
    if out is None:
        return torch.ops.shapmix.mix_clips(clips, *columns, part_of_joint, backend)
    check_out(out, (2 * len(clips), *clips.shape[1:]), clips)
    with torch.no_grad():
        return out.copy_(torch.ops.shapmix.mix_clips(clips, *columns, part_of_joint, backend))


def _mix(clips: Tensor, plan: MixPlan, part_of_joint: Tensor, backend: str | None, out: Tensor | None = None) -> Tensor:
    check_clips(clips)
    device = clips.device
    n, *clip_shape = clips.shape
    for name, label, dtype in _COLUMNS:
        check_tensor(label, getattr(plan, name), (n,), dtype, device)
    check_tensor("part_of_joint", part_of_joint, (clip_shape[2],), torch.int64, device)
    if out is not None:
        check_out(out, (2 * n, *clip_shape), clips)
        check_apart("out", out, clips=clips, part_of_joint=part_of_joint, **vars(plan))

    chosen = choose("mix_clips", clips, backend)
    plan, part_of_joint = _contiguous(plan), part_of_joint.contiguous()
    if clips.is_cpu and chosen != "cpp":
        native.check_plan(plan, part_of_joint, clips.shape)
    if chosen == "reference":
        with torch.no_grad():
            result = reference.mix_clips(clips, plan, part_of_joint)
            return result if out is None else out.copy_(result)

    to = clips.new_empty((2 * n, *clip_shape)) if out is None else out
    run(chosen, "mix_clips", to, with_whole_planes(clips), plan, part_of_joint)
    return to if out is None else written_to(out)


def _contiguous(plan: MixPlan) -> MixPlan:
    """The plan itself where every field is contiguous, as planners make it."""
    if all(getattr(plan, name).is_contiguous() for name in _FIELDS):
        return plan
    return MixPlan(*(getattr(plan, name).contiguous() for name in _FIELDS))


# The same op for autograd and torch.compile, the plan's fields one by one.


@torch.library.custom_op(
    "shapmix::mix_clips",
    mutates_args=(),
    schema="(Tensor clips, Tensor partner, Tensor parts, Tensor start, Tensor length, Tensor source_start, "
    "Tensor source_length, Tensor lam, Tensor blend, Tensor part_of_joint, str? backend) -> Tensor",
)
def _mix_clips(clips: Tensor, *columns: Any) -> Tensor:
    *plan, part_of_joint, backend = columns
    return _mix(clips, MixPlan(*plan), part_of_joint, backend)


@_mix_clips.register_fake
def _(clips: Tensor, *_columns: Any) -> Tensor:
    return clips.new_empty((2 * len(clips), *clips.shape[1:]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    clips, *columns, _ = inputs
    ctx.dtype = clips.dtype
    ctx.save_for_backward(*columns)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *columns, part_of_joint = ctx.saved_tensors
    plan = MixPlan(*columns)
    n, num_frames = len(grad) // 2, grad.shape[2]
    clean, mixed = grad[:n], grad[n:]
    by_sample = (n, 1, 1, 1, 1)
    paste = replaced(plan, part_of_joint, num_frames) & ~plan.blend.view(by_sample)
    keep, take = ((share.to(ctx.dtype) * plan.blend).view(by_sample) for share in (1 - plan.lam, plan.lam))
    own = torch.where(plan.blend.view(by_sample), mixed * keep, mixed.masked_fill(paste, 0))

    # To the partners, frame by frame; index_put_ adds in a fixed order where samples or frames repeat.
    to_source = torch.where(paste, mixed, 0) + mixed * take
    frame = torch.arange(num_frames, device=grad.device)
    source = torch.where(plan.blend[:, None], frame, source_frames(plan, num_frames, ctx.dtype))
    theirs = torch.zeros_like(clean.transpose(1, 2), memory_format=torch.contiguous_format)
    theirs = theirs.index_put((plan.partner[:, None], source), to_source.transpose(1, 2), accumulate=True)
    return (clean + own + theirs.transpose(1, 2), *(None,) * 10)


_mix_clips.register_autograd(_backward, setup_context=_save)
