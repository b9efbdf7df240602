"""`graph_conv` and `batch_norm`, forward and backward, on every back end against the reference; bad arguments."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shapmix import reference
from shapmix.kernels import batch_norm, graph_conv
from shapmix.kernels.examples import EXAMPLES, Batch, Shape, agree, example
from tests.kernels.backends import FEW, FEW_EXAMPLES, MANY, TRITON, moved, on_backends, same_bits
from tests.kernels.examples import graph_arguments
from tests.proofs import CPU, DEVICE_OF

pytestmark = pytest.mark.proves("graph_conv", "batch_norm")

CPP = (torch.float32, torch.float64, torch.bfloat16)


def channels_last(x: Tensor, spare: int = 0) -> Tensor:
    """The same values as the first channels of a wider channels-last tensor."""
    wider = x.new_full((len(x), x.shape[1] + spare, *x.shape[2:]), torch.nan).contiguous(memory_format=torch.channels_last)
    wider[:, : x.shape[1]] = x
    return wider[:, : x.shape[1]]


@st.composite
def graphs(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...]) -> dict[str, Any]:
    """Arguments of `graph_conv`."""
    size = (draw(st.integers(1, 3)), 3, draw(st.integers(1, 12)), draw(st.sampled_from([1, 2, 5, 17, 25])), 1)
    subsets, width = draw(st.integers(1, 3)), draw(st.sampled_from([8, 16, 24, 64]))
    shape = Shape("drawn", None, size, 5, subsets=subsets, width=width, relations=draw(st.sampled_from([1, 2, 3, 8, 16])))
    batch = Batch(shape, draw(st.sampled_from(dtypes)), CPU, draw(st.integers(0, 2**31)))
    arguments = example("graph_conv", batch)
    features = arguments["features"]
    spare = draw(st.sampled_from([None, 0, 3, 8]))
    arguments["features"] = features.contiguous() if spare is None else channels_last(features, spare)
    if draw(st.booleans()):
        arguments["offset"] = batch.weights(width, salt=5)
        if draw(st.booleans()):
            arguments["shortcut"] = batch.features(width, salt=6).contiguous()
    return arguments


def relative(found: Tensor, expected: Tensor) -> float:
    """Difference relative to the largest value, in float64."""
    assert found.shape == expected.shape
    largest = float(expected.double().abs().max())
    return float((found.double() - expected.double()).abs().max()) / (largest or 1.0)


def check_graph_conv(arguments: dict[str, Any], backend: str) -> None:
    arguments = moved(DEVICE_OF[backend], arguments)
    expected = reference.graph_conv(**arguments)
    found = graph_conv(**arguments, backend=backend)
    assert found.dtype == expected.dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert agree("graph_conv", arguments, [found], [expected])
    (bound,) = EXAMPLES["graph_conv"].tolerance(arguments, [torch.ones_like(expected)])

    arguments = {name: value for name, value in arguments.items() if name not in ("offset", "shortcut")}
    leaves = {name: value.detach().clone(memory_format=torch.preserve_format).requires_grad_() for name, value in arguments.items()}
    result = graph_conv(**leaves, backend=backend)
    grad = torch.randn(result.shape, generator=torch.Generator().manual_seed(0)).to(result)
    gradients = torch.autograd.grad(result, list(leaves.values()), grad)
    expected_gradients = reference.graph_conv_backward(grad, *arguments.values())
    for name, left, right in zip(leaves, gradients, expected_gradients, strict=True):
        assert left.dtype == right.dtype
        # parameter gradients are sums over all rows, whose largest value bounds the rounding least
        assert relative(left, right) <= 8 * bound, name


@pytest.mark.proves("graph_conv", backend="cpp")
@MANY
@given(graphs(CPP))
def test_graph_conv_of_cpp_is_the_reference(arguments: dict[str, Any]) -> None:
    check_graph_conv(arguments, "cpp")


@pytest.mark.proves("graph_conv", backend="cpp")
@pytest.mark.parametrize(("joints", "width", "relations"), [(25, 32, 8), (17, 24, 32), (13, 40, 5), (6, 48, 16)])
@pytest.mark.parametrize("dtype", CPP)
def test_graph_conv_of_cpp_on_many_frames(dtype: torch.dtype, joints: int, width: int, relations: int) -> None:
    """Several blocks of frames and several lines of channels, the last ones of each partly filled."""
    shape = Shape("long", None, (2, 3, 37, joints, 1), 5, subsets=3, width=width, relations=relations)
    check_graph_conv(example("graph_conv", Batch(shape, dtype, CPU)), "cpp")


@pytest.mark.proves("graph_conv", backend="triton")
@settings(FEW, max_examples=min(10, FEW_EXAMPLES))
@given(graphs(TRITON))
def test_triton_graph_conv_is_the_reference(arguments: dict[str, Any]) -> None:
    check_graph_conv(arguments, "triton")


@pytest.mark.proves("graph_conv", backend="triton")
def test_triton_graph_conv_takes_a_few_clips_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, as in large batches: parameter gradients accumulate over a chunk of two clips and a last one of one clip."""
    monkeypatch.setattr(import_module("shapmix.kernels.triton_graph"), "GRAPH_BYTES", 2 * 2 * 17 * 17 * 16 * 4)
    generator = torch.Generator().manual_seed(0)
    shapes = {"features": (3, 2 * 16, 5, 17), "relation_terms": (3, 17, 2, 2, 20), "weight": (2, 20, 16)}
    shapes |= {"bias": (2, 16), "shared": (2, 17, 17)}
    check_graph_conv({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, "triton")


@pytest.mark.proves("graph_conv", backend="triton")
def test_triton_graph_conv_of_a_whole_body() -> None:
    """133 joints take another block of channels: with that of 25 joints a product would not fit in shared memory."""
    shape = Shape("whole body", None, (2, 3, 5, 133, 1), 5, subsets=2, width=24, relations=3)
    check_graph_conv(example("graph_conv", Batch(shape, torch.float32, CPU)), "triton")


@st.composite
def norms(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...]) -> dict[str, Any]:
    """Arguments of `batch_norm`, some with means far from zero."""
    size = (draw(st.integers(2, 5)), 3, draw(st.integers(1, 9)), draw(st.integers(1, 9)), 1)
    width = draw(st.sampled_from([1, 6, 8, 24, 48, 64, 100]))
    dtype, seed = draw(st.sampled_from(dtypes)), draw(st.integers(0, 2**31))
    batch = Batch(Shape("drawn", None, size, 5, width=width), dtype, CPU, seed)
    arguments = example("batch_norm", batch)
    level = draw(st.sampled_from([0.0, 5.0]))
    x = (batch.features(width, salt=2).double() + level).to(dtype)
    arguments |= {"weight": batch.weights(width, salt=3), "bias": batch.weights(width, salt=4)}
    arguments["lowest"] = torch.where(batch.weights(width, salt=5) > 0, 0.0, -torch.inf).to(arguments["bias"].dtype)
    arguments["x"] = channels_last(x, spare=3) if draw(st.booleans()) else x.contiguous()
    if draw(st.booleans()):
        arguments["shortcut"] = arguments["shortcut"].contiguous()
    else:
        del arguments["shortcut"]
    return arguments


def check_batch_norm(arguments: dict[str, Any], backend: str) -> None:
    arguments = moved(DEVICE_OF[backend], arguments)
    x, lowest = arguments["x"], arguments["lowest"]
    expected = reference.batch_norm(**arguments)
    found = batch_norm(**arguments, backend=backend)
    assert agree("batch_norm", arguments, list(found), list(expected))
    spread = float(expected[2].clamp(min=1e-5).rsqrt().max())
    bound, *_ = EXAMPLES["batch_norm"].tolerance(arguments, [torch.ones(1), torch.ones(1), expected[2]])

    leaves = {name: value.detach().clone().requires_grad_(name != "lowest") for name, value in arguments.items()}
    result, mean, variance = batch_norm(**leaves, backend=backend)
    assert not mean.requires_grad
    wanted = [leaf for name, leaf in leaves.items() if name != "lowest"]
    grad = torch.randn(result.shape, generator=torch.Generator().manual_seed(0)).to(result)
    to_x, to_shortcut, to_weight, to_bias = reference.batch_norm_backward(
        grad, result.detach(), mean, variance, x, arguments["weight"], lowest
    )
    expected_gradients = [to_x, to_weight, to_bias] + ([to_shortcut] if "shortcut" in arguments else [])
    for left, right in zip(torch.autograd.grad(result, wanted, grad), expected_gradients, strict=True):
        assert left.dtype == right.dtype
        assert float((left.double() - right.double()).abs().max()) <= bound * max(spread, 1.0) * 64


@pytest.mark.proves("batch_norm", backend="cpp")
@MANY
@given(norms(CPP))
def test_batch_norm_of_cpp_is_the_reference(arguments: dict[str, Any]) -> None:
    check_batch_norm(arguments, "cpp")


@pytest.mark.proves("batch_norm", backend="triton")
@FEW
@given(norms(TRITON))
def test_triton_batch_norm_is_the_reference(arguments: dict[str, Any]) -> None:
    check_batch_norm(arguments, "triton")


@pytest.mark.proves("batch_norm", backend="triton")
@pytest.mark.parametrize("rows", [100, 500])
def test_triton_batch_norm_over_many_runs(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of several tiles with a partial last one; a mean so large that float32 has few digits left for the spread."""
    monkeypatch.setattr(import_module("shapmix.kernels.triton_norm"), "PROGRAMS", 4)
    generator = torch.Generator().manual_seed(rows)
    x = 1000 + torch.randn(2, 70, rows, 1, generator=generator)
    ones = torch.ones(70)
    arguments = moved(DEVICE_OF["triton"], {"x": x, "weight": ones, "bias": 0 * ones, "lowest": 0 * ones})
    expected = reference.batch_norm(**{name: value.double() for name, value in arguments.items()})
    results = [batch_norm(**arguments, backend="triton") for _ in range(2)]
    for left, again, right in zip(*results, expected, strict=True):
        assert same_bits(left, again)
        assert relative(left, right) <= 3e-4  # half an ulp of elements and mean, divided by the deviation


def far_from_zero(dtype: torch.dtype) -> dict[str, Tensor]:
    """Inputs [N, C, T, V] that differ by few ulps in float32 or bfloat16, and a first row unlike the others."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(3, 70, 40, 5, generator=generator)
    step = 2.0 ** torch.randint(0, 3, normal.shape, generator=generator)
    cases = {"constant": torch.full_like(normal, 1e8), "a few steps apart": 2.0**26 * (1 + step * torch.finfo(dtype).eps)}
    if dtype == torch.float32:
        cases |= {"1e4": 1e4 + normal, "1e6": 1e6 + 0.1 * normal}
    cases["first row 0"] = (100 + normal).index_fill(2, torch.tensor([0]), 0.0)
    cases["first row 1e6"] = normal.clone()
    cases["first row 1e6"][0, :, 0, 0] = 1e6
    return {name: x.to(dtype) for name, x in cases.items()}


def check_far_from_zero(dtype: torch.dtype, backend: str) -> None:
    """Compared with torch in float64: elements, means and variances keep full precision."""
    device = DEVICE_OF[backend]
    for name, x in far_from_zero(dtype).items():
        x = x.to(device)
        line = torch.linspace(-1, 2, 70, device=device)
        found, mean, variance = batch_norm(x, line, line.flip(0), torch.full_like(line, -torch.inf), backend=backend)
        double = x.double()
        expected = torch.nn.functional.batch_norm(double, None, None, line.double(), line.flip(0).double(), training=True)
        spread, centre = torch.var_mean(double, (0, 2, 3), correction=0)
        rounding = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0.0
        error = (found.double() - expected).abs().max() / expected.abs().max()
        assert float(error) <= 2e-5 + rounding, (name, error)
        assert bool(((mean.double() - centre).abs() <= 1e-6 * spread.sqrt() + 1.2e-7 * centre.abs()).all()), name
        torch.testing.assert_close(variance.double(), spread, rtol=5e-5, atol=0, msg=name)


@on_backends("cpp", "reference", ops=["batch_norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_batch_norm_keeps_its_digits_far_from_zero(dtype: torch.dtype, backend: str) -> None:
    threads = torch.get_num_threads()
    try:
        for several in (1, 3):
            torch.set_num_threads(several)
            check_far_from_zero(dtype, backend)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.proves("batch_norm", backend="triton")
@pytest.mark.parametrize("programs", [4, 1024])
def test_triton_batch_norm_keeps_its_digits_far_from_zero(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("shapmix.kernels.triton_norm"), "PROGRAMS", programs)
    check_far_from_zero(torch.float32, "triton")


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_gradcheck(backend: str) -> None:
    leaves = [value.requires_grad_() for value in graph_arguments().values()]
    assert torch.autograd.gradcheck(lambda *tensors: graph_conv(*tensors, backend=backend), leaves)
    x = torch.randn(3, 6, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shortcut = torch.randn(3, 6, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weight, bias = torch.linspace(-1, 2, 6, dtype=torch.float64), torch.linspace(1, -1, 6, dtype=torch.float64)
    lowest = torch.tensor([0.0, 0.0, 0.0, -torch.inf, -torch.inf, 0.0], dtype=torch.float64)
    leaves = [value.requires_grad_() for value in (x, weight, bias, shortcut)]

    def run(x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor) -> Tensor:
        return batch_norm(x, weight, bias, lowest, shortcut=shortcut, backend=backend)[0]

    assert torch.autograd.gradcheck(run, leaves)


def test_opcheck() -> None:
    arguments = [value.requires_grad_() for value in graph_arguments().values()]
    torch.library.opcheck(torch.ops.shapmix.graph_conv.default, (*arguments, None, None, None))
    detached = [value.detach() for value in arguments]
    torch.library.opcheck(
        torch.ops.shapmix.graph_conv.default, (*detached, torch.zeros(8).double(), torch.zeros(2, 8, 4, 5).double(), None)
    )
    grad = torch.ones(2, 8, 4, 5, dtype=torch.float64)
    torch.library.opcheck(torch.ops.shapmix.graph_conv_backward.default, (grad, *detached, None))
    x, weight, bias = torch.randn(2, 8, 3, 3).requires_grad_(), torch.ones(8).requires_grad_(), torch.ones(8).requires_grad_()
    norm = (x, weight, bias, torch.zeros(8), torch.randn(2, 8, 3, 3), 1e-5, None)
    torch.library.opcheck(torch.ops.shapmix.batch_norm.default, norm)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_no_bit_of_the_result(threads: int) -> None:
    """Rows are independent; the summation order of parameter gradients depends on the number of threads."""
    arguments = {name: value.float() for name, value in graph_arguments(channels=64).items()}
    arguments["features"] = torch.randn(7, 192, 33, 5)
    arguments["relation_terms"] = torch.randn(7, 5, 2, 3, 2)
    before = torch.get_num_threads()
    expected = graph_conv(**arguments, backend="cpp")
    torch.set_num_threads(threads)
    try:
        assert same_bits(graph_conv(**arguments, backend="cpp"), expected)
        leaves = [value.clone().requires_grad_() for value in arguments.values()]
        results = [torch.autograd.grad(graph_conv(*leaves, backend="cpp").square().sum(), leaves) for _ in range(2)]
        assert all(same_bits(left, right) for left, right in zip(*results, strict=True))
    finally:
        torch.set_num_threads(before)


def test_what_is_not_a_number_stays_so() -> None:
    arguments = graph_arguments(torch.float32)
    arguments["features"][1, 3, 2, 1] = torch.nan
    found = graph_conv(**arguments, offset=torch.zeros(8), backend="cpp")
    assert found.isnan().nonzero()[:, :3].unique(dim=0).tolist() == [[1, 3, 2]]
    x = torch.zeros(2, 8, 3, 3)
    x[0, 5] = torch.nan
    result, _, _ = batch_norm(x, torch.ones(8), torch.zeros(8), torch.zeros(8), backend="cpp")
    assert result.isnan().any(0).any(1).any(1).nonzero().flatten().tolist() == [5]


ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "12 channels": ({"weight": torch.zeros(3, 2, 12)}, ValueError, "weight has 12 channels; give a multiple of 8"),
    "features of 2 subsets": (
        {"features": torch.zeros(2, 16, 4, 5)},
        ValueError,
        r"features has shape \[2, 16, 4, 5\]; give \[2, 24, 4, 5\]",
    ),
    "terms of a side": ({"relation_terms": torch.zeros(2, 5, 3, 2)}, ValueError, "relation_terms has shape"),
    "double weight": ({"weight": torch.zeros(3, 2, 8).double()}, TypeError, "weight is torch.float64; give torch.float32"),
    "graphs of 4 joints": ({"shared": torch.zeros(3, 4, 4)}, ValueError, r"shared has shape \[3, 4, 4\]; give \[3, 5, 5\]"),
    "a shortcut alone": ({"shortcut": torch.zeros(2, 8, 4, 5)}, ValueError, "shortcut is given without an offset"),
}


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("case", ERRORS)
def test_bad_arguments_are_named(case: str, backend: str) -> None:
    changes, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        graph_conv(**graph_arguments(torch.float32) | changes, backend=backend)


def test_bad_norms_are_named() -> None:
    x, ones = torch.zeros(2, 8, 3, 3), torch.ones(8)
    with pytest.raises(ValueError, match=r"lowest has shape \[7\]; give \[8\]"):
        batch_norm(x, ones, ones, ones[:7])
    with pytest.raises(TypeError, match="shortcut is torch"):
        batch_norm(x, ones, ones, ones, shortcut=x.double())
    with pytest.raises(ValueError, match="offset is given but a gradient is required"):
        graph_conv(**{name: value.requires_grad_() for name, value in graph_arguments().items()}, offset=torch.zeros(8).double())
