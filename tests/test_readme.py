"""What the README shows works as it is written."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from shapmix import load_layout

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_plug_in_lines_train_a_network_of_the_users_own() -> None:
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "ShapMix(" in block)
    torch.manual_seed(0)
    clips, labels = torch.randn(12, 3, 16, 25, 2), torch.arange(12) % 3
    network = nn.Sequential(nn.Flatten(), nn.Linear(clips[0].numel(), 3))
    before = network[1].weight.detach().clone()
    scope = {
        "network": network,
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.1),
        "class_counts": torch.tensor([30, 20, 4]),
        "mean_motion": clips.mean(0),
        "loader": [(clips, labels)] * 3,
    }
    exec(code, scope)
    assert torch.isfinite(scope["loss"])
    assert not torch.equal(network[1].weight, before)
    assert (scope["mixer"].saliency.max(1).values > 1e-6).any()


def test_the_explanation_lines_explain_that_network() -> None:
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "PartGame(" in block)
    torch.manual_seed(0)
    clips, labels = torch.randn(4, 3, 16, 25, 2), torch.arange(4) % 3
    network = nn.Sequential(nn.Flatten(), nn.Linear(clips[0].numel(), 3))
    scope = {
        "network": network,
        "layout": load_layout("ntu25"),
        "mean_motion": clips.mean(0),
        "clips": clips,
        "labels": labels,
        "names": list("abcd"),
    }
    exec(code, scope)
    found = scope["found"]
    torch.testing.assert_close(found.parts.sum(1), found.full_values - found.base_values)


def test_every_file_that_is_linked_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links
    for link in links:
        assert (Path(__file__).parent.parent / link).exists(), link
