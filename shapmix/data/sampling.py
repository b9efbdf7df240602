"""Sampling pipelines: from the clips of a store to batches of network input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import degrees
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from shapmix.data.augmentation import (
    check_augment,
    check_centred,
    check_mirror,
    check_two_sided,
    one_sided,
    pixel_among,
    sides_of,
)
from shapmix.data.clips import ClipStore
from shapmix.draws.augment import AugmentConfig, Sides, draw_augment, mirror_all
from shapmix.draws.crops import (
    MAX_DEGREES,
    MAX_ROTATION,
    centre_crops,
    draw_crops,
    draw_frames,
    draw_rotations,
    draw_segments,
    even_frames,
    middle_segments,
)
from shapmix.draws.plans import AugmentPlan, CropPlan, FramePlan
from shapmix.kernels import sample_clips
from shapmix.process.choices import check_choice
from shapmix.process.errors import DataError
from shapmix.reference.clips import Stream, pick_frames, sample_frames

Pipeline = Literal["crop", "frames", "segments"]
NetworkStream = Literal["joint", "bone", "motion", "bone_motion", "skip_bone", "skip_bone_motion"]
DEVICE_SHARE = 0.5  # fraction of the free GPU memory that recordings may use; the rest is for the network


ANOTHER_VIEW = 1 << 31  # added to a step, it draws another view; there are fewer steps, whose numbers have 32 bits


@dataclass(frozen=True)
class ClipSampler:
    """Converts clips of a store to network input, on the device of the store's frames.

    Attributes:
        pipeline: "crop" is the NTU feeder's (crop, linear resize, rotation), "frames" the NW-UCLA feeder's (rotation and
            scaling, bounding box, selected frames), "segments" that of 2D poses (one frame from each of T equal segments).
        stream: joint; bone, a joint minus its parent; skip_bone, a joint minus its grandparent, zero for the joints next to the
            root (also called "k", the skip-modal representation of Liu et al., arXiv 2308.14024); and the motion of each, the next
            frame minus this one (skip_bone_motion is also called "km").
        num_frames: T.
        seed: of the random training views.
        augment: changes of training views; off by default.

    Only 3D coordinates are rotated, with or without a score. 2D poses are not: published recipes do not rotate them, an in-plane
    rotation would discard the direction of gravity, and an out-of-plane one needs depth. The other steps work for any number of
    coordinates.

    Raises:
        ValueError: an unknown pipeline or stream, or a pipeline that would treat confidence scores as coordinates.
        DataError: an augmentation that does not fit the clips: a layout without left-right pairs is mirrored, coordinates that are
            not centred are multiplied, or clips without three coordinates are rotated.
    """

    store: ClipStore
    pipeline: Pipeline
    stream: NetworkStream
    num_frames: int
    seed: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        check_choice("pipeline", self.pipeline, get_args(Pipeline))
        check_choice("stream", self.stream, get_args(NetworkStream))
        if self.store.scores and self.pipeline != "segments":
            raise ValueError(f"pipeline '{self.pipeline}' would treat the confidence score as a coordinate; choose 'segments'")
        check_augment(self.augment, self.store.layout, self.store.dimension)
        for name in self.augment.multipliers:
            self._check_centred(f"augment.{name}", mirrors=name == "mirror")

    @property
    def turns(self) -> bool:
        """Whether training may rotate the clips: if the coordinates, without a score, are x, y and z."""
        return self.store.dimension == 3

    def sides(self, device: torch.device) -> Sides:
        """Left and right, and the parts of the skeleton, on a device; moved there once, because a CUDA graph cannot."""
        if device not in self._sides:
            self._sides[device] = sides_of(self.store.layout, self.store.dimension).to(device)
        return self._sides[device]

    @cached_property
    def _sides(self) -> dict[torch.device, Sides]:
        return {}

    def training(self, clips: Tensor, step: int) -> Tensor:
        """Random training views: indices [N] -> [N, C, T, V, M]; a function of (seed, step).

        They are cropped (or frame-sampled), rotated and augmented.
        """
        clips, lengths = self._chosen(clips)
        if self.pipeline == "crop":
            crops = self.crops(clips, lengths, step)
            return self._cropped(crops, self.augmentation(crops.length, step))
        augment = self.augmentation(lengths, step)
        angles = None
        if self.pipeline == "segments" and self.turns:
            angles = draw_rotations(clips, seed=self.seed, step=step, max_rotation=self._largest_rotation)
        return self._picked(self._frames(clips, lengths, step, turned=self.turns), augment, angles)

    def views(self, clips: Tensor, step: int, number: int) -> Tensor:
        """`number` independent training views of clips [N], the first as `training`: [number N, C, T, V, M]."""
        if number == 1:
            return self.training(clips, step)
        return torch.cat([self.training(clips, step + view * ANOTHER_VIEW) for view in range(number)])

    def evaluation(self, clips: Tensor, *, mirrored: bool = False) -> Tensor:
        """The deterministic evaluation view: indices [N] -> [N, C, T, V, M]; `mirrored` swaps left and right.

        Raises:
            DataError: mirrored clips of a layout without left-right pairs, or that are not centred.
        """
        clips, lengths = self._chosen(clips)
        augment = self._mirror(len(clips)) if mirrored else None
        if self.pipeline == "crop":
            return self._cropped(centre_crops(clips, lengths), augment)
        pick = middle_segments if self.pipeline == "segments" else even_frames
        return self._picked(pick(clips, lengths, num_frames=self.num_frames), augment)

    def crop(self, clips: Tensor, number: int, *, mirrored: bool = False) -> Tensor:
        """View `number` of multi-crop evaluation: cropped (or frame-sampled) as in training, but neither rotated nor augmented.

        The random numbers are the same for all clips, so a view depends on neither the batch nor the other clips of the store.
        `mirrored` swaps left and right, with the errors of `evaluation`.
        """
        clips, lengths = self._chosen(clips)
        augment = self._mirror(len(clips)) if mirrored else None
        if self.pipeline == "crop":
            crops = self.crops(clips, lengths, number, alike=True)
            return self._cropped(replace(crops, angles=torch.zeros_like(crops.angles)), augment)
        picked = self._frames(clips, lengths, number, turned=False, alike=True)
        return self._picked(replace(picked, scale=torch.ones_like(picked.scale)), augment)

    def crops(self, clips: Tensor, lengths: Tensor, step: int | Tensor, *, alike: bool = False) -> CropPlan:
        """Training crops of pipeline "crop" for indices and lengths [N]; a `step` tensor on their device avoids a host sync."""
        rotation = self._largest_rotation if self.turns else 0.0
        return draw_crops(clips, lengths, num_frames=self.num_frames, seed=self.seed, step=step, max_rotation=rotation, alike=alike)

    def augmentation(self, lengths: Tensor, step: int | Tensor) -> AugmentPlan | None:
        """The augmentation of training views of crops or recordings of `lengths` [N] frames; None if all of it is off."""
        return draw_augment(
            self.augment, self.sides(lengths.device), lengths, dimension=self.store.dimension, seed=self.seed, step=step
        )

    @property
    def _largest_rotation(self) -> float:
        return MAX_ROTATION if self.augment.rotation is None else self.augment.rotation

    def _mirror(self, clips: int) -> AugmentPlan:
        check_mirror("mirrored", self.store.layout)
        self._check_centred("mirrored", mirrors=True)
        return mirror_all(self.sides(self.store.frames.device), clips, self.store.dimension)

    def _check_centred(self, option: str, *, mirrors: bool) -> None:
        if self.pipeline == "frames":  # its frames are in a box
            return
        check_centred(option, self._pixel)
        if mirrors:
            check_two_sided(option, self._one_sided)

    @cached_property
    def _one_sided(self) -> bool:
        return one_sided(self.store.frames, self.store.layout.sideways(self.store.dimension))

    @cached_property
    def _pixel(self) -> float | None:
        return pixel_among(self.store.frames[..., : self.store.dimension])

    def _frames(self, clips: Tensor, lengths: Tensor, step: int, *, turned: bool, alike: bool = False) -> FramePlan:
        frames, seed = self.num_frames, self.seed
        if self.pipeline == "segments":
            return draw_segments(clips, lengths, num_frames=frames, seed=seed, step=step, alike=alike)
        largest = MAX_DEGREES if self.augment.rotation is None else round(degrees(self.augment.rotation))
        return draw_frames(
            clips, lengths, num_frames=frames, seed=seed, step=step, max_degrees=largest if turned else 0, alike=alike
        )

    @property
    def bones(self) -> tuple[Tensor, Stream]:
        """Arguments of `sample_clips` for the stream: the other end [V] of each joint's bone, and the kind of difference."""
        parents = torch.tensor(self.store.layout.parents)
        above = parents[parents]
        skip = torch.where(parents == above, torch.arange(len(parents)), above)  # the root's children have no grandparent
        if self.stream == "skip_bone":
            return skip, "bone"
        if self.stream == "skip_bone_motion":
            return skip, "bone_motion"
        return parents, self.stream

    def _chosen(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        clips = clips.to(self.store.frames.device)
        return clips, self.store.lengths[clips]

    def _cropped(self, plan: CropPlan, augment: AugmentPlan | None) -> Tensor:
        frames, offsets, (parents, stream) = self.store.frames, self.store.offsets, self.bones
        parents = parents.to(frames.device)
        return sample_clips(frames, offsets, plan, parents, stream=stream, num_frames=self.num_frames, augment=augment)

    def _picked(self, plan: FramePlan, augment: AugmentPlan | None, angles: Tensor | None = None) -> Tensor:
        store, (parents, stream) = self.store, self.bones
        frames, offsets, parents = store.frames, store.offsets, parents.to(store.frames.device)
        if self.pipeline == "segments":
            return pick_frames(frames, offsets, plan, parents, stream=stream, scores=store.scores, angles=angles, augment=augment)
        return sample_frames(frames, offsets, plan, parents, store.layout.centre, stream=stream, augment=augment)


def resident(sampler: ClipSampler, device: torch.device) -> tuple[ClipSampler, str]:
    """Moves the recordings to `device` if they fit; returns the sampler and a sentence that says where they are."""
    size = sampler.store.frames.nbytes
    if device.type != "cuda":
        return sampler, f"{size / 1e6:.0f} MB of recordings in host memory"
    free, _ = torch.cuda.mem_get_info(device)
    if sampler.pipeline == "frames":
        return sampler, "recordings in host memory, batches prefetched (this pipeline samples on the host)"
    if size > DEVICE_SHARE * free:
        where = f"{size / 1e9:.1f} GB of recordings exceed half of the {free / 1e9:.1f} GB of free memory of {device}"
        return sampler, f"{where}: kept in host memory, batches prefetched"
    return replace(sampler, store=sampler.store.on(device)), f"{size / 1e6:.0f} MB of recordings in the memory of {device}"


def training_batches(
    sampler: ClipSampler, batches: Iterable[tuple[Tensor, int]], device: torch.device, *, views: int = 1
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yields (clips on `device`, indices, step) for each (indices, step); `views` samplings of the clips, one after another.

    If the recordings are in host memory and the network is not, the next batch is prefetched while this one trains.
    """
    if device.type == "cpu" or sampler.store.frames.device == device:
        for chosen, step in batches:
            yield sampler.views(chosen, step, views), chosen, step
        return
    on_gpu: dict[str, Any] = {"initializer": torch.cuda.set_device, "initargs": (device,)} if device.type == "cuda" else {}
    with ThreadPoolExecutor(1, **on_gpu) as aside:  # the current CUDA device is per thread
        ahead = None
        for chosen, step in batches:
            coming = (aside.submit(_copied, sampler, chosen, step, views, device), chosen, step)
            if ahead is not None:
                yield ahead[0].result(), ahead[1], ahead[2]
            ahead = coming
        if ahead is not None:
            yield ahead[0].result(), ahead[1], ahead[2]


def _copied(sampler: ClipSampler, chosen: Tensor, step: int, views: int, device: torch.device) -> Tensor:
    clips = sampler.views(chosen, step, views)
    return (clips.pin_memory() if device.type == "cuda" else clips).to(device, non_blocking=True)


def mean_motion(sampler: ClipSampler, clips: Tensor, *, batch: int = 256) -> Tensor:
    """[C, T, V, M]: mean network input over the training clips, in the space of the stream.

    Averages one training view of every clip, ignoring non-finite ones; deterministic for the same clips and seed.

    Raises:
        DataError: all clips are non-finite.
    """
    parts, finite = [], 0
    for step, part in enumerate(clips.split(batch)):
        views = sampler.training(part, step).double()
        good = views.flatten(1).isfinite().all(1)
        parts.append((views if good.all() else views[good]).sum(0))
        finite += int(good.sum())
    if not finite:
        raise DataError(f"all {len(clips)} training clips are non-finite, so there is no mean motion; prepare the data again")
    return (torch.stack(parts).sum(0) / finite).to(sampler.store.frames)
