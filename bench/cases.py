"""Benchmark cases: each op on batches of realistic shapes, with its minimum memory traffic.

Traffic is computed from shapes: each input and each output once, regardless of cache hits or repeated reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from shapmix import reference
from shapmix.draws.crops import draw_crops
from shapmix.kernels import (
    balanced_mix_loss,
    batch_norm,
    coalition_inputs,
    draw_plan,
    graph_conv,
    join_branches,
    mix_clips,
    normalised_coalition_inputs,
    saliency_update,
    sample_clips,
)
from shapmix.reference import CropPlan, MixPlan, log_class_prior
from shapmix.skeleton.layout import Layout, load_layout

REAL, HALF = (torch.float32,), (torch.bfloat16, torch.float16)
ALL = (*REAL, *HALF)
RECORDED = (60, 160)  # minimum and maximum frames of a recording
SUBSETS, WIDTH, RELATIONS = 3, 64, 8  # CTR-GCN's early layers
LAYER_CLIPS = 16  # maximum clips in the layer cases


@dataclass(frozen=True)
class Shape:
    """A batch [N, C, T, V, M] of a data set with K classes."""

    name: str
    layout: str
    size: tuple[int, int, int, int, int]
    classes: int


NTU = Shape("ntu", "ntu25", (64, 3, 64, 25, 2), 60)
SHAPES = {
    "cpu": (
        NTU,
        Shape("k400", "coco17", (80, 3, 100, 17, 2), 400),
        Shape("nw_ucla", "ucla20", (32, 3, 64, 20, 1), 10),
        Shape("large", "ntu25", (256, 3, 64, 25, 2), 60),
    ),
    "cuda": (
        NTU,
        Shape("large", "ntu25", (1024, 3, 64, 25, 2), 60),
        Shape("k400", "coco17", (80, 3, 100, 17, 2), 400),
        Shape("nw_ucla", "ucla20", (32, 3, 64, 20, 1), 10),
    ),
}


@dataclass(frozen=True)
class Batch:
    """The inputs of every op for one shape, dtype and device; deterministic."""

    shape: Shape
    dtype: torch.dtype
    device: torch.device

    @property
    def n(self) -> int:
        return self.shape.size[0]

    @cached_property
    def layout(self) -> Layout:
        return load_layout(self.shape.layout)

    @cached_property
    def clips(self) -> Tensor:
        return self._normal(*self.shape.size)

    @cached_property
    def mean_motion(self) -> Tensor:
        return self._normal(*self.shape.size[1:])

    @cached_property
    def part_of_joint(self) -> Tensor:
        return self.layout.part_of_joint.to(self.device)

    @cached_property
    def combinations(self) -> Tensor:
        return self.layout.combinations.to(self.device)

    @cached_property
    def joint_counts(self) -> Tensor:
        return self.layout.joints_in(self.layout.combinations).to(self.device)

    @cached_property
    def class_counts(self) -> Tensor:
        """[K] training clips per class, long-tailed from 600 to 6."""
        return (600 * 0.01 ** torch.linspace(0, 1, self.shape.classes, dtype=torch.float64)).long().to(self.device)

    @cached_property
    def labels(self) -> Tensor:
        """[N], drawn with the class frequencies, so that frequent classes repeat."""
        drawn = torch.multinomial(self.class_counts.cpu().double(), self.n, replacement=True, generator=self._generator())
        return drawn.to(self.device)

    @cached_property
    def saliency(self) -> Tensor:
        """[K, Q] float32 for every dtype of the clips: tables have the accumulation dtype."""
        return torch.rand(self.shape.classes, len(self.combinations), generator=self._generator()).to(self.device)

    @cached_property
    def columns(self) -> Tensor:
        """[N], the combination measured on each sample."""
        return self._integers(0, len(self.combinations) - 1)

    @cached_property
    def coalitions(self) -> Tensor:
        """[2, N], a combination with its context, and the context alone."""
        combination = self.combinations[self.columns]
        context = self._integers(0, self.layout.all_parts) & ~combination
        return torch.stack([combination | context, context])

    @cached_property
    def logits(self) -> Tensor:
        """[2N, K], logits of two coalitions, or of the batch [clean; mixed]."""
        return self._normal(2 * self.n, self.shape.classes)

    @cached_property
    def plan(self) -> MixPlan:
        """A plan that pastes parts into every sample."""
        return reference.draw_plan(*self.drawn_from, seed=0, step=0, blend_probability=0.0)

    @cached_property
    def drawn_from(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]:
        """The first arguments of `draw_plan`."""
        return self.labels, self.saliency, self.class_counts, self.combinations, self.part_of_joint, self.shape.size[2]

    @cached_property
    def log_prior(self) -> Tensor:
        return log_class_prior(self.class_counts).float()

    @cached_property
    def recorded(self) -> tuple[Tensor, Tensor, CropPlan, Tensor]:
        """The arguments of `sample_clips`: one recording per sample, cropped as in training, rotated if C is x, y, z."""
        _, channels, num_frames, joints, people = self.shape.size
        lengths = self._integers(*RECORDED).cpu()
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        crops = draw_crops(torch.arange(self.n), lengths, num_frames=num_frames, seed=0, step=0)
        angles = crops.angles * (self.shape.layout != "coco17")  # x, y, score
        crops = CropPlan(*(value.to(self.device) for value in (crops.clip, crops.start, crops.length, angles)))
        frames = self._normal(int(lengths.sum()), people, joints, channels)
        return frames, offsets.to(self.device), crops, torch.tensor(self.layout.parents, device=self.device)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def _normal(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self._generator()).to(self.device, self.dtype)

    def _integers(self, low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (self.n,), generator=self._generator()).to(self.device)


@dataclass(frozen=True)
class Problem:
    """An op with its inputs.

    Attributes:
        run: calls the op on the named back end.
        reference: calls the eager reference.
        bytes_moved: minimum memory traffic of one run.
    """

    run: Callable[[str], object]
    reference: Callable[[], object]
    bytes_moved: int


@dataclass(frozen=True)
class Case:
    """A benchmark group: an op (or several, joined by ` + `), a variant of the call, and the dtypes it supports."""

    ops: str
    variant: str
    dtypes: tuple[torch.dtype, ...]
    make: Callable[[Batch], Problem]

    def __str__(self) -> str:
        return f"{self.ops} {self.variant}".strip()


def sampled(batch: Batch) -> Problem:
    """Reads at most two recorded frames per frame of the clip. The reference samples clip by clip, as data loaders do."""
    frames, offsets, crops, parents = batch.recorded
    num_frames = batch.shape.size[2]

    def clip_by_clip() -> Tensor:
        clips = []
        for row in range(batch.n):
            crop = CropPlan(*(value[row : row + 1] for value in vars(crops).values()))
            clips.append(reference.sample_clips(frames, offsets, crop, parents, num_frames=num_frames))
        return torch.cat(clips)

    read = int(crops.length.clamp(max=2 * num_frames).sum()) * frames[0].nbytes
    return Problem(
        lambda backend: sample_clips(*batch.recorded, num_frames=num_frames, backend=backend),
        clip_by_clip,
        read + nbytes(vars(crops).values()) + batch.clips.nbytes,
    )


def expanded(sets: int, reuse: bool) -> Callable[[Batch], Problem]:
    """Reads the batch once and writes it for each of `sets` shared coalitions, to new memory or to a reused buffer."""

    def make(batch: Batch) -> Problem:
        coalitions = torch.arange(1, sets + 1, device=batch.device)
        arguments = (batch.clips, batch.mean_motion, coalitions, batch.part_of_joint)
        out = batch.clips.new_empty(sets * batch.n, *batch.shape.size[1:]) if reuse else None
        return Problem(
            lambda backend: coalition_inputs(*arguments, backend=backend, out=out),
            lambda: reference.coalition_inputs(*arguments),
            nbytes(arguments) + sets * batch.clips.nbytes,
        )

    return make


def normalised(batch: Batch) -> Problem:
    """Two coalitions per sample, written as the rows of the network's first layer."""
    norm = batch.mean_motion[:, 0].permute(2, 1, 0).contiguous()  # [M, V, C]
    arguments = (batch.clips, batch.mean_motion, batch.coalitions, batch.part_of_joint, norm, norm)
    return Problem(
        lambda backend: normalised_coalition_inputs(*arguments, backend=backend),
        lambda: reference.normalised_coalition_inputs(*arguments),
        nbytes(arguments) + 2 * batch.clips.nbytes,
    )


def mixed(batch: Batch) -> Problem:
    """Reads the batch once (a partner is a clip of the batch) and writes [clean; mixed]."""
    arguments = (batch.clips, batch.plan, batch.part_of_joint)
    return Problem(
        lambda backend: mix_clips(*arguments, backend=backend),
        lambda: reference.mix_clips(*arguments),
        3 * batch.clips.nbytes + nbytes(vars(batch.plan).values()),
    )


def drawn(batch: Batch) -> Problem:
    """Reads the labels and the saliency of their classes, writes the plan."""
    return Problem(
        lambda backend: draw_plan(*batch.drawn_from, seed=0, step=0, backend=backend),
        lambda: reference.draw_plan(*batch.drawn_from, seed=0, step=0),
        _drawn_bytes(batch),
    )


def updated(batch: Batch) -> Problem:
    """Reads the logits of two coalitions per sample and updates one table entry for each sample."""
    arguments = _update_arguments(batch)
    return Problem(
        lambda backend: saliency_update(*arguments, 0.9, backend=backend),
        lambda: reference.saliency_update(*arguments, 0.9),
        _updated_bytes(batch),
    )


def drawn_and_updated(batch: Batch) -> Problem:
    """The ops of a step that do not move clips."""
    draw, update = drawn(batch), updated(batch)
    return Problem(
        lambda backend: (draw.run(backend), update.run(backend)),
        lambda: (draw.reference(), update.reference()),
        draw.bytes_moved + update.bytes_moved,
    )


def loss_forward(batch: Batch) -> Problem:
    """Reads the logits and writes two numbers."""
    arguments = _loss_arguments(batch)
    return Problem(
        lambda backend: balanced_mix_loss(*arguments, backend=backend),
        lambda: reference.balanced_mix_loss(*arguments),
        nbytes(arguments),
    )


def loss_forward_backward(batch: Batch) -> Problem:
    """Reads the logits in both passes and writes their gradient."""
    logits, *others = _loss_arguments(batch)
    leaf = logits.clone().requires_grad_()
    return Problem(
        lambda backend: torch.autograd.grad(total(balanced_mix_loss(leaf, *others, backend=backend)), leaf),
        lambda: torch.autograd.grad(total(reference.balanced_mix_loss(leaf, *others)), leaf),
        2 * nbytes([logits, *others]) + logits.nbytes,
    )


def graph_forward(batch: Batch) -> Problem:
    """Reads the features of three subsets and writes their sum: an early layer of CTR-GCN on some of the clips."""
    arguments = _graph_arguments(batch)
    return Problem(
        lambda backend: graph_conv(*arguments, backend=backend),
        lambda: reference.graph_conv(*arguments),
        nbytes(arguments) + arguments[0].nbytes // SUBSETS,
    )


def graph_forward_backward(batch: Batch) -> Problem:
    """The forward pass, then reads the features again and writes their gradient."""
    leaves = [value.requires_grad_() for value in _graph_arguments(batch)]
    return Problem(
        lambda backend: torch.autograd.grad(graph_conv(*leaves, backend=backend).float().sum(), leaves),
        lambda: torch.autograd.grad(reference.graph_conv(*leaves).float().sum(), leaves),
        3 * nbytes(leaves) + 2 * leaves[0].nbytes // SUBSETS,
    )


def norm_forward_backward(batch: Batch) -> Problem:
    """The forward pass with shortcut reads two tensors and writes one; the backward pass reads three and writes two."""
    x, shortcut = (value.requires_grad_() for value in (_features(batch, WIDTH, 0), _features(batch, WIDTH, 1)))
    ones = torch.ones(WIDTH, device=batch.device)
    leaves = (x, shortcut)
    return Problem(
        lambda backend: torch.autograd.grad(
            batch_norm(x, ones, ones, 0 * ones, shortcut=shortcut, backend=backend)[0].float().sum(), leaves
        ),
        lambda: torch.autograd.grad(reference.batch_norm(x, ones, ones, 0 * ones, shortcut=shortcut)[0].float().sum(), leaves),
        8 * x.nbytes,
    )


def branches_forward(batch: Batch) -> Problem:
    """Reads four branches and the shortcut, and writes an output of the shortcut's size."""
    narrow, wide, middle, skip = (_features(batch, WIDTH // 4, seed) for seed in range(4))
    shortcut = _features(batch, WIDTH, 4)
    ones = torch.ones(WIDTH // 4, device=batch.device)
    arguments = (narrow, wide, middle, skip, ones, ones)
    return Problem(
        lambda backend: join_branches(*arguments, shortcut=shortcut, backend=backend),
        lambda: reference.join_branches(*arguments, shortcut=shortcut),
        3 * shortcut.nbytes,
    )


def total(losses: tuple[Tensor, Tensor]) -> Tensor:
    """The training loss."""
    clean, mixed = losses
    return clean + mixed


def nbytes(arguments: Iterable[object]) -> int:
    """Total bytes of the tensors among the arguments."""
    return sum(value.nbytes for value in arguments if isinstance(value, Tensor))


def _features(batch: Batch, channels: int, seed: int) -> Tensor:
    """Layer input [rows, channels, T, V], channels-last, of at most `LAYER_CLIPS` clips."""
    n, _, frames, joints, people = batch.shape.size
    size = (min(n, LAYER_CLIPS) * people, channels, frames, joints)
    found = torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(batch.device, batch.dtype)
    return found.contiguous(memory_format=torch.channels_last)


def _graph_arguments(batch: Batch) -> list[Tensor]:
    features = _features(batch, SUBSETS * WIDTH, 0)
    joints, generator = features.shape[3], torch.Generator().manual_seed(0)
    shapes = (
        (len(features), joints, 2, SUBSETS, RELATIONS),
        (SUBSETS, RELATIONS, WIDTH),
        (SUBSETS, WIDTH),
        (SUBSETS, joints, joints),
    )
    return [features, *(0.3 * torch.randn(shape, generator=generator).to(batch.device) for shape in shapes)]


def _drawn_bytes(batch: Batch) -> int:
    labels, saliency, *others = batch.drawn_from
    rows = min(batch.n, len(saliency))
    return labels.nbytes + rows * saliency[0].nbytes + nbytes(others) + nbytes(vars(batch.plan).values())


def _update_arguments(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows = torch.arange(batch.n, device=batch.device)
    return batch.saliency.clone(), batch.logits, batch.labels, batch.columns, rows, rows + batch.n, batch.joint_counts


def _updated_bytes(batch: Batch) -> int:
    table, *others = _update_arguments(batch)
    return nbytes(others) + 3 * batch.n * table.element_size()  # reads and writes an entry, writes a marginal


def _loss_arguments(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return batch.logits, batch.labels, batch.plan.partner, batch.plan.label_share, batch.log_prior


CASES = (
    Case("sample_clips", "", ALL, sampled),
    Case("coalition_inputs", "S=2", ALL, expanded(2, reuse=False)),
    Case("coalition_inputs", "S=31", ALL, expanded(31, reuse=False)),
    Case("coalition_inputs", "S=31 into a buffer", ALL, expanded(31, reuse=True)),
    Case("normalised_coalition_inputs", "S=2", ALL, normalised),
    Case("mix_clips", "", ALL, mixed),
    Case("draw_plan", "", REAL, drawn),
    Case("saliency_update", "", ALL, updated),
    Case("draw_plan + saliency_update", "", REAL, drawn_and_updated),
    Case("balanced_mix_loss", "forward", ALL, loss_forward),
    Case("balanced_mix_loss", "forward and backward", ALL, loss_forward_backward),
    Case("graph_conv", "forward", ALL, graph_forward),
    Case("graph_conv", "forward and backward", ALL, graph_forward_backward),
    Case("batch_norm", "forward and backward", ALL, norm_forward_backward),
    Case("join_branches", "", ALL, branches_forward),
)
