"""Malicious and damaged files: every reader fails fast, in bounded memory, with a DataError."""

from __future__ import annotations

import json
import lzma
import os
import pickle
import random
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shapmix import prepare
from shapmix.data.nw_ucla import load_nw_ucla
from shapmix.data.sources import bounded
from shapmix.data.sources.find import find_source
from shapmix.data.sources.ntu_raw import read_skeletons
from shapmix.data.sources.plain import Plain, read_array
from shapmix.data.sources.restricted import load_pickle
from shapmix.data.store import INDEX, NUMBERS, open_store
from shapmix.process.errors import DataError
from shapmix.skeleton.layout import LayoutError, layout_text, load_layout
from tests.data.fuzz.readers import Readers, mutated

RNG = np.random.default_rng(0)
CLIP = "a08_s01_e00_v01"


def ucla_clip(**change: Any) -> dict[str, Any]:
    return {"file_name": CLIP, "skeletons": [[[0.1, 0.2, 0.3]] * 20] * 2, "label": 7} | change


def plain(folder: Path, joints: np.ndarray, table: str = "name,label\na,0\nb,1\n", layout: str = "ucla20") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "labels.csv").write_text(table)
    (folder / "layout.toml").write_text(layout_text(layout))
    for name in "ab":
        np.save(folder / f"{name}.npy", joints)
    return folder


def run(*arguments: object) -> int:
    return prepare.main([str(argument) for argument in arguments])


def peak_of(code: str, *arguments: object) -> tuple[str, int]:
    """Output of a subprocess, and the growth of its peak memory after the imports in kB."""
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from shapmix.data.clips import DataError\nfrom shapmix.data.sources.find import find_source\n"
        "def peak():\n    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        f"before = peak()\ntry:\n    {code}\nexcept DataError as error:\n    print(error)\nprint(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *said, grown = done.stdout.splitlines()
    return "\n".join(said), int(grown)


# Archives


def xz_of_zeros(path: Path, name: str, megabytes: int, times: int) -> Path:
    """A tar archive of zeros at a compression ratio of 7000; concatenated xz streams are one stream."""
    entry = tarfile.TarInfo(name)
    entry.size = megabytes << 20
    whole = lzma.compress(entry.tobuf(tarfile.USTAR_FORMAT) + bytes(entry.size), preset=0)
    path.write_bytes(whole * times)
    return path


def test_an_archive_that_unpacks_to_much_takes_little_memory(tmp_path: Path) -> None:
    said, grown = peak_of("find_source(Path(sys.argv[1]), 'nw_ucla')", xz_of_zeros(tmp_path / "one.tar.xz", f"{CLIP}.json", 200, 1))
    assert "unpacks to 209715200 bytes; the limit is" in said
    assert grown < 60_000
    said, grown = peak_of("find_source(Path(sys.argv[1]), 'nw_ucla')", xz_of_zeros(tmp_path / "many.tar.xz", "a.txt", 15, 10))
    assert "unpacks to more than 200 times its size" in said
    assert grown < 60_000


def test_a_header_of_an_archive_is_not_taken_whole(tmp_path: Path) -> None:
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
        entry = tarfile.TarInfo("x")
        entry.type, entry.size = kind, 40 << 20
        path = tmp_path / "header.tar"
        path.write_bytes(entry.tobuf(tarfile.USTAR_FORMAT) + bytes(entry.size))
        with pytest.raises(DataError, match="a header of 41943040 bytes"):
            list(bounded.tar_files(path, "", 1 << 40))


def test_a_clip_of_an_npz_that_unpacks_to_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("joints.npy", "w", force_zip64=True) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (1_310_000, 20, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(300):
            file.write(bytes(1 << 20))
    with pytest.raises(DataError, match=r"unpacks to .* bytes; the limit for a clip is"):
        read_array(path)


# Pickles


def memo_tree(depth: int) -> list[bytes]:
    """Opcodes of nested pairs, each memoised once: few bytes, 2 ** depth leaves."""
    steps = [b"K\x01\x94"]
    steps += [b"h" + bytes([level]) + b"h" + bytes([level]) + b"\x86\x94" for level in range(depth)]
    return steps


PICKLES = {
    "a tuple of tuples as a key": b"\x80\x04}" + b"".join(memo_tree(100)) + b"N" + b"s.",
    "a set of tuples of tuples": b"\x80\x04\x8f(" + b"".join(memo_tree(100)) + b"\x90.",
    "a place of the memo far away": b"\x80\x02K\x01r\xff\xff\xff\x7f0N" + b"h\x05.",
    "bytes of a number": b"\x80\x02c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R.",
    "a byte array of a number": b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x20\x85R.",
    "much made of a little": b"\x80\x02" + b"X\x00\x10\x00\x00" + b"a" * 4096 + b"q\x00"
    + b"c_codecs\nencode\nq\x01" + b"h\x01h\x00\x85R" * 50_000 + b".",
    "8 exabytes of text": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.",
    "8 exabytes of bytes": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
    "a number of many digits": b"I" + b"9" * 5000 + b"\n.",
    "a number of many bytes": b"\x8b\x00\x00\x10\x00" + b"\x01" * (1 << 20) + b".",
    "an empty array with a type": b"\x80\x02cnumpy\nndarray\nK\x05\x85X\x02\x00\x00\x00f4\x86R.",
    "an array by itself": b"\x80\x04cnumpy\nndarray\n)\x81.",
    "an array that never came": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R.",
}  # fmt: skip


@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES.keys())
def test_a_pickle_made_to_harm_ends_soon(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    begin = time.process_time()
    with pytest.raises(DataError, match=r"a\.pkl"):
        load_pickle(path)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("content", [b"\x80\x02]q\x00h\x00a.", b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."])
def test_a_pickle_of_deep_lists_is_no_data_set(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="has no list 'annotations'"):
        find_source(path)


def nested(depth: int = 60) -> Any:
    """Nested lists: one object per level, 2 ** depth leaves."""
    tree: Any = 1
    for _ in range(depth):
        tree = [tree, tree]
    return tree


def ring() -> Any:
    found: list[Any] = []
    found.append(found)
    return found


KEYPOINT = RNG.normal(size=(1, 4, 25, 3))


@pytest.mark.parametrize("odd", [nested(), ring(), 10**9, 10**400, "x" * 5000, {"a": 1}, None, True, -1, np.zeros((2, 2)), 1.5])
@pytest.mark.parametrize(
    "field",
    [
        "frame_dir",
        "label",
        "total_frames",
        "keypoint",
        "keypoint_score",
        "img_shape",
        "frame_inds",
        "anno_inds",
        "split",
        "annotations",
    ],
)
def test_every_field_of_a_pyskl_pickle_is_checked(field: str, odd: Any, tmp_path: Path) -> None:
    entry: dict[str, Any] = {"frame_dir": "a", "label": 0, "total_frames": 4, "keypoint": KEYPOINT}
    if field in ("frame_inds", "anno_inds", "img_shape", "keypoint_score"):
        entry = {"frame_dir": "a", "label": 0, "img_shape": (100, 100), "keypoint": RNG.uniform(1, 9, size=(6, 17, 3)).astype("f2")}
        entry |= {"frame_inds": np.arange(6), "anno_inds": np.arange(6)} if field != "keypoint_score" else {}
        entry["keypoint"] = entry["keypoint"] if field != "keypoint_score" else RNG.uniform(1, 9, size=(1, 4, 17, 2))
    content: dict[str, Any] = {"split": {"train": ["a"]}, "annotations": [entry]}
    if field in content:
        content[field] = odd
    else:
        entry[field] = odd
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content))
    begin = time.process_time()
    try:
        find_source(path).read(0)
    except DataError as error:
        assert len(str(error)) < 6000  # noqa: PT017
    else:
        assert (field, type(odd)) in {("split", type(None)), ("frame_dir", int), ("frame_dir", bool), ("frame_dir", str)}
    assert time.process_time() - begin < 5


def test_a_pickle_of_torch_tensors_is_no_attack(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"annotations": [{"frame_dir": "a", "keypoint": torch.zeros(1, 4, 25, 3)}]}))
    with pytest.raises(DataError) as caught:
        find_source(path)
    assert str(caught.value) == f"{path}: contains torch tensors; save NumPy arrays: x.numpy()"
    torch.save({"annotations": []}, path)
    with pytest.raises(DataError, match=r"the output of torch\.save or numpy\.savez; save NumPy arrays with pickle\.dump"):
        load_pickle(path)


# JSON


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"[]," * 3_000_000 + b"[]]", "more than 2000000 lists"),
        (json.dumps(ucla_clip()).replace("0.1", "1" * 401, 1).encode(), r"frame 0, joint 0 is \[11.*not three numbers"),
        (json.dumps(ucla_clip()).replace("0.1", "1" * 5001, 1).encode(), "not valid JSON"),
        (json.dumps(ucla_clip()).replace("0.1", "1e39", 1).encode(), "frame 0, joint 0 has a coordinate that is not finite"),
        (
            json.dumps(ucla_clip(skeletons=[[["1.5", 0, 0]] * 20])).encode(),
            r"frame 0, joint 0 is \['1.5', 0, 0\], not three numbers",
        ),
        (
            json.dumps(ucla_clip(skeletons=[[[0.1, 0, 0]] * 20, [[0, 0, 0]] * 19 + [[True, 0, 0]]])).encode(),
            "frame 1, joint 19 is .True",
        ),
        (json.dumps(ucla_clip(skeletons=[[[[1], 0, 0]] * 20])).encode(), "frame 0, joint 0 is"),
        (json.dumps(ucla_clip(label=True)).encode(), "label True is out of range"),
        (json.dumps(ucla_clip(label=7.0)).encode(), "label 7.0 is out of range"),
        (b"\xff\xfe\x00", "not valid JSON"),
    ],
    ids=range(11),
)
def test_a_json_clip_of_anything_but_numbers_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "all_sqe").mkdir()
    (tmp_path / "all_sqe" / f"{CLIP}.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"{CLIP}\.json: .*{message}"):
        find_source(tmp_path)
    with pytest.raises(DataError, match=rf"{CLIP}\.json: .*{message}"):
        load_nw_ucla(tmp_path)


def test_a_clip_of_ten_thousand_frames_is_read(tmp_path: Path) -> None:
    (tmp_path / "all_sqe").mkdir()
    frames = [[[-0.123456, 0.123456, 2.123456]] * 20] * 10_000
    (tmp_path / "all_sqe" / f"{CLIP}.json").write_text(json.dumps(ucla_clip(skeletons=frames)))
    assert find_source(tmp_path).read(0).joints.shape == (10_000, 1, 20, 3)
    source = Plain(plain(tmp_path / "plain", RNG.normal(size=(10_000, 2, 20, 3)).astype(np.float32)))
    assert source.read(0).joints.shape == (10_000, 2, 20, 3)


# Tables, layouts and stores


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,label\na,1000000000\n", "'a': label 1000000000; class ids are 0 to 9999"),
        (f"name,label\na,{'9' * 5000}\n", "is not the name of a class"),
        (f"name,label\na,{'9' * 900}\n", "class ids are 0 to 9999"),
        ("name,label\na,0\n\x00,1\n", "control character"),
        ('name,label\na,"walk\nrun"\n', "class 'walk\\nrun' has a line break or another control character in its name; rename it"),
        ("name,label\na,walk\x1b[31m\n", "control character"),
        (f"name,label\n{'a' * 5000},1\n", "is not the name of a clip"),
        (f"name,label\n{'a' * 900},1\n", "is not a valid file name"),
        (f"name,label,subject\na,1,{'1' * 5000}\n", "line 2: subject"),
        (f"name,label\na,{'x' * 200_000}\n", "not a UTF-8 table"),
        ("name,label,name\na,0,b\n", "line 1: duplicate column name"),
        ("name,label,split\n" + "".join(f"a,0,list{number}\n" for number in range(65)), "more than 64 lists"),
    ],
    ids=range(12),
)
def test_a_table_out_of_bounds_is_named(table: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels\.csv") as caught:
        Plain(plain(tmp_path, np.ones((2, 20, 3)), table))
    assert message in str(caught.value)


LAYOUT = layout_text("ucla20")


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 50_000,
        "name = 1" + "1" * 5000,
        LAYOUT.replace("name = ", "name = 3 #", 1),
        LAYOUT.replace("joints = [", "joints = [3,", 1),
        LAYOUT.replace("joints = [", "joints = [[],", 1),
        LAYOUT.replace("centre = ", "centre = [] #", 1),
        LAYOUT.replace("flips = [", "flips = [1,", 1),
        LAYOUT.replace("flips = [", "flips = ['head',", 1),
        LAYOUT.replace("[parents]", "[[parents]]", 1),
        LAYOUT.replace("[parts]", "[[parts]]", 1),
        LAYOUT.replace("[parts]", "[parts]\nmore = 1", 1),
        LAYOUT.replace("[parents]", "[parents]\nhead = 1", 1),
        LAYOUT.replace("[parts]", '[parts]\n"a\\nb" = ["head"]', 1),
        LAYOUT.replace("joints = [", "joints = [" + ",".join(f"'j{number}'" for number in range(2000)) + ",", 1),
        LAYOUT + "#" * (2 << 20),
        "",
    ],
    ids=range(16),
)
def test_a_malformed_layout_is_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "layout.toml"
    path.write_text(text)
    with pytest.raises(LayoutError, match=r"layout\.toml"):
        load_layout(path)


def stored(tmp_path: Path) -> Path:
    assert run(plain(tmp_path / "raw", np.ones((2, 20, 3), np.float32)), tmp_path / "store") == 0
    return tmp_path / "store"


ODD: list[Any] = [
    None,
    True,
    -1,
    1.5,
    10**30,
    "x",
    [],
    [[]],
    {},
    {"x": 1},
    [None],
    [True],
    [10**30, 1],
    [-1, 0],
    ["a", "a"],
    [0, 10**10],
]


def test_every_field_of_a_store_is_checked(tmp_path: Path) -> None:
    store = stored(tmp_path)
    whole = json.loads((store / INDEX).read_text())
    places = (
        [(key,) for key in whole if key != "shapmix"]
        + [("clips", column) for column in whole["clips"]]
        + [("splits", "train"), ("columns", "session")]
    )
    for place in places:
        for odd in ODD:
            index = json.loads(json.dumps(whole))
            (index if len(place) == 1 else index[place[0]])[place[-1]] = odd
            (store / INDEX).write_text(json.dumps(index))
            fine = (
                (place in (("splits",), ("columns",)) and odd == {})
                or (place == ("splits", "train") and odd == [])
                or (place == ("source",) and isinstance(odd, dict))
                or (place == ("columns", "session") and odd == ["a", "a"])
                or (place[-1] in NUMBERS and odd == [0, 10**10])
            )
            if fine:
                open_store(store)
            else:
                with pytest.raises(DataError, match="store"):
                    open_store(store)
    for content in (b"[" * 100_000, b"\xff", b"", b"[1]", b"null"):
        (store / INDEX).write_bytes(content)
        with pytest.raises(DataError, match=r"store\.json"):
            open_store(store)
    (store / INDEX).unlink()
    with pytest.raises(DataError, match=r"no store\.json"):
        open_store(store)


def test_frames_of_another_shape_are_refused(tmp_path: Path) -> None:
    store = stored(tmp_path)
    for frames in (np.float32(1), np.zeros(4, np.float32), np.zeros((4, 1, 20), np.float32), np.zeros((4, 1, 19, 3), np.float32)):
        np.save(store / "frames.npy", frames)
        with pytest.raises(DataError):
            open_store(store)
    np.savez(store / "frames.npz", frames=np.zeros(3))
    (store / "frames.npz").replace(store / "frames.npy")
    with pytest.raises(DataError, match="damaged store"):
        open_store(store)


# Content of recordings


def test_every_source_names_a_clip_of_zeros(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = plain(tmp_path / "raw", np.ones((2, 20, 3), np.float32))
    np.save(folder / "b.npy", np.zeros((3, 20, 3), np.float32))
    assert run(folder, tmp_path / "store") == 2
    assert "b.npy: no frame holds a body, all coordinates are zero; remove the clip (--skip-damaged" in capsys.readouterr().err
    with caplog.at_level("WARNING"):
        assert run(folder, tmp_path / "store", "--skip-damaged") == 0
    assert "skipped: " in caplog.text
    assert open_store(tmp_path / "store").clips.names == ["a"]


def scored(people: int = 1, joints: int = 17) -> np.ndarray:
    poses = RNG.uniform(10, 600, size=(4, people, joints, 3))
    poses[..., 2] = RNG.uniform(0, 1, size=poses.shape[:-1])
    return poses.astype(np.float32)


@pytest.mark.parametrize(("layout", "joints"), [("h36m17", 17), ("uav17", 17), ("mediapipe33", 33)])
def test_scores_are_not_taken_for_a_depth(layout: str, joints: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = plain(tmp_path / "raw", scored(joints=joints), layout=layout)
    assert run(folder, tmp_path / "store", "--skip-damaged") == 2
    said = capsys.readouterr().err
    assert "recording 'a': the third coordinate is from 0 to 1 and the others reach " in said
    assert "If it is a score, declare it (--scores); if it is a depth, give --depth" in said
    assert not (tmp_path / "store").exists()
    assert run(folder, tmp_path / "scores", "--scores") == 0
    assert open_store(tmp_path / "scores").clips.scores
    assert run(folder, tmp_path / "depth", "--depth") == 0
    assert not open_store(tmp_path / "depth").clips.scores
    assert run(folder, tmp_path / "both", "--depth", "--scores") == 2
    assert "contradict each other" in capsys.readouterr().err


def test_scores_in_a_pickle_of_3d_poses_stop_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    poses = scored().transpose(1, 0, 2, 3)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"annotations": [{"frame_dir": "a", "label": 0, "keypoint": poses}]}))
    assert run(tmp_path / "a.pkl", tmp_path / "store") == 2
    assert "17 joints of 3 numbers, and the format does not name the skeleton" in capsys.readouterr().err
    assert run(tmp_path / "a.pkl", tmp_path / "store", "--layout", "h36m17") == 2
    assert "write it as 'keypoint_score'" in capsys.readouterr().err


def rows_of_17(folder: Path, joints: np.ndarray) -> Path:
    """One clip [T, M, V, C] in MS-G3D's form."""
    folder.mkdir()
    np.save(folder / "train_data_joint.npy", joints.transpose(3, 0, 2, 1)[None])
    (folder / "train_label.pkl").write_bytes(pickle.dumps((["a"], [0])))
    return folder


def test_a_depth_in_rows_of_17_joints_is_not_taken_for_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = rows_of_17(tmp_path / "3d", RNG.normal(size=(4, 1, 17, 3)).astype(np.float32))
    assert run(folder, tmp_path / "store", "--skip-damaged") == 2
    said = capsys.readouterr().err
    assert "recording 'a': the last coordinate is read as a score, but it is between -" in said
    assert "if it is a depth, give --layout (and not --scores)" in said
    assert not (tmp_path / "store").exists()
    assert run(folder, tmp_path / "depth", "--layout", "h36m17") == 0
    assert not open_store(tmp_path / "depth").clips.scores


def test_only_rows_of_17_joints_and_a_score_are_guessed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level("INFO"):
        assert run(rows_of_17(tmp_path / "raw", scored()), tmp_path / "store") == 0
    assert open_store(tmp_path / "store").clips.scores
    assert "17 joints of 3 numbers (the last a score); assuming layout coco17 (give --layout if" in caplog.text
    assert "layout coco17; the last coordinate is a confidence score" in caplog.text
    assert run(rows_of_17(tmp_path / "xy", scored()[..., :2]), tmp_path / "2d") == 2
    said = capsys.readouterr().err
    assert "17 joints of 2 numbers, and the format does not name the skeleton; give --layout: one of coco17, h36m17, uav17" in said
    assert run(tmp_path / "xy", tmp_path / "2d", "--layout", "coco17") == 0
    assert not open_store(tmp_path / "2d").clips.scores


@pytest.mark.parametrize("change", [[1, 1, 5], [0.002, 0.002, 1], [1, 1, 0], [1, 1, -1]])
def test_other_third_coordinates_are_coordinates(change: list[float], tmp_path: Path) -> None:
    assert run(plain(tmp_path / "raw", scored(joints=20) * np.float32(change)), tmp_path / "store") == 0


def test_classes_without_recordings_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = plain(tmp_path / "raw", np.ones((2, 20, 3), np.float32), "name,label\na,1\nb,3\n")
    with caplog.at_level("WARNING"):
        assert run(folder, tmp_path / "store", "--label-offset", "1") == 0
    assert "1 of 3 classes have no recording: 2" in caplog.text


def test_a_missing_array_is_called_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_array(tmp_path / "gone.npy")
    assert str(caught.value) == f"{tmp_path / 'gone.npy'}: no such file"
    source = Plain(plain(tmp_path / "raw", np.ones((2, 20, 3))))
    (tmp_path / "raw" / "b.npy").unlink()
    with pytest.raises(DataError, match=r"b\.npy: no such file$"):
        source.read(1)


def skeleton(mark: bytes = b"", bodies: int = 1) -> bytes:
    body = [b"%d 0 1 1 1 1 0 0.1 -0.1 2", b"25", *[b"0.5 0.25 2 1 2 3 4 0 0 0 1 2"] * 25]
    lines = [b"1", b"%d" % bodies, *(b"\n".join([body[0] % number, *body[1:]]) for number in range(bodies))]
    return mark + b"\n".join(lines) + b"\n"


def test_a_byte_order_mark_is_no_damage() -> None:
    mark = b"\xef\xbb\xbf"
    np.testing.assert_array_equal(read_skeletons(skeleton(mark), "file").joints, read_skeletons(skeleton(), "file").joints)
    with pytest.raises(DataError, match="line 1"):
        read_skeletons(mark + mark + skeleton(), "file")
    with pytest.raises(DataError, match="line 0"):
        read_skeletons(mark, "file")


def test_a_frame_of_many_bodies_is_refused() -> None:
    with pytest.raises(DataError, match="line 2: 257 bodies in a frame; a recording has at most 256"):
        read_skeletons(skeleton(bodies=257), "file")


# The folder that prepare works in


def test_a_foreign_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = plain(tmp_path / "raw", np.ones((2, 20, 3), np.float32))
    partial, out = tmp_path / "store.partial", tmp_path / "store"
    mine = tmp_path / "mine"
    mine.mkdir()

    def refused(what: str) -> None:
        assert run(folder, out) == 2
        assert what in capsys.readouterr().err
        assert not out.is_dir()

    def holding(files: dict[str, str]) -> None:
        partial.mkdir()
        for name, content in files.items():
            (partial / name).write_text(content)
        refused(f"store.partial was not created by this command: it contains '{min(files)}'; move it away or give another OUT")
        assert {path.name: path.read_text() for path in partial.iterdir()} == files
        for path in partial.iterdir():
            path.unlink()
        partial.rmdir()

    holding({"frames.npy": "mine"})
    holding({"clips.jsonl": "mine", "store.json": "{}"})
    holding({"notes.txt": "mine"})
    partial.symlink_to(mine)
    refused("store.partial is a link or a file, not a folder of this command")
    partial.unlink()
    partial.write_text("mine")
    refused("store.partial is a link or a file, not a folder of this command")
    assert partial.read_text() == "mine"
    partial.unlink()
    partial.mkdir()
    (partial / "origin.json").write_text('{"shapmix": "0.1.0"}')
    (mine / "frames").write_text("mine")
    (partial / "frames.npy").symlink_to(mine / "frames")
    refused("it contains 'frames.npy'")
    assert (mine / "frames").read_text() == "mine"
    (partial / "frames.npy").unlink()
    out.symlink_to(tmp_path / "nowhere")
    refused("store exists")
    out.unlink()
    out.write_text("mine")
    refused("store exists")
    out.unlink()
    lock = tmp_path / "store.lock"
    lock.write_text("mine")
    refused("store.lock is not a lock file of shapmix and is not overwritten; move it away")
    assert lock.read_text() == "mine"
    lock.unlink()
    lock.symlink_to(mine / "frames")
    refused("store.lock")
    assert (mine / "frames").read_text() == "mine"
    lock.unlink()
    (partial / "origin.json.123-0a1b2c3d.tmp").write_text("cut o")
    assert run(folder, out) == 0  # begun by this command, from a different source
    assert sorted(path.name for path in out.iterdir()) == ["frames.npy", "layout.toml", "store.json"]


@pytest.mark.parametrize("journal", ["[1]\n", "{}\n", '{"name": "b"}\n', '{"name": "a", "length": -1}\n', "[" * 100_000, "\xff\n"])
@pytest.mark.parametrize("frames", [b"", b"noise", b"\x93NUMPY\x01\x00\xff\xff"])
def test_a_damaged_journal_starts_again(journal: str, frames: bytes, tmp_path: Path) -> None:
    folder = plain(tmp_path / "raw", np.ones((2, 20, 3), np.float32))
    np.save(folder / "b.npy", np.full((2, 20, 3), np.inf, np.float32))
    assert run(folder, tmp_path / "store") == 2
    assert (tmp_path / "store.partial" / "clips.jsonl").read_text()
    (tmp_path / "store.partial" / "clips.jsonl").write_text(journal, encoding="latin1")
    (tmp_path / "store.partial" / "frames.npy").write_bytes(frames)
    assert run(folder, tmp_path / "store", "--skip-damaged") == 0
    assert open_store(tmp_path / "store").clips.names == ["a"]


def test_a_signalling_nan_is_an_error_without_a_warning(tmp_path: Path) -> None:
    for name, bits in (("f4", 0x7FA00000), ("f8", 0x7FF4000000000000), ("f2", 0x7D00)):
        joints = np.ones((2, 20, 3), name)
        joints.view(name.replace("f", "u"))[1, 3, 0] = bits
        np.save(tmp_path / "a.npy", joints)
        with pytest.raises(DataError, match="frame 1, person 0, joint 3 is not finite"):
            read_array(tmp_path / "a.npy")


# Fuzzing

READERS = (
    "any", "frames", "index", "json", "labels", "layout", "list", "npy", "npz", "ntu npz", "ntu tar", "ntu zip", "pickle", "rows",
    "skeleton", "table", "ucla archive", "ucla table",
    "alphapose", "bvh", "coco_results", "mediapipe", "mmpose", "openpose", "ultralytics",
    "babel classes", "babel labels", "kinetics poses", "kinetics table", "mmaction", "pku label", "pku skeleton", "pku split",
    "smarthome", "stgcn labels", "stgcn rows", "uav",
)  # fmt: skip


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Readers:
    return Readers(tmp_path_factory.mktemp("fuzz"))


def test_every_reader_is_fuzzed(readers: Readers) -> None:
    assert sorted(readers.read) == sorted(readers.seeds) == sorted(READERS)


@pytest.mark.parametrize("name", READERS)
def test_damage_anywhere_is_an_error_or_a_recording(name: str, readers: Readers) -> None:
    for seed in readers.seeds[name]:
        if name != "any":
            readers.read[name](seed)
    for number in range(60):
        generator = random.Random(f"{name} {number}")
        readers.check(name, mutated(generator.choice(readers.seeds[name]), generator))


@pytest.mark.slow
def test_guided_fuzzing_of_the_readers_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed: no coverage-guided fuzzing of the readers")
    harness, corpus = Path(__file__).parent / "fuzz" / "readers_fuzz.py", tmp_path / "corpus"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, harness, "--seeds", corpus], check=True, env=environment, capture_output=True)
    limits = ["-max_total_time=60", "-rss_limit_mb=2048", "-timeout=20", "-max_len=20000"]
    done = subprocess.run([sys.executable, harness, *limits, corpus], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
