"""A finished run predicts, explains and is exported without the data that it was trained on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shapmix import load_layout, predict, train
from shapmix.networks.ctrgcn import CTRGCN
from shapmix.process.errors import DataError
from shapmix.skeleton.layout import layout_toml, parse_layout
from shapmix.training import export as exporting
from shapmix.training import prediction
from shapmix.training.build import load_splits, make_sampler
from shapmix.training.checkpoint import CheckpointError
from shapmix.training.config import parse_config
from shapmix.training.export import ExportError, export
from shapmix.training.prediction import Prediction
from shapmix.training.trained import Trained, open_run

TINY = [
    "--num-frames",
    "8",
    "--network.widths",
    "8",
    "16",
    "--batch-size",
    "8",
    "--epochs",
    "2",
    "--n-max",
    "8",
    "--imbalance",
    "4",
]
TINY += ["--threads", "1", "--saliency.warmup-epochs", "1"]


@pytest.fixture(scope="module")
def run(small_runs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train.main([*TINY, "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(run: Path) -> Trained:
    return open_run(run)


@pytest.fixture(scope="module")
def recording(run: Path) -> torch.Tensor:
    splits = load_splits(parse_config(["--config", str(run / "config.yaml")]))
    return splits.store.clip(int(splits.test[0]))


@pytest.mark.parametrize("name", ["ntu25", "coco17", "ucla20"])
def test_a_layout_comes_back_from_its_text(name: str) -> None:
    layout = load_layout(name)
    assert parse_layout(layout_toml(layout)) == layout


def test_a_clip_gets_what_the_trainer_measured(trained: Trained, run: Path) -> None:
    splits = load_splits(trained.config)
    sampler = make_sampler(trained.config, splits.store)
    chosen = splits.test[:6]
    with torch.no_grad():
        expected = trained.network(sampler.evaluation(chosen)).softmax(1)
    for clip, probability in zip(chosen.tolist(), expected, strict=True):
        (found,) = prediction.predict(trained, splits.store.clip(clip), top=2)
        best = probability.topk(2)
        assert [name for name, _ in found.classes] == [trained.class_names[label] for label in best.indices.tolist()]
        assert [chance for _, chance in found.classes] == pytest.approx(best.values.tolist(), abs=1e-6)
        assert sum(found.parts.values()) + found.without == pytest.approx(found.classes[0][1], abs=1e-5)
        assert list(found.parts) == list(trained.layout.parts)


def test_a_window_gets_what_its_frames_alone_get(trained: Trained, recording: torch.Tensor) -> None:
    found = prediction.predict(trained, recording, "a", window=10, stride=4)
    frames = len(recording)
    assert [window.begin for window in found[:-1]] == list(range(0, 4 * (len(found) - 1), 4))
    assert found[-1].end == frames
    for window in found:
        assert window.end - window.begin == 10
        (alone,) = prediction.predict(trained, recording[window.begin : window.end], "a")
        assert [name for name, _ in alone.classes] == [name for name, _ in window.classes]
        np.testing.assert_allclose([chance for _, chance in alone.classes], [chance for _, chance in window.classes], atol=1e-6)
        np.testing.assert_allclose(list(alone.parts.values()), list(window.parts.values()), atol=1e-6)
    (whole,) = prediction.predict(trained, recording, window=10_000)
    assert (whole.begin, whole.end) == (0, frames)


def test_people_are_fitted_and_joints_are_not(trained: Trained, recording: torch.Tensor) -> None:
    more = torch.cat([recording, torch.randn_like(recording)], dim=1)
    assert prediction.predict(trained, more, parts=False) == prediction.predict(trained, recording, parts=False)
    with pytest.raises(DataError, match=r"the network needs \[frames, people, 25 joints, 3 coordinates\]"):
        prediction.predict(trained, recording[:, :, :20])
    with pytest.raises(ValueError, match="at least 1"):
        prediction.predict(trained, recording, window=0)


def test_files_of_each_kind_are_read(
    run: Path, recording: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "one.npy", recording[:, 0].numpy())
    np.savez(tmp_path / "two.npz", joints=recording.numpy())
    lines = [str(len(recording))]
    for frame in recording[:, 0].tolist():
        lines += ["1", "72 0 1 1 1 1 0 0.1 0.2 2", "25", *(" ".join([*map(str, joint), *["0"] * 9]) for joint in frame)]
    (tmp_path / "three.skeleton").write_text("\r\n".join(lines))
    names = ["one.npy", "two.npz", "three.skeleton"]
    assert predict.main([str(run), *(str(tmp_path / name) for name in names), "--json", "--top", "1"]) == 0
    found = [Prediction(**json.loads(line)) for line in capsys.readouterr().out.splitlines()]
    assert [one.name for one in found] == ["one", "two", "three"]
    assert found[0].classes == found[1].classes
    assert predict.main([str(run), str(tmp_path / "one.npy")]) == 0
    said = capsys.readouterr().out
    assert f"one [0:{len(recording)}]: {found[0].classes[0][0]}" in said
    assert "without motion" in said
    assert predict.main([str(run), str(tmp_path / "nowhere.npy")]) == 1
    assert "nowhere.npy" in capsys.readouterr().err


def test_people_of_an_array_are_predicted_apart(
    run: Path, recording: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = np.repeat(recording[:, :1].numpy(), 2, axis=1)
    both[:5, 1] = 0
    np.save(tmp_path / "both.npy", both)
    assert predict.main([str(run), str(tmp_path / "both.npy"), "--per-person", "--json", "--no-parts"]) == 0
    found = [Prediction(**json.loads(line)) for line in capsys.readouterr().out.splitlines()]
    assert [(one.person, one.begin, one.end) for one in found] == [("0", 0, len(both)), ("1", 5, len(both))]
    assert predict.main([str(run), str(tmp_path / "both.npy"), "--per-person", "--no-parts"]) == 0
    assert f"both, person 1 [5:{len(both)}]: " in capsys.readouterr().out
    command = [str(run), str(tmp_path / "both.npy"), "--per-person", "--no-parts", "--min-frames"]
    assert predict.main([*command, str(len(both))]) == 0
    assert "person 1" not in capsys.readouterr().out
    assert predict.main([*command, "0"]) == 2
    assert "--min-frames: must be at least 1, not 0" in capsys.readouterr().err


def test_windows_without_anybody_have_no_prediction(trained: Trained, recording: torch.Tensor) -> None:
    gap = torch.cat([recording, torch.zeros_like(recording), recording])
    frames = len(recording)
    found = prediction.predict(trained, gap, window=frames // 2, parts=False)
    assert all(gap[one.begin : one.end].any() for one in found)
    assert {one.begin for one in found}.isdisjoint(range(frames, 2 * frames - frames // 2))
    assert prediction.predict(trained, torch.zeros_like(recording), window=5) == []


def test_a_clip_takes_less_than_two_seconds(trained: Trained) -> None:
    """With the published network; its weights matter only in that a start of 1e-6 yields denormal numbers, slow on some CPUs."""
    network = CTRGCN(trained.layout, len(trained.class_names), num_people=1, graph_gain=1.0).eval()
    config = replace(trained.config, num_frames=64)
    full = replace(trained, network=network, config=config, mean_motion=torch.zeros(3, 64, 25, 1))
    clip = torch.randn(100, 1, 25, 3)
    prediction.predict(full, clip)
    begin = time.process_time()
    prediction.predict(full, clip)
    assert time.process_time() - begin < 2


def test_a_run_without_its_checkpoint_is_an_error(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        open_run(tmp_path)


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.10 reading .pt2
def test_what_is_exported_computes_the_same(ending: str, trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / f"network{ending}"
    assert export(trained, out) <= 1e-5
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    clips = torch.randn(5, *trained.mean_motion.shape)
    with torch.no_grad():
        expected = trained.network(clips)
    if ending == ".pt2":
        with torch.no_grad():
            found = torch.export.load(out).module()(clips)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(["logits"], {"clips": clips.numpy()})[0])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_an_export_that_differs_is_not_written(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(trained.mean_motion.numel(), len(trained.class_names)))
    monkeypatch.setattr(exporting, "plain_network", lambda trained: other)
    with pytest.raises(ExportError, match="nothing was written"):
        export(trained, tmp_path / "network.pt2")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ExportError, match=r"ends in \.onnx or \.pt2"):
        export(trained, tmp_path / "network.pth")


def test_the_command_line_exports(run: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shapmix.export", str(run), str(tmp_path / "a.pt2")], capture_output=True, text=True, check=True
    )
    assert "clips [N, 3, 8, 25, 1] -> logits [N, 4]" in done.stdout
