"""Coalition inputs on the fastest back end: as clips, and as the normalised rows that a graph network's first layer reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shapmix import reference

from . import native
from .checks import check_clips, check_no_overlap, check_out, check_tensor, mark_written, with_contiguous_planes
from .dispatch import choose, needs_registered_op, run, wants_gradient


def coalition_inputs(
    clips: Tensor,
    mean_motion: Tensor,
    coalitions: Tensor,
    part_of_joint: Tensor,
    *,
    restored_frames: int | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Clips with the parts outside each coalition replaced by the mean motion.

    Args:
        clips: [N, C, T, V, M] floating point. Non-contiguous planes [T, V, M] are copied first.
        mean_motion: [C, T, V, M], same dtype.
        coalitions: int64 bit sets of parts (bit p set: part p keeps the clip's motion): [S], shared by the batch, or
            [S, N], one per sample.
        part_of_joint: [V] int64.
        restored_frames: only frames before this index keep the clip's motion; None keeps all frames.
        backend: one of `BACKENDS`; None reads SHAPMIX_BACKEND, which defaults to the fastest available.
        out: output buffer, for loops that reuse one; disables gradients.

    Returns:
        [S * N, C, T, V, M]: row s * N + n is sample n under its coalition s, bit-equal to the reference.

    Raises:
        TypeError: an argument has the wrong dtype.
        ValueError: an argument has the wrong shape or device; on CPU tensors also if a bit set has bits beyond the parts.
        BackendError: the requested back end cannot run.
    """
    arguments = (clips, mean_motion, coalitions, part_of_joint, restored_frames, backend)
    if not needs_registered_op(*arguments[:4], out) and (out is not None or not wants_gradient(clips, mean_motion)):
        return _expand(*arguments, out)
    if out is None:
        return torch.ops.shapmix.coalition_inputs(*arguments)
    check_out(out, (len(coalitions) * len(clips), *clips.shape[1:]), clips)
    with torch.no_grad():
        return out.copy_(torch.ops.shapmix.coalition_inputs(*arguments))


def _expand(
    clips: Tensor,
    mean_motion: Tensor,
    coalitions: Tensor,
    part_of_joint: Tensor,
    restored_frames: int | None,
    backend: str | None,
    out: Tensor | None = None,
) -> Tensor:
    _check(clips, mean_motion, coalitions, part_of_joint)
    shape = (len(coalitions) * len(clips), *clips.shape[1:])
    if out is not None:
        check_out(out, shape, clips)
        check_no_overlap("out", out, clips=clips, mean_motion=mean_motion, coalitions=coalitions, part_of_joint=part_of_joint)

    chosen = choose("coalition_inputs", clips, backend)
    part_of_joint = part_of_joint.contiguous()
    if clips.is_cpu and chosen != "cpp":
        native.check_coalitions(coalitions, part_of_joint, clips.shape)
    if chosen == "reference":
        with torch.no_grad():
            result = reference.coalition_inputs(clips, mean_motion, coalitions, part_of_joint, restored_frames=restored_frames)
            return result if out is None else out.copy_(result)

    to = clips.new_empty(shape) if out is None else out
    run(
        chosen,
        "coalition_inputs",
        to,
        with_contiguous_planes(clips),
        with_contiguous_planes(mean_motion),
        coalitions,
        part_of_joint,
        _restored(restored_frames, clips.shape[2]),
    )
    return to if out is None else mark_written(out)


def normalised_coalition_inputs(
    clips: Tensor,
    mean_motion: Tensor,
    coalitions: Tensor,
    part_of_joint: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    restored_frames: int | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Coalition inputs as the first layer of a graph network reads them: normalised, one row per person, fused into one write.

    Args:
        clips, mean_motion, coalitions, part_of_joint, restored_frames, backend, out: as in `coalition_inputs`.
        weight, bias: [M, V, C] in the clips' dtype: the input normalisation in eval mode, x * weight + bias.

    Returns:
        [S * N * M, C, T, V]: row (s * N + n) * M + m is person m of sample n under its coalition s. Product and sum are
        rounded separately (no FMA), so the result is bit-equal to the reference.

    Raises:
        TypeError, ValueError, BackendError: as in `coalition_inputs`.
    """
    arguments = (clips, mean_motion, coalitions, part_of_joint, weight, bias, restored_frames, backend)
    recorded = out is None and wants_gradient(clips, mean_motion, weight, bias)
    if not needs_registered_op(*arguments[:6], out) and not recorded:
        return _expand_normalised(*arguments, out)
    if out is None:
        return torch.ops.shapmix.normalised_coalition_inputs(*arguments)
    n, channels, frames, joints, people = clips.shape
    check_out(out, (len(coalitions) * n * people, channels, frames, joints), clips)
    with torch.no_grad():
        return out.copy_(torch.ops.shapmix.normalised_coalition_inputs(*arguments))


def _expand_normalised(
    clips: Tensor,
    mean_motion: Tensor,
    coalitions: Tensor,
    part_of_joint: Tensor,
    weight: Tensor,
    bias: Tensor,
    restored_frames: int | None,
    backend: str | None,
    out: Tensor | None = None,
) -> Tensor:
    _check(clips, mean_motion, coalitions, part_of_joint)
    n, channels, frames, joints, people = clips.shape
    for name, value in (("weight", weight), ("bias", bias)):
        check_tensor(name, value, (people, joints, channels), clips.dtype, clips.device)
    shape = (len(coalitions) * n * people, channels, frames, joints)
    if out is not None:
        check_out(out, shape, clips)
        check_no_overlap("out", out, clips=clips, mean_motion=mean_motion, coalitions=coalitions, part_of_joint=part_of_joint)
        check_no_overlap("out", out, weight=weight, bias=bias)

    chosen = choose("normalised_coalition_inputs", clips, backend)
    part_of_joint = part_of_joint.contiguous()
    if clips.is_cpu and chosen != "cpp":
        native.check_coalitions(coalitions, part_of_joint, clips.shape)
    if chosen == "reference":
        with torch.no_grad():
            result = reference.normalised_coalition_inputs(
                clips, mean_motion, coalitions, part_of_joint, weight, bias, restored_frames=restored_frames
            )
            return result if out is None else out.copy_(result)

    to = clips.new_empty(shape) if out is None else out
    run(
        chosen,
        "normalised_coalition_inputs",
        to,
        with_contiguous_planes(clips),
        with_contiguous_planes(mean_motion),
        coalitions,
        part_of_joint,
        weight.contiguous(),
        bias.contiguous(),
        _restored(restored_frames, frames),
    )
    return to if out is None else mark_written(out)


def _check(clips: Tensor, mean_motion: Tensor, coalitions: Tensor, part_of_joint: Tensor) -> None:
    check_clips(clips)
    n, device = len(clips), clips.device
    check_tensor("mean_motion", mean_motion, clips.shape[1:], clips.dtype, device)
    if coalitions.dim() not in (1, 2) or coalitions.shape[0] == 0:
        raise ValueError(f"coalitions has shape {list(coalitions.shape)}; give [S] or [S, {n}] with S at least 1")
    sets = coalitions.shape[0]
    check_tensor("coalitions", coalitions, (sets,) if coalitions.dim() == 1 else (sets, n), torch.int64, device)
    check_tensor("part_of_joint", part_of_joint, (clips.shape[3],), torch.int64, device)


def _restored(restored_frames: int | None, frames: int) -> int:
    return frames if restored_frames is None else min(max(restored_frames, 0), frames)


# The same ops for autograd and torch.compile.


@torch.library.custom_op(
    "shapmix::coalition_inputs",
    mutates_args=(),
    schema="(Tensor clips, Tensor mean_motion, Tensor coalitions, Tensor part_of_joint, SymInt? restored_frames, "
    "str? backend) -> Tensor",
)
def _coalition_inputs(
    clips: Tensor,
    mean_motion: Tensor,
    coalitions: Tensor,
    part_of_joint: Tensor,
    restored_frames: int | None,
    backend: str | None,
) -> Tensor:
    return _expand(clips, mean_motion, coalitions, part_of_joint, restored_frames, backend)


@_coalition_inputs.register_fake
def _(
    clips: Tensor,
    mean_motion: Tensor,
    coalitions: Tensor,
    part_of_joint: Tensor,
    restored_frames: int | None,
    backend: str | None,
) -> Tensor:
    return clips.new_empty((len(coalitions) * len(clips), *clips.shape[1:]))


@torch.library.custom_op(
    "shapmix::normalised_coalition_inputs",
    mutates_args=(),
    schema="(Tensor clips, Tensor mean_motion, Tensor coalitions, Tensor part_of_joint, Tensor weight, Tensor bias, "
    "SymInt? restored_frames, str? backend) -> Tensor",
)
def _normalised_coalition_inputs(
    clips: Tensor,
    mean_motion: Tensor,
    coalitions: Tensor,
    part_of_joint: Tensor,
    weight: Tensor,
    bias: Tensor,
    restored_frames: int | None,
    backend: str | None,
) -> Tensor:
    return _expand_normalised(clips, mean_motion, coalitions, part_of_joint, weight, bias, restored_frames, backend)


@_normalised_coalition_inputs.register_fake
def _(
    clips: Tensor,
    mean_motion: Tensor,
    coalitions: Tensor,
    part_of_joint: Tensor,
    weight: Tensor,
    bias: Tensor,
    restored_frames: int | None,
    backend: str | None,
) -> Tensor:
    n, channels, frames, joints, people = clips.shape
    return clips.new_empty((len(coalitions) * n * people, channels, frames, joints))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    clips, mean_motion, coalitions, part_of_joint, *norm, restored_frames, _ = inputs
    ctx.restored_frames = restored_frames
    ctx.save_for_backward(clips, mean_motion, coalitions, part_of_joint, *norm)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    clips, _, coalitions, part_of_joint = ctx.saved_tensors
    to_clips, to_mean = _to_clips_and_mean(grad.view(-1, *clips.shape), coalitions, part_of_joint, ctx.restored_frames)
    return to_clips, to_mean, None, None, None, None


def _normalised_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    clips, mean_motion, coalitions, part_of_joint, weight, _ = ctx.saved_tensors
    n, channels, frames, joints, people = clips.shape
    by_person = grad.view(-1, people, channels, frames, joints)  # [S N, M, C, T, V]
    expanded = reference.coalition_inputs(clips, mean_motion, coalitions, part_of_joint, restored_frames=ctx.restored_frames)
    to_weight = (by_person * expanded.permute(0, 4, 1, 2, 3)).sum((0, 3)).transpose(1, 2)  # [M, V, C]
    to_bias = by_person.sum((0, 3)).transpose(1, 2)
    unscaled = (by_person * weight.transpose(1, 2)[:, :, None]).permute(0, 2, 3, 4, 1)  # [S N, C, T, V, M]
    unscaled = unscaled.reshape(-1, n, channels, frames, joints, people)
    to_clips, to_mean = _to_clips_and_mean(unscaled, coalitions, part_of_joint, ctx.restored_frames)
    return to_clips, to_mean, None, None, to_weight, to_bias, None, None


def _to_clips_and_mean(
    grad: Tensor, coalitions: Tensor, part_of_joint: Tensor, restored_frames: int | None
) -> tuple[Tensor, Tensor]:
    """[S, N, C, T, V, M] -> gradients of the clips [N, C, T, V, M] and of the mean motion [C, T, V, M]."""
    keep = reference.coalition.kept(coalitions, part_of_joint, grad.shape[3], restored_frames)
    return torch.where(keep, grad, 0).sum(0), torch.where(keep, 0, grad).sum((0, 1))


_coalition_inputs.register_autograd(_backward, setup_context=_save)
_normalised_coalition_inputs.register_autograd(_normalised_backward, setup_context=_save)
