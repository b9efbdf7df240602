"""From the files of every pose tool to a store, a trained network and predictions per person."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shapmix import predict, prepare, train
from shapmix.data.store import open_store
from tests.data.pose_files import BUILDERS, FRAMES, Made

OPTIONS = ["--dataset", "store", "--num-frames", "8", "--network.widths", "8", "--batch-size", "4", "--epochs", "1"]
OPTIONS += ["--saliency.warmup-epochs", "0", "--threads", "1", "--device", "cpu"]
CLIPS = {  # a clip of two people (BVH: one) as predict takes it
    "openpose": "train_wave_1",
    "alphapose": "train_wave_1/alphapose-results.json",
    "mmpose": "train_wave_1.json",
    "ultralytics": "train_wave_1",
    "mediapipe": "train_wave_1.json",
    "bvh": "train/wave/train_wave_1.bvh",
}

pytestmark = pytest.mark.usefixtures("no_pictures")


@dataclass(frozen=True)
class Set:
    """A data set of a pose tool, the run that was trained on it, and its clips."""

    folder: Path
    run: Path
    clips: list[Made]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Set]:
    return {}


@pytest.fixture(params=BUILDERS)
def format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(format: str, trained: dict[str, Set], tmp_path_factory: pytest.TempPathFactory) -> Set:
    """Prepared and trained once per module."""
    if format not in trained:
        root = tmp_path_factory.mktemp(format)
        folder = root / "set"
        folder.mkdir()
        clips = BUILDERS[format](folder)
        assert prepare.main([str(folder), str(root / "store"), "--format", format]) == 0
        assert train.main([*OPTIONS, "--data-root", str(root / "store"), "--run-dir", str(root / "run")]) == 0
        trained[format] = Set(folder, root / "run", clips)
    return trained[format]


def predicted(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(out.read_text())
    return found


def test_prepared_trained_and_predicted(
    format: str, trained: dict[str, Set], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    made = make(format, trained, tmp_path_factory)
    store = open_store(made.run.parent / "store")
    assert len(store.clips) == len(made.clips)
    assert store.clips.scores == (format != "bvh")
    assert {name: len(rows) for name, rows in store.splits.items()} == {"train": 8, "val": 2, "test": 2}
    out = tmp_path / "all.json"
    assert predict.main([str(made.run), str(made.folder), "--format", format, "--out", str(out), "--no-parts"]) == 0
    assert {one["name"].split("/")[-1] for one in predicted(out)} == {clip.name for clip in made.clips}


@pytest.mark.parametrize("format", CLIPS)
def test_one_clip_without_labels_is_predicted_per_person(
    format: str, trained: dict[str, Set], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    made = make(format, trained, tmp_path_factory)
    clip = made.folder / CLIPS[format]
    command = [str(made.run), str(clip), "--format", format, "--top", "1", "--no-parts", "--out"]
    assert predict.main([*command, str(tmp_path / "whole.json")]) == 0
    (whole,) = predicted(tmp_path / "whole.json")
    first = 1 if format == "ultralytics" else 0
    assert (whole["begin"], whole["end"], whole["person"]) == (first, first + FRAMES, None)
    assert predict.main([*command, str(tmp_path / "each.json"), "--per-person", "--window", "6", "--stride", "2"]) == 0
    each = predicted(tmp_path / "each.json")
    people = {"0"} if format == "bvh" else {"1", "2"} if format == "alphapose" else {"0", "1"}
    assert {one["person"] for one in each} == people
    for person in people:
        windows = [(one["begin"], one["end"]) for one in each if one["person"] == person]
        assert windows == [(first + begin, first + begin + 6) for begin in (0, 2, 4)]


def test_a_folder_of_clips_without_labels_is_predicted(
    trained: dict[str, Set], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    made = make("openpose", trained, tmp_path_factory)
    for name in ("train_wave_0", "test_kick_0"):
        shutil.copytree(made.folder / name, tmp_path / "new" / name)
    assert predict.main([str(made.run), str(tmp_path / "new"), "--no-parts", "--out", str(tmp_path / "out.json")]) == 0
    assert [one["name"] for one in predicted(tmp_path / "out.json")] == ["test_kick_0", "train_wave_0"]


def test_predictions_are_written_as_csv(
    trained: dict[str, Set], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make("openpose", trained, tmp_path_factory)
    out = tmp_path / "out.csv"
    assert predict.main([str(made.run), str(made.folder / "train_wave_1"), "--per-person", "--top", "2", "--out", str(out)]) == 0
    assert f"{out}: 2 predictions" in capsys.readouterr().out
    rows = list(csv.DictReader(out.read_text().splitlines()))
    head = ["name", "person", "begin", "end", "class", "probability", "class_2", "probability_2", "without_motion"]
    assert list(rows[0])[: len(head)] == head
    assert all(column.startswith("part_") for column in list(rows[0])[len(head) :])
    assert [(row["name"], row["person"]) for row in rows] == [("train_wave_1", "0"), ("train_wave_1", "1")]
    for row in rows:
        shares = [float(value) for column, value in row.items() if column.startswith("part_")]
        assert sum(shares) + float(row["without_motion"]) == pytest.approx(float(row["probability"]), abs=1e-4)
        assert float(row["probability"]) + float(row["probability_2"]) == pytest.approx(1, abs=1e-5)


def test_an_output_of_another_kind_is_refused_before_anything_is_predicted(
    trained: dict[str, Set], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make("openpose", trained, tmp_path_factory)
    assert predict.main([str(made.run), str(made.folder), "--out", str(tmp_path / "out.txt")]) == 2
    assert "--out: must end in .json or .csv, not 'out.txt'" in capsys.readouterr().err


def test_a_damaged_clip_is_named_and_the_others_are_written(
    trained: dict[str, Set], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make("mmpose", trained, tmp_path_factory)
    (tmp_path / "bad.json").write_text('[{"frame_id": 3, "instances": [{"keypoints": [[1, 2]], "keypoint_scores": ["x"]}]}]')
    files = [str(made.folder / "train_wave_0.json"), str(tmp_path / "bad.json")]
    assert predict.main([str(made.run), *files, "--format", "mmpose", "--no-parts", "--out", str(tmp_path / "out.json")]) == 1
    assert [one["name"] for one in predicted(tmp_path / "out.json")] == ["train_wave_0"]
    assert "bad.json: frame 3, person 0: 'keypoint_scores' is ['x'], not 1 numbers" in capsys.readouterr().err


def test_clips_of_another_skeleton_are_refused(
    trained: dict[str, Set], tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    made, other = make("alphapose", trained, tmp_path_factory), make("openpose", trained, tmp_path_factory)
    assert predict.main([str(made.run), str(other.folder / "train_wave_0"), "--no-parts"]) == 1
    assert "its joints differ from those that the network was trained on" in capsys.readouterr().err


def test_a_set_without_labels_is_not_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    BUILDERS["openpose"](tmp_path / "set")
    (tmp_path / "set" / "clips.csv").unlink()
    assert prepare.main([str(tmp_path / "set"), str(tmp_path / "store")]) == 2
    said = capsys.readouterr().err
    assert "the clips have no labels; write clips.csv with the columns name,label" in said
    assert not (tmp_path / "store").exists()
