"""The end of CTR-GCN's temporal unit on the fastest back end."""

from __future__ import annotations

import torch
from torch import Tensor

from shapmix import reference

from .checks import DTYPES, check_dtype, check_tensor, sum_dtype
from .dispatch import by_registered_op, choose, run, wants_gradient
from .graph import CHANNELS_LAST, rows_of_channels


def join_branches(
    narrow: Tensor,
    wide: Tensor,
    middle: Tensor,
    skip: Tensor,
    scale: Tensor,
    offset: Tensor,
    *,
    frame_stride: int = 1,
    shortcut: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """relu([narrow, wide, max_pool(middle) * scale + offset, skip] + shortcut), the branches side by side, in one pass.

    For eval mode without gradient. Where a gradient is wanted, or torch must see what is done (torch.compile, tensor
    subclasses), it is the reference's few lines.

    Args:
        narrow, wide, skip: [N, Q, T', V], T' = ceil(T / frame_stride). They, `middle` and `shortcut` are copied where the
            channels of a joint do not lie together; slices of the channels of a channels-last tensor are taken as they are.
        middle: [N, Q, T, V], pooled over windows of three frames.
        scale, offset: [Q], float64 for float64 branches, else float32.
        frame_stride: frames from window to window.
        shortcut: [N, 4 Q, T', V], or None.
        backend: one of `BACKENDS`; None takes SHAPMIX_BACKEND, else the fastest that can run.

    Returns:
        [N, 4 Q, T', V] of the branches' type, in channels-last memory.

    Raises:
        TypeError: an argument's dtype.
        ValueError: an argument's shape or device.
        BackendError: the back end asked for cannot run.
    """
    given = [narrow, wide, middle, skip, scale, offset] + ([] if shortcut is None else [shortcut])
    if by_registered_op(*given) or wants_gradient(*given):
        return reference.join_branches(narrow, wide, middle, skip, scale, offset, frame_stride=frame_stride, shortcut=shortcut)
    check_dtype("middle", middle, DTYPES)
    if middle.dim() != 4 or middle.numel() == 0:
        raise ValueError(f"middle has shape {list(middle.shape)}; give [N, Q, T, V] with no axis empty")
    if frame_stride < 1:
        raise ValueError(f"frame_stride is {frame_stride}; give 1 or more")
    n, width, frames, joints = middle.shape
    after, device, dtype = -(-frames // frame_stride), middle.device, middle.dtype
    for name, value in (("narrow", narrow), ("wide", wide), ("skip", skip)):
        check_tensor(name, value, (n, width, after, joints), dtype, device, "middle")
    for name, value in (("scale", scale), ("offset", offset)):
        check_tensor(name, value, (width,), sum_dtype(dtype), device, "middle")
    if shortcut is not None:
        check_tensor("shortcut", shortcut, (n, 4 * width, after, joints), dtype, device, "middle")

    chosen = choose("join_branches", middle, backend)
    if chosen == "reference":
        return reference.join_branches(narrow, wide, middle, skip, scale, offset, frame_stride=frame_stride, shortcut=shortcut)
    out = torch.empty((n, 4 * width, after, joints), dtype=dtype, device=device, memory_format=CHANNELS_LAST)
    run(
        chosen,
        "join_branches",
        out,
        rows_of_channels(narrow),
        rows_of_channels(wide),
        rows_of_channels(middle),
        rows_of_channels(skip),
        None if shortcut is None else rows_of_channels(shortcut),
        scale.contiguous(),
        offset.contiguous(),
        frame_stride,
    )
    return out
