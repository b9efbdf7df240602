"""The gradient of a fused layer's input in Triton against the reference."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shapmix.kernels import unavailable
from shapmix.reference import layer
from tests.kernels.backends import FEW, FEW_EXAMPLES
from tests.kernels.layers import SHAPES, Draw, Shape, check, check_sums, run
from tests.proofs import DEVICE_OF

pytest.importorskip("triton", reason="triton is not installed")
unit = import_module("shapmix.kernels.triton_unit_input")
DEVICE = DEVICE_OF["triton"]
REASON = unavailable("triton", DEVICE)
pytestmark = [pytest.mark.triton, pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"triton: {REASON}")]
SOME = settings(FEW, max_examples=min(12, FEW_EXAMPLES))  # the interpreter is slow
ADDED = ("from_shortcut", "from_end", "from_down", "from_residual")


def check_layer_input(shape: Shape, added: tuple[bool, ...], below: str) -> None:
    draw = Draw(shape)
    clips, frames, joints, channels, inputs = shape[:5]
    subsets = 2
    arguments = (
        draw.elements(clips, frames, joints, subsets * channels),
        draw.weight(subsets, channels, inputs, inputs=subsets * channels),
        draw.wide(clips, joints, inputs),
    )
    options = {
        name: draw.elements(clips, shape.frames_out if name == "from_residual" else frames, joints, inputs)
        for name, has in zip(ADDED, added, strict=True)
        if has
    }
    o, residual = draw.elements(clips, frames, joints, inputs), draw.elements(clips, frames, joints, inputs)
    has_norm = below == "product"
    of_residual = (residual if below != "none" else None, draw.norm(residual) if has_norm else None)
    end = layer.LayerBelow(draw.elements(clips, frames, joints, inputs).relu(), o, draw.norm(o), *of_residual)
    end = None if below == "first layer" else end

    def of_device(*tensors: torch.Tensor, **named: torch.Tensor) -> object:
        on = None if end is None else layer.LayerBelow(*(None if value is None else value.to(DEVICE) for value in end))
        return unit.layer_input_backward(*tensors, **named, below=on)

    (gradient, sums, residual_sums), _ = run(of_device, *arguments, device=DEVICE, **options)
    expected = layer.layer_input_backward(*arguments, **options, below=end)
    check(gradient, expected[0], shape.dtype)
    check_sums(sums, expected[1], shape.dtype, factor=10)
    check_sums(residual_sums, expected[2], shape.dtype, factor=10)


@SOME
@given(SHAPES, st.tuples(*[st.booleans()] * 4), st.sampled_from(["none", "identity", "product", "first layer"]))
def test_the_gradient_of_the_input(shape: Shape, added: tuple[bool, ...], below: str) -> None:
    check_layer_input(shape, added, below)


def test_programs_of_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ROWS": 16, "CHANNELS": 16, "FEATURES": 16, "PARTS": 4}.items():
        monkeypatch.setattr(unit, name, value)
    shape = Shape(2, 7, 9, channels=24, inputs=20, stride=2, dtype=torch.float32, seed=0)
    check_layer_input(shape, (True,) * 4, "product")
