"""Every op has an example that repeats and agrees on every back end, and tolerances that refuse what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from shapmix import kernels
from shapmix.kernels import unavailable
from shapmix.kernels.agreement import agrees, reference_of
from shapmix.kernels.examples import EXAMPLES, Batch, Shape, agree, example, nbytes, results
from shapmix.reference import MixPlan
from tests.proofs import CPU, DEVICE_OF, INTERPRETED, OPS

ODD = Shape("odd", None, (3, 2, 5, 3, 1), 6, width=16)
SMALL = Shape("small", "ntu25", (4, 3, 16, 25, 2), 9, width=16)
NTU = Shape("ntu", "ntu25", (64, 3, 64, 25, 2), 60)
COMPARED = (ODD,) if INTERPRETED else (ODD, NTU)  # the interpreter takes minutes for a real batch
ON_BACKENDS = [
    pytest.param(op, backend, marks=pytest.mark.proves(op, backend=backend))
    for op in OPS
    for backend in ("cpp", "triton", "cuda")
    if backend != "cuda" or op in ("coalition_inputs", "mix_clips")
]


def tensors_of(arguments: dict[str, Any]) -> list[Tensor]:
    plans = [list(vars(value).values()) if isinstance(value, MixPlan) else [value] for value in arguments.values()]
    return [value for values in plans for value in values if isinstance(value, Tensor)]


def test_every_op_has_an_example() -> None:
    assert set(EXAMPLES) == set(OPS)


@pytest.mark.parametrize(("op", "backend"), ON_BACKENDS)
def test_examples_agree(op: str, backend: str) -> None:
    device = DEVICE_OF[backend]
    for shape in COMPARED:
        for dtype in EXAMPLES[op].dtypes:
            if dtype == torch.bfloat16 and INTERPRETED:
                continue  # the interpreter computes wrong results in bfloat16
            if unavailable(backend, device, dtype, op) is None:
                assert agrees(op, Batch(shape, dtype, device), backend), (shape.name, dtype)


@pytest.mark.parametrize("shape", [ODD, SMALL], ids=lambda shape: shape.name)
@pytest.mark.parametrize("op", OPS)
def test_an_example_repeats_and_another_seed_is_another(op: str, shape: Shape) -> None:
    first, again, other = (tensors_of(example(op, Batch(shape, torch.float32, CPU, seed))) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    assert not all(left.shape == right.shape and torch.equal(left, right) for left, right in zip(first, other, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_a_tolerance_refuses_what_is_wrong(op: str) -> None:
    """A result a little farther than allowed, of another dtype or shape, or not a number."""
    arguments = example(op, Batch(ODD, torch.float32, CPU))
    expected = results(reference_of(op), arguments)
    assert agree(op, arguments, expected, expected)
    allowed = EXAMPLES[op].tolerance(arguments, expected)
    assert len(allowed) == len(expected)
    for at, (value, bound) in enumerate(zip(expected, allowed, strict=True)):
        wrong = [value.to(torch.complex64), value[None], ~value if value.dtype == torch.bool else value + 1]
        if value.is_floating_point():
            largest, most = float(value.abs().max()), float(torch.as_tensor(bound).max())
            assert most <= 1e-2 * max(1.0, largest)
            wrong += [value + 2 * most + 1e-5 * (1 + largest), value * torch.nan]
        for other in wrong:
            assert not agree(op, arguments, [*expected[:at], other, *expected[at + 1 :]], expected)


def test_an_op_that_writes_an_argument_writes_a_copy() -> None:
    batch = Batch(SMALL, torch.float32, CPU)
    arguments = example("saliency_update", batch)
    table = arguments["table"].clone()
    marginal, updated = results(kernels.saliency_update, arguments)
    assert marginal.shape == (4,)
    assert torch.equal(arguments["table"], table)
    assert not torch.equal(updated, table)
    arguments["table"].zero_()
    assert torch.equal(example("saliency_update", batch)["table"], table)


def test_bytes_count_the_tensors_of_plans() -> None:
    plan = Batch(SMALL, torch.float32, CPU).plan
    assert nbytes([plan, 3, None]) == sum(value.nbytes for value in vars(plan).values())
    assert nbytes([torch.zeros(2, 3), torch.zeros(5, dtype=torch.bool)]) == 29
