"""Shap-Mix for any training loop: observe the saliency, mix the batch, weigh the loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from shapmix import official
from shapmix.kernels import coalition_inputs, mix_clips
from shapmix.layout import Layout
from shapmix.plan import draw_marginals, draw_mixup, draw_shapmix, draw_stmix
from shapmix.reference import (
    balanced_mix_loss,
    expected_marginals,
    label_probability,
    log_class_prior,
    marginals,
    update_saliency,
)

Mode = Literal["none", "mixup", "stmix", "shapmix"]
Loss = Literal["ce", "balanced"]
Compat = Literal["default", "official"]
Estimator = Literal["sampled", "exact"]

SALIENCY_START = 1e-6
EXACT_SHARE = 16  # one sample in 16 forwarded 31 times costs what every sample forwarded twice does


class MixedBatch(NamedTuple):
    """A batch [clean; mixed] and how its labels are mixed.

    clips [2N, C, T, V, M] (or [N, ...] where nothing is mixed), labels [N], partner [N] and the partner's share [N].
    """

    clips: Tensor
    labels: Tensor
    partner: Tensor
    share: Tensor


class _Updates(NamedTuple):
    """Entries of the class table to update: labels, columns and marginals [U]; `measured` [n] are the samples' labels."""

    labels: Tensor
    columns: Tensor
    marginals: Tensor
    measured: Tensor


class ShapMix(nn.Module):
    """Mixing guided by the class saliency of body parts, with the saliency as its state.

    A step of any training loop:

        mixer.observe(network, clips, labels, step)
        batch = mixer.mix(clips, labels, step)
        loss = sum(mixer.loss(network(batch.clips), batch))

    Args:
        layout: skeleton and parts of the clips.
        class_counts: [K] training clips of each class, all > 0.
        mean_motion: [C, T, V, M] mean of the training clips as the network sees them (`shapmix.data.sampling.mean_motion`).
        mode: "shapmix"; "stmix", the same without saliency; "mixup", whole clips; "none".
        loss: "balanced" adjusts the logits by the class prior, "ce" is plain cross-entropy.
        estimator: of the saliency, at about 2N forwarded rows a step. "sampled" measures one marginal on every sample;
            "exact" measures every coalition on N/16 of the samples, those whose classes were measured least so far.
        compat: "official" reproduces the published code's departures from its paper (`shapmix.official`).
        temperature: of the softmax over a class's combinations, in units of the saliency.
        decay: of the class average.
        warmup_steps: steps at the start in which mixing is ST-Mix and the saliency is measured with empty contexts.
        replace_steps: steps at the start in which a measurement replaces the class average instead of joining it;
            by default `warmup_steps`.
        seed: of every draw; a draw depends on (seed, step) alone.
        backend: of the kernels (see `shapmix.kernels`); None chooses.

    Raises:
        ValueError: a class without training clips, or `compat="official"` on a layout it has no rule for.

    The table `saliency` [K, Q] has the layout's combinations as columns, `measured` [K] counts the samples that each class
    was measured on; both are buffers and travel in `state_dict`.
    """

    saliency: Tensor
    measured: Tensor
    mean_motion: Tensor
    class_counts: Tensor
    log_prior: Tensor
    priority: Tensor
    joint_counts: Tensor
    part_of_joint: Tensor

    def __init__(
        self,
        layout: Layout,
        class_counts: Tensor,
        mean_motion: Tensor,
        *,
        mode: Mode = "shapmix",
        loss: Loss = "balanced",
        estimator: Estimator = "sampled",
        compat: Compat = "default",
        temperature: float = 0.2,
        decay: float = 0.9,
        warmup_steps: int = 0,
        replace_steps: int | None = None,
        seed: int = 0,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        empty = torch.nonzero(class_counts < 1).flatten().tolist()
        if empty:
            raise ValueError(f"class_counts: class {empty[0]} has no training clip, so its prior is zero; leave the class out")
        self.layout, self.mode, self.estimator, self.compat, self.backend = layout, mode, estimator, compat, backend
        self.temperature, self.decay, self.seed = temperature, decay, seed
        self.warmup_steps = warmup_steps
        self.replace_steps = warmup_steps if replace_steps is None else replace_steps
        classes = len(class_counts)
        combinations = layout.combinations
        if compat == "official":
            priority, joint_counts = official.priority(classes), official.joint_counts(layout)
            self.restored_frames = official.restored_frames(layout)
        else:
            priority, joint_counts = class_counts, layout.joints_in(combinations)
            self.restored_frames = None
        log_prior = log_class_prior(class_counts) if loss == "balanced" else torch.zeros(classes)
        self.register_buffer("saliency", torch.full((classes, len(combinations)), SALIENCY_START))
        self.register_buffer("measured", torch.zeros(classes, dtype=torch.int64))
        self.register_buffer("mean_motion", mean_motion)
        self.register_buffer("class_counts", class_counts.clone(), persistent=False)
        self.register_buffer("log_prior", log_prior.to(mean_motion.dtype), persistent=False)
        self.register_buffer("priority", priority.clone(), persistent=False)
        self.register_buffer("joint_counts", joint_counts, persistent=False)
        self.register_buffer("part_of_joint", layout.part_of_joint, persistent=False)

    @torch.no_grad()
    def observe(self, network: nn.Module, clips: Tensor, labels: Tensor, step: int) -> None:
        """Measures the saliency on the batch, in eval mode, and updates the class table; about 2N rows are forwarded.

        Args:
            network: any module that maps [N, C, T, V, M] to logits [N, K]; every submodule's mode is restored.
            clips: [N, C, T, V, M]; labels: [N] int64.
            step: of the training loop.
        """
        if self.mode != "shapmix":
            return
        measure = self._exact if self.estimator == "exact" else self._sampled
        with evaluating(network):
            updates = measure(network, clips, labels, step)
        decay = 0.0 if step < self.replace_steps else self.decay
        update_saliency(self.saliency, updates.labels, updates.columns, updates.marginals, self.joint_counts, decay)
        self.measured += torch.bincount(updates.measured, minlength=len(self.measured))

    def _sampled(self, network: nn.Module, clips: Tensor, labels: Tensor, step: int) -> _Updates:
        """One marginal of each sample: v(R u P) - v(R) of a drawn combination P and context R."""
        n = len(labels)
        columns, contexts = draw_marginals(
            n,
            self.layout,
            seed=self.seed,
            step=step,
            shared=self.compat == "official",
            naive=step < self.warmup_steps,
        )
        some = torch.nonzero(contexts).flatten()
        together = self.layout.combinations[columns] | contexts
        rows = [self._inputs(clips, together[None])]
        if len(some):
            rows.append(self._inputs(clips[some], contexts[None, some]))
        if len(some) < n:
            rows.append(self.mean_motion[None])  # v(none) is the same for every sample: one row serves the rest
        logits = network(torch.cat(rows)).to(self.saliency.dtype)
        without_logits = logits[-1:].repeat(n, 1)
        without_logits[some] = logits[n : n + len(some)]
        marginal = marginals(label_probability(logits[:n], labels), label_probability(without_logits, labels))
        return _Updates(labels, columns.to(labels.device), marginal, measured=labels)

    def _exact(self, network: nn.Module, clips: Tensor, labels: Tensor, step: int) -> _Updates:
        """Every marginal of a sixteenth of the samples, the classes that were measured least first."""
        chosen = self.measured[labels].argsort(stable=True)[: max(1, len(labels) // EXACT_SHARE)]
        clips, labels = clips[chosen], labels[chosen]
        coalitions = torch.arange(1, self.layout.all_parts + 1)
        logits = network(torch.cat([self.mean_motion[None], self._inputs(clips, coalitions)])).to(self.saliency.dtype)
        none, some = logits[:1].expand(len(labels), -1), logits[1:]
        every_label = labels.repeat(len(coalitions) + 1)
        values = label_probability(torch.cat([none, some]), every_label).view(-1, len(labels)).T  # [n, 2^P]
        expected = expected_marginals(values, self.layout.combinations, self.layout.num_parts)  # [n, Q]
        columns = torch.arange(expected.shape[1], device=labels.device).repeat(len(labels))
        return _Updates(labels.repeat_interleave(expected.shape[1]), columns, expected.flatten(), measured=labels)

    def _inputs(self, clips: Tensor, coalitions: Tensor) -> Tensor:
        return coalition_inputs(
            clips,
            self.mean_motion,
            coalitions.to(clips.device),
            self.part_of_joint,
            restored_frames=self.restored_frames,
            backend=self.backend,
        )

    def mix(self, clips: Tensor, labels: Tensor, step: int) -> MixedBatch:
        """The training batch of a step.

        Raises:
            ValueError: fewer than 3 clips, or a clip length that is not a multiple of 4.
        """
        n, num_frames = len(labels), clips.shape[2]
        if self.mode == "none":
            itself = torch.arange(n, device=labels.device)
            return MixedBatch(clips, labels, itself, torch.zeros(n, device=clips.device))
        if self.mode == "mixup":
            plan = draw_mixup(n, self.layout, num_frames, seed=self.seed, step=step)
        elif self.mode == "stmix" or step < self.warmup_steps:
            plan = draw_stmix(n, self.layout, num_frames, seed=self.seed, step=step)
        else:
            plan = draw_shapmix(
                labels.cpu(),
                self.layout,
                num_frames,
                self.saliency.cpu(),
                self.priority.cpu(),
                seed=self.seed,
                step=step,
                temperature=self.temperature,
            )
        plan = plan.to(clips.device)
        both = mix_clips(clips, plan, self.part_of_joint, backend=self.backend)
        return MixedBatch(both, labels, plan.partner, plan.label_share)

    def loss(self, logits: Tensor, batch: MixedBatch) -> tuple[Tensor, Tensor]:
        """(clean, mixed) losses of the network's logits for `batch.clips`; the training loss is their sum."""
        return balanced_mix_loss(logits, batch.labels, batch.partner, batch.share, self.log_prior)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode for the duration; every module gets its own mode back, also after an exception."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
