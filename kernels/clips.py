"""Clip sampling, on the fastest back end."""

from __future__ import annotations

import torch
from torch import Tensor

from shapmix import reference
from shapmix.draws.augment import MOST_AXES
from shapmix.reference import AugmentPlan, CropPlan, Stream
from shapmix.reference.clips import STREAMS

from .checks import DTYPES, check_dtype, check_tensor, in_sum_dtype, new_output
from .op import op


@op(
    reference=reference.sample_clips,
    layouts=dict.fromkeys(("angles", "pace", "linear", "jitter"), in_sum_dtype),
    check_values="check_crops",
)
def sample_clips(
    frames: Tensor,
    offsets: Tensor,
    plan: CropPlan,
    parents: Tensor,
    *,
    stream: Stream = "joint",
    num_frames: int = 64,
    augment: AugmentPlan | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Crop, linear resize to `num_frames`, rotation, augmentation and bone/motion differences, in one pass over the frames read.

    Args:
        frames: [F, M, V, C] floating point, the recordings concatenated along time; C must be 3 if any angle is nonzero.
        offsets: [n + 1] int64, first frame of each recording.
        plan: one row per sample, on the device of the frames. Its values are checked on CPU tensors only; elsewhere they must
            satisfy `CropPlan`: recordings in 0..n-1 and crops of at least one frame inside them.
        parents: [V] int64; the root is its own parent.
        stream: joint; bone (joint - parent); motion (next frame - this frame, 0 for the last) of joint or of bone.
        num_frames: T.
        augment: one row per sample, on the device of the frames; coordinates are augmented for C up to 4. Its values are checked
            like those of `plan`.
        backend: one of `BACKENDS`; None reads SHAPMIX_BACKEND, which defaults to the fastest available.
        out: output buffer, for loops that reuse one.

    Returns:
        [N, C, T, V, M] in the frames' dtype, without gradient. A crop of T frames without rotation is copied bit for bit, also
        mirrored and backwards; resized, rotated and otherwise augmented clips agree with the reference to within a few roundings.

    Raises:
        TypeError: an argument has the wrong dtype.
        ValueError: an argument has the wrong shape or device, the stream is unknown, or there are more than 4 coordinates to
            augment; on CPU tensors also if a plan row, joint or parent is out of range, or an angle is nonzero and C is not 3.
        BackendError: the requested back end cannot run.
    """
    if stream not in STREAMS:
        raise ValueError(f"stream is '{stream}'; give one of {', '.join(STREAMS)}")
    if frames.dim() != 4 or frames.numel() == 0:
        raise ValueError(f"frames has shape {list(frames.shape)}; give [F, M, V, C] with no axis empty")
    check_dtype("frames", frames, DTYPES)
    if plan.clip.dim() != 1:
        raise ValueError(f"plan.clip has shape {list(plan.clip.shape)}; give [N], the recording of each sample")
    device, n = frames.device, len(plan.clip)
    _, people, joints, channels = frames.shape
    if n == 0 or num_frames < 1:
        raise ValueError(f"plan has {n} rows and num_frames is {num_frames}; give at least one of both")
    if offsets.dim() != 1 or len(offsets) < 2:
        raise ValueError(f"offsets has shape {list(offsets.shape)}; give [n + 1], one more than there are recordings")
    check_tensor("offsets", offsets, offsets.shape, torch.int64, device, "frames")
    for name in ("clip", "start", "length"):
        check_tensor(f"plan.{name}", getattr(plan, name), (n,), torch.int64, device, "frames")
    check_dtype("plan.angles", plan.angles, DTYPES)
    check_tensor("plan.angles", plan.angles, (n, 3), plan.angles.dtype, device, "frames")
    check_tensor("parents", parents, (joints,), torch.int64, device, "frames")
    if augment is not None:
        _check_augment(augment, n, joints, channels, device)
    return new_output(out, (n, channels, num_frames, joints, people), frames, "frames")


def _check_augment(augment: AugmentPlan, n: int, joints: int, channels: int, device: torch.device) -> None:
    shapes = {"reversed": (n,), "pace": (n, 2), "source": (n, joints), "linear": (n, channels, channels)}
    shapes |= {"jitter": (n,), "jitter_key": (n,), "kept": (n, joints)}
    kinds = {"reversed": torch.bool, "kept": torch.bool, "source": torch.int64, "jitter_key": torch.int64}
    for name, shape in shapes.items():
        value: Tensor | None = getattr(augment, name)
        if value is None:
            continue
        if name not in kinds:
            check_dtype(f"augment.{name}", value, DTYPES)
        check_tensor(f"augment.{name}", value, shape, kinds.get(name, value.dtype), device, "frames")
    if (augment.jitter is None) != (augment.jitter_key is None):
        raise ValueError("augment has one of jitter and jitter_key; give both, or neither")
    moved = any(value is not None for value in (augment.source, augment.linear, augment.jitter))
    if moved and channels > MOST_AXES:
        raise ValueError(f"frames have {channels} coordinates; augment.source, linear and jitter take at most {MOST_AXES}")
