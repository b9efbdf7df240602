"""Mixing clips, on the fastest back end."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from shapmix import reference
from shapmix.reference import MixPlan
from shapmix.reference.mix import replaced, source_frames

from . import native
from .checks import check_clips, check_no_overlap, check_out, check_tensor, mark_written, with_contiguous_planes
from .dispatch import choose, needs_registered_op, run, wants_gradient

_FIELDS = tuple(field.name for field in fields(MixPlan))
_FIELD_DTYPES = {"lam": torch.float64, "blend": torch.bool}
_COLUMNS = tuple((name, f"plan.{name}", _FIELD_DTYPES.get(name, torch.int64)) for name in _FIELDS)


def mix_clips(
    clips: Tensor, plan: MixPlan, part_of_joint: Tensor, *, backend: str | None = None, out: Tensor | None = None
) -> Tensor:
    """The training batch [clean; mixed].

    Args:
        clips: [N, C, T, V, M] floating point. Non-contiguous planes [T, V, M] are copied first.
        plan: one row per sample, on the device of the clips. Its values are checked on CPU tensors only; elsewhere they must
            satisfy `MixPlan`: partners in 0..N-1, windows inside the clip, lengths of at least 1.
        part_of_joint: [V] int64.
        backend: one of `BACKENDS`; None reads SHAPMIX_BACKEND, which defaults to the fastest available.
        out: output buffer, for loops that reuse one; disables gradients.

    Returns:
        [2N, C, T, V, M]: the clips, then the mixed clips, bit-equal to the reference.

    Raises:
        TypeError: an argument has the wrong dtype.
        ValueError: an argument has the wrong shape or device; on CPU tensors also if a plan row is out of range.
        BackendError: the requested back end cannot run.
    """
    columns = [getattr(plan, name) for name in _FIELDS]
    if not needs_registered_op(clips, *columns, part_of_joint, out) and (out is not None or not wants_gradient(clips)):
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
        check_no_overlap("out", out, clips=clips, part_of_joint=part_of_joint, **vars(plan))

    chosen = choose("mix_clips", clips, backend)
    plan, part_of_joint = _contiguous(plan), part_of_joint.contiguous()
    if clips.is_cpu and chosen != "cpp":
        native.check_plan(plan, part_of_joint, clips.shape)
    if chosen == "reference":
        with torch.no_grad():
            result = reference.mix_clips(clips, plan, part_of_joint)
            return result if out is None else out.copy_(result)

    to = clips.new_empty((2 * n, *clip_shape)) if out is None else out
    run(chosen, "mix_clips", to, with_contiguous_planes(clips), plan, part_of_joint)
    return to if out is None else mark_written(out)


def _contiguous(plan: MixPlan) -> MixPlan:
    """The plan with contiguous fields; the plan itself if they already are, as those of `draw_plan`."""
    if all(getattr(plan, name).is_contiguous() for name in _FIELDS):
        return plan
    return MixPlan(*(getattr(plan, name).contiguous() for name in _FIELDS))


# The same op for autograd and torch.compile, with the plan flattened into its fields.


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

    # Scatter to the partners' frames; index_put accumulates in a fixed order if samples or frames repeat.
    to_source = torch.where(paste, mixed, 0) + mixed * take
    frame = torch.arange(num_frames, device=grad.device)
    source = torch.where(plan.blend[:, None], frame, source_frames(plan, num_frames, ctx.dtype))
    theirs = torch.zeros_like(clean.transpose(1, 2), memory_format=torch.contiguous_format)
    theirs = theirs.index_put((plan.partner[:, None], source), to_source.transpose(1, 2), accumulate=True)
    return (clean + own + theirs.transpose(1, 2), *(None,) * 10)


_mix_clips.register_autograd(_backward, setup_context=_save)
