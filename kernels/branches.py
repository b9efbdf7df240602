"""The fused epilogue of CTR-GCN's temporal unit, on the fastest back end."""

from __future__ import annotations

import torch
from torch import Tensor

from shapmix import reference

from .checks import DTYPES, check_dtype, check_tensor, in_rows, sum_dtype
from .op import op

_LAYOUTS = dict.fromkeys(("narrow", "wide", "middle", "skip", "shortcut"), in_rows)


@op(reference=reference.join_branches, layouts=_LAYOUTS, chosen_by="middle", traced_reference=True)
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
    """relu([narrow, wide, max_pool(middle) * scale + offset, skip] + shortcut), branches concatenated along channels, in one pass.

    Fused for eval mode without gradients. If a gradient is required, or if torch must trace the call (torch.compile, tensor
    subclasses), the eager reference runs instead.

    Args:
        narrow, wide, skip: [N, Q, T', V], T' = ceil(T / frame_stride). They, `middle` and `shortcut` are copied if the
            channels of a joint are not contiguous; channel slices of a channels-last tensor are used without a copy.
        middle: [N, Q, T, V], pooled over windows of three frames.
        scale, offset: [Q], float64 for float64 branches, else float32.
        frame_stride: stride of the pooling windows, in frames.
        shortcut: [N, 4 Q, T', V], or None.
        backend: one of `BACKENDS`; None reads SHAPMIX_BACKEND, which defaults to the fastest available.

    Returns:
        [N, 4 Q, T', V] in the branches' dtype, in channels-last memory.

    Raises:
        TypeError: an argument has the wrong dtype.
        ValueError: an argument has the wrong shape or device.
        BackendError: the requested back end cannot run.
    """
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

    return torch.empty((n, 4 * width, after, joints), dtype=dtype, device=device, memory_format=torch.channels_last)
