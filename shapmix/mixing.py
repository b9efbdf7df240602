"""Shap-Mix for any training loop: observe the saliency, mix the batch, weigh the loss."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from shapmix import official
from shapmix.estimators import Estimator, pair_values, propose, propose_on_device
from shapmix.game import in_eval_mode, undisturbed
from shapmix.kernels import balanced_mix_loss, coalition_inputs, draw_plan, mix_clips, saliency_update
from shapmix.layout import Layout
from shapmix.reference import log_class_prior

Mode = Literal["none", "mixup", "stmix", "shapmix"]
Loss = Literal["ce", "balanced"]
Compat = Literal["default", "official"]

SALIENCY_START = 1e-6
BLEND_PROBABILITY = 0.25  # of Mixup in place of pasting, the paper's
SALIENCY_SCALE = 10.0  # joints of two average parts of `ntu25`; the temperature is in units of the table


class MixedBatch(NamedTuple):
    """A batch [clean; mixed] and how its labels are mixed.

    clips [2N, C, T, V, M] (or [N, ...] where nothing is mixed), labels [N], partner [N] and the partner's share [N].
    """

    clips: Tensor
    labels: Tensor
    partner: Tensor
    share: Tensor


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
        estimator: of the saliency (`shapmix.estimators`); all but "exact" forward about 2N rows a step.
        compat: "official" reproduces the published code's departures from its paper (`shapmix.official`).
        temperature: of the softmax over a class's combinations, in units of the saliency.
        decay: of the class average, for one update a sample; estimators that update more often forget less each time.
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
    pairs: Tensor
    mean_motion: Tensor
    class_counts: Tensor
    log_prior: Tensor
    priority: Tensor
    joint_counts: Tensor
    part_of_joint: Tensor
    combinations: Tensor

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
        self.register_buffer("pairs", torch.zeros(classes, 1 << layout.num_parts), persistent=estimator == "pair_table")
        self.register_buffer("mean_motion", mean_motion)
        self.register_buffer("class_counts", class_counts.clone(), persistent=False)
        self.register_buffer(
            "log_prior", log_prior.to(torch.float64 if mean_motion.dtype == torch.float64 else torch.float32), persistent=False
        )
        self.register_buffer("priority", priority.clone(), persistent=False)
        self.register_buffer("joint_counts", joint_counts, persistent=False)
        self.register_buffer("part_of_joint", layout.part_of_joint, persistent=False)
        self.register_buffer("combinations", combinations, persistent=False)

    @torch.no_grad()
    def observe(self, network: nn.Module, clips: Tensor, labels: Tensor, step: int, *, counter: Tensor | None = None) -> None:
        """Measures the saliency on the batch, in eval mode, and updates the class table; about 2N rows are forwarded.

        Args:
            network: any module that maps [N, C, T, V, M] to logits [N, K]; every submodule's mode is restored.
            clips: [N, C, T, V, M]; labels: [N] int64.
            step: of the training loop.
            counter: the same number as a 0-dim int64 tensor beside the clips. With it nothing is read back to the host, and
                `step` only says whether the warm-up is over: the calls of a phase are the same work on the device. The
                network must leave its buffers and torch's random state alone in eval mode, as they are not restored then.

        Raises:
            ValueError: a counter with an estimator other than "sampled", the only one that is drawn on the device.
        """
        if self.mode != "shapmix":
            return
        shared, naive = self.compat == "official", step < self.warmup_steps
        if counter is None:
            found = propose(
                self.estimator, self.measured[labels], self.layout, seed=self.seed, step=step, shared=shared, naive=naive
            )
        elif self.estimator == "sampled":
            found = propose_on_device(
                len(labels), self.layout, self.combinations, seed=self.seed, step=counter, shared=shared, naive=naive
            )
        else:
            raise ValueError(f"estimator '{self.estimator}' is drawn on the host; leave the counter out, or take 'sampled'")
        device = clips.device
        rows = coalition_inputs(
            clips[found.samples.to(device)],
            self.mean_motion,
            found.coalitions[None].to(device),
            self.part_of_joint,
            restored_frames=self.restored_frames,
            backend=self.backend,
        )
        with undisturbed(network) if counter is None else in_eval_mode(network):
            logits = network(torch.cat([self.mean_motion[None], rows]))
        table, counts, scale = self.saliency, self.joint_counts, SALIENCY_SCALE
        if self.estimator == "pair_table":
            table, counts, scale = self.pairs, torch.ones_like(self.pairs[0], dtype=torch.int64), 1.0
        owners = found.owners.to(device)
        # As much memory as one update a sample has, whatever the number of updates.
        decay = 0.0 if step < self.replace_steps else self.decay ** (len(labels) / len(owners))
        saliency_update(
            table,
            logits,
            labels[owners],
            found.columns.to(device),
            found.with_rows.to(device),
            found.without_rows.to(device),
            counts,
            decay,
            weights=None if found.weights is None else found.weights.to(table),
            scale=scale,
            backend=self.backend,
        )
        if self.estimator == "pair_table":
            self.saliency.copy_(pair_values(self.pairs, self.layout) * SALIENCY_SCALE / self.joint_counts)
        was_measured = torch.zeros_like(labels).index_fill_(0, owners, 1)
        self.measured.index_add_(0, labels, was_measured)

    def mix(self, clips: Tensor, labels: Tensor, step: int, *, counter: Tensor | None = None) -> MixedBatch:
        """The training batch of a step; `counter` as in `observe`.

        Raises:
            ValueError: fewer than 3 clips, or a clip length that is not a multiple of 4.
        """
        n, num_frames = len(labels), clips.shape[2]
        if self.mode == "none":
            itself = torch.arange(n, device=labels.device)
            return MixedBatch(clips, labels, itself, torch.zeros(n, device=clips.device))
        plan = draw_plan(
            labels,
            self.saliency,
            self.priority,
            self.combinations,
            self.part_of_joint,
            num_frames,
            seed=self.seed,
            step=step if counter is None else counter,
            guided=self.mode == "shapmix" and step >= self.warmup_steps,
            temperature=self.temperature,
            blend_probability=1.0 if self.mode == "mixup" else BLEND_PROBABILITY,
            backend=self.backend,
        )
        both = mix_clips(clips, plan, self.part_of_joint, backend=self.backend)
        return MixedBatch(both, labels, plan.partner, plan.label_share)

    def loss(self, logits: Tensor, batch: MixedBatch) -> tuple[Tensor, Tensor]:
        """(clean, mixed) losses of the network's logits for `batch.clips`; the training loss is their sum."""
        return balanced_mix_loss(logits, batch.labels, batch.partner, batch.share, self.log_prior, backend=self.backend)
