"""Coalition inputs and mixing on every back end, bit-equal to the reference on random clips; bad arguments.

Triton's interpreter must be enabled before Triton is imported, so `test_dispatch.py` reruns the tests that prove Triton, of this
and the other files of ops, in a separate process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shapmix import reference
from shapmix.kernels import coalition_inputs, mix_clips
from shapmix.kernels.examples import Batch, Shape
from shapmix.reference import MixPlan
from tests.kernels.backends import ALL, FEW, MANY, TRITON, same_bits, uniform_integers
from tests.kernels.examples import MixProblem, mix_problem
from tests.proofs import CPU, DEVICE_OF

OPS = ("coalition_inputs", "mix_clips")
pytestmark = pytest.mark.proves(*OPS)


def in_layout(clips: Tensor, layout: str) -> Tensor:
    """The same values in a different memory layout."""
    if layout == "frames_cut":  # a crop of longer clips: planes stay contiguous
        longer = clips.new_full((*clips.shape[:2], clips.shape[2] + 3, *clips.shape[3:]), torch.nan)
        longer[:, :, 1:-2] = clips
        return longer[:, :, 1:-2]
    if layout == "channels_last":
        return clips.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    if layout == "people_first":
        return clips.permute(0, 4, 1, 2, 3).contiguous().permute(0, 2, 3, 4, 1)
    if layout == "misaligned":  # one element off the start of its storage
        flat = clips.new_empty(clips.numel() + 1)[1:]
        return flat.copy_(clips.flatten()).view(clips.shape)
    return clips


LAYOUTS = ("contiguous", "frames_cut", "channels_last", "people_first", "misaligned")


@st.composite
def problems(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...]) -> MixProblem:
    size = n, _, t, v, _ = tuple(draw(st.integers(1, high)) for high in (5, 4, 37, 9, 3))
    shape, seed = Shape("drawn", None, size, 3, parts=draw(st.integers(1, 8))), draw(st.integers(0, 2**31))
    batch = Batch(shape, draw(st.sampled_from(dtypes)), CPU, seed)
    generator = torch.Generator().manual_seed(seed)
    sets, everything = draw(st.integers(1, 4)), batch.all_parts
    coalitions = uniform_integers(generator, 0, everything, *((sets, n) if draw(st.booleans()) else (sets,)))
    coalitions[0] = draw(st.sampled_from([0, everything]))
    parts = batch.plan.parts.clone()
    parts[0] = draw(st.sampled_from([0, everything, int(parts[0])]))
    return MixProblem(
        in_layout(batch.clips, draw(st.sampled_from(LAYOUTS))),
        in_layout(batch.mean_motion[None], draw(st.sampled_from(LAYOUTS)))[0],
        coalitions,
        batch.part_of_joint[torch.randperm(v, generator=generator)],
        draw(st.none() | st.integers(0, t)),
        replace(batch.plan, parts=parts),
    )


def check_against_reference(problem: MixProblem, backend: str) -> None:
    clips, mean_motion, coalitions, part_of_joint, restored_frames, plan = problem.on(DEVICE_OF[backend])
    expected = reference.coalition_inputs(clips, mean_motion, coalitions, part_of_joint, restored_frames=restored_frames)
    poisoned = torch.full_like(expected, torch.nan, memory_format=torch.contiguous_format)
    found = coalition_inputs(
        clips, mean_motion, coalitions, part_of_joint, restored_frames=restored_frames, backend=backend, out=poisoned
    )
    assert found is poisoned
    assert same_bits(found, expected)

    expected = reference.mix_clips(clips, plan, part_of_joint)
    poisoned = torch.full_like(expected, torch.nan, memory_format=torch.contiguous_format)
    assert same_bits(mix_clips(clips, plan, part_of_joint, backend=backend, out=poisoned), expected)


@pytest.mark.proves(*OPS, backend="cpp")
@MANY
@given(problems(ALL))
def test_cpp_is_the_reference(problem: MixProblem) -> None:
    check_against_reference(problem, "cpp")


@pytest.mark.proves(*OPS, backend="cpp")
@pytest.mark.parametrize("shape", [(64, 3, 64, 25, 2), (33, 3, 100, 17, 2)])
def test_cpp_on_several_threads_is_the_reference(shape: tuple[int, ...]) -> None:
    """A batch large enough that every thread gets work."""
    problem = mix_problem()
    n, v = shape[0], shape[3]
    rows = torch.arange(n)
    plan = MixPlan(**{name: value[rows % 3] for name, value in vars(problem.plan).items()})
    clips, mean_motion = torch.randn(shape), torch.randn(shape[1:])
    check_against_reference(MixProblem(clips, mean_motion, problem.coalitions, torch.arange(v) % 5, 50, plan), "cpp")


@pytest.mark.proves(*OPS, backend="triton")
@FEW
@given(problems(TRITON))
def test_triton_is_the_reference(problem: MixProblem) -> None:
    check_against_reference(problem, "triton")


@pytest.mark.proves(*OPS, backend="cuda")
@MANY
@given(problems(ALL))
def test_cuda_is_the_reference(problem: MixProblem) -> None:
    check_against_reference(problem, "cuda")


@pytest.mark.parametrize("length", [1, 13, 14, 19, 21])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_window_takes_the_frames_that_the_reference_takes(dtype: torch.dtype, length: int) -> None:
    """All source lengths up to 100 frames, including those where the two rounding rules differ."""
    lengths = torch.arange(1, 101)
    n = len(lengths)
    zero = torch.zeros(n, dtype=torch.int64)
    plan = MixPlan(
        partner=zero,
        parts=zero + 1,
        start=zero,
        length=zero + 4 * length,
        source_start=zero,
        source_length=lengths,
        lam=zero.double(),
        blend=zero.bool(),
    )
    clips = torch.arange(100, dtype=dtype).view(1, 1, 100, 1, 1).repeat(n, 1, 1, 1, 1)
    part_of_joint = torch.zeros(1, dtype=torch.int64)
    assert same_bits(mix_clips(clips, plan, part_of_joint, backend="cpp"), reference.mix_clips(clips, plan, part_of_joint))


def test_repeats_give_the_same_bits() -> None:
    clips, mean_motion, coalitions, part_of_joint, _, plan = mix_problem()
    first = coalition_inputs(clips, mean_motion, coalitions, part_of_joint), mix_clips(clips, plan, part_of_joint)
    for _ in range(5):
        assert same_bits(coalition_inputs(clips, mean_motion, coalitions, part_of_joint), first[0])
        assert same_bits(mix_clips(clips, plan, part_of_joint), first[1])


# Case -> how to break a valid problem, the error, its message.
COALITION_ERRORS: dict[str, tuple[Callable[[MixProblem], MixProblem], type[Exception], str]] = {
    "clips of 4 axes": (
        lambda p: p._replace(clips=p.clips[0]),
        ValueError,
        r"clips has shape \[2, 8, 4, 2\]; give \[N, C, T, V, M\]",
    ),
    "no clips": (
        lambda p: p._replace(clips=p.clips[:0]),
        ValueError,
        "no axis empty",
    ),
    "integer clips": (
        lambda p: p._replace(clips=p.clips.long()),
        TypeError,
        "clips is torch.int64; give float32",
    ),
    "mean of another type": (
        lambda p: p._replace(mean_motion=p.mean_motion.double()),
        TypeError,
        "mean_motion is torch.float64",
    ),
    "mean of another shape": (
        lambda p: p._replace(mean_motion=p.mean_motion[:, :4]),
        ValueError,
        "mean_motion has shape",
    ),
    "no coalition": (
        lambda p: p._replace(coalitions=p.coalitions[:0]),
        ValueError,
        "S at least 1",
    ),
    "int32 coalitions": (
        lambda p: p._replace(coalitions=p.coalitions.int()),
        TypeError,
        "coalitions is torch.int32; give torch.int64",
    ),
    "a column too many": (
        lambda p: p._replace(coalitions=p.coalitions.new_zeros(2, 4)),
        ValueError,
        r"coalitions has shape \[2, 4\]; give \[2, 3\]",
    ),
    "a bit too many": (
        lambda p: p._replace(coalitions=p.coalitions + 1),
        ValueError,
        r"coalitions\[2\] is 4; part_of_joint names 2 parts, so give a bit set in 0..3",
    ),
    "a negative set": (
        lambda p: p._replace(coalitions=p.coalitions[:, None].expand(3, 3) - 1),
        ValueError,
        r"coalitions\[0, 0\] is -1",
    ),
    "part 63": (
        lambda p: p._replace(part_of_joint=p.part_of_joint + 62),
        ValueError,
        r"part_of_joint\[2\] is 63; .* 0 to 62",
    ),
    "joints missing": (
        lambda p: p._replace(part_of_joint=p.part_of_joint[:3]),
        ValueError,
        r"part_of_joint has shape \[3\]; give \[4\]",
    ),
    "another device": (
        lambda p: p._replace(part_of_joint=p.part_of_joint.to("meta")),
        ValueError,
        r"part_of_joint is on meta, clips on cpu; move it",
    ),
}


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("case", COALITION_ERRORS)
def test_bad_coalition_arguments_are_named(case: str, backend: str) -> None:
    spoil, error, message = COALITION_ERRORS[case]
    clips, mean_motion, coalitions, part_of_joint, _, _ = spoil(mix_problem())
    with pytest.raises(error, match=message):
        coalition_inputs(clips, mean_motion, coalitions, part_of_joint, backend=backend)


PLAN_ERRORS = {
    "partner": ([0, 3, 1], r"plan.partner\[1\] is 3; a sample of the batch must be in 0..2"),
    "start": ([0, 0, -1], r"plan.start\[2\] is -1; .* 0..7"),
    "length": ([1, 8, 1], r"plan.length\[1\] is 8; .* 1..7"),
    "source_start": ([0, 8, 0], r"plan.source_start\[1\] is 8"),
    "source_length": ([1, 1, 0], r"plan.source_length\[2\] is 0; .* 1..8"),
    "parts": ([0, 0, 4], r"plan.parts\[2\] is 4; part_of_joint names 2 parts"),
}


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("field", PLAN_ERRORS)
def test_bad_plan_rows_are_named(field: str, backend: str) -> None:
    problem = mix_problem()
    values, message = PLAN_ERRORS[field]
    plan = replace(problem.plan, **{field: torch.tensor(values)})
    with pytest.raises(ValueError, match=message):
        mix_clips(problem.clips, plan, problem.part_of_joint, backend=backend)


def test_windows_of_blended_rows_are_not_looked_at() -> None:
    problem = mix_problem()
    plan = replace(problem.plan, start=torch.tensor([99, 1, 1]), parts=torch.tensor([-1, 1, 1]))
    expected = mix_clips(problem.clips, problem.plan, problem.part_of_joint)
    assert torch.equal(mix_clips(problem.clips, plan, problem.part_of_joint, backend="cpp")[3], expected[3])


def test_plans_of_other_types_or_shapes_are_refused() -> None:
    problem = mix_problem()
    with pytest.raises(TypeError, match=r"plan.lam is torch.float32; give torch.float64"):
        mix_clips(problem.clips, replace(problem.plan, lam=problem.plan.lam.float()), problem.part_of_joint)
    with pytest.raises(ValueError, match=r"plan.blend has shape \[2\]; give \[3\]"):
        mix_clips(problem.clips, replace(problem.plan, blend=problem.plan.blend[:2]), problem.part_of_joint)


def test_strided_plan_fields_work() -> None:
    problem = mix_problem()
    strided = MixPlan(**{name: torch.stack([value, value], 1)[:, 0] for name, value in vars(problem.plan).items()})
    expected = reference.mix_clips(problem.clips, problem.plan, problem.part_of_joint)
    assert torch.equal(mix_clips(problem.clips, strided, problem.part_of_joint, backend="cpp"), expected)


def test_a_result_buffer_must_fit_and_be_its_own() -> None:
    problem = mix_problem()
    with pytest.raises(ValueError, match=r"out has shape \[3, 2, 8, 4, 2\]; give \[6, 2, 8, 4, 2\]"):
        mix_clips(problem.clips, problem.plan, problem.part_of_joint, out=torch.empty_like(problem.clips))
    block = torch.zeros(12, *problem.clips.shape[1:])
    with pytest.raises(ValueError, match="out overlaps clips in memory; give a separate buffer"):
        mix_clips(block[4:7], problem.plan, problem.part_of_joint, out=block[6:])
    with pytest.raises(ValueError, match="out is not contiguous"):
        mix_clips(problem.clips, problem.plan, problem.part_of_joint, out=block[::2])
