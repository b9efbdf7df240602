"""CTR-GCN's graph convolution and its gradient in Triton: graphs by matrix products, aggregation by two kernels.

A refined graph is a matrix product: [tanh(left - right), 1, shared], over the relations and two extra columns, times
[weight; bias; 1]. torch.bmm computes the graphs of a few clips at a time, at most `GRAPH_BYTES` of them, and their gradient;
the buffer is reused by the next clips. The aggregation has no library equivalent: a batch of small matrix products, one per
channel, on channels-last rows. The forward kernel accumulates over the subsets; the backward kernel overwrites each tile of
graphs with its gradient in place.

The roofline is the traffic of features and output (backward: features, their gradient and the output's gradient), each moved
once. The graphs come on top, written and read once or twice: V^2 S floats per clip and channel, against (S + 1) T V for
features and output. float32 products use three TF32 products ("tf32x3"), which drop only the low-by-low term, about 2^-22 of a
product. Half-precision features are multiplied with a graph split into a rounded part and its remainder: 22 bits in float16
(within its range), 16 bits in bfloat16. Accumulation is in float32, or float64 for float64, in a fixed order without atomics:
results are deterministic.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import row_stride
from .dispatch import kernel
from .triton import DTYPES
from .triton_rows import block_of, relu


@triton.jit
def tanh(x):
    """As accurate as torch.tanh: 2 / (1 + exp(-2|x|)) - 1, with a polynomial near 0, where that formula cancels.

    float32 uses the polynomial of CUDA's tanhf, float64 a series of expm1.
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
    """Splits a flat index into the position on the innermost axis and the index over the outer axes."""
    return index % size, index // size


@triton.jit
def load_rows(rows, frame, joint, channel, frames, joints, channels, stride):
    """Loads a tile [c, t, v] of one clip from channels-last rows, 0 out of bounds."""
    at = (frame[None, :, None] * joints + joint[None, None, :]) * stride + channel[:, None, None]
    inside = (channel < channels)[:, None, None] & (frame < frames)[None, :, None] & (joint < joints)[None, None, :]
    return tl.load(rows + at, mask=inside, other=0.0)


@triton.jit
def store_rows(rows, tile, frame, joint, channel, frames, joints, channels, stride):
    """Stores the in-bounds part of a tile [c, t, v]."""
    at = (frame[None, :, None] * joints + joint[None, None, :]) * stride + channel[:, None, None]
    inside = (channel < channels)[:, None, None] & (frame < frames)[None, :, None] & (joint < joints)[None, None, :]
    tl.store(rows + at, tile.to(rows.dtype.element_ty), mask=inside)


@triton.jit
def load_graphs(graphs, u, v, channel, joints, channels):
    """Loads a tile [u, v, c] of the graphs of one clip and subset, 0 out of bounds."""
    at = (u[:, None, None] * joints + v[None, :, None]) * channels + channel[None, None, :]
    inside = (u < joints)[:, None, None] & (v < joints)[None, :, None] & (channel < channels)[None, None, :]
    return tl.load(graphs + at, mask=inside, other=0.0)


@triton.jit
def store_graphs(graphs, tile, u, v, channel, joints, channels):
    """Stores the in-bounds part of a tile [u, v, c]."""
    at = (u[:, None, None] * joints + v[None, :, None]) * channels + channel[None, None, :]
    inside = (u < joints)[:, None, None] & (v < joints)[None, :, None] & (channel < channels)[None, None, :]
    tl.store(graphs + at, tile, mask=inside)


@triton.jit
def aggregate(rows, graph, acc, PARTS: tl.constexpr, PRECISION: tl.constexpr):
    """acc [c, t, j] + rows [c, t, i] @ graph [c, i, j]; the graph is split into PARTS terms of the rows' dtype."""
    for _ in tl.static_range(PARTS):
        part = graph.to(rows.dtype)
        acc = tl.dot(rows, part, acc=acc, input_precision=PRECISION, out_dtype=acc.dtype)
        graph -= part.to(graph.dtype)
    return acc


@triton.jit(do_not_specialize=["first"])
def relation_kernel(
    factors,
    relation_terms,
    shared,
    first,
    clips,
    joints,
    SUBSETS: tl.constexpr,
    RELATIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program writes a block of [S, clips, U, V, COLUMNS]: tanh(left - right) per relation, 1, the shared graph, 0."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column, pair = split(at, COLUMNS)
    v, of_u = split(pair, joints)
    u, of_clip = split(of_u, joints)
    clip, subset = split(of_clip, clips)
    inside = subset < SUBSETS
    is_relation = inside & (column < RELATIONS)
    of = subset * RELATIONS + column
    relation_terms += first.to(tl.int64) * joints * (2 * SUBSETS * RELATIONS)
    left = relation_terms + (clip * joints + u) * (2 * SUBSETS * RELATIONS) + of
    right = relation_terms + (clip * joints + v) * (2 * SUBSETS * RELATIONS) + SUBSETS * RELATIONS + of
    value = tanh(tl.load(left, mask=is_relation, other=0.0) - tl.load(right, mask=is_relation, other=0.0))
    value = tl.where(column == RELATIONS, 1.0, value)
    is_shared = inside & (column == RELATIONS + 1)
    value += tl.load(shared + (subset * joints + u) * joints + v, mask=is_shared, other=0.0)
    tl.store(factors + at, value, mask=inside)


@triton.jit(do_not_specialize=["first", "clips"])
def aggregate_kernel(
    out,
    features,
    graphs,
    offset,
    shortcut,
    first,
    clips,
    frames,
    joints,
    channels,
    feature_stride,
    shortcut_stride,
    SUBSETS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program writes one block of joints u, frames and channels of one clip; `graphs` [S, clips, U, V, C] start at `first`."""
    u_block, of_channels = split(tl.program_id(0), tl.cdiv(joints, BLOCK_U))
    c_block, of_frames = split(of_channels, tl.cdiv(channels, BLOCK_C))
    t_block, clip = split(of_frames, tl.cdiv(frames, BLOCK_T))
    u = u_block * BLOCK_U + tl.arange(0, BLOCK_U)
    channel = c_block * BLOCK_C + tl.arange(0, BLOCK_C)
    frame = t_block * BLOCK_T + tl.arange(0, BLOCK_T)
    v = tl.arange(0, BLOCK_V)
    clip = clip.to(tl.int64)
    rows = frames * joints
    features += (first + clip) * rows * feature_stride
    graphs += clip * joints * joints * channels

    acc = tl.zeros([BLOCK_C, BLOCK_T, BLOCK_U], graphs.dtype.element_ty)
    for _ in range(SUBSETS):
        graph = tl.permute(load_graphs(graphs, u, v, channel, joints, channels), [2, 1, 0])
        tile = load_rows(features, frame, v, channel, frames, joints, channels, feature_stride)
        acc = aggregate(tile, graph, acc, PARTS, PRECISION)
        features += channels
        graphs += clips.to(tl.int64) * joints * joints * channels

    if offset is not None:
        acc += tl.load(offset + channel, mask=channel < channels, other=0.0)[:, None, None]
        if shortcut is not None:
            shortcut += (first + clip) * rows * shortcut_stride
            acc += load_rows(shortcut, frame, u, channel, frames, joints, channels, shortcut_stride).to(acc.dtype)
        acc = relu(acc)
    store_rows(out + (first + clip) * rows * channels, acc, frame, u, channel, frames, joints, channels, channels)


@triton.jit(do_not_specialize=["first"])
def aggregate_gradient_kernel(
    to_features,
    graphs,
    grad,
    features,
    first,
    clips,
    frames,
    joints,
    channels,
    feature_stride,
    SUBSETS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes one block of joints v and channels of one subset and clip, and overwrites its graphs by their gradient."""
    v_block, of_channels = split(tl.program_id(0), tl.cdiv(joints, BLOCK_V))
    c_block, of_subsets = split(of_channels, tl.cdiv(channels, BLOCK_C))
    subset, clip = split(of_subsets, SUBSETS)
    u = tl.arange(0, BLOCK_U)
    v = v_block * BLOCK_V + tl.arange(0, BLOCK_V)
    channel = c_block * BLOCK_C + tl.arange(0, BLOCK_C)
    clip = clip.to(tl.int64)
    rows = (first + clip) * frames * joints
    grad += rows * channels
    features += rows * feature_stride + subset * channels
    to_features += rows * feature_stride + subset * channels
    graphs += (subset * clips + clip) * joints * joints * channels

    graph = tl.permute(load_graphs(graphs, u, v, channel, joints, channels), [2, 0, 1])
    of_graph = tl.zeros([BLOCK_C, BLOCK_U, BLOCK_V], graphs.dtype.element_ty)
    for begin in range(0, frames, BLOCK_T):
        frame = begin + tl.arange(0, BLOCK_T)
        from_out = load_rows(grad, frame, u, channel, frames, joints, channels, channels)
        of_rows = aggregate(from_out, graph, tl.zeros([BLOCK_C, BLOCK_T, BLOCK_V], graph.dtype), PARTS, PRECISION)
        store_rows(to_features, of_rows, frame, v, channel, frames, joints, channels, feature_stride)
        tile = load_rows(features, frame, v, channel, frames, joints, channels, feature_stride)
        of_graph = tl.dot(tl.permute(from_out, [0, 2, 1]), tile, acc=of_graph, input_precision=PRECISION, out_dtype=of_graph.dtype)
    store_graphs(graphs, tl.permute(of_graph, [1, 2, 0]), u, v, channel, joints, channels)


class Launch(NamedTuple):
    """Block sizes and warps of a kernel for one feature dtype."""

    channels: int
    frames: int
    joints: int  # upper bound of the block of u (forward) or v (backward)
    num_warps: int


# Two programs fit the 65,536 registers of an SM, so that the products of one overlap the loads of the other. float64 needs twice
# the registers, and spills with 8 channels on sm_100 under some versions of Triton.
FORWARD = {
    torch.float32: Launch(8, 16, 16, 8),
    torch.float64: Launch(4, 16, 16, 8),
    torch.float16: Launch(8, 32, 16, 8),
    torch.bfloat16: Launch(8, 32, 16, 8),
}
BACKWARD = dict.fromkeys(FORWARD, Launch(8, 16, 16, 8)) | {torch.float64: Launch(4, 16, 16, 8)}
PARTS = {torch.float32: 1, torch.float64: 1, torch.float16: 2, torch.bfloat16: 2}
PRECISION = {torch.float32: "tf32x3", torch.float64: "ieee", torch.float16: "tf32x3", torch.bfloat16: "tf32x3"}
GRAPH_BYTES = 64 << 20  # size of the graph buffer: about the L2 of a large GPU, and small compared with the features
MOST_JOINTS = 64  # for which the blocks of channels are chosen
EXTRA_COLUMNS = 4  # after the relations: bias, shared graph, and two zeros that keep rows aligned to 16 bytes
RELATION_BLOCK = 512


def constants(features: Tensor, subsets: int, launch: Launch) -> dict[str, int | str]:
    """Compile-time constants of both aggregation kernels, except the blocks of joints.

    Both operands of a product lie in shared memory, so many joints take fewer channels.
    """
    return {
        "SUBSETS": subsets,
        "BLOCK_C": max(1, launch.channels * MOST_JOINTS // max(MOST_JOINTS, block_of(features.shape[3]))),
        "BLOCK_T": min(launch.frames, block_of(features.shape[2])),
        "PARTS": PARTS[features.dtype],
        "PRECISION": PRECISION[features.dtype],
        "num_warps": launch.num_warps,
    }


class Graphs(NamedTuple):
    """Graphs of n clips from `first` on: graphs [S, n, V, V, C] = factors [S, n, V, V, K + 4] @ weights [S, K + 4, C]."""

    first: int
    clips: int
    graphs: Tensor
    factors: Tensor
    weights: Tensor


def refined_graphs(relation_terms: Tensor, weight: Tensor, bias: Tensor, shared: Tensor) -> Iterator[Graphs]:
    """Yields the graphs of all clips, a few clips at a time, in a buffer that is reused."""
    clips, joints, _, subsets, relations = relation_terms.shape
    channels, columns = weight.shape[2], relations + EXTRA_COLUMNS
    weights = weight.new_zeros(subsets, columns, channels)
    weights[:, :relations] = weight
    weights[:, relations] = bias
    weights[:, relations + 1] = 1
    each = min(clips, max(1, GRAPH_BYTES // (subsets * joints * joints * channels * weight.element_size())))
    graphs = weight.new_empty(subsets * each * joints * joints * channels)
    factors = weight.new_empty(subsets * each * joints * joints * columns)
    for first in range(0, clips, each):
        here = min(each, clips - first)
        rows = subsets * here * joints * joints
        some_factors = factors[: rows * columns].view(subsets, here * joints * joints, columns)
        some_graphs = graphs[: rows * channels].view(subsets, here * joints * joints, channels)
        relation_kernel[(triton.cdiv(some_factors.numel(), RELATION_BLOCK),)](
            some_factors,
            relation_terms,
            shared,
            first,
            here,
            joints,
            SUBSETS=subsets,
            RELATIONS=relations,
            COLUMNS=columns,
            BLOCK=RELATION_BLOCK,
            num_warps=4,
        )
        torch.bmm(some_factors, weights, out=some_graphs)
        shape = (subsets, here, joints, joints)
        yield Graphs(first, here, some_graphs.view(*shape, channels), some_factors.view(*shape, columns), weights)


@kernel("graph_conv", backend="triton", dtypes=DTYPES)
def graph_conv(
    *,
    out: Tensor,
    features: Tensor,
    relation_terms: Tensor,
    weight: Tensor,
    bias: Tensor,
    shared: Tensor,
    offset: Tensor | None,
    shortcut: Tensor | None,
) -> None:
    """Writes `out` [N, C, T, V], channels-last; features and shortcut are rows of channels, the others contiguous."""
    _, _, frames, joints = features.shape
    subsets, _, channels = weight.shape
    launch = FORWARD[features.dtype]
    sizes = constants(features, subsets, launch)
    block_u = min(launch.joints, block_of(joints))
    blocks = triton.cdiv(joints, block_u) * triton.cdiv(channels, sizes["BLOCK_C"]) * triton.cdiv(frames, sizes["BLOCK_T"])
    with torch.autocast(features.device.type, enabled=False):
        for some in refined_graphs(relation_terms, weight, bias, shared):
            aggregate_kernel[(some.clips * blocks,)](
                out,
                features,
                some.graphs,
                offset,
                shortcut,
                some.first,
                some.clips,
                frames,
                joints,
                channels,
                row_stride(features),
                0 if shortcut is None else row_stride(shortcut),
                BLOCK_U=block_u,
                BLOCK_V=block_of(joints),
                **sizes,
            )


@kernel("graph_conv_backward", backend="triton", dtypes=DTYPES)
def graph_conv_backward(
    *,
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
    """Writes the gradients; `grad` is channels-last, `to_features` has the features' strides, the others are contiguous."""
    _, _, frames, joints = features.shape
    subsets, relations, channels = weight.shape
    launch = BACKWARD[features.dtype]
    sizes = constants(features, subsets, launch)
    block_v = min(launch.joints, block_of(joints))
    blocks = triton.cdiv(joints, block_v) * triton.cdiv(channels, sizes["BLOCK_C"]) * subsets
    of_weights = weight.new_zeros(subsets, relations + EXTRA_COLUMNS, channels)
    to_shared.zero_()
    with torch.autocast(features.device.type, enabled=False):
        for some in refined_graphs(relation_terms, weight, bias, shared):
            aggregate_gradient_kernel[(some.clips * blocks,)](
                to_features,
                some.graphs,
                grad,
                features,
                some.first,
                some.clips,
                frames,
                joints,
                channels,
                row_stride(features),
                BLOCK_U=block_of(joints),
                BLOCK_V=block_v,
                **sizes,
            )
            _, clips, _, _, columns = some.factors.shape
            of_graphs = some.graphs  # the kernel has overwritten them with their gradient
            # One product per clip and a sum: a single product over all clips would be long and thin.
            by_clip = torch.bmm(
                some.factors.view(subsets * clips, joints * joints, columns).transpose(1, 2),
                of_graphs.view(subsets * clips, joints * joints, channels),
            )
            of_weights += by_clip.view(subsets, clips, columns, channels).sum(1)
            of_factors = torch.bmm(of_graphs.view(subsets, -1, channels), some.weights.transpose(1, 2)).view(some.factors.shape)
            to_shared += of_factors[..., relations + 1].sum(1)
            of_relation, relation = of_factors[..., :relations], some.factors[..., :relations]
            of_difference = of_relation - of_relation * relation.square()  # [S, n, U, V, K]
            to_terms = to_relation_terms[some.first : some.first + clips]
            to_terms[:, :, 0] = of_difference.sum(3).permute(1, 2, 0, 3)
            to_terms[:, :, 1] = of_difference.sum(2).permute(1, 2, 0, 3).neg_()
    to_weight.copy_(of_weights[:, :relations])
    to_bias.copy_(of_weights[:, relations])
