"""`saliency_update` on every back end against the sequential reference; bad arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shapmix import reference
from shapmix.kernels import saliency_update
from shapmix.kernels.examples import Batch, Shape, agree, example, results
from tests.kernels.backends import (
    ALL,
    FEW,
    INTERPRETED,
    MANY,
    REAL,
    TRITON,
    largest_difference,
    moved,
    on_backends,
    same_bits,
    uniform_integers,
)
from tests.kernels.examples import update_arguments
from tests.proofs import CPU, DEVICE_OF

OPS = ("saliency_update",)
pytestmark = pytest.mark.proves(*OPS)


@st.composite
def problems(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...]) -> dict[str, Any]:
    """Arguments of `saliency_update`, with repeated labels."""
    classes, combinations = draw(st.integers(2, 90)), draw(st.integers(1, 70))
    rows, updates = draw(st.integers(1, 40)), draw(st.integers(1, 60))
    dtype, table_dtype, seed = draw(st.sampled_from(dtypes)), draw(st.sampled_from(REAL)), draw(st.integers(0, 2**31))
    batch = Batch(Shape("drawn", None, (updates, 1, 8, 5, 1), classes), dtype, CPU, seed)
    generator = torch.Generator().manual_seed(seed)
    contexts = draw(st.none() | st.integers(1, 8))
    shape = (updates,) if contexts is None else (updates, contexts)
    arguments = example("saliency_update", batch)
    arguments |= {
        "table": torch.rand(classes, combinations, generator=generator).to(table_dtype),
        "logits": 4 * batch.normal(rows, classes),
        "labels": arguments["labels"] % 3,
        "columns": batch.integers(0, min(combinations, 4) - 1),
        "with_rows": uniform_integers(generator, 0, rows - 1, *shape),
        "without_rows": uniform_integers(generator, 0, rows - 1, *shape),
        "joint_counts": uniform_integers(generator, 1, 12, combinations),
        "decay": draw(st.sampled_from([0.0, 0.9, 1.0]) | st.floats(0, 1)),
    }
    if contexts is not None and draw(st.booleans()):
        arguments["weights"] = torch.rand(updates, contexts, generator=generator).to(table_dtype)
    return arguments


def run(arguments: dict[str, Any], device: torch.device, op: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """The marginals and the table after the update."""
    marginal, table = results(op, moved(device, arguments), **options)
    return marginal, table


def check_against_reference(arguments: dict[str, Any], backend: str) -> None:
    device = DEVICE_OF[backend]
    expected = run(arguments, device, reference.saliency_update)
    marginal, table = run(arguments, device, saliency_update, backend=backend)
    assert agree("saliency_update", arguments, [marginal, table], list(expected))
    keys = {(label, column) for label, column in zip(arguments["labels"].tolist(), arguments["columns"].tolist(), strict=True)}
    untouched = torch.ones_like(table, dtype=torch.bool)
    for label, column in keys:
        untouched[label, column] = False
    assert torch.equal(table[untouched], arguments["table"].to(device)[untouched])


@pytest.mark.proves(*OPS, backend="cpp")
@MANY
@given(problems(ALL))
def test_cpp_is_the_reference(arguments: dict[str, Any]) -> None:
    check_against_reference(arguments, "cpp")


@pytest.mark.proves(*OPS, backend="triton")
@FEW
@given(problems(TRITON))
def test_triton_is_the_reference(arguments: dict[str, Any]) -> None:
    check_against_reference(arguments, "triton")


@on_backends("cpp", "triton", "reference", ops=OPS)
def test_extreme_logits_stay_probabilities(backend: str) -> None:
    """Probability 1 against 0 is a marginal of 1, the reverse is 0, and NaN stays NaN."""
    device = DEVICE_OF[backend]
    big = 1e4
    logits = torch.tensor([[big, 0, -big], [-big, 0, big], [torch.nan, 0, 0], [0, 0, 0]])
    several = update_arguments(
        logits=logits,
        labels=torch.tensor([0, 0, 0]),
        columns=torch.tensor([0, 1, 2]),
        with_rows=torch.tensor([0, 1, 2]),
        without_rows=torch.tensor([1, 0, 3]),
    )
    marginal, table = run(several, device, saliency_update, backend=backend)
    assert marginal[:2].tolist() == [1.0, 0.0]
    assert bool(marginal[2].isnan())
    assert torch.equal(table[0, 2], several["table"][0, 2].to(device))


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # inf - inf in the interpreter
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@on_backends("cpp", "triton", "reference", ops=OPS)
def test_an_update_that_is_not_finite_is_as_if_it_were_not_there(backend: str, bad: float) -> None:
    """A skipped update alone on its entry, between others, first and last; one infinite logit invalidates its row."""
    device = DEVICE_OF[backend]
    several = update_arguments(
        logits=torch.tensor([[1.0, 2, 0], [0, 1, 3], [bad, 0, 0], [2, 0, 1], [0, 0, 0]]),
        labels=torch.tensor([0, 0, 0, 0, 0, 1, 2, 2]),
        columns=torch.tensor([1, 1, 1, 1, 1, 3, 0, 0]),
        with_rows=torch.tensor([2, 0, 2, 3, 2, 2, 2, 1]),
        without_rows=torch.tensor([4, 4, 1, 4, 0, 0, 0, 2]),
    )
    good = torch.tensor([1, 3])
    alone = several | {name: several[name][good] for name in ("labels", "columns", "with_rows", "without_rows")}
    marginal, table = run(several, device, saliency_update, backend=backend)
    expected, expected_table = run(alone, device, saliency_update, backend=backend)
    assert same_bits(marginal[good], expected)
    assert not bool(marginal[torch.tensor([0, 2, 4, 5, 6, 7])].isfinite().any())
    assert largest_difference(table, expected_table) <= 1e-6  # a scan sums in a different order


@on_backends("cpp", "triton", ops=OPS)
def test_long_batches_keep_the_order(backend: str) -> None:
    """More updates of one entry than a block holds; the last ones have the largest weight."""
    device = DEVICE_OF[backend]
    updates = 700 if INTERPRETED else 3000
    generator = torch.Generator().manual_seed(1)
    arguments = update_arguments(
        table=torch.rand(3, 4, dtype=torch.float64, generator=generator),
        logits=torch.randn(updates, 3, dtype=torch.float64, generator=generator),
        labels=torch.zeros(updates, dtype=torch.int64),
        columns=torch.ones(updates, dtype=torch.int64),
        with_rows=torch.arange(updates),
        without_rows=torch.arange(updates).flip(0),
        decay=0.99,
    )
    _, expected = run(arguments, device, reference.saliency_update)
    _, table = run(arguments, device, saliency_update, backend=backend)
    assert largest_difference(table, expected) <= 1e-13


@on_backends("cpp", "triton", ops=OPS)
def test_repeats_give_the_same_bits(backend: str) -> None:
    device = DEVICE_OF[backend]
    first = run(update_arguments(), device, saliency_update, backend=backend)
    second = run(update_arguments(), device, saliency_update, backend=backend)
    assert all(same_bits(left, right) for left, right in zip(first, second, strict=True))


ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "half table": ({"table": torch.zeros(3, 4).half()}, TypeError, "table is torch.float16; give float32 or float64"),
    "a strided table": ({"table": torch.zeros(4, 3).T}, ValueError, "table is not contiguous"),
    "logits of 4 classes": ({"logits": torch.zeros(5, 4)}, ValueError, r"logits has shape \[5, 4\]; give \[5, 3\]"),
    "integer logits": ({"logits": torch.zeros(5, 3).long()}, TypeError, "logits is torch.int64; give float32"),
    "a column too few": ({"columns": torch.tensor([1])}, ValueError, r"columns has shape \[1\]; give \[2\]"),
    "contexts that differ": (
        {"without_rows": torch.zeros(2, 3, dtype=torch.int64)},
        ValueError,
        r"without_rows has shape \[2, 3\]; give \[2\]",
    ),
    "weights of another type": ({"weights": torch.ones(2, 1).double()}, TypeError, "weights is torch.float64"),
    "a decay above 1": ({"decay": 1.5}, ValueError, r"decay is 1.5; give a number in 0..1"),
    "an unknown class": ({"labels": torch.tensor([0, 3])}, ValueError, r"labels\[1\] is 3; .* 0..2"),
    "an unknown combination": ({"columns": torch.tensor([-1, 0])}, ValueError, r"columns\[0\] is -1; .* 0..3"),
    "a row that was not forwarded": ({"with_rows": torch.tensor([0, 5])}, ValueError, r"with_rows\[1, 0\] is 5; .* 0..4"),
    "a negative row": ({"without_rows": torch.tensor([-1, 0])}, ValueError, r"without_rows\[0, 0\] is -1; .* 0..4"),
    "no joints": ({"joint_counts": torch.tensor([5, 0, 6, 4])}, ValueError, r"joint_counts\[1\] is 0"),
}


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("case", ERRORS)
def test_bad_arguments_are_named_and_change_nothing(case: str, backend: str) -> None:
    changes, error, message = ERRORS[case]
    arguments = update_arguments(**changes)
    before = arguments["table"].clone()
    with pytest.raises(error, match=message):
        saliency_update(**arguments, backend=backend)
    assert torch.equal(arguments["table"], before)
