"""CTR-GCN's graph convolution and its gradient as Triton kernels; the refined graphs live in registers only.

One program builds the tile [u, v, c] of one subset's graphs: tanh of the differences once for all its channels, then a matrix
product over the relations. It aggregates by a batch of small matrix products, one a channel, as no two channels share a graph.
The forward takes a block of joints u with all v and adds the subsets up; the backward takes a block of joints v with all u, so
that it reads and writes every feature once.

Global memory sees the features and the output (backward: the features, their gradient and the output's gradient), each element
once; programs that differ in their block of joints alone are neighbours and read the rest of a row again from L2. Beside that
come the relation terms and, in the backward, the partial sums. The floor is those bytes over the memory's bandwidth while
2 V (T + K) operations a graph's row hide behind them: on an H100 with half-precision features, whose products run on tensor
cores, where T + K is at most about 100. float32 products are three products of TF32 halves ("tf32x3"), which leave out only
what the two lower halves make: about 2^-22 of a product. tanh is the other cost: each block of channels takes it anew, U V K of
them a subset, and the backward twice. Relations are taken a few at a time, as more would not stay in registers.

Half-precision features are multiplied with a graph split into two halves, the second holding what rounding took from the first:
22 bits of it in float16, as far as its range goes, 16 in bfloat16. Every sum is float32's, or float64's for float64.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import min_dot_size

from .checks import row_stride


@triton.jit
def tanh(x):
    """As accurate as torch's: 2 / (1 + exp(-2|x|)) - 1, and a polynomial near 0, where that cancels.

    float32 takes the polynomial of CUDA's own tanhf, float64 a series of expm1.
    """
    size = tl.abs(x)
    far = 2.0 / (1.0 + tl.exp(-2.0 * size)) - 1.0
    if x.dtype == tl.float64:
        TERMS: tl.constexpr = 19
        series = tl.full(x.shape, 1.0, x.dtype)
        for term in tl.static_range(TERMS, 1, -1):
            series = 1.0 + series * (2.0 / term) * size
        near = series * size / (series * size + 1.0)
        return tl.where(x < 0, -1.0, 1.0) * tl.where(size < 0.55, near, far)
    square = x * x
    near = ((0.0157396831 * square - 0.0523039624) * square + 0.133152977) * square - 0.333327681
    return tl.where(size < 0.55, x + x * (near * square), tl.where(x < 0, -far, far))


@triton.jit
def split(index, size):
    """Position on the innermost axis and what is left for the outer ones."""
    return index % size, index // size


@triton.jit
def load_rows(rows, frame, joint, channel, frames, joints, channels, stride):
    """Tile [c, t, v] of one clip in rows of channels, 0 outside."""
    at = (frame[None, :, None] * joints + joint[None, None, :]) * stride + channel[:, None, None]
    inside = (channel < channels)[:, None, None] & (frame < frames)[None, :, None] & (joint < joints)[None, None, :]
    return tl.load(rows + at, mask=inside, other=0.0)


@triton.jit
def store_rows(rows, tile, frame, joint, channel, frames, joints, channels, stride):
    """Writes what of the tile [c, t, v] lies inside."""
    at = (frame[None, :, None] * joints + joint[None, None, :]) * stride + channel[:, None, None]
    inside = (channel < channels)[:, None, None] & (frame < frames)[None, :, None] & (joint < joints)[None, None, :]
    tl.store(rows + at, tile.to(rows.dtype.element_ty), mask=inside)


@triton.jit
def load_relation(terms, first, u, v, joints, SUBSETS: tl.constexpr, RELATIONS: tl.constexpr, BLOCK_K: tl.constexpr):
    """tanh(left - right) [u * v, k] of one clip and subset, relations first and on, 0 outside."""
    k = first + tl.arange(0, BLOCK_K)[None, :]
    inside = k < RELATIONS
    left = tl.load(terms + u[:, None] * (2 * SUBSETS * RELATIONS) + k, mask=(u < joints)[:, None] & inside, other=0.0)
    terms += SUBSETS * RELATIONS
    right = tl.load(terms + v[:, None] * (2 * SUBSETS * RELATIONS) + k, mask=(v < joints)[:, None] & inside, other=0.0)
    difference = left[:, None, :] - right[None, :, :]
    return tanh(tl.reshape(difference, [u.shape[0] * v.shape[0], BLOCK_K]))


@triton.jit
def load_weight(weight, first, channel, channels, RELATIONS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Tile [k, c] of one subset's weight, relations first and on, 0 outside."""
    k = first + tl.arange(0, BLOCK_K)[:, None]
    return tl.load(weight + k * channels + channel[None, :], mask=(k < RELATIONS) & (channel < channels)[None, :], other=0.0)


@triton.jit
def deep_enough(x, DEPTH: tl.constexpr):
    """x [..., k] with zeros between, so that k is at least DEPTH: versions of Triton differ in the shortest product they take."""
    if x.shape[-1] < DEPTH:
        x = twice_as_deep(x)
    if x.shape[-1] < DEPTH:
        x = twice_as_deep(x)
    return x


@triton.jit
def twice_as_deep(x):
    """x [..., k] -> [..., 2 k], a zero behind each element."""
    both = tl.join(x, tl.zeros_like(x))
    if len(x.shape) == 2:
        both = tl.reshape(both, [x.shape[0], 2 * x.shape[1]])
    else:
        both = tl.reshape(both, [x.shape[0], x.shape[1], 2 * x.shape[2]])
    return both


@triton.jit
def refined_graph(
    terms,
    weight,
    bias,
    shared,
    u,
    v,
    channel,
    joints,
    channels,
    SUBSETS: tl.constexpr,
    RELATIONS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Tile [u * v, c] of one subset's graphs."""
    SIZE: tl.constexpr = u.shape[0] * v.shape[0]
    inside = (u < joints)[:, None] & (v < joints)[None, :]
    base = tl.reshape(tl.load(shared + u[:, None] * joints + v[None, :], mask=inside, other=0.0), [SIZE, 1])
    graph = base + tl.load(bias + channel, mask=channel < channels, other=0.0)[None, :]
    for first in range(0, RELATIONS, BLOCK_K):
        relation = load_relation(terms, first, u, v, joints, SUBSETS, RELATIONS, BLOCK_K)
        factors = tl.trans(load_weight(weight, first, channel, channels, RELATIONS, BLOCK_K))
        relation, factors = deep_enough(relation, DEPTH), tl.trans(deep_enough(factors, DEPTH))
        graph = tl.dot(relation, factors, acc=graph, input_precision=PRECISION, out_dtype=graph.dtype)
    return graph


@triton.jit
def aggregate(rows, graph, acc, PARTS: tl.constexpr, PRECISION: tl.constexpr):
    """acc [c, t, j] + rows [c, t, i] times graph [c, i, j]; the graph goes in as PARTS numbers of the rows' type."""
    for _ in tl.static_range(PARTS):
        part = graph.to(rows.dtype)
        acc = tl.dot(rows, part, acc=acc, input_precision=PRECISION, out_dtype=acc.dtype)
        graph -= part.to(graph.dtype)
    return acc


@triton.jit
def graph_conv_kernel(
    out,
    features,
    relation_terms,
    weight,
    bias,
    shared,
    offset,
    shortcut,
    frames,
    joints,
    channels,
    feature_stride,
    shortcut_stride,
    SUBSETS: tl.constexpr,
    RELATIONS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of joints u, frames and channels of one clip."""
    u_block, of_channels = split(tl.program_id(0), tl.cdiv(joints, BLOCK_U))
    c_block, of_frames = split(of_channels, tl.cdiv(channels, BLOCK_C))
    t_block, clip = split(of_frames, tl.cdiv(frames, BLOCK_T))
    u = u_block * BLOCK_U + tl.arange(0, BLOCK_U)
    channel = c_block * BLOCK_C + tl.arange(0, BLOCK_C)
    frame = t_block * BLOCK_T + tl.arange(0, BLOCK_T)
    v = tl.arange(0, BLOCK_V)
    clip = clip.to(tl.int64)
    features += clip * frames * joints * feature_stride
    relation_terms += clip * joints * (2 * SUBSETS * RELATIONS)

    acc = tl.zeros([BLOCK_C, BLOCK_T, BLOCK_U], weight.dtype.element_ty)
    for _ in range(SUBSETS):
        graph = refined_graph(
            relation_terms, weight, bias, shared, u, v, channel, joints, channels, SUBSETS, RELATIONS, BLOCK_K, DEPTH, PRECISION
        )
        graph = tl.permute(tl.reshape(graph, [BLOCK_U, BLOCK_V, BLOCK_C]), [2, 1, 0])
        rows = load_rows(features, frame, v, channel, frames, joints, channels, feature_stride)
        acc = aggregate(rows, graph, acc, PARTS, PRECISION)
        features += channels
        relation_terms += RELATIONS
        weight += RELATIONS * channels
        bias += channels
        shared += joints * joints

    if offset is not None:
        acc += tl.load(offset + channel, mask=channel < channels, other=0.0)[:, None, None]
        if shortcut is not None:
            shortcut += clip * frames * joints * shortcut_stride
            acc += load_rows(shortcut, frame, u, channel, frames, joints, channels, shortcut_stride).to(acc.dtype)
        acc = tl.where(acc < 0, 0.0, acc)  # as torch's ReLU, NaN stays
    store_rows(out + clip * frames * joints * channels, acc, frame, u, channel, frames, joints, channels, channels)


@triton.jit
def graph_conv_gradient_kernel(
    to_features,
    to_left,
    to_right,
    to_weight,
    to_bias,
    to_shared,
    grad,
    features,
    relation_terms,
    weight,
    bias,
    shared,
    clips,
    clips_each,
    frames,
    joints,
    channels,
    feature_stride,
    SUBSETS: tl.constexpr,
    RELATIONS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of joints v and of channels of one subset, for a run of clips.

    Partial sums: to_left [v blocks, c blocks, N, V, S, K], to_right [c blocks, N, V, S, K],
    to_weight [runs, v blocks, S, K, C], to_bias [runs, v blocks, S, C], to_shared [runs, c blocks, S, V, V].
    """
    v_blocks, c_blocks = tl.cdiv(joints, BLOCK_V), tl.cdiv(channels, BLOCK_C)
    v_block, of_channels = split(tl.program_id(0), v_blocks)
    c_block, of_subsets = split(of_channels, c_blocks)
    subset, run = split(of_subsets, SUBSETS)
    run = run.to(tl.int64)
    u = tl.arange(0, BLOCK_U)
    v = v_block * BLOCK_V + tl.arange(0, BLOCK_V)
    channel = c_block * BLOCK_C + tl.arange(0, BLOCK_C)
    WIDE: tl.constexpr = weight.dtype.element_ty
    TERMS: tl.constexpr = SUBSETS * RELATIONS

    features += subset * channels
    to_features += subset * channels
    relation_terms += subset * RELATIONS
    weight += subset * RELATIONS * channels
    bias += subset * channels
    shared += subset * joints * joints
    to_left += (v_block * c_blocks + c_block).to(tl.int64) * clips * joints * TERMS + subset * RELATIONS
    to_right += c_block.to(tl.int64) * clips * joints * TERMS + subset * RELATIONS

    is_channel = channel < channels
    of_run = (run * v_blocks + v_block) * SUBSETS + subset
    to_weight += of_run * RELATIONS * channels
    of_bias = tl.zeros([BLOCK_C], WIDE)
    of_shared = tl.zeros([BLOCK_U, BLOCK_V], WIDE)
    for clip in range(run * clips_each, tl.minimum((run + 1) * clips_each, clips)):
        first_row = clip * frames * joints
        terms = relation_terms + clip * joints * (2 * TERMS)
        graph = refined_graph(
            terms, weight, bias, shared, u, v, channel, joints, channels, SUBSETS, RELATIONS, BLOCK_K, DEPTH, PRECISION
        )
        graph = tl.permute(tl.reshape(graph, [BLOCK_U, BLOCK_V, BLOCK_C]), [2, 0, 1])
        of_graph = tl.zeros([BLOCK_C, BLOCK_U, BLOCK_V], WIDE)
        for begin in range(0, frames, BLOCK_T):
            frame = begin + tl.arange(0, BLOCK_T)
            from_out = load_rows(grad + first_row * channels, frame, u, channel, frames, joints, channels, channels)
            of_rows = aggregate(from_out, graph, tl.zeros([BLOCK_C, BLOCK_T, BLOCK_V], WIDE), PARTS, PRECISION)
            to = to_features + first_row * feature_stride
            store_rows(to, of_rows, frame, v, channel, frames, joints, channels, feature_stride)
            rows = load_rows(features + first_row * feature_stride, frame, v, channel, frames, joints, channels, feature_stride)
            of_graph = tl.dot(tl.permute(from_out, [0, 2, 1]), rows, acc=of_graph, input_precision=PRECISION, out_dtype=WIDE)

        of_shared += tl.sum(of_graph, 0)
        of_bias += tl.sum(tl.sum(of_graph, 2), 1)
        # A block of relations at a time, and their tanh anew: kept through the frames they would cost more registers than there
        # are. The weight's sums stay in this program's share of global memory for the same reason.
        for first in range(0, RELATIONS, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            is_relation = k < RELATIONS
            relation = load_relation(terms, first, u, v, joints, SUBSETS, RELATIONS, BLOCK_K)
            of_relation = tl.dot(
                deep_enough(tl.reshape(tl.permute(of_graph, [1, 2, 0]), [BLOCK_U * BLOCK_V, BLOCK_C]), DEPTH),
                tl.trans(deep_enough(load_weight(weight, first, channel, channels, RELATIONS, BLOCK_K), DEPTH)),
                input_precision=PRECISION,
                out_dtype=WIDE,
            )
            of_difference = tl.reshape(of_relation * (1.0 - relation * relation), [BLOCK_U, BLOCK_V, BLOCK_K])
            of_left = to_left + (clip * joints + u[:, None]) * TERMS + k[None, :]
            tl.store(of_left, tl.sum(of_difference, 1), mask=(u < joints)[:, None] & is_relation[None, :])
            of_right = to_right + (clip * joints + v[:, None]) * TERMS + k[None, :]
            tl.store(of_right, -tl.sum(of_difference, 0), mask=(v < joints)[:, None] & is_relation[None, :])
            # a product of its own for each joint u: as one, its depth of U V would be a single warp's work
            by_v = tl.permute(tl.reshape(relation, [BLOCK_U, BLOCK_V, BLOCK_K]), [0, 2, 1])
            by_u = tl.dot(
                deep_enough(tl.permute(of_graph, [1, 0, 2]), DEPTH),
                tl.permute(deep_enough(by_v, DEPTH), [0, 2, 1]),
                input_precision=PRECISION,
                out_dtype=WIDE,
            )
            of_weight = to_weight + k[None, :] * channels + channel[:, None]
            in_weight = is_channel[:, None] & is_relation[None, :]
            before = tl.where(clip > run * clips_each, tl.load(of_weight, mask=in_weight, other=0.0), 0.0)
            tl.store(of_weight, before + tl.sum(by_u, 0), mask=in_weight)
        tl.debug_barrier()  # what one thread stored, another may load for the next clip

    tl.store(to_bias + of_run * channels + channel, of_bias, mask=is_channel)
    to_shared += ((run * c_blocks + c_block) * SUBSETS + subset) * joints * joints
    tl.store(
        to_shared + u[:, None] * joints + v[None, :],
        of_shared,
        mask=(u < joints)[:, None] & (v < joints)[None, :],
    )


class Launch(NamedTuple):
    """How a kernel is cut into programs for one type of features."""

    channels: int
    frames: int
    joints: int  # a block of u in the forward, of v in the backward
    num_warps: int


FORWARD = {
    torch.float32: Launch(8, 32, 16, 8),
    torch.float64: Launch(8, 16, 8, 8),
    torch.float16: Launch(8, 32, 16, 8),
    torch.bfloat16: Launch(8, 32, 16, 8),
}
BACKWARD = {
    torch.float32: Launch(8, 32, 8, 8),
    torch.float64: Launch(8, 16, 4, 8),
    torch.float16: Launch(8, 32, 8, 8),
    torch.bfloat16: Launch(8, 32, 8, 8),
}
PARTS = {torch.float32: 1, torch.float64: 1, torch.float16: 2, torch.bfloat16: 2}
PRECISION = {torch.float32: "tf32x3", torch.float64: "ieee", torch.float16: "tf32x3", torch.bfloat16: "tf32x3"}
SHORTEST_DEPTH = 8  # of a float32 product, where the version of Triton takes it
SHORTEST_BLOCK = 16
RELATIONS_TOGETHER = 8  # more would not stay in registers
PROGRAMS = 2048  # of the backward: enough to fill any GPU, few enough that their partial sums are small beside the features


def block_of(size: int) -> int:
    """The block that holds an axis."""
    return max(SHORTEST_BLOCK, int(triton.next_power_of_2(size)))


@cache
def least_depth(dtype: torch.dtype) -> int:
    """Of a product of this type in this version of Triton; 3.6 takes no less than 16, later ones 8 of float32 and 4 of float64."""
    of = tl.float64 if dtype == torch.float64 else tl.float32
    return int(min_dot_size(GPUTarget("cuda", 80, 32))(of, of)[2])


def constants(features: Tensor, weight: Tensor, launch: Launch) -> dict[str, int | str]:
    """What both kernels are specialised for beside their blocks of joints."""
    subsets, relations, _ = weight.shape
    return {
        "SUBSETS": subsets,
        "RELATIONS": relations,
        "BLOCK_C": launch.channels,
        "BLOCK_T": min(launch.frames, block_of(features.shape[2])),
        "BLOCK_K": min(triton.next_power_of_2(max(relations, SHORTEST_DEPTH)), RELATIONS_TOGETHER),
        "DEPTH": least_depth(weight.dtype),
        "PARTS": PARTS[features.dtype],
        "PRECISION": PRECISION[features.dtype],
        "num_warps": launch.num_warps,
    }


def graph_conv(
    out: Tensor,
    features: Tensor,
    relation_terms: Tensor,
    weight: Tensor,
    bias: Tensor,
    shared: Tensor,
    offset: Tensor | None,
    shortcut: Tensor | None,
) -> None:
    """Writes `out` [N, C, T, V], channels-last; the features and the shortcut are rows of channels, the rest is contiguous."""
    clips, _, frames, joints = features.shape
    channels = weight.shape[2]
    launch = FORWARD[features.dtype]
    sizes = constants(features, weight, launch)
    blocks = triton.cdiv(joints, launch.joints) * triton.cdiv(channels, launch.channels) * triton.cdiv(frames, sizes["BLOCK_T"])
    graph_conv_kernel[(clips * blocks,)](
        out,
        features,
        relation_terms,
        weight,
        bias,
        shared,
        offset,
        shortcut,
        frames,
        joints,
        channels,
        row_stride(features),
        0 if shortcut is None else row_stride(shortcut),
        BLOCK_U=launch.joints,
        BLOCK_V=block_of(joints),
        **sizes,
    )


def graph_conv_backward(
    to_features: Tensor,
    to_relation_terms: Tensor,
    to_weight: Tensor,
    to_bias: Tensor,
    to_shared: Tensor,
    grad: Tensor,
    features: Tensor,
    relation_terms: Tensor,
    weight: Tensor,
    bias: Tensor,
    shared: Tensor,
) -> None:
    """Writes the gradients; `grad` is channels-last, `to_features` has the features' strides, the rest is contiguous."""
    clips, _, frames, joints = features.shape
    subsets, relations, channels = weight.shape
    launch = BACKWARD[features.dtype]
    v_blocks, c_blocks = triton.cdiv(joints, launch.joints), triton.cdiv(channels, launch.channels)
    programs_a_clip = v_blocks * c_blocks * subsets
    clips_each = triton.cdiv(clips * programs_a_clip, max(PROGRAMS, programs_a_clip))
    runs = triton.cdiv(clips, clips_each)
    # every program writes its own sums, and they are added in a fixed order: no atomics, the same bits each time
    left = weight.new_empty(v_blocks * c_blocks, clips, joints, subsets, relations)
    right = weight.new_empty(c_blocks, clips, joints, subsets, relations)
    of_weight = weight.new_empty(runs * v_blocks, subsets, relations, channels)
    of_bias = weight.new_empty(runs * v_blocks, subsets, channels)
    of_shared = weight.new_empty(runs * c_blocks, subsets, joints, joints)
    graph_conv_gradient_kernel[(runs * programs_a_clip,)](
        to_features,
        left,
        right,
        of_weight,
        of_bias,
        of_shared,
        grad,
        features,
        relation_terms,
        weight,
        bias,
        shared,
        clips,
        clips_each,
        frames,
        joints,
        channels,
        row_stride(features),
        BLOCK_U=block_of(joints),
        BLOCK_V=launch.joints,
        **constants(features, weight, launch),
    )
    torch.sum(left, 0, out=to_relation_terms[:, :, 0])
    torch.sum(right, 0, out=to_relation_terms[:, :, 1])
    torch.sum(of_weight, 0, out=to_weight)
    torch.sum(of_bias, 0, out=to_bias)
    torch.sum(of_shared, 0, out=to_shared)
