"""`sample_clips` as one Triton kernel: crop, resize, rotation and bone/motion differences in registers.

Each element loads the two recorded frames around it (also of its parent for bones, of the next frame for motion). The
overlap hits in cache, so recordings are read from memory about once and the batch is written once.
"""

# Kernel parameters have no annotations: Triton infers their types.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from shapmix.reference import Stream

from .dispatch import kernel
from .triton import DTYPES

BLOCK = 256
NUM_WARPS = 4


@triton.jit
def between_frames(frame, length, num_frames, SUM: tl.constexpr):
    """The two frames around an output frame and the interpolation weight of the second (half-pixel centres)."""
    scale = length.to(SUM) / num_frames.to(SUM) if tl.float64 == SUM else tl.div_rn(length.to(SUM), num_frames.to(SUM))
    place = tl.maximum(scale * (frame.to(SUM) + 0.5) - 0.5, 0.0)
    before = tl.minimum(place.to(tl.int64), length - 1)
    after = tl.minimum(before + 1, length - 1)
    return before, after, place - before.to(SUM)


@triton.jit
def resized(recording, before, after, share, element, mask, SUM: tl.constexpr):
    """One interpolated coordinate; `before` and `after` are frame offsets, `element` the coordinate's offset in a frame."""
    first = tl.load(recording + before + element, mask=mask, other=0.0).to(SUM)
    second = tl.load(recording + after + element, mask=mask, other=0.0).to(SUM)
    return first * (1.0 - share) + second * share


@triton.jit
def rotated(recording, before, after, share, element, mask, angles, SUM: tl.constexpr):
    """x, y and z of a joint, rotated clockwise about x, then y, then z."""
    x = resized(recording, before, after, share, element, mask, SUM)
    y = resized(recording, before, after, share, element + 1, mask, SUM)
    z = resized(recording, before, after, share, element + 2, mask, SUM)
    about_x, about_y, about_z = tl.load(angles), tl.load(angles + 1), tl.load(angles + 2)
    cosine, sine = tl.cos(about_x), tl.sin(about_x)
    y, z = cosine * y + sine * z, cosine * z - sine * y
    cosine, sine = tl.cos(about_y), tl.sin(about_y)
    x, z = cosine * x - sine * z, cosine * z + sine * x
    cosine, sine = tl.cos(about_z), tl.sin(about_z)
    return cosine * x + sine * y, cosine * y - sine * x, z


@triton.jit(do_not_specialize=["num_frames"])  # an argument of 1 would become a constexpr without .to
def sample_kernel(
    out,
    frames,
    offsets,
    clip,
    start,
    length,
    angles,
    parents,
    num_frames,
    ROW: tl.constexpr,
    PEOPLE: tl.constexpr,
    CHANNELS: tl.constexpr,
    BONE: tl.constexpr,
    MOTION: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program writes one block of the elements [T, V, M] of one sample, all coordinates."""
    plane = num_frames * ROW
    blocks = tl.cdiv(plane, BLOCK)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    at = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = at < plane
    frame, in_row = at // ROW, at % ROW
    joint, person = in_row // PEOPLE, in_row % PEOPLE

    frame_size: tl.constexpr = ROW * CHANNELS  # of a recorded frame [M, V, C]
    window = tl.load(length + sample)
    first = tl.load(offsets + tl.load(clip + sample)) + tl.load(start + sample)
    recording = frames + first * frame_size
    element = (person * (ROW // PEOPLE) + joint) * CHANNELS
    parent = (person * (ROW // PEOPLE) + tl.load(parents + joint, mask=inside, other=0)) * CHANNELS
    before, after, share = between_frames(frame, window, num_frames, SUM)
    before, after = before * frame_size, after * frame_size
    has_next = frame + 1 < num_frames
    next_before, next_after, next_share = between_frames(frame + 1, window, num_frames, SUM)
    next_before, next_after = next_before * frame_size, next_after * frame_size
    to = out + sample * CHANNELS * plane + at

    if CHANNELS == 3:
        angles += sample * 3
        x, y, z = rotated(recording, before, after, share, element, inside, angles, SUM)
        if BONE:
            px, py, pz = rotated(recording, before, after, share, parent, inside, angles, SUM)
            x, y, z = x - px, y - py, z - pz
        if MOTION:
            moves = inside & has_next
            nx, ny, nz = rotated(recording, next_before, next_after, next_share, element, moves, angles, SUM)
            if BONE:
                px, py, pz = rotated(recording, next_before, next_after, next_share, parent, moves, angles, SUM)
                nx, ny, nz = nx - px, ny - py, nz - pz
            x, y, z = tl.where(has_next, nx - x, 0.0), tl.where(has_next, ny - y, 0.0), tl.where(has_next, nz - z, 0.0)
        tl.store(to, x.to(out.dtype.element_ty), mask=inside)
        tl.store(to + plane, y.to(out.dtype.element_ty), mask=inside)
        tl.store(to + 2 * plane, z.to(out.dtype.element_ty), mask=inside)
    else:
        for channel in tl.static_range(CHANNELS):
            value = resized(recording, before, after, share, element + channel, inside, SUM)
            if BONE:
                value -= resized(recording, before, after, share, parent + channel, inside, SUM)
            if MOTION:
                moves = inside & has_next
                following = resized(recording, next_before, next_after, next_share, element + channel, moves, SUM)
                if BONE:
                    following -= resized(recording, next_before, next_after, next_share, parent + channel, moves, SUM)
                value = tl.where(has_next, following - value, 0.0)
            tl.store(to + channel * plane, value.to(out.dtype.element_ty), mask=inside)


@kernel("sample_clips", backend="triton", dtypes=DTYPES)
def sample_clips(
    *,
    out: Tensor,
    frames: Tensor,
    offsets: Tensor,
    clip: Tensor,
    start: Tensor,
    length: Tensor,
    angles: Tensor,
    parents: Tensor,
    stream: Stream,
    num_frames: int,
) -> None:
    """Writes `out` [N, C, T, V, M]; all tensors are contiguous, plan values in range, angles in the accumulation dtype."""
    n, channels, _, joints, people = out.shape
    # A 1-D grid: the other grid axes are limited to 65,535 programs, which a large batch exceeds.
    sample_kernel[(triton.cdiv(num_frames * joints * people, BLOCK) * n,)](
        out,
        frames,
        offsets,
        clip,
        start,
        length,
        angles,
        parents,
        num_frames,
        ROW=joints * people,
        PEOPLE=people,
        CHANNELS=channels,
        BONE=stream in ("bone", "bone_motion"),
        MOTION=stream in ("motion", "bone_motion"),
        SUM=tl.float64 if angles.element_size() == 8 else tl.float32,
        BLOCK=BLOCK,
        num_warps=NUM_WARPS,
    )
