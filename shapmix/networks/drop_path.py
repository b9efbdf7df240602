"""Stochastic depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """In training, rows [N, ...] of a residual branch are zero with probability `share`, and the others divided by 1 - `share`.

    In eval mode the branch is unchanged. Draws are of torch's generator.
    Source: Huang et al., Deep Networks with Stochastic Depth, ECCV 2016, with the factor in training instead of in the test.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, y: Tensor) -> Tensor:
        """[N, ...] of the same shape."""
        if not self.training:
            return y
        kept = torch.rand(len(y), device=y.device) >= self.share
        return y * (kept / (1 - self.share)).to(y.dtype).view(-1, *(1,) * (y.dim() - 1))
