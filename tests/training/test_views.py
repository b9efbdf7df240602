"""Several views of a test clip: which, that their probabilities are averaged, and that every command takes those of the run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shapmix import evaluate, predict, train
from shapmix.data.clips import Splits
from shapmix.data.sampling import ClipSampler
from shapmix.data.synthetic import make_synthetic
from shapmix.training import build, prediction
from shapmix.training.build import load_splits
from shapmix.training.trained import Trained, open_run
from shapmix.training.views import Views, predict_views

TINY = ["--num-frames", "8", "--network.widths", "8", "--batch-size", "8", "--epochs", "1", "--threads", "1", "--device", "cpu"]
TINY += ["--mix", "none"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(small_runs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views") / "run"
    assert train.main([*TINY, "--test-clips", "3", "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(run: Path) -> Trained:
    return open_run(run)


@pytest.fixture(scope="module")
def splits(trained: Trained) -> Splits:
    return load_splits(trained.config)


def samplers() -> list[ClipSampler]:
    """One of each pipeline."""
    store = make_synthetic(num_classes=4, n_max=6, imbalance=1, val_per_class=1, test_per_class=1).store
    return [ClipSampler(store, pipeline, "joint", 8, seed=3) for pipeline in ("crop", "frames", "segments")]


@pytest.mark.parametrize("sampler", samplers(), ids=lambda sampler: sampler.pipeline)
def test_a_view_is_of_its_clip_alone(sampler: ClipSampler) -> None:
    """Neither the batch nor a clip's place in it matters, and views differ."""
    clips = torch.arange(5)
    for number in range(3):
        together = sampler.crop(clips, number)
        alone = torch.cat([sampler.crop(clip, number) for clip in clips.split(1)])
        torch.testing.assert_close(together, alone, rtol=0, atol=0)
    assert not torch.equal(sampler.crop(clips, 0), sampler.crop(clips, 1))


def test_one_view_is_the_evaluation_bit_for_bit(trained: Trained, splits: Splits) -> None:
    sampler, clips = trained.sampler(splits.store), splits.test
    with torch.no_grad():
        expected = torch.cat([trained.network(sampler.evaluation(part)).double().softmax(1) for part in clips.split(4)])
    assert torch.equal(predict_views(trained.network, sampler, clips, 4, CPU), expected)
    assert torch.equal(predict_views(trained.network, sampler, clips, 4, CPU, Views(1)), expected)


def test_several_views_are_the_mean_of_the_stated_probabilities(trained: Trained, splits: Splits) -> None:
    sampler, clips = trained.sampler(splits.store), splits.test
    with torch.no_grad():
        views = [trained.network(sampler.crop(clips, number)).double().softmax(1) for number in range(4)]
    found = predict_views(trained.network, sampler, clips, 5, CPU, Views(4))
    torch.testing.assert_close(found, sum(views) / 4, rtol=1e-6, atol=1e-7)
    assert torch.equal(found, predict_views(trained.network, sampler, clips, 5, CPU, Views(4)))


@pytest.mark.parametrize("crops", [1, 2])
def test_mirrored_views_are_averaged_with_the_others(crops: int, trained: Trained, splits: Splits) -> None:
    sampler, clips = trained.sampler(splits.store), splits.test
    seen: list[torch.Tensor] = []
    for number in range(crops):
        for mirrored in (False, True):
            view = sampler.evaluation(clips, mirrored=mirrored) if crops == 1 else sampler.crop(clips, number, mirrored=mirrored)
            seen.append(view)
    with torch.no_grad():
        expected = sum(trained.network(view).double().softmax(1) for view in seen) / len(seen)
    views = Views(crops, mirror=True)
    torch.testing.assert_close(predict_views(trained.network, sampler, clips, 5, CPU, views), expected, rtol=1e-6, atol=1e-7)
    flips = torch.tensor(splits.store.layout.flips)
    torch.testing.assert_close(seen[1][:, 1:], seen[0][:, 1:, :, flips])
    torch.testing.assert_close(seen[1][:, 0], -seen[0][:, 0][:, :, flips])


def test_clips_that_cannot_be_mirrored_are_reported_before_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small = make_synthetic(num_classes=4, n_max=8, imbalance=1, val_per_class=1, test_per_class=1)
    one_sided = replace(small.store.layout, flips=tuple(range(small.store.layout.num_joints)))
    monkeypatch.setattr(build, "read_splits", lambda config: replace(small, store=replace(small.store, layout=one_sided)))
    assert train.main([*TINY, "--test-mirror", "--run-dir", str(tmp_path / "run")]) == 2
    assert "has no left-right pairs, so its clips cannot be mirrored" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_final_test_and_evaluate_have_the_views_of_the_run(
    run: Path, splits: Splits, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logged = json.loads((run / "result.json").read_text())["test"]["none last"]
    found = {}
    for option in ([], ["--test-clips", "3"], ["--test-clips", "1"]):
        scores = tmp_path / "scores.npz"
        assert evaluate.main([str(run), *option, "--save-scores", str(scores), "--out", str(tmp_path), "--device", "cpu"]) == 0
        found[" ".join(option)] = torch.from_numpy(np.load(scores)["probabilities"])
    printed = capsys.readouterr().out
    assert "run last, 3 crops" in printed
    assert "run last, single crop" in printed
    sampler = trained.sampler(splits.store)
    for option, views in (("", 3), ("--test-clips 3", 3), ("--test-clips 1", 1)):
        assert torch.equal(found[option], predict_views(trained.network, sampler, splits.test, 8, CPU, Views(views)))
    right = found[""].argmax(1) == splits.store.labels[splits.test]
    assert logged["top1"] == pytest.approx(float(right.double().mean()))


def test_predict_has_the_views_of_the_run(
    run: Path, splits: Splits, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = int(splits.test[0])
    recording = splits.store.clip(clip)
    np.save(tmp_path / "a.npy", recording.numpy())
    arguments = [str(run), str(tmp_path / "a.npy"), "--no-parts", "--json", "--top", "2", "--device", "cpu"]
    for option, views in (([], 3), (["--test-clips", "5"], 5), (["--test-clips", "1"], 1)):
        assert predict.main([*arguments, *option]) == 0
        (label, chance), _ = json.loads(capsys.readouterr().out)["classes"]
        sampler = trained.sampler(splits.store)
        expected = predict_views(trained.network, sampler, torch.tensor([clip]), 1, CPU, Views(views))[0]
        assert chance == pytest.approx(float(expected.max()), rel=1e-5)
        assert label == trained.class_names[int(expected.argmax())]
    assert prediction.predict(trained, recording, parts=False) == prediction.predict(
        trained, recording, parts=False, views=Views(1)
    )


@pytest.mark.parametrize("command", [evaluate.main, predict.main])
def test_at_least_one_view(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["run", *(["a.npy"] if command is predict.main else []), "--test-clips", "0"]) == 2
    assert "test_clips: must be at least 1, not 0" in capsys.readouterr().err
