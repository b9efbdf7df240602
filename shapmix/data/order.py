"""Order of the training clips: the clips of each batch are a function of (seed, epoch) only.

Every process draws the global batch and computes its own rows, so the clips of a step do not depend on the number of processes,
and a run resumes at any batch of any epoch without saved sampler state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Sampler = Literal["instance", "square_root", "class_balanced", "tail_repeat"]


def epoch_order(clips: Tensor, seed: int, epoch: int, *, labels: Tensor | None = None, sampler: Sampler = "instance") -> Tensor:
    """The clips (indices [N]) in the order of one epoch.

    Args:
        clips: indices [N].
        seed, epoch: decide every draw.
        labels: [N] classes of the clips; every sampler but `instance` goes by them.
        sampler: instance, every clip once. square_root and class_balanced, N draws with replacement, a class with a probability
            that goes by the square root of its clips, or with the same for all (Kang et al., ICLR 2020, section 3). tail_repeat,
            every clip of a class of n clips sqrt(mean n / n) times, rounded, but at least once (after the repeat factors of
            Gupta et al., CVPR 2019): no clip is left out.

    Returns:
        [N] indices; more with `tail_repeat`, as many in each epoch.
    """
    generator = np.random.default_rng((seed, epoch))
    if sampler == "instance":
        return clips[torch.from_numpy(generator.permutation(len(clips)))]
    assert labels is not None, "this sampler goes by the classes of the clips"
    counts = np.bincount(labels.numpy())
    of_clip = counts[labels.numpy()]
    if sampler == "tail_repeat":
        times = np.maximum(1, np.rint(np.sqrt(counts[counts > 0].mean() / of_clip))).astype(np.int64)
        return clips[torch.from_numpy(generator.permutation(np.repeat(np.arange(len(clips)), times)))]
    weight = 1 / of_clip if sampler == "class_balanced" else 1 / np.sqrt(of_clip)
    return clips[torch.from_numpy(generator.choice(len(clips), len(clips), p=weight / weight.sum()))]


def epoch_batches(
    clips: Tensor,
    batch_size: int,
    seed: int,
    epoch: int,
    *,
    first: int = 0,
    labels: Tensor | None = None,
    sampler: Sampler = "instance",
) -> Iterator[Tensor]:
    """Global batches of one epoch from batch `first` on; a last, smaller batch is left out."""
    order = epoch_order(clips, seed, epoch, labels=labels, sampler=sampler)
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
