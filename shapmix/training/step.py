"""A whole training step without host synchronisation: sample, measure, mix, forward, backward and optimiser on the device.

Batch indices (or clips) and the step number are on the device, every draw is a function of them, and no value is read back. On a
GPU the step can therefore be captured in one CUDA graph; on other devices the same code runs eagerly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from shapmix.data.order import passes
from shapmix.data.sampling import ClipSampler
from shapmix.kernels import sample_clips
from shapmix.kernels.dispatch import choose
from shapmix.mixing.estimators import ESTIMATORS, drawn_on_device
from shapmix.mixing.losses import LOSSES
from shapmix.mixing.mixer import ShapMix
from shapmix.mixing.mixers import MIXERS, MixedBatch
from shapmix.networks.synced_norm import SyncedBatchNorm
from shapmix.process import parallel

WARM_UP = 3  # warm-up steps on a side stream before capture, as recommended by torch; Triton compiles in them


class StepResult(NamedTuple):
    """0-dim tensors on the device: losses of the clean and the mixed half, correct clean clips, largest |gradient|.

    The next step may overwrite them.
    """

    clean: Tensor
    mixed: Tensor
    right: Tensor
    gradient: Tensor


class Captured(NamedTuple):
    """A graph, and what its replays write: the result, and the gradients of the optimizer's parameters."""

    graph: torch.cuda.CUDAGraph
    result: StepResult
    gradients: list[Tensor | None]


class TrainingStep:
    """The trainer's step: `step(chosen, number)` trains on the store's clips `chosen`.

        step = TrainingStep(network, mixer, optimizer, sampler, batch_size)
        for number, chosen in enumerate(batches):
            result = step(chosen, number)

    Args:
        network: maps [N, C, T, V, M] to logits [N, K]. In eval mode it must leave its buffers and random state alone.
        mixer: on the network's device, with an estimator that is drawn on the device (`drawn_on_device`).
        optimizer: of the network's parameters. To be captured it must be `fused=True`; schedulers may change its learning rate.
        sampler: whose recordings are copied to the mixer's device; its pipeline must be "crop", unless clips are given.
        batch_size: N, of every batch.
        clips_given: clips come with every call, made elsewhere; for other pipelines, and for recordings too large for the device.
        autocast: element type of `torch.autocast` for the network, None for none; the losses are float32 or float64.
        capture: as a CUDA graph; None captures on a GPU.
        clip_norm: largest norm of the gradient of all weights, None for no limit.

    Where the loss or a gradient is not finite, the step is left out: weights, optimizer, the network's buffers and the mixer's
    tables are what they were. With a `fused=True` optimizer nothing is read back for it.

    A graph belongs to a phase of the schedule, of which there is one at a time, and to where weights, buffers and the optimizer's
    state lie; a change of either (`network.to`, `optimizer.load_state_dict`) is detected, and the step captured anew. If the mixer
    measures only in every K-th step, steps with and without a measurement have a graph each, and each keeps its activations.

    Each of several processes (`torch.distributed`) makes the same batch and forwards its rows; gradients are summed over processes
    in one all-reduce, and BatchNorms that are not synchronised (`sync_norms`) take the statistics of process 0. All processes start
    from the weights of process 0.

    Raises:
        ValueError: a pipeline or an estimator that draws on the host; an optimizer that cannot be captured; a capture on a CPU; a
            batch size that the number of processes does not divide.
    """

    def __init__(
        self,
        network: nn.Module,
        mixer: ShapMix,
        optimizer: torch.optim.Optimizer,
        sampler: ClipSampler,
        batch_size: int,
        *,
        clips_given: bool = False,
        autocast: torch.dtype | None = None,
        capture: bool | None = None,
        clip_norm: float | None = None,
    ) -> None:
        device = mixer.saliency.device
        if sampler.pipeline != "crop" and not clips_given:
            raise ValueError(f"pipeline '{sampler.pipeline}' draws on the host; only 'crop' is drawn on the device")
        if reason := draws_on_host(mixer):
            raise ValueError(reason)
        self.capture = device.type == "cuda" if capture is None else capture
        if self.capture:
            check_capturable(optimizer, device)
            if reason := reads_on_host(mixer):
                raise ValueError(reason)
        self.network, self.mixer, self.optimizer, self.sampler = network, mixer, optimizer, sampler
        self.autocast, self.takes_clips, self.clip_norm = autocast, clips_given, clip_norm
        self.observer = parallel.SharedForward(network, autocast)
        self.device = device
        self._several = parallel.ranks() > 1
        self._rows = passes(batch_size, parallel.rank(), parallel.ranks(), 1)[0].to(device)  # of the batch, that are forwarded here
        norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        self._synced = all(isinstance(norm, SyncedBatchNorm) for norm in norms)
        parallel.copy_weights(network)
        store = sampler.store
        self.labels = store.labels.to(device)
        self.clips: Tensor | None = None  # [N, C, T, V, M], where they are given
        if not clips_given:
            self.frames, self.offsets, self.lengths = (part.to(device) for part in (store.frames, store.offsets, store.lengths))
            parents, self.stream = sampler.bones
            self.parents = parents.to(device)
        self.chosen = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.number = torch.zeros((), dtype=torch.int64, device=device)
        self._buffers_of_step = step_buffers(network, mixer)
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._fused = all(group.get("fused") for group in optimizer.param_groups)
        self._captured: dict[bool, Captured] = {}  # by whether the step measures the saliency
        self._phase: tuple[bool, bool] | None = None
        self._run_before = {False: 0, True: 0}  # steps of the phase, with and without a measurement
        self._addresses: list[object] = []
        self._stream = torch.cuda.Stream(device) if self.capture else None

    def __call__(self, chosen: Tensor, number: int, clips: Tensor | None = None) -> StepResult:
        """One step on clips `chosen` [N] int64 of the store; `number` counts the steps of the training.

        Args:
            chosen: which clips, and so their labels.
            number: decides every draw.
            clips: [N, C, T, V, M] those clips, where they are given.

        Raises:
            ValueError: another batch size; clips where none are taken, or none where they are.
        """
        if chosen.shape != self.chosen.shape:
            raise ValueError(f"chosen has shape {list(chosen.shape)}; give {list(self.chosen.shape)}, the batch size")
        if (clips is not None) != self.takes_clips:
            raise ValueError("clips are given with every call of a step that was made with clips_given=True, and with no other")
        self.chosen.copy_(chosen, non_blocking=True)
        self.number.fill_(number)
        if clips is not None:
            if self.clips is None:
                self.clips = torch.empty_like(clips, device=self.number.device)
            self.clips.copy_(clips, non_blocking=True)
        if self._stream is None:
            return self._run(number)
        with torch.cuda.device(self.device):  # capture and replay use the current device
            return self._replayed(number)

    def _replayed(self, number: int) -> StepResult:
        """Replays the captured step, or runs a warm-up step and captures it."""
        for rate, group in zip(self._rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        # phases of the schedule need different graphs; a graph keeps the memory of its activations, so those of one phase are kept
        phase = (number < self.mixer.warmup_steps, number < self.mixer.replace_steps)
        if phase != self._phase or (self._captured and self._addresses != self._held()):
            self._captured, self._phase, self._run_before = {}, phase, {False: 0, True: 0}
        measures = self.mixer.measures(number)
        if measures not in self._captured:
            if self._run_before[measures] < WARM_UP:
                self._run_before[measures] += 1
                return self._run_on_side_stream(number)
            self._captured[measures] = self._record(number)
            self._addresses = self._held()
        graph, result, gradients = self._captured[measures]
        graph.replay()
        if self.mixer.every > 1:  # the parameters may hold the gradients of a step of the other kind
            for parameter, gradient in zip(self._parameters(), gradients, strict=True):
                parameter.grad = gradient
        return result

    def _held(self) -> list[object]:
        """Addresses of the external tensors that a graph reads and writes."""
        tensors = (*self._parameters(), *self._buffers_of_step)
        return [id(self.optimizer.state), *(tensor.data_ptr() for tensor in tensors)]

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _run(self, number: int) -> StepResult:
        """Runs the step; `number` only selects the phase, the device uses its own counter."""
        mixer, before = self.mixer, copied(self._buffers_of_step)
        labels = self.labels[self.chosen]
        clips = self._sampled() if self.clips is None else self.clips
        mixer.observe(self.observer, clips, labels, number, counter=self.number)
        batch = mixer.mix(clips, labels, number, counter=self.number)
        logits, clean, mixed = self._forward_backward(batch)
        gradient = largest_gradient(self.optimizer)
        finite = (clean + mixed + gradient).isfinite()
        self._update(finite)
        restore_unless(finite, before)
        right = (logits[: len(labels)].argmax(1) == labels).sum()
        return StepResult(clean, mixed, right, gradient)

    def _forward_backward(self, batch: MixedBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the batch's loss; returns the logits of all its clips and both losses, the same on every process.

        Each of several processes forwards its rows; those of the others are zeros, which have no gradient.
        """
        clips, mixer = batch.clips, self.mixer
        own: Tensor | None = None
        if self._several:
            copies = len(clips) // len(batch.labels)
            own = torch.cat([self._rows + copy * len(batch.labels) for copy in range(copies)])
            clips = clips[own]
        with torch.autocast(clips.device.type, self.autocast) if self.autocast else nullcontext():
            logits = self.network(clips)
        logits = logits.to(clips.dtype)
        if own is not None:
            logits = logits.new_zeros(len(batch.clips), logits.shape[1]).index_copy(0, own, logits)
        clean, mixed = mixer.loss(logits, batch)
        self.optimizer.zero_grad(set_to_none=True)
        (clean + mixed + auxiliary_loss(self.network, batch, own)).backward()
        if self._several:
            parallel.sum_gradients(self._parameters())
            if not self._synced:
                parallel.copy_buffers(self.network)
            logits = parallel.summed(logits.detach().clone())
            clean, mixed = mixer.loss(logits, batch)
        return logits.detach(), clean.detach(), mixed.detach()

    def _sampled(self) -> Tensor:
        frames = self.sampler.num_frames
        lengths = self.lengths[self.chosen]
        plan = self.sampler.crops(self.chosen, lengths, self.number)
        augment = self.sampler.augmentation(plan.length, self.number)
        return sample_clips(self.frames, self.offsets, plan, self.parents, stream=self.stream, num_frames=frames, augment=augment)

    def _update(self, finite: Tensor) -> None:
        """Runs the optimizer step if loss and gradients are finite."""
        if not self._fused:
            if finite:
                clip_gradients(self.optimizer, self.clip_norm)
                self.optimizer.step()
            return
        clip_gradients(self.optimizer, self.clip_norm)
        start_momentum(self.optimizer)
        with self._following_device(finite):
            self.optimizer.step()

    @contextmanager
    def _following_device(self, finite: Tensor) -> Iterator[None]:
        """Passes learning rate and skip flag as device tensors, since a graph would bake in Python numbers."""
        optimizer: Any = self.optimizer
        before = [dict(group) for group in optimizer.param_groups]
        if self.capture:
            for rate, group in zip(self._rates, optimizer.param_groups, strict=True):
                group["lr"] = rate
                if "capturable" in group:  # only during capture, since torch warns otherwise
                    group["capturable"] = torch.cuda.is_current_stream_capturing()
        optimizer.found_inf = (~finite).float()
        try:
            yield
        finally:
            del optimizer.found_inf
            for group, values in zip(optimizer.param_groups, before, strict=True):
                group.update(values)

    def _run_on_side_stream(self, number: int) -> StepResult:
        """Runs the step on the capture stream."""
        assert self._stream is not None
        others = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(others)
        with torch.cuda.stream(self._stream):
            result = self._run(number)
        others.wait_stream(self._stream)
        return result

    def _record(self, number: int) -> Captured:
        self.optimizer.zero_grad(set_to_none=True)  # the graph allocates gradients in its private pool
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread may be making the next batch
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            result = self._run(number)
        return Captured(graph, result, [parameter.grad for parameter in self._parameters()])


def step_buffers(network: nn.Module, mixer: ShapMix) -> list[Tensor]:
    """The tensors other than weights that a step changes: buffers of the network and tables of the mixer."""
    drawn = () if mixer.drawn is None else mixer.drawn.buffers()
    buffers = (*network.buffers(), *mixer.class_saliency.buffers(), *drawn)
    return [buffer for buffer in buffers if 0 not in buffer.stride() or buffer.numel() <= 1]  # expanded tensors are constant


Copies = list[tuple[list[Tensor], Tensor]]  # tensors of one dtype and device, and their concatenated values


def copied(tensors: Iterable[Tensor]) -> Copies:
    """Copies the values of tensors, with one launch per dtype and device."""
    alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        alike.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return [(group, _concatenated(group)) for group in alike.values()]


@torch.no_grad()
def restore_unless(finite: Tensor, before: Copies) -> None:
    """Restores the values of `copied` if the 0-dim bool tensor `finite` is False, without synchronising with the host."""
    for group, old in before:
        values = torch.where(finite, _concatenated(group), old).split([tensor.numel() for tensor in group])
        torch._foreach_copy_(group, [value.view(tensor.shape) for value, tensor in zip(values, group, strict=True)])


def _concatenated(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def largest_gradient(optimizer: torch.optim.Optimizer) -> Tensor:
    """0-dim: the largest absolute value of the gradients; non-finite if any gradient is."""
    return get_total_norm([parameter.grad for parameter in with_gradient(optimizer)], float("inf"))


def clip_gradients(optimizer: torch.optim.Optimizer, largest: float | None) -> None:
    """Scales the gradients, so that the norm of all of them together is at most `largest`; None leaves them as they are.

    Nothing is read on the host. Gradients that are not finite stay as they are, so that the first of them can be named.
    """
    if largest is not None:
        parameters = with_gradient(optimizer)
        norm = get_total_norm([parameter.grad for parameter in parameters])
        clip_grads_with_norm_(parameters, largest, torch.where(norm.isfinite(), norm, 0))


def with_gradient(optimizer: torch.optim.Optimizer) -> list[Any]:
    """The optimizer's parameters that have a gradient."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return [parameter for parameter in parameters if parameter.grad is not None]


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Initialises SGD's momentum buffers with zeros, which gives the same first step as no momentum.

    If the first step is skipped on the device, torch's fused SGD would use uninitialised memory as momentum.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            state = optimizer.state[parameter]
            if parameter.requires_grad and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def auxiliary_loss(network: nn.Module, batch: MixedBatch, rows: Tensor | None = None) -> Tensor | float:
    """What a network such as ProtoGCN adds to the loss of its logits, after it has forwarded these rows of the batch; else 0."""
    own: Any = getattr(network, "auxiliary_loss", None)
    if own is None:
        return 0.0
    loss: Tensor = own(batch.labels, batch.labels[batch.partner], batch.share, rows)
    return loss


def draws_on_host(mixer: ShapMix) -> str | None:
    """What of a mixer's draws or schedules needs the host in every step, None where nothing does."""
    mix, loss = MIXERS[mixer.mix_name], LOSSES[mixer.loss_name]
    if mixer.rule.fresh:
        return "rule.fresh takes two samplings of the clips; train with it in a plain loop"
    if not (mix.on_device and loss.on_device):
        what = f"loss '{mixer.loss_name}'" if mix.on_device else f"mix '{mixer.mix_name}'"
        return f"{what} goes by a step that the host knows; train with it in a plain loop"
    if mix.guided and not ESTIMATORS[mixer.estimator].on_device:
        return f"estimator '{mixer.estimator}' is drawn on the host; take one of {', '.join(drawn_on_device())}"
    return None


def reads_on_host(mixer: ShapMix) -> str | None:
    """Which op of a step runs on the reference, which reads values on the host, None where none does."""
    for op, backend in (("sample_clips", None), ("mix_clips", mixer.backend), ("saliency_update", mixer.backend)):
        if choose(op, mixer.mean_motion, backend) == "reference":
            return f"{op} runs on back end 'reference', which reads values on the host"
    return None


def check_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """That the optimizer's step can be part of a CUDA graph.

    Raises:
        ValueError: what is missing, and how to give it.
    """
    if device.type != "cuda":
        raise ValueError(f"a step on {device} cannot be captured as a CUDA graph; leave capture out")
    if not all(group.get("fused") for group in optimizer.param_groups):
        raise ValueError(f"{type(optimizer).__name__} reads its state on the host; make it with fused=True")
    if any(group.get("dampening") for group in optimizer.param_groups):
        raise ValueError("dampening makes the first step another one than those that a graph holds; make the optimizer without it")
