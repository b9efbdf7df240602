"""Which precision the doctor recommends for training on the CPU: the faster of both, by interleaved passes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from shapmix import doctor
from shapmix.kernels import installation
from shapmix.training import precision


@pytest.mark.parametrize(
    ("fp32", "bf16", "told"),
    [
        ([1.0, 1.0, 1.0], [6.5, 6.5, 6.5], "bf16 takes 6.50 times as long as fp32: train in fp32, the default"),
        ([1.0, 1.0, 1.0], [0.5, 0.5, 0.5], "bf16 takes 0.50 times as long as fp32: train with --precision bf16"),
        ([1.0, 1.0, 1.0], [0.97, 0.97, 0.97], "bf16 takes 0.97 times as long as fp32: train in fp32, the default"),
        # the machine became five times slower in the second round, and a pass of the third was held up
        ([1.0, 5.0, 9.0], [2.0, 10.0, 2.0], "bf16 takes 2.00 times as long as fp32: train in fp32, the default"),
    ],
)
def test_the_recommendation_is_of_ratios_within_a_round(
    fp32: list[float], bf16: list[float], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: Iterator[float] = iter([1.0, 99.0, *(each for pair in zip(fp32, bf16, strict=True) for each in pair)])  # after a warm-up
    monkeypatch.setattr(precision, "pass_seconds", lambda *given: next(taken))
    assert precision.recommended(seconds=0.0) == told


def test_both_precisions_are_passed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    forward = precision.CTRGCN.forward

    def watched(self: precision.CTRGCN, clips: torch.Tensor) -> torch.Tensor:
        logits = forward(self, clips)
        seen.append(logits.dtype)
        assert torch.get_num_threads() == 1
        return logits

    monkeypatch.setattr(precision.CTRGCN, "forward", watched)
    random_state, before = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert precision.recommended(seconds=0.0).startswith("bf16 takes ")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [torch.float32, torch.bfloat16] * (1 + precision.FEWEST)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_pinned_back_end_that_cannot_run_does_not_stop_the_doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is what the doctor is asked about; whatever was set for the passes is undone."""
    monkeypatch.setattr(installation, "examine", lambda: {"processor": {"cores": "2"}, "back ends": {}})
    monkeypatch.setenv("SHAPMIX_BACKEND", "cuda")
    before = torch.get_num_threads()
    assert doctor.main([]) == 0
    assert "training on the CPU  not measured: graph_conv: SHAPMIX_BACKEND=cuda cannot run on cpu" in capsys.readouterr().out
    assert torch.get_num_threads() == before


def test_the_doctor_recommends_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(installation, "examine", lambda: {"processor": {"cores": "2"}, "back ends": {}})
    monkeypatch.setattr(precision, "pass_seconds", lambda network, clips, dtype: 3.0 if dtype else 1.0)
    monkeypatch.setattr(precision, "SECONDS", 0.0)
    assert doctor.main([]) == 0
    assert "training on the CPU  bf16 takes 3.00 times as long as fp32: train in fp32, the default" in capsys.readouterr().out
