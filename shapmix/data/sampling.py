"""From a store to the batches that the network sees."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from shapmix.data.clips import ClipStore
from shapmix.kernels import sample_clips
from shapmix.plan import centre_crops, draw_crops, draw_frames, even_frames
from shapmix.reference.clips import CropPlan, FramePlan, Stream, sample_frames

Pipeline = Literal["crop", "frames"]


@dataclass(frozen=True)
class ClipSampler:
    """How the recordings of a store become network input.

    Attributes:
        pipeline: "crop" is the NTU feeder's (crop, linear resize, rotation), "frames" the NW-UCLA feeder's (rotation and
            scale, box, picked frames).
        stream: joint, bone, motion or bone_motion.
        num_frames: T.
        seed: of the training draws.
    """

    store: ClipStore
    pipeline: Pipeline
    stream: Stream
    num_frames: int
    seed: int = 0

    def training(self, clips: Tensor, step: int) -> Tensor:
        """Randomly cropped (or picked) and turned clips: indices [N] -> [N, C, T, V, M]; a function of (seed, step)."""
        lengths = self.store.lengths[clips]
        if self.pipeline == "crop":
            plan = draw_crops(clips, lengths, num_frames=self.num_frames, seed=self.seed, step=step)
            return self._cropped(plan)
        return self._picked(draw_frames(clips, lengths, num_frames=self.num_frames, seed=self.seed, step=step))

    def evaluation(self, clips: Tensor) -> Tensor:
        """The one view that accuracy is measured on: indices [N] -> [N, C, T, V, M]."""
        lengths = self.store.lengths[clips]
        if self.pipeline == "crop":
            return self._cropped(centre_crops(clips, lengths))
        return self._picked(even_frames(clips, lengths, num_frames=self.num_frames))

    def crop(self, clips: Tensor, number: int) -> Tensor:
        """View `number` of multi-crop evaluation: cut (or picked) as in training, but neither turned nor scaled."""
        lengths = self.store.lengths[clips]
        if self.pipeline == "crop":
            crops = draw_crops(clips, lengths, num_frames=self.num_frames, seed=self.seed, step=number)
            return self._cropped(replace(crops, angles=torch.zeros_like(crops.angles)))
        picked = draw_frames(clips, lengths, num_frames=self.num_frames, seed=self.seed, step=number)
        still = replace(picked, angles_deg=torch.zeros_like(picked.angles_deg), scale=torch.ones_like(picked.scale))
        return self._picked(still)

    def _cropped(self, plan: CropPlan) -> Tensor:
        parents = torch.tensor(self.store.layout.parents)
        return sample_clips(self.store.frames, self.store.offsets, plan, parents, stream=self.stream, num_frames=self.num_frames)

    def _picked(self, plan: FramePlan) -> Tensor:
        layout = self.store.layout
        return sample_frames(
            self.store.frames, self.store.offsets, plan, torch.tensor(layout.parents), layout.centre, stream=self.stream
        )


def mean_motion(sampler: ClipSampler, clips: Tensor, *, batch: int = 256) -> Tensor:
    """[C, T, V, M]: mean of the training clips as the network sees them, in the stream's own space.

    One training view of every clip; the same clips and seed give the same mean.
    """
    parts = [sampler.training(part, step).double().sum(0) for step, part in enumerate(clips.split(batch))]
    total = torch.stack(parts).sum(0)
    return (total / len(clips)).to(sampler.store.frames.dtype)
