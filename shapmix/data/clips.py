"""Clips in memory: one ragged array of frames with an offset per clip, and the splits."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from shapmix.process.errors import DataError
from shapmix.skeleton.layout import Layout

SHOWN_CLASSES = 10  # in an error message
OF_PIXELS = 20.0  # coordinates in metres, in a box or of a normalised image are smaller


@dataclass(frozen=True)
class ClipStore:
    """Clips as concatenated valid frames, without padding.

    Attributes:
        frames: [F, M, V, C] floating point; coordinates of M people; absent people are zero.
        offsets: [n + 1] int64; clip i holds frames offsets[i] to offsets[i + 1] (exclusive).
        labels: [n] int64 class ids.
        names: n clip names.
        layout: the skeleton of the V axis.
        class_names: K names.
        scores: whether the last coordinate is the confidence score of a pose estimator.
        sha256: of the content, if already verified (a prepared store); the frames are then not checked again.

    Raises:
        DataError: a wrong shape or type, a wrong number of joints or coordinates, non-finite coordinates, an empty clip, a label
            out of range, or duplicate clip or class names.
    """

    frames: Tensor
    offsets: Tensor
    labels: Tensor
    names: list[str]
    layout: Layout
    class_names: list[str]
    scores: bool = False
    sha256: str | None = None

    @property
    def up(self) -> tuple[int, int]:
        """Index and sign of the axis that points up; see `Layout.upward`."""
        return self.layout.upward(self.dimension)

    def __post_init__(self) -> None:
        if self.frames.dim() != 4 or 0 in self.frames.shape:
            raise DataError(f"frames must be [frames, people, joints, coordinates], all non-zero, not {list(self.frames.shape)}")
        if not self.frames.is_floating_point():
            raise DataError(f"frames must be floating point, not {_type(self.frames)}")
        for name, axis in (("offsets", "n + 1"), ("labels", "n")):
            value: Tensor = getattr(self, name)
            if value.dim() != 1 or value.dtype != torch.int64 or (name == "offsets" and len(value) < 2):
                raise DataError(f"{name} must be [{axis}] int64, not {list(value.shape)} {_type(value)}")
        if self.scores and self.num_coordinates == 1:
            raise DataError("clips have one coordinate, which cannot be a score alone; remove scores")
        if self.frames.shape[2] != self.layout.num_joints:
            raise DataError(
                f"clips have {self.frames.shape[2]} joints, layout '{self.layout.name}' has {self.layout.num_joints}; "
                "choose the layout of the recordings"
            )
        if wrong := self.layout.wrong_dimension(self.num_coordinates, scores=self.scores):
            raise DataError(wrong)
        if not len(self.names) == len(self.labels) == len(self.offsets) - 1:
            raise DataError(f"{len(self.names)} names, {len(self.labels)} labels and {len(self.offsets) - 1} clips do not match")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.frames):
            raise DataError(f"offsets run from {int(self.offsets[0])} to {int(self.offsets[-1])}, expected 0 to {len(self.frames)}")
        for clip in torch.nonzero(self.lengths < 1).flatten().tolist():
            raise DataError(f"clip '{self.names[clip]}' has no frames")
        for what, names in (("clips", self.names), ("classes", self.class_names)):
            if len(set(names)) < len(names):
                raise DataError(f"two {what} are named '{_first_repeated(names)}'; rename one")
        if not self.class_names:
            raise DataError("the data has no classes; give class_names")
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
                f"clip '{self.names[clip]}' has a non-finite coordinate: frame {frame - int(self.offsets[clip])}, "
                f"person {person}, joint '{self.layout.joints[joint]}'; repair or remove the clip"
            )

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def lengths(self) -> Tensor:
        """[n] int64: number of frames of each clip."""
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

    @property
    def dimension(self) -> int:
        """Number of coordinates without the score."""
        return self.num_coordinates - int(self.scores)

    def on(self, device: torch.device) -> ClipStore:
        """The same store with frames and offsets on `device`; labels are not moved."""
        return replace(self, frames=self.frames.to(device), offsets=self.offsets.to(device))

    def clip(self, index: int) -> Tensor:
        """[T_i, M, V, C] view of one clip."""
        return self.frames[int(self.offsets[index]) : int(self.offsets[index + 1])]

    def class_counts(self, clips: Tensor) -> Tensor:
        """[K] int64: number of `clips` (indices) per class."""
        return torch.bincount(self.labels[clips], minlength=self.num_classes)


def list_hash(names: Iterable[str]) -> str:
    """SHA-256 of the sorted names, one a line: which clips a list has, in whatever order."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


@dataclass(frozen=True)
class Splits:
    """A store and its training, validation and test clips (int64 indices).

    `defining_parts` [K] int64 bit sets: the parts whose motion defines each class, if known.
    """

    store: ClipStore
    train: Tensor
    val: Tensor
    test: Tensor
    defining_parts: Tensor | None = field(default=None)

    @property
    def list_sha256(self) -> str:
        """`list_hash` of the training clips: `training_list` of result.json, and `lists` of a plan."""
        return list_hash(self.store.names[clip] for clip in self.train.tolist())

    def class_counts(self) -> Tensor:
        """[K] int64: number of training clips per class.

        Raises:
            DataError: a class has no training clips (its prior would be zero).
        """
        counts = self.store.class_counts(self.train)
        check_classes(self.store, counts, self.store.class_counts(self.test))
        return counts

    def check(self) -> None:
        """Checks that a classifier can be trained, selected and tested on these clips.

        Raises:
            DataError: an empty split, a class without training clips, or a single class.
        """
        if len(self.train) == 0:
            raise DataError("no training clips; add clips to the training list")
        if len(self.val) == 0:
            raise DataError(
                "no validation clips to select the checkpoint on: the training list leaves none, or no class has two "
                "performances to hold one out. Add clips, or add a list 'val' to the data"
            )
        if len(self.test) == 0:
            raise DataError("no test clips; add clips to the test list, or choose another protocol")
        self.class_counts()
        if self.store.num_classes < 2:
            raise DataError(f"the data has one class, '{self.store.class_names[0]}'; a classifier needs at least two")


def check_classes(store: ClipStore, counts: Tensor, tests: Tensor) -> None:
    """Checks that every class has training clips; `counts` [K] of training and `tests` [K] of test clips.

    Raises:
        DataError: some classes have none (their prior would be zero); the message says how to continue.
    """
    empty = torch.nonzero(counts == 0).flatten().tolist()
    if not empty:
        return
    remedy = "give --drop-empty-classes to remove such classes"
    last = store.num_classes - 1
    numbered = store.class_names == [str(label) for label in range(last + 1)]
    if numbered and len(store) and int(store.labels.min()) > 0:
        first = int(store.labels.min())
        raise DataError(
            f"labels start at {first}: use --label-offset {first} of shapmix.prepare, or {remedy}; "
            f"class '0' has no clip, the last class is '{last}'"
        )
    shown = ", ".join(f"{label} ('{store.class_names[label]}')" for label in empty[:SHOWN_CLASSES])
    only_test = [store.class_names[label] for label in empty if tests[label]]
    if only_test:
        named = ", ".join(f"'{name}'" for name in only_test[:SHOWN_CLASSES]) + (", ..." if len(only_test) > SHOWN_CLASSES else "")
        quoted = " ".join(shlex.quote(name) for name in only_test[:SHOWN_CLASSES])
        remedy += f"; only the test clips have {named}, which --drop-classes {quoted} drops"
    if len(empty) == 1:
        raise DataError(f"class {shown} has no training clip; add clips of it to the training list, or {remedy}")
    more = f" and {len(empty) - SHOWN_CLASSES} more" if len(empty) > SHOWN_CLASSES else ""
    raise DataError(
        f"{len(empty)} of {last + 1} classes have no training clip: {shown}{more}; "
        f"add clips of them to the training list, or {remedy}"
    )


def without_classes(store: ClipStore, kept: Tensor) -> tuple[ClipStore, Tensor]:
    """The store restricted to the classes `kept` [K] bool, which are renumbered.

    Frames are copied only if clips are removed.

    Returns:
        The store, and the new index of each clip [n], -1 for removed clips.

    Raises:
        DataError: no class is kept.
    """
    staying = kept[store.labels]
    if not staying.any():
        raise DataError("no class has a training clip; add clips to the training list")
    renumbered = kept.cumsum(0) - 1
    lengths = store.lengths[staying]
    clips = replace(
        store,
        frames=store.frames if staying.all() else store.frames[staying.repeat_interleave(store.lengths)],
        offsets=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
        labels=renumbered[store.labels[staying]],
        names=[name for name, stays in zip(store.names, staying.tolist(), strict=True) if stays],
        class_names=[name for name, stays in zip(store.class_names, kept.tolist(), strict=True) if stays],
    )
    return clips, torch.where(staying, staying.cumsum(0) - 1, -1)


def join_clips(
    clips: list[Tensor], labels: list[int], names: list[str], layout: Layout, class_names: list[str], *, scores: bool = False
) -> ClipStore:
    """A store of float32 clips, each [T_i, M, V, C]."""
    lengths = torch.tensor([0, *(len(clip) for clip in clips)])
    return ClipStore(torch.cat(clips).float(), lengths.cumsum(0), torch.tensor(labels), names, layout, class_names, scores)


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _first_repeated(names: list[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
