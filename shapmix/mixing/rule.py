"""Candidates for a better mixing rule than the paper's, each off by default.

They are plain torch: a candidate gets kernels once it has won on validation clips (`bench/plans/rule_nw_ucla.yaml`,
`bench/plans/rule_penn_action.yaml`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from shapmix.draws.plans import MixPlan
from shapmix.mixing.mixers import MixedBatch
from shapmix.mixing.saliency import SALIENCY_SCALE
from shapmix.process.choices import check_choice
from shapmix.reference.align import mix_aligned
from shapmix.skeleton.layout import Layout

MEMORY = 100  # steps that the marginal of the drawn labels remembers

Partner = Literal["shift", "inverse"]
Outside = Literal["ignore", "weigh", "smooth"]
Unit = Literal["ntu25", "layout"]
Windows = Literal["batch", "clip"]


@dataclass(frozen=True)
class Rule:
    """Changes of the mixing rule that are on trial, for shapmix and stmix; by default the rule is the paper's."""

    partner: Partner = "shift"
    """shift: every clip is mixed with the one that is so many places on, as published. inverse: partners are drawn from the batch
    with a weight of 1 / training clips of their class, and the loss of the mixed half is adjusted by the running marginal of the
    labels that were really drawn, instead of the class prior."""
    align: bool = False
    """Move pasted parts to where they hang from the body that they are pasted on, scale them to its size and, in three dimensions,
    turn them to its facing. For the joint stream."""
    outside: Outside = "ignore"
    """What is done about the probability that the network gives neither class of a mixed clip. weigh: the loss of the clip is
    multiplied by the probability of its two classes. smooth: as much of its label is spread over all classes."""
    unit: Unit = "ntu25"
    """Unit of the saliency, and so of its temperature: ten joints, which are two average parts of ntu25, or two average parts of
    the layout."""
    windows: Windows = "batch"
    """batch: the window of frames, and whether and by which share whole clips are blended, are drawn once per batch, as published.
    clip: for every clip, and so are the random parts of stmix and of the warm-up."""
    fresh: bool = False
    """Mix a second sampling of the clips, so that the mixed half of a batch shows other crops or frames than the clean half."""

    def check_choices(self) -> None:
        """Raises ValueError where a value is none of those that its rule takes."""
        for name, choices in (("partner", Partner), ("outside", Outside), ("unit", Unit), ("windows", Windows)):
            check_choice(f"rule.{name}", getattr(self, name), get_args(choices))

    @property
    def of_loss(self) -> bool:
        """Whether the loss of the mixed half is another than the registered loss."""
        return self.partner != "shift" or self.outside != "ignore"

    def contradiction(self, *, mix: str, loss: str, compat: str, label_smoothing: float) -> str | None:
        """What is wrong with these options together, for any data, or None."""
        if self == Rule():
            return None
        first = next(name for name, value in vars(self).items() if value != getattr(Rule(), name))
        if compat == "official":
            return f"rule.{first}: compat 'official' reproduces the published rule; leave one of them out"
        if mix not in ("shapmix", "stmix"):
            return f"rule.{first}: changes the rule of shapmix and stmix; mix '{mix}' has another, leave it out"
        if self.unit != "ntu25" and mix != "shapmix":
            return f"rule.unit: mix '{mix}' uses no saliency; leave it out"
        if self.partner != "shift" and loss != "balanced":
            return f"rule.partner: 'inverse' adjusts the mixed half of loss 'balanced'; loss '{loss}' does not go by a marginal"
        if self.outside != "ignore" and loss not in ("balanced", "ce"):
            return f"rule.outside: '{self.outside}' is defined for the losses balanced and ce, not '{loss}'"
        if self.outside == "smooth" and label_smoothing:
            return "rule.outside: 'smooth' is a label smoothing of its own; leave label_smoothing out, or weigh"
        return None

    def unfit(self, layout: Layout, coordinates: int, scores: bool) -> str | None:
        """Why clips of so many coordinates, the last a score with `scores`, cannot be mixed by these rules; None if they can."""
        dimension = coordinates - int(scores)
        if not self.align:
            return None
        if dimension not in (2, 3):
            return f"rule.align: moves parts in 2 or 3 dimensions; the clips have {dimension}"
        if wrong := layout.wrong_dimension(coordinates, scores=scores):
            return f"rule.align: {wrong}"
        if dimension == 3 and not siblings(layout):
            return (
                f"rule.align: layout '{layout.name}' has no left-right pair of joints with one parent, such as shoulders or hips, "
                "so the facing of a body is unknown"
            )
        return None


def scale_of(unit: Unit, layout: Layout) -> float:
    """Joints of two average parts: of `ntu25`, or of the layout."""
    return SALIENCY_SCALE if unit == "ntu25" else 2 * layout.num_joints / layout.num_parts


def siblings(layout: Layout) -> list[tuple[int, int]]:
    """Left-right pairs of joints with the same parent, one of each pair first throughout."""
    parents = layout.parents
    return [(one, other) for one, other in enumerate(layout.flips) if one < other and parents[one] == parents[other]]


def anchors(layout: Layout) -> Tensor:
    """[2^P, V] int64: for each set of pasted parts, the first joint towards the root that is not pasted, or else the root."""
    part = layout.part_of_joint.tolist()
    table = torch.empty(1 << layout.num_parts, layout.num_joints, dtype=torch.int64)
    for parts in range(len(table)):
        for joint in range(layout.num_joints):
            at = joint
            while parts >> part[at] & 1 and layout.parents[at] != at:
                at = layout.parents[at]
            table[parts, joint] = at
    return table


class Aligner(nn.Module):
    """`mix_aligned` for clips of a layout; its tables move with the module and are in no `state_dict`."""

    anchors: Tensor
    bones: Tensor
    pairs: Tensor

    def __init__(self, layout: Layout, coordinates: int, scores: bool) -> None:
        super().__init__()
        self.dimension, self.scores = coordinates - int(scores), scores
        self.up = layout.upward(self.dimension)[0]
        self.register_buffer("anchors", anchors(layout), persistent=False)
        self.register_buffer("bones", torch.tensor(layout.edges).view(-1, 2), persistent=False)
        self.register_buffer("pairs", torch.tensor(siblings(layout), dtype=torch.int64).view(-1, 2), persistent=False)

    def forward(self, clips: Tensor, plan: MixPlan, part_of_joint: Tensor) -> Tensor:
        """[2N, C, T, V, M]: clips [N, C, T, V, M] followed by their mixes."""
        tables = (self.anchors, self.bones, self.pairs)
        return mix_aligned(clips, plan, part_of_joint, *tables, dimension=self.dimension, scores=self.scores, up=self.up)


class DrawnLabels(nn.Module):
    """Running marginal of the labels of mixed clips: the mean over all steps so far, and later over the last `MEMORY`.

    Buffers in `state_dict`:
        marginal [K] float64: label mass of each class, above 0; it starts as the class prior, which counts as one step.
        steps: int64, number of steps in it.
    """

    marginal: Tensor
    steps: Tensor

    def __init__(self, class_counts: Tensor) -> None:
        super().__init__()
        counts = class_counts.double()
        self.register_buffer("marginal", counts / counts.sum())
        self.register_buffer("steps", torch.ones((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, batch: MixedBatch) -> None:
        """Adds the labels of a mixed batch; reads no value on the host."""
        each = torch.arange(len(self.marginal), device=self.marginal.device)
        own, other = (labels[:, None] == each for labels in (batch.labels, batch.labels[batch.partner]))  # [N, K]
        share = batch.share.double()[:, None]
        self.marginal.lerp_((own * (1 - share) + other * share).mean(0), 1 / (self.steps + 1).clamp(max=MEMORY).double())
        self.steps += 1


def mixed_loss(logits: Tensor, batch: MixedBatch, log_prior: Tensor, label_smoothing: float, outside: Outside) -> Tensor:
    """0-dim: the loss of the mixed half.

    Args:
        logits: [N, K] of the mixed clips.
        batch: their labels, partners and shares.
        log_prior: [K] that the logits are adjusted by; zeros for plain cross-entropy.
        label_smoothing: share of each label that is spread over all classes.
        outside: see `Rule`.
    """
    labels, others = batch.labels, batch.labels[batch.partner]
    loss_of = -(logits.to(log_prior.dtype) + log_prior).log_softmax(1)  # [N, K] of each label
    share = batch.share.to(loss_of.dtype)
    each = (1 - share) * _picked(loss_of, labels) + share * _picked(loss_of, others)
    kept = inside(logits, labels, others).to(loss_of.dtype)
    smoothing = 1 - kept if outside == "smooth" else label_smoothing
    each = (1 - smoothing) * each + smoothing * loss_of.mean(1)
    return (kept * each if outside == "weigh" else each).mean()


def inside(logits: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """[N] in 0..1, without gradient: probability that the logits [N, K] give to the two labels of each row."""
    probability = logits.detach().float().softmax(1)
    own = _picked(probability, labels)
    return torch.where(labels == others, own, own + _picked(probability, others)).clamp(max=1)


def _picked(values: Tensor, labels: Tensor) -> Tensor:
    return values.gather(1, labels[:, None])[:, 0]
