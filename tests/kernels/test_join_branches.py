"""`join_branches`, the fused epilogue of a temporal unit in eval mode, on every back end against the reference; bad arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import max_pool2d

from shapmix import reference
from shapmix.kernels import join_branches, unavailable
from shapmix.kernels.examples import Batch, Shape, agree, example
from tests.kernels.backends import FEW, MANY, TRITON, moved
from tests.proofs import CPU, DEVICE_OF

OPS = ("join_branches",)
pytestmark = pytest.mark.proves(*OPS)

CPP = (torch.float32, torch.float64, torch.bfloat16)


@st.composite
def branches(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = CPP) -> dict[str, Any]:
    """Arguments of `join_branches`: contiguous tensors and channel slices of wider ones."""
    n, frames, joints = draw(st.integers(2, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 6))
    width, frame_stride = draw(st.sampled_from([1, 2, 6, 8, 16, 20, 32])), draw(st.integers(1, 3))
    dtype, seed = draw(st.sampled_from(dtypes)), draw(st.integers(0, 2**31))

    def made(length: int) -> dict[str, Any]:
        return example(
            "join_branches", Batch(Shape("drawn", None, (n, 3, length, joints, 1), 5, width=4 * width), dtype, CPU, seed)
        )

    def laid_out(x: Tensor) -> Tensor:
        spare = draw(st.sampled_from([0, 0, 5]))
        wider = torch.cat([x, x.new_full((n, spare, *x.shape[2:]), torch.nan)], 1)
        memory = torch.channels_last if draw(st.booleans()) else torch.contiguous_format
        return wider.contiguous(memory_format=memory)[:, : x.shape[1]]

    arguments = made(-(-frames // frame_stride)) | {"middle": made(frames)["middle"], "frame_stride": frame_stride}
    arguments |= {name: laid_out(arguments[name]) for name in ("narrow", "wide", "middle", "skip", "shortcut")}
    if draw(st.booleans()):
        del arguments["shortcut"]
    return arguments


def check(arguments: dict[str, Any], backend: str) -> None:
    arguments = moved(DEVICE_OF[backend], arguments)
    found, expected = join_branches(**arguments, backend=backend), reference.join_branches(**arguments)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert agree("join_branches", arguments, [found], [expected])


@pytest.mark.proves(*OPS, backend="cpp")
@MANY
@given(branches())
def test_cpp_is_the_reference(arguments: dict[str, Any]) -> None:
    check(arguments, "cpp")


@pytest.mark.proves(*OPS, backend="triton")
@FEW
@given(branches(TRITON))
def test_triton_is_the_reference(arguments: dict[str, Any]) -> None:
    check(arguments, "triton")


def arguments_of(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    given: dict[str, Any] = {name: torch.randn(2, 16, 4, 5, generator=generator).to(dtype) for name in ("narrow", "wide", "skip")}
    given |= {"middle": torch.randn(2, 16, 8, 5, generator=generator).to(dtype), "frame_stride": 2}
    return given | {"scale": torch.ones(16), "offset": torch.zeros(16), "shortcut": torch.zeros(2, 64, 4, 5, dtype=dtype)}


def test_the_pool_is_torchs() -> None:
    """Windows at the boundary, and non-finite values."""
    arguments = arguments_of()
    arguments["middle"][0, 0] = -torch.inf
    arguments["middle"][0, 1, 3] = torch.nan
    arguments["middle"][0, 2, 2] = torch.inf
    pooled = max_pool2d(arguments["middle"], (3, 1), (2, 1), (1, 0)).relu()
    assert bool(pooled[0, 1, 1:3].isnan().all())
    for backend in ("cpp", "triton"):
        if unavailable(backend, CPU) is None:
            found = join_branches(**arguments, backend=backend)[:, 32:48]
            torch.testing.assert_close(found, pooled, rtol=0, atol=0, equal_nan=True)


def test_gradients_flow_and_compile_takes_it() -> None:
    arguments = {name: value.double() if isinstance(value, Tensor) else value for name, value in arguments_of().items()}
    leaves = {name: value.requires_grad_() for name, value in arguments.items() if isinstance(value, Tensor)}
    result = join_branches(**arguments)
    assert all(grad is not None for grad in torch.autograd.grad(result.sum(), list(leaves.values())))
    with torch.no_grad():
        compiled = torch.compile(join_branches, fullgraph=True, backend="eager")(**arguments)
        torch.testing.assert_close(compiled, join_branches(**arguments))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"narrow": torch.zeros(2, 16, 5, 5)}, ValueError, r"narrow has shape \[2, 16, 5, 5\]; give \[2, 16, 4, 5\]"),
        ({"skip": torch.zeros(2, 16, 4, 5).double()}, TypeError, "skip is torch.float64; give torch.float32"),
        ({"scale": torch.zeros(15)}, ValueError, r"scale has shape \[15\]; give \[16\]"),
        ({"shortcut": torch.zeros(2, 16, 4, 5)}, ValueError, r"shortcut has shape \[2, 16, 4, 5\]; give \[2, 64, 4, 5\]"),
        ({"frame_stride": 0}, ValueError, "frame_stride is 0; give 1 or more"),
        ({"middle": torch.zeros(2, 16, 8)}, ValueError, r"middle has shape \[2, 16, 8\]"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], error: type[Exception], message: str, backend: str) -> None:
    with pytest.raises(error, match=message):
        join_branches(**arguments_of() | changes, backend=backend)
