"""The other backbones accept any layout, depend on all of a clip, and have the published number of parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from shapmix import load_layout, networks, train
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
