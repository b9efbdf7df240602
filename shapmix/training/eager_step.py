"""The training step launched op by op."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shapmix.mixing.mixer import MixedBatch, ShapMix
from shapmix.process import parallel


def forward_backward(
    model: nn.Module, mixer: ShapMix, batch: MixedBatch, rows: list[Tensor], autocast: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the batch's loss; returns logits [2N, K] and both losses of the whole batch, the same on every process.

    A pass forwards its rows and fills the others with zeros: they have no gradient, and the loss stays a mean over the batch.
    """
    copies = len(batch.clips) // len(batch.labels)
    every: Tensor | None = None
    for number, some in enumerate(rows):
        last = number == len(rows) - 1
        whole = len(some) == len(batch.labels)
        both = torch.cat([some + len(batch.labels) * copy for copy in range(copies)]).to(batch.clips.device)
        with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
            with torch.autocast(batch.clips.device.type, autocast) if autocast else nullcontext():
                logits = model(batch.clips if whole else batch.clips[both])
            logits = logits.to(batch.clips.dtype)
            placed = logits
            if not whole:
                placed = logits.new_zeros(len(batch.clips), logits.shape[1]).index_copy(0, both, logits)
            clean, mixed = mixer.loss(placed, batch)
            # DistributedDataParallel averages over the processes, and the batch's gradient is their sum
            ((clean + mixed) * parallel.ranks()).backward()
        every = placed.detach() if every is None else every + placed.detach()
    assert every is not None
    if len(rows) == 1 and parallel.ranks() == 1:
        return every, clean.detach(), mixed.detach()
    every = parallel.summed(every)
    clean, mixed = mixer.loss(every, batch)
    return every, clean, mixed
