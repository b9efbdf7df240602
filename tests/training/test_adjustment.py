"""Post-hoc logit adjustment: its formula, the choice of tau, and the commands that apply it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shapmix import evaluate, report, train
from shapmix.data.clips import Splits
from shapmix.process.errors import RunError
from shapmix.training.adjustment import TAUS, adjusted, choose_tau, find_tau

TINY = ["--num-frames", "8", "--network.widths", "8", "--batch-size", "8", "--epochs", "2", "--threads", "1", "--device", "cpu"]
TINY += ["--mix", "none", "--loss", "ce", "--baselines"]
COUNTS = torch.tensor([300, 90, 20, 5])


def drawn(clips: int = 60) -> torch.Tensor:
    return (2 * torch.randn(clips, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).softmax(1)


def test_it_is_its_formula() -> None:
    probabilities = drawn()
    prior = COUNTS.numpy() / COUNTS.numpy().sum()
    expected = probabilities.numpy() / prior**1.3
    found = adjusted(probabilities, COUNTS, 1.3)
    np.testing.assert_allclose(found.numpy(), expected / expected.sum(1, keepdims=True))
    logits = probabilities.log() + 7  # any constant
    assert torch.equal(found.argmax(1), (logits - 1.3 * torch.tensor(prior).log()).argmax(1))


def test_no_tau_and_classes_of_one_size_change_nothing() -> None:
    probabilities = drawn()
    assert torch.equal(adjusted(probabilities, COUNTS, 0.0), probabilities)
    assert torch.equal(adjusted(probabilities, COUNTS, None), probabilities)
    torch.testing.assert_close(adjusted(probabilities, torch.full((4,), 50), 2.0), probabilities)


def test_probabilities_of_zero_and_one_stay_probabilities() -> None:
    certain = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    assert torch.equal(adjusted(certain, COUNTS, 3.0), certain)


def test_tau_is_found_on_validation_clips() -> None:
    """A classifier that is right but for 1.5 times the log prior in its logits."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(4).repeat(500)
    evidence = torch.randn(2000, 4, dtype=torch.float64, generator=generator)
    evidence[torch.arange(2000), labels] += 1.5
    biased = (1.5 * evidence + 1.5 * (COUNTS / COUNTS.sum()).double().log()).softmax(1)
    tau = choose_tau(biased, labels, COUNTS)
    assert 1.2 <= tau <= 1.8
    means = {each: class_mean(adjusted(biased, COUNTS, each), labels) for each in TAUS}
    assert means[tau] == max(means.values())
    assert means[tau] > means[0.0] + 0.05


def class_mean(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    right = probabilities.argmax(1) == labels
    return float(np.mean([right[labels == label].double().mean() for label in range(4)]))


def figures_taus_that_reach_the_same_the_likeliest_is_taken() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    probabilities = 0.94 * torch.eye(4, dtype=torch.float64) + 0.015
    loss = {tau: float(-adjusted(probabilities, COUNTS, tau).diag().log().mean()) for tau in TAUS}
    right = {tau for tau in TAUS if class_mean(adjusted(probabilities, COUNTS, tau), labels) == 1}
    assert len(right) > 5
    assert choose_tau(probabilities, labels, COUNTS) == min(right, key=loss.__getitem__)


def test_without_validation_clips_tau_has_to_be_given(small_splits: Splits) -> None:
    bare = replace(small_splits, val=small_splits.val[:0])
    with pytest.raises(RunError, match="logit_adjustment: there are no validation clips to choose tau on; give a number"):
        find_tau("validation", bare, lambda clips: drawn(len(clips)))
    assert find_tau(0.7, bare, lambda clips: drawn(len(clips))) == 0.7
    assert find_tau(None, bare, lambda clips: drawn(len(clips))) is None


# The commands


@pytest.fixture(scope="module")
def runs(small_runs: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run without adjustment and with it."""
    folder = tmp_path_factory.mktemp("runs")
    assert train.main([*TINY, "--run-dir", str(folder / "plain")]) == 0
    assert train.main([*TINY, "--logit-adjustment", "validation", "--run-dir", str(folder / "adjusted")]) == 0
    return folder / "plain", folder / "adjusted"


def figures(run: Path) -> dict[str, float]:
    return json.loads((run / "result.json").read_text())["test"]["none last"]


def scores(run: Path, file: Path, *options: str) -> torch.Tensor:
    assert evaluate.main([str(run), "--save-scores", str(file), "--out", str(file.parent), *options]) == 0
    return torch.from_numpy(np.load(file)["probabilities"])


def test_training_is_the_same_and_the_test_is_adjusted(runs: tuple[Path, Path], small_splits: Splits) -> None:
    states = [torch.load(run / "checkpoints/last.pt", weights_only=True)["network"] for run in runs]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    plain, with_tau = map(figures, runs)
    assert plain["tau"] is None
    assert with_tau["tau"] in TAUS


def test_evaluate_adjusts_without_training(
    runs: tuple[Path, Path], small_splits: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, by_one = scores(runs[0], tmp_path / "0.npz"), scores(runs[0], tmp_path / "1.npz", "--logit-adjustment", "1")
    torch.testing.assert_close(by_one, adjusted(raw, small_splits.class_counts(), 1.0))
    assert "plain last, single crop, tau 1" in capsys.readouterr().out
    assert json.loads((tmp_path / "result.json").read_text())["tau"] == 1
    assert torch.equal(scores(runs[0], tmp_path / "2.npz", "--logit-adjustment", "0"), raw)
    assert "plain last, single crop, tau 0" in capsys.readouterr().out
    assert json.loads((tmp_path / "result.json").read_text())["tau"] == 0  # asked for, so not None
    found = scores(runs[0], tmp_path / "3.npz", "--logit-adjustment", "validation")
    tau = figures(runs[1])["tau"]
    torch.testing.assert_close(found, adjusted(raw, small_splits.class_counts(), tau))


def test_a_run_that_was_adjusted_is_evaluated_so(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(runs[1])]) == 0
    result = json.loads((runs[1] / "evaluation/result.json").read_text())
    assert {key: result[key] for key in figures(runs[1])} == pytest.approx(figures(runs[1]))
    assert report.main([str(runs[1])]) == 0
    text = (runs[1] / "report.html").read_text()
    assert f"logits adjusted with tau {figures(runs[1])['tau']:g}" in text
    assert f"<td>{100 * figures(runs[1])['ece']:.1f}%</td>" in text


def test_a_finished_run_can_be_tested_again_with_another_tau(
    runs: tuple[Path, Path], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO", logger="shapmix")
    assert train.main(["--resume", str(runs[0]), "--logit-adjustment", "0.5"]) == 0
    assert figures(runs[0])["tau"] == 0.5
    assert "last.pt: logits adjusted with tau 0.5" in caplog.text
    assert "none last, tau 0.5  " in capsys.readouterr().out
    assert train.main(["--resume", str(runs[0]), "--logit-adjustment", "None"]) == 0
    assert figures(runs[0])["tau"] is None


@pytest.mark.parametrize("command", [train, evaluate])
def test_a_negative_tau_is_refused(command: object, runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--resume"] if command is train else []
    assert command.main([*where, str(runs[0]), "--logit-adjustment", "-1"]) == 2
    assert "logit_adjustment: a tau of at least 0, or validation, not -1" in capsys.readouterr().err
