"""The eager training step: on any device, with any mixer, with gradient accumulation and on several processes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from shapmix.mixing.mixers import MixedBatch
from shapmix.process import parallel
from shapmix.training.sam import moved_along_gradient
from shapmix.training.state import Training
from shapmix.training.step import StepResult, auxiliary_loss, clip_gradients, copied, largest_gradient, restore_unless, step_buffers


class EagerStep:
    """`step(chosen, number, clips)` trains on the store's clips `chosen`; the interface is that of `TrainingStep`.

    Args:
        run: network, mixer and optimizer.
        labels: [n] int64 of all clips of the store.
        rows: rows [N / passes] of the global batch that this process forwards together, one tensor per pass.
        autocast: dtype of `torch.autocast` for the network, or None.
        sync_batchnorm: several processes: BatchNorm is over the clips of all; otherwise every process takes the statistics of
            process 0.
        clip_norm: largest norm of the gradient of all weights, None for no limit.
        sam: the radius rho of sharpness-aware minimization, None for the plain step.
    """

    takes_clips = True

    def __init__(
        self,
        run: Training,
        labels: Tensor,
        rows: list[Tensor],
        autocast: torch.dtype | None,
        *,
        sync_batchnorm: bool,
        clip_norm: float | None = None,
        sam: float | None = None,
    ) -> None:
        self.clip_norm, self.sam = clip_norm, sam
        self.run, self.labels, self.rows, self.autocast, self.sync_batchnorm = run, labels, rows, autocast, sync_batchnorm
        self.model = parallel.averaged_gradients(run.network, broadcast_buffers=sync_batchnorm)
        self.observer = parallel.SharedForward(run.network, autocast)

    def __call__(self, chosen: Tensor, number: int, clips: Tensor | None = None) -> StepResult:
        """One step on clips [N, C, T, V, M] that are those of the indices `chosen` [N]; `number` decides every draw.

        A mixer of two views takes [2N, C, T, V, M], two samplings of the clips.

        If the loss or a gradient is non-finite, weights, optimizer, buffers and tables are unchanged.
        """
        assert clips is not None
        run = self.run
        before = copied(step_buffers(run.network, run.mixer))
        labels = self.labels[chosen].to(clips.device)
        clips, second = clips.chunk(2) if run.mixer.views == 2 else (clips, None)
        run.mixer.observe(self.observer, clips, labels, number)
        batch = run.mixer.mix(clips, labels, number, second=second)
        run.optimizer.zero_grad(set_to_none=True)
        with nullcontext() if self.sam is None else same_random_numbers_after(clips.device):
            logits, clean, mixed = self.forward_backward(batch)
        if parallel.ranks() > 1 and not self.sync_batchnorm:
            parallel.copy_buffers(run.network)
        gradient = largest_gradient(run.optimizer)
        if self.sam is not None and (clean + mixed + gradient).isfinite():
            gradient = self.gradient_nearby(batch, self.sam)
        finite = (clean + mixed + gradient).isfinite()
        if finite:
            clip_gradients(run.optimizer, self.clip_norm)
            run.optimizer.step()
        else:
            restore_unless(finite, before)
        right = (logits[: len(labels)].argmax(1) == labels).sum()
        return StepResult(clean, mixed, right, gradient)

    def gradient_nearby(self, batch: MixedBatch, rho: float) -> Tensor:
        """Replaces the gradients by those of the same batch at weights that are `rho` further along them.

        The buffers of the network, such as BatchNorm's running statistics, stay those of the first pass: they belong to the
        weights that are evaluated. The gradients of all passes and processes are summed before the weights are moved.

        Returns:
            0-dim: the largest |gradient|; NaN if the loss there is not finite.
        """
        run = self.run
        before = copied(step_buffers(run.network, run.mixer))
        with moved_along_gradient(run.optimizer, rho):
            run.optimizer.zero_grad(set_to_none=True)
            _, clean, mixed = self.forward_backward(batch)
        restore_unless(torch.zeros_like(clean, dtype=torch.bool), before)
        return largest_gradient(run.optimizer).where((clean + mixed).isfinite(), torch.nan)

    def forward_backward(self, batch: MixedBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the batch's loss; returns logits [2N, K] and both losses of the whole batch, the same on every process.

        A pass forwards its rows and pads the others with zeros, which have no gradient; the loss remains a mean over the batch.
        """
        model, mixer, copies = self.model, self.run.mixer, len(batch.clips) // len(batch.labels)
        every: Tensor | None = None
        for number, some in enumerate(self.rows):
            whole, last = len(some) == len(batch.labels), number == len(self.rows) - 1
            both = torch.cat([some + len(batch.labels) * copy for copy in range(copies)]).to(batch.clips.device)
            with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
                with torch.autocast(batch.clips.device.type, self.autocast) if self.autocast else nullcontext():
                    logits = model(batch.clips if whole else batch.clips[both])
                logits = logits.to(batch.clips.dtype)
                placed = logits
                if not whole:
                    placed = logits.new_zeros(len(batch.clips), logits.shape[1]).index_copy(0, both, logits)
                clean, mixed = mixer.loss(placed, batch)
                loss = clean + mixed + auxiliary_loss(self.run.network, batch, both)
                # DistributedDataParallel averages gradients over processes, but the batch needs their sum
                (loss * parallel.ranks()).backward()
            every = placed.detach() if every is None else every + placed.detach()
        assert every is not None
        if len(self.rows) == 1 and parallel.ranks() == 1:
            return every, clean.detach(), mixed.detach()
        every = parallel.summed(every)
        clean, mixed = mixer.loss(every, batch)
        return every, clean, mixed


def same_random_numbers_after(device: torch.device) -> AbstractContextManager[None]:
    """A context after which torch's generators are as before: the pass that follows draws the same, such as dropout's masks."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])
