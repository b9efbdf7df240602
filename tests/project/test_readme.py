"""What the README shows works as it is written."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


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
        "epochs": 2,
    }
    exec(code, scope)
    assert torch.isfinite(scope["loss"])
    assert not torch.equal(network[1].weight, before)
    assert (scope["mixer"].saliency.max(1).values > 1e-6).any()


def test_it_is_short_and_begins_with_what_people_need() -> None:
    lines = README.splitlines()
    assert len(lines) <= 130
    commands = [index for index, line in enumerate(lines) if line.startswith(("pip install", "python -m"))]
    assert [lines[index].partition(" && ")[2] for index in commands] == [
        "python -m shapmix.train --baselines plain",
        "pytest -n auto --dist loadfile",
    ]
    assert next(index for index, line in enumerate(lines) if "ShapMix(" in line) < 60


def test_its_table_of_speed_is_that_of_the_speed_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "speed.md").read_text(encoding="utf-8")
    rows = [line for line in README.splitlines() if re.match(r"\| (coalition|training|whole|peak)", line)]
    assert len(rows) == 4
    assert all(row in page for row in rows)


def test_every_file_that_is_linked_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links
    for link in links:
        assert (Path(__file__).parents[2] / link).exists(), link
