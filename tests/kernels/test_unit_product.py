"""The 1x1 convolutions of a layer in Triton, forward and backward, against the reference."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shapmix.kernels import unavailable
from shapmix.reference import layer
from tests.kernels.backends import FEW, FEW_EXAMPLES
from tests.kernels.layers import SHAPES, Draw, Shape, check, check_moments, check_sums, run
from tests.proofs import DEVICE_OF

pytest.importorskip("triton", reason="triton is not installed")
unit = import_module("shapmix.kernels.triton_unit_product")
REASON = unavailable("triton", DEVICE_OF["triton"])
pytestmark = [pytest.mark.triton, pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"triton: {REASON}")]
SOME = settings(FEW, max_examples=min(6, FEW_EXAMPLES))  # the interpreter is slow


def check_reduce_branches(shape: Shape, shortcut_has_norm: bool) -> None:
    device = DEVICE_OF["triton"]
    draw = Draw(shape)
    clips, frames, joints, channels = shape[:4]
    y, shortcut = draw.elements(clips, frames, joints, channels), draw.elements(clips, frames, joints, channels)
    norm, shortcut_norm = draw.norm(y), draw.norm(shortcut) if shortcut_has_norm else None
    weight = draw.weight(channels, channels, inputs=channels)
    arguments = (y, norm, shortcut, shortcut_norm, weight)
    z, o, moments = layer.reduce_branches(*arguments, stride=shape.stride)
    (found_z, found_o, found_moments), _ = run(unit.reduce_branches, *arguments, device=device, stride=shape.stride)
    skip = slice(3 * channels // 4, None)
    check(found_z, z, shape.dtype)
    check(found_o[..., skip], o[..., skip], shape.dtype)
    check_moments(found_moments, moments, shape.dtype)

    o[..., : skip.start] = torch.nan  # of the other branches
    to_reduced, grad = draw.elements(*z.shape), draw.elements(*o.shape)
    z_norm, o_norm = draw.norm(z), draw.norm(o.nan_to_num())
    gradient_arguments = (to_reduced, z, z_norm, draw.summed(z), grad, o, o_norm, draw.summed(o), *arguments)
    expected = layer.reduce_branches_backward(*gradient_arguments, stride=shape.stride)
    found, _ = run(unit.reduce_branches_backward, *gradient_arguments, device=device, stride=shape.stride)
    check(found[0], expected[0], shape.dtype)
    check_sums(found[1], expected[1], shape.dtype)
    check_sums(found[2], expected[2], shape.dtype)
    check_sums(found[3], expected[3], shape.dtype)


def check_row_product(shape: Shape) -> None:
    device = DEVICE_OF["triton"]
    draw = Draw(shape)
    x = draw.elements(shape.clips, shape.frames, shape.joints, shape.inputs)
    weight = draw.weight(shape.channels, shape.inputs, inputs=shape.inputs)
    raw, moments = layer.row_product(x, weight, stride=shape.stride)
    (found_raw, found_moments), _ = run(unit.row_product, x, weight, device=device, stride=shape.stride)
    check(found_raw, raw, shape.dtype)
    check_moments(found_moments, moments, shape.dtype)

    arguments = (draw.elements(*raw.shape), raw, draw.norm(raw), draw.summed(raw), x, weight)
    found, _ = run(unit.row_product_backward, *arguments, device=device, stride=shape.stride)
    expected = layer.row_product_backward(*arguments, stride=shape.stride)
    check(found[0], expected[0], shape.dtype)
    check_sums(found[1], expected[1], shape.dtype)


@SOME
@given(SHAPES, st.booleans())
def test_triton_reduce_branches_is_the_reference(shape: Shape, shortcut_has_norm: bool) -> None:
    check_reduce_branches(shape, shortcut_has_norm)


@SOME
@given(SHAPES)
def test_triton_row_product_is_the_reference(shape: Shape) -> None:
    check_row_product(shape)


@pytest.mark.parametrize("stride", [1, 2])
def test_triton_products_of_several_blocks(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of several blocks of rows, several blocks of inputs and outputs, each with a partial last one."""
    small = unit.Tile(16, 16, 16, 4)
    monkeypatch.setattr(unit, "forward_tile", lambda *_: small)
    monkeypatch.setattr(unit, "backward_tile", lambda *_: small)
    monkeypatch.setattr(unit, "PROGRAMS", 3)
    monkeypatch.setattr(unit, "BACKWARD_PROGRAMS", 3)
    shape = Shape(2, 5, 9, channels=40, inputs=19, stride=stride, dtype=torch.float32, seed=0)
    check_reduce_branches(shape, shortcut_has_norm=stride == 2)
    check_row_product(shape)
