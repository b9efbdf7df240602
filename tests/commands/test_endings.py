"""How `predict`, `export` and `evaluate` end: one line and an exit code for what cannot be read, written or gone on with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shapmix import evaluate, export, predict, prepare, train
from shapmix.data.store import open_store
from shapmix.process import ending
from shapmix.process.errors import DataError, RunError
from shapmix.skeleton.layout import layout_toml, load_layout
from shapmix.training import export as exporting
from shapmix.training import prediction, scores
from shapmix.training.build import load_splits
from shapmix.training.trained import open_run

OPTIONS = ["--num-frames", "8", "--network.widths", "8", "--batch-size", "8", "--epochs", "1", "--mix", "none", "--threads", "1"]
OPTIONS += ["--device", "cpu"]


def write_plain(folder: Path, joints: int = 20, clips: int = 48) -> Path:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    table = ["name,label,split"]
    for number in range(clips):
        np.save(folder / f"clip{number:02d}.npy", generator.normal(size=(4 + number % 9, joints, 3)).astype(np.float32))
        table.append(f"clip{number:02d},{'ab'[number % 2]},{'test' if number >= clips - 8 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(table))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`raw` in the plain form and `store` made of it."""
    folder = tmp_path_factory.mktemp("data")
    assert prepare.main([str(write_plain(folder / "raw")), str(folder / "store"), "--layout", "ucla20"]) == 0
    return folder


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds on long-tailed draws of one store: each has training and validation clips of its own."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in ("0", "1"):
        arguments = ["--dataset", "store", "--data-root", str(data / "store"), "--imbalance", "2", "--n-max", "10"]
        assert train.main([*arguments, *OPTIONS, "--seed", seed, "--run-dir", str(folder / seed)]) == 0
    return [folder / "0", folder / "1"]


# An ensemble of seeds


def test_weights_of_seeds_are_fitted_on_clips_that_none_trains_on(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    splits = [load_splits(open_run(run).config) for run in runs]
    trained, validated = (
        [{each.store.names[clip] for clip in getattr(each, kind).tolist()} for each in splits] for kind in ("train", "val")
    )
    assert validated[0] != validated[1]
    assert validated[0] & trained[1]  # what must not be taken
    expected = (validated[0] | validated[1]) - trained[0] - trained[1]
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(evaluate, "fit_weights", lambda values, labels: seen.append(values) or torch.ones(2, dtype=torch.float64))
    assert evaluate.main([*map(str, runs), "--fit-weights", "--device", "cpu"]) == 0
    assert seen[0].shape == (2, len(expected), 2)
    chosen = scores.weight_clips(splits, runs)
    for each, clips in zip(splits, chosen, strict=True):
        assert {each.store.names[clip] for clip in clips.tolist()} == expected


def test_seeds_without_a_clip_in_common_say_so(runs: list[Path]) -> None:
    splits = [load_splits(open_run(run).config) for run in runs]
    everything = torch.tensor([clip for clip in range(len(splits[0].store)) if clip not in splits[0].test.tolist()])
    with pytest.raises(RunError, match="no validation clip that no run trains on; give --weights"):
        scores.weight_clips([replace(splits[0], train=everything), splits[1]], runs)


# predict


def test_predict_wants_files(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main([str(runs[0])]) == 2
    said = capsys.readouterr().err
    assert "no files" in said
    assert "python -m shapmix.predict RUN FILE..." in said


def test_predict_takes_a_prepared_store(runs: list[Path], data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main([str(runs[0]), str(data / "store"), "--json", "--no-parts"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["name"] for each in found] == open_store(data / "store").clips.names
    assert predict.main([str(runs[0]), str(data / "raw" / "clip07.npy"), "--json", "--no-parts"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == found[7]["classes"]


def test_a_bad_file_does_not_lose_the_others(
    runs: list[Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torn.npy").write_bytes((data / "raw" / "clip00.npy").read_bytes()[:-5])
    np.save(tmp_path / "joints.npy", np.ones((5, 17, 3), np.float32))
    (tmp_path / "torn.skeleton").write_text("3\n")
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "folder.npy").mkdir()
    bad = ["missing.npy", "torn.npy", "joints.npy", "torn.skeleton", "missing.skeleton", "notes.txt", "folder.npy", "nowhere"]
    good = [str(data / "raw" / f"clip{number:02d}.npy") for number in (3, 4)]
    assert predict.main([str(runs[0]), good[0], *(str(tmp_path / name) for name in bad), good[1], "--json", "--no-parts"]) == 1
    captured = capsys.readouterr()
    assert [json.loads(line)["name"] for line in captured.out.splitlines()] == ["clip03", "clip04"]
    lines = captured.err.splitlines()
    for name in bad:
        assert sum(f"{tmp_path / name}" in line for line in lines) == 1, name
    assert "17" in next(line for line in lines if "joints.npy" in line)
    assert "Traceback" not in captured.err
    assert "8 of 10" in lines[-1]


def test_a_bad_recording_does_not_lose_its_data_set(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_plain(tmp_path / "raw", clips=16)
    (folder / "layout.toml").write_text(layout_toml(load_layout("ucla20")))
    (folder / "clip05.npy").write_bytes(b"nothing")
    assert predict.main([str(runs[0]), str(folder), "--json", "--no-parts"]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 15
    assert "clip05.npy" in captured.err


@pytest.mark.parametrize(("option", "value"), [("--top", "0"), ("--window", "0"), ("--stride", "-1"), ("--threads", "0")])
def test_predict_checks_numbers_once(
    option: str, value: str, runs: list[Path], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(data / "raw" / "clip00.npy")
    assert predict.main([str(runs[0]), file, file, option, value]) == 1
    assert capsys.readouterr().err.splitlines() == [f"error: {option}: at least 1, not {value}"]


def test_other_joints_and_scores_are_refused(data: Path, runs: list[Path], tmp_path: Path) -> None:
    trained = open_run(runs[0])
    folder = write_plain(tmp_path / "raw", clips=16)
    text = layout_toml(load_layout("ucla20"))
    (folder / "layout.toml").write_text(text.replace("hip_centre", "middle"))
    with pytest.raises(DataError, match="joints are not those that the network was trained on: 'middle'"):
        next(prediction.recordings_of(folder, trained)).read()
    (folder / "layout.toml").unlink()
    assert prepare.main([str(folder), str(tmp_path / "scored"), "--layout", "ucla20", "--scores"]) == 0
    with pytest.raises(DataError, match="has scores, the network was trained without"):
        next(prediction.recordings_of(tmp_path / "scored", trained)).read()


# What cannot be written


@pytest.mark.parametrize("out", ["nodir/x.onnx", "nodir/x.pt2", "file/x.pt2", "taken.pt2", "/proc/x.pt2", "x.pth"])
def test_export_says_so_before_any_work(
    out: str, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "taken.pt2").mkdir()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(export, "open_run", lambda *_: pytest.fail("work was done"))
    assert export.main([str(runs[0]), str(tmp_path / out)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: /")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("option", ["--out", "--save-scores"])
@pytest.mark.parametrize("where", ["file/below.npz", "/proc/below.npz"])
def test_evaluate_says_so_before_any_work(
    option: str, where: str, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(evaluate, "open_member", lambda *_: pytest.fail("work was done"))
    assert evaluate.main([str(runs[0]), option, str(tmp_path / where)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: /")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_output_that_cannot_be_written_is_one_line(runs: list[Path], data: Path) -> None:
    arguments = [sys.executable, "-m", "shapmix.predict", str(runs[0]), str(data / "raw" / "clip00.npy"), "--no-parts"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: output: No space left on device"]


# Ctrl-C


@pytest.mark.parametrize("name", ["predict", "export", "evaluate"])
def test_an_interrupt_is_no_traceback(
    name: str, runs: list[Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    module = {"predict": predict, "export": export, "evaluate": evaluate}[name]
    inside = {"predict": predict, "export": exporting, "evaluate": scores}[name]
    monkeypatch.setattr(inside, {"predict": "predict", "export": "plain_network", "evaluate": "predict_views"}[name], interrupted)
    clip, network = str(data / "raw" / "clip00.npy"), str(tmp_path / "x.pt2")
    rest = {"predict": [clip], "export": [network], "evaluate": ["--device", "cpu"]}[name]
    assert module.main([str(runs[0]), *rest]) == ending.INTERRUPTED
    assert capsys.readouterr().err.splitlines()[-1] == "stopped"
    assert not list(tmp_path.iterdir())


def test_an_interrupt_while_modules_are_imported_is_no_traceback(tmp_path: Path) -> None:
    arguments = [sys.executable, "-X", "importtime", "-m", "shapmix.predict", str(tmp_path), str(tmp_path / "clip.npy")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        imported = iter(process.stderr.readline, "")  # -X importtime names each module when it has been imported
        assert any(line.rstrip().endswith(" shapmix.process.ending") for line in imported)
        assert any(line.rstrip().endswith(" torch.torch_version") for line in imported)
        process.send_signal(signal.SIGINT)
        said = "".join(imported)
        assert process.wait() in (-signal.SIGINT, ending.INTERRUPTED)
    assert "Traceback" not in said
    assert said.endswith("stopped\n")
