"""Training with augmentation: the command trains, and a run that was cut goes on bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shapmix import train
from shapmix.data.clips import Splits
from shapmix.training import build
from shapmix.training.eager_step import EagerStep

TINY = ["--num-frames", "8", "--network.widths", "8", "--batch-size", "8", "--epochs", "2", "--threads", "1", "--device", "cpu"]
TINY += ["--mix", "none", "--eval-every", "2", "--checkpoint.every-steps", "2"]
EVERYTHING = ["--augment.mirror", "0.5", "--augment.swap", "0.2", "--augment.scale", "0.9", "1.1", "--augment.shear", "0.1"]
EVERYTHING += ["--augment.rotation", "0.2", "--augment.jitter", "0.01", "--augment.reverse", "0.2", "--augment.speed", "0.8", "1.2"]
EVERYTHING += ["--augment.part-drop", "0.1", "--augment.joint-drop", "0.1"]

pytestmark = pytest.mark.usefixtures("small_data", "no_pictures")


def weights(run: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(Path(run) / "checkpoints/last.pt", weights_only=True)["network"]
    return found


def test_an_augmented_run_goes_on_bit_for_bit(small_splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train.main([*TINY, "--run-dir", "plain"]) == 0
    assert train.main([*TINY, *EVERYTHING, "--run-dir", "whole"]) == 0
    step, calls = EagerStep.forward_backward, iter(range(10_000))

    def cut_off(self: EagerStep, batch: object) -> tuple[Tensor, Tensor, Tensor]:
        if next(calls) == len(small_splits.train) // 8 + 2:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(EagerStep, "forward_backward", cut_off)
    assert train.main([*TINY, *EVERYTHING, "--run-dir", "cut"]) == 130
    assert train.main(["--resume", "cut"]) == 0
    whole, cut, plain = weights("whole"), weights("cut"), weights("plain")
    assert all(torch.equal(cut[key], value) for key, value in whole.items())
    assert any(not torch.equal(plain[key], value) for key, value in whole.items())


def test_a_layout_without_sides_is_refused_before_a_run_is_made(
    small_splits: Splits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    joints = small_splits.store.layout.num_joints
    layout = replace(small_splits.store.layout, name="one-sided", flips=tuple(range(joints)))
    one_sided = replace(small_splits, store=replace(small_splits.store, layout=layout))
    monkeypatch.setattr(build, "read_splits", lambda config: one_sided)
    assert train.main([*TINY, "--augment.mirror", "0.5", "--run-dir", "run"]) == 2
    assert "error: augment.mirror: layout 'one-sided' has no left-right pairs" in capsys.readouterr().err
    assert not Path("run").exists()
