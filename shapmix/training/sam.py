"""Sharpness-aware minimization (SAM): a step follows the gradient at the worst weights nearby.

Source: Foret et al., ICLR 2021, algorithm 1; for long tails Rangwani et al., NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.utils import get_total_norm

from shapmix.training.step import with_gradient


@contextmanager
def moved_along_gradient(optimizer: torch.optim.Optimizer, rho: float) -> Iterator[None]:
    """Moves the optimizer's weights by a step of length `rho` along their gradient, together, and back exactly.

    Weights without a gradient stay. Nothing is read on the host.
    """
    weights = with_gradient(optimizer)
    before = [weight.detach().clone() for weight in weights]
    gradients = [weight.grad for weight in weights]
    norm = get_total_norm(gradients)
    with torch.no_grad():
        torch._foreach_add_(weights, torch._foreach_mul(gradients, rho / norm.clamp(min=torch.finfo(norm.dtype).tiny)))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(weights, before)
