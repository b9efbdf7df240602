"""Every C++ op on several threads, on a batch so large that each of them has work: it agrees with the reference.

The other tests run on one thread where several processes share the cores.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from shapmix import reference
from shapmix.kernels import balanced_mix_loss, batch_norm, unavailable
from shapmix.kernels.agreement import agrees
from shapmix.kernels.dispatch import OPS
from shapmix.kernels.examples import Batch, Shape
from tests.proofs import CPU

LARGE = Shape("threads", "ntu25", (64, 3, 64, 25, 2), 2048)  # over 128 KiB for each of five threads
pytestmark = pytest.mark.skipif(unavailable("cpp", CPU) is not None, reason=f"cpp: {unavailable('cpp', CPU)}")


@pytest.fixture(params=[2, 5], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("op", OPS)
def test_an_op_is_the_reference(op: str) -> None:
    assert agrees(op, Batch(LARGE, torch.float32, CPU), "cpp")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def channels_last(n: int, channels: int, frames: int, joints: int, seed: int) -> Tensor:
    return random(n, frames, joints, channels, seed=seed).permute(0, 3, 1, 2).requires_grad_()


def test_moments_of_several_threads_are_joined_without_a_loss_of_digits() -> None:
    x = 1e4 + channels_last(16, 64, 32, 25, 0).detach()
    x[8:] += 3  # the threads see other means
    one = torch.ones(64)
    _, mean, variance = batch_norm(x, one, one, torch.full((64,), -torch.inf), backend="cpp")
    spread, centre = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), centre, rtol=2e-7, atol=0)
    torch.testing.assert_close(variance.double(), spread, rtol=2e-6, atol=0)


def test_gradients_of_a_batch_norm_are_those_of_the_reference() -> None:
    x, shortcut = (channels_last(16, 64, 32, 25, seed) for seed in (0, 1))
    weight, bias = (random(64, seed=seed).requires_grad_() for seed in (2, 3))
    lowest, upstream = torch.zeros(64), random(16, 64, 32, 25, seed=4)
    found, expected = (
        torch.autograd.grad((y * upstream.to(y)).sum(), inputs)
        for y, inputs in (
            (batch_norm(x, weight, bias, lowest, shortcut=shortcut, backend="cpp")[0], (x, weight, bias, shortcut)),
            wide_norm(x, weight, bias, lowest, shortcut),
        )
    )
    for mine, theirs in zip(found, expected, strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) <= 1e-5


def wide_norm(x: Tensor, weight: Tensor, bias: Tensor, lowest: Tensor, shortcut: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The norm of the reference in float64, with the inputs that it differentiates."""
    inputs = tuple(value.detach().double().requires_grad_() for value in (x, weight, bias, shortcut))
    wide, of_weight, of_bias, of_shortcut = inputs
    y, *_ = reference.batch_norm(wide, of_weight, of_bias, lowest.double(), shortcut=of_shortcut)
    return y, inputs


def test_gradients_of_a_loss_are_those_of_the_reference() -> None:
    logits, labels = random(4096, 120).requires_grad_(), torch.arange(2048) % 120
    arguments = (labels, labels.roll(7), torch.rand(2048, generator=torch.Generator().manual_seed(1)), random(120, seed=2))
    found = torch.autograd.grad(sum(balanced_mix_loss(logits, *arguments, backend="cpp")), logits)[0]
    expected = torch.autograd.grad(sum(reference.balanced_mix_loss(logits, *arguments)), logits)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("clips", [1, 8])
def test_an_expanded_shortcut_is_that_of_its_copy(clips: int) -> None:
    """A stride of zero is no missing stride."""
    x, shortcut = channels_last(clips, 8, 4, 5, 0).detach(), random(8, seed=1)[:, None, None].expand(clips, 8, 4, 5)
    copied = shortcut.contiguous(memory_format=torch.channels_last)
    one, low = torch.ones(8), torch.full((8,), -torch.inf)
    for whole, part in zip(*(batch_norm(x, one, one, low, shortcut=s, backend="cpp") for s in (copied, shortcut)), strict=True):
        torch.testing.assert_close(part, whole, rtol=0, atol=0)
