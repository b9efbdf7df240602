"""Coalition inputs on the fastest back end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shapmix import reference
from shapmix.reference.coalition import CoalitionClips

from .checks import as_given, check_clips, check_tensor, in_planes, new_output
from .op import Gradient, op


def _backward(grad: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
    """[S * N, C, T, V, M] -> gradients of the clips [N, C, T, V, M] and of the mean motion [C, T, V, M]."""
    grad = grad.view(len(saved.coalitions), -1, *grad.shape[1:])
    keep = reference.coalition.kept(saved.coalitions, saved.part_of_joint, grad.shape[3], saved.restored_frames)
    return torch.where(keep, grad, 0).sum(0), torch.where(keep, 0, grad).sum((0, 1))


@op(
    reference=reference.coalition_inputs,
    layouts={"clips": in_planes, "mean_motion": in_planes, "coalitions": as_given},
    check_values="check_coalitions",
    gradient=Gradient(of=("clips", "mean_motion"), saves=("coalitions", "part_of_joint"), backward=_backward),
)
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
    check_clips(clips)
    n, device = len(clips), clips.device
    check_tensor("mean_motion", mean_motion, clips.shape[1:], clips.dtype, device)
    if coalitions.dim() not in (1, 2) or coalitions.shape[0] == 0:
        raise ValueError(f"coalitions has shape {list(coalitions.shape)}; give [S] or [S, {n}] with S at least 1")
    sets = coalitions.shape[0]
    check_tensor("coalitions", coalitions, (sets,) if coalitions.dim() == 1 else (sets, n), torch.int64, device)
    check_tensor("part_of_joint", part_of_joint, (clips.shape[3],), torch.int64, device)
    return new_output(out, (len(coalitions) * len(clips), *clips.shape[1:]), clips)


def expanded(rows: CoalitionClips, *, backend: str | None = None) -> Tensor:
    """The rows [L, C, T, V, M] of clips under coalitions, by `coalition_inputs`, whose errors it raises."""
    own, sets = rows.clips[rows.samples], rows.coalitions[None]
    restored = rows.restored_frames
    return coalition_inputs(own, rows.mean_motion, sets, rows.part_of_joint, restored_frames=restored, backend=backend)
