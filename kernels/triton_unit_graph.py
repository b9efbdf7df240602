"""CTR-GCN's graph unit in Triton: conv3, refined graphs and aggregation in one kernel, forward and backward.

Neither the features of conv3 nor the graphs reach memory in the forward pass. A program takes a block of channels, frames and
joints u of one row: for each subset and block of joints v it makes features and graphs, and multiplies them on the chip. The
epilogue writes the raw result with the moments of its block, or, with known norms, the result of the whole unit.

The backward pass makes features and graphs again. A program takes a block of joints v of one subset and of some rows: it applies
the norm's gradient on load, and writes the gradients of features and factors. Its part of the gradients of parameters is added
up, row by row, in a buffer of its own, which stays in the cache. A second kernel multiplies the features' gradient by conv3 and
adds all other gradients of x; a third sums the parts. With more than 32 joints, features and graphs take a launch each.

Sums are taken in float32, or float64 for float64, in a fixed order without atomics: results are deterministic. Half-precision
features and graphs are rounded once before their product.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_launch import Moved, launch, product_precision
from .triton_unit_relations import add_to, block_of


@triton.jit
def feature_tile(
    x, w3, b3, frame, joint, channel, frames, joints, channels, in_channels, CI: tl.constexpr, PRECISION: tl.constexpr
):
    """conv3 of one subset, [channel, frame joint]: x is one row, frame and joint are those of a tile's rows; wide."""
    inside = (frame < frames) & (joint < joints)
    is_channel = channel < channels
    rows = x + (frame * joints + joint) * in_channels
    acc = tl.zeros([channel.shape[0], frame.shape[0]], b3.dtype.element_ty)
    acc += tl.load(b3 + channel, mask=is_channel, other=0.0)[:, None]
    for first in range(0, in_channels, CI):
        input = first + tl.arange(0, CI)
        is_input = input < in_channels
        tile = tl.load(rows[None, :] + input[:, None], mask=is_input[:, None] & inside[None, :], other=0.0)
        w = tl.load(w3 + channel[:, None] * in_channels + input[None, :], mask=is_channel[:, None] & is_input[None, :], other=0.0)
        acc = tl.dot(w, tile, acc=acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc


@triton.jit
def factor_tile(factors, u, v, k, joints, relations):
    """Factors [k, pair] of the pairs of joints (u, v) of one row and subset, 0 outside."""
    inside = (u < joints) & (v < joints)
    at = (u * joints + v) * relations
    return tl.load(factors + at[None, :] + k[:, None], mask=inside[None, :] & (k < relations)[:, None], other=0.0)


@triton.jit
def weight_tile(w4, channel, k, channels, relations):
    """w4 [channel, k] of one subset, 0 outside."""
    inside = (channel < channels)[:, None] & (k < relations)[None, :]
    return tl.load(w4 + channel[:, None] * relations + k[None, :], mask=inside, other=0.0)


@triton.jit
def graph_tile(factor, w4, b4, alpha, shared, u, v, channel, joints, channels, PRECISION: tl.constexpr):
    """Refined graphs [channel, pair] of one row and subset; wide, 0 outside. `factor` and `w4` are tiles."""
    inside = (u < joints) & (v < joints)
    SUM: tl.constexpr = b4.dtype.element_ty
    refined = tl.dot(w4, factor, input_precision=PRECISION, out_dtype=SUM)
    refined += tl.load(b4 + channel, mask=channel < channels, other=0.0)[:, None]
    graph = tl.load(shared + u * joints + v, mask=inside, other=0.0)[None, :] + tl.load(alpha) * refined
    return tl.where(inside[None, :], graph, 0.0)


@triton.jit
def affine(x, norm, channel, channels):
    """The normalised value of x [rows, channel]; `norm` is [6, C]."""
    is_channel = channel < channels
    mean = tl.load(norm + channel, mask=is_channel, other=0.0)
    scale = tl.load(norm + channels + channel, mask=is_channel, other=0.0)
    scale *= tl.load(norm + 2 * channels + channel, mask=is_channel, other=0.0)
    bias = tl.load(norm + 3 * channels + channel, mask=is_channel, other=0.0)
    return (x - mean[None, :]) * scale[None, :] + bias[None, :]


@triton.jit
def graph_unit_kernel(
    y,
    moments,
    x,
    factors,
    w3,
    b3,
    w4,
    b4,
    alpha,
    shared,
    norm,
    down,
    down_norm,
    frames,
    joints,
    channels,
    in_channels,
    relations,
    SUBSETS: tl.constexpr,
    K: tl.constexpr,
    CB: tl.constexpr,
    CI: tl.constexpr,
    BT: tl.constexpr,
    U: tl.constexpr,
    V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program writes one block of joints u, channels and frames of one row, and its moments if there is no norm."""
    u_blocks, c_blocks, t_blocks = tl.cdiv(joints, U), tl.cdiv(channels, CB), tl.cdiv(frames, BT)
    u_first = tl.program_id(0) % u_blocks * U
    rest = tl.program_id(0) // u_blocks
    channel = rest % c_blocks * CB + tl.arange(0, CB)
    rest = rest // c_blocks
    begin = rest % t_blocks * BT
    row = (rest // t_blocks).to(tl.int64)
    x += row * frames * joints * in_channels
    y += row * frames * joints * channels
    factors += row * SUBSETS * joints * joints * relations
    dtype = y.dtype.element_ty
    SUM: tl.constexpr = b3.dtype.element_ty
    k = tl.arange(0, K)
    place, pair = tl.arange(0, BT * V), tl.arange(0, U * V)
    u = u_first + pair // V

    acc = tl.zeros([CB, BT, U], SUM)
    for subset in range(SUBSETS):
        for v_first in range(0, joints, V):
            feature = feature_tile(
                x,
                w3 + subset * channels * in_channels,
                b3 + subset * channels,
                begin + place // V,
                v_first + place % V,
                channel,
                frames,
                joints,
                channels,
                in_channels,
                CI,
                PRECISION,
            )
            v = v_first + pair % V
            pairs = subset * joints * joints
            factor = factor_tile(factors + pairs * relations, u, v, k, joints, relations)
            weight = weight_tile(w4 + subset * channels * relations, channel, k, channels, relations)
            graph = graph_tile(
                factor, weight, b4 + subset * channels, alpha, shared + pairs, u, v, channel, joints, channels, PRECISION
            )
            graph = tl.permute(tl.reshape(graph.to(dtype), [CB, U, V]), [0, 2, 1])
            feature = tl.reshape(feature.to(dtype), [CB, BT, V])
            acc = tl.dot(feature, graph, acc=acc, input_precision=PRECISION, out_dtype=SUM)

    value = tl.reshape(tl.permute(acc, [1, 2, 0]), [BT * U, CB])
    place = tl.arange(0, BT * U)
    frame, joint = begin + place // U, u_first + place % U
    is_row = (frame < frames) & (joint < joints)
    inside = is_row[:, None] & (channel < channels)[None, :]
    at = (frame * joints + joint)[:, None] * channels + channel[None, :]
    if norm is None:
        rounded = value.to(dtype)
        tl.store(y + at, rounded, mask=inside)
        count = (tl.minimum(frames - begin, BT) * tl.minimum(joints - u_first, U)).to(SUM)
        value = tl.where(inside, rounded.to(SUM), 0.0)
        mean = tl.sum(value, 0) / count
        deviation = tl.where(inside, value - mean[None, :], 0.0)
        part = ((row * t_blocks + begin // BT) * u_blocks + u_first // U) * 3 * channels + channel
        tl.store(moments + part, tl.zeros([CB], SUM) + count, mask=channel < channels)
        tl.store(moments + part + channels, mean, mask=channel < channels)
        tl.store(moments + part + 2 * channels, tl.sum(deviation * deviation, 0), mask=channel < channels)
    else:
        value = affine(value, norm, channel, channels)
        if down is None:
            value += tl.load(x + at, mask=inside, other=0.0).to(SUM)
        else:
            raw = tl.zeros([BT * U, CB], SUM)
            rows = x + (frame * joints + joint) * in_channels
            for first in range(0, in_channels, CI):
                input = first + tl.arange(0, CI)
                is_input = input < in_channels
                tile = tl.load(rows[:, None] + input[None, :], mask=is_row[:, None] & is_input[None, :], other=0.0)
                is_weight = is_input[:, None] & (channel < channels)[None, :]
                weight = tl.load(down + channel[None, :] * in_channels + input[:, None], mask=is_weight, other=0.0)
                raw = tl.dot(tile, weight, acc=raw, input_precision=PRECISION, out_dtype=SUM)
            value += affine(raw, down_norm, channel, channels)
        value = tl.where(value < 0, 0.0, value)  # keeps NaN, as torch's ReLU
        tl.store(y + at, value.to(dtype), mask=inside)


@triton.jit
def normalised_gradient(grad, y, norm, summed, frame, joint, channel, frames, joints, channels):
    """Gradient [frame joint, channel] of the raw y from that of the normalised y of one row, wide; 0 outside."""
    is_channel = channel < channels
    inside = ((frame < frames) & (joint < joints))[:, None] & is_channel[None, :]
    at = (frame * joints + joint)[:, None] * channels + channel[None, :]
    SUM: tl.constexpr = norm.dtype.element_ty
    mean = tl.load(norm + channel, mask=is_channel, other=0.0)
    rstd = tl.load(norm + channels + channel, mask=is_channel, other=0.0)
    weight = tl.load(norm + 2 * channels + channel, mask=is_channel, other=0.0)
    per_row = tl.load(norm + 4 * channels + channel, mask=is_channel, other=0.0)
    scale = rstd * weight
    offset = scale * per_row * tl.load(summed + channel, mask=is_channel, other=0.0)
    slope = scale * per_row * rstd * tl.load(summed + channels + channel, mask=is_channel, other=0.0)
    value = tl.load(y + at, mask=inside, other=0.0).to(SUM) - mean[None, :]
    of_norm = tl.load(grad + at, mask=inside, other=0.0).to(SUM)
    return tl.where(inside, of_norm * scale[None, :] - value * slope[None, :] - offset[None, :], 0.0)


@triton.jit
def graph_unit_gradient_kernel(
    to_features,
    to_factors,
    feature_parts,
    graph_parts,
    shared_parts,
    alpha_parts,
    grad,
    y,
    norm,
    summed,
    x,
    factors,
    w3,
    b3,
    w4,
    b4,
    alpha,
    shared,
    rows,
    rows_each,
    frames,
    joints,
    channels,
    in_channels,
    relations,
    SUBSETS: tl.constexpr,
    FEATURES: tl.constexpr,
    GRAPHS: tl.constexpr,
    K: tl.constexpr,
    CB: tl.constexpr,
    CI: tl.constexpr,
    BT: tl.constexpr,
    U: tl.constexpr,
    V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a block of joints v of one subset of some rows, all frames and channels.

    With FEATURES it writes the gradient of the features, and adds up those of w3 and b3. With GRAPHS it writes the gradient of the
    factors, and adds up those of w4, b4, shared graphs and alpha; it then takes one block of joints u. Both at once need all u in
    one block.
    """
    v_blocks, u_blocks = tl.cdiv(joints, V), tl.cdiv(joints, U) if GRAPHS else 1
    v_first = tl.program_id(0) % v_blocks * V
    u_first = tl.program_id(0) // v_blocks % u_blocks * U
    subset = tl.program_id(0) // v_blocks // u_blocks % SUBSETS
    group = (tl.program_id(0) // v_blocks // u_blocks // SUBSETS).to(tl.int64)
    part = (group * u_blocks + u_first // U) * v_blocks + v_first // V
    dtype = x.dtype.element_ty
    SUM: tl.constexpr = b3.dtype.element_ty
    k = tl.arange(0, K)
    place, pair = tl.arange(0, BT * V), tl.arange(0, U * V)
    of_u, of_t = pair % U, tl.arange(0, BT * U)
    pair_v = v_first + pair // U
    joint = v_first + place % V
    pairs = subset * joints * joints
    shared += pairs
    w3, b3 = w3 + subset * channels * in_channels, b3 + subset * channels
    w4, b4 = w4 + subset * channels * relations, b4 + subset * channels
    to_features += subset * channels
    feature_parts += part * SUBSETS * channels * (in_channels + 1)
    to_w3, to_b3 = (
        feature_parts + subset * channels * in_channels,
        feature_parts + SUBSETS * channels * in_channels + subset * channels,
    )
    graph_parts += part * SUBSETS * channels * (relations + 1)
    to_w4 = graph_parts + subset * channels * relations
    to_b4 = graph_parts + SUBSETS * channels * relations + subset * channels

    of_shared = tl.zeros([U * V], SUM)
    of_alpha = tl.zeros([CB], SUM)
    begin = group * rows_each
    for row in range(begin, tl.minimum(begin + rows_each, rows)):
        activations = row * frames * joints
        of_factors = tl.zeros([K, U * V], SUM)
        row_factors = factors + (row * SUBSETS * joints * joints + pairs) * relations
        for c_first in range(0, channels, CB):
            channel = c_first + tl.arange(0, CB)
            is_channel = channel < channels
            weight = weight_tile(w4, channel, k, channels, relations)
            if GRAPHS:
                factor = factor_tile(row_factors, u_first + of_u, pair_v, k, joints, relations)
                wide_graph = graph_tile(
                    factor, weight, b4, alpha, shared, u_first + of_u, pair_v, channel, joints, channels, PRECISION
                )
                graph = tl.permute(tl.reshape(wide_graph.to(dtype), [CB, V, U]), [0, 2, 1])
                of_graph = tl.zeros([CB, U, V], SUM)
            for t_first in range(0, frames, BT):
                if GRAPHS:
                    to_y = normalised_gradient(
                        grad + activations * channels,
                        y + activations * channels,
                        norm,
                        summed,
                        t_first + of_t // U,
                        u_first + of_t % U,
                        channel,
                        frames,
                        joints,
                        channels,
                    )
                    to_y = tl.permute(tl.reshape(to_y.to(dtype), [BT, U, CB]), [2, 0, 1])
                if FEATURES:
                    of_feature = tl.zeros([CB, BT, V], SUM)
                    if GRAPHS:
                        of_feature = tl.dot(to_y, graph, acc=of_feature, input_precision=PRECISION, out_dtype=SUM)
                    else:
                        for first in range(0, joints, U):
                            factor = factor_tile(row_factors, first + of_u, pair_v, k, joints, relations)
                            wide_graph = graph_tile(
                                factor, weight, b4, alpha, shared, first + of_u, pair_v, channel, joints, channels, PRECISION
                            )
                            graph = tl.permute(tl.reshape(wide_graph.to(dtype), [CB, V, U]), [0, 2, 1])
                            to_y = normalised_gradient(
                                grad + activations * channels,
                                y + activations * channels,
                                norm,
                                summed,
                                t_first + of_t // U,
                                first + of_t % U,
                                channel,
                                frames,
                                joints,
                                channels,
                            )
                            to_y = tl.permute(tl.reshape(to_y.to(dtype), [BT, U, CB]), [2, 0, 1])
                            of_feature = tl.dot(to_y, graph, acc=of_feature, input_precision=PRECISION, out_dtype=SUM)
                    of_feature = tl.reshape(tl.permute(of_feature, [1, 2, 0]), [BT * V, CB])
                    frame = t_first + place // V
                    is_row = (frame < frames) & (joint < joints)
                    is_first = (row == begin) & (t_first == 0)
                    at = (activations + frame * joints + joint)[:, None] * (SUBSETS * channels) + channel[None, :]
                    rounded = of_feature.to(dtype)
                    tl.store(to_features + at, rounded, mask=is_row[:, None] & is_channel[None, :])
                    add_to(to_b3 + channel, tl.sum(of_feature, 0), is_channel, is_first)
                    x_rows = x + (activations + frame * joints + joint) * in_channels
                    for first in range(0, in_channels, CI):
                        input = first + tl.arange(0, CI)
                        is_input = input < in_channels
                        tile = tl.load(x_rows[None, :] + input[:, None], mask=is_input[:, None] & is_row[None, :], other=0.0)
                        of_w3 = tl.dot(tile, rounded, input_precision=PRECISION, out_dtype=SUM)
                        at = channel[None, :] * in_channels + input[:, None]
                        add_to(to_w3 + at, of_w3, is_input[:, None] & is_channel[None, :], is_first)
                if GRAPHS:
                    feature = feature_tile(
                        x + activations * in_channels,
                        w3,
                        b3,
                        t_first + place // V,
                        joint,
                        channel,
                        frames,
                        joints,
                        channels,
                        in_channels,
                        CI,
                        PRECISION,
                    )
                    feature = tl.reshape(feature.to(dtype), [CB, BT, V])
                    of_graph = tl.dot(tl.permute(to_y, [0, 2, 1]), feature, acc=of_graph, input_precision=PRECISION, out_dtype=SUM)
            if GRAPHS:
                of_graph = tl.reshape(tl.permute(of_graph, [0, 2, 1]), [CB, V * U])
                of_graph = tl.where((pair_v < joints)[None, :], of_graph, 0.0)
                scale = tl.load(alpha)
                of_shared += tl.sum(of_graph, 0)
                of_b4 = tl.sum(of_graph, 1)
                rounded = of_graph.to(dtype)
                of_w4 = tl.dot(rounded, tl.trans(factor), input_precision=PRECISION, out_dtype=SUM)
                bias = tl.load(b4 + channel, mask=is_channel, other=0.0)
                of_alpha += tl.sum(of_w4 * weight.to(SUM), 1) + of_b4 * bias
                is_weight = is_channel[:, None] & (k < relations)[None, :]
                add_to(to_w4 + channel[:, None] * relations + k[None, :], scale * of_w4, is_weight, row == begin)
                add_to(to_b4 + channel, scale * of_b4, is_channel, row == begin)
                of_factors = tl.dot(tl.trans(weight), rounded, acc=of_factors, input_precision=PRECISION, out_dtype=SUM)
        if GRAPHS:
            inside = (u_first + of_u < joints) & (pair_v < joints)
            at = row * SUBSETS * joints * joints + pairs + (u_first + of_u) * joints + pair_v
            is_factor = inside[None, :] & (k < relations)[:, None]
            tl.store(to_factors + at[None, :] * relations + k[:, None], tl.load(alpha) * of_factors, mask=is_factor)
    if GRAPHS:
        inside = (u_first + of_u < joints) & (pair_v < joints)
        at = group * SUBSETS * joints * joints + pairs + (u_first + of_u) * joints + pair_v
        tl.store(shared_parts + at, of_shared, mask=inside)
        tl.store(alpha_parts + part * SUBSETS + subset, tl.sum(of_alpha, 0))


class Tiles(NamedTuple):
    """Largest blocks of a kernel and its warps."""

    channels: int
    inputs: int
    frames: int
    u: int
    v: int
    num_warps: int

    def constants(self, frames: int, joints: int, in_channels: int, relations: int) -> dict[str, int]:
        """The blocks for these sizes."""
        return {
            "K": block_of(relations, 1 << 20),
            "CB": self.channels,
            "CI": block_of(in_channels, self.inputs),
            "BT": block_of(frames, self.frames),
            "U": block_of(joints, self.u),
            "V": block_of(joints, self.v),
            "num_warps": self.num_warps,
        }


FORWARD = {
    torch.float32: Tiles(16, 32, 16, 16, 32, 8),
    torch.float64: Tiles(16, 16, 16, 16, 16, 8),
    torch.float16: Tiles(16, 64, 16, 16, 32, 8),
    torch.bfloat16: Tiles(16, 64, 16, 16, 32, 8),
}
BACKWARD = {
    torch.float32: Tiles(16, 32, 16, 32, 16, 8),
    torch.float64: Tiles(16, 16, 16, 32, 16, 8),
    torch.float16: Tiles(16, 64, 32, 32, 16, 8),
    torch.bfloat16: Tiles(16, 64, 32, 32, 16, 8),
}
PROGRAMS = 264  # of the backward pass: two for each multiprocessor of a large GPU, each with its part of the parameters' gradient


def graph_unit(
    x: Tensor, factors: Tensor, w3: Tensor, b3: Tensor, w4: Tensor, b4: Tensor, alpha: Tensor, shared: Tensor
) -> tuple[Tensor, Tensor]:
    """As `shapmix.reference.layer.graph_unit`; contiguous arguments. 1 launch."""
    rows, frames, joints, _ = x.shape
    channels = w3.shape[1]
    tiles = _forward_constants(x, factors)
    y = x.new_empty(rows, frames, joints, channels)
    parts = rows * triton.cdiv(frames, tiles["BT"]) * triton.cdiv(joints, tiles["U"])
    moments = b3.new_empty(parts, 3, channels)
    _launch_forward(y, moments, x, factors, w3, b3, w4, b4, alpha, shared, None, None, None)
    return y, moments


def folded_graph_unit(
    x: Tensor,
    factors: Tensor,
    w3: Tensor,
    b3: Tensor,
    w4: Tensor,
    b4: Tensor,
    alpha: Tensor,
    shared: Tensor,
    norm: Tensor,
    *,
    down: Tensor | None = None,
    down_norm: Tensor | None = None,
) -> Tensor:
    """As `shapmix.reference.layer.folded_graph_unit`; contiguous arguments. 1 launch."""
    y = x.new_empty(*x.shape[:3], w3.shape[1])
    _launch_forward(y, None, x, factors, w3, b3, w4, b4, alpha, shared, norm, down, down_norm)
    return y


def _forward_constants(x: Tensor, factors: Tensor) -> dict[str, int]:
    return FORWARD[x.dtype].constants(x.shape[1], x.shape[2], x.shape[3], factors.shape[4])


def _launch_forward(y: Tensor, moments: Tensor | None, x: Tensor, factors: Tensor, *parameters: Tensor | None) -> None:
    rows, frames, joints, channels = y.shape
    in_channels, subsets, relations = x.shape[3], factors.shape[1], factors.shape[4]
    tiles = _forward_constants(x, factors)
    blocks = triton.cdiv(joints, tiles["U"]) * triton.cdiv(channels, tiles["CB"]) * triton.cdiv(frames, tiles["BT"])
    products = in_channels * (subsets + (parameters[-2] is not None)) + subsets * joints  # of an element of y
    launch(
        graph_unit_kernel,
        (rows * blocks,),
        y,
        moments,
        x,
        factors,
        *parameters,
        frames,
        joints,
        channels,
        in_channels,
        relations,
        SUBSETS=subsets,
        PRECISION=product_precision(x.dtype),
        **tiles,
        reads=[x, factors, *parameters],
        writes=[y, moments],
        flops=2 * y.numel() * products + 2 * factors.numel() * channels,
    )


def graph_unit_backward(
    grad: Tensor,
    y: Tensor,
    norm: Tensor,
    summed: Tensor,
    x: Tensor,
    factors: Tensor,
    w3: Tensor,
    b3: Tensor,
    w4: Tensor,
    b4: Tensor,
    alpha: Tensor,
    shared: Tensor,
) -> tuple[Tensor, ...]:
    """As `shapmix.reference.layer.graph_unit_backward`; contiguous arguments. 1 launch, 2 with more than 32 joints."""
    rows, frames, joints, channels = y.shape
    _, subsets, _, _, relations = factors.shape
    in_channels = x.shape[3]
    tiles = BACKWARD[x.dtype].constants(frames, joints, in_channels, relations)
    v_blocks, u_blocks = triton.cdiv(joints, tiles["V"]), triton.cdiv(joints, tiles["U"])
    rows_each = triton.cdiv(rows * subsets * v_blocks, PROGRAMS)
    groups = triton.cdiv(rows, rows_each)
    to_features = x.new_empty(rows, frames, joints, subsets * channels)
    to_factors = b3.new_empty(factors.shape)
    feature_parts = b3.new_empty(groups * v_blocks, subsets * channels * (in_channels + 1))
    graph_parts = b3.new_empty(groups * v_blocks * u_blocks, subsets * channels * (relations + 1))
    shared_parts = b3.new_empty(groups, subsets * joints * joints)
    alpha_parts = b3.new_empty(groups * v_blocks * u_blocks * subsets, 1)
    for features, graphs in [(True, True)] if u_blocks == 1 else [(True, False), (False, True)]:
        products = in_channels + joints
        writes: list[Moved] = [to_features, feature_parts] if features else []
        writes += [to_factors, graph_parts, shared_parts, alpha_parts] if graphs else []
        launch(
            graph_unit_gradient_kernel,
            (groups * subsets * v_blocks * (u_blocks if graphs else 1),),
            to_features,
            to_factors,
            feature_parts,
            graph_parts,
            shared_parts,
            alpha_parts,
            grad,
            y,
            norm,
            summed,
            x,
            factors,
            w3,
            b3,
            w4,
            b4,
            alpha,
            shared,
            rows,
            rows_each,
            frames,
            joints,
            channels,
            in_channels,
            relations,
            SUBSETS=subsets,
            FEATURES=features,
            GRAPHS=graphs,
            PRECISION=product_precision(x.dtype),
            **tiles,
            reads=[grad, y, norm, summed, x, factors, w3, b3, w4, b4, alpha, shared],
            writes=writes,
            flops=2 * to_features.numel() * products * (features + graphs) + factors.numel() * channels * (2 + 4 * graphs),
        )
    return to_features, to_factors, feature_parts, graph_parts, shared_parts.view(groups, *shared.shape), alpha_parts
