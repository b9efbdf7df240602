"""The temporal branches of a layer in Triton, forward and backward, and the whole unit in eval mode, against the reference."""

from __future__ import annotations

from importlib import import_module
from typing import Any

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
unit = import_module("shapmix.kernels.triton_unit_temporal")
folded = import_module("shapmix.kernels.triton_unit_folded")
DEVICE = DEVICE_OF["triton"]
REASON = unavailable("triton", DEVICE)
pytestmark = [pytest.mark.triton, pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"triton: {REASON}")]
SOME = settings(FEW, max_examples=min(6, FEW_EXAMPLES))  # the interpreter is slow


def check_temporal_branches(shape: Shape, *, ties: bool = False, tap_first: bool = False) -> None:
    draw = Draw(shape)
    width = shape.channels // 4
    z = draw.elements(shape.clips, shape.frames, shape.joints, 3 * width)
    if ties:
        z = z.sign()
    norm = draw.norm(z)
    narrow, dilated = (draw.weight(width, width, 5, inputs=5 * width) for _ in range(2))
    if tap_first:
        narrow, dilated = (weight.permute(2, 0, 1).contiguous().permute(1, 2, 0) for weight in (narrow, dilated))
    o = draw.elements(shape.clips, shape.frames_out, shape.joints, shape.channels)
    expected_o = o.clone()
    expected = layer.temporal_branches(expected_o, z, norm, narrow, dilated)
    o[..., : 3 * width] = torch.nan
    moments, (found_o, *_) = run(unit.temporal_branches, o, z, norm, narrow, dilated, device=DEVICE)
    check(found_o, expected_o, shape.dtype)
    check_moments(moments, expected, shape.dtype)

    o, grad = expected_o, draw.elements(*o.shape)
    for of_others in (o, grad):
        of_others[..., 3 * width :] = torch.nan
    o_norm = draw.norm(o.nan_to_num())
    arguments = (grad, o, o_norm, draw.summed(o), z, norm, narrow, dilated)
    (to_z, sums, to_weights), _ = run(unit.temporal_branches_backward, *arguments, device=DEVICE)
    expected_to_z, expected_sums, expected_to_weights = layer.temporal_branches_backward(*arguments)
    check(to_z, expected_to_z, shape.dtype)
    check_sums(sums, expected_sums, shape.dtype)
    check_sums(to_weights, expected_to_weights, shape.dtype)


@SOME
@given(SHAPES)
def test_temporal_branches_are_the_reference(shape: Shape) -> None:
    check_temporal_branches(shape)


@pytest.mark.parametrize("stride", [1, 2])
def test_first_of_equal_maxima_gets_the_gradient(stride: int) -> None:
    check_temporal_branches(Shape(2, 7, 5, channels=24, inputs=3, stride=stride, dtype=torch.float32, seed=1), ties=True)


@pytest.mark.parametrize("stride", [1, 2])
def test_temporal_branches_of_several_blocks(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of rows and of channels with a partial last one; weights with the frames as the outermost axis in memory."""
    small = unit.Tile(16, 4)
    monkeypatch.setattr(unit, "forward_tile", lambda *_: small)
    monkeypatch.setattr(unit, "backward_tile", lambda *_: small)
    monkeypatch.setattr(unit, "PROGRAMS", 3)
    monkeypatch.setattr(unit, "BACKWARD_PROGRAMS", 2)
    shape = Shape(2, 7, 9, channels=72, inputs=3, stride=stride, dtype=torch.float32, seed=0)
    check_temporal_branches(shape, tap_first=True)


def check_folded_temporal_unit(shape: Shape, residual: str) -> None:
    draw = Draw(shape)
    clips, frames, joints, channels = shape[:4]
    width = channels // 4
    x = draw.elements(clips, frames, joints, channels).relu()
    weight = draw.weight(channels, channels, inputs=channels)
    z_norm, o_norm = (draw.norm(draw.elements(50, of)) for of in (3 * width, channels))
    narrow, dilated = (draw.weight(width, width, 5, inputs=5 * width) for _ in range(2))
    options: dict[str, Any] = {"stride": shape.stride}
    if residual == "identity" and shape.stride == 1:
        options["residual"] = draw.elements(clips, frames, joints, channels)
    elif residual == "product":
        options["residual"] = draw.elements(clips, frames, joints, shape.inputs)
        options["residual_weight"] = draw.weight(channels, shape.inputs, inputs=shape.inputs)
        options["residual_norm"] = draw.norm(draw.elements(50, channels))
    arguments = (x, weight, z_norm, narrow, dilated, o_norm)
    expected, expected_mean = layer.folded_temporal_unit(*arguments, **options)
    (out, mean), _ = run(folded.folded_temporal_unit, *arguments, device=DEVICE, **options)
    check(out, expected, shape.dtype)
    check(mean, expected_mean, shape.dtype)


@SOME
@given(SHAPES, st.sampled_from(["none", "identity", "product"]))
def test_folded_temporal_unit_is_the_reference(shape: Shape, residual: str) -> None:
    check_folded_temporal_unit(shape, residual)


@pytest.mark.parametrize("residual", ["identity", "product"])
def test_folded_temporal_unit_of_several_blocks(residual: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of several clips and blocks of joints, which use their buffer again; several blocks of inputs and of frames."""
    monkeypatch.setattr(folded, "PROGRAMS", 2)
    monkeypatch.setattr(folded, "BLOCK_INPUTS", 16)
    check_folded_temporal_unit(Shape(2, 7, 18, channels=24, inputs=19, stride=1, dtype=torch.float32, seed=2), residual)
