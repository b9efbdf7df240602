"""`bench.product_rate`: the counted products, and a line per layer."""

from __future__ import annotations

import pytest
import torch

from bench import product_rate


def test_products_are_those_of_the_dense_computation() -> None:
    """Of one row, 2 frames, 3 joints, 1 subset, 8 channels and 4 relations: 9 edges times 8 channels, two FLOPs per product."""
    assert product_rate.flops((1, 2, 3, 1), 8, 4) == (2 * 72 * (2 + 4), 2 * 72 * (2 * 2 + 3 * 4))


def test_prints_a_line_per_layer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(product_rate, "LAYERS", ((8, 3, 2), (16, 2, 8)))
    monkeypatch.setattr(product_rate, "SIDE", 32)
    threads = torch.get_num_threads()
    product_rate.main(["--rows", "2", "--joints", "5", "--rounds", "2"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("channels   8 frames  3 relations  2  forward")
    assert "backward" in first
    assert "of mm" in second
    assert torch.get_num_threads() == threads
