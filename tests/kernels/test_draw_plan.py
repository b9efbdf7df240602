"""`draw_plan` on every back end: the reference's plan, number for number; bad arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shapmix import reference
from shapmix.kernels import draw_plan, mix_clips
from shapmix.kernels.examples import Batch, Shape, example
from shapmix.reference import MixPlan
from shapmix.skeleton.layout import load_layout
from tests.kernels.backends import FEW, MANY, REAL, moved, on_backends, same_bits, uniform_integers
from tests.kernels.examples import plan_arguments
from tests.proofs import CPU, DEVICE_OF

OPS = ("draw_plan",)
pytestmark = pytest.mark.proves(*OPS)

NTU = load_layout("ntu25")


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `draw_plan`."""
    n, classes, parts = draw(st.integers(3, 70)), draw(st.integers(1, 12)), draw(st.integers(1, 8))
    size = (n, 1, 4 * draw(st.integers(2, 40)), draw(st.integers(parts, 30)), 1)
    dtype, seed, columns = draw(st.sampled_from(REAL)), draw(st.integers(0, 2**31)), draw(st.integers(1, 70))
    batch = Batch(Shape("drawn", None, size, classes, parts), dtype, CPU, seed)
    generator = torch.Generator().manual_seed(seed)
    saliency = torch.rand(classes, columns, generator=generator) * draw(st.sampled_from([0.0, 1.0, 50.0]))
    return example("draw_plan", batch) | {
        "saliency": saliency.to(dtype),
        "priority": uniform_integers(generator, 1, 5, classes),
        "combinations": uniform_integers(generator, 0, (1 << parts) - 1, columns),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "step": draw(st.integers(0, 2**31) | st.integers(0, 2**40)),
        "guided": draw(st.booleans()),
        "temperature": draw(st.sampled_from([0.01, 0.2, 3.0])),
        "blend_probability": draw(st.sampled_from([0.0, 0.25, 1.0])),
    }


def same_plan(left: MixPlan, right: MixPlan) -> bool:
    return all(same_bits(value, getattr(right, name)) for name, value in vars(left).items())


def check_against_reference(arguments: dict[str, Any], backend: str) -> None:
    arguments = moved(DEVICE_OF[backend], arguments)
    expected = reference.draw_plan(**arguments)
    assert same_plan(draw_plan(**arguments, backend=backend), expected)
    at = torch.tensor(arguments["step"], device=expected.partner.device)
    assert same_plan(draw_plan(**arguments | {"step": at}, backend=backend), expected)


@pytest.mark.proves(*OPS, backend="cpp")
@MANY
@given(problems())
def test_cpp_is_the_reference(arguments: dict[str, Any]) -> None:
    check_against_reference(arguments, "cpp")


@pytest.mark.proves(*OPS, backend="triton")
@FEW
@given(problems())
def test_triton_is_the_reference(arguments: dict[str, Any]) -> None:
    check_against_reference(arguments, "triton")


@on_backends("cpp", "reference", "triton", ops=OPS)
@pytest.mark.parametrize("guided", [True, False])
def test_plans_can_be_mixed_by(backend: str, guided: bool) -> None:
    device = DEVICE_OF[backend]
    arguments = moved(device, plan_arguments(guided=guided))
    clips = torch.randn(64, 1, 64, 25, 1, device=device)
    for step in range(4):
        plan = draw_plan(**arguments | {"step": step}, backend=backend)
        assert mix_clips(clips, plan, arguments["part_of_joint"], backend="reference").shape == (128, 1, 64, 25, 1)
        assert len(set(plan.parts.tolist())) == 1 or guided


def test_a_guided_plan_pastes_what_the_rarer_class_needs() -> None:
    """With all probability on one combination, it or its complement is pasted."""
    saliency = torch.zeros(7, 20)
    saliency[torch.arange(7), torch.arange(7)] = 100.0
    arguments = plan_arguments(saliency=saliency, blend_probability=0.0)
    plan, labels, priority = draw_plan(**arguments), arguments["labels"], arguments["priority"]
    theirs = labels[plan.partner]
    for parts, own, other in zip(plan.parts.tolist(), labels.tolist(), theirs.tolist(), strict=True):
        if priority[own] > priority[other]:
            assert parts == int(NTU.combinations[other])
        else:
            assert parts == NTU.all_parts ^ int(NTU.combinations[own])


ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "two clips": ({"labels": torch.zeros(2, dtype=torch.int64)}, ValueError, "mixing needs a batch of at least 3 clips, not 2"),
    "int32 labels": ({"labels": torch.zeros(4, dtype=torch.int32)}, TypeError, "labels is torch.int32"),
    "half saliency": ({"saliency": torch.zeros(7, 20).half()}, TypeError, "saliency is torch.float16; give float32 or float64"),
    "a priority too few": ({"priority": torch.ones(6, dtype=torch.int64)}, ValueError, r"priority has shape \[6\]; give \[7\]"),
    "a column too few": ({"saliency": torch.zeros(7, 19)}, ValueError, r"combinations has shape \[20\]; give \[19\]"),
    "30 frames": ({"num_frames": 30}, ValueError, "multiple of 4 and at least 8, not 30"),
    "no temperature": ({"temperature": 0.0}, ValueError, "temperature is 0.0; give a number above 0"),
    "a negative seed": ({"seed": -1}, ValueError, "seed is -1"),
    "steps of a batch": ({"step": torch.zeros(2, dtype=torch.int64)}, ValueError, r"step has shape \[2\]; give \[\]"),
    "an unknown class": ({"labels": torch.tensor([0, 1, 7])}, ValueError, r"labels\[2\] is 7; .* 0..6"),
    "a part too many": (
        {"combinations": NTU.combinations + 31},
        ValueError,
        r"combinations\[0\] is 34; part_of_joint names 5 parts",
    ),
}


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("case", ERRORS)
def test_bad_arguments_are_named(case: str, backend: str) -> None:
    changes, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        draw_plan(**plan_arguments(**changes), backend=backend)


def test_every_field_is_drawn_anew_at_each_step() -> None:
    plans = [draw_plan(**plan_arguments(step=step, blend_probability=0.0)) for step in range(40)]
    for name in ("partner", "parts", "start", "length", "source_start", "source_length", "lam"):
        assert len({tuple(getattr(plan, name).tolist()) for plan in plans}) > 4, name
