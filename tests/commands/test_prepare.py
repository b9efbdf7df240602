"""Prepared stores: round trip of the recordings, resuming, checksums, and errors that leave no store behind."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shapmix import prepare
from shapmix.data import store_writer
from shapmix.data.pools import SplitOptions
from shapmix.data.protocols import NTU_SUBJECTS
from shapmix.data.sources.find import find_source
from shapmix.data.splits import store_splits
from shapmix.data.store import FRAMES, INDEX, Prepared, open_store
from shapmix.process.errors import DataError
from shapmix.skeleton.layout import layout_text, load_layout
from tests.set_files import kinetics

RNG = np.random.default_rng(0)
LAYOUT = load_layout("ucla20")


def plain(folder: Path, clips: dict[str, np.ndarray], labels: dict[str, int] | None = None, **columns: dict[str, Any]) -> Path:
    """A folder in the plain format with the layout ucla20."""
    folder.mkdir(exist_ok=True)
    rows = ["name,label" + "".join(f",{column}" for column in columns)]
    for number, (name, joints) in enumerate(clips.items()):
        np.save(folder / f"{name}.npy", joints)
        more = "".join(f",{values[name]}" for values in columns.values())
        rows.append(f"{name},{labels[name] if labels else number % 2}{more}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


def clips(lengths: list[int], people: int = 1) -> dict[str, np.ndarray]:
    shapes = {f"clip{number:03d}": (length, people, 20, 3) for number, length in enumerate(lengths)}
    return {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def run(*arguments: object) -> int:
    return prepare.main([str(argument) for argument in arguments])


def make(folder: Path, out: Path, *options: str) -> Prepared:
    assert run(folder, out, "--layout", "ucla20", *options) == 0
    return open_store(out)


@pytest.mark.parametrize("workers", ["1", "3"])
def test_what_is_written_is_what_was_read(workers: str, tmp_path: Path) -> None:
    written = clips([3, 1, 7, 2, 40])
    columns = {
        "split": dict.fromkeys(written, "train") | {"clip004": "test"},
        "subject": dict(zip(written, range(1, 6), strict=True)),
    }
    folder = plain(tmp_path / "raw", written, **columns)
    found = make(folder, tmp_path / "store", "--workers", workers)
    assert found.clips.names == list(written)
    assert found.clips.lengths.tolist() == [3, 1, 7, 2, 40]
    for index, joints in enumerate(written.values()):
        np.testing.assert_array_equal(found.clips.clip(index).numpy(), joints)
    assert found.clips.labels.tolist() == [0, 1, 0, 1, 0]
    assert found.numbers["subject"].tolist() == [1, 2, 3, 4, 5]
    assert {name: rows.tolist() for name, rows in found.splits.items()} == {"train": [0, 1, 2, 3], "test": [4]}
    assert found.clips.layout == LAYOUT
    assert not (tmp_path / "store.partial").exists()
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["frames.npy", "layout.toml", "store.json"]
    assert found.source["format"] == "Plain"
    assert len(found.source["files"]) == 6
    np.testing.assert_array_equal(np.load(tmp_path / "store" / FRAMES), np.concatenate(list(written.values())))


def test_half_precision_and_filled_up_people(tmp_path: Path) -> None:
    written = clips([3, 4])
    found = make(plain(tmp_path / "raw", written), tmp_path / "store", "--dtype", "float16", "--people", "2")
    assert np.load(tmp_path / "store" / FRAMES).dtype == np.float16
    assert found.clips.frames.dtype == torch.float32
    assert found.clips.num_people == 2
    np.testing.assert_array_equal(found.clips.clip(1)[:, :1].numpy(), written["clip001"].astype(np.float16).astype(np.float32))
    assert not found.clips.frames[:, 1].any()


def test_the_checksums_find_a_changed_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(plain(tmp_path / "raw", clips([3, 4, 5])), tmp_path / "store")
    assert run(tmp_path / "store", "--check") == 0
    content = bytearray((tmp_path / "store" / FRAMES).read_bytes())
    content[-5 * 20 * 3 * 4 - 7] ^= 1
    (tmp_path / "store" / FRAMES).write_bytes(content)
    assert run(tmp_path / "store", "--check") == 1
    assert "recording 'clip001': checksum" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda store: (store / INDEX).unlink(), "not a prepared data set"),
        (lambda store: (store / INDEX).write_text("{"), "not valid JSON"),
        (lambda store: (store / INDEX).write_text('{"version": 0}'), "the format version is not 1"),
        (lambda store: (store / FRAMES).write_bytes((store / FRAMES).read_bytes()[:-4]), "damaged store"),
        (lambda store: np.save(store / FRAMES, np.zeros((1, 1, 20, 3), np.float32)), "contains 1 frames of float32"),
        (lambda store: (store / "layout.toml").write_text("name = 3"), "damaged store"),
    ],
)
def test_a_damaged_store_is_refused(damage: Any, message: str, tmp_path: Path) -> None:
    make(plain(tmp_path / "raw", clips([3, 4])), tmp_path / "store")
    damage(tmp_path / "store")
    with pytest.raises(DataError, match=message):
        open_store(tmp_path / "store")


def test_a_damaged_recording_stops_or_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = clips([3, 4, 5, 6])
    written["clip000"][:] = np.nan
    written["clip002"][1, 0, 4, 2] = np.inf
    folder = plain(tmp_path / "raw", written)
    assert run(folder, tmp_path / "store", "--layout", "ucla20") == 2
    said = capsys.readouterr().err
    assert "clip000.npy: frame 0, person 0, joint 0 is not finite" in said
    assert "--skip-damaged skips such recordings" in said
    assert not (tmp_path / "store").exists()
    found = make(folder, tmp_path / "store", "--skip-damaged")
    assert found.clips.names == ["clip001", "clip003"]
    assert [entry["name"] for entry in found.source["damaged"]] == ["clip000", "clip002"]
    assert "frame 1, person 0, joint 4" in found.source["damaged"][1]["reason"]
    np.testing.assert_array_equal(found.clips.clip(1).numpy(), written["clip003"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (np.ones((2, 1, 19, 3), np.float32), "19 joints, layout 'ucla20' has 20"),
        (np.ones((2, 1, 20, 2), np.float32), "2 coordinates, the first recording has 3"),
        (np.full((2, 1, 20, 3), 1e5, np.float32), "joint 'hip_centre' has a non-finite coordinate in float16"),
    ],
)
def test_what_does_not_fit_is_named(change: np.ndarray, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = clips([3, 4]) | {"odd": change}
    folder = plain(tmp_path / "raw", written)
    assert run(folder, tmp_path / "store", "--layout", "ucla20", "--dtype", "float16") == 2
    said = capsys.readouterr().err
    assert "recording 'odd': " in said
    assert message.replace("hip_centre", LAYOUT.joints[0]) in said


@pytest.mark.parametrize("options", [[], ["--skip-damaged"]])
@pytest.mark.parametrize(
    ("joints", "given", "message"),
    [
        (
            (13, 3),
            ["coco17", "--scores"],
            "recordings of 13 joints, layout 'coco17' has 17; give --layout: one of penn13, smarthome13,",
        ),
        (
            (17, 3),
            ["ntu25"],
            "recordings of 17 joints, layout 'ntu25' has 25; give --layout: one of h36m17, uav17, or a .toml file",
        ),
        ((7, 2), ["coco17"], "give --layout: a .toml file that describes the skeleton (no built-in one fits)"),
        ((17, 3), ["coco17"], "layout 'coco17' is for 2 coordinates: if the last one is a score, declare it (--scores)"),
        (
            (25, 2),
            ["ntu25"],
            "clips have 2 coordinates and no score but layout 'ntu25' is for 3 coordinates: choose another layout",
        ),
        ((25, 4), ["body25", "--scores"], "clips have 4 coordinates, the last a score, but layout 'body25' is for 2 coordinates"),
    ],
)
def test_another_skeleton_is_refused_and_not_skipped(
    joints: tuple[int, int], given: list[str], message: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = plain(tmp_path / "raw", {"a": np.ones((2, 1, *joints), np.float32), "b": np.ones((2, 1, *joints), np.float32)})
    assert run(folder, tmp_path / "store", "--layout", *given, *options) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert "--skip-damaged" not in said
    assert not (tmp_path / "store").exists()


def pickled(folder: Path, keypoint: tuple[int, ...], scores: bool) -> Path:
    """Two clips [M, T, V, C] in pyskl's format."""
    rows = []
    for name in "ab":
        poses = RNG.uniform(1, 90, size=(1, 4, *keypoint)).astype(np.float32)
        row = {"frame_dir": name, "label": int(name == "b"), "total_frames": 4, "keypoint": poses, "img_shape": (100, 100)}
        rows.append(row | ({"keypoint_score": RNG.uniform(0.1, 1, poses.shape[:3])} if scores else {}))
    (folder / "a.pkl").write_bytes(pickle.dumps({"annotations": rows}))
    return folder / "a.pkl"


@pytest.mark.parametrize(
    ("keypoint", "scores", "guess", "choices"),
    [
        ((25, 3), False, "ntu25", ""),
        ((17, 2), True, "coco17", ""),
        ((17, 3), False, None, "one of h36m17, uav17,"),
        ((17, 2), False, None, "one of coco17, h36m17, uav17,"),
        ((25, 2), True, None, "one of body25,"),
        ((25, 2), False, None, "one of body25,"),
        ((18, 2), True, None, "one of openpose18,"),
        ((33, 3), False, None, "one of mediapipe33,"),
        ((5, 2), True, None, "a .toml file that describes the skeleton"),
    ],
)
def test_two_skeletons_are_guessed_and_said(
    keypoint: tuple[int, int],
    scores: bool,
    guess: str | None,
    choices: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Human3.6M has 17 joints in space and BODY_25 25 in the image plane: neither is taken for COCO or NTU."""
    file = pickled(tmp_path, keypoint, scores)
    with caplog.at_level("INFO"):
        code = run(file, tmp_path / "store")
    if guess is None:
        assert code == 2
        assert f"the format does not name the skeleton; give --layout: {choices}" in capsys.readouterr().err
        assert "assuming" not in caplog.text
        return
    assert code == 0
    assert caplog.text.count(f"assuming layout {guess} (give --layout if the skeleton is another)") == 1
    assert open_store(tmp_path / "store").clips.layout.name == guess
    caplog.clear()
    with caplog.at_level("INFO"):
        assert run(file, tmp_path / "given", "--layout", guess) == 0
    assert "assuming" not in caplog.text


def people(counts: list[int]) -> dict[str, np.ndarray]:
    """Clips with these numbers of people."""
    return {f"clip{number:03d}": RNG.normal(size=(3, count, 20, 3)).astype(np.float32) for number, count in enumerate(counts)}


def test_clips_with_fewer_people_are_padded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    written = people([1, 3, 2, 4, 1])
    with caplog.at_level("INFO"):
        found = make(plain(tmp_path / "raw", written), tmp_path / "store")
    assert "1 to 4 people per clip, padded with zeros" in caplog.text
    assert found.clips.num_people == 4
    for index, joints in enumerate(written.values()):
        np.testing.assert_array_equal(found.clips.clip(index)[:, : joints.shape[1]].numpy(), joints)
        assert not found.clips.clip(index)[:, joints.shape[1] :].any()
    assert run(tmp_path / "store", "--check") == 0
    assert run(tmp_path / "raw", tmp_path / "three", "--layout", "ucla20", "--people", "3") == 2
    assert "recording 'clip003': 4 people, the store has 3; give --people 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("third", "options", "told"), [(0.5, [], True), (0.5, ["--depth"], False), (-0.5, [], False), (2, [], False)]
)
def test_a_third_coordinate_like_a_score_is_told(
    third: float, options: list[str], told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = clips([3, 4])
    for joints in written.values():
        joints[..., 2] = third
    make(plain(tmp_path / "raw", written), tmp_path / "store", *options)
    assert ("the third coordinate is from 0 to 1, like a score" in caplog.text) is told


def test_a_padded_store_resumes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = people([1, 2, 1, 3])
    whole, damaged = written["clip002"].copy(), written["clip002"].copy()
    damaged[0] = np.nan
    folder = plain(tmp_path / "raw", written)
    make(folder, tmp_path / "whole")
    np.save(folder / "clip002.npy", damaged)
    stamp = (folder / "clip002.npy").stat()
    assert run(folder, tmp_path / "store", "--layout", "ucla20", "--workers", "1") == 2
    np.save(folder / "clip002.npy", whole)
    os.utime(folder / "clip002.npy", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with caplog.at_level("INFO"):
        make(folder, tmp_path / "store", "--workers", "1")
    assert "resuming after 'clip001'" in caplog.text
    for name in (FRAMES, INDEX):
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_names_and_lists_are_checked_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = plain(tmp_path / "raw", clips([3, 4]))
    with (folder / "labels.csv").open("a") as table:
        table.write("\nclip000,0")
    assert run(folder, tmp_path / "store", "--layout", "ucla20") == 2
    assert "two recordings are named 'clip000'" in capsys.readouterr().err
    assert not (tmp_path / "store.partial").exists()


def test_a_store_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = plain(tmp_path / "raw", clips([3, 4]))
    make(folder, tmp_path / "store")
    before = (tmp_path / "store" / INDEX).stat()
    assert run(folder, tmp_path / "store", "--layout", "ucla20") == 2
    assert "store exists" in capsys.readouterr().err
    assert (tmp_path / "store" / INDEX).stat() == before


# the reader waits for ever at the clip HOLD_AT, so that a killed run was not at its end, however slow the machine is
SLOWLY = """
import os, sys, time
from shapmix import prepare
from shapmix.data.sources.plain import Plain
read = Plain.read
def slowly(self, index):
    time.sleep(0.02 if index != int(os.environ.get("HOLD_AT", -1)) else 3600)
    return read(self, index)
Plain.read = slowly
sys.exit(prepare.main(sys.argv[1:]))
"""


def start(folder: Path, out: Path, hold_at: int = -1, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOWLY, str(folder), str(out), "--layout", "ucla20", "--workers", "1"]
    environment = {**os.environ, "HOLD_AT": str(hold_at)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, **more)


def wait_for_lines(journal: Path, lines: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 300
    while not journal.exists() or len(journal.read_bytes().splitlines()) < lines:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.002)


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    folder = plain(tmp_path / "raw", clips(list(range(1, 61))))
    make(folder, tmp_path / "whole")
    out, journal = tmp_path / "store", tmp_path / "store.partial" / "clips.jsonl"
    for lines in (5, 20, 40):
        process = start(folder, out, hold_at=lines + 10)
        wait_for_lines(journal, lines, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not out.exists()
        with pytest.raises(DataError, match="not a prepared data set"):
            open_store(tmp_path / "store.partial")
    with journal.open("a") as file:
        file.write('{"name": "cut of')
    with (tmp_path / "store.partial" / FRAMES).open("ab") as file:
        file.write(b"half a recording")
    process = start(folder, out)
    said = process.communicate()[1]
    assert process.returncode == 0, said
    assert "resuming after 'clip0" in said
    for name in (FRAMES, INDEX):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_kills_at_any_moment_leave_the_same_store(tmp_path: Path) -> None:
    folder = plain(tmp_path / "raw", clips(list(range(1, 61))))
    make(folder, tmp_path / "whole")
    out, generator = tmp_path / "store", random.Random(0)
    for _ in range(6):
        process = start(folder, out)
        while process.poll() is None and not (tmp_path / "store.partial").exists() and not out.exists():
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.2))
        process.kill()
        process.communicate()
    if not out.exists():
        assert run(folder, out, "--layout", "ucla20") == 0
    for name in (FRAMES, INDEX):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(tmp_path.glob("store.*"))


def test_a_changed_source_starts_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    written = clips([3, 4, 5])
    broken = written["clip002"].copy()
    written["clip002"][0] = np.nan
    folder = plain(tmp_path / "raw", written)
    assert run(folder, tmp_path / "store", "--layout", "ucla20") == 2
    np.save(folder / "clip002.npy", broken)
    np.save(folder / "clip000.npy", written["clip000"] + 1)
    with caplog.at_level("INFO"):
        found = make(folder, tmp_path / "store")
    assert "the source or the options have changed; starting over" in caplog.text
    np.testing.assert_array_equal(found.clips.clip(0).numpy(), written["clip000"] + 1)


@pytest.mark.parametrize("threshold", ["0.5", "0.7"])
def test_another_box_threshold_starts_again_and_is_recorded(
    threshold: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Clips with the boxes of two thresholds would lie in one store."""
    kinetics(tmp_path / "k400")
    with monkeypatch.context() as patch:  # a full disk, after all recordings
        patch.setattr(store_writer, "_index", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert run(tmp_path / "k400", tmp_path / "store", "--box-threshold", "0.5") == 2
    with caplog.at_level("INFO"):
        assert run(tmp_path / "k400", tmp_path / "store", "--box-threshold", threshold) == 0
    assert ("the source or the options have changed; starting over" in caplog.text) == (threshold != "0.5")
    options = json.loads((tmp_path / "store" / INDEX).read_text())["source"]["options"]
    assert options == {"box_threshold": float(threshold)}
    people = 2 if threshold == "0.5" else 1
    assert int((open_store(tmp_path / "store").clips.clip(0).abs().sum((0, 2, 3)) > 0).sum()) == people


@pytest.mark.parametrize("change", ["scores", "layout file", "nothing"])
def test_another_skeleton_starts_again(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Frames that were read as x, y, z do not stay in a store of x, y and a score, nor under another layout of that name."""
    folder = plain(tmp_path / "raw", {name: np.abs(joints[..., :17, :]) % 1 for name, joints in clips([3, 4, 5]).items()})
    text, layout = layout_text("h36m17"), tmp_path / "mine.toml"
    layout.write_text(text)
    with monkeypatch.context() as patch:  # a full disk, after all recordings
        patch.setattr(store_writer, "_index", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert run(folder, tmp_path / "store", "--layout", layout) == 2
    assert (tmp_path / "store.partial").exists()
    if change == "layout file":
        layout.write_text(text.replace('up = "z"', 'up = "y"'))
    with caplog.at_level("INFO"):
        assert run(folder, tmp_path / "store", "--layout", layout, *(["--scores"] if change == "scores" else [])) == 0
    assert ("the source or the options have changed; starting over" in caplog.text) == (change != "nothing")
    store = open_store(tmp_path / "store").clips
    assert (store.scores, store.layout.up) == (change == "scores", "y" if change == "layout file" else "z")


def test_a_stop_while_the_journal_is_verified_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = plain(tmp_path / "raw", clips([3, 4, 5]))
    full = OSError(28, "No space left on device")
    for name in ("_index", "_truncate"):
        with monkeypatch.context() as patch:
            patch.setattr(store_writer, name, lambda *_: (_ for _ in ()).throw(full))
            assert run(folder, tmp_path / "store", "--layout", "ucla20") == 2
    (tmp_path / "store.partial" / "layout.toml.123-0a1b2c3d.tmp").touch()  # of a run that was killed while it wrote the layout
    with caplog.at_level("INFO"):
        make(folder, tmp_path / "store")
    assert "resuming after 'clip002', recording 3" in caplog.text


def test_an_error_does_not_wait_for_the_hashes_of_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[list[dict[str, Any]]] = []
    hashes = store_writer._hashes

    def slow(files: Sequence[Path], stopped: threading.Event) -> list[dict[str, Any]]:
        assert stopped.wait(timeout=60)
        hashed.append(hashes(files, stopped))
        return hashed[0]

    monkeypatch.setattr(store_writer, "_hashes", slow)
    assert run(plain(tmp_path / "raw", clips([3, 4])), tmp_path / "store", "--layout", "ntu25") == 2
    assert hashed == [[]]


def test_two_runs_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = plain(tmp_path / "raw", clips(list(range(1, 31))))
    first = start(folder, tmp_path / "store")
    wait_for_lines(tmp_path / "store.partial" / "clips.jsonl", 1, first)
    assert run(folder, tmp_path / "store", "--layout", "ucla20") == 2
    assert f"store.partial: process {first.pid} on " in capsys.readouterr().err
    assert first.communicate()[0] is None
    assert first.returncode == 0
    assert len(open_store(tmp_path / "store").clips) == 30


def test_a_disk_that_fills_up_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    folder = plain(tmp_path / "raw", clips([20] * 30))
    limit = 50_000
    process = start(
        folder, tmp_path / "store", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    )
    said = process.communicate()[1]
    assert process.returncode == 2
    assert "store.partial: File too large; fix the cause and repeat the command, which resumes here" in said
    assert not (tmp_path / "store").exists()
    process = start(folder, tmp_path / "store")
    said = process.communicate()[1]
    assert process.returncode == 0
    assert "resuming after" in said
    assert run(tmp_path / "store", "--check") == 0


def test_many_clips_open_at_once(tmp_path: Path) -> None:
    """As many clips as the training split of NTU RGB+D 60, of one frame each: only the index grows."""
    make(plain(tmp_path / "raw", clips([1, 1])), tmp_path / "store")
    index = json.loads((tmp_path / "store" / INDEX).read_text())
    count = 40_091
    index["clips"] = {column: [values[0]] * count for column, values in index["clips"].items()}
    index["clips"]["name"] = [f"S001C001P001R001A{number:06d}" for number in range(count)]
    index["splits"] = {"train": list(range(count))}
    (tmp_path / "store" / INDEX).write_text(json.dumps(index))
    np.save(tmp_path / "store" / FRAMES, np.zeros((count, 1, 20, 3), np.float32))
    begin = time.process_time()
    assert len(open_store(tmp_path / "store").clips) == count
    assert time.process_time() - begin < 1


# Protocols


def prepared(tmp_path: Path, names: list[str], **numbers: list[int]) -> Prepared:
    written = {name: RNG.normal(size=(2 + number % 3, 1, 20, 3)).astype(np.float32) for number, name in enumerate(names)}
    columns = {column: dict(zip(names, values, strict=True)) for column, values in numbers.items()}
    labels = {name: int(name[-1]) - name.startswith("S") for name in names}
    return make(plain(tmp_path / "raw", written, labels, **columns), tmp_path / "store")


def by_name(found: Prepared, rows: torch.Tensor) -> set[str]:
    return {found.clips.names[row] for row in rows.tolist()}


@pytest.mark.parametrize(
    ("protocol", "number", "trains"), [("xsub", "subject", NTU_SUBJECTS), ("xview", "camera", (2, 3)), ("xset", "setup", (2, 4, 6))]
)
def test_protocols_go_by_numbers(protocol: str, number: str, trains: tuple[int, ...], tmp_path: Path) -> None:
    values = [1, 2, 3, 4, 5, 6] * 8
    names = [f"S{row:03d}C001P001R001A00{1 + row // 6 % 2}" for row in range(48)]
    found = prepared(tmp_path, names, **{number: values})
    splits = store_splits(found, SplitOptions(split=protocol))
    training = {name for name, value in zip(names, values, strict=True) if value in trains}
    assert by_name(found, splits.test) == set(names) - training
    assert by_name(found, splits.train) | by_name(found, splits.val) == training
    assert len(splits.val)
    assert not by_name(found, splits.train) & by_name(found, splits.val)


def test_choices_are_made_without_the_view_that_tests(tmp_path: Path) -> None:
    names = [f"a{row:02d}_s01_e00_v0{row % 2}" for row in range(60)]
    view = [1 + row // 2 % 3 for row in range(60)]
    splits = store_splits(
        found := prepared(tmp_path, names, camera=view), SplitOptions(split="cross-view-val"), imbalance=5, n_max=10
    )
    of_view = {number: {name for name, one in zip(names, view, strict=True) if one == number} for number in (1, 2)}
    assert by_name(found, splits.test) == of_view[2]
    assert by_name(found, splits.train) | by_name(found, splits.val) <= of_view[1]


def test_a_long_tailed_list_leaves_its_rest_to_validation(tmp_path: Path) -> None:
    names = [f"a{row:02d}_s01_e00_v0{row % 2}" for row in range(60)]
    found = prepared(tmp_path, names, camera=[1 + row // 2 % 3 for row in range(60)], subject=[1 + row % 7 for row in range(60)])
    splits = store_splits(found, SplitOptions(split="cross-view"), imbalance=5, n_max=10)
    assert splits.class_counts().tolist() == [10, 2]
    assert found.clips.class_counts(splits.val).tolist() == [10, 10]
    assert not by_name(found, splits.train) & by_name(found, splits.val)
    same = store_splits(found, SplitOptions(split="cross-view"), imbalance=5, n_max=10)
    assert torch.equal(same.train, splits.train)
    (tmp_path / "list.txt").write_text("\n".join(found.clips.names[row] for row in splits.train.tolist()))
    assert torch.equal(store_splits(found, SplitOptions(split="cross-view"), train_list=tmp_path / "list.txt").train, splits.train)


def test_all_cameras_of_a_performance_are_held_out_together(tmp_path: Path) -> None:
    names = [f"a{row:02d}_s01_e00_v0{row % 2}" for row in range(80)]
    performance = [row // 4 for row in range(80)]
    found = prepared(
        tmp_path, names, camera=[1 + row // 2 % 2 if row < 72 else 3 for row in range(80)],
        subject=[1 + number % 10 for number in performance], replication=[1 + number // 10 for number in performance],
    )  # fmt: skip
    splits = store_splits(found, SplitOptions(split="cross-view"))
    held = by_name(found, splits.val)
    assert {
        names[row] for row in range(72) if (performance[row], row % 2) in {(performance[names.index(n)], int(n[-1])) for n in held}
    } == held


def test_lists_of_the_store_are_protocols(tmp_path: Path) -> None:
    names = [f"clip{row:03d}_{row % 2}" for row in range(12)]
    found = prepared(tmp_path, names, split=["train"] * 8 + ["val"] * 2 + ["test"] * 2)
    splits = store_splits(found)
    assert [len(rows) for rows in (splits.train, splits.val, splits.test)] == [8, 2, 2]
    for protocol, message in (
        ("xsub", r"'xsub' is a protocol of NTU RGB\+D, whose recordings are not named 'clip000_0'; this data supports --train"),
        ("mine", "unknown split 'mine'; this data supports --train-split train --test-split test; --split random; --fold 1/5"),
    ):
        with pytest.raises(DataError, match=message):
            store_splits(found, SplitOptions(split=protocol))


def test_lists_of_ntu_are_the_published_ones() -> None:
    """Reproduces the published list from the names of a store of raw NTU RGB+D."""
    folder = os.environ.get("SHAPMIX_NW_UCLA")
    lists = Path(folder or "").parent / "lists"
    if not folder or not (lists / "NTU120_xsub_exp_100.txt").exists():
        pytest.skip("no published lists beside the folder in SHAPMIX_NW_UCLA")
    names = (lists / "NTU120_xsub_train.txt").read_text().split()
    shuffled = [names[row] for row in np.random.default_rng(0).permutation(len(names))] + ["S001C001P003R001A001"]
    numbers = {
        key: torch.tensor([int(name[at : at + 3]) for name in shuffled])
        for key, at in (("setup", 1), ("camera", 5), ("subject", 9), ("replication", 13))
    }
    from shapmix.data.clips import ClipStore

    ones = torch.zeros(len(shuffled), 1, 25, 3)
    labels = torch.tensor([int(name[-3:]) - 1 for name in shuffled])
    store = ClipStore(ones, torch.arange(len(shuffled) + 1), labels, shuffled, load_layout("ntu25"), [str(k) for k in range(120)])
    splits = store_splits(Prepared(store, numbers, {}, {}), SplitOptions(split="xsub"), imbalance=100, n_max=600)
    drawn = [shuffled[row] for row in splits.train.tolist()]
    assert drawn == (lists / "NTU120_xsub_exp_100.txt").read_text().split()


def test_short_clips_are_left_out(tmp_path: Path) -> None:
    names = [f"clip{row:03d}_{row % 2}" for row in range(24)]
    found = prepared(tmp_path, names, split=["train"] * 16 + ["test"] * 8)
    splits = store_splits(found, min_frames=3)
    for rows in (splits.train, splits.val, splits.test):
        assert (found.clips.lengths[rows] >= 3).all()


def test_short_clips_and_dropped_classes_may_be_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"clip{row:03d}_{row % 4 // 2 + row % 4 // 3}" for row in range(32)]  # three classes, clips of 2, 3 and 4 frames
    found = prepared(tmp_path, names, split=["train"] * 20 + ["test"] * 12)
    (tmp_path / "list.txt").write_text("\n".join(reversed(names[:16])) + "\n")
    with caplog.at_level("INFO"):
        splits = store_splits(found, min_frames=3, train_list=tmp_path / "list.txt", drop_classes=["2"])
    kept = [name for name in reversed(names[:16]) if name[-1] != "2" and found.clips.lengths[names.index(name)] >= 3]
    assert [splits.store.names[row] for row in splits.train.tolist()] == kept
    assert "clips of fewer than 3 frames: clip000_0, clip006_1, " in caplog.text


def test_nw_ucla_from_a_store_trains_as_from_its_files(tmp_path: Path) -> None:
    folder = os.environ.get("SHAPMIX_NW_UCLA")
    if not folder:
        pytest.skip("SHAPMIX_NW_UCLA is not set: no NW-UCLA recordings")
    store_writer.prepare(find_source(Path(folder)), tmp_path / "store")
    splits = store_splits(open_store(tmp_path / "store"), imbalance=10, n_max=100)
    published = Path(folder) / "lt_exp_10.txt"
    names = [splits.store.names[row] for row in splits.train.tolist()]
    if published.exists():
        assert names == published.read_text().split()
    assert (len(splits.train), len(splits.test)) == (403, 464)


def test_a_store_trains(tmp_path: Path) -> None:
    from shapmix import train

    names = [f"clip{row:03d}_{row % 3}" for row in range(60)]
    prepared(tmp_path, names, split=["train"] * 45 + ["test"] * 15)
    arguments = ["--dataset", "store", "--data-root", str(tmp_path / "store"), "--run-dir", str(tmp_path / "run"), "--epochs", "2"]
    arguments += [
        "--num-frames",
        "8",
        "--network.widths",
        "8",
        "--batch-size",
        "8",
        "--saliency.warmup-epochs",
        "1",
        "--threads",
        "1",
    ]
    assert train.main(arguments) == 0
    assert (tmp_path / "run" / "result.json").exists()
    shutil.rmtree(tmp_path / "store")
    assert train.main([*arguments[:4], "--run-dir", str(tmp_path / "other")]) == 2
