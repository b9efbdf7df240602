"""The table of backbones: counted figures are the published ones, and the page shows them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bench import backbones
from bench.backbones import PUBLISHED, Published, as_published
from shapmix.networks.backbones import BACKBONES, Backbone

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"


@pytest.mark.parametrize("name", PUBLISHED)
def test_figures_are_the_published_ones(name: str) -> None:
    """To the last digit that is published."""
    published, size = PUBLISHED[name], backbones.size_of(name)
    assert published.parameters is not None or published.flops is not None
    if published.parameters is not None:
        assert as_published(size.parameters, published.millions, published.parameters) == published.parameters
    if published.flops is not None:
        counted = size.flops + published.left_out
        assert as_published(counted, published.billions, published.flops) == published.flops


def test_the_page_has_the_table_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    backbones.main()
    printed = capsys.readouterr().out.strip()
    assert printed in PAGE.read_text(), "replace the table of docs/backbones.md: python -m bench.backbones"


def test_multiplications_and_norms_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def two_products(**arguments: object) -> nn.Module:
        return nn.Sequential(nn.Flatten(0, 3), nn.Linear(2, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 1))

    monkeypatch.setitem(BACKBONES, "two", Backbone(two_products, on_device=False, options=()))
    monkeypatch.setitem(PUBLISHED, "two", Published(None, None, "this test", frames=4))
    rows = 3 * 4 * 25
    assert backbones.size_of("two") == (2 * 5 + 5 + 5 + 5 + 5 + 1, rows * (2 * 5 + 2 * 5 + 5))
    assert torch.get_default_device() == torch.device("cpu")
