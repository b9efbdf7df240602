"""Shap-Mix for any training loop: measure the saliency, mix the batch, compute the loss."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from shapmix.kernels import BACKENDS, expanded
from shapmix.mixing import official
from shapmix.mixing.estimators import ESTIMATORS, check_budget, drawn_on_device
from shapmix.mixing.losses import LOSSES, Classes
from shapmix.mixing.marginals import FORWARDS, Request
from shapmix.mixing.mixers import MIXERS, Batch, MixedBatch, Pasting
from shapmix.mixing.rule import Aligner, DrawnLabels, Rule, mixed_loss, scale_of
from shapmix.mixing.saliency import ClassSaliency
from shapmix.networks.arguments import check_clips, check_labels, check_logits, check_mean_motion, whole_counts
from shapmix.networks.ctrgcn import takes_coalitions
from shapmix.networks.modes import in_eval_mode, isolated_eval_mode
from shapmix.process.choices import check_choice
from shapmix.reference import log_class_prior
from shapmix.reference.coalition import CoalitionClips
from shapmix.skeleton.layout import Layout

Compat = Literal["default", "official"]


class ShapMix(nn.Module):
    """Mixing guided by the class saliency of body parts, with the saliency as its state.

    A step of any training loop:

        mixer.observe(network, clips, labels, step)
        batch = mixer.mix(clips, labels, step)
        loss = sum(mixer.loss(network(batch.clips), batch))

    Args:
        layout: skeleton and parts of the clips.
        class_counts: [K] training clips of each class, integers > 0; a tensor, an array or a list.
        mean_motion: [C, T, V, M] mean of the training clips in the network's input format
            (`shapmix.data.sampling.mean_motion`); V is the layout's number of joints. Clips have the same shape, in any
            floating-point dtype.
        mix: "shapmix"; "stmix", the same without saliency; "mixup", whole clips; "none"; or another name in
            `shapmix.mixing.mixers.MIXERS`.
        loss: "balanced" adjusts the logits by the class prior, "ce" is plain cross-entropy; or another name in
            `shapmix.mixing.losses.LOSSES`.
        estimator: saliency estimator (`shapmix.mixing.estimators`); all except "exact" keep to the budget. None means "official"
            with `compat="official"`, else "exact_subset", which has the lowest error at the published cost
            (`bench/results/saliency_estimators.json`).
        budget: most forward passes per clip of a measurement; the empty coalition, one more row per batch, is not counted. A small
            budget measures the clips whose classes were measured least; each measurement then counts for more, so that the class
            average has the same memory in steps. "official", "naive" and "pair_table" use at most 2, 1 and 2. None means the
            published 2, and in a batch too small for that one sample.
        every: K, measure in steps 0, K, 2K, ... only. The decay applies per measurement, so that the class average remembers as
            many measurements, which are K times as many steps; the number of a measurement, step // K, decides its draws.
        compat: "official" reproduces the published code's deviations from its paper (`shapmix.mixing.official`).
        temperature: softmax temperature over a class's combinations, in units of the saliency.
        blend_probability: probability, drawn once per batch, that "shapmix" and "stmix" blend whole clips (Mixup) instead of
            pasting.
        decay: decay of the class average for one update per sample; adjusted for estimators that update more often.
        tail_aware: of two classes the salient parts of the rarer are kept; False keeps those of the clip that is pasted into.
        warmup_steps: initial steps in which mixing is ST-Mix and the saliency is measured with empty contexts.
        replace_steps: initial steps in which a measurement replaces the class average instead of updating it;
            default: `warmup_steps`.
        deferred_steps: initial steps in which the losses "ldam" and "action_aware" do not weight classes.
        label_smoothing: share of each label, clean or mixed, that is spread over all classes, in every loss.
        rule: changes of the mixing rule that are on trial (`shapmix.mixing.rule.Rule`); by default the rule is the paper's.
            `align` takes clips of joint positions only: bones and motion have no place to be moved to.
        scores: whether the last coordinate of a clip is a confidence score: `align` does not move it, and mixers that would mix it
            as a coordinate are refused.
        seed: random seed; draws are functions of (seed, step).
        backend: of the kernels (see `shapmix.kernels`); None selects the fastest.

    Raises:
        TypeError, ValueError: an unknown choice (with the nearest valid one), a wrong shape or dtype, a number out of range, a
            class without training clips, a mixer or rules that do not fit the clips, rules that contradict other options, or
            `compat="official"` with a layout that does not have five parts.

    Labels on the CPU are checked against K. Labels on a GPU are not, since that would synchronise in every step: a label outside
    0 to K - 1 triggers a device-side assert, after which the process cannot use the GPU. Check such labels once, at their source.

    The table `saliency` [K, Q] has the layout's combinations as columns; it and the other class statistics are buffers of
    `class_saliency`, included in `state_dict`.
    """

    mean_motion: Tensor
    class_counts: Tensor
    log_prior: Tensor
    priority: Tensor
    part_of_joint: Tensor
    combinations: Tensor

    def __init__(
        self,
        layout: Layout,
        class_counts: Tensor | Sequence[int],
        mean_motion: Tensor,
        *,
        mix: str = "shapmix",
        loss: str = "balanced",
        estimator: str | None = None,
        budget: float | None = None,
        every: int = 1,
        compat: Compat = "default",
        temperature: float = 0.2,
        blend_probability: float = 0.25,
        decay: float = 0.9,
        tail_aware: bool = True,
        warmup_steps: int = 0,
        replace_steps: int | None = None,
        deferred_steps: int = 0,
        label_smoothing: float = 0.0,
        rule: Rule | None = None,
        scores: bool = False,
        seed: int = 0,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        entry = MIXERS.find(mix)
        LOSSES.find(loss)
        check_choice("compat", compat, get_args(Compat))
        if estimator is None:
            estimator = "official" if compat == "official" else "exact_subset"
        ESTIMATORS.find(estimator)
        _check_cost(budget, every)
        if backend is not None:
            check_choice("backend", backend, ("auto", *BACKENDS))
        if not isinstance(layout, Layout):
            raise TypeError(f"layout is a {type(layout).__name__}; give a Layout: load_layout('ntu25')")
        class_counts = whole_counts("class_counts", class_counts)
        empty = torch.nonzero(class_counts < 1).flatten().tolist()
        if empty:
            raise ValueError(f"class_counts: class {empty[0]} has no training clip, so its prior is zero; leave the class out")
        if len(class_counts) < 2:
            raise ValueError("class_counts: one class; a classifier needs at least two")
        check_mean_motion(mean_motion, layout.num_joints, layout.name)
        if wrong := entry.unfit(layout, len(mean_motion) - int(scores), scores):
            raise ValueError(f"mix '{mix}' {wrong}")
        _check_numbers(temperature, blend_probability, label_smoothing)
        _check_steps(warmup=warmup_steps, replace=replace_steps, deferred=deferred_steps)
        self.layout, self.mix_name, self.compat, self.backend = layout, mix, compat, backend
        self.estimator, self.budget, self.every = estimator, budget, every
        self.temperature, self.seed, self.loss_name, self.deferred_steps = temperature, seed, loss, deferred_steps
        self.blend_probability, self.label_smoothing = blend_probability, label_smoothing
        self.warmup_steps = warmup_steps
        self.replace_steps = warmup_steps if replace_steps is None else replace_steps
        classes = len(class_counts)
        if compat == "official":
            priority, joint_counts = official.priority(classes), official.joint_counts(layout)
            self.restored_frames = official.restored_frames(layout)
        else:
            priority, joint_counts = class_counts, layout.joints_in(layout.combinations)
            self.restored_frames = None
        if not tail_aware:
            priority = torch.zeros_like(priority)  # all classes tie
        self.rule = Rule() if rule is None else rule
        self._check_rule(len(mean_motion), scores)
        self.class_saliency = ClassSaliency(classes, layout, joint_counts, estimator, decay, scale_of(self.rule.unit, layout))
        self.drawn = DrawnLabels(class_counts) if self.rule.partner == "inverse" else None
        self.register_buffer("mean_motion", mean_motion)
        self.aligner = Aligner(layout, len(mean_motion), scores) if self.rule.align else None
        self._register_constants(class_counts, priority)

    def _check_rule(self, coordinates: int, scores: bool) -> None:
        self.rule.check_choices()
        options = {"mix": self.mix_name, "loss": self.loss_name, "compat": self.compat}
        wrong = self.rule.contradiction(**options, label_smoothing=self.label_smoothing)
        if wrong := wrong or self.rule.unfit(self.layout, coordinates, scores):
            raise ValueError(wrong)

    def _register_constants(self, class_counts: Tensor, priority: Tensor) -> None:
        """Registers buffers that are derived from the arguments: they move with the module, but are not in `state_dict`."""
        wide = self.mean_motion.dtype == torch.float64
        self.register_buffer("class_counts", class_counts.clone(), persistent=False)
        log_prior = log_class_prior(class_counts)
        self.register_buffer("log_prior", log_prior.to(torch.float64 if wide else torch.float32), persistent=False)
        self.register_buffer("priority", priority.clone(), persistent=False)
        self.register_buffer("part_of_joint", self.layout.part_of_joint, persistent=False)
        self.register_buffer("combinations", self.layout.combinations, persistent=False)

    @property
    def views(self) -> int:
        """2 if `mix` takes a second sampling of the clips, otherwise 1."""
        return 2 if self.rule.fresh else MIXERS[self.mix_name].views

    def measures(self, step: int) -> bool:
        """Whether `observe` measures the saliency in a step; otherwise it forwards nothing and changes nothing."""
        return MIXERS[self.mix_name].guided and step % self.every == 0

    @torch.no_grad()
    def observe(self, network: nn.Module, clips: Tensor, labels: Tensor, step: int, *, counter: Tensor | None = None) -> None:
        """Measures the saliency on the batch, in eval mode, and updates the class table, in the steps that it `measures`.

        By default about 2N rows are forwarded; see `budget`.

        Args:
            network: any module that maps [N, C, T, V, M] to logits [N, K]; the mode of every submodule is restored.
            clips: [N, C, T, V, M] with the shape of the mean motion.
            labels: [N] int64.
            step: training step.
            counter: the step as a 0-dim int64 tensor on the device of the clips. If given, nothing synchronises with the host, and
                `step` only selects the phase of the schedule and whether the step measures, so that the call can be captured in a
                CUDA graph. The network must not change its buffers or torch's random state in eval mode, since they are not
                restored then.

        Non-finite marginals, such as those of a clip with NaN, are skipped: the table is unchanged, and the class does not count as
        measured. The range of labels is only checked on the CPU and without a counter.

        Raises:
            TypeError, ValueError: clips, labels or the network's output have a wrong shape, dtype or device, a counter is given for
                an estimator that is drawn on the host, or the budget is below what the estimator needs for this batch.
        """
        self._check(clips, labels, counter)
        if not isinstance(network, nn.Module):
            raise TypeError(f"network is a {type(network).__name__}; give a torch.nn.Module")
        if not self.measures(step):
            return
        estimator = ESTIMATORS[self.estimator]
        if counter is not None and not estimator.on_device:
            raise ValueError(
                f"estimator '{self.estimator}' is drawn on the host; leave the counter out, or take one of "
                f"{', '.join(drawn_on_device())}"
            )
        if self.budget is not None:
            check_budget(self.estimator, self.layout, self.budget, len(clips))
        found = estimator.propose(self._request(labels, step, counter))
        index = torch.zeros(2, 1 + len(found.samples), dtype=torch.int64, device=clips.device)  # row 0 is the empty coalition
        index[0, 1:], index[1, 1:] = found.samples, found.coalitions
        rows = CoalitionClips(clips, self.mean_motion.to(clips.dtype), index[0], index[1], self.part_of_joint, self.restored_frames)
        is_lazy = self.backend in (None, "auto", "triton") and takes_coalitions(network)
        with isolated_eval_mode(network) if counter is None else in_eval_mode(network):
            logits = network(rows if is_lazy else expanded(rows, backend=self.backend))
        check_logits("the network's result", logits, len(rows), len(self.class_counts))
        self.class_saliency.update(found, logits, labels, replace=step < self.replace_steps, backend=self.backend)

    def _request(self, labels: Tensor, step: int, counter: Tensor | None) -> Request:
        number = step if counter is None else counter
        return Request(
            self.class_saliency.measured[labels],
            self.layout,
            self.seed,
            number if self.every == 1 else number // self.every,
            shared=self.compat == "official",
            naive=step < self.warmup_steps,
            combinations=None if counter is None else self.combinations,
            budget=FORWARDS if self.budget is None else self.budget,
        )

    @property
    def saliency(self) -> Tensor:
        """[K, Q]: mean saliency of every combination of the layout for each class."""
        return self.class_saliency.mean

    def mix(
        self, clips: Tensor, labels: Tensor, step: int, *, counter: Tensor | None = None, second: Tensor | None = None
    ) -> MixedBatch:
        """The training batch of a step; `counter` as in `observe`.

        Values of clips are not checked: NaN propagates to every clip that a clip is mixed into. With partners drawn by inverse
        class frequency, the labels are added to their running marginal, a buffer of `drawn`.

        Args:
            second: another sampling of the same clips, of the same shape; if `views` is 2, which then needs it.

        Raises:
            TypeError, ValueError: clips or labels have a wrong shape, dtype or device, there are fewer than 3 clips, the clip
                length is not a multiple of 4, a counter is given for a mixer that draws on the host, or a second sampling is
                missing or given for a mixer without one.
        """
        self._check(clips, labels, counter)
        mixer = MIXERS[self.mix_name]
        if (second is None) != (self.views == 1):
            wrong = "takes one sampling of the clips; leave second out" if second is not None else "needs another as second"
            raise ValueError(f"mix '{self.mix_name}' {wrong}")
        if second is not None and (second.shape, second.device) != (clips.shape, clips.device):
            raise ValueError(f"second: give another sampling of the same clips, a tensor {list(clips.shape)} on {clips.device}")
        if counter is not None and not mixer.on_device:
            raise ValueError(f"mix '{self.mix_name}' draws on the host; leave the counter out")
        pasting = Pasting(
            self.saliency,
            self.priority,
            self.combinations,
            self.part_of_joint,
            self.temperature,
            self.blend_probability,
            step >= self.warmup_steps,
            self.backend,
            inverse=self.drawn is not None,
            each=self.rule.windows == "clip",
            aligned=self.aligner,
        )
        batch = mixer.mix(Batch(clips, labels, self.class_counts, self.layout, self.seed, step, counter, pasting, second))
        if self.drawn is not None:
            self.drawn.update(batch)
        return batch

    def loss(self, logits: Tensor, batch: MixedBatch) -> tuple[Tensor, Tensor]:
        """(clean, mixed) losses of the network's logits for `batch.clips`; the training loss is their sum.

        If it is non-finite, skip the step and also restore the network's running statistics (BatchNorm), which already include the
        batch; the trainer's `--non-finite skip` and `shapmix.training.step.TrainingStep` do both.

        Raises:
            TypeError, ValueError: the logits are not floating point [2N, K] ([N, K] without mixed clips).
        """
        check_logits("logits", logits, len(batch.clips), len(self.class_counts))
        log_prior = self.log_prior.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
        classes = Classes(self.class_counts, log_prior, batch.step >= self.deferred_steps, self.backend, self.label_smoothing)
        of_batch, n = LOSSES[self.loss_name].of_batch, len(batch.labels)
        if not self.rule.of_loss:
            return of_batch(logits, batch, classes)
        prior = torch.zeros_like(log_prior) if self.loss_name == "ce" else log_prior
        if self.drawn is not None:
            prior = self.drawn.marginal.log().to(log_prior)
        clean, _ = of_batch(logits[:n], batch, classes)
        return clean, mixed_loss(logits[n:], batch, prior, self.label_smoothing, self.rule.outside)

    def _check(self, clips: Tensor, labels: Tensor, counter: Tensor | None) -> None:
        check_clips(clips, self.mean_motion)
        check_labels(labels, clips, len(self.class_counts), values=counter is None)


def _check_numbers(temperature: float, blend_probability: float, label_smoothing: float) -> None:
    if not (temperature > 0 and isfinite(temperature)):
        raise ValueError(f"temperature is {temperature}; give a number above 0")
    if not 0 <= blend_probability <= 1:
        raise ValueError(f"blend_probability is between 0 and 1, not {blend_probability}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is at least 0 and below 1, not {label_smoothing}")


def _check_cost(budget: float | None, every: int) -> None:
    if budget is not None and not (budget > 0 and isfinite(budget)):
        raise ValueError(f"budget is {budget}; give the forward passes per clip, a number above 0")
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"every is {every}; give 1 to measure in every step, K for every K-th")


def _check_steps(**schedule: int | None) -> None:
    for name, steps in schedule.items():
        if steps is not None and steps < 0:
            raise ValueError(f"{name}_steps is {steps}; give 0 or more")
