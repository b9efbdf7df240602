"""Example inputs of every op, for the doctor, the tests, the benchmarks and the GPU suite.

An op has one entry in `EXAMPLES`: its arguments, made from a batch of a given shape, dtype, device and seed; how far its results
may be from the reference; and the memory that it has to move. Callers change single arguments: `example("mix_clips", batch) |
{"part_of_joint": ...}`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shapmix import reference
from shapmix.draws.crops import draw_crops
from shapmix.reference import AugmentPlan, CropPlan, MixPlan, log_class_prior
from shapmix.skeleton.layout import Layout, load_layout

from .checks import DTYPES, SUM_DTYPES, sum_dtype

Arguments = dict[str, Any]
RECORDED = (60, 160)  # minimum and maximum frames of a recording of a data set
LAYER_CLIPS = 16  # maximum clips in the layers of the network
WRITTEN = ("table",)  # arguments that an op changes


@dataclass(frozen=True)
class Shape:
    """Sizes of a batch and of the layer of CTR-GCN that it reaches.

    Attributes:
        size: [N, C, T, V, M] of the clips.
        classes: K.
        layout: a data set's layout: values are as in training, and T is a multiple of 4, at least 8. None: every value is drawn
            from all that the op accepts.
        parts: without a layout, at most this many; joint v is in part v mod parts.
        subsets, width, relations: graphs, channels and relations of the layer.
    """

    name: str
    layout: str | None
    size: tuple[int, int, int, int, int]
    classes: int
    parts: int = 5
    subsets: int = 3
    width: int = 64
    relations: int = 8


@dataclass(frozen=True)
class Batch:
    """What the ops of one training step take, for one shape, dtype, device and seed; deterministic."""

    shape: Shape
    dtype: torch.dtype
    device: torch.device
    seed: int = 0

    @property
    def n(self) -> int:
        return self.shape.size[0]

    @property
    def num_frames(self) -> int:
        return self.shape.size[2]

    @cached_property
    def layout(self) -> Layout:
        assert self.shape.layout is not None, f"{self.shape.name} has no layout"
        return load_layout(self.shape.layout)

    @cached_property
    def clips(self) -> Tensor:
        return self.normal(*self.shape.size)

    @cached_property
    def mean_motion(self) -> Tensor:
        return self.normal(*self.shape.size[1:])

    @cached_property
    def part_of_joint(self) -> Tensor:
        joints = self.shape.size[3]
        found = self.layout.part_of_joint if self.shape.layout else torch.arange(joints) % self.shape.parts
        return found.to(self.device)

    @cached_property
    def all_parts(self) -> int:
        return (1 << int(self.part_of_joint.max()) + 1) - 1

    @cached_property
    def combinations(self) -> Tensor:
        """[Q] bit sets: those of the layout, or the single parts."""
        found = self.layout.combinations if self.shape.layout else 1 << torch.arange(self.all_parts.bit_length())
        return found.to(self.device)

    @cached_property
    def joint_counts(self) -> Tensor:
        """[Q], the joints of each combination."""
        return (self.combinations[:, None] >> self.part_of_joint & 1).sum(1)

    @cached_property
    def class_counts(self) -> Tensor:
        """[K] training clips per class, long-tailed from 600 to 6."""
        return (600 * 0.01 ** torch.linspace(0, 1, self.shape.classes, dtype=torch.float64)).long().to(self.device)

    @cached_property
    def labels(self) -> Tensor:
        """[N], drawn with the class frequencies, so that frequent classes repeat."""
        frequencies = self.class_counts.cpu().double()
        return torch.multinomial(frequencies, self.n, replacement=True, generator=self._generator()).to(self.device)

    @cached_property
    def saliency(self) -> Tensor:
        """[K, Q] in the accumulation dtype."""
        shape = (self.shape.classes, len(self.combinations))
        return torch.rand(shape, generator=self._generator()).to(self.device, sum_dtype(self.dtype))

    @cached_property
    def columns(self) -> Tensor:
        """[N], the combination measured on each sample."""
        return self.integers(0, len(self.combinations) - 1)

    @cached_property
    def coalitions(self) -> Tensor:
        """[2, N], a combination with its context, and the context alone."""
        combination = self.combinations[self.columns]
        context = self.integers(0, self.all_parts) & ~combination
        return torch.stack([combination | context, context])

    @cached_property
    def logits(self) -> Tensor:
        """[2N, K], logits of two coalitions, or of the batch [clean; mixed]."""
        return self.normal(2 * self.n, self.shape.classes)

    @cached_property
    def plan(self) -> MixPlan:
        """As drawn in training, pasting parts into every sample; without a layout windows and blends of any kind."""
        if self.shape.layout:
            return reference.draw_plan(**self.drawn_from, seed=self.seed, step=0, blend_probability=0.0)
        start, source_start = self.integers(0, self.num_frames - 1, salt=1), self.integers(0, self.num_frames - 1, salt=2)
        return MixPlan(
            partner=self.integers(0, self.n - 1, salt=3),
            parts=self.integers(0, self.all_parts, salt=4),
            start=start,
            length=self.integers(1, self.num_frames - start, salt=5),
            source_start=source_start,
            source_length=self.integers(1, self.num_frames - source_start, salt=6),
            lam=self.normal(self.n, of=torch.float64).abs().clamp(max=1.0),
            blend=self.integers(0, 2, salt=7) == 0,
        )

    @cached_property
    def drawn_from(self) -> Arguments:
        """The arguments of `draw_plan` but its seed and step; mixing needs three clips."""
        labels = self.labels if self.n >= 3 else self.labels.repeat(3)
        found: Arguments = {"labels": labels, "saliency": self.saliency, "priority": self.class_counts}
        found |= {"combinations": self.combinations, "part_of_joint": self.part_of_joint}
        return found | {"num_frames": 4 * max(2, self.num_frames // 4)}

    @cached_property
    def log_prior(self) -> Tensor:
        return log_class_prior(self.class_counts).to(sum_dtype(self.dtype))

    @cached_property
    def recorded(self) -> tuple[Tensor, Tensor, CropPlan, Tensor]:
        """Recordings, offsets, crops and parents for `sample_clips`: one recording per sample, rotated if C is x, y, z."""
        _, channels, num_frames, joints, people = self.shape.size
        shortest, longest = RECORDED if self.shape.layout else (1, 2 * num_frames)
        lengths = self.integers(shortest, longest, salt=8).cpu()
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        crops = draw_crops(torch.arange(self.n), lengths, num_frames=num_frames, seed=self.seed, step=0)
        if not self.shape.layout:
            start = self.integers(0, lengths - 1, salt=9).cpu()
            crops = CropPlan(crops.clip, start, self.integers(1, lengths - start, salt=10).cpu(), crops.angles)
        coordinates = channels == 3 and self.shape.layout != "coco17"  # there the third channel is a score
        crops = CropPlan(crops.clip, crops.start, crops.length, crops.angles * coordinates)
        frames = self.normal(int(lengths.sum()), people, joints, channels)
        parents = torch.tensor(self.layout.parents) if self.shape.layout else torch.arange(joints) // 2
        on_device = CropPlan(**{name: value.to(self.device) for name, value in vars(crops).items()})
        return frames, offsets.to(self.device), on_device, parents.to(self.device)

    def features(self, channels: int, salt: int = 0) -> Tensor:
        """Input of a layer [rows, channels, T, V], channels-last, of at most `LAYER_CLIPS` clips and at least two rows."""
        n, _, frames, joints, people = self.shape.size
        found = self.normal(max(2, min(n, LAYER_CLIPS) * people), channels, frames, joints, salt=salt)
        return found.contiguous(memory_format=torch.channels_last)

    def weights(self, *size: int, salt: int = 0) -> Tensor:
        """Normal in the accumulation dtype."""
        return self.normal(*size, of=sum_dtype(self.dtype), salt=salt)

    def normal(self, *size: int, of: torch.dtype | None = None, salt: int = 0) -> Tensor:
        """Normal in a dtype, by default that of the clips."""
        return torch.randn(size, generator=self._generator(salt)).to(self.device, of or self.dtype)

    def integers(self, low: int, high: Tensor | int, salt: int = 0) -> Tensor:
        """[N] int64, uniform on low..high."""
        share = torch.rand(self.n, generator=self._generator(salt), dtype=torch.float64).to(self.device)
        return (low + share * (high - low + 1)).floor().long()

    def _generator(self, salt: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.seed + salt)


class Kind(NamedTuple):
    """How the examples of an op are made and judged.

    Attributes:
        make: the arguments by name, which the op and its reference share.
        tolerance: of arguments and expected results: the largest difference allowed in each result; 0 asks for the same bits.
        bytes_moved: the least traffic of a forward pass: each input and each output once.
        dtypes: those that the results depend on.
    """

    make: Callable[[Batch], Arguments]
    tolerance: Callable[[Arguments, list[Tensor]], list[Tensor | float]]
    bytes_moved: Callable[[Arguments], int]
    dtypes: tuple[torch.dtype, ...] = DTYPES


def example(op: str, batch: Batch) -> Arguments:
    """New arguments of an op by name: changing them, also in place, changes no other example."""
    made = EXAMPLES[op].make(batch)
    return {name: value.clone() if name in WRITTEN else value for name, value in made.items()}


def results(function: Callable[..., Any], arguments: Arguments, **options: Any) -> list[Tensor]:
    """What an op or its reference computes, with the arguments that it changes last. The given arguments stay as they are."""
    arguments = {name: value.clone() if name in WRITTEN else value for name, value in arguments.items()}
    found = function(**arguments, **options)
    tensors = [found] if isinstance(found, Tensor) else list(found if isinstance(found, tuple) else vars(found).values())
    return [*tensors, *(arguments[name] for name in WRITTEN if name in arguments)]


def agree(op: str, arguments: Arguments, found: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether results have the reference's shapes, dtypes and, within the op's tolerance, values; NaN agrees with NaN."""
    allowed = EXAMPLES[op].tolerance(arguments, expected)
    return all(_within(*judged) for judged in zip(found, expected, allowed, strict=True))


def _within(found: Tensor, expected: Tensor, allowed: Tensor | float) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if isinstance(allowed, float) and allowed == 0:
        return torch.equal(found, expected)
    same = (found == expected) | (found.isnan() & expected.isnan())
    return bool((same | ((found.double() - expected.double()).abs() <= allowed)).all())


def nbytes(values: Iterable[object]) -> int:
    """Total bytes of the tensors among the values, also of those in plans."""
    found = 0
    for value in values:
        if isinstance(value, Tensor):
            found += value.nbytes
        elif isinstance(value, MixPlan | CropPlan | AugmentPlan):
            found += nbytes(vars(value).values())
    return found


def _eps(value: Tensor) -> float:
    return torch.finfo(value.dtype).eps


def _exact(arguments: Arguments, expected: list[Tensor]) -> list[Tensor | float]:
    """The same bits: a copy, or products and sums that are rounded one by one as in the reference."""
    return [0.0] * len(expected)


def _sample_clips(batch: Batch) -> Arguments:
    frames, offsets, plan, parents = batch.recorded
    found = {"frames": frames, "offsets": offsets, "plan": plan, "parents": parents}
    return found | {"stream": "joint" if batch.shape.layout else "bone_motion", "num_frames": batch.num_frames}


def _sample_tolerance(arguments: Arguments, expected: list[Tensor]) -> list[Tensor | float]:
    """Two weights, two products, a sum, three 3x3 rotations, sines, a matrix, noise; the position between two frames is rounded at
    the crop's length, times the speed; each difference doubles the error."""
    frames, augment = arguments["frames"], arguments.get("augment") or AugmentPlan()
    largest, furthest = float(frames.abs().max()), float(arguments["plan"].length.max())
    if augment.pace is not None:
        furthest = 2 * (furthest * max(1.0, float(augment.pace[:, 0].max())) + float(augment.pace[:, 1].abs().max()))
    if augment.linear is not None:
        largest *= max(1.0, 2 * float(augment.linear.abs().sum(2).max()))
    if augment.jitter is not None:
        largest += 5 * float(augment.jitter.max())
    doublings = {"joint": 0, "bone": 1, "motion": 1, "bone_motion": 2}[arguments["stream"]]
    return [(24 * _eps(frames) + furthest * torch.finfo(sum_dtype(frames.dtype)).eps) * largest * 2**doublings]


def _sample_bytes(arguments: Arguments) -> int:
    """Reads at most two recorded frames per frame of the clip."""
    frames, plan, num_frames = (arguments[name] for name in ("frames", "plan", "num_frames"))
    read = int(plan.length.clamp(max=2 * num_frames).sum())
    return (read + len(plan.clip) * num_frames) * frames[0].nbytes + nbytes([plan, arguments.get("augment")])


def _coalition_inputs(batch: Batch) -> Arguments:
    found = {"clips": batch.clips, "mean_motion": batch.mean_motion}
    return found | {"coalitions": batch.coalitions, "part_of_joint": batch.part_of_joint}


def _coalition_bytes(arguments: Arguments) -> int:
    return nbytes(arguments.values()) + len(arguments["coalitions"]) * arguments["clips"].nbytes


def _mix_clips(batch: Batch) -> Arguments:
    return {"clips": batch.clips, "plan": batch.plan, "part_of_joint": batch.part_of_joint}


def _mix_bytes(arguments: Arguments) -> int:
    """Reads the batch once (a partner is a clip of the batch) and writes [clean; mixed]."""
    return 3 * arguments["clips"].nbytes + nbytes([arguments["plan"]])


def _draw_bytes(arguments: Arguments) -> int:
    """Reads the labels and the saliency of their classes, and writes a plan of six integers, a float64 and a byte per sample."""
    labels, saliency, *others = arguments.values()
    rows = min(len(labels), len(saliency))
    return labels.nbytes + rows * saliency[0].nbytes + nbytes(others) + len(labels) * (7 * 8 + 1)


def _saliency_update(batch: Batch) -> Arguments:
    rows = torch.arange(batch.n, device=batch.device)
    found = {"table": batch.saliency, "logits": batch.logits, "labels": batch.labels, "columns": batch.columns}
    return found | {"with_rows": rows, "without_rows": rows + batch.n, "joint_counts": batch.joint_counts, "decay": 0.9}


def _saliency_tolerance(arguments: Arguments, expected: list[Tensor]) -> list[Tensor | float]:
    """Marginals: rounding of an exponent of up to 40 and of a sum of K terms, weighted and summed over contexts. Table: the same,
    scaled, plus one rounding per update."""
    table, with_rows = arguments["table"], arguments["with_rows"]
    contexts = 1 if with_rows.dim() == 1 else with_rows.shape[1]
    of_marginal = _eps(table) * (64 + len(table)) * contexts
    return [of_marginal, 10 * of_marginal + _eps(table) * 4 * len(with_rows) * 10 * contexts]


def _saliency_bytes(arguments: Arguments) -> int:
    """Reads the logits of two coalitions per sample, reads and writes a table entry, writes a marginal."""
    table, *others = arguments.values()
    return nbytes(others) + 3 * len(arguments["labels"]) * table.element_size()


def _balanced_mix_loss(batch: Batch) -> Arguments:
    found = {"logits": batch.logits, "labels": batch.labels, "partner": batch.plan.partner}
    return found | {"lam": batch.plan.label_share, "log_prior": batch.log_prior}


def _loss_tolerance(arguments: Arguments, expected: list[Tensor]) -> list[Tensor | float]:
    """K exponentials of rounded differences of up to 40, their sum, and the mean."""
    return [_eps(arguments["log_prior"]) * (64 + arguments["logits"].shape[1]) * 8] * 2


def _graph_conv(batch: Batch) -> Arguments:
    shape = batch.shape
    features = batch.features(shape.subsets * shape.width)
    rows, joints = len(features), features.shape[3]
    return {
        "features": features,
        "relation_terms": 0.3 * batch.weights(rows, joints, 2, shape.subsets, shape.relations, salt=1),
        "weight": 0.3 * batch.weights(shape.subsets, shape.relations, shape.width, salt=2),
        "bias": 0.3 * batch.weights(shape.subsets, shape.width, salt=3),
        "shared": 0.3 * batch.weights(shape.subsets, joints, joints, salt=4),
    }


def _graph_tolerance(arguments: Arguments, expected: list[Tensor]) -> list[Tensor | float]:
    """Sums over V joints and S subsets of graphs that are sums over K relations, plus one rounding to the features' dtype; both
    relative to the largest result."""
    features, weight = arguments["features"], arguments["weight"]
    terms = weight.shape[0] * features.shape[3] * max(features.shape[2], 1) + weight.shape[1] + 32
    return [(2 * _eps(features) + terms * 4 * _eps(weight)) * float(expected[0].double().abs().max())]


def _graph_bytes(arguments: Arguments) -> int:
    """Reads the features of all subsets and writes their sum."""
    return nbytes(arguments.values()) + arguments["features"].nbytes // len(arguments["weight"])


def _batch_norm(batch: Batch) -> Arguments:
    width = batch.shape.width
    ones = torch.ones(width, device=batch.device, dtype=sum_dtype(batch.dtype))
    found = {"x": batch.features(width), "weight": ones, "bias": 0 * ones, "lowest": 0 * ones}
    return found | {"shortcut": batch.features(width, salt=1)}


def _norm_tolerance(arguments: Arguments, expected: list[Tensor]) -> list[Tensor | float]:
    """Relative to the largest result. Few rows can have a small spread, with the mean's rounding error."""
    spread = float(expected[2].clamp(min=1e-5).rsqrt().max())
    bound = 4 * _eps(arguments["x"]) + 64 * _eps(arguments["lowest"]) * max(spread, 1.0) * 10
    return [bound * (float(value.double().abs().max()) or 1.0) for value in expected]


def _join_branches(batch: Batch) -> Arguments:
    width = batch.shape.width // 4
    found: Arguments = {name: batch.features(width, salt) for salt, name in enumerate(("narrow", "wide", "middle", "skip"))}
    found |= {"scale": batch.weights(width, salt=4), "offset": batch.weights(width, salt=5)}
    return found | {"shortcut": batch.features(4 * width, salt=6)}


def _branches_tolerance(arguments: Arguments, expected: list[Tensor]) -> list[Tensor | float]:
    """Three roundings in the accumulation dtype, one to the element dtype."""
    values = expected[0].double().abs()
    rounding = _eps(expected[0]) if expected[0].element_size() == 2 else 0.0
    return [8 * _eps(arguments["scale"]) * (values.max() + 1) + rounding * values]


EXAMPLES: dict[str, Kind] = {
    "sample_clips": Kind(_sample_clips, _sample_tolerance, _sample_bytes),
    "coalition_inputs": Kind(_coalition_inputs, _exact, _coalition_bytes),
    "mix_clips": Kind(_mix_clips, _exact, _mix_bytes),
    "draw_plan": Kind(lambda batch: batch.drawn_from | {"seed": batch.seed, "step": 2}, _exact, _draw_bytes, SUM_DTYPES),
    "saliency_update": Kind(_saliency_update, _saliency_tolerance, _saliency_bytes),
    "balanced_mix_loss": Kind(_balanced_mix_loss, _loss_tolerance, lambda arguments: nbytes(arguments.values())),
    "graph_conv": Kind(_graph_conv, _graph_tolerance, _graph_bytes),
    "batch_norm": Kind(_batch_norm, _norm_tolerance, lambda arguments: 3 * arguments["x"].nbytes),
    "join_branches": Kind(_join_branches, _branches_tolerance, lambda arguments: 3 * arguments["shortcut"].nbytes),
}
