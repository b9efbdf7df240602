"""From a store to the batches that the network sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from shapmix.data.clips import ClipStore
from shapmix.draws.crops import (
    MAX_DEGREES,
    MAX_ROTATION,
    centre_crops,
    draw_crops,
    draw_frames,
    draw_segments,
    even_frames,
    middle_segments,
)
from shapmix.draws.plans import CropPlan, FramePlan
from shapmix.kernels import sample_clips
from shapmix.process.choices import check_choice
from shapmix.process.errors import DataError
from shapmix.reference.clips import Stream, pick_frames, sample_frames

Pipeline = Literal["crop", "frames", "segments"]
NetworkStream = Literal["joint", "bone", "motion", "bone_motion", "skip_bone", "skip_bone_motion"]
DEVICE_SHARE = 0.5  # of a GPU's free memory that recordings may take; the rest is the network's


@dataclass(frozen=True)
class ClipSampler:
    """How the recordings of a store become network input, on the device where the store's frames lie.

    Attributes:
        pipeline: "crop" is the NTU feeder's (crop, linear resize, rotation), "frames" the NW-UCLA feeder's (rotation and
            scale, box, picked frames), "segments" that of 2D poses (a frame of each of T equal segments).
        stream: joint; bone, a joint less its parent; skip_bone, a joint less its parent's parent, zero for the joints next to the
            root (the field's "k", the skip-modal representation of Liu et al., arXiv 2308.14024); and of each the motion, the next
            frame less this one (the field's "km" is skip_bone_motion).
        num_frames: T.
        seed: of the training draws.

    Only x, y and z are turned. Poses in an image keep their upright: their field's recipes do not turn them, a turn in the image
    would undo what gravity tells, and one out of it needs the depth. All else of a pipeline goes for any number of coordinates.

    Raises:
        ValueError: a pipeline that would take the scores of poses for coordinates.
    """

    store: ClipStore
    pipeline: Pipeline
    stream: NetworkStream
    num_frames: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("pipeline", self.pipeline, get_args(Pipeline))
        check_choice("stream", self.stream, get_args(NetworkStream))
        if self.store.scores and self.pipeline != "segments":
            raise ValueError(f"pipeline '{self.pipeline}' would take the score of a pose for a coordinate; take 'segments'")

    @property
    def turns(self) -> bool:
        """Whether training turns the clips: where the coordinates are x, y and z."""
        return self.store.num_coordinates == 3 and not self.store.scores

    def training(self, clips: Tensor, step: int) -> Tensor:
        """Randomly cropped (or picked) and turned clips: indices [N] -> [N, C, T, V, M]; a function of (seed, step)."""
        clips, lengths = self._chosen(clips)
        if self.pipeline == "crop":
            return self._cropped(self.crops(clips, lengths, step))
        return self._picked(self._frames(clips, lengths, step, turned=self.turns))

    def evaluation(self, clips: Tensor) -> Tensor:
        """The one view that accuracy is measured on: indices [N] -> [N, C, T, V, M]."""
        clips, lengths = self._chosen(clips)
        if self.pipeline == "crop":
            return self._cropped(centre_crops(clips, lengths))
        pick = middle_segments if self.pipeline == "segments" else even_frames
        return self._picked(pick(clips, lengths, num_frames=self.num_frames))

    def crop(self, clips: Tensor, number: int) -> Tensor:
        """View `number` of multi-crop evaluation: cut (or picked) as in training, but neither turned nor scaled."""
        clips, lengths = self._chosen(clips)
        if self.pipeline == "crop":
            crops = self.crops(clips, lengths, number)
            return self._cropped(replace(crops, angles=torch.zeros_like(crops.angles)))
        picked = self._frames(clips, lengths, number, turned=False)
        return self._picked(replace(picked, scale=torch.ones_like(picked.scale)))

    def crops(self, clips: Tensor, lengths: Tensor, step: int | Tensor) -> CropPlan:
        """Training crops of pipeline "crop" for indices and lengths [N]; a `step` on their device is not read by the host."""
        rotation = MAX_ROTATION if self.turns else 0.0
        return draw_crops(clips, lengths, num_frames=self.num_frames, seed=self.seed, step=step, max_rotation=rotation)

    def _frames(self, clips: Tensor, lengths: Tensor, step: int, *, turned: bool) -> FramePlan:
        if self.pipeline == "segments":
            return draw_segments(clips, lengths, num_frames=self.num_frames, seed=self.seed, step=step)
        degrees = MAX_DEGREES if turned else 0
        return draw_frames(clips, lengths, num_frames=self.num_frames, seed=self.seed, step=step, max_degrees=degrees)

    @property
    def bones(self) -> tuple[Tensor, Stream]:
        """What `sample_clips` makes the stream of: the other end [V] of each joint's bone, and the kind of difference."""
        parents = torch.tensor(self.store.layout.parents)
        above = parents[parents]
        skip = torch.where(parents == above, torch.arange(len(parents)), above)  # the root's children have no parent's parent
        if self.stream == "skip_bone":
            return skip, "bone"
        if self.stream == "skip_bone_motion":
            return skip, "bone_motion"
        return parents, self.stream

    def _chosen(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        clips = clips.to(self.store.frames.device)
        return clips, self.store.lengths[clips]

    def _cropped(self, plan: CropPlan) -> Tensor:
        frames, offsets, (parents, stream) = self.store.frames, self.store.offsets, self.bones
        return sample_clips(frames, offsets, plan, parents.to(frames.device), stream=stream, num_frames=self.num_frames)

    def _picked(self, plan: FramePlan) -> Tensor:
        frames, offsets, (parents, stream) = self.store.frames, self.store.offsets, self.bones
        parents = parents.to(frames.device)
        if self.pipeline == "segments":
            return pick_frames(frames, offsets, plan, parents, stream=stream, scores=self.store.scores)
        return sample_frames(frames, offsets, plan, parents, self.store.layout.centre, stream=stream)


def resident(sampler: ClipSampler, device: torch.device) -> tuple[ClipSampler, str]:
    """The sampler with its recordings on `device` where they fit, and one sentence that says where they are."""
    size = sampler.store.frames.nbytes
    if device.type != "cuda":
        return sampler, f"{size / 1e6:.0f} MB of recordings in host memory"
    free, _ = torch.cuda.mem_get_info(device)
    if sampler.pipeline == "frames":
        return sampler, "recordings in host memory and batches made ahead: this pipeline draws on the host"
    if size > DEVICE_SHARE * free:
        where = f"{size / 1e9:.1f} GB of recordings are more than half of the {free / 1e9:.1f} GB that are free on {device}"
        return sampler, f"{where}: they stay in host memory, and batches are made ahead"
    return replace(sampler, store=sampler.store.on(device)), f"{size / 1e6:.0f} MB of recordings in the memory of {device}"


def training_batches(
    sampler: ClipSampler, batches: Iterable[tuple[Tensor, int]], device: torch.device
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Clips on `device` for each (indices, step): (clips, indices, step).

    Where recordings lie in host memory and the network does not, the next batch is made and copied while this one trains.
    """
    if device.type == "cpu" or sampler.store.frames.device == device:
        for chosen, step in batches:
            yield sampler.training(chosen, step), chosen, step
        return
    on_gpu: dict[str, Any] = {"initializer": torch.cuda.set_device, "initargs": (device,)} if device.type == "cuda" else {}
    with ThreadPoolExecutor(1, **on_gpu) as aside:  # a thread's current device is its own
        ahead = None
        for chosen, step in batches:
            coming = (aside.submit(_copied, sampler, chosen, step, device), chosen, step)
            if ahead is not None:
                yield ahead[0].result(), ahead[1], ahead[2]
            ahead = coming
        if ahead is not None:
            yield ahead[0].result(), ahead[1], ahead[2]


def _copied(sampler: ClipSampler, chosen: Tensor, step: int, device: torch.device) -> Tensor:
    clips = sampler.training(chosen, step)
    return (clips.pin_memory() if device.type == "cuda" else clips).to(device, non_blocking=True)


def mean_motion(sampler: ClipSampler, clips: Tensor, *, batch: int = 256) -> Tensor:
    """[C, T, V, M]: mean of the training clips as the network sees them, in the stream's own space.

    One training view of every clip whose view is finite; the same clips and seed give the same mean.

    Raises:
        DataError: no clip is finite.
    """
    parts, finite = [], 0
    for step, part in enumerate(clips.split(batch)):
        views = sampler.training(part, step).double()
        good = views.flatten(1).isfinite().all(1)
        parts.append((views if good.all() else views[good]).sum(0))
        finite += int(good.sum())
    if not finite:
        raise DataError(f"none of the {len(clips)} training clips is finite, so they have no mean motion; prepare the data again")
    return (torch.stack(parts).sum(0) / finite).to(sampler.store.frames)
