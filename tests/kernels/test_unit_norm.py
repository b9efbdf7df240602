"""The joins of a fused layer and its last norm in Triton, forward and backward, against the reference."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shapmix.kernels import unavailable
from shapmix.reference import layer
from tests.kernels.backends import FEW, FEW_EXAMPLES
from tests.kernels.layers import SHAPES, Draw, Shape, check, check_sums, norm_of, run
from tests.proofs import DEVICE_OF

pytest.importorskip("triton", reason="triton is not installed")
unit = import_module("shapmix.kernels.triton_unit_norm")
REASON = unavailable("triton", DEVICE_OF["triton"])
pytestmark = [pytest.mark.triton, pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"triton: {REASON}")]
SOME = settings(FEW, max_examples=min(15, FEW_EXAMPLES))  # the interpreter is slow


@SOME
@given(SHAPES, st.integers(1, 150))
def test_triton_joins_moments(shape: Shape, parts: int) -> None:
    device, draw = DEVICE_OF["triton"], Draw(shape)
    channels = shape.channels
    partial = torch.cat([layer.moments(draw.elements(1 + part % 3, channels)) for part in range(parts)])
    tail = torch.cat([layer.moments(draw.elements(5, channels)) for _ in range(2)])
    partial[parts // 2 :: 7, 0] = 0  # a program without rows, whose moments say nothing
    poisoned = partial.clone()
    poisoned[parts // 2 :: 7, 1:] = torch.nan
    partial[parts // 2 :: 7, 1:] = 0
    partial[:1], poisoned[:1] = (layer.moments(draw.elements(9, channels)),) * 2
    weight, bias = draw.wide(channels), draw.wide(channels)
    narrow = 3 * channels // 4

    def join(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A norm of one tensor of moments, and one whose last channels have their own moments."""
        whole, begin, end, of_weight, of_bias = tensors
        first, second = (torch.empty(6, channels, dtype=of_weight.dtype, device=device) for _ in range(2))
        unit.join_moments([layer.Join(whole, of_weight, of_bias, first), layer.Join(begin, of_weight, of_bias, second, end)])
        return first, second

    (first, second), _ = run(join, poisoned, poisoned[..., :narrow].contiguous(), tail, weight, bias, device=device)
    check(first, norm_of(partial, weight, bias), shape.dtype)
    check(second, norm_of(partial[..., :narrow], weight, bias, tail=tail), shape.dtype)
    merged, _ = run(unit.merge_moments, poisoned, channels, device=device)
    check(norm_of(merged.cpu(), weight, bias), norm_of(partial, weight, bias), shape.dtype)


@SOME
@given(SHAPES, st.lists(st.integers(1, 150), min_size=1, max_size=8))
def test_triton_joins_parts(shape: Shape, numbers: list[int]) -> None:
    """Several tensors of different sizes in one launch."""
    draw = Draw(shape)
    partials = [draw.wide(number, 1 + index, shape.channels) for index, number in enumerate(numbers)]
    partials.append(draw.wide(3, 2, 5, 4, 4))  # of convolutions over frames
    found, _ = run(lambda *parts: tuple(unit.join_parts(*parts)), *partials, device=DEVICE_OF["triton"])
    for left, right in zip(found, layer.join_parts(*partials), strict=True):
        check(left, right, shape.dtype)


@SOME
@given(SHAPES, st.sampled_from(["none", "identity", "product"]), st.sampled_from(["grad", "to_pooled", "both"]))
def test_triton_finishes_a_layer(shape: Shape, kind: str, given_gradients: str) -> None:
    device, draw = DEVICE_OF["triton"], Draw(shape)
    size = (shape.clips, shape.frames, shape.joints, shape.channels)
    o, residual = draw.elements(*size), None if kind == "none" else draw.elements(*size)
    norm, residual_norm = draw.norm(o), draw.norm(residual) if residual is not None and kind == "product" else None
    arguments = (o, norm, residual, residual_norm)
    (out, pooled), _ = run(unit.finish_layer, *arguments, device=device)
    expected_out, expected_pooled = layer.finish_layer(*arguments)
    check(out, expected_out, shape.dtype)
    check(pooled, expected_pooled, shape.dtype)

    grad = None if given_gradients == "to_pooled" else draw.elements(*size)
    to_pooled = None if given_gradients == "grad" else draw.wide(*pooled.shape)
    gradient_arguments = (grad, to_pooled, expected_out, *arguments)
    expected = layer.finish_layer_backward(*gradient_arguments)
    found, _ = run(unit.finish_layer_backward, *gradient_arguments, device=device)
    check(found[0], expected[0], shape.dtype)
    check_sums(found[1], expected[1], shape.dtype, factor=10)
    check_sums(found[2], expected[2], shape.dtype, factor=10)
