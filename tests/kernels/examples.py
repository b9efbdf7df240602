"""Example problems of the ops: fixed arguments that the tests of several ops share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from shapmix.draws.crops import draw_crops
from shapmix.kernels.checks import sum_dtype
from shapmix.reference import CropPlan, MixPlan, Stream
from shapmix.skeleton.layout import load_layout
from tests.kernels.backends import uniform_integers


class MixProblem(NamedTuple):
    clips: Tensor
    mean_motion: Tensor
    coalitions: Tensor
    part_of_joint: Tensor
    restored_frames: int | None
    plan: MixPlan

    def on(self, device: torch.device) -> MixProblem:
        return MixProblem(
            self.clips.to(device),
            self.mean_motion.to(device),
            self.coalitions.to(device),
            self.part_of_joint.to(device),
            self.restored_frames,
            MixPlan(**{name: value.to(device) for name, value in vars(self.plan).items()}),
        )


def mix_problem(dtype: torch.dtype = torch.float32) -> MixProblem:
    """3 clips of 2 x 8 x 4 x 2 with parts 0 and 1; the first sample is blended."""
    generator = torch.Generator().manual_seed(0)
    three = torch.tensor([3, 3, 3])
    plan = MixPlan(
        partner=torch.tensor([1, 2, 0]),
        parts=torch.tensor([1, 2, 3]),
        start=three - 2,
        length=three,
        source_start=three - 3,
        source_length=three + 2,
        lam=torch.tensor([0.3, 0.2, 0.4], dtype=torch.float64),
        blend=torch.tensor([True, False, False]),
    )
    clips = torch.randn(3, 2, 8, 4, 2, generator=generator).to(dtype)
    mean_motion = torch.randn(2, 8, 4, 2, generator=generator).to(dtype)
    return MixProblem(clips, mean_motion, torch.tensor([0, 1, 3]), torch.tensor([0, 0, 1, 1]), None, plan)


class CropProblem(NamedTuple):
    frames: Tensor
    offsets: Tensor
    plan: CropPlan
    parents: Tensor
    stream: Stream
    num_frames: int

    def on(self, device: torch.device) -> CropProblem:
        plan = CropPlan(**{name: value.to(device) for name, value in vars(self.plan).items()})
        return self._replace(
            frames=self.frames.to(device), offsets=self.offsets.to(device), plan=plan, parents=self.parents.to(device)
        )


def crop_problem(n: int = 64, dtype: torch.dtype = torch.float32) -> CropProblem:
    """A batch large enough that every thread gets work."""
    generator = torch.Generator().manual_seed(0)
    lengths = uniform_integers(generator, 40, 150, n)
    frames = torch.randn(int(lengths.sum()), 2, 25, 3, generator=generator).to(dtype)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    plan = draw_crops(torch.arange(n), lengths, num_frames=64, seed=0, step=0)
    return CropProblem(frames, offsets, plan, torch.tensor(load_layout("ntu25").parents), "joint", 64)


def plan_arguments(**changes: Any) -> dict[str, Any]:
    labels, layout = torch.arange(64) % 7, load_layout("ntu25")
    return {
        "labels": labels,
        "saliency": torch.rand(7, 20, generator=torch.Generator().manual_seed(0)),
        "priority": torch.tensor([90, 60, 40, 40, 20, 9, 4]),
        "combinations": layout.combinations,
        "part_of_joint": layout.part_of_joint,
        "num_frames": 64,
        "seed": 3,
        "step": 5,
    } | changes


def update_arguments(**changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "table": torch.full((3, 4), 0.5),
        "logits": torch.randn(5, 3, generator=generator),
        "labels": torch.tensor([0, 2]),
        "columns": torch.tensor([3, 1]),
        "with_rows": torch.tensor([0, 1]),
        "without_rows": torch.tensor([4, 4]),
        "joint_counts": torch.tensor([5, 6, 6, 4]),
        "decay": 0.9,
    } | changes


def loss_arguments(n: int = 6, classes: int = 5, dtype: torch.dtype = torch.float32, **changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "logits": torch.randn(2 * n, classes, generator=generator).to(dtype),
        "labels": torch.arange(n) % classes,
        "partner": torch.arange(n).roll(1),
        "lam": torch.rand(n, generator=generator),
        "log_prior": torch.rand(classes, generator=generator).log().to(sum_dtype(dtype)),
    } | changes


def graph_arguments(dtype: torch.dtype = torch.float64, channels: int = 8) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"features": (2, 3 * channels, 4, 5), "relation_terms": (2, 5, 2, 3, 2), "weight": (3, 2, channels)}
    shapes |= {"bias": (3, channels), "shared": (3, 5, 5)}
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
