"""Convolutions in the shapes that oneDNN computes fastest, compared with torch's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv2d

from shapmix.networks.convolution import convolution, pointwise

CHANNELS_LAST = torch.channels_last


@settings(max_examples=25)
@given(
    n=st.integers(1, 17),
    frames=st.integers(1, 12),
    joints=st.sampled_from([1, 3, 17, 25]),
    size=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 3),
    with_bias=st.booleans(),
)
def test_values_and_gradients_are_those_of_torch(
    n: int, frames: int, joints: int, size: int, stride: int, dilation: int, with_bias: bool
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, (size, 1), (stride, 1), (dilation * (size - 1) // 2, 0), (dilation, 1), bias=with_bias)
    x = torch.randn(n, 4, frames, joints).contiguous(memory_format=CHANNELS_LAST).requires_grad_()
    wanted = [x, *conv.parameters()]
    found, expected = convolution(x, conv.weight, conv.bias, conv), conv(x)
    assert found.is_contiguous(memory_format=CHANNELS_LAST)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(expected)
    for ours, theirs in zip(torch.autograd.grad(found, wanted, grad), torch.autograd.grad(expected, wanted, grad), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_second_derivatives_are_those_of_torch() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(2, 4, 3, 5), torch.randn(6, 4, 1, 1), torch.randn(6)]
    for tensor in tensors:
        tensor.requires_grad_()
    seconds = []
    for function in (pointwise, conv2d):
        loss = function(*tensors).pow(3).sum()
        first = torch.autograd.grad(loss, tensors, create_graph=True)
        seconds.append(torch.autograd.grad(sum(gradient.square().sum() for gradient in first), tensors))
    for ours, theirs in zip(*seconds, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-2)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_few_rows_are_convolved_by_onednn() -> None:
    """With fewer than 16 images and one thread, torch's own call takes a slow path."""
    x, weight = torch.randn(2, 8, 16, 25, requires_grad=True), torch.randn(16, 8, 1, 1)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            pointwise(x, weight).sum().backward()
    finally:
        torch.set_num_threads(threads)
    called = {event.key for event in profile.key_averages()}
    assert "aten::mkldnn_convolution" in called
    assert not [name for name in called if "slow_conv2d" in name]
