"""`sample_clips` as one Triton kernel: crop, resize, rotation, augmentation and bone/motion differences in registers.

Each element loads the two recorded frames around it (also of its parent for bones, of the next frame for motion). The
overlap hits in cache, so recordings are read from memory about once and the batch is written once. Augmentations that are off are
not compiled.
"""

# Kernel parameters have no annotations: Triton infers their types.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shapmix.reference import Stream
from shapmix.reference.clips import JITTER_MEAN, JITTER_STD

from .dispatch import kernel
from .triton import DTYPES
from .triton_plan import philox_words

BLOCK = 256
NUM_WARPS = 4
_MEAN, _STD = tl.constexpr(JITTER_MEAN), tl.constexpr(JITTER_STD)


@triton.jit
def between_frames(frame, length, num_frames, reversed, pace, SUM: tl.constexpr):
    """The two frames around an output frame and the interpolation weight of the second (half-pixel centres)."""
    scale = length.to(SUM) / num_frames.to(SUM) if tl.float64 == SUM else tl.div_rn(length.to(SUM), num_frames.to(SUM))
    if reversed is not None:
        frame = tl.where(tl.load(reversed) != 0, num_frames - 1 - frame, frame)
    if pace is not None:
        place = tl.load(pace) * (scale * (frame.to(SUM) + 0.5)) + tl.load(pace + 1) - 0.5
        place = tl.minimum(tl.maximum(place, 0.0), (length - 1).to(SUM))
    else:
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
def byte_sum(word):
    """Sum of the four bytes of a word."""
    return (word & 0xFF) + ((word >> 8) & 0xFF) + ((word >> 16) & 0xFF) + (word >> 24)


@triton.jit
def noise(jitter, jitter_key, place, block, SUM: tl.constexpr):
    """The noise of two coordinates of the joint at `place` in [T, V, M]."""
    key, zero = tl.load(jitter_key), place.to(tl.int64) * 0
    w0, w1, w2, w3 = philox_words(key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF, zero + place, zero + block, zero, zero)
    std = tl.load(jitter) / _STD
    first = (byte_sum(w0) + byte_sum(w1)).to(SUM) - _MEAN
    return first * std, ((byte_sum(w2) + byte_sum(w3)).to(SUM) - _MEAN) * std


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


@triton.jit
def point(
    recording, before, after, share, element, place, mask, angles, linear, jitter, jitter_key, SUM: tl.constexpr
):  # fmt: skip
    """x, y and z of a joint, rotated and augmented; `place` is its position in [T, V, M]."""
    x, y, z = rotated(recording, before, after, share, element, mask, angles, SUM)
    present = (x != 0) | (y != 0) | (z != 0)
    if linear is not None:
        a, b, c = tl.load(linear) * x, tl.load(linear + 3) * x, tl.load(linear + 6) * x
        a, b, c = a + tl.load(linear + 1) * y, b + tl.load(linear + 4) * y, c + tl.load(linear + 7) * y
        x, y, z = a + tl.load(linear + 2) * z, b + tl.load(linear + 5) * z, c + tl.load(linear + 8) * z
    if jitter is not None:
        to_x, to_y = noise(jitter, jitter_key, place, 0, SUM)
        to_z, _ = noise(jitter, jitter_key, place, 1, SUM)
        x, y, z = tl.where(present, x + to_x, x), tl.where(present, y + to_y, y), tl.where(present, z + to_z, z)
    return x, y, z


@triton.jit
def coordinate(
    recording,
    before,
    after,
    share,
    element,
    place,
    mask,
    linear,
    jitter,
    jitter_key,
    CHANNEL: tl.constexpr,
    CHANNELS: tl.constexpr,
    SUM: tl.constexpr,
):
    """One of any number of coordinates of a joint, augmented."""
    if linear is not None:
        value = tl.load(linear + CHANNEL * CHANNELS) * resized(recording, before, after, share, element, mask, SUM)
        for other in tl.static_range(1, CHANNELS):
            factor = tl.load(linear + CHANNEL * CHANNELS + other)
            value += factor * resized(recording, before, after, share, element + other, mask, SUM)
    else:
        value = resized(recording, before, after, share, element + CHANNEL, mask, SUM)
    if jitter is not None:
        present = resized(recording, before, after, share, element, mask, SUM) != 0
        for other in tl.static_range(1, CHANNELS):
            present = present | (resized(recording, before, after, share, element + other, mask, SUM) != 0)
        even, odd = noise(jitter, jitter_key, place, CHANNEL // 2, SUM)
        value = tl.where(present, value + (odd if CHANNEL % 2 else even), value)
    return value


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
    reversed,
    pace,
    source,
    linear,
    jitter,
    jitter_key,
    kept,
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

    joints: tl.constexpr = ROW // PEOPLE
    frame_size: tl.constexpr = ROW * CHANNELS  # of a recorded frame [M, V, C]
    window = tl.load(length + sample)
    first = tl.load(offsets + tl.load(clip + sample)) + tl.load(start + sample)
    recording = frames + first * frame_size
    above = tl.load(parents + joint, mask=inside, other=0)
    of_parent = frame * ROW + above.to(tl.int32) * PEOPLE + person  # its place in [T, V, M]
    shown = joint
    keeps = inside
    if source is not None:
        source += sample * joints
        shown, above = tl.load(source + joint, mask=inside, other=0), tl.load(source + above, mask=inside, other=0)
    if linear is not None:
        linear += sample * CHANNELS * CHANNELS
    if jitter is not None:
        jitter += sample
        jitter_key += sample
    if reversed is not None:
        reversed += sample
    if pace is not None:
        pace += sample * 2
    if kept is not None:
        keeps = tl.load(kept + sample * joints + joint, mask=inside, other=0) != 0
    element = (person * joints + shown) * CHANNELS
    parent = (person * joints + above) * CHANNELS
    before, after, share = between_frames(frame, window, num_frames, reversed, pace, SUM)
    before, after = before * frame_size, after * frame_size
    has_next = frame + 1 < num_frames
    next_before, next_after, next_share = between_frames(frame + 1, window, num_frames, reversed, pace, SUM)
    next_before, next_after = next_before * frame_size, next_after * frame_size
    to = out + sample * CHANNELS * plane + at

    if CHANNELS == 3:
        angles += sample * 3
        x, y, z = point(recording, before, after, share, element, at, inside, angles, linear, jitter, jitter_key, SUM)
        if BONE:
            px, py, pz = point(recording, before, after, share, parent, of_parent, inside, angles, linear, jitter, jitter_key, SUM)
            x, y, z = x - px, y - py, z - pz
        if MOTION:
            moves = inside & has_next
            nx, ny, nz = point(
                recording, next_before, next_after, next_share, element, at + ROW, moves, angles, linear, jitter, jitter_key, SUM
            )
            if BONE:
                px, py, pz = point(
                    recording,
                    next_before,
                    next_after,
                    next_share,
                    parent,
                    of_parent + ROW,
                    moves,
                    angles,
                    linear,
                    jitter,
                    jitter_key,
                    SUM,
                )
                nx, ny, nz = nx - px, ny - py, nz - pz
            x, y, z = tl.where(has_next, nx - x, 0.0), tl.where(has_next, ny - y, 0.0), tl.where(has_next, nz - z, 0.0)
        if kept is not None:
            x, y, z = tl.where(keeps, x, 0.0), tl.where(keeps, y, 0.0), tl.where(keeps, z, 0.0)
        tl.store(to, x.to(out.dtype.element_ty), mask=inside)
        tl.store(to + plane, y.to(out.dtype.element_ty), mask=inside)
        tl.store(to + 2 * plane, z.to(out.dtype.element_ty), mask=inside)
    else:
        for channel in tl.static_range(CHANNELS):
            value = coordinate(
                recording, before, after, share, element, at, inside, linear, jitter, jitter_key, channel, CHANNELS, SUM
            )
            if BONE:
                value -= coordinate(
                    recording, before, after, share, parent, of_parent, inside, linear, jitter, jitter_key, channel, CHANNELS, SUM
                )
            if MOTION:
                moves = inside & has_next
                following = coordinate(
                    recording,
                    next_before,
                    next_after,
                    next_share,
                    element,
                    at + ROW,
                    moves,
                    linear,
                    jitter,
                    jitter_key,
                    channel,
                    CHANNELS,
                    SUM,
                )
                if BONE:
                    following -= coordinate(
                        recording,
                        next_before,
                        next_after,
                        next_share,
                        parent,
                        of_parent + ROW,
                        moves,
                        linear,
                        jitter,
                        jitter_key,
                        channel,
                        CHANNELS,
                        SUM,
                    )
                value = tl.where(has_next, following - value, 0.0)
            if kept is not None:
                value = tl.where(keeps, value, 0.0)
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
    reversed: Tensor | None,
    pace: Tensor | None,
    source: Tensor | None,
    linear: Tensor | None,
    jitter: Tensor | None,
    jitter_key: Tensor | None,
    kept: Tensor | None,
) -> None:
    """Writes `out` [N, C, T, V, M]; all tensors are contiguous, plan values in range, reals of plans in the accumulation dtype."""
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
        None if reversed is None else reversed.view(torch.uint8),
        pace,
        source,
        linear,
        jitter,
        jitter_key,
        None if kept is None else kept.view(torch.uint8),
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
