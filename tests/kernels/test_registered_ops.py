"""The ops under autograd and torch.compile: gradients, fake tensors, full graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shapmix import reference
from shapmix.kernels import (
    balanced_mix_loss,
    coalition_inputs,
    draw_plan,
    mix_clips,
    saliency_update,
    sample_clips,
)
from shapmix.reference import CropPlan
from shapmix.reference.plan import window_range
from tests.kernels.examples import (
    MixProblem,
    augment_plan,
    crop_problem,
    loss_arguments,
    mix_problem,
    plan_arguments,
    update_arguments,
)


def of_each(*ops: str) -> pytest.MarkDecorator:
    """Parametrizes a test over ops, each of which it is about."""
    return pytest.mark.parametrize("op", [pytest.param(op, marks=pytest.mark.proves(op)) for op in ops])


def plan_of(problem: MixProblem) -> tuple[Tensor, ...]:
    return tuple(vars(problem.plan).values())


def differentiable(backend: str) -> dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]]:
    """Op -> the op and its reference as functions of floating point tensors, and those tensors."""
    clips, mean, coalitions, part_of_joint, _, plan = mix_problem(torch.float64)
    some = {"restored_frames": 5}

    def expand(op: Any, **options: Any) -> Callable[..., Tensor]:
        return lambda clips, mean: op(clips, mean, coalitions, part_of_joint, **some, **options)

    def mix(op: Any, **options: Any) -> Callable[..., Tensor]:
        return lambda clips: op(clips, plan, part_of_joint, **options)

    return {
        "coalition_inputs": (
            expand(coalition_inputs, backend=backend),
            expand(reference.coalition_inputs),
            [clips, mean],
        ),
        "mix_clips": (mix(mix_clips, backend=backend), mix(reference.mix_clips), [clips]),
    }


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@of_each("coalition_inputs", "mix_clips")
def test_gradients(op: str, backend: str) -> None:
    """Compared with finite differences and with autograd through the reference."""
    run, run_reference, tensors = differentiable(backend)[op]
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(run, leaves)
    result = run(*leaves)
    direction = torch.randn(result.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad(result, leaves, direction)
    expected = torch.autograd.grad(run_reference(*leaves), leaves, direction)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)
    with torch.no_grad():
        assert not run(*leaves).requires_grad


@pytest.mark.proves("coalition_inputs")
def test_only_the_tensor_that_wants_a_gradient_gets_one() -> None:
    run, _, (clips, mean) = differentiable("cpp")["coalition_inputs"]
    mean = mean.clone().requires_grad_()
    run(clips, mean).sum().backward()
    assert mean.grad is not None
    assert clips.grad is None


def arguments_of(op: str) -> tuple[Any, ...]:
    """Arguments of a registered op; floating point ones require gradients if the op is differentiable."""
    clips, mean, coalitions, part_of_joint, _, _ = problem = mix_problem(torch.float64)
    clips, mean = clips.requires_grad_(), mean.requires_grad_()
    if op == "coalition_inputs":
        return (clips, mean, coalitions, part_of_joint, None, None)
    if op == "mix_clips":
        return (clips, *plan_of(problem), part_of_joint, None)
    if op == "sample_clips":
        crops = crop_problem(3)
        return (
            crops.frames,
            crops.offsets,
            *vars(crops.plan).values(),
            crops.parents,
            "bone",
            64,
            *vars(augment_plan(3)).values(),
            None,
        )
    if op == "draw_plan":
        named = plan_arguments()
        labels, saliency, priority, combinations, joints, num_frames, seed, step = named.values()
        return (
            labels,
            saliency,
            priority,
            combinations,
            joints,
            num_frames,
            *window_range(num_frames),
            seed,
            step,
            None,
            True,
            0.2,
            0.25,
            None,
        )
    if op == "saliency_update":
        return (*update_arguments().values(), None, 10.0, None)
    named = loss_arguments(dtype=torch.float64)
    logits = named.pop("logits").requires_grad_()
    return (logits, *named.values(), None)


OPS = (
    "coalition_inputs",
    "mix_clips",
    "sample_clips",
    "draw_plan",
    "saliency_update",
    "balanced_mix_loss",
)


@of_each(*OPS)
def test_opcheck(op: str) -> None:
    """torch's own checks: schema, fake tensors, autograd registration, tracing with dynamic shapes."""
    torch.library.opcheck(getattr(torch.ops.shapmix, op).default, arguments_of(op))


@pytest.mark.proves("balanced_mix_loss")
def test_opcheck_of_the_gradient() -> None:
    logits, labels, partner, lam, log_prior, _ = arguments_of("balanced_mix_loss")
    arguments = (torch.ones(2).double(), (logits + log_prior).logsumexp(1), logits, labels, partner, lam, log_prior, None)
    detached = tuple(value.detach() if isinstance(value, Tensor) else value for value in arguments)
    torch.library.opcheck(torch.ops.shapmix.balanced_mix_loss_backward.default, detached)


PROBLEM = plan_arguments(labels=torch.arange(8) % 7)


def step(clips: Tensor, at: Tensor, weight: Tensor, table: Tensor, backend: str | None) -> Tensor:
    """A whole training step, with a matrix in place of the network."""
    problem = PROBLEM | {"step": at}
    labels, part_of_joint = problem["labels"], problem["part_of_joint"]
    mean = clips.detach().mean(0)
    coalitions = torch.tensor([3, 0])
    seen = coalition_inputs(clips.detach(), mean, coalitions, part_of_joint, backend=backend)
    logits = seen.flatten(1) @ weight
    rows = torch.arange(8)
    counts = torch.full((20,), 10)
    saliency_update(table, logits, labels, rows, rows, rows + 8, counts, 0.9, backend=backend)
    plan = draw_plan(**problem | {"saliency": table}, backend=backend)
    mixed = mix_clips(clips, plan, part_of_joint, backend=backend)
    log_prior = torch.zeros(weight.shape[1])
    clean, blended = balanced_mix_loss(
        mixed.flatten(1) @ weight, labels, plan.partner, plan.label_share, log_prior, backend=backend
    )
    return clean + blended


@pytest.mark.proves("coalition_inputs", "saliency_update", "draw_plan", "mix_clips", "balanced_mix_loss")
@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_whole_step_compiles_into_one_graph(backend: str | None) -> None:
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(8, 2, 64, 25, 1, generator=generator)
    weight = torch.randn(2 * 64 * 25, 7, generator=generator).mul_(0.01).requires_grad_()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for at in range(3):
        tables = [torch.full((7, 20), 0.1) for _ in range(2)]
        results = [
            run(clips, torch.tensor(at), weight, table, backend) for run, table in zip((step, compiled), tables, strict=True)
        ]
        gradients = [torch.autograd.grad(result, weight)[0] for result in results]
        torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(tables[1], tables[0])


@pytest.mark.proves("sample_clips")
def test_sampling_compiles_into_one_graph() -> None:
    crops = crop_problem(3)

    def sample(plan: CropPlan) -> Tensor:
        return sample_clips(crops.frames, crops.offsets, plan, crops.parents, stream="motion")

    compiled = torch.compile(sample, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(crops.plan), sample(crops.plan))
