"""Clip sampling, on the fastest back end."""

from __future__ import annotations

import torch
from torch import Tensor

from shapmix import reference
from shapmix.reference import CropPlan, Stream
from shapmix.reference.clips import STREAMS

from . import native
from .checks import DTYPES, check_dtype, check_no_overlap, check_out, check_tensor, mark_written, sum_dtype
from .dispatch import choose, needs_registered_op, run


def sample_clips(
    frames: Tensor,
    offsets: Tensor,
    plan: CropPlan,
    parents: Tensor,
    *,
    stream: Stream = "joint",
    num_frames: int = 64,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Crop, linear resize to `num_frames`, rotation and bone/motion differences, fused into one pass over the frames read.

    Args:
        frames: [F, M, V, C] floating point, the recordings concatenated along time; C must be 3 if any angle is nonzero.
        offsets: [n + 1] int64, first frame of each recording.
        plan: one row per sample, on the device of the frames. Its values are checked on CPU tensors only; elsewhere they must
            satisfy `CropPlan`: recordings in 0..n-1 and crops of at least one frame inside them.
        parents: [V] int64; the root is its own parent.
        stream: joint; bone (joint - parent); motion (next frame - this frame, 0 for the last) of joint or of bone.
        num_frames: T.
        backend: one of `BACKENDS`; None reads SHAPMIX_BACKEND, which defaults to the fastest available.
        out: output buffer, for loops that reuse one.

    Returns:
        [N, C, T, V, M] in the frames' dtype, without gradient. A crop of T frames without rotation is copied bit for bit;
        resized and rotated clips agree with the reference to within a few roundings.

    Raises:
        TypeError: an argument has the wrong dtype.
        ValueError: an argument has the wrong shape or device, or the stream is unknown; on CPU tensors also if a plan row or
            parent is out of range, or an angle is nonzero and C is not 3.
        BackendError: the requested back end cannot run.
    """
    if stream not in STREAMS:
        raise ValueError(f"stream is '{stream}'; give one of {', '.join(STREAMS)}")
    columns = (plan.clip, plan.start, plan.length, plan.angles)
    if not needs_registered_op(frames, offsets, *columns, parents, out):
        return _sample(frames, offsets, plan, parents, stream, num_frames, backend, out)
    result = torch.ops.shapmix.sample_clips(frames, offsets, *columns, parents, stream, num_frames, backend)
    if out is None:
        return result
    check_out(out, tuple(result.shape), frames, "frames")
    return out.copy_(result)


def _sample(
    frames: Tensor,
    offsets: Tensor,
    plan: CropPlan,
    parents: Tensor,
    stream: Stream,
    num_frames: int,
    backend: str | None,
    out: Tensor | None = None,
) -> Tensor:
    if frames.dim() != 4 or frames.numel() == 0:
        raise ValueError(f"frames has shape {list(frames.shape)}; give [F, M, V, C] with no axis empty")
    check_dtype("frames", frames, DTYPES)
    device, (n,) = frames.device, plan.clip.shape
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
    shape = (n, channels, num_frames, joints, people)
    if out is not None:
        check_out(out, shape, frames, "frames")
        check_no_overlap("out", out, frames=frames, offsets=offsets, parents=parents, **vars(plan))

    chosen = choose("sample_clips", frames, backend)
    angles = plan.angles.to(sum_dtype(frames.dtype)).contiguous()
    plan = CropPlan(plan.clip.contiguous(), plan.start.contiguous(), plan.length.contiguous(), angles)
    frames, offsets, parents = frames.contiguous(), offsets.contiguous(), parents.contiguous()
    if frames.is_cpu and chosen != "cpp":
        native.check_crops(frames, offsets, plan, parents)
    if chosen == "reference":
        with torch.no_grad():
            result = reference.sample_clips(frames, offsets, plan, parents, stream=stream, num_frames=num_frames)
        return result if out is None else out.copy_(result)

    to = frames.new_empty(shape) if out is None else out
    bone, motion = stream in ("bone", "bone_motion"), stream in ("motion", "bone_motion")
    run(chosen, "sample_clips", to, frames, offsets, plan, parents, bone, motion)
    return to if out is None else mark_written(out)


# The same op for torch.compile, with the plan flattened into its fields. Recordings are data: they get no gradient.


@torch.library.custom_op(
    "shapmix::sample_clips",
    mutates_args=(),
    schema="(Tensor frames, Tensor offsets, Tensor clip, Tensor start, Tensor length, Tensor angles, Tensor parents, "
    "str stream, SymInt num_frames, str? backend) -> Tensor",
)
def _sample_clips(
    frames: Tensor,
    offsets: Tensor,
    clip: Tensor,
    start: Tensor,
    length: Tensor,
    angles: Tensor,
    parents: Tensor,
    stream: Stream,
    num_frames: int,
    backend: str | None,
) -> Tensor:
    return _sample(frames, offsets, CropPlan(clip, start, length, angles), parents, stream, num_frames, backend)


@_sample_clips.register_fake
def _(
    frames: Tensor,
    offsets: Tensor,
    clip: Tensor,
    start: Tensor,
    length: Tensor,
    angles: Tensor,
    parents: Tensor,
    stream: Stream,
    num_frames: int,
    backend: str | None,
) -> Tensor:
    _, people, joints, channels = frames.shape
    return frames.new_empty((len(clip), channels, num_frames, joints, people))
