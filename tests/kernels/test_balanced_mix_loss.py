"""`balanced_mix_loss`, forward and backward, on every back end against the reference; bad arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shapmix import reference
from shapmix.kernels import balanced_mix_loss
from shapmix.kernels.checks import sum_dtype
from shapmix.kernels.examples import Batch, Shape, agree, example
from tests.kernels.backends import ALL, FEW, MANY, REAL, TRITON, largest_difference, moved, on_backends, same_bits
from tests.kernels.examples import loss_arguments
from tests.proofs import CPU, DEVICE_OF

OPS = ("balanced_mix_loss",)
pytestmark = pytest.mark.proves(*OPS)


@st.composite
def problems(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...]) -> dict[str, Any]:
    """Arguments of `balanced_mix_loss`."""
    n, classes = draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 10, 60, 131, 400, 1500]))
    shape = Shape("drawn", None, (n, 1, 8, 2, 1), classes)
    arguments = example("balanced_mix_loss", Batch(shape, draw(st.sampled_from(dtypes)), CPU, draw(st.integers(0, 2**31))))
    logits = 3 * arguments["logits"][: n * draw(st.integers(1, 2))]
    return arguments | {"logits": logits, "lam": arguments["lam"].to(draw(st.sampled_from(REAL)))}


def run(arguments: dict[str, Any], device: torch.device, op: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """The losses [2] and the gradient of twice the clean loss plus three times the mixed one."""
    others = moved(device, arguments)
    logits = others.pop("logits").clone().requires_grad_()
    losses = torch.stack(op(logits, **others, **options))
    (losses * torch.tensor([2.0, 3.0], device=device)).sum().backward()
    return losses.detach(), logits.grad


def check_against_reference(arguments: dict[str, Any], backend: str) -> None:
    device = DEVICE_OF[backend]
    expected, expected_grad = run(arguments, device, reference.balanced_mix_loss)
    losses, grad = run(arguments, device, balanced_mix_loss, backend=backend)
    with torch.no_grad():
        alone = torch.stack(balanced_mix_loss(**moved(device, arguments), backend=backend))
    assert same_bits(alone, losses)
    assert agree("balanced_mix_loss", arguments, list(losses), list(expected))
    n, classes = len(arguments["labels"]), arguments["logits"].shape[1]
    eps = torch.finfo(sum_dtype(arguments["logits"].dtype)).eps
    rounding = torch.finfo(arguments["logits"].dtype).eps * float(expected_grad.abs().max())
    assert largest_difference(grad, expected_grad) <= rounding + 3 * eps * (64 + classes) / n


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


@on_backends("cpp", "triton", ops=OPS)
def test_certain_logits_do_not_overflow(backend: str) -> None:
    arguments = loss_arguments(logits=torch.eye(5).repeat(3, 1)[:12] * 1e4)
    expected, expected_grad = run(arguments, DEVICE_OF[backend], reference.balanced_mix_loss)
    losses, grad = run(arguments, DEVICE_OF[backend], balanced_mix_loss, backend=backend)
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-7)


@on_backends("cpp", "triton", ops=OPS)
def test_large_batches_repeat_to_the_bit(backend: str) -> None:
    device = DEVICE_OF[backend]
    first = run(loss_arguments(80, 400), device, balanced_mix_loss, backend=backend)
    second = run(loss_arguments(80, 400), device, balanced_mix_loss, backend=backend)
    assert all(same_bits(left, right) for left, right in zip(first, second, strict=True))


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_gradcheck(backend: str, mixed: bool) -> None:
    arguments = loss_arguments(dtype=torch.float64)
    logits = arguments.pop("logits")[: None if mixed else 6].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: balanced_mix_loss(x, **arguments, backend=backend), logits)


def test_strided_arguments_work() -> None:
    arguments = loss_arguments()
    strided = {name: torch.stack([value, value], -1)[..., 0] for name, value in arguments.items()}
    expected = run(arguments, torch.device("cpu"), balanced_mix_loss, backend="cpp")
    found = run(strided, torch.device("cpu"), balanced_mix_loss, backend="cpp")
    assert all(same_bits(left, right) for left, right in zip(found, expected, strict=True))


ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "neither N nor 2N rows": ({"logits": torch.zeros(9, 5)}, ValueError, r"logits has shape \[9, 5\] for 6 labels"),
    "integer logits": ({"logits": torch.zeros(12, 5).long()}, TypeError, "logits is torch.int64; give float32"),
    "int32 partner": ({"partner": torch.zeros(6).int()}, TypeError, "partner is torch.int32; give torch.int64"),
    "half lam": ({"lam": torch.zeros(6).half()}, TypeError, "lam is torch.float16; give float32 or float64"),
    "a double prior": ({"log_prior": torch.zeros(5).double()}, TypeError, "log_prior is torch.float64; give torch.float32"),
    "a class too few": ({"log_prior": torch.zeros(4)}, ValueError, r"log_prior has shape \[4\]; give \[5\]"),
    "an unknown class": ({"labels": torch.tensor([0, 5, 0, 0, 0, 0])}, ValueError, r"labels\[1\] is 5; .* 0..4"),
    "a partner outside": ({"partner": torch.tensor([0, 0, 6, 0, 0, 0])}, ValueError, r"partner\[2\] is 6; .* 0..5"),
    "labels elsewhere": (
        {"labels": torch.zeros(6, dtype=torch.int64, device="meta")},
        ValueError,
        "labels is on meta, logits on cpu",
    ),
}


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("case", ERRORS)
def test_bad_arguments_are_named(case: str, backend: str) -> None:
    changes, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        balanced_mix_loss(**loss_arguments(**changes), backend=backend)
