"""Clips in memory: one ragged block of frames and where each clip lies in it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from shapmix.layout import Layout


class DataError(ValueError):
    """Data that cannot be used; the message names the file or clip, what is wrong with it, and what to do."""


@dataclass(frozen=True)
class ClipStore:
    """Valid frames only, clip after clip, without padding.

    Attributes:
        frames: [F, M, V, C] floating point; coordinates of M people, zero where nobody stands.
        offsets: [n + 1] int64; clip i holds frames offsets[i] to offsets[i + 1] (exclusive).
        labels: [n] int64 class ids.
        names: n clip names.
        layout: the skeleton of the V axis.
        class_names: K names.
        scores: whether the last coordinate is the score of a pose's estimator.
        sha256: of the content, where somebody has read it all and knows (a prepared store): its frames are not read again.

    Raises:
        DataError: wrong joint count, coordinates that are not finite, an empty clip or a label out of range.
    """

    frames: Tensor
    offsets: Tensor
    labels: Tensor
    names: list[str]
    layout: Layout
    class_names: list[str]
    scores: bool = False
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.frames.dim() != 4:
            raise DataError(f"frames must be [frames, people, joints, coordinates], not {list(self.frames.shape)}")
        if self.frames.shape[2] != self.layout.num_joints:
            raise DataError(
                f"clips have {self.frames.shape[2]} joints, layout '{self.layout.name}' has {self.layout.num_joints}; "
                "choose the layout that the clips were recorded in"
            )
        if not len(self.names) == len(self.labels) == len(self.offsets) - 1:
            raise DataError(f"{len(self.names)} names, {len(self.labels)} labels and {len(self.offsets) - 1} clips do not match")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.frames):
            raise DataError(
                f"offsets run from {int(self.offsets[0])} to {int(self.offsets[-1])}, frames from 0 to {len(self.frames)}"
            )
        for clip in torch.nonzero(self.lengths < 1).flatten().tolist():
            raise DataError(f"clip '{self.names[clip]}' has no frames")
        outside = (self.labels < 0) | (self.labels >= self.num_classes)
        for clip in torch.nonzero(outside).flatten().tolist():
            raise DataError(
                f"clip '{self.names[clip]}' has label {int(self.labels[clip])}; "
                f"the {self.num_classes} classes are 0 to {self.num_classes - 1}"
            )
        if self.sha256 is None and not self.frames.isfinite().all():
            frame, person, joint, _ = torch.nonzero(~self.frames.isfinite())[0].tolist()
            clip = int(torch.searchsorted(self.offsets, frame, right=True)) - 1
            raise DataError(
                f"clip '{self.names[clip]}' has a coordinate that is not finite: frame {frame - int(self.offsets[clip])}, "
                f"person {person}, joint '{self.layout.joints[joint]}'; repair or remove the clip"
            )

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def lengths(self) -> Tensor:
        """[n] int64 frames of each clip."""
        return self.offsets.diff()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def num_people(self) -> int:
        return self.frames.shape[1]

    @property
    def num_coordinates(self) -> int:
        return self.frames.shape[3]

    def on(self, device: torch.device) -> ClipStore:
        """The same store with its recordings in the memory of `device`; labels stay where they are."""
        return replace(self, frames=self.frames.to(device), offsets=self.offsets.to(device))

    def clip(self, index: int) -> Tensor:
        """[T_i, M, V, C] view of one clip."""
        return self.frames[int(self.offsets[index]) : int(self.offsets[index + 1])]

    def class_counts(self, clips: Tensor) -> Tensor:
        """[K] int64: how many of `clips` (indices) each class has."""
        return torch.bincount(self.labels[clips], minlength=self.num_classes)


@dataclass(frozen=True)
class Splits:
    """A store and the clips (int64 indices) to train on, to choose the checkpoint on, and to report once at the end.

    `defining_parts` [K] int64 bit sets: the parts whose motion defines each class, where the data knows it.
    """

    store: ClipStore
    train: Tensor
    val: Tensor
    test: Tensor
    defining_parts: Tensor | None = field(default=None)

    def class_counts(self) -> Tensor:
        """[K] int64 training clips of each class.

        Raises:
            DataError: a class has no training clip (its prior would be zero).
        """
        counts = self.store.class_counts(self.train)
        for label in torch.nonzero(counts == 0).flatten().tolist():
            raise DataError(
                f"class {label} ('{self.store.class_names[label]}') has no training clip; "
                "leave it out of the class list or add clips to the training list"
            )
        return counts


def join_clips(
    clips: list[Tensor], labels: list[int], names: list[str], layout: Layout, class_names: list[str], *, scores: bool = False
) -> ClipStore:
    """A store of float32 clips, each [T_i, M, V, C]."""
    lengths = torch.tensor([0, *(len(clip) for clip in clips)])
    return ClipStore(torch.cat(clips).float(), lengths.cumsum(0), torch.tensor(labels), names, layout, class_names, scores)
