"""The other backbones accept any layout, depend on all of a clip, and have the published number of parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from shapmix import load_layout, networks, train
from shapmix.networks import fused_norm
from shapmix.networks.fold import Folded

MAKERS = [networks.stgcn, networks.aagcn, networks.attention]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("layout", "people", "frames"), [("ntu25", 2, 8), ("coco17", 2, 9), ("ucla20", 1, 5)])
def test_any_layout_is_mapped_to_logits(make: Callable[..., nn.Module], layout: str, people: int, frames: int) -> None:
    torch.manual_seed(0)
    skeleton = load_layout(layout)
    network = make(skeleton, 7, num_people=people, in_channels=3)
    clips = torch.randn(2, 3, frames, skeleton.num_joints, people, requires_grad=True)
    logits = network(clips)
    assert logits.shape == (2, 7)
    logits[1].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
    assert (clips.grad[1].abs().sum((0, 1, 3)) > 0).all()  # every joint matters
    assert (clips.grad[1].abs().sum((0, 2, 3)) > 0).all()  # and every frame
    network.eval()
    with torch.no_grad():
        one = network(clips[1:2])
        torch.testing.assert_close(one, network(clips)[1:2], rtol=1e-4, atol=1e-5)  # clips are independent
        swapped = network(clips[1:2].flip(4)) if people == 2 else one
        assert torch.isfinite(swapped).all()


@pytest.mark.parametrize(
    ("make", "millions"),
    [
        (networks.stgcn, 3.10),  # 3.1 M: MMAction2's model zoo and the table of CTR-GCN's paper
        (networks.aagcn, 3.77),  # 3.77 M: MMAction2's model zoo, 2s-AGCN with its attention
    ],
)
def test_sizes_are_the_published_ones(make: Callable[..., nn.Module], millions: float) -> None:
    network = make(load_layout("ntu25"), 60, num_people=2)
    count = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("make", MAKERS)
def test_folding_is_exact(make: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    layout = load_layout("ucla20")
    network = make(layout, 5, num_people=1)
    clips = torch.randn(2, 3, 8, 20, 1)
    network(clips)
    network.eval()
    folded = Folded(network).refresh()
    with torch.no_grad():
        torch.testing.assert_close(folded(clips), network(clips), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("small_runs")
def test_the_trainer_takes_them(tmp_path: object) -> None:
    options = ["--num-frames", "8", "--n-max", "8", "--imbalance", "4", "--batch-size", "8", "--epochs", "1", "--mix", "none"]
    options += ["--network.backbone", "stgcn", "--threads", "1", "--run-dir", f"{tmp_path}/run"]
    assert train.main(options) == 0


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("make", MAKERS)
def test_fused_norms_are_the_modules(make: Callable[..., nn.Module], dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training pass with gradients and running statistics, against the same network whose norms are modules."""
    if dropout and make is not networks.stgcn:
        pytest.skip("it has no dropout")
    options = {"dropout": dropout} if dropout else {}
    torch.manual_seed(0)
    ours = make(load_layout("coco17"), 5, num_people=2, **options).double()
    for parameter in ours.parameters():
        if not parameter.any():  # gates and alpha, which begin at zero
            nn.init.normal_(parameter, 0, 0.2)
    theirs, clips = copy.deepcopy(ours), torch.randn(2, 3, 9, 17, 2, dtype=torch.float64)
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x.sin() if self.p else x)  # draws in the order of memory
    calls = []
    original = fused_norm.batch_norm
    monkeypatch.setattr(fused_norm, "batch_norm", lambda *given, **options: calls.append(1) or original(*given, **options))
    results = []
    for network in (ours, theirs):
        if network is theirs:
            monkeypatch.setattr(fused_norm, "_is_plain_norm", lambda _norm: False)
        logits = network(clips)
        logits.square().sum().backward()
        results.append((logits.detach(), len(calls)))
    (found, fused), (expected, after) = results
    assert fused == after
    assert fused >= 8
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for (name, a), b in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-7, atol=1e-9 * max(1.0, float(a.grad.abs().max())), msg=name)
    for (name, a), b in zip(theirs.named_buffers(), ours.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("make", [networks.stgcn, networks.aagcn])
def test_hooks_and_frozen_norms_are_respected(make: Callable[..., nn.Module]) -> None:
    network = make(load_layout("coco17"), 5, num_people=1)
    clips, seen = torch.randn(2, 3, 8, 17, 1), []
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    handles = [norm.register_forward_hook(lambda *_: seen.append(1)) for norm in norms]
    network(clips)
    assert len(seen) == len(norms)
    for handle, norm in zip(handles, norms, strict=True):
        handle.remove()
        norm.eval()
    before = [norm.running_mean.clone() for norm in norms]
    network(clips)
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
