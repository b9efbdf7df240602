"""The count of denormal numbers, and the benchmark of flushing them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import denormals

SMALL = ["--n-max", "8", "--imbalance", "2", "--num-frames", "8", "--network.widths", "8", "--batch-size", "8"]


def test_denormals_are_counted_whether_or_not_they_are_flushed() -> None:
    values = torch.tensor([0.0, -0.0, 1e-40, -1e-45, 1.2e-38, 1.0, float("nan"), float("inf")])
    try:
        for flush in (False, True):
            torch.set_flush_denormal(flush)
            assert denormals.denormals(values) == 2
    finally:
        torch.set_flush_denormal(False)


def test_all_values_of_a_step_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denormals, "CASES", {"small": SMALL})
    before = torch.get_num_threads()
    try:
        denormals.main(["--out", str(tmp_path / "found.json"), "--steps", "1", "--rounds", "1"])
    finally:
        torch.set_num_threads(before)
    case = json.loads((tmp_path / "found.json").read_text())["cases"]["small"]
    kinds = {"activations", "gradients of activations", "weights", "gradients of weights", "optimizer state", "buffers"}
    assert set(case["denormals"]) == kinds
    assert all(0 <= entry["denormal"] < entry["values"] for entry in case["denormals"].values())
    assert case["denormals"]["gradients of weights"]["values"] == case["denormals"]["weights"]["values"]
    assert set(case["seconds"]) == {"kept", "flushed", "kept / flushed"}
