"""Readers: every format round-trips, errors name the damaged item, and no pickle executes code."""

from __future__ import annotations

import mmap
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shapmix import prepare
from shapmix.data.nw_ucla import load_nw_ucla
from shapmix.data.sources.find import find_source
from shapmix.data.sources.msg3d import Msg3d
from shapmix.data.sources.ntu_npz import NtuNpz
from shapmix.data.sources.plain import Plain
from shapmix.data.sources.pyskl import Pyskl
from shapmix.data.sources.registry import FORMATS, SourceOptions, source
from shapmix.data.sources.restricted import begins_with_dictionaries, load_pickle, mentions
from shapmix.process.errors import DataError

NAMES = ["S001C001P001R001A003", "S001C002P001R001A001", "S002C001P003R002A003"]
RNG = np.random.default_rng(0)


def dump(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


# Pickles


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_and_containers_come_back(protocol: int, tmp_path: Path) -> None:
    content = {
        "half": RNG.normal(size=(2, 3)).astype(np.float16),
        "columns": np.asfortranarray(RNG.normal(size=(3, 4))),
        "swapped": np.arange(4, dtype=">i4"),
        "text": np.array(["a", "bc"]),
        "number": np.int64(5),
        "nested": [(1, 2.5, None, True, "é"), {"x": {1, 2}}, b"\xff"],
    }
    found = load_pickle(dump(tmp_path / "a.pkl", content, protocol))
    assert list(found) == list(content)
    for name, value in content.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(found[name], value)
            assert found[name].dtype == value.dtype.newbyteorder("=") or found[name].dtype == value.dtype
        else:
            assert found[name] == value


@pytest.mark.parametrize("protocol", [3, 4])
def test_large_arrays_stay_in_the_file_and_bytes_are_bytes(protocol: int, tmp_path: Path) -> None:
    array, content = RNG.normal(size=1000), bytes(range(256)) * 4
    found = load_pickle(dump(tmp_path / "a.pkl", {"array": array, "content": content, "listed": [content]}, protocol))
    base = found["array"]
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap)
    np.testing.assert_array_equal(found["array"], array)
    assert (found["content"], found["listed"]) == (content, [content])
    assert load_pickle(dump(tmp_path / "b.pkl", content, protocol)) == content
    assert load_pickle(dump(tmp_path / "c.pkl", bytearray(content), protocol)) == content


@pytest.mark.parametrize("protocol", range(6))
def test_what_a_pickle_holds_is_seen_from_its_beginning(protocol: int, tmp_path: Path) -> None:
    entries = [{"frame_dir": "a", "raw_file": "b"}, {"frame_dir": "c"}]
    path = tmp_path / "a.pkl"
    for content, expected in ((entries, True), (entries[:1], True), ({"annotations": entries}, False), ((["a"], [0]), False)):
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        assert begins_with_dictionaries(path) == expected, content
        assert mentions(path, "raw_file") == ("raw_file" in str(content))
    path.write_bytes(b"")
    assert not begins_with_dictionaries(path)
    assert not mentions(path, "raw_file")


class Runs:
    """Its pickle calls `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (Runs(os.system, "touch ran"), "posix.system"),
        (Runs(eval, "open('ran', 'w')"), "builtins.eval"),
        (Runs(exec, "open('ran', 'w')"), "builtins.exec"),
        (Runs(getattr, "", "join"), "builtins.getattr"),
        (Runs(subprocess.Popen, ["touch", "ran"]), "subprocess.Popen"),
        (Path("ran"), "pathlib"),
        (np.array([1, None], dtype=object), "an array of type 'O8'"),
        (np.zeros(2, dtype=[("a", "f4")]), "an array of type 'V4'"),
    ],
)
def test_what_is_not_data_is_refused_and_nothing_runs(
    content: Any, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = dump(tmp_path / "a.pkl", {"split": {}, "annotations": [content]})
    with pytest.raises(DataError, match="which is not data; nothing was executed") as caught:
        find_source(path)
    assert named in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04noise",
        b"cnumpy\ndtype\n(Vf4\ntR(I1\ntb.",
        b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(I-5\nt(VO\ntb.",
        b"cnumpy.core.multiarray\nscalar\n(I1\nI2\ntR.",
        pickle.dumps(np.zeros(1000))[:-500],
    ],
)
def test_a_damaged_pickle_is_an_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.pkl"):
        load_pickle(path)


# pyskl


def annotation(name: str, joints: np.ndarray, label: int = 0, **more: Any) -> dict[str, Any]:
    return {"frame_dir": name, "label": label, "total_frames": joints.shape[1], "keypoint": joints, **more}


def test_pyskl_3d(tmp_path: Path) -> None:
    clips = [RNG.normal(size=(people, frames, 25, 3)).astype(np.float16) for people, frames in ((1, 1), (2, 5), (3, 4))]
    clips[2][1] *= 0.01  # of three people the second has the least motion
    clips[1][:, 3:] = 0
    content = {
        "split": {"xsub_train": NAMES[:2], "xsub_val": NAMES[2:]},
        "annotations": [annotation(name, clip, int(name[-3:]) - 1) for name, clip in zip(NAMES, clips, strict=True)],
    }
    source = find_source(dump(tmp_path / "ntu.pkl", content))
    assert isinstance(source, Pyskl)
    assert (source.layout, source.scores, len(source.class_names)) == ("ntu25", False, 60)
    assert source.splits == content["split"]
    found = [source.read(index) for index in range(3)]
    assert [recording.joints.shape[:2] for recording in found] == [(1, 2), (3, 2), (4, 2)]
    assert not found[0].joints[:, 1].any()
    np.testing.assert_array_equal(found[1].joints, clips[1][:, :3].transpose(1, 0, 2, 3))
    assert {0, 2} == {people for people in range(3) if (found[2].joints == clips[2][people, :, None]).all((2, 3)).any()}
    assert [(r.label, r.camera, r.subject, r.setup, r.replication) for r in found] == [
        (2, 1, 1, 1, 1),
        (0, 2, 1, 1, 1),
        (2, 1, 3, 2, 2),
    ]


def test_pyskl_2d_has_scores_and_the_picture_as_unit(tmp_path: Path) -> None:
    joints, score = RNG.uniform(0, 100, size=(1, 4, 17, 2)), RNG.uniform(0.1, 1, size=(1, 4, 17))
    score[0, 1, 3] = 0
    content = {"annotations": [annotation("a", joints, 1, keypoint_score=score, img_shape=(100, 200))]}
    source = Pyskl(dump(tmp_path / "gym.pkl", content))
    found = source.read(0).joints
    assert (source.layout, source.scores, source.class_names) == ("coco17", True, ["0", "1"])
    np.testing.assert_array_equal(found[:, 0, :, 2], score[0].astype(np.float32))
    np.testing.assert_allclose(found[0, 0, :, :2], joints[0, 0] / [100, 50] - 1, atol=1e-6)
    assert not found[1, 0, 3].any()


def test_pyskl_kinetics_is_gathered(tmp_path: Path) -> None:
    body = RNG.uniform(40, 60, size=(17, 2))
    frames, who = np.array([2, 2, 2, 4, 7, 7, 9]), np.array([1, 0, 2, 0, 0, 1, 1])
    score = np.array([0.9, 0.2, 0.1, 0.3, 0.3, 0.9, 0.9])  # 1 is seen best, but not in every frame
    poses = np.concatenate([body + 40 * (who - 1)[:, None, None], np.tile(score[:, None, None], (1, 17, 1))], axis=2)
    entry = {
        "frame_dir": "v", "label": 3, "total_frames": 12, "img_shape": (100, 100), "keypoint": poses.astype(np.float16),
        "frame_inds": frames, "box_score": np.ones(7), "anno_inds": np.array([0, 1, 2, 3, 4, 5]),
    }  # fmt: skip
    found = Pyskl(dump(tmp_path / "k400.pkl", {"annotations": [entry]})).read(0).joints
    assert found.shape == (3, 2, 17, 3)  # frames 2, 4 and 7; the pose of frame 9 is not listed
    expected = np.float16([[0.9, 0.2], [0, 0.3], [0.9, 0.3]]).astype(np.float32)
    np.testing.assert_array_equal(found[:, :, 0, 2], expected)  # 1 and 0 keep their places, 2 is left out
    np.testing.assert_allclose(found[0, 1, :, :2], (poses[1, :, :2] - 50) / 50, atol=2e-3)
    everybody = Pyskl(tmp_path / "k400.pkl", people=3).read(0).joints
    assert everybody.shape == (3, 3, 17, 3)
    np.testing.assert_array_equal(
        np.sort(everybody[:, :, 0, 2], 1), np.sort(np.float16([[0.9, 0.2, 0.1], [0, 0, 0.3], [0.3, 0.9, 0]]), 1)
    )


def test_pyskl_takes_integers_and_any_skeleton(tmp_path: Path) -> None:
    joints, score = RNG.integers(0, 100, size=(3, 4, 18, 2)), np.zeros((3, 4, 18))
    score[:, :2] = np.array([0.1, 0.9, 0.5])[:, None, None]
    score[0, 2:] = 0.05  # the first person is seen for longer, but with a lower total
    content = {"annotations": [annotation("a", joints, 1, keypoint_score=score, img_shape=(100, 200))]}
    with pytest.raises(DataError, match=r"18 joints of 3 numbers .* give --layout"):
        find_source(dump(tmp_path / "own.pkl", content))
    found = Pyskl(tmp_path / "own.pkl", layout="openpose18").read(0).joints
    np.testing.assert_allclose(found[:, :, 0, 2], [[0.9, 0.5], [0.9, 0.5]])  # people stay where they are
    np.testing.assert_allclose(found[0, 0, :, :2], joints[1, 0] / [100, 50] - 1, atol=1e-6)


def test_names_of_ntu_with_other_labels_have_no_class_names(tmp_path: Path) -> None:
    """As in subsets whose classes were numbered anew."""
    entries = [annotation(name, RNG.normal(size=(1, 4, 25, 3)), label) for label, name in enumerate(NAMES)]
    assert Pyskl(dump(tmp_path / "few.pkl", {"annotations": entries})).class_names == [str(label) for label in range(len(NAMES))]


def test_a_list_for_a_pose_is_an_error_with_a_layout_too(tmp_path: Path) -> None:
    entry = annotation("a", RNG.normal(size=(1, 4, 17, 3)))
    entry["keypoint"] = entry["keypoint"].tolist()
    for layout in (None, "coco17"):
        with pytest.raises(DataError, match="keypoint"):
            Pyskl(dump(tmp_path / "a.pkl", {"annotations": [entry]}), layout=layout).read(0)


@pytest.mark.parametrize("names", [("train1", "test1", "train3"), ("train", "val"), ("sub1_train", "sub1_val")])
def test_pyskl_lists_keep_their_names(names: tuple[str, ...], tmp_path: Path) -> None:
    entries = [annotation(f"Archery/v_{at}", RNG.normal(size=(1, 4, 25, 3)), at % 2) for at in range(4)]
    lists = {name: [entry["frame_dir"] for entry in entries[at : at + 2]] for at, name in enumerate(names)}
    assert Pyskl(dump(tmp_path / "ucf101.pkl", {"split": lists, "annotations": entries})).splits == lists


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": -1}, "label is -1, not a class number"),
        ({"label": "walk"}, "label is 'walk', not a class number"),
        ({"total_frames": 9}, "keypoint has 4 frames but total_frames is 9"),
        ({"keypoint": np.full((1, 4, 25, 3), np.nan)}, "frame 0 is not finite"),
        ({"keypoint": np.zeros((1, 4, 25, 3))}, "no frame holds a body"),
        ({"keypoint": np.zeros((4, 25, 3))}, r"keypoint is \[4, 25, 3\]"),
        (
            {"keypoint": np.zeros((1, 4, 7, 3))},
            "7 joints of 3 numbers, and the format does not name the skeleton; give --layout: a .toml",
        ),
    ],
)
def test_pyskl_damage_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    content = {"annotations": [annotation("a", RNG.normal(size=(1, 4, 25, 3))) | change]}
    with pytest.raises(DataError, match=message):
        Pyskl(dump(tmp_path / "a.pkl", content)).read(0)


# NTU npz


def npz(path: Path, x: np.ndarray, labels: list[int], save: Any = np.savez, classes: int = 60) -> Path:
    one_hot = np.eye(classes)[labels]
    save(path, x_train=x[:2], y_train=one_hot[:2], x_test=x[2:], y_test=one_hot[2:])
    return path


def padded(lengths: list[int]) -> np.ndarray:
    x = np.zeros((len(lengths), 12, 150), np.float32)
    for row, length in enumerate(lengths):
        x[row, :length] = RNG.normal(size=(length, 150))
    return x


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_ntu_npz(save: Any, tmp_path: Path) -> None:
    x = padded([1, 12, 5, 7])
    source = find_source(npz(tmp_path / "ntu.npz", x, [2, 0, 59, 1], save))
    assert source.names == ["train_00000", "train_00001", "test_00000", "test_00001"]
    assert source.splits == {"train": source.names[:2], "test": source.names[2:]}
    for index in (1, 0, 3, 2, 2):  # in the order that threads may request them
        recording = source.read(index)
        np.testing.assert_array_equal(recording.joints.reshape(-1, 150), x[index, : [1, 12, 5, 7][index]])
        assert recording.label == [2, 0, 59, 1][index]


def test_ntu_npz_with_lists_of_names(tmp_path: Path) -> None:
    path = npz(tmp_path / "ntu.npz", padded([3, 4, 5]), [2, 0, 2])
    source = NtuNpz(path, train_names=NAMES[:2], test_names=NAMES[2:])
    assert source.names == NAMES
    assert (source.read(2).subject, source.read(2).setup, source.read(1).camera) == (3, 2, 2)
    with pytest.raises(
        DataError, match="row 0 of y_train has class 2, which contradicts its name 'S001C002P001R001A001' in the list"
    ):
        NtuNpz(path, train_names=NAMES[1::-1], test_names=NAMES[2:])
    with pytest.raises(DataError, match="x_train has 2 rows but its list has 1 names"):
        NtuNpz(path, train_names=NAMES[:1], test_names=NAMES[2:])


def test_ntu_npz_damage_is_named(tmp_path: Path) -> None:
    x = padded([3, 4, 5])
    x[1, 2, 7] = np.nan
    x[2] = 0
    source = NtuNpz(npz(tmp_path / "a.npz", x, [0, 1, 2]))
    with pytest.raises(DataError, match=r"row 1 .*frame 2 is not finite"):
        source.read(1)
    with pytest.raises(DataError, match=r"row 0 .*no frame holds a body"):
        source.read(2)
    two = np.eye(60)[[0, 1, 2]]
    two[1, 5] = 1
    np.savez(tmp_path / "b.npz", x_train=x, y_train=two, x_test=x, y_test=two)
    with pytest.raises(DataError, match="y_train, row 1: not one-hot"):
        NtuNpz(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", x_train=x[:, :, :75], y_train=two, x_test=x, y_test=two)
    with pytest.raises(DataError, match=r"\[3, 12, 75\] of float32, expected \[clips, frames, 150\]"):
        NtuNpz(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", x_train=np.array([None]), y_train=two, x_test=x, y_test=two)
    with pytest.raises(DataError, match="not a C-contiguous numeric array"):
        NtuNpz(tmp_path / "d.npz")
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "e.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"e\.npz"):
        find_source(tmp_path / "e.npz", "ntu_npz")


@pytest.mark.golden
def test_ntu_npz_is_the_recorded_file() -> None:
    folder = os.environ.get("SHAPMIX_GOLDEN")
    if not folder:
        pytest.skip("SHAPMIX_GOLDEN is not set: no recorded behaviour to compare with")
    path = Path(folder) / "ntu_raw" / "NTU60_CS.npz"
    source = NtuNpz(path)
    with np.load(path) as content:
        rows, labels = [np.concatenate([content[f"{axis}_{part}"] for part in ("train", "test")]) for axis in "xy"]
    for index, (row, one_hot) in enumerate(zip(rows, labels, strict=True)):
        recording = source.read(index)
        found = np.zeros_like(row)
        found[: len(recording.joints)] = recording.joints.reshape(-1, 150)
        np.testing.assert_array_equal(found, row)
        assert recording.label == one_hot.argmax()


def test_an_npz_larger_than_memory_is_read_row_by_row(tmp_path: Path) -> None:
    """6 GB of mostly zeros, in a sparse file that takes no disk space."""
    rows, path = 33_000, tmp_path / "ntu.npz"
    one_hot = np.eye(60)[np.zeros(rows, dtype=int)]
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in (("y_train", one_hot), ("x_test", padded([2])), ("y_test", one_hot[:1])):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)
        entry = zipfile.ZipInfo("x_train.npy")
        header = np.lib.format.header_data_from_array_1_0(np.zeros((1, 300, 150), np.float32)) | {"shape": (rows, 300, 150)}
        with archive.open(entry, "w") as file:
            np.lib.format.write_array_header_1_0(file, header)
    size = rows * 300 * 150 * 4
    patch_size(path, entry, size)
    code = (
        "import sys; from pathlib import Path; from shapmix.data.sources.ntu_npz import NtuNpz\n"
        "def peak():\n    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "before = peak(); source = NtuNpz(Path(sys.argv[1]))\n"
        "for index in range(0, 3000):\n    source._frames[index][0].read(source._frames[index][1])\n"
        "print(len(source.names), peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names, grown = map(int, done.stdout.split())
    assert names == rows + 1
    assert grown < 100_000  # kB


def patch_size(path: Path, entry: zipfile.ZipInfo, content: int) -> None:
    """Extends the last member, of which only NumPy's header is written, by `content` zero bytes."""
    with zipfile.ZipFile(path, "a") as archive:
        info = archive.getinfo(entry.filename)
        info.file_size += content
        info.compress_size += content
        archive.fp.seek(archive.start_dir + content)
        archive.start_dir += content
        archive._didModify = True  # rewrites the central directory after the zeros


# MS-G3D


def msg3d(folder: Path) -> dict[str, np.ndarray]:
    written = {}
    for part, names in (("train", NAMES[:2]), ("val", NAMES[2:])):
        rows = np.zeros((len(names), 3, 9, 25, 2), np.float32)
        rows[:, :, :5] = RNG.normal(size=(len(names), 3, 5, 25, 2))
        np.save(folder / f"{part}_data_joint.npy", rows)
        dump(folder / f"{part}_label.pkl", ([f"{name}.skeleton" for name in names], [int(name[-3:]) - 1 for name in names]), 2)
        written |= dict(zip(names, rows, strict=True))
    return written


def test_msg3d(tmp_path: Path) -> None:
    written = msg3d(tmp_path)
    source = find_source(tmp_path)
    assert isinstance(source, Msg3d)
    assert (source.names, source.layout) == (NAMES, "ntu25")
    for index, name in enumerate(NAMES):
        recording = source.read(index)
        np.testing.assert_array_equal(recording.joints, written[name][:, :5].transpose(1, 3, 2, 0))
        assert recording.label == int(name[-3:]) - 1
    dump(tmp_path / "val_label.pkl", (["a", "b"], [0, 1]))
    with pytest.raises(DataError, match="2 names and 2 labels for 1 rows"):
        Msg3d(tmp_path)


# The plain format

LAYOUT = """name = "stick"
joints = ["foot", "hip", "head"]
centre = "hip"
[parents]
foot = "hip"
hip = "hip"
head = "hip"
[parts]
legs = ["foot"]
body = ["hip", "head"]
"""


def plain(folder: Path, table: str, names: tuple[str, ...] = ("b", "a", "c")) -> Path:
    (folder / "layout.toml").write_text(LAYOUT)
    (folder / "labels.csv").write_bytes(table.encode("utf-8"))
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        np.save(folder / f"{name}.npy", np.full((number + 1, 3, 2), number + 1, dtype=np.int16))
    return folder


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_plain(end: str, tmp_path: Path) -> None:
    lines = ["\ufeffname, label ,split,subject", "b,wave,train,3", "a, clap,test,", "sub/c,wave,train,4", ""]
    folder = plain(tmp_path, end.join(lines), ("b", "a", "sub/c"))
    np.savez(tmp_path / "a.npz", joints=np.ones((2, 2, 3, 2)))
    (tmp_path / "a.npy").unlink()
    source = find_source(folder)
    assert isinstance(source, Plain)
    assert (source.names, source.class_names) == (["b", "a", "sub/c"], ["clap", "wave"])
    assert source.splits == {"train": ["b", "sub/c"], "test": ["a"]}
    found = [source.read(index) for index in range(3)]
    assert [recording.joints.shape for recording in found] == [(1, 1, 3, 2), (2, 2, 3, 2), (3, 1, 3, 2)]
    assert [(recording.label, recording.subject) for recording in found] == [(1, 3), (0, 0), (1, 4)]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "line 1: has no column 'name'"),
        ("name,label,random\na,0,1\n", "line 2: a column cannot be named 'random'"),
        ("name,label\n", "lists no clips"),
        ("name,label\nb,0\na\n", "line 3: does not have 2 columns"),
        ("name,label\nb,0,1\n", "line 2: does not have 2 columns"),
        ("name,label\nb,\n", "line 2: 'b' has no label"),
        ("name,label\n../b,0\n", "line 2: '../b' is not the name of a file inside"),
        ("name,label\n/etc/passwd,0\n", "line 2: '/etc/passwd' is not the name of a file inside"),
        ("name,label\nd,0\n", "clip 'd': no file"),
        ("name,label,subject\nb,0,anna\n", "line 2: subject 'anna' is not a number"),
        ("name,label,camera\nb,0,1\na,0,0\n", "line 3: camera '0' beside others: 0 is an unknown number; count from 1"),
    ],
)
def test_a_wrong_table_is_named(table: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        Plain(plain(tmp_path, table))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 3, 2)), "has no frames"),
        (np.full((2, 3, 2), np.inf), "frame 0, person 0, joint 0 is not finite"),
        (np.zeros((3, 2)), r"\[3, 2\] of float64, expected numbers \[T, V, C\]"),
        (np.array([None]), "not a valid NumPy file of numbers"),
    ],
)
def test_a_wrong_clip_is_named(array: np.ndarray, message: str, tmp_path: Path) -> None:
    source = Plain(plain(tmp_path, "name,label\nb,0\n"))
    np.save(tmp_path / "b.npy", array)
    with pytest.raises(DataError, match=message):
        source.read(0)


def test_a_truncated_clip_is_named(tmp_path: Path) -> None:
    source = Plain(plain(tmp_path, "name,label\nb,0\n"))
    (tmp_path / "b.npy").write_bytes((tmp_path / "b.npy").read_bytes()[:-3])
    with pytest.raises(DataError, match="not a valid NumPy file"):
        source.read(0)


# NW-UCLA


def test_nw_ucla_is_what_the_loader_reads() -> None:
    folder = os.environ.get("SHAPMIX_NW_UCLA")
    if not folder:
        pytest.skip("SHAPMIX_NW_UCLA is not set: no NW-UCLA recordings")
    source, splits = find_source(Path(folder)), load_nw_ucla(folder)
    assert (len(source.names), len(source.splits["train"]), len(source.splits["test"])) == (1484, 1020, 464)
    place = {name: index for index, name in enumerate(source.names)}
    for index in range(0, len(splits.store), 37):
        recording = source.read(place[splits.store.names[index]])
        np.testing.assert_array_equal(recording.joints, splits.store.clip(index).numpy())
        assert recording.label == int(splits.store.labels[index])
        assert f"v{recording.camera:02d}" in splits.store.names[index]


# Which format


def test_what_fits_nothing_or_several_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        find_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"unknown format; .*a folder with labels\.csv"):
        find_source(tmp_path)
    msg3d(tmp_path)
    plain(tmp_path, "name,label\nb,0\n")
    with pytest.raises(DataError, match="could be msg3d or plain; choose with --format"):
        find_source(tmp_path)
    assert isinstance(find_source(tmp_path, "plain"), Plain)
    with pytest.raises(DataError, match=r"the format is msg3d, which does not take --train-names \(only ntu_npz\)"):
        find_source(tmp_path, "msg3d", SourceOptions(train_names=tmp_path))
    with pytest.raises(ValueError, match="format is 'msg3'; did you mean 'msg3d'"):
        find_source(tmp_path, "msg3")


# The registry


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_takes_a_layout_and_refuses_other_paths(name: str, tmp_path: Path) -> None:
    entry = FORMATS[name]
    assert "layout" in entry.options
    (tmp_path / "file").write_text("no data set")
    assert not entry.fits(tmp_path)
    assert not entry.fits(tmp_path / "file")


def test_a_format_is_added_by_one_decorator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("")

    class Mine(Msg3d):
        def __init__(self, path: Path, *, layout: str | None = None) -> None:
            raise DataError(f"{path}: read as mine with {layout}")

    try:
        source("mine", "a folder with mine.txt", fits=lambda path: (path / "mine.txt").is_file())(Mine)
        with pytest.raises(DataError, match="read as mine with ntu25"):
            find_source(tmp_path, options=SourceOptions(layout="ntu25"))
        with pytest.raises(DataError, match=r"mine: a folder with mine\.txt"):
            find_source(tmp_path / "mine.txt")
        assert prepare.main([str(tmp_path), str(tmp_path / "out"), "--format", "mine"]) == 2
        assert "read as mine with None" in capsys.readouterr().err
        with pytest.raises(ValueError, match="format 'mine' is already registered"):
            source("mine", "the same", fits=Path.is_file)(Mine)
    finally:
        FORMATS.pop("mine", None)
    with pytest.raises(ValueError, match="must take the keyword argument 'layout'"):
        source("mine", "takes no layout", fits=Path.is_file)(lambda path: Mine(path))
