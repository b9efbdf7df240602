"""The order of training: which clips are in which batch, as a function of (seed, epoch) alone.

Every process draws the global batch and computes its own rows of it, so the clips of a step do not depend on the number of
processes, and a run goes on at any batch of any epoch without a saved state.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def epoch_order(clips: Tensor, seed: int, epoch: int) -> Tensor:
    """The clips (indices [N]) in the order of one epoch."""
    return clips[torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(clips)))]


def epoch_batches(clips: Tensor, batch_size: int, seed: int, epoch: int, *, first: int = 0) -> Iterator[Tensor]:
    """Global batches of one epoch from batch `first` on; a last, smaller batch is left out."""
    order = epoch_order(clips, seed, epoch)
    for begin in range(first * batch_size, len(order) - batch_size + 1, batch_size):
        yield order[begin : begin + batch_size]


def passes(batch_size: int, rank: int, ranks: int, accumulate: int) -> list[Tensor]:
    """Rows [n] of the global batch that a process forwards together, one tensor a pass.

    Over all processes and passes every row comes exactly once, and all passes have as many.

    Raises:
        ValueError: the batch does not divide.
    """
    size, rest = divmod(batch_size, ranks * accumulate)
    if rest:
        raise ValueError(f"batch_size {batch_size} does not divide into {ranks} processes with {accumulate} passes each")
    begin = rank * accumulate * size
    return [torch.arange(begin + number * size, begin + (number + 1) * size) for number in range(accumulate)]
