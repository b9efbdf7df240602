"""CTR-GCN's graph unit in Triton: conv3, refined graphs and aggregation in one kernel, forward and backward.

Neither the features of conv3 nor the graphs reach memory in the forward pass. A program takes a block of channels, frames and
joints u of one row: for each subset and block of joints v it makes features and graphs, and multiplies them on the chip. The
epilogue writes the raw result with the moments of its block, or, with known norms, the result of the whole unit.

The backward pass makes features and graphs again. A program takes a block of joints v of one subset and of some rows. For each
block of channels it applies the norm's gradient by products with diagonal matrices, which also turn rows of channels into channels
of rows; multiplies it with the graphs, which gives the gradient of the features; and multiplies it with the features, which gives
the gradient of the graphs. It leaves both for a group of channels in memory, and then multiplies them with x, factors and weights
in larger products. What a program leaves for itself, and its part of the gradients of parameters, stays in the cache. Where the
joints u do not fit one block (more than 32 joints, or 16 in float32 with three products), features and graphs take a launch each.

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

from .triton_launch import Moved, architecture, in_three_products, launch, product_precision
from .triton_rows import block_of, load_norm, normalise, relu
from .triton_unit_relations import add_to


@triton.jit
def below(index, size: tl.constexpr, BLOCK: tl.constexpr):
    """index < size, which is known at compile time if the blocks fill the axis."""
    if size % BLOCK == 0:
        return tl.full(index.shape, True, tl.int1)
    else:
        return index < size


@triton.jit
def feature_tile(
    x,
    w3,
    b3,
    frame,
    joint,
    channel,
    width,
    frames: tl.constexpr,
    joints: tl.constexpr,
    channels: tl.constexpr,
    in_channels: tl.constexpr,
    CB: tl.constexpr,
    CI: tl.constexpr,
    BT: tl.constexpr,
    V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """conv3 of one subset, [channel, frame joint]: x is one row, frame and joint are those of a tile's rows; wide."""
    everywhere = tl.full([BT * V], True, tl.int1)
    is_channel = below(channel, channels, CB)
    rows = x + (nearest(frame, frames, BT) * joints + nearest(joint, joints, V)) * in_channels
    acc = tl.zeros([CB, BT * V], b3.dtype.element_ty)
    acc += tl.load(b3 + channel, mask=is_channel, other=0.0)[:, None]
    for first in range(0, in_channels if in_channels <= CI else width, CI):
        input = first + tl.arange(0, CI)
        is_input = below(input, in_channels, CI)
        tile = tl.load(rows[None, :] + input[:, None], mask=is_input[:, None] & everywhere[None, :], other=0.0)
        w = tl.load(w3 + channel[:, None] * in_channels + input[None, :], mask=is_channel[:, None] & is_input[None, :], other=0.0)
        acc = tl.dot(w, tile, acc=acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc


@triton.jit
def factor_tile(factors, u, v, k, joints: tl.constexpr, relations: tl.constexpr, K: tl.constexpr):
    """Factors [k, pair] of the pairs of joints (u, v) of one row and subset, 0 outside."""
    inside = (u < joints) & (v < joints)
    at = (u * joints + v) * relations
    return tl.load(factors + at[None, :] + k[:, None], mask=inside[None, :] & below(k, relations, K)[:, None], other=0.0)


@triton.jit
def weight_tile(w4, channel, k, channels: tl.constexpr, relations: tl.constexpr, CB: tl.constexpr, K: tl.constexpr):
    """w4 [channel, k] of one subset, 0 outside."""
    inside = below(channel, channels, CB)[:, None] & below(k, relations, K)[None, :]
    return tl.load(w4 + channel[:, None] * relations + k[None, :], mask=inside, other=0.0)


@triton.jit
def graph_tile(
    factors,
    w4,
    b4,
    alpha,
    shared,
    u,
    v,
    channel,
    joints: tl.constexpr,
    channels: tl.constexpr,
    relations: tl.constexpr,
    CB: tl.constexpr,
    KB: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Refined graphs [channel, pair] of one row and subset; wide, 0 outside."""
    inside = (u < joints) & (v < joints)
    SUM: tl.constexpr = b4.dtype.element_ty
    scale = tl.load(alpha)
    bias = scale * tl.load(b4 + channel, mask=below(channel, channels, CB), other=0.0)
    of_pair = tl.load(shared + u * joints + v, mask=inside, other=0.0)
    graph = bias[:, None] * inside.to(SUM)[None, :] + of_pair[None, :]
    for k_first in tl.range(0, relations, KB, disable_licm=True):
        k = k_first + tl.arange(0, KB)
        factor = factor_tile(factors, u, v, k, joints, relations, KB)
        weight = scale * weight_tile(w4, channel, k, channels, relations, CB, KB).to(SUM)
        graph = tl.dot(weight.to(factor.dtype), factor, acc=graph, input_precision=PRECISION, out_dtype=SUM)
    return graph


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
    frames: tl.constexpr,
    joints: tl.constexpr,
    channels: tl.constexpr,
    in_channels: tl.constexpr,
    relations: tl.constexpr,
    SUBSETS: tl.constexpr,
    KB: tl.constexpr,
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
                in_channels,
                frames,
                joints,
                channels,
                in_channels,
                CB,
                CI,
                BT,
                V,
                PRECISION,
            )
            v = v_first + pair % V
            pairs = subset * joints * joints
            graph = graph_tile(
                factors + pairs * relations,
                w4 + subset * channels * relations,
                b4 + subset * channels,
                alpha,
                shared + pairs,
                u,
                v,
                channel,
                joints,
                channels,
                relations,
                CB,
                KB,
                PRECISION,
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
        mean, scale, bias = load_norm(norm, channel, channels, channel < channels)
        value = normalise(value, mean, scale, bias)
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
            mean, scale, bias = load_norm(down_norm, channel, channels, channel < channels)
            value += normalise(raw, mean, scale, bias)
        tl.store(y + at, relu(value).to(dtype), mask=inside)


@triton.jit
def nearest(index, size: tl.constexpr, BLOCK: tl.constexpr):
    """The index, or the last one for those outside: reading there needs no mask, whose zeros would be set one by one."""
    if size % BLOCK == 0:
        return index
    else:
        return tl.minimum(index, size - 1)


@triton.jit
def diagonal(values, dtype: tl.constexpr, CB: tl.constexpr):
    """A diagonal matrix in a dtype."""
    is_equal = tl.arange(0, CB)[:, None] == tl.arange(0, CB)[None, :]
    return tl.where(is_equal, values.to(dtype)[:, None], 0.0).to(dtype)


@triton.jit
def norm_gradient(norm, summed, channel, dtype: tl.constexpr, channels: tl.constexpr, CB: tl.constexpr):
    """Scale, offset and diagonal matrices D: scale * (D0 grad + D1 y + D2 y) + offset is the gradient of the raw y.

    D1 + D2 is the slope, rounded, and what that loses. The offset goes with the rounded sum: a large mean of y must cancel. A slope
    goes as 1 / rows, which float16 would lose: D is multiplied by a power of two there, and scale is divided by it.
    """
    is_channel = below(channel, channels, CB)
    mean = tl.load(norm + channel, mask=is_channel, other=0.0)
    rstd = tl.load(norm + channels + channel, mask=is_channel, other=0.0)
    scale = rstd * tl.load(norm + 2 * channels + channel, mask=is_channel, other=0.0)
    per_row = tl.load(norm + 4 * channels + channel, mask=is_channel, other=0.0)
    slope = -per_row * rstd * tl.load(summed + channels + channel, mask=is_channel, other=0.0)
    one = tl.full([CB], 1.0, scale.dtype)
    if dtype == tl.float16:
        one = tl.where(tl.abs(slope) <= 2.0, one * 16384.0, one / 16.0)
        scale, slope = scale / one, slope * one
    rounded = slope.to(dtype)
    rest = slope - rounded.to(slope.dtype)
    exact = rounded.to(slope.dtype) + rest.to(dtype).to(slope.dtype)
    offset = -exact * mean - one * per_row * tl.load(summed + channel, mask=is_channel, other=0.0)
    return scale, scale * offset, diagonal(one, dtype, CB), diagonal(rounded, dtype, CB), diagonal(rest, dtype, CB)


@triton.jit
def gradient_tile(
    grad,
    y,
    scale,
    offset,
    of_grad,
    of_value,
    of_value_rest,
    frame,
    joint,
    channel,
    frames: tl.constexpr,
    joints: tl.constexpr,
    channels: tl.constexpr,
    CB: tl.constexpr,
    BT: tl.constexpr,
    U: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient [channel, frame joint] of the raw y from that of the normalised y of one row; 0 at frames outside.

    Only the result is rounded to half precision. At joints outside it is that of the last joint.
    """
    SUM: tl.constexpr = offset.dtype
    is_channel = below(channel, channels, CB)[:, None] & tl.full([1, BT * U], True, tl.int1)
    at = ((nearest(frame, frames, BT) * joints + nearest(joint, joints, U)) * channels)[None, :] + channel[:, None]
    of_norm = tl.load(grad + at, mask=is_channel, other=0.0)
    value = tl.load(y + at, mask=is_channel, other=0.0)
    to_y = tl.zeros([CB, BT * U], SUM)
    to_y = tl.dot(of_grad, of_norm, acc=to_y, input_precision=PRECISION, out_dtype=SUM)
    to_y = tl.dot(of_value, value, acc=to_y, input_precision=PRECISION, out_dtype=SUM)
    if y.dtype.element_ty != SUM:
        to_y = tl.dot(of_value_rest, value, acc=to_y, input_precision=PRECISION, out_dtype=SUM)
    to_y = to_y * scale[:, None] + offset[:, None]
    if frames % BT != 0:
        to_y = tl.where((frame < frames)[None, :], to_y, 0.0)
    return to_y.to(y.dtype.element_ty)


@triton.jit
def add_weight_gradient(
    to_w3,
    to_features,
    x,
    v_first,
    channel,
    width,
    is_first,
    frames: tl.constexpr,
    joints: tl.constexpr,
    channels: tl.constexpr,
    in_channels: tl.constexpr,
    features: tl.constexpr,
    GC: tl.constexpr,
    CW: tl.constexpr,
    RB: tl.constexpr,
    V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds the gradient of w3 of one row and subset for some channels and a block of joints; the features' gradient is stored."""
    SUM: tl.constexpr = to_w3.dtype.element_ty
    is_channel = below(channel, channels, GC)
    for i_first in range(0, width, CW):
        input = i_first + tl.arange(0, CW)
        is_input = below(input, in_channels, CW)
        of_w3 = tl.zeros([GC, CW], SUM)
        for first in tl.range(0, frames * min(joints, V), RB, disable_licm=True):
            place = first + tl.arange(0, RB)
            if joints <= V:  # one block has all rows
                is_row = below(place, frames * joints, RB)
            else:
                joint = v_first + place % V
                is_row = (place < frames * V) & (joint < joints)
                place = place // V * joints + joint
            at = to_features + place[None, :] * features + channel[:, None]
            gradient = tl.load(at, mask=is_channel[:, None] & is_row[None, :], other=0.0)
            tile = tl.load(x + place[:, None] * in_channels + input[None, :], mask=is_row[:, None] & is_input[None, :], other=0.0)
            of_w3 = tl.dot(gradient, tile, acc=of_w3, input_precision=PRECISION, out_dtype=SUM)
        at_w3 = channel[:, None] * in_channels + input[None, :]
        add_to(to_w3 + at_w3, of_w3, is_channel[:, None] & is_input[None, :], is_first)


@triton.jit
def graph_unit_gradient_kernel(
    to_features,
    to_factors,
    feature_parts,
    graph_parts,
    shared_parts,
    alpha_parts,
    turned,
    graph_rows,
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
    width,
    frames: tl.constexpr,
    joints: tl.constexpr,
    channels: tl.constexpr,
    in_channels: tl.constexpr,
    relations: tl.constexpr,
    SUBSETS: tl.constexpr,
    FEATURES: tl.constexpr,
    GRAPHS: tl.constexpr,
    KB: tl.constexpr,
    CB: tl.constexpr,
    CI: tl.constexpr,
    BT: tl.constexpr,
    U: tl.constexpr,
    V: tl.constexpr,
    PRECISION: tl.constexpr,
    GC: tl.constexpr,
    RB: tl.constexpr,
    CW: tl.constexpr,
    PB: tl.constexpr,
):
    """Each program takes a block of joints v of one subset of some rows, all frames and channels.

    With FEATURES it writes the gradient of the features, and adds up those of w3 and b3. With GRAPHS it writes the gradient of the
    factors, and adds up those of w4, b4, shared graphs and alpha; it then takes one block of joints u. Both at once need all u in
    one block. Graphs are 0 at joints outside, so that what is there in other tiles does not matter.

    `turned` and `graph_rows` are memory of the program: the gradient of y for one block of channels, and that of graphs for a group
    of GC channels. Keeping them in registers would spill.
    """
    v_blocks, u_blocks = tl.cdiv(joints, V), tl.cdiv(joints, U) if GRAPHS else 1
    v_first = tl.program_id(0) % v_blocks * V
    u_first = tl.program_id(0) // v_blocks % u_blocks * U
    subset = tl.program_id(0) // v_blocks // u_blocks % SUBSETS
    group = (tl.program_id(0) // v_blocks // u_blocks // SUBSETS).to(tl.int64)
    part = (group * u_blocks + u_first // U) * v_blocks + v_first // V
    t_blocks = tl.cdiv(frames, BT)
    turned += tl.program_id(0).to(tl.int64) * (CB * t_blocks * BT * U)
    graph_rows += tl.program_id(0).to(tl.int64) * (GC * V * U)
    dtype = x.dtype.element_ty
    SUM: tl.constexpr = b3.dtype.element_ty
    pair = tl.arange(0, U * V)
    u, v = u_first + pair % U, v_first + pair // U
    place_u, place_v = tl.arange(0, BT * U), tl.arange(0, BT * V)
    joint = v_first + place_v % V
    pairs = subset * joints * joints
    shared += pairs
    w3, b3 = w3 + subset * channels * in_channels, b3 + subset * channels
    w4, b4 = w4 + subset * channels * relations, b4 + subset * channels
    to_features += subset * channels
    to_w3 = feature_parts + part * (SUBSETS * channels * (in_channels + 1)) + subset * channels * in_channels
    to_b3 = feature_parts + part * (SUBSETS * channels * (in_channels + 1)) + SUBSETS * channels * in_channels + subset * channels
    to_w4 = graph_parts + part * (SUBSETS * channels * (relations + 1)) + subset * channels * relations
    to_b4 = graph_parts + part * (SUBSETS * channels * (relations + 1)) + SUBSETS * channels * relations + subset * channels
    to_alpha = alpha_parts + part * SUBSETS + subset
    to_shared = shared_parts + group * (SUBSETS * joints * joints) + pairs
    scale_of_graph = tl.load(alpha)

    begin = group * rows_each
    for row in tl.range(begin, tl.minimum(begin + rows_each, rows), disable_licm=True):
        x_row = x + row * (frames * joints * in_channels)
        grad_row, y_row = grad + row * (frames * joints * channels), y + row * (frames * joints * channels)
        to_feature_row = to_features + row * (frames * joints * SUBSETS * channels)
        factor_row = factors + (row * (SUBSETS * joints * joints) + pairs) * relations
        to_factor_row = to_factors + (row * (SUBSETS * joints * joints) + pairs) * relations
        for outer in tl.range(0, channels, GC, disable_licm=True):
            for c_first in tl.range(outer, tl.minimum(outer + GC, channels), CB, disable_licm=True):
                channel = c_first + tl.arange(0, CB)
                is_channel = below(channel, channels, CB)
                if GRAPHS:
                    wide_graph = graph_tile(
                        factor_row, w4, b4, alpha, shared, u, v, channel, joints, channels, relations, CB, KB, PRECISION
                    )
                    graph = tl.permute(tl.reshape(wide_graph.to(dtype), [CB, V, U]), [0, 2, 1])
                scale, offset, of_grad, of_value, of_value_rest = norm_gradient(norm, summed, channel, dtype, channels, CB)
                turned_tile = turned + (tl.arange(0, CB)[:, None] * (t_blocks * BT * U) + place_u[None, :])
                of_b3 = tl.zeros([CB, 8, 8], SUM)
                for t_first in tl.range(0, frames, BT, disable_licm=True):
                    frame_u, frame_v = t_first + place_u // U, t_first + place_v // V
                    if GRAPHS:
                        joint_u = u_first + place_u % U
                        to_y = gradient_tile(
                            grad_row,
                            y_row,
                            scale,
                            offset,
                            of_grad,
                            of_value,
                            of_value_rest,
                            frame_u,
                            joint_u,
                            channel,
                            frames,
                            joints,
                            channels,
                            CB,
                            BT,
                            U,
                            PRECISION,
                        )
                        tl.store(turned_tile + t_first * U, to_y)
                    if FEATURES:
                        of_feature = tl.zeros([CB, BT, V], SUM)
                        if GRAPHS:
                            of_feature = tl.dot(
                                tl.reshape(to_y, [CB, BT, U]), graph, acc=of_feature, input_precision=PRECISION, out_dtype=SUM
                            )
                        else:
                            for first in range(0, joints, U):
                                other = first + pair % U
                                wide_part = graph_tile(
                                    factor_row,
                                    w4,
                                    b4,
                                    alpha,
                                    shared,
                                    other,
                                    v,
                                    channel,
                                    joints,
                                    channels,
                                    relations,
                                    CB,
                                    KB,
                                    PRECISION,
                                )
                                part_graph = tl.permute(tl.reshape(wide_part.to(dtype), [CB, V, U]), [0, 2, 1])
                                joint_u = first + place_u % U
                                part_y = gradient_tile(
                                    grad_row,
                                    y_row,
                                    scale,
                                    offset,
                                    of_grad,
                                    of_value,
                                    of_value_rest,
                                    frame_u,
                                    joint_u,
                                    channel,
                                    frames,
                                    joints,
                                    channels,
                                    CB,
                                    BT,
                                    U,
                                    PRECISION,
                                )
                                part_y = tl.reshape(part_y, [CB, BT, U])
                                of_feature = tl.dot(part_y, part_graph, acc=of_feature, input_precision=PRECISION, out_dtype=SUM)
                        of_b3 += tl.sum(tl.sum(tl.reshape(of_feature, [CB, BT // 8, 8, V // 8, 8]), 3), 1)  # without other threads
                        of_feature = tl.reshape(tl.permute(of_feature, [1, 2, 0]), [BT * V, CB])
                        feature_gradient = of_feature.to(dtype)
                        is_row = below(frame_v, frames, BT) & below(joint, joints, V)
                        at_feature = (frame_v * joints + joint)[:, None] * (SUBSETS * channels) + channel[None, :]
                        tl.store(to_feature_row + at_feature, feature_gradient, mask=is_row[:, None] & is_channel[None, :])
                if FEATURES:
                    add_to(to_b3 + channel, tl.sum(tl.sum(of_b3, 2), 1), is_channel, row == begin)
                if GRAPHS:
                    of_graph = tl.zeros([CB, U, V], SUM)
                    tl.debug_barrier()  # other threads have stored what is loaded
                    for t_first in tl.range(0, frames, BT, disable_licm=True):
                        feature = feature_tile(
                            x_row,
                            w3,
                            b3,
                            t_first + place_v // V,
                            joint,
                            channel,
                            width,
                            frames,
                            joints,
                            channels,
                            in_channels,
                            CB,
                            CI,
                            BT,
                            V,
                            PRECISION,
                        )
                        feature = tl.reshape(feature.to(dtype), [CB, BT, V])
                        to_y = tl.reshape(tl.load(turned_tile + t_first * U), [CB, BT, U])
                        of_graph = tl.dot(
                            tl.permute(to_y, [0, 2, 1]), feature, acc=of_graph, input_precision=PRECISION, out_dtype=SUM
                        )
                if GRAPHS:
                    rounded = tl.reshape(tl.permute(of_graph, [0, 2, 1]), [CB, V * U]).to(dtype)
                    tl.store(graph_rows + (c_first - outer + tl.arange(0, CB))[:, None] * (V * U) + pair[None, :], rounded)
            tl.debug_barrier()  # other threads have stored what is loaded
            if FEATURES:
                add_weight_gradient(
                    to_w3,
                    to_feature_row,
                    x_row,
                    v_first,
                    outer + tl.arange(0, GC),
                    width,
                    row == begin,
                    frames,
                    joints,
                    channels,
                    in_channels,
                    SUBSETS * channels,
                    GC,
                    CW,
                    RB,
                    V,
                    PRECISION,
                )
            if GRAPHS:
                channel = outer + tl.arange(0, GC)
                is_channel = below(channel, channels, GC)
                first_column = (tl.arange(0, 8) == 0)[None, :].to(SUM)
                ones = tl.full([GC, 8], 1.0, dtype)
                of_b4 = tl.zeros([GC, 8], SUM)
                for k_first in tl.range(0, relations, KB, disable_licm=True):  # a few at a time, which keeps registers free
                    k = k_first + tl.arange(0, KB)
                    is_relation = below(k, relations, KB)
                    weight = weight_tile(w4, channel, k, channels, relations, GC, KB)
                    of_w4 = tl.zeros([GC, KB], SUM)
                    for p_first in tl.range(0, V * U, PB, disable_licm=True):
                        of_tile = p_first + tl.arange(0, PB)
                        tile_u, tile_v = u_first + of_tile % U, v_first + of_tile // U
                        inside = (tile_u < joints) & (tile_v < joints)
                        at = graph_rows + tl.arange(0, GC)[:, None] * (V * U) + of_tile[None, :]
                        tile = tl.load(at, mask=is_channel[:, None] & (of_tile >= 0)[None, :], other=0.0)
                        if k_first == 0:
                            of_shared = tl.dot(tl.trans(tile), ones, input_precision=PRECISION, out_dtype=SUM)
                            of_shared = tl.sum(of_shared * first_column, 1)
                            add_to(to_shared + tile_u * joints + tile_v, of_shared, inside, (row == begin) & (outer == 0))
                            is_pair = tl.full([PB, 8], 1.0, dtype) * inside[:, None].to(dtype)
                            of_b4 = tl.dot(tile, is_pair, acc=of_b4, input_precision=PRECISION, out_dtype=SUM)
                        factor = tl.trans(factor_tile(factor_row, tile_u, tile_v, k, joints, relations, KB))
                        of_w4 = tl.dot(tile, factor, acc=of_w4, input_precision=PRECISION, out_dtype=SUM)
                        of_factors = tl.dot(tl.trans(tile), weight, input_precision=PRECISION, out_dtype=SUM)
                        at_factor = ((tile_u * joints + tile_v) * relations)[:, None] + k[None, :]
                        is_factor = inside[:, None] & is_relation[None, :]
                        add_to(to_factor_row + at_factor, scale_of_graph * of_factors, is_factor, outer == 0)
                    is_weight = is_channel[:, None] & is_relation[None, :]
                    add_to(to_w4 + channel[:, None] * relations + k[None, :], of_w4, is_weight, row == begin)
                b4_gradient = tl.sum(of_b4 * first_column, 1)  # all columns are the same
                add_to(to_b4 + channel, b4_gradient, is_channel, row == begin)
    if GRAPHS:
        tl.debug_barrier()  # other threads have stored what is loaded
        of_alpha = tl.zeros([GC], SUM)
        for outer in range(0, channels, GC):
            channel = outer + tl.arange(0, GC)
            is_channel = below(channel, channels, GC)
            of_b4 = tl.load(to_b4 + channel, mask=is_channel, other=0.0)
            of_alpha += of_b4 * tl.load(b4 + channel, mask=is_channel, other=0.0)
            tl.debug_barrier()  # several threads load an element that one of them overwrites
            tl.store(to_b4 + channel, scale_of_graph * of_b4, mask=is_channel)
            for k_first in range(0, relations, KB):
                k = k_first + tl.arange(0, KB)
                is_weight = is_channel[:, None] & below(k, relations, KB)[None, :]
                at = channel[:, None] * relations + k[None, :]
                of_w4 = tl.load(to_w4 + at, mask=is_weight, other=0.0)
                of_alpha += tl.sum(of_w4 * tl.load(w4 + at, mask=is_weight, other=0.0).to(SUM), 1)
                tl.debug_barrier()
                tl.store(to_w4 + at, scale_of_graph * of_w4, mask=is_weight)
        tl.store(to_alpha, tl.sum(of_alpha, 0))


SHORTEST = 16  # the shortest sum of a product on tensor cores: relations of a step, and the smallest block of joints


class Tiles(NamedTuple):
    """Largest blocks of a kernel and its warps."""

    channels: int
    inputs: int
    frames: int
    u: int
    v: int
    num_warps: int

    def constants(self, frames: int, joints: int, in_channels: int) -> dict[str, int]:
        """The blocks for these sizes."""
        return {
            "KB": SHORTEST,
            "CB": self.channels,
            "CI": block_of(in_channels, self.inputs),
            "BT": block_of(frames, self.frames),
            "U": block_of(joints, self.u),
            "V": block_of(joints, self.v),
            "num_warps": self.num_warps,
            "num_stages": 1,  # registers and shared memory hold the tiles of one step
        }


FORWARD = {
    torch.float32: Tiles(16, 32, 16, 16, 32, 8),
    torch.float64: Tiles(16, 16, 16, 16, 16, 8),
    torch.float16: Tiles(16, 32, 32, 32, 32, 8),
    torch.bfloat16: Tiles(16, 32, 32, 32, 32, 8),
}
BACKWARD = {
    torch.float32: Tiles(16, 16, 16, 32, 16, 8),
    torch.float64: Tiles(16, 16, 16, 32, 16, 8),
    torch.float16: Tiles(16, 64, 16, 32, 32, 8),
    torch.bfloat16: Tiles(16, 64, 16, 32, 32, 8),
}
MANY_JOINTS, MANY_INPUTS = 32, 64  # more take smaller blocks of joints, or of frames: registers and shared memory hold no more
GROUP = 64  # channels whose gradients of graphs and features are multiplied at once
PROGRAMS = 132  # of the backward pass: one for each multiprocessor of a large GPU, with its part of the parameters' gradient


def graph_unit(
    x: Tensor, factors: Tensor, w3: Tensor, b3: Tensor, w4: Tensor, b4: Tensor, alpha: Tensor, shared: Tensor
) -> tuple[Tensor, Tensor]:
    """As `shapmix.reference.layer.graph_unit`; contiguous arguments. 1 launch."""
    rows, frames, joints, _ = x.shape
    channels = w3.shape[1]
    tiles = _forward_constants(x, False)
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


def _forward_constants(x: Tensor, with_down: bool) -> dict[str, int]:
    tiles, arch, (_, _, joints, inputs) = FORWARD[x.dtype], architecture(x), x.shape
    many_inputs = inputs > (MANY_INPUTS // 2 if with_down else MANY_INPUTS)
    if x.element_size() == 2:
        if many_inputs or arch != 90:
            tiles = tiles._replace(inputs=64, frames=16)
        if arch == 100:
            tiles = tiles._replace(u=SHORTEST)
        elif arch == 80:  # consumer cards have 99 KB of shared memory
            tiles = tiles._replace(inputs=32)
    elif arch == 100 or in_three_products(x.dtype):
        tiles = tiles._replace(v=SHORTEST)
    if joints > MANY_JOINTS:
        tiles = tiles._replace(u=SHORTEST, v=SHORTEST)
    return tiles.constants(*x.shape[1:])


def _backward_constants(x: Tensor) -> dict[str, int]:
    tiles = BACKWARD[x.dtype]
    if x.shape[2] > MANY_JOINTS:
        tiles = tiles._replace(v=SHORTEST)
    if in_three_products(x.dtype) or (x.dtype == torch.float64 and architecture(x) == 80):
        tiles = tiles._replace(u=SHORTEST, v=SHORTEST)
    return tiles.constants(*x.shape[1:])


def _launch_forward(y: Tensor, moments: Tensor | None, x: Tensor, factors: Tensor, *parameters: Tensor | None) -> None:
    rows, frames, joints, channels = y.shape
    in_channels, subsets, relations = x.shape[3], factors.shape[1], factors.shape[4]
    tiles = _forward_constants(x, parameters[-2] is not None)
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
    """As `shapmix.reference.layer.graph_unit_backward`; contiguous arguments. 1 launch, 2 with several blocks of u."""
    rows, frames, joints, channels = y.shape
    _, subsets, _, _, relations = factors.shape
    in_channels = x.shape[3]
    tiles = _backward_constants(x)
    v_blocks, u_blocks = triton.cdiv(joints, tiles["V"]), triton.cdiv(joints, tiles["U"])
    rows_each = triton.cdiv(rows * subsets * v_blocks, PROGRAMS)
    groups = triton.cdiv(rows, rows_each)
    to_features = x.new_empty(rows, frames, joints, subsets * channels)
    to_factors = b3.new_empty(factors.shape)
    feature_parts = b3.new_empty(groups * v_blocks, subsets * channels * (in_channels + 1))
    graph_parts = b3.new_empty(groups * v_blocks * u_blocks, subsets * channels * (relations + 1))
    shared_parts = b3.new_empty(groups, subsets * joints * joints)
    alpha_parts = b3.new_empty(groups * v_blocks * u_blocks * subsets, 1)
    programs = groups * subsets * v_blocks * u_blocks
    turned = x.new_empty(programs, tiles["CB"], triton.cdiv(frames, tiles["BT"]) * tiles["BT"], tiles["U"])
    graph_rows = x.new_empty(programs, GROUP, tiles["U"] * tiles["V"])
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
            turned,
            graph_rows,
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
            in_channels,
            frames,
            joints,
            channels,
            in_channels,
            relations,
            SUBSETS=subsets,
            FEATURES=features,
            GRAPHS=graphs,
            RB=128 // x.element_size(),
            CW=block_of(in_channels, 256 // x.element_size()),
            GC=GROUP,
            PB=min(512 // x.element_size(), tiles["U"] * tiles["V"]),
            PRECISION=product_precision(x.dtype),
            **tiles,
            reads=[grad, y, norm, summed, x, factors, w3, b3, w4, b4, alpha, shared],
            writes=writes,
            flops=2 * to_features.numel() * products * (features + graphs) + factors.numel() * channels * (2 + 4 * graphs),
        )
    return to_features, to_factors, feature_parts, graph_parts, shared_parts.view(groups, *shared.shape), alpha_parts
