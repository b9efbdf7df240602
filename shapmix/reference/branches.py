"""Concatenation of the branches of CTR-GCN's temporal unit."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d


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
) -> Tensor:
    """relu(concat(narrow, wide, max_pool(middle) * scale + offset, skip) + shortcut).

    Args:
        narrow, wide, skip: [N, Q, T', V], T' = ceil(T / frame_stride).
        middle: [N, Q, T, V], max-pooled over windows of three frames.
        scale, offset: [Q], float64 for float64 branches, else float32.
        frame_stride: stride of the pooling in frames.
        shortcut: [N, 4 Q, T', V], or None.

    Returns:
        [N, 4 Q, T', V] with the dtype of the branches.

    Source: Chen et al., ICCV 2021, in eval mode; fixtures `ctrgcn_*`.
    """
    pooled = max_pool2d(middle, (3, 1), (frame_stride, 1), (1, 0)).to(scale.dtype)
    pooled = pooled * scale[:, None, None] + offset[:, None, None]
    y = torch.cat([narrow.to(scale.dtype), wide.to(scale.dtype), pooled, skip.to(scale.dtype)], 1)
    return torch.relu(y if shortcut is None else y + shortcut).to(middle.dtype)
