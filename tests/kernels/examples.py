"""Examples of fixed small sizes that the tests of several ops share; `shapmix.kernels.examples` makes them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from shapmix.draws.augment import AugmentConfig, Sides, draw_augment
from shapmix.kernels.examples import Batch, Shape, example
from shapmix.reference import AugmentPlan, CropPlan, MixPlan, Stream
from shapmix.skeleton.layout import load_layout
from tests.kernels.backends import moved
from tests.proofs import CPU


class MixProblem(NamedTuple):
    clips: Tensor
    mean_motion: Tensor
    coalitions: Tensor
    part_of_joint: Tensor
    restored_frames: int | None
    plan: MixPlan

    def on(self, device: torch.device) -> MixProblem:
        return MixProblem(**moved(device, self._asdict()))


def mix_problem(dtype: torch.dtype = torch.float32) -> MixProblem:
    """3 clips of 2 x 8 x 4 x 2 with parts 0 and 1; the first sample is blended."""
    batch = Batch(Shape("small", None, (3, 2, 8, 4, 2), 5), dtype, CPU)
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
    arguments = example("coalition_inputs", batch)
    arguments |= {"coalitions": torch.tensor([0, 1, 3]), "part_of_joint": torch.tensor([0, 0, 1, 1])}
    return MixProblem(**arguments, restored_frames=None, plan=plan)


class CropProblem(NamedTuple):
    frames: Tensor
    offsets: Tensor
    plan: CropPlan
    parents: Tensor
    stream: Stream
    num_frames: int
    augment: AugmentPlan | None = None

    def on(self, device: torch.device) -> CropProblem:
        return CropProblem(**moved(device, self._asdict()))


def crop_problem(n: int = 64, dtype: torch.dtype = torch.float32) -> CropProblem:
    """A batch large enough that every thread gets work."""
    return CropProblem(**example("sample_clips", Batch(Shape("crops", "ntu25", (n, 3, 64, 25, 2), 7), dtype, CPU)))


EVERYTHING = AugmentConfig(
    mirror=0.5,
    scale=(0.8, 1.2),
    stretch=(0.9, 1.1),
    shear=0.3,
    jitter=0.05,
    reverse=0.5,
    speed=(0.5, 2.0),
    part_drop=0.5,
    joint_drop=0.2,
)


def augment_plan(n: int, config: AugmentConfig = EVERYTHING, *, dimension: int = 3, seed: int = 0) -> AugmentPlan:
    """Of n crops of 20 frames of NTU skeletons."""
    layout = load_layout("ntu25")
    sides = Sides(torch.tensor(layout.flips), 0, layout.part_of_joint, layout.num_parts)
    plan = draw_augment(config, sides, torch.full((n,), 20), dimension=dimension, seed=seed, step=0)
    assert plan is not None
    return plan


def plan_arguments(**changes: Any) -> dict[str, Any]:
    """64 clips of 7 classes."""
    return example("draw_plan", Batch(Shape("plans", "ntu25", (64, 3, 64, 25, 2), 7), torch.float32, CPU, seed=3)) | changes


def update_arguments(**changes: Any) -> dict[str, Any]:
    """Two updates of a table of 3 classes and 4 combinations, from 5 rows of logits."""
    batch = Batch(Shape("updates", None, (2, 3, 8, 4, 2), 3), torch.float32, CPU)
    rows = {"logits": batch.normal(5, 3), "with_rows": torch.tensor([0, 1]), "without_rows": torch.tensor([4, 4])}
    entries = {"labels": torch.tensor([0, 2]), "columns": torch.tensor([3, 1])}
    return example("saliency_update", batch) | rows | entries | changes


def loss_arguments(n: int = 6, classes: int = 5, dtype: torch.dtype = torch.float32, **changes: Any) -> dict[str, Any]:
    return example("balanced_mix_loss", Batch(Shape("losses", None, (n, 3, 8, 4, 2), classes), dtype, CPU)) | changes


def graph_arguments(dtype: torch.dtype = torch.float64, channels: int = 8) -> dict[str, Any]:
    """Two rows of 4 frames and 5 joints."""
    shape = Shape("graphs", None, (2, 3, 4, 5, 1), 5, width=channels, relations=2)
    return example("graph_conv", Batch(shape, dtype, CPU))
