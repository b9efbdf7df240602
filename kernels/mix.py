"""Mixing clips, on the fastest back end."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from shapmix import reference
from shapmix.reference import MixPlan
from shapmix.reference.mix import replaced, source_frames

from .checks import check_clips, check_tensor, in_planes, new_output
from .op import Gradient, op

_FIELD_DTYPES = {"lam": torch.float64, "blend": torch.bool}
_COLUMNS = tuple((field.name, f"plan.{field.name}", _FIELD_DTYPES.get(field.name, torch.int64)) for field in fields(MixPlan))


def _backward(grad: Tensor, saved: Any) -> tuple[Tensor]:
    plan = saved.plan
    n, num_frames = len(grad) // 2, grad.shape[2]
    clean, mixed = grad[:n], grad[n:]
    by_sample = (n, 1, 1, 1, 1)
    paste = replaced(plan, saved.part_of_joint, num_frames) & ~plan.blend.view(by_sample)
    keep, take = ((share.to(grad.dtype) * plan.blend).view(by_sample) for share in (1 - plan.lam, plan.lam))
    own = torch.where(plan.blend.view(by_sample), mixed * keep, mixed.masked_fill(paste, 0))

    # Scatter to the partners' frames; index_put accumulates in a fixed order if samples or frames repeat.
    to_source = torch.where(paste, mixed, 0) + mixed * take
    frame = torch.arange(num_frames, device=grad.device)
    source = torch.where(plan.blend[:, None], frame, source_frames(plan, num_frames, grad.dtype))
    theirs = torch.zeros_like(clean.transpose(1, 2), memory_format=torch.contiguous_format)
    theirs = theirs.index_put((plan.partner[:, None], source), to_source.transpose(1, 2), accumulate=True)
    return (clean + own + theirs.transpose(1, 2),)


@op(
    reference=reference.mix_clips,
    layouts={"clips": in_planes},
    check_values="check_plan",
    gradient=Gradient(of=("clips",), saves=("plan", "part_of_joint"), backward=_backward),
)
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
    check_clips(clips)
    n, *clip_shape = clips.shape
    for name, label, dtype in _COLUMNS:
        check_tensor(label, getattr(plan, name), (n,), dtype, clips.device)
    check_tensor("part_of_joint", part_of_joint, (clip_shape[2],), torch.int64, clips.device)
    return new_output(out, (2 * n, *clip_shape), clips)
