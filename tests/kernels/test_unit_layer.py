"""CTR-GCN through the Triton kernels of fused layers, compared with the reference network."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from shapmix.kernels import steps, unavailable
from shapmix.networks import ctrgcn, ctrgcn_layer, ctrgcn_reference
from shapmix.skeleton.layout import load_layout
from tests.proofs import DEVICE_OF

DEVICE = DEVICE_OF["triton"]
REASON = unavailable("triton", DEVICE)
pytestmark = [pytest.mark.triton, pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"triton: {REASON}")]


@pytest.fixture(autouse=True)
def on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAPMIX_BACKEND", "triton")


def networks(dtype: torch.dtype, **options: object) -> tuple[ctrgcn_reference.CTRGCN, ctrgcn.CTRGCN]:
    torch.manual_seed(0)
    arguments = {"num_people": 1, "widths": (8, 16), "halve": [1], **options}
    theirs = ctrgcn_reference.CTRGCN(load_layout("coco17"), 5, **arguments).to(DEVICE, dtype)
    for name, parameter in theirs.named_parameters():
        nn.init.normal_(parameter, 0.5 if "bn.weight" in name or name.endswith(("1.weight", "4.weight")) else 0, 0.3)
    ours = ctrgcn.CTRGCN(load_layout("coco17"), 5, **arguments).to(DEVICE, dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)])
def test_the_network_is_the_reference(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    theirs, ours = networks(dtype)
    clips = torch.randn(2, 3, 4, 17, 1, device=DEVICE, dtype=dtype)
    assert ours.steps_on(clips) is not None
    bound = 1e-9 if dtype == torch.float64 else 2e-4
    results = [network(clips) for network in (theirs, ours)]
    torch.testing.assert_close(results[1], results[0], rtol=bound, atol=bound)
    for result in results:
        result.square().mean().backward()
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
    for (name, a), b in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=10 * bound, atol=bound * largest, msg=name)
    for (name, a), b in zip(theirs.named_buffers(), ours.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=bound, atol=bound, msg=name)
    theirs.eval()
    ours.eval()
    with torch.no_grad():
        assert ours.steps_on(clips) is not None
        torch.testing.assert_close(ours(clips), theirs(clips), rtol=bound, atol=bound)


@pytest.mark.slow
def test_a_step_repeats_to_the_bit() -> None:
    _, ours = networks(torch.float32)
    clips = torch.randn(2, 3, 4, 17, 1, device=DEVICE)
    gradients = []
    for network in (ours, copy.deepcopy(ours)):
        network(clips).square().mean().backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("dtype", "kilobytes", "is_fused"), [("float64", 99, False), ("float64", 163, True), ("float32", 99, True)]
)
def test_float64_is_fused_where_it_fits(dtype: str, kilobytes: int, is_fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setattr(steps, "choose", lambda *_: "triton")
    card = SimpleNamespace(shared_memory_per_block_optin=kilobytes << 10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: card)
    x: Any = SimpleNamespace(dtype=getattr(torch, dtype), is_cuda=True, device="cuda:0")
    assert (steps.layer_steps(x) is not None) == is_fused


def test_what_is_not_the_published_layer_runs_op_by_op() -> None:
    _, ours = networks(torch.float32)
    clips = torch.zeros(1, 3, 5, 17, 1, device=DEVICE)
    assert ours.steps_on(clips) is not None
    handle = ours.layers[0].gcn1.register_forward_hook(lambda *_: None)
    assert ours.steps_on(clips) is None, "a hook would not be called"
    handle.remove()
    ours.layers[1].tcn1.eval()
    assert ours.steps_on(clips) is None, "a part in eval mode"
    ours.eval()
    assert ours.steps_on(clips) is None, "gradients in eval mode"
    with torch.no_grad():
        assert ours.steps_on(clips) is not None
        handle = ours.data_bn.register_forward_hook(lambda *_: None)
        assert ours.steps_on(clips) is None, "a hook on the input norm"
        handle.remove()
        ours.data_bn.eps = 1e-3
        assert ours.steps_on(clips) is None, "norms of different eps"
    ours.train()
    ours.layers[0].gcn1.bn.momentum = 0.5
    assert ours.steps_on(clips) is None, "norms of different momentum"
    ours.layers[0].gcn1.bn.momentum = 0.1
    assert ours.steps_on(clips) is not None
    widest = ctrgcn_layer.WIDEST
    assert not ctrgcn_layer.can_be_fused(ctrgcn.CTRGCN(load_layout("coco17"), 3, widths=(widest + 8,)).layers, ours.data_bn, True)
    assert ctrgcn_layer.can_be_fused(ctrgcn.CTRGCN(load_layout("coco17"), 3, widths=(widest,)).layers, ours.data_bn, True)
    ours.layers[0].gcn1.bn = nn.Identity()
    assert ours.steps_on(clips) is None, "a norm was replaced"
