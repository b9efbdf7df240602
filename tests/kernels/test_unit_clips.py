"""The first layer's input in Triton against the reference."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shapmix.kernels import unavailable
from shapmix.reference import layer
from shapmix.reference.coalition import CoalitionClips
from tests.kernels.backends import FEW, FEW_EXAMPLES
from tests.kernels.layers import SHAPES, Draw, Shape, check, run
from tests.proofs import DEVICE_OF

pytest.importorskip("triton", reason="triton is not installed")
unit = import_module("shapmix.kernels.triton_unit_clips")
DEVICE = DEVICE_OF["triton"]
REASON = unavailable("triton", DEVICE)
pytestmark = [pytest.mark.triton, pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"triton: {REASON}")]
SOME = settings(FEW, max_examples=min(15, FEW_EXAMPLES))  # the interpreter is slow


def check_rows(shape: Shape, people: int, rows: int, restored_frames: int | None) -> None:
    """`rows` 0: plain clips, in a dtype that need not be that of the activations."""
    draw = Draw(shape)
    channels = 1 + shape.inputs % 4
    narrow = torch.float16 if shape.dtype == torch.float32 else shape.dtype
    dtype = shape.dtype if shape.seed % 2 else narrow
    clips = draw.elements(shape.clips, channels, shape.frames, shape.joints, people)
    norm = draw.norm(draw.elements(9, people * shape.joints * channels))
    generator = torch.Generator().manual_seed(shape.seed)
    masked = CoalitionClips(
        clips,
        draw.elements(*clips.shape[1:]),
        torch.randint(shape.clips, (rows,), generator=generator),
        torch.randint(1 << 5, (rows,), generator=generator),
        torch.randint(5, (shape.joints,), generator=generator),
        restored_frames,
    )
    if rows:
        masked.clips[0, :, :, masked.part_of_joint == 0] = torch.nan  # must not reach a row without that part
        masked = replace(masked, coalitions=masked.coalitions & ~1)

    def of_device(clips: torch.Tensor, norm: torch.Tensor, *fields: torch.Tensor) -> object:
        return unit.input_rows(CoalitionClips(clips, *fields, restored_frames) if rows else clips, norm, dtype)

    fields = (masked.mean_motion, masked.samples, masked.coalitions, masked.part_of_joint) if rows else ()
    found, _ = run(of_device, clips, norm, *fields, device=DEVICE)
    expected = layer.input_rows(masked if rows else clips, norm, dtype)
    assert not expected[0].isnan().any()
    for left, right in zip(found, expected, strict=True):
        check(left, right, dtype)


@SOME
@given(SHAPES, st.integers(1, 3), st.sampled_from([0, 1, 4]), st.sampled_from([None, 0, 2]))
def test_the_input_of_the_first_layer(shape: Shape, people: int, rows: int, restored_frames: int | None) -> None:
    check_rows(shape, people, rows, restored_frames)


def test_programs_of_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit, "BLOCK", 16)
    monkeypatch.setattr(unit, "TILE", 32)
    check_rows(Shape(3, 7, 25, channels=8, inputs=20, stride=1, dtype=torch.float32, seed=1), 2, 5, 4)
