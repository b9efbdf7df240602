"""Evaluation of runs: the training log's figures, several views, ensembles by clip name."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shapmix import evaluate, train
from shapmix.process.errors import RunError
from shapmix.training import ensemble
from shapmix.training.build import load_splits
from shapmix.training.config import parse_config
from shapmix.training.scores import Scores, align, fit_weights

TINY = ["--num-frames", "8", "--network.widths", "8", "--batch-size", "8", "--epochs", "2", "--n-max", "8", "--imbalance", "4"]
TINY += ["--threads", "1", "--saliency.warmup-epochs", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def runs(small_runs: None, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("runs")
    for stream in ("joint", "bone"):
        assert train.main([*TINY, "--stream", stream, "--run-dir", str(folder / stream)]) == 0
    return [str(folder / "joint"), str(folder / "bone")]


def test_one_run_is_measured_as_its_training_did(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([runs[0], "--checkpoint", "last"]) == 0
    printed = capsys.readouterr().out
    logged = json.loads((Path(runs[0]) / "result.json").read_text())["test"]["shapmix last"]
    out = Path(runs[0]) / "evaluation"
    result = json.loads((out / "result.json").read_text())
    assert {key: result[key] for key in logged} == pytest.approx(logged)
    assert 0 <= result["ece"] <= 1
    assert {"macro_f1", "worst_class", "ece_many", "ece_medium", "ece_few"} <= set(logged)
    assert result["views"] == "single crop"
    assert "joint last, single crop" in printed
    with (out / "confusion.csv").open(newline="") as file:
        table = [row[1:] for row in csv.reader(file)][1:]
    confusion = np.array(table, dtype=int)
    assert np.trace(confusion) / confusion.sum() == pytest.approx(logged["top1"])
    assert (out / "per_class.csv").read_text().count("\n") == len(confusion) + 1


def test_several_crops_are_named_and_differ(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = []
    for crops in ("1", "3"):
        file = tmp_path / f"{crops}.npz"
        assert evaluate.main([runs[0], "--test-clips", crops, "--save-scores", str(file), "--out", str(tmp_path)]) == 0
        scores.append(np.load(file)["probabilities"])
    assert "joint last, 3 crops" in capsys.readouterr().out
    assert scores[0].shape == scores[1].shape
    assert not np.allclose(*scores)
    np.testing.assert_allclose(scores[1].sum(1), 1)


def test_an_ensemble_weighs_probabilities(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    single = []
    for run in runs:
        assert evaluate.main([run, "--save-scores", str(tmp_path / "one.npz")]) == 0
        single.append(dict(np.load(tmp_path / "one.npz")))
    assert evaluate.main([*runs, "--weights", "3", "1", "--save-scores", str(tmp_path / "both.npz")]) == 0
    both = np.load(tmp_path / "both.npz", allow_pickle=False)
    np.testing.assert_allclose(both["probabilities"], (3 * single[0]["probabilities"] + single[1]["probabilities"]) / 4)
    assert both["names"].tolist() == single[0]["names"].tolist()
    assert "ensemble (given weights 0.750 0.250)" in capsys.readouterr().out
    assert evaluate.main([*runs, "--fit-weights"]) == 0
    assert "ensemble (fitted weights " in capsys.readouterr().out


def scores(order: list[int], probabilities: torch.Tensor) -> Scores:
    return Scores(
        [f"clip{i}" for i in order],
        torch.tensor([i % 2 for i in order]),
        probabilities[order],
        torch.ones(2),
        ["a", "b"],
        torch.tensor([5 + i for i in order]),
    )


def test_ensembles_are_aligned_by_name() -> None:
    values = torch.rand(6, 2, dtype=torch.float64)
    first, second = scores([0, 1, 2, 3, 4, 5], values), scores([3, 1, 5, 0, 2, 4], values)
    aligned = align([first, second], [Path("x"), Path("y")])
    assert torch.equal(aligned[1].probabilities, values)
    other = replace(second, class_counts=second.class_counts + 100)
    assert torch.equal(align([first, other], [Path("x"), Path("y")])[1].class_counts, other.class_counts)  # of its own training
    with pytest.raises(RunError, match="y: clip 'clip5' is tested not here but in x"):
        align([first, scores([0, 1, 2, 3, 4], values)], [Path("x"), Path("y")])
    with pytest.raises(RunError, match="y: clip 'clip5' is tested here but not in x"):
        align([scores([0, 1, 2, 3, 4], values), first], [Path("x"), Path("y")])
    wrong = replace(second, labels=1 - second.labels)
    with pytest.raises(RunError, match="clip 'clip0' has a different label"):
        align([first, wrong], [Path("x"), Path("y")])
    other = replace(second, lengths=second.lengths + 1)
    with pytest.raises(RunError, match="y: clip 'clip0' has 6 frames, in x 5; the runs use different recordings"):
        align([first, other], [Path("x"), Path("y")])


def test_fitted_weights_prefer_the_better_run() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (400,), generator=generator)
    noise = torch.randn(2, 400, 4, generator=generator, dtype=torch.float64)
    good = (noise[0] + 3 * torch.nn.functional.one_hot(labels, 4)).softmax(1)
    weights = fit_weights(torch.stack([noise[1].softmax(1), good]), labels)
    assert weights.sum() == pytest.approx(1)
    assert weights[1] > 0.95


def test_weights_are_fitted_on_validation_only(runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(ensemble, "fit_weights", lambda values, labels: seen.append(labels) or torch.ones(2, dtype=torch.float64))
    assert evaluate.main([*runs, "--fit-weights"]) == 0
    splits = load_splits(parse_config(["--config", f"{runs[0]}/config.yaml"]))
    assert torch.equal(seen[0], splits.store.labels[splits.val])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "1", "2"], "weights: 2 given for 1 runs"),
        (["--weights", "1", "--fit-weights"], "weights and fit_weights both choose"),
        (["--weights", "-1"], "weights: must be non-negative"),
        (["--test-clips", "0"], "test_clips: must be at least 1"),
        (["--save-scores", "x.csv"], "the file is an .npz"),
    ],
)
def test_what_cannot_be_evaluated_says_why(
    arguments: list[str], message: str, runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([runs[0], *arguments]) == 2
    assert message in capsys.readouterr().err
    assert evaluate.main(["nowhere"]) == 2
    assert "nowhere/config.yaml: cannot read the configuration" in capsys.readouterr().err
