"""Relations between joints in Triton: the factors of the refined graphs from the pooled activations, and their gradient.

A program makes the factors of a block of joints u with all joints v of one row. The gradient takes two launches: one reads each
gradient twice, by rows and by columns, for the two terms of a pair, and adds its part of the weights' gradient to a buffer of its
own; the other sums these parts in a fixed order. Products are of float32's precision (float64's for float64).
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_graph import tanh
from .triton_launch import launch
from .triton_rows import block_of

FORWARD_JOINTS, BACKWARD_JOINTS, OTHER_JOINTS = 8, 16, 8
INPUTS = 32  # channels of a step of the products
PARTS = 128  # parts of the weights' gradient: about one for each multiprocessor of a large GPU


@triton.jit
def relation_term(pooled, weight, bias, joint, k, joints, channels, relations, CI: tl.constexpr, PRECISION: tl.constexpr):
    """[joint, k]: conv1 or conv2 of a block of pooled joints; `pooled` is one row, weight [K, C] and bias [K] of one subset."""
    is_k = k < relations
    acc = tl.zeros([joint.shape[0], k.shape[0]], bias.dtype.element_ty) + tl.load(bias + k, mask=is_k, other=0.0)[None, :]
    for first in range(0, channels, CI):
        channel = first + tl.arange(0, CI)
        is_channel = channel < channels
        x = tl.load(
            pooled + joint[:, None] * channels + channel[None, :], mask=(joint < joints)[:, None] & is_channel[None, :], other=0.0
        )
        w = tl.load(weight + k[None, :] * channels + channel[:, None], mask=is_channel[:, None] & is_k[None, :], other=0.0)
        acc = tl.dot(x, w, acc=acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc


@triton.jit
def relations_kernel(
    factors,
    pooled,
    weight,
    bias,
    joints,
    channels,
    relations,
    SUBSETS: tl.constexpr,
    K: tl.constexpr,
    U: tl.constexpr,
    V: tl.constexpr,
    CI: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program writes the factors of one block of joints u of one row and subset."""
    u_blocks = tl.cdiv(joints, U)
    u = tl.program_id(0) % u_blocks * U + tl.arange(0, U)
    subset = tl.program_id(0) // u_blocks % SUBSETS
    row = (tl.program_id(0) // u_blocks // SUBSETS).to(tl.int64)
    k = tl.arange(0, K)
    pooled += row * joints * channels
    factors += (row * SUBSETS + subset) * joints * joints * relations
    weight_of, bias_of = weight + subset * relations * channels, bias + subset * relations
    left = relation_term(pooled, weight_of, bias_of, u, k, joints, channels, relations, CI, PRECISION)
    weight_of, bias_of = weight_of + SUBSETS * relations * channels, bias_of + SUBSETS * relations
    for first in range(0, joints, V):
        v = first + tl.arange(0, V)
        right = relation_term(pooled, weight_of, bias_of, v, k, joints, channels, relations, CI, PRECISION)
        value = tanh(left[:, None, :] - right[None, :, :])
        at = (u[:, None, None] * joints + v[None, :, None]) * relations + k[None, None, :]
        inside = (u < joints)[:, None, None] & (v < joints)[None, :, None] & (k < relations)[None, None, :]
        tl.store(factors + at, value.to(factors.dtype.element_ty), mask=inside)


@triton.jit
def add_to(part, value, inside, is_first):
    """part += value, or part = value if it is the first, in memory that only this program touches."""
    tl.debug_barrier()  # another thread may have stored the value
    before = tl.load(part, mask=inside & (not is_first), other=0.0)
    tl.store(part, before + value, mask=inside)


@triton.jit
def inner_gradient(grad, factors, u, v, k, joints, relations):
    """Gradient [u, v, k] of the differences of one row and subset: that of the factors times tanh', 0 outside."""
    at = (u[:, None, None] * joints + v[None, :, None]) * relations + k[None, None, :]
    inside = (u < joints)[:, None, None] & (v < joints)[None, :, None] & (k < relations)[None, None, :]
    value = tl.load(grad + at, mask=inside, other=0.0)
    factor = tl.load(factors + at, mask=inside, other=0.0).to(value.dtype)
    return value * (1.0 - factor * factor)


@triton.jit
def relations_gradient_kernel(
    to_pooled,
    parts,
    grad,
    factors,
    pooled,
    weight,
    rows,
    rows_each,
    joints,
    channels,
    relations,
    SUBSETS: tl.constexpr,
    K: tl.constexpr,
    J: tl.constexpr,
    OTHERS: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program writes the gradient of a block of pooled joints of some rows, and their part of the parameters' gradients.

    `parts` [P, 2 S K C + 2 S K] holds the gradients of weight and bias. Channels pass in blocks of C.
    """
    j_blocks = tl.cdiv(joints, J)
    joint = tl.program_id(0) % j_blocks * J + tl.arange(0, J)
    begin = (tl.program_id(0) // j_blocks).to(tl.int64) * rows_each
    k = tl.arange(0, K)
    size = 2 * SUBSETS * relations * (channels + 1)
    parts += tl.program_id(0).to(tl.int64) * size
    dtype = to_pooled.dtype.element_ty
    for row in range(begin, tl.minimum(begin + rows_each, rows)):
        is_first = row == begin
        x_of = pooled + row * joints * channels
        to_x = to_pooled + row * joints * channels
        for branch in range(2 * SUBSETS):
            pairs = (row * SUBSETS + branch % SUBSETS) * joints * joints * relations
            term = tl.zeros([J, K], dtype)
            for first in range(0, joints, OTHERS):
                other = first + tl.arange(0, OTHERS)
                if branch < SUBSETS:
                    term += tl.sum(inner_gradient(grad + pairs, factors + pairs, joint, other, k, joints, relations), 1)
                else:
                    term -= tl.sum(inner_gradient(grad + pairs, factors + pairs, other, joint, k, joints, relations), 0)
            of_bias = parts + 2 * SUBSETS * relations * channels + branch * relations + k
            add_to(of_bias, tl.sum(term, 0), k < relations, is_first)
            for first in range(0, channels, C):
                channel = first + tl.arange(0, C)
                at = (branch * relations + k)[:, None] * channels + channel[None, :]
                is_weight = (k < relations)[:, None] & (channel < channels)[None, :]
                is_x = (joint < joints)[:, None] & (channel < channels)[None, :]
                x = tl.load(x_of + joint[:, None] * channels + channel[None, :], mask=is_x, other=0.0)
                of_weight = tl.dot(tl.trans(term), x, input_precision=PRECISION, out_dtype=dtype)
                add_to(parts + at, of_weight, is_weight, is_first)
                w = tl.load(weight + at, mask=is_weight, other=0.0)
                of_x = tl.dot(term, w, input_precision=PRECISION, out_dtype=dtype)
                add_to(to_x + joint[:, None] * channels + channel[None, :], of_x, is_x, branch == 0)


def relation_precision(dtype: torch.dtype) -> str:
    """Products of pooled activations are small, and always as precise as their dtype."""
    return "ieee" if dtype == torch.float64 else "tf32x3"


def relations(pooled: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """As `shapmix.reference.layer.relations`; contiguous arguments. 1 launch."""
    rows, joints, channels = pooled.shape
    _, subsets, count, _ = weight.shape
    factors = pooled.new_empty(rows, subsets, joints, joints, count, dtype=dtype)
    launch(
        relations_kernel,
        (rows * subsets * triton.cdiv(joints, FORWARD_JOINTS),),
        factors,
        pooled,
        weight,
        bias,
        joints,
        channels,
        count,
        SUBSETS=subsets,
        K=block_of(count),
        U=FORWARD_JOINTS,
        V=block_of(joints, 16),
        CI=block_of(channels, INPUTS),
        PRECISION=relation_precision(pooled.dtype),
        num_warps=4,
        reads=[pooled, weight, bias],
        writes=[factors],
        flops=4 * rows * subsets * joints * count * channels,
    )
    return factors


def relations_backward(grad: Tensor, factors: Tensor, pooled: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """As `shapmix.reference.layer.relations_backward`; contiguous arguments. 1 launch."""
    rows, joints, channels = pooled.shape
    _, subsets, count, _ = weight.shape
    blocks = triton.cdiv(joints, BACKWARD_JOINTS)
    rows_each = triton.cdiv(rows * blocks, PARTS)
    programs = triton.cdiv(rows, rows_each) * blocks
    size = 2 * subsets * count * (channels + 1)
    to_pooled, parts = torch.empty_like(pooled), pooled.new_empty(programs, size)
    launch(
        relations_gradient_kernel,
        (programs,),
        to_pooled,
        parts,
        grad,
        factors,
        pooled,
        weight,
        rows,
        rows_each,
        joints,
        channels,
        count,
        SUBSETS=subsets,
        K=block_of(count),
        J=BACKWARD_JOINTS,
        OTHERS=OTHER_JOINTS,
        C=block_of(channels, INPUTS),
        PRECISION=relation_precision(pooled.dtype),
        num_warps=8,
        reads=[grad, factors, pooled, weight],
        writes=[to_pooled, parts],
        flops=8 * rows * subsets * joints * count * channels,
    )
    return to_pooled, parts
