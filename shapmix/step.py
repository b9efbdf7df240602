"""A whole training step that the host only starts: sample, measure, mix, forward, backward and optimiser on the device.

Recordings, batch indices and the step's number lie on the device, every draw is a function of them, and no value is read back.
On a GPU the step is thus one CUDA graph; elsewhere the same code runs as it is written.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shapmix.data.sampling import ClipSampler
from shapmix.estimators import ON_DEVICE
from shapmix.kernels import sample_clips
from shapmix.mixing import ShapMix
from shapmix.plan import draw_crops
from shapmix.rivals import RIVALS

WARM_UP = 3  # steps of a phase on a side stream before its capture, torch's recommendation; Triton compiles in them


class StepResult(NamedTuple):
    """0-dim tensors of the device: losses of the clean and the mixed half, clean clips that were right.

    The next step may overwrite them.
    """

    clean: Tensor
    mixed: Tensor
    right: Tensor


class TrainingStep:
    """The trainer's step on resident data: `step(chosen, number)` trains on the store's clips `chosen`.

        step = TrainingStep(network, mixer, optimizer, sampler, batch_size)
        for number, chosen in enumerate(batches):
            result = step(chosen, number)

    Args:
        network: maps [N, C, T, V, M] to logits [N, K]. In eval mode it must leave its buffers and random state alone.
        mixer: on the network's device, with an estimator that is drawn on the device: one of `ON_DEVICE`.
        optimizer: of the network's parameters. To be captured, its learning rate must be a tensor of the device, and it must
            be `fused=True` (SGD) or `capturable=True` (Adam, AdamW); schedulers write into such a learning rate.
        sampler: of the pipeline "crop". Its recordings are copied to the mixer's device.
        batch_size: N, of every batch.
        capture: as a CUDA graph; None captures on a GPU.

    A loss that is not finite does not stop it, as the host does not know: look at the result from time to time.

    Raises:
        ValueError: a pipeline or an estimator that draws on the host; an optimizer that cannot be captured; a capture on a CPU.
    """

    def __init__(
        self,
        network: nn.Module,
        mixer: ShapMix,
        optimizer: torch.optim.Optimizer,
        sampler: ClipSampler,
        batch_size: int,
        *,
        capture: bool | None = None,
    ) -> None:
        device = mixer.saliency.device
        if sampler.pipeline != "crop":
            raise ValueError(f"pipeline '{sampler.pipeline}' draws on the host; only 'crop' is drawn on the device")
        if mixer.mode in RIVALS or mixer.loss_name == "ldam":
            what = f"mode '{mixer.mode}'" if mixer.mode in RIVALS else "loss 'ldam'"
            raise ValueError(f"{what} goes by a step that the host knows; train with it in a plain loop")
        if mixer.mode == "shapmix" and mixer.estimator not in ON_DEVICE:
            raise ValueError(f"estimator '{mixer.estimator}' is drawn on the host; take one of {', '.join(ON_DEVICE)}")
        self.capture = device.type == "cuda" if capture is None else capture
        if self.capture:
            check_capturable(optimizer, device)
        self.network, self.mixer, self.optimizer, self.sampler = network, mixer, optimizer, sampler
        store = sampler.store
        self.frames, self.offsets = store.frames.to(device), store.offsets.to(device)
        self.lengths, self.labels = store.lengths.to(device), store.labels.to(device)
        parents, self.stream = sampler.bones
        self.parents = parents.to(device)
        self.chosen = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.number = torch.zeros((), dtype=torch.int64, device=device)
        self._captured: dict[tuple[bool, bool], tuple[torch.cuda.CUDAGraph, StepResult]] = {}
        self._run_before: Counter[tuple[bool, bool]] = Counter()
        self._stream = torch.cuda.Stream(device) if self.capture else None

    def __call__(self, chosen: Tensor, number: int) -> StepResult:
        """One step on clips `chosen` [N] int64 of the store; `number` counts the steps of the training.

        Raises:
            ValueError: another batch size.
        """
        if chosen.shape != self.chosen.shape:
            raise ValueError(f"chosen has shape {list(chosen.shape)}; give {list(self.chosen.shape)}, the batch size")
        self.chosen.copy_(chosen)
        self.number.fill_(number)
        if self._stream is None:
            return self._run(number)
        # the schedule's phases are different work: each has a graph of its own
        phase = (number < self.mixer.warmup_steps, number < self.mixer.replace_steps)
        if phase not in self._captured:
            if self._run_before[phase] < WARM_UP:
                self._run_before[phase] += 1
                return self._beside(number)
            self._captured[phase] = self._record(number)
        graph, result = self._captured[phase]
        graph.replay()
        return result

    def _run(self, number: int) -> StepResult:
        """The step as the device sees it; the number given here only says in which phase it is."""
        mixer, network = self.mixer, self.network
        labels = self.labels[self.chosen]
        plan = draw_crops(
            self.chosen,
            self.lengths[self.chosen],
            num_frames=self.sampler.num_frames,
            seed=self.sampler.seed,
            step=self.number,
        )
        clips = sample_clips(self.frames, self.offsets, plan, self.parents, stream=self.stream, num_frames=self.sampler.num_frames)
        mixer.observe(network, clips, labels, number, counter=self.number)
        batch = mixer.mix(clips, labels, number, counter=self.number)
        logits = network(batch.clips)
        clean, mixed = mixer.loss(logits, batch)
        self.optimizer.zero_grad(set_to_none=True)
        (clean + mixed).backward()
        self.optimizer.step()
        right = (logits[: len(labels)].argmax(1) == labels).sum()
        return StepResult(clean.detach(), mixed.detach(), right)

    def _beside(self, number: int) -> StepResult:
        """The step on the stream that captures."""
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = self._run(number)
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def _record(self, number: int) -> tuple[torch.cuda.CUDAGraph, StepResult]:
        self.optimizer.zero_grad(set_to_none=True)  # the graph keeps gradients in its own memory
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            result = self._run(number)
        return graph, result


def check_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """That a CUDA graph of the optimizer's step would follow its learning rate and read nothing.

    Raises:
        ValueError: what is missing, and how to give it.
    """
    if device.type != "cuda":
        raise ValueError(f"a step on {device} cannot be captured as a CUDA graph; leave capture out")
    for group in optimizer.param_groups:
        if not isinstance(group["lr"], Tensor):
            raise ValueError(f"the learning rate is the number {group['lr']}, which a graph keeps; give torch.tensor(lr, device)")
        if not (group.get("fused") or group.get("capturable")):
            kind = type(optimizer).__name__
            raise ValueError(f"{kind} reads its state on the host; make it with fused=True, or capturable=True where it has that")
