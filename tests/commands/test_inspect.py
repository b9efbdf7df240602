"""`prepare --inspect`: what it prints for every format, and that the commands it prints run."""

from __future__ import annotations

import pickle
import re
import shlex
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from shapmix import prepare
from shapmix.data import inspection
from shapmix.data.sources.registry import FORMATS
from shapmix.skeleton.layout import layout_text
from tests.source_files import BUILDERS, motion

SHORT = ["--epochs", "1", "--num-frames", "8", "--network.widths", "8", "--saliency.warmup-epochs", "0", "--device", "cpu"]
SHORT += ["--schedule.warmup-epochs", "0", "--threads", "1", "--batch-size", "2", "--mix", "none"]
OPTIONS = {"plain": ["--layout", "ucla20"]}

pytestmark = pytest.mark.usefixtures("no_pictures")


def inspected(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, str]:
    """What was printed, by key; `next` has the commands, a line each."""
    assert prepare.main(["--inspect", *map(str, arguments)]) == 0
    text, _, commands = capsys.readouterr().out.partition("\n\nnext:\n")
    return {**dict(re.findall(r"^(\w+)  +(.*)$", text, re.MULTILINE)), "next": commands, "text": text}


@pytest.mark.parametrize("format", sorted(BUILDERS))
def test_the_commands_that_are_printed_train(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("data").with_suffix({"pyskl": ".pkl", "ntu_npz": ".npz"}.get(format, ""))
    BUILDERS[format](path)
    found = inspected(capsys, path, *OPTIONS.get(format, []))
    assert found["format"] == f"{format}: {FORMATS[format].about}"
    assert not Path("data.store").exists()
    assert int(found["clips"]) >= 8
    assert re.fullmatch(r"\d+ / [\d.]+ / \d+ \(min / median / max\)", found["frames"])
    assert re.fullmatch(r"\d+: .+ \d+; .+ \d+.*", found["classes"])
    assert found["damaged"] == "none of the clips that were read"
    commands = found["next"].strip().splitlines()
    assert len(commands) == 2
    for command in commands:
        python, option, module, *arguments = shlex.split(command)
        assert (python, option) == ("python", "-m")
        more = SHORT if module == "shapmix.train" else []
        assert import_module(module).main([*arguments, *more]) == 0, capsys.readouterr().err


def write(folder: Path, rows: list[tuple[str, np.ndarray]], labels: list[str]) -> Path:
    folder.mkdir()
    for name, clip in rows:
        np.save(folder / f"{name}.npy", clip)
    table = [f"{name},{label}" for (name, _), label in zip(rows, labels, strict=True)]
    (folder / "labels.csv").write_text("\n".join(["name,label", *table]))
    return folder


@pytest.mark.parametrize("clips", [1, 2, 3])
def test_very_few_clips_are_inspected(clips: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(f"c{number}", motion(20, 3, number % 2, number)) for number in range(clips)]
    found = inspected(capsys, write(tmp_path / "own", rows, ["a", "b", "a"][:clips]), "--layout", "ucla20")
    assert found["clips"] == str(clips)
    assert "--batch-size 4" in found["next"]


def test_what_is_odd_about_a_data_set_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = [(f"c{number}", motion(17, 3, number % 2, number, people=1 + number % 3)) for number in range(12)]
    for _, clip in clips:
        clip[..., 2] = 0.5
    clips[4][1][:] = np.nan
    clips[7][1][:] = 0
    folder = write(tmp_path / "own", clips, ["1"] * 8 + ["2"] * 2 + ["4"] * 2)
    found = inspected(capsys, folder)
    fitting = "one of coco17, h36m17, uav17 or your own .toml file"
    assert found["skeleton"] == f"17 joints; the layout is not known: give --layout with {fitting}"
    assert found["people"] == "1 to 3 per clip; absent ones are padded with zeros"
    assert (
        found["coordinates"]
        == "3; the third is from 0 to 1 in every clip, like a score: give --scores, or --depth if it is a depth"
    )
    assert found["classes"].startswith("3: 1 8; 2 2; 4 2; 2 without clips: 0, 3")
    assert found["imbalance"].startswith("4 ")
    assert found["splits"] == "lists none; --split takes random; --fold 1/5"
    assert found["damaged"].startswith("2 of the 12 clips that were read, such as: ")
    assert "c4.npy: frame 0, person 0, joint 0 is not finite" in found["damaged"]
    assert "c7.npy: no frame holds a body" in found["damaged"]
    prepared, trained = found["next"].strip().splitlines()
    assert prepared.endswith("own own.store --layout coco17 --label-offset 1 --scores --skip-damaged")
    assert trained.strip() == (
        "python -m shapmix.train --dataset store --data-root own.store --split random --drop-empty-classes --batch-size 4"
    )


@pytest.mark.parametrize(
    ("format", "skeleton"),
    [
        ("nw_ucla", "ucla20, 20 joints in 5 parts (that of the format)"),
        ("ntu_raw", "ntu25, 25 joints in 5 parts (that of the format)"),
        ("msg3d", "ntu25, 25 joints in 5 parts (assumed, or named by the files; --layout gives another)"),
        ("bvh", "6 joints in . parts .built from the files."),
        ("plain", "20 joints; the layout is not known: give --layout with one of .*ucla20"),
    ],
)
def test_where_the_skeleton_comes_from_is_said(
    format: str, skeleton: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    BUILDERS[format](tmp_path / "data")
    found = inspected(capsys, tmp_path / "data")["skeleton"]
    assert found == skeleton or re.search(skeleton, found)
    if format == "plain":
        (tmp_path / "data" / "layout.toml").write_text(layout_text("ucla20"))
        assert "ucla20, 20 joints in 5 parts (comes with the data)" in inspected(capsys, tmp_path / "data")["skeleton"]


def test_one_class_and_a_wrong_layout_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "own", [(f"c{number}", motion(20, 3, 0, number)) for number in range(4)], ["wave"] * 4)
    found = inspected(capsys, folder, "--layout", "ntu25")
    assert (
        "ntu25, 25 joints in 5 parts (given with --layout); but clips have 20 joints: give --layout with one of"
        in found["skeleton"]
    )
    assert found["classes"] == "1: wave 4; a classifier needs at least two"


def test_a_layout_of_other_dimensions_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "own", [(f"c{number}", motion(13, 3, 0, number)) for number in range(4)], ["a", "b"] * 2)
    found = inspected(capsys, folder, "--layout", "penn13")
    assert "clips have 3 coordinates and no score but layout 'penn13' is for 2 coordinates" in found["skeleton"]


def test_a_sample_is_read_and_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "own", [(f"c{number:02d}", motion(20, 3, 0, number)) for number in range(40)], ["a", "b"] * 20)
    monkeypatch.setattr(inspection, "SAMPLE", 10)
    found = inspected(capsys, folder, "--layout", "ucla20")
    assert "(people, coordinates, frames, columns and damage are those of a sample: 10 clips, read in " in found["text"]
    monkeypatch.setattr(inspection, "SECONDS", 0.0)
    assert "a sample: 1 clips, read in " in inspected(capsys, folder, "--layout", "ucla20")["text"]


@pytest.mark.slow
def test_a_table_as_large_as_kinetics_is_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """260,000 clips: pyskl's table of contents, with two poses of each."""
    (tmp_path / "kpfiles").mkdir()
    keypoint = np.full((2, 17, 3), 0.5, np.float16)
    names = [f"v{number:06d}" for number in range(260_000)]
    rows = []
    for number, name in enumerate(names):
        row = {"frame_dir": name, "label": number % 400, "img_shape": (340, 400), "total_frames": 300}
        row |= {"frame_inds": np.arange(2, dtype=np.int16), "box_score": np.full(2, 0.9, np.float16), "valid": {0.5: 2}}
        rows.append(row | {"raw_file": f"kpfiles/part_{number // 10_000}.pkl"})
    for part in range(26):
        content = {name: {"keypoint": keypoint} for name in names[part * 10_000 : (part + 1) * 10_000]}
        (tmp_path / "kpfiles" / f"part_{part}.pkl").write_bytes(pickle.dumps(content))
    split = {"train": names[:240_000], "val": names[240_000:]}
    (tmp_path / "k400_hrnet.pkl").write_bytes(pickle.dumps({"split": split, "annotations": rows}))
    del rows, content
    begin = time.process_time()
    found = inspected(capsys, tmp_path)
    assert time.process_time() - begin < 40  # 8 s by itself
    assert found["format"].startswith("kinetics: ")
    assert found["clips"] == "260,000"
    assert found["classes"].startswith("400: 0 650; ")
    assert found["splits"].startswith("lists train (240,000), val (20,000)")


def test_an_unknown_folder_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.mp4", "b.mp4", "sub/c.mp4", "notes.txt", "README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    begin = time.process_time()
    for options in ([], ["--inspect"]):
        assert prepare.main([str(tmp_path), str(tmp_path / "out"), *options]) == 2
        said = capsys.readouterr().err
        assert "unknown format; it is a folder with 3 .mp4, 1 no ending, 1 .txt (in it and in its folders)" in said or (
            "3 .mp4, 1 .txt, 1 no ending" in said
        )
        assert all(f"{format}: " in said for format in FORMATS)
    assert time.process_time() - begin < 5
    assert prepare.main([str(tmp_path / "notes.txt"), "--inspect"]) == 2
    assert "unknown format; it is a file that ends in '.txt'" in capsys.readouterr().err
    assert prepare.main([str(tmp_path / "none"), "--inspect"]) == 2
    assert "none: no such file or folder" in capsys.readouterr().err
