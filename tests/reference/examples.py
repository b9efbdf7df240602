"""Plans shared by the tests of the reference and of the draws."""

from __future__ import annotations

import torch

from shapmix.reference import MixPlan, draw_plan
from shapmix.skeleton.layout import load_layout


def stmix_plan(batch: int, num_frames: int, step: int, blend_probability: float = 0.25) -> MixPlan:
    """An unguided plan on `ntu25`."""
    layout = load_layout("ntu25")
    labels, one = torch.zeros(batch, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    saliency = torch.zeros(1, len(layout.combinations))
    return draw_plan(
        labels,
        saliency,
        one,
        layout.combinations,
        layout.part_of_joint,
        num_frames,
        seed=1,
        step=step,
        guided=False,
        blend_probability=blend_probability,
    )
