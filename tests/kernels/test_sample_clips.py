"""`sample_clips` on every back end against the reference; bad arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shapmix import reference
from shapmix.draws.augment import AugmentConfig, Sides, draw_augment
from shapmix.kernels import sample_clips
from shapmix.kernels.examples import Batch, Shape, agree, example
from shapmix.reference import AugmentPlan, CropPlan, Stream
from shapmix.reference.clips import STREAMS
from tests.kernels.backends import FEW, MANY, REAL, TRITON, on_backends, same_bits, uniform_integers
from tests.kernels.examples import CropProblem, augment_plan, crop_problem
from tests.proofs import CPU, DEVICE_OF

OPS = ("sample_clips",)
pytestmark = pytest.mark.proves(*OPS)


@st.composite
def problems(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...]) -> CropProblem:
    """Samples that share recordings, and recordings that no sample reads."""
    n, _, _, v, m = size = tuple(draw(st.integers(1, high)) for high in (5, 4, 40, 9, 3))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    problem = CropProblem(**example("sample_clips", Batch(Shape("drawn", None, size, 3), draw(st.sampled_from(dtypes)), CPU, seed)))
    frames = problem.frames.clone()
    frames[torch.rand(len(frames), generator=generator) < 0.2, m // 2] = 0  # an absent person
    rows = uniform_integers(generator, 0, n - 1, n)
    plan = CropPlan(**{name: value[rows] for name, value in vars(problem.plan).items()})
    if draw(st.booleans()):
        plan = replace(plan, angles=torch.zeros_like(plan.angles))
    parents = uniform_integers(generator, 0, v - 1, v)
    problem = problem._replace(frames=frames, plan=plan, parents=parents, stream=draw(st.sampled_from(STREAMS)))
    return problem._replace(augment=draw(augmentations(plan.length, v, size[1], seed)))


RANGES = st.tuples(st.sampled_from([0.4, 1.0]), st.sampled_from([1.0, 2.5]))


@st.composite
def augmentations(draw: st.DrawFn, lengths: torch.Tensor, joints: int, channels: int, seed: int) -> AugmentPlan | None:
    """Any of them on or off; every second joint is the counterpart of the next."""
    share = st.sampled_from([0.0, 0.5, 1.0])
    names = ("mirror", "shear", "jitter", "reverse", "part_drop", "joint_drop")
    config = AugmentConfig(
        **{name: draw(share) for name in names}, **{name: draw(RANGES) for name in ("scale", "stretch", "speed")}
    )
    pairs = torch.arange(joints) ^ 1
    flips = torch.where(pairs < joints, pairs, torch.arange(joints))
    sides = Sides(flips, draw(st.integers(0, channels - 1)), torch.arange(joints) % 2, 2)
    return draw_augment(config, sides, lengths, dimension=channels, seed=seed, step=draw(st.integers(0, 5)))


def check_against_reference(problem: CropProblem, backend: str) -> None:
    arguments = problem.on(DEVICE_OF[backend])._asdict()
    expected = reference.sample_clips(**arguments)
    poisoned = torch.full_like(expected, torch.nan)
    found = sample_clips(**arguments, backend=backend, out=poisoned)
    assert found is poisoned
    assert agree("sample_clips", problem._asdict(), [found], [expected])


@pytest.mark.proves(*OPS, backend="cpp")
@MANY
@given(problems(REAL))
def test_cpp_is_the_reference(problem: CropProblem) -> None:
    check_against_reference(problem, "cpp")


@pytest.mark.proves(*OPS, backend="triton")
@FEW
@given(problems(TRITON))
def test_triton_is_the_reference(problem: CropProblem) -> None:
    check_against_reference(problem, "triton")


@on_backends("cpp", "triton", ops=OPS)
@pytest.mark.parametrize("stream", STREAMS)
def test_ntu_batch_is_the_reference(stream: Stream, backend: str) -> None:
    check_against_reference(crop_problem(33 if backend == "cpp" else 3)._replace(stream=stream), backend)


@on_backends("cpp", "triton", ops=OPS)
def test_a_crop_of_the_right_length_is_copied(backend: str) -> None:
    for dtype in REAL if backend == "cpp" else TRITON:
        problem = crop_problem(4, dtype)
        still = CropPlan(torch.arange(4), torch.tensor([0, 3, 5, 1]), torch.full((4,), 24), torch.zeros(4, 3))
        frames, offsets, plan, parents, *_ = problem._replace(plan=still).on(DEVICE_OF[backend])
        found = sample_clips(frames, offsets, plan, parents, num_frames=24, backend=backend)
        for row in range(4):
            first = int(offsets[row] + plan.start[row])
            assert same_bits(found[row], frames[first : first + 24].permute(3, 0, 2, 1))


@on_backends("cpp", "triton", ops=OPS)
def test_mirrored_and_reversed_copies_have_the_bits_of_the_reference(backend: str) -> None:
    """Mirrored, backwards, and without some joints: nothing is rounded, so every back end gives the same bits."""
    config = AugmentConfig(mirror=0.5, reverse=0.5, part_drop=0.5, joint_drop=0.2)
    for dtype in REAL if backend == "cpp" else TRITON:
        problem = crop_problem(4, dtype)
        still = CropPlan(torch.arange(4), torch.tensor([0, 3, 5, 1]), torch.full((4,), 24), torch.zeros(4, 3))
        problem = problem._replace(plan=still, num_frames=24, augment=augment_plan(4, config, seed=2), stream="joint")
        arguments = problem.on(DEVICE_OF[backend])._asdict()
        assert same_bits(sample_clips(**arguments, backend=backend), reference.sample_clips(**arguments))
    mirrored, changed = problem.augment.source[:, 4] == 8, problem.augment.reversed
    assert 0 < int(mirrored.sum()) < 4
    assert 0 < int(changed.sum()) < 4


@on_backends("cpp", "triton", ops=OPS)
def test_repeats_give_the_same_bits(backend: str) -> None:
    problem = crop_problem(8 if backend == "cpp" else 2).on(DEVICE_OF[backend])
    first = sample_clips(*problem[:4], backend=backend)
    assert same_bits(sample_clips(*problem[:4], backend=backend), first)


def test_recordings_that_are_not_contiguous_work() -> None:
    problem = crop_problem(4)
    strided = torch.stack([problem.frames, problem.frames], 1)[:, 0]
    expected = sample_clips(*problem[:4], backend="cpp")
    assert same_bits(sample_clips(strided, *problem[1:4], backend="cpp"), expected)


def test_half_recordings_on_the_cpu_run_on_the_reference() -> None:
    problem = crop_problem(2, torch.float16)
    found = sample_clips(*problem[:4])
    assert same_bits(found, reference.sample_clips(*problem[:4]))


# Case -> how to break a valid problem, the error, its message.
ERRORS: dict[str, tuple[Callable[[CropProblem], CropProblem], type[Exception], str]] = {
    "frames of 3 axes": (lambda p: p._replace(frames=p.frames[0]), ValueError, r"frames has shape .*; give \[F, M, V, C\]"),
    "integer frames": (lambda p: p._replace(frames=p.frames.long()), TypeError, "frames is torch.int64; give float32"),
    "one offset": (lambda p: p._replace(offsets=p.offsets[:1]), ValueError, r"offsets has shape \[1\]"),
    "an angle too many": (
        lambda p: p._replace(plan=replace(p.plan, angles=torch.zeros(3, 4))),
        ValueError,
        r"plan.angles has shape \[3, 4\]; give \[3, 3\]",
    ),
    "a plan of two axes": (
        lambda p: p._replace(plan=replace(p.plan, clip=p.plan.clip[:, None])),
        ValueError,
        r"plan.clip has shape \[3, 1\]; give \[N\], the recording of each sample",
    ),
    "a speed that is not a number": (
        lambda p: p._replace(augment=AugmentPlan(pace=torch.tensor([[1.0, 0.0], [torch.nan, 0.0], [1.0, 0.0]]))),
        ValueError,
        r"augment.pace\[1\] is \(nan, 0.0+\); give a finite speed and shift",
    ),
    "int32 starts": (
        lambda p: p._replace(plan=replace(p.plan, start=p.plan.start.int())),
        TypeError,
        "plan.start is torch.int32; give torch.int64",
    ),
    "lengths missing": (
        lambda p: p._replace(plan=replace(p.plan, length=p.plan.length[:2])),
        ValueError,
        r"plan.length has shape \[2\]; give \[3\]",
    ),
    "parents elsewhere": (lambda p: p._replace(parents=p.parents.to("meta")), ValueError, "parents is on meta, frames on cpu"),
    "an unknown stream": (lambda p: p._replace(stream="velocity"), ValueError, "stream is 'velocity'; give one of joint, bone"),
    "no output frames": (lambda p: p._replace(num_frames=0), ValueError, "num_frames is 0"),
    "recording 3 of 3": (
        lambda p: p._replace(plan=replace(p.plan, clip=torch.tensor([0, 3, 1]))),
        ValueError,
        r"plan.clip\[1\] is 3; .* 0..2",
    ),
    "a negative start": (
        lambda p: p._replace(plan=replace(p.plan, start=torch.tensor([0, 0, -1]))),
        ValueError,
        r"plan.start\[2\] is -1",
    ),
    "no frame": (
        lambda p: p._replace(plan=replace(p.plan, length=torch.tensor([0, 1, 1]))),
        ValueError,
        r"plan.length\[0\] is 0; ",
    ),
    "a crop past the end": (
        lambda p: p._replace(plan=replace(p.plan, start=torch.tensor([0, 6, 0]), length=torch.tensor([1, 3, 1]))),
        ValueError,
        r"plan.length\[1\] is 3; .* 1..2",
    ),
    "a parent outside": (
        lambda p: p._replace(parents=torch.tensor([0, 0, 1, 4])),
        ValueError,
        r"parents\[3\] is 4; .* 0..3",
    ),
    "offsets past the frames": (
        lambda p: p._replace(offsets=torch.tensor([0, 8, 16, 25])),
        ValueError,
        r"offsets\[3\] is 25",
    ),
    "a source outside": (
        lambda p: p._replace(augment=AugmentPlan(source=torch.tensor([[0, 1, 2, 3], [0, 1, 4, 3], [0, 1, 2, 3]]))),
        ValueError,
        r"augment.source\[6\] is 4; .* 0..3",
    ),
    "a matrix too small": (
        lambda p: p._replace(augment=AugmentPlan(linear=torch.eye(2).expand(3, 2, 2))),
        ValueError,
        r"augment.linear has shape \[3, 2, 2\]; give \[3, 3, 3\]",
    ),
    "kept as numbers": (
        lambda p: p._replace(augment=AugmentPlan(kept=torch.ones(3, 4))),
        TypeError,
        "augment.kept is torch.float32; give torch.bool",
    ),
    "jitter without its key": (
        lambda p: p._replace(augment=AugmentPlan(jitter=torch.ones(3))),
        ValueError,
        "augment has one of jitter and jitter_key; give both",
    ),
    "five coordinates to move": (
        lambda p: p._replace(frames=torch.zeros(24, 2, 4, 5), augment=AugmentPlan(source=torch.zeros(3, 4, dtype=torch.int64))),
        ValueError,
        "frames have 5 coordinates; augment.source, linear and jitter take at most 4",
    ),
    "turned in two dimensions": (
        lambda p: p._replace(frames=p.frames[..., :2]),
        ValueError,
        r"plan.angles\[0\] .* 3 coordinates.* frames have 2",
    ),
}


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("case", ERRORS)
def test_bad_arguments_are_named(case: str, backend: str) -> None:
    spoil, error, message = ERRORS[case]
    plan = CropPlan(torch.arange(3), torch.tensor([0, 1, 2]), torch.tensor([8, 4, 5]), torch.full((3, 3), 0.1))
    good = CropProblem(torch.randn(24, 2, 4, 3), torch.tensor([0, 8, 16, 24]), plan, torch.tensor([0, 0, 1, 2]), "joint", 8)
    with pytest.raises(error, match=message):
        sample_clips(**spoil(good)._asdict(), backend=backend)
