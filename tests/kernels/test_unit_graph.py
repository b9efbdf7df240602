"""Relations and graph unit of a fused layer in Triton, forward and backward, against the reference."""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shapmix.kernels import unavailable
from shapmix.reference import layer
from tests.kernels.backends import FEW, FEW_EXAMPLES, TRITON
from tests.kernels.layers import Draw, Shape, check, check_moments, check_sums, run
from tests.proofs import DEVICE_OF

pytest.importorskip("triton", reason="triton is not installed")
unit = import_module("shapmix.kernels.triton_unit_graph")
relations = import_module("shapmix.kernels.triton_unit_relations")
DEVICE = DEVICE_OF["triton"]
REASON = unavailable("triton", DEVICE)
pytestmark = [pytest.mark.triton, pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"triton: {REASON}")]
SOME = settings(FEW, max_examples=min(8, FEW_EXAMPLES))  # the interpreter is slow


class Graphs(NamedTuple):
    """The numbers of subsets and relations."""

    subsets: int
    relations: int


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Of 133 joints only a few channels and frames, which take long in the interpreter."""
    joints = draw(st.sampled_from([2, 13, 17, 25, 133]))
    many = joints > 32
    return Shape(
        clips=draw(st.integers(1, 1 if many else 3)),
        frames=draw(st.integers(1, 2 if many else 19)),
        joints=joints,
        channels=draw(st.sampled_from([8] if many else [8, 16, 24])),
        inputs=draw(st.sampled_from([3, 8, 24])),
        stride=draw(st.sampled_from([1, 2])),
        dtype=draw(st.sampled_from(TRITON)),
        seed=draw(st.integers(0, 2**31)),
    )


GRAPHS = st.builds(Graphs, subsets=st.sampled_from([1, 3]), relations=st.sampled_from([1, 2, 8, 20, 32]))


def unit_arguments(draw: Draw, shape: Shape, graphs: Graphs) -> tuple[Tensor, ...]:
    """x, factors, w3, b3, w4, b4, alpha, shared."""
    clips, frames, joints, channels, inputs = shape[:5]
    subsets, count = graphs
    return (
        draw.elements(clips, frames, joints, inputs),
        draw.elements(clips, subsets, joints, joints, count).tanh(),
        draw.weight(subsets, channels, inputs, inputs=inputs),
        draw.wide(subsets, channels),
        draw.weight(subsets, channels, count, inputs=count),
        draw.wide(subsets, channels),
        draw.wide(1),
        draw.wide(subsets, joints, joints),
    )


def check_graph_unit(shape: Shape, graphs: Graphs) -> None:
    draw = Draw(shape)
    arguments = unit_arguments(draw, shape, graphs)
    y, moments = layer.graph_unit(*arguments)
    (found_y, found_moments), _ = run(unit.graph_unit, *arguments, device=DEVICE)
    check(found_y, y, shape.dtype)
    check_moments(found_moments, moments, shape.dtype)


def check_folded_graph_unit(shape: Shape, graphs: Graphs, has_down: bool) -> None:
    shape = shape if has_down else shape._replace(inputs=shape.channels)
    draw = Draw(shape)
    arguments = unit_arguments(draw, shape, graphs)
    y = layer.graph_unit(*arguments)[0]
    norm = draw.norm(layer.wide(y).std(correction=0) * draw.wide(64, shape.channels))  # of few rows of y, a variance may be about 0
    options: dict[str, Tensor] = {}
    if has_down:
        down = draw.weight(shape.channels, shape.inputs, inputs=shape.inputs)
        options = {"down": down, "down_norm": draw.norm(draw.wide(64, shape.channels))}
    found, _ = run(unit.folded_graph_unit, *arguments, norm, device=DEVICE, **options)
    check(found, layer.folded_graph_unit(*arguments, norm, **options), shape.dtype)


def check_graph_unit_backward(shape: Shape, graphs: Graphs, steep: float = 1.0) -> None:
    draw = Draw(shape)
    arguments = unit_arguments(draw, shape, graphs)
    y = layer.graph_unit(*arguments)[0]
    of_y = (draw.elements(*y.shape), y, draw.norm(y), steep * draw.summed(y))
    found, _ = run(unit.graph_unit_backward, *of_y, *arguments, device=DEVICE)
    expected = layer.graph_unit_backward(*of_y, *arguments)
    for left, right in zip(found[:2], expected[:2], strict=True):
        check(left, right, shape.dtype, factor=2)
    for left, right in zip(found[2:], expected[2:], strict=True):
        check_sums(left, right, shape.dtype, factor=2)


def check_relations(shape: Shape, graphs: Graphs) -> None:
    draw = Draw(shape)
    clips, joints, inputs = shape.clips, shape.joints, shape.inputs
    subsets, count = graphs
    pooled, bias = draw.wide(clips, joints, inputs), draw.wide(2, subsets, count)
    weight = draw.wide(2, subsets, count, inputs) / inputs**0.5
    factors = layer.relations(pooled, weight, bias, shape.dtype)
    found, _ = run(relations.relations, pooled, weight, bias, shape.dtype, device=DEVICE)
    check(found, factors, shape.dtype)

    arguments = (draw.wide(*factors.shape), factors, pooled, weight)
    found, _ = run(relations.relations_backward, *arguments, device=DEVICE)
    expected = layer.relations_backward(*arguments)
    check(found[0], expected[0], pooled.dtype)
    check_sums(found[1], expected[1], pooled.dtype)


@SOME
@given(shapes(), GRAPHS)
def test_relations(shape: Shape, graphs: Graphs) -> None:
    check_relations(shape, graphs)


@SOME
@given(shapes(), GRAPHS)
def test_graph_unit(shape: Shape, graphs: Graphs) -> None:
    check_graph_unit(shape, graphs)


@SOME
@given(shapes(), GRAPHS, st.booleans())
def test_folded_graph_unit(shape: Shape, graphs: Graphs, has_down: bool) -> None:
    check_folded_graph_unit(shape, graphs, has_down)


@SOME
@given(shapes(), GRAPHS)
def test_graph_unit_backward(shape: Shape, graphs: Graphs) -> None:
    check_graph_unit_backward(shape, graphs)


def test_rows_share_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than programs of the backward passes, and a last program of fewer rows."""
    monkeypatch.setattr(unit, "PROGRAMS", 2)
    monkeypatch.setattr(relations, "PARTS", 2)
    shape, graphs = Shape(5, 2, 17, 8, 8, 1, torch.float32, seed=0), Graphs(1, 2)
    check_relations(shape, graphs)
    check_graph_unit_backward(shape, graphs)


@pytest.mark.slow
def test_many_joints() -> None:
    """Several blocks of joints, channels and frames."""
    shape, graphs = Shape(2, 35, 133, 24, 24, 2, torch.float32, seed=0), Graphs(3, 8)
    check_relations(shape, graphs)
    check_graph_unit(shape, graphs)
    check_graph_unit_backward(shape, graphs)


def test_wide_layers() -> None:
    """More channels in and out than a block of each kernel."""
    shape = Shape(1, 2, 5, 40, 136, 1, torch.float32, seed=0)
    graphs = Graphs(2, 40)
    check_graph_unit(shape, graphs)
    check_folded_graph_unit(shape, graphs, has_down=True)
    check_graph_unit_backward(shape, graphs)
    check_relations(shape, graphs)


@pytest.mark.parametrize("steep", [1.0, 5e3])
def test_slopes_of_the_norm_in_float16(steep: float) -> None:
    """Of many rows they are smaller than float16's normal numbers, and of large gradients large; the gradient of alpha is the first
    to show it, since its terms nearly cancel."""
    check_graph_unit_backward(Shape(2, 35, 25, 72, 48, 1, torch.float16, seed=0), Graphs(3, 8), steep)
