"""Coalition inputs on the fastest back end."""

from __future__ import annotations

import torch
from torch import Tensor

from shapmix import reference

from . import native
from .checks import check_clips, check_out, check_tensor, with_whole_planes
from .dispatch import choose, implementation


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
        clips: [N, C, T, V, M] floating point. Planes [T, V, M] that are not contiguous are copied first.
        mean_motion: [C, T, V, M], same dtype.
        coalitions: int64 bit sets of parts (bit p = part p keeps the clip's motion): [S], shared by the batch, or
            [S, N], one a sample.
        part_of_joint: [V] int64.
        restored_frames: only frames before this one keep the clip's motion; None restores every frame.
        backend: one of `BACKENDS`; None takes SHAPMIX_BACKEND, else the fastest that can run.
        out: where to put the result, for loops that reuse a buffer.

    Returns:
        [S * N, C, T, V, M]: row s * N + n is sample n under its coalition s, bit-equal to the reference.

    Raises:
        TypeError: an argument's dtype.
        ValueError: an argument's shape or device; on CPU tensors also bits that are no part's.
        BackendError: the back end asked for cannot run.
    """
    check_clips(clips)
    device = clips.device
    n, *clip_shape = clips.shape
    check_tensor("mean_motion", mean_motion, tuple(clip_shape), clips.dtype, device)
    if coalitions.dim() not in (1, 2) or coalitions.shape[0] == 0:
        raise ValueError(f"coalitions has shape {list(coalitions.shape)}; give [S] or [S, {n}] with S at least 1")
    sets = coalitions.shape[0]
    check_tensor("coalitions", coalitions, (sets,) if coalitions.dim() == 1 else (sets, n), torch.int64, device)
    check_tensor("part_of_joint", part_of_joint, (clip_shape[2],), torch.int64, device)
    if out is not None:
        check_out(out, (sets * n, *clip_shape), clips)

    needs_grad = torch.is_grad_enabled() and (clips.requires_grad or mean_motion.requires_grad)
    chosen = choose("coalition_inputs", clips, backend, needs_grad)
    part_of_joint = part_of_joint.contiguous()
    if clips.is_cpu and chosen != "cpp" and not torch.compiler.is_compiling():
        native.check_coalitions(coalitions, part_of_joint, clips.shape)
    if chosen == "reference":
        result = reference.coalition_inputs(clips, mean_motion, coalitions, part_of_joint, restored_frames=restored_frames)
        return result if out is None else out.copy_(result)

    if out is None:
        out = clips.new_empty((sets * n, *clip_shape))
    frames = clip_shape[1]
    restored = frames if restored_frames is None else min(max(restored_frames, 0), frames)
    implementation(chosen).coalition_inputs(
        out, with_whole_planes(clips), with_whole_planes(mean_motion), coalitions, part_of_joint, restored
    )
    return out
