"""Readers of the big data sets: what is written comes back, and damage is named with its place and what to do."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from shapmix.data.sources import kinetics
from shapmix.data.sources.babel import Babel
from shapmix.data.sources.find import find_source
from shapmix.data.sources.kinetics import Kinetics
from shapmix.data.sources.mmaction import Mmaction
from shapmix.data.sources.pku_mmd import PkuMmd
from shapmix.data.sources.registry import SourceOptions
from shapmix.data.sources.smarthome import Smarthome
from shapmix.data.sources.stgcn import Stgcn
from shapmix.data.sources.uav_human import TRAINING, UavHuman
from shapmix.process.errors import DataError
from tests import set_files

RNG = np.random.default_rng(0)


def replace(path: Path, line: int, text: str) -> None:
    """Replaces a line, counted from 1."""
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n")


# PKU-MMD


def test_pku_mmd_is_cut_by_its_label_files(tmp_path: Path) -> None:
    written = set_files.pku_mmd(tmp_path)
    source = find_source(tmp_path)
    assert isinstance(source, PkuMmd)
    assert (source.layout, source.scores, len(source.class_names)) == ("pku25", False, 51)
    assert source.names[:5] == ["0002-L_000", "0002-L_001", "0002-L_002", "0002-L_003", "0003-M_000"]
    assert source.labels[:4] == [0, 1, 0, 1]
    for index in (5, 0, 15, 3):
        recording = source.read(index)
        video, number = set_files.PKU_VIDEOS[index // 4], index % 4
        np.testing.assert_allclose(recording.joints, written[video][2 + 12 * number : 14 + 12 * number], atol=1e-6)
        assert recording.camera == {"L": 1, "M": 2, "R": 3}[video[-1]]
        assert (recording.setup, recording.replication) == (int(video[:4]), number + 1)  # the same clip before each camera
    assert {name: len(names) for name, names in source.splits.items()} == {
        "xsub_train": 12, "xsub_test": 4, "xview_train": 12, "xview_test": 4,
    }  # fmt: skip
    assert source.splits["xsub_test"] == source.names[12:]


def test_pku_mmd_phase_two_has_other_names(tmp_path: Path) -> None:
    set_files.pku_mmd(tmp_path / "one")
    for kind, path in (("skeleton", "Data/PKU_Skeleton_Renew"), ("label", "Label/Train_Label_PKU_final")):
        (tmp_path / "two" / kind).mkdir(parents=True)
        for at, video in enumerate(set_files.PKU_VIDEOS):
            (tmp_path / "one" / path / f"{video}.txt").rename(tmp_path / "two" / kind / f"A01N0{at}-L.txt")
    (tmp_path / "two" / "cross_view_v2.txt").write_text("Training videos:\nA01N00-L, A01N09-L\nValidation videos:\nA01N01-L\n")
    source = find_source(tmp_path / "two")
    assert source.names[0] == "A01N00-L_000"
    assert {name: len(names) for name, names in source.splits.items()} == {"xview_train": 4, "xview_test": 4}


SKELETON = "Data/PKU_Skeleton_Renew/0002-L.txt"
LABEL = "Label/Train_Label_PKU_final/0002-L.txt"


@pytest.mark.parametrize(
    ("path", "line", "text", "message"),
    [
        (SKELETON, 4, "0.5 " * 149, r"0002-L\.txt, line 4: 149 numbers, expected 150 \(2 people x 25 joints x 3\)"),
        (SKELETON, 4, "0.5 " * 149 + "x", r"0002-L\.txt, line 4: b'x' is not a number"),
        (SKELETON, 4, "0.5 " * 149 + "nan", r"0002-L\.txt, line 4: person 1, joint 24 is not finite"),
        (LABEL, 2, "52,14,26,2", r"0002-L\.txt, line 2: action 52 is not 1 to 51; correct the line"),
        (LABEL, 2, "1,14", r"0002-L\.txt, line 2: '1,14' is not action,start,end,confidence"),
        (LABEL, 2, "1,26,14,2", r"0002-L\.txt, line 2: starts at frame 26 and ends at 14"),
        (LABEL, 1, "1,1000,1014,2", r"frames 1000 to 1014 \('0002-L_000'\): the file has 50 frames"),
        ("Split/cross-view.txt", 1, "", r"cross-view\.txt, line 2: expected 'Training videos:' before"),
    ],
)
def test_pku_mmd_damage_is_named(path: str, line: int, text: str, message: str, tmp_path: Path) -> None:
    set_files.pku_mmd(tmp_path)
    replace(tmp_path / path, line, text)
    with pytest.raises(DataError, match=message):
        PkuMmd(tmp_path).read(0)


def test_pku_mmd_without_labels_is_refused(tmp_path: Path) -> None:
    set_files.pku_mmd(tmp_path)
    with pytest.raises(DataError, match=r"contains no label files .* give the folder that contains both"):
        find_source(tmp_path / "Data")


# UAV-Human


def test_uav_human_links_people_and_has_both_protocols(tmp_path: Path) -> None:
    names = set_files.uav_human(tmp_path)
    source = find_source(tmp_path)
    assert isinstance(source, UavHuman)
    assert (source.names, source.layout, source.scores, len(source.class_names)) == (names, "uav17", False, 155)
    assert source.labels == [0, 1] * 4
    assert source.splits == {f"csv{number}_{part}": names[:4] if part == "train" else names[4:]
                             for number in (1, 2) for part in ("train", "test")}  # fmt: skip
    alone, two = source.read(0), source.read(5)
    assert (alone.joints.shape, alone.subject, two.subject, two.setup, two.replication) == ((9, 2, 17, 2), 1, 2, 6, 1)
    assert not alone.joints[:, 1].any()
    places = two.joints.mean((2, 3))
    assert (np.abs(np.diff(places, axis=0)) < 50).all()  # nobody jumps to the other person's place
    assert len(TRAINING["csv1"]) == len(TRAINING["csv2"]) == 89


def test_uav_human_reads_the_third_number_only_if_asked(tmp_path: Path) -> None:
    set_files.uav_human(tmp_path)
    third = UavHuman(tmp_path, scores=True)
    assert third.scores
    np.testing.assert_array_equal(third.read(0).joints[:, 0, :, 2], np.float32(0.7))
    assert UavHuman(tmp_path, coordinates=3).read(0).joints.shape == (9, 2, 17, 3)
    with pytest.raises(DataError, match="2 or 3 numbers; give --coordinates 2 or 3"):
        UavHuman(tmp_path, coordinates=4)


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (1, "many", "line 1: b'many' is not the number of frames"),
        (1, "8000", "line 1: b'8000' is not the number of frames"),
        (2, "-1", "line 2: b'-1' is not the number of bodies"),
        (4, "16", "line 4: a body of 16 joints, expected 17"),
        (7, "0.5", r"line 7: b'0.5' does not begin with 2 numbers"),
        (7, "0.5 1e999", "frame 0, joint 2 is not finite"),
    ],
)
def test_uav_human_damage_is_named(line: int, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / f"{set_files.uav_human(tmp_path)[0]}.txt"
    replace(path, line, text)
    with pytest.raises(DataError, match=message) as caught:
        UavHuman(tmp_path).read(0)
    assert str(path) in str(caught.value)


def test_uav_human_names_are_checked(tmp_path: Path) -> None:
    set_files.uav_human(tmp_path)
    (tmp_path / "P119S00G10B10H10UC022000LC021000A000R0_08241716.txt").write_text("0\n")
    with pytest.raises(DataError, match=r"P119.*not a name of UAV-Human .* rename or remove it"):
        find_source(tmp_path)


# Toyota Smarthome


def test_smarthome_has_poses_in_3d_and_2d(tmp_path: Path) -> None:
    names = set_files.smarthome(tmp_path)
    source = find_source(tmp_path)
    assert isinstance(source, Smarthome)
    assert (source.layout, source.scores, len(source.class_names), sorted(names)) == ("smarthome13", False, 31, source.names)
    content = json.loads(source.files[0].read_text())
    recording = source.read(0)
    assert recording.joints.shape == (9, 2, 13, 3)
    np.testing.assert_allclose(recording.joints[0, 0].T.ravel(), content["frames"][1][0]["pose3d"], rtol=1e-6)
    assert (recording.subject, recording.camera, recording.label) == (2, 1, 8)
    flat = find_source(tmp_path, options=SourceOptions(coordinates=2)).read(0)
    np.testing.assert_allclose(flat.joints[0, 0].T.ravel(), content["frames"][1][0]["pose2d"], rtol=1e-6)
    assert {name: len(names) for name, names in source.splits.items()} == {
        "cs_train": 8, "cs_test": 4, "cv1_train": 6, "cv1_test": 6, "cv2_train": 6, "cv2_test": 6,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"frame": []}, "has no list 'frames'"),
        ({"frames": [[], {}]}, "frame 1 is {}, not a list"),
        ({"frames": [[{"pose2d": [0] * 26}]]}, "frame 0, person 0: 'pose3d' is None, not 39 numbers"),
        ({"frames": [[{"pose2d": [0] * 26, "pose3d": [0] * 39}]]}, "no frame holds a body"),
        ({"frames": [[]]}, "no frame holds a body"),
        ({"frames": [[{"pose2d": [1] * 26, "pose3d": [1e39] * 39}]]}, "frame 0, joint 0 is not finite"),
    ],
)
def test_smarthome_damage_is_named(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "Walk_p02_r00_v00_c01.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        Smarthome(tmp_path).read(0)
    assert str(path) in str(caught.value)


# Arrays [N, C, T, V, M]


def test_stgcn_keeps_people_apart_and_asks_for_the_skeleton(tmp_path: Path) -> None:
    written = set_files.stgcn(tmp_path)
    with pytest.raises(
        DataError,
        match=r"18 joints of 3 .* give --layout: one of openpose18 with --scores if the last number is a score; otherwise a",
    ):
        find_source(tmp_path)
    source = find_source(tmp_path, options=SourceOptions(layout="openpose18", scores=True))
    assert isinstance(source, Stgcn)
    assert source.scores
    assert {name: len(names) for name, names in source.splits.items()} == {"train": 8, "val": 4}
    found = source.read(9).joints
    assert found.shape == (12, 2, 18, 3)
    assert (np.abs(np.diff(found[..., :2].mean((2, 3)), axis=0)) < 0.1).all()  # nobody changes places
    total = found[..., 2].sum((0, 2))
    assert total[0] >= total[1]
    row = written["val"][1][:, :12].transpose(1, 3, 2, 0)
    for frame in range(12):
        assert sorted(found[frame].tolist()) == sorted(row[frame].tolist())


def test_stgcn_leaves_people_that_are_not_sorted_by_score(tmp_path: Path) -> None:
    rows = set_files.stgcn(tmp_path)["train"]
    rows[0, 2, 0, :, 0], rows[0, 2, 0, :, 1] = 0.1, 0.9
    np.save(tmp_path / "train_data.npy", rows)
    found = Stgcn(tmp_path, layout="openpose18", scores=True).read(0).joints
    np.testing.assert_array_equal(found, rows[0, :, :12].transpose(1, 3, 2, 0))


def test_stgcn_of_ntu_needs_no_option(tmp_path: Path) -> None:
    rows = RNG.normal(size=(2, 3, 6, 25, 2)).astype(np.float32)
    np.save(tmp_path / "train_data.npy", rows)
    names = ["S001C001P001R001A003.skeleton", "S001C002P001R001A001.skeleton"]
    (tmp_path / "train_label.pkl").write_bytes(pickle.dumps((names, [2, 0])))
    source = find_source(tmp_path)
    assert (source.layout, source.scores, len(source.class_names)) == ("ntu25", False, 60)
    np.testing.assert_array_equal(source.read(1).joints, rows[1].transpose(1, 3, 2, 0))


def test_stgcn_damage_is_named(tmp_path: Path) -> None:
    set_files.stgcn(tmp_path)
    (tmp_path / "val_label.pkl").unlink()
    with pytest.raises(DataError, match=r"val_label\.pkl: cannot be read"):
        find_source(tmp_path)
    (tmp_path / "val_label.pkl").write_bytes(pickle.dumps((["a"], [0])))
    with pytest.raises(DataError, match=r"val_label\.pkl: 1 names and 1 labels for 4 rows of val_data\.npy"):
        find_source(tmp_path, options=SourceOptions(layout="openpose18"))


def test_babel_has_its_segments_and_class_names(tmp_path: Path) -> None:
    written = set_files.babel(tmp_path)
    source = find_source(tmp_path)
    assert isinstance(source, Babel)
    assert (source.layout, source.class_names[59], len(source.class_names)) == ("ntu25", "action 59", 60)
    assert source.names[:3] == ["train-0_7_0_anna", "train-0_7_0_anna_2", "train-1_7_0_anna"]
    assert {name: len(names) for name, names in source.splits.items()} == {"train": 8, "val": 4}
    np.testing.assert_array_equal(source.read(9).joints, written["val"][1].transpose(1, 3, 2, 0))
    set_files.babel(tmp_path, 120)
    with pytest.raises(DataError, match=r"has clips of 120 and 60 classes; give one file, such as train_ntu_sk_120\.npy"):
        find_source(tmp_path)
    assert len(find_source(tmp_path / "train_ntu_sk_120.npy").class_names) == 120
    (tmp_path / "val_label_60.pkl").write_bytes(pickle.dumps((["a"], [0])))
    with pytest.raises(DataError, match=r"val_label_60\.pkl: not \(segments, \(labels, sequences, chunks, annotators\)\)"):
        find_source(tmp_path / "train_ntu_sk_60.npy")


# Kinetics-400


def test_kinetics_is_read_from_its_table_and_files(tmp_path: Path) -> None:
    written = set_files.kinetics(tmp_path)
    for path in (tmp_path, tmp_path / "k400_hrnet.pkl"):
        source = find_source(path)
        assert isinstance(source, Kinetics)
    assert (source.layout, source.scores, source.class_names) == ("coco17", True, ["0", "1"])
    assert source.names == [f"v{number:02d}" for part in range(2) for number in range(part, 12, 2)]  # in the order of the files
    assert {name: len(names) for name, names in source.splits.items()} == {"train": 8, "val": 4}
    for index in (0, 11, 1, 10):
        found, poses = source.read(index).joints, written[source.names[index]].astype(np.float32)
        assert found.shape == (9, 2, 17, 3)
        np.testing.assert_array_equal(found[:, 0, :, 2], np.float32(np.float16(0.9)))  # each person at one place
        np.testing.assert_array_equal(found[:, 1, :, 2], np.float32(np.float16(0.8)))
        first = poses[poses[:, 0, 2] > 0.85]
        np.testing.assert_allclose(found[:, 0, :, :2], first[..., :2] / [200, 170] - 1, atol=1e-5)


def test_kinetics_reads_boxes_above_a_threshold(tmp_path: Path) -> None:
    set_files.kinetics(tmp_path)
    found = find_source(tmp_path, options=SourceOptions(box_threshold=0.9)).read(0).joints
    assert found[:, 0].all(axis=(1, 2)).all()
    assert not found[:, 1].any()
    with pytest.raises(DataError, match=r"no box has a score of 0\.99 or more \(highest: 0\.95\); lower --box-threshold"):
        Kinetics(tmp_path, box_threshold=0.99).read(0)
    with pytest.raises(DataError, match=r"from 0 to 1, not 90; correct --box-threshold"):
        Kinetics(tmp_path, box_threshold=90)


def test_kinetics_opens_files_only_when_their_clips_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_files.kinetics(tmp_path)
    opened: list[str] = []
    whole = kinetics._poses
    monkeypatch.setattr(kinetics, "_poses", lambda path: opened.append(path.name) or whole(path))
    source = Kinetics(tmp_path)
    for index in range(6):
        source.read(index)
    assert opened == ["part_0.pkl"]
    for index in (6, 0, 11):
        source.read(index)
    assert opened == ["part_0.pkl", "part_1.pkl"]


def change_table(folder: Path, **changes: object) -> None:
    path = folder / "k400_hrnet.pkl"
    table = pickle.loads(path.read_bytes())
    table["annotations"][0] |= changes
    path.write_bytes(pickle.dumps(table))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"raw_file": "kpfiles/part_7.pkl"}, r"'kpfiles/part_7.pkl', which is not in .*kpfiles; extract pyskl's kpfiles"),
        ({"raw_file": "../../etc/passwd"}, r"names '../../etc/passwd', which is not in"),
        ({"raw_file": 3}, r"annotation 0: 'raw_file' is 3, not the name of a file"),
        ({"frame_dir": "w"}, r"part_0\.pkl: clip 'w' has None, not an array 'keypoint'; extract the file again"),
        ({"frame_inds": np.arange(4)}, r"shapes of keypoint \[18, 17, 3\] and frame_inds \[4\] of int64 do not match"),
        ({"box_score": np.ones(4)}, r"box_score has shape \[4\] for 18 poses"),
    ],
)
def test_kinetics_damage_is_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    set_files.kinetics(tmp_path)
    change_table(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        Kinetics(tmp_path, box_threshold=0.5).read(0)


def test_a_table_without_its_files_says_what_is_missing(tmp_path: Path) -> None:
    set_files.kinetics(tmp_path)
    (tmp_path / "kpfiles").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"which is not in .*kpfiles; extract pyskl's kpfiles for Kinetics-400 beside the table"):
        find_source(tmp_path)


def test_a_folder_with_two_tables_is_refused(tmp_path: Path) -> None:
    set_files.kinetics(tmp_path)
    (tmp_path / "k400_more.pkl").write_bytes((tmp_path / "k400_hrnet.pkl").read_bytes())
    with pytest.raises(DataError, match=r"contains k400_hrnet\.pkl and k400_more\.pkl; give the table of contents"):
        find_source(tmp_path, "kinetics")


def test_a_damaged_file_of_poses_is_named(tmp_path: Path) -> None:
    set_files.kinetics(tmp_path)
    (tmp_path / "kpfiles" / "part_0.pkl").write_bytes(b"\x80\x04]")
    source = Kinetics(tmp_path)
    with pytest.raises(DataError, match=r"part_0\.pkl: not a valid pickle"):
        source.read(0)
    assert source.read(6).joints.shape == (9, 2, 17, 3)  # of the other file


# mmaction2 0.x


def test_mmaction_lists_are_named_like_their_files(tmp_path: Path) -> None:
    set_files.mmaction(tmp_path)
    source = find_source(tmp_path)
    assert isinstance(source, Mmaction)
    assert (source.layout, source.scores, len(source.class_names), len(source.names)) == ("coco17", True, 60, 12)
    assert {name: len(names) for name, names in source.splits.items()} == {"ntu60_xsub_train": 8, "ntu60_xsub_val": 4}
    recording = source.read(8)
    assert (recording.joints.shape, recording.subject, recording.replication) == ((9, 1, 17, 3), 1, 2)
    alone = find_source(tmp_path / "ntu60_xsub_val.pkl")
    assert (len(alone.names), alone.splits) == (4, {})
    np.testing.assert_array_equal(alone.read(0).joints, recording.joints)


def test_mmaction_reads_a_clip_of_two_lists_once(tmp_path: Path) -> None:
    set_files.mmaction(tmp_path)
    entries = pickle.loads((tmp_path / "ntu60_xsub_val.pkl").read_bytes())
    (tmp_path / "ntu60_xview_val.pkl").write_bytes(pickle.dumps(entries[:2]))
    source = Mmaction(tmp_path)
    assert (len(source.names), len(source.splits["ntu60_xview_val"])) == (12, 2)
    entries[1]["label"] = 0
    (tmp_path / "ntu60_xview_val.pkl").write_bytes(pickle.dumps(entries[:2]))
    with pytest.raises(DataError, match=r"xview_val\.pkl: annotation 1 .* has label 0, another file has 1; correct one"):
        Mmaction(tmp_path)
    (tmp_path / "ntu60_xview_val.pkl").write_bytes(pickle.dumps([{"label": 1}]))
    with pytest.raises(DataError, match=r"xview_val\.pkl: annotation 0 has no name 'frame_dir'"):
        Mmaction(tmp_path)
