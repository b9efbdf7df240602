"""Readers of pose tools: files as the tools document them, their clips and people, and damaged ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shapmix import prepare
from shapmix.data.sources.bvh import hierarchy_layout, positions, read_bvh
from shapmix.data.sources.find import detect_format, find_source
from shapmix.data.sources.pose_clips import PoseFiles
from shapmix.data.sources.registry import SourceOptions
from shapmix.data.sources.tracks import Frame, Pose, fill, follow
from shapmix.data.store import open_store
from shapmix.process.errors import DataError
from shapmix.skeleton.layout import Layout, load_layout, parse_layout
from tests.data.pose_files import (
    BUILDERS,
    BVH_HIERARCHY,
    FRAMES,
    Person,
    flat,
    make_clips,
    mmpose_instance,
    write_json,
)

LAYOUTS = {
    "openpose": "body25",
    "alphapose": "coco17",
    "mmpose": "coco17",
    "coco_results": "coco17",
    "ultralytics": "coco17",
    "mediapipe": "mediapipe33",
}


def opened(path: Path, format: str, layout: str | None = None) -> PoseFiles:
    source = find_source(path, format, SourceOptions(layout=layout))
    assert isinstance(source, PoseFiles)
    return source


def expected(format: str, person: Person) -> np.ndarray:
    """[T, V, C] of a made person, as the format stores it."""
    places, scores = person.places, person.scores[..., None]
    if format == "ultralytics":
        places = places / [640, 480]
    if format == "mediapipe":
        return np.concatenate([places / [640, 480], np.full_like(scores, 0.1), scores], axis=2)
    return np.concatenate([places, scores], axis=2)


@pytest.mark.parametrize("format", LAYOUTS)
def test_clips_come_back_with_their_people(format: str, tmp_path: Path) -> None:
    clips = BUILDERS[format](tmp_path)
    assert detect_format(tmp_path) == format
    source = opened(tmp_path, format)
    assert source.layout == LAYOUTS[format]
    assert source.scores
    assert list(source.class_names) == ["kick", "wave"]
    assert {split: len(names) for split, names in source.splits.items()} == {"train": 8, "val": 2, "test": 2}
    for index, clip in enumerate(clips):
        recording = source.read(index)
        assert source.names[index] == clip.name
        assert source.class_names[recording.label] == clip.label
        assert recording.joints.shape[:2] == (FRAMES, len(clip.people))
        rows = recording.joints.transpose(1, 0, 2, 3)
        in_order = rows[np.argsort(rows[:, 0, :, 0].mean(1))]  # the first person is on the left
        for found, person in zip(in_order, clip.people, strict=True):
            np.testing.assert_allclose(found, expected(format, person), atol=2e-3)
        assert recording.first_frame == (1 if format == "ultralytics" else 0)


def test_as_many_people_are_read_as_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for frame in range(3):
        frame_file(tmp_path / "wave" / "a", "x", frame, [person(x) for x in (0, 500, 1000)[: 3 - frame // 2]])
    for people, expected in ((None, 2), (1, 1), (3, 3), (9, 3)):
        source = find_source(tmp_path, "openpose", SourceOptions(people=people))
        assert source.read(0).joints.shape == (3, expected, 25, 3)
    assert prepare.main([str(tmp_path), str(tmp_path / "store"), "--people", "3"]) == 0
    assert open_store(tmp_path / "store").clips.num_people == 3
    assert prepare.main([str(tmp_path), str(tmp_path / "none"), "--people", "0"]) == 2
    assert "--people: must be at least 1, not 0" in capsys.readouterr().err


def test_single_files_are_told_apart_by_their_content(tmp_path: Path) -> None:
    made = make_clips(17)[0].people[0]
    result = {"image_id": "1.jpg", "category_id": 1, "keypoints": flat(made, 0), "score": 1.0}
    files: dict[str, Any] = {
        "coco_results": [result],
        "alphapose": [result | {"box": [1.0, 2.0, 3.0, 4.0], "idx": 0.0}],
        "mmpose": [{"frame_id": 0, "instances": [mmpose_instance(made, 0)]}],
        "mediapipe": [{"pose_landmarks": [landmarks(33)]}],
    }
    for format, content in files.items():
        write_json(tmp_path / format / "wave" / "a.json", content)
        assert detect_format(tmp_path / format / "wave" / "a.json") == format
        assert detect_format(tmp_path / format) == format
    (tmp_path / "a.bvh").write_bytes(bvh_text([[1.0] * 21]))
    assert detect_format(tmp_path / "a.bvh") == "bvh"


# Folders and labels


def frame_file(folder: Path, name: str, frame: int, people: list[Any]) -> None:
    write_json(folder / f"{name}_{frame:012d}_keypoints.json", {"version": 1.3, "people": people})


def person(x: float = 10.0, joints: int = 25, **other: Any) -> dict[str, Any]:
    return {"pose_keypoints_2d": [value for joint in range(joints) for value in (x + joint, 5.0 + joint % 3, 0.9)], **other}


def test_missing_frames_and_people_are_zero(tmp_path: Path) -> None:
    for frame, people in {3: [], 7: [person(10)], 8: [], 10: [person(11), person(500)], 12: []}.items():
        frame_file(tmp_path / "wave", "wave", frame, people)
    recording = opened(tmp_path / "wave", "openpose").read(0)
    assert recording.joints.shape == (4, 2, 25, 3)  # frames 7 to 10; 9 has no file
    assert recording.first_frame == 7
    assert recording.joints.any((2, 3)).tolist() == [[True, False], [False, False], [False, False], [True, True]]
    assert recording.joints[3, 0, 0, 0] == 11


def test_class_folders_give_the_labels(tmp_path: Path) -> None:
    for clip in ("wave/a", "wave/b", "kick/a"):
        frame_file(tmp_path / clip, "x", 0, [person()])
    source = opened(tmp_path, "openpose")
    assert list(source.names) == ["kick/a", "wave/a", "wave/b"]
    assert list(source.labels) == [0, 1, 1]
    assert list(source.class_names) == ["kick", "wave"]
    assert source.splits == {}


@pytest.mark.parametrize("loose", ["b", "train/b"])
def test_clips_beside_the_folders_of_lists_are_refused(loose: str, tmp_path: Path) -> None:
    for path in ("train/wave/a", "test/kick/a", loose):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{path}.bvh").write_bytes(bvh_text([[0.0] * 9]))
    with pytest.raises(DataError, match=f"'{loose}' is a clip without a class folder"):
        opened(tmp_path, "bvh")


@pytest.mark.parametrize("format", ["alphapose", "mmpose", "ultralytics", "mediapipe"])
def test_class_folders_of_every_tool(format: str, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    clips = BUILDERS[format](tmp_path / "flat")
    for clip in clips:
        (found,) = (path for path in (tmp_path / "flat").glob(f"{clip.name}*"))
        (tmp_path / "sorted" / clip.label).mkdir(parents=True, exist_ok=True)
        found.rename(tmp_path / "sorted" / clip.label / found.name)
    source = opened(tmp_path / "sorted", format)
    assert detect_format(tmp_path / "sorted") == format
    labels = dict(zip(source.names, (source.class_names[label] for label in source.labels), strict=True))
    assert labels == {f"{clip.label}/{clip.name}": clip.label for clip in clips}


def test_clips_in_train_without_classes_are_refused(tmp_path: Path) -> None:
    for clip in ("train/a", "test/b"):
        frame_file(tmp_path / clip, "x", 0, [person()])
    with pytest.raises(DataError, match=r"'train/a' is a clip without a class folder; write clips.csv, or move every clip"):
        opened(tmp_path, "openpose")


def test_files_in_the_folder_that_the_tool_makes_are_found_by_name(tmp_path: Path) -> None:
    made = make_clips(17)[0].people[0]
    for name in ("wave_1", "kick_1"):
        write_json(tmp_path / "predictions" / f"{name}.json", [{"frame_id": 0, "instances": [mmpose_instance(made, 0)]}])
    (tmp_path / "clips.csv").write_text("name,label\nwave_1,wave\nkick_1,kick\n")
    assert detect_format(tmp_path) == "mmpose"
    assert list(opened(tmp_path, "mmpose").names) == ["wave_1", "kick_1"]
    (tmp_path / "clips.csv").unlink()
    assert list(opened(tmp_path, "mmpose").names) == ["kick_1", "wave_1"]


def test_class_folders_in_train_val_and_test_give_the_lists(tmp_path: Path) -> None:
    for clip in ("train/wave/a", "train/kick/a", "test/wave/a"):
        frame_file(tmp_path / clip, "x", 0, [person()])
    source = opened(tmp_path, "openpose")
    assert source.splits == {"train": ["train/kick/a", "train/wave/a"], "test": ["test/wave/a"]}
    assert list(source.labels) == [0, 1, 1]


def test_frames_of_several_clips_may_share_a_folder(tmp_path: Path) -> None:
    for name in ("wave_1", "wave_2"):
        for frame in range(3):
            frame_file(tmp_path, name, frame, [person(10 * frame)])
    (tmp_path / "clips.csv").write_text("name,label\nwave_1,wave\nwave_2,kick\n")
    source = opened(tmp_path, "openpose")
    assert [source.read(index).joints.shape for index in range(2)] == [(3, 1, 25, 3)] * 2


def test_clips_without_labels_are_read_but_not_labelled(tmp_path: Path) -> None:
    for clip in ("a", "b"):
        frame_file(tmp_path / clip, "x", 0, [person()])
    source = opened(tmp_path, "openpose")
    assert list(source.names) == ["a", "b"]
    assert source.read(1).joints.shape == (1, 1, 25, 3)
    for attribute in ("labels", "class_names"):
        with pytest.raises(
            DataError, match=r"no labels; write clips.csv with the columns name,label, or move the clips to one folder"
        ):
            getattr(source, attribute)


def test_a_clip_beside_class_folders_is_refused(tmp_path: Path) -> None:
    frame_file(tmp_path / "wave" / "a", "x", 0, [person()])
    frame_file(tmp_path / "b", "x", 0, [person()])
    with pytest.raises(DataError, match=r"'b' is a clip without a class folder, 'wave/a' is in one; write clips.csv"):
        opened(tmp_path, "openpose")


def test_a_name_without_files_is_refused(tmp_path: Path) -> None:
    frame_file(tmp_path / "a", "x", 0, [person()])
    (tmp_path / "clips.csv").write_text("name,label\na,wave\nb,kick\n")
    with pytest.raises(DataError, match=r"clips.csv: clip 'b': no folder .*b with files \*_keypoints.json, and no such file"):
        opened(tmp_path, "openpose")


def test_a_folder_without_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no clips; expected files \*.bvh"):
        opened(tmp_path, "bvh")


def test_the_skeleton_of_a_tool_is_logged_and_others_are_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="shapmix")
    frame_file(tmp_path / "a", "x", 0, [person(joints=18)])
    assert opened(tmp_path / "a", "openpose").layout == "openpose18"
    assert "poses of 18 joints: layout openpose18" in caplog.text
    frame_file(tmp_path / "b", "x", 0, [person(joints=15)])
    with pytest.raises(DataError, match=r"15 joints of 3 numbers .* give --layout"):
        opened(tmp_path / "b", "openpose")
    with pytest.raises(DataError, match="poses of 15 joints, layout 'coco17' has 17; give another --layout"):
        opened(tmp_path / "b", "openpose", "coco17")


# People


def frames_of(*people: tuple[int, float, str | None]) -> list[Frame]:
    """Frames with poses (frame, x, id)."""
    found: dict[int, Frame] = {}
    for number, x, who in people:
        joints = np.array([[x + 10 * joint, 50 * joint, 1] for joint in range(4)], np.float32)
        found.setdefault(number, Frame(number, [], f"frame {number}")).poses.append(Pose(joints, who))
    return list(found.values())


def test_people_are_joined_by_id_whatever_their_place() -> None:
    tracks = follow(frames_of((0, 0, "a"), (0, 200, "b"), (1, 0, "b"), (1, 200, "a"), (2, 0, "a")), 2)
    assert [(track.person, track.frames.tolist(), track.poses[:, 0, 0].tolist()) for track in tracks] == [
        ("a", [0, 1, 2], [0, 200, 0]),
        ("b", [0, 1], [200, 0]),
    ]


def test_people_without_ids_are_joined_by_distance_whatever_their_order() -> None:
    tracks = follow(frames_of((0, 0, None), (0, 400, None), (1, 405, None), (1, 5, None), (2, 10, None), (2, 410, None)), 2)
    assert [track.poses[:, 0, 0].tolist() for track in tracks] == [[0, 5, 10], [400, 405, 410]]


def test_a_joint_at_the_origin_is_undetected_whatever_its_score(tmp_path: Path) -> None:
    """YOLO writes 0, 0 for joints of low confidence, and their confidence."""

    def line(x: float) -> str:
        joints = [f"{x + 0.001 * joint:g} {0.9 + 0.002 * joint:g} 0.9" for joint in range(16)]
        return " ".join(["0 0.5 0.5 0.1 0.1", *joints, "0 0 0.3"]) + "\n"

    for frame, xs in {1: (0.5,), 2: (0.8,), 3: (0.8, 0.5)}.items():
        (tmp_path / f"clip_{frame}.txt").write_text("".join(map(line, xs)))
    (tmp_path / "clip_4.txt").write_text("0 0.5 0.5 0.1 0.1" + " 0 0 0.3" * 17 + "\n")
    tracks = opened(tmp_path, "ultralytics").people(0)
    assert [track.frames.tolist() for track in tracks] == [[1, 3], [2, 3]]


def test_ids_that_some_poses_lack_are_not_used() -> None:
    tracks = follow(frames_of((0, 0, "7"), (0, 400, None), (1, 400, "7"), (1, 0, None)), 2)
    assert [track.poses[:, 0, 0].tolist() for track in tracks] == [[0, 0], [400, 400]]


def test_the_order_is_by_frames_and_a_later_person_takes_a_free_place() -> None:
    tracks = follow(frames_of((0, 900, "late"), *((frame, 0, "long") for frame in range(4)), (3, 500, "other")), 2)
    assert [track.person for track in tracks] == ["long", "late", "other"]
    joints, first = fill(tracks, "clip", 2)
    assert first == 0
    assert joints[:, 1, 0, 0].tolist() == [900, 0, 0, 500]
    assert fill(tracks, "clip", 1)[0].shape == (4, 1, 4, 3)


def test_two_people_with_one_id_are_refused() -> None:
    with pytest.raises(DataError, match=r"frame 3: two people have the track id 5; track again, or remove the ids"):
        follow(frames_of((3, 0, "5"), (3, 100, "5")), 2)


def test_a_crowd_needs_track_ids() -> None:
    crowd = [(3, 20.0 * number, None) for number in range(65)]
    with pytest.raises(DataError, match="frame 3: 65 people without track ids in one frame, the limit is 64; track them"):
        follow(frames_of(*crowd), 2)
    assert len(follow(frames_of(*((frame, x, str(x)) for frame, x, _ in crowd)), 2)) == 65


def test_frame_numbers_are_bounded() -> None:
    with pytest.raises(DataError, match="frame number 99999999 is not from 0 to 10000000"):
        follow(frames_of((99_999_999, 0, None)), 2)
    far = follow(frames_of((0, 0, "a"), (9_999_999, 0, "a")), 2)
    with pytest.raises(DataError, match="clip: frames 0 to 9999999 with 1 people take more than"):
        fill(far, "clip", 1)


def test_openpose_ids_are_used_where_it_tracked(tmp_path: Path) -> None:
    for frame in range(3):
        people = [person(10, person_id=[4]), person(500, person_id=[2])]
        frame_file(tmp_path / "a", "x", frame, people[:: -1 if frame == 1 else 1])
    assert {track.person for track in opened(tmp_path / "a", "openpose").people(0)} == {"2", "4"}


def test_alphapose_without_tracking_writes_one_id_for_all(tmp_path: Path) -> None:
    made = make_clips(17)[2]
    assert len(made.people) == 2
    results = [
        {"image_id": f"{frame}.jpg", "category_id": 1, "keypoints": flat(one, frame), "score": 3.0, "idx": [[0.0]]}
        for frame in range(FRAMES)
        for one in made.people[:: -1 if frame % 3 else 1]
    ]
    write_json(tmp_path / "a" / "alphapose-results.json", results)
    tracks = opened(tmp_path / "a" / "alphapose-results.json", "alphapose").people(0)
    assert sorted(track.poses[:, :, 0].mean().round() for track in tracks) == sorted(
        one.places[..., 0].mean().round() for one in made.people
    )


@pytest.mark.parametrize(("key", "inner"), [("people", "pose_keypoints_2d"), ("bodies", "joints")])
def test_alphapose_in_the_forms_of_openpose(key: str, inner: str, tmp_path: Path) -> None:
    values = person(joints=18)["pose_keypoints_2d"]
    content = {f"{frame}.jpg": {"version": "AlphaPose v0.3", key: [{inner: values}]} for frame in (0, 2)}
    write_json(tmp_path / "clip.json", content)
    source = opened(tmp_path / "clip.json", "alphapose")
    assert source.layout == "openpose18"
    assert source.read(0).joints.any((1, 2, 3)).tolist() == [True, False, True]
    assert source.names == ["clip"]


def test_alphapose_tracked_by_pose_flow(tmp_path: Path) -> None:
    values = [person(x, joints=17)["pose_keypoints_2d"] for x in (0, 500)]
    frames = {
        f"clip/{frame:04d}.jpg": [{"keypoints": values[who], "scores": 3.0, "idx": who + 5} for who in (0, 1)] for frame in range(3)
    }
    write_json(tmp_path / "clip.json", frames)
    tracks = opened(tmp_path / "clip.json", "alphapose").people(0)
    assert [(track.person, track.poses[:, 0, 0].tolist()) for track in tracks] == [("5", [0, 0, 0]), ("6", [500, 500, 500])]


# Other forms of the same tool


def test_mmpose_images_instance_info_and_three_dimensions(tmp_path: Path) -> None:
    made = make_clips(17)[0].people[0]
    for frame in range(2, 5):
        write_json(tmp_path / "images" / f"img_{frame:05d}.json", [mmpose_instance(made, frame)])
    recording = opened(tmp_path / "images", "mmpose").read(0)
    assert (recording.joints.shape, recording.first_frame) == ((3, 1, 17, 3), 2)
    frames = [{"frame_id": frame + 1, "instances": [mmpose_instance(made, frame)]} for frame in range(2)]
    write_json(tmp_path / "demo.json", {"meta_info": {}, "instance_info": frames})
    assert opened(tmp_path / "demo.json", "mmpose").read(0).first_frame == 1
    write_json(tmp_path / "python.json", [[mmpose_instance(made, frame)] for frame in range(3)])
    assert opened(tmp_path / "python.json", "mmpose").read(0).joints.shape == (3, 1, 17, 3)
    lifted = {"keypoints": [[1.0, 2.0, 3.0]] * 17, "keypoint_scores": [0.5] * 17}
    write_json(tmp_path / "lifted.json", [{"frame_id": 0, "instances": [lifted]}])
    with pytest.raises(DataError, match=r"17 joints of 4 numbers .*give --layout"):
        opened(tmp_path / "lifted.json", "mmpose")
    assert opened(tmp_path / "lifted.json", "mmpose", "h36m17").read(0).joints[0, 0, 0].tolist() == [1, 2, 3, 0.5]
    inner = {"keypoints": [lifted["keypoints"]], "keypoint_scores": [lifted["keypoint_scores"]]}
    write_json(tmp_path / "nested.json", [{"frame_id": 0, "instances": [inner]}])
    assert opened(tmp_path / "nested.json", "mmpose", "h36m17").read(0).joints[0, 0, 0].tolist() == [1, 2, 3, 0.5]


def test_coco_results_find_their_clips_by_names(tmp_path: Path) -> None:
    keypoints = person(joints=17)["pose_keypoints_2d"]
    names = ["images/wave_1_000004.jpg", "wave_1/img_5.jpg", "wave_2_7.jpg"]
    results = [{"image_id": name, "category_id": 1, "keypoints": keypoints, "score": 0.5} for name in names]
    write_json(tmp_path / "named" / "results.json", results)
    (tmp_path / "named" / "clips.csv").write_text("name,label\nwave_1,wave\nwave_2,kick\n")
    source = opened(tmp_path / "named", "coco_results")
    assert [(len(source.read(index).joints), source.read(index).first_frame) for index in range(2)] == [(2, 4), (1, 7)]
    for name in ("a", "b"):
        content = [{"image_id": frame, "keypoints": keypoints, "score": 0.5, "track_id": 3} for frame in range(3)]
        write_json(tmp_path / "apart" / "wave" / f"{name}.json", content)
    source = opened(tmp_path / "apart", "coco_results")
    assert list(source.names) == ["wave/a", "wave/b"]
    assert [track.person for track in source.people(1)] == ["3"]


def test_coco_images_of_two_clips_are_not_one(tmp_path: Path) -> None:
    keypoints = person(joints=17)["pose_keypoints_2d"]
    names = ["images/wave_1_0001.jpg", "images/kick_1_0001.jpg"]
    write_json(tmp_path / "results.json", [{"image_id": name, "keypoints": keypoints, "score": 0.5} for name in names])
    with pytest.raises(
        DataError, match=r"frame 1 of clip 'images' would be 'images/kick_1_0001\.jpg' and 'images/wave_1_0001\.jpg'"
    ):
        opened(tmp_path, "coco_results").people(0)


def test_files_that_name_the_joints_are_not_taken_for_coco(tmp_path: Path) -> None:
    coco = list(load_layout("coco17").joints)
    other = [coco[0], "head_bottom", "head_top", *coco[3:]]  # the 17 joints of PoseTrack
    made = make_clips(17)[0].people[0]
    for name, joints in {"coco": coco, "other": other}.items():
        frames = [{"frame_id": 0, "instances": [mmpose_instance(made, 0)]}]
        info = {"keypoint_id2name": {str(joint): one for joint, one in enumerate(joints)}}
        write_json(tmp_path / f"{name}.json", {"meta_info": info, "instance_info": frames})
        folder = tmp_path / name
        write_json(folder / "results.json", [{"image_id": 1, "keypoints": flat(made, 0), "score": 1.0}])
        images = [{"id": 1, "file_name": "a/1.jpg"}]
        write_json(folder / "images.json", {"images": images, "categories": [{"id": 1, "keypoints": joints}]})
    assert opened(tmp_path / "coco.json", "mmpose").layout == "coco17"
    assert opened(tmp_path / "coco", "coco_results").layout == "coco17"
    for path, format in ((tmp_path / "other.json", "mmpose"), (tmp_path / "other", "coco_results")):
        with pytest.raises(
            DataError, match=r"names the joints \['nose', 'head_bottom', .* which no built-in layout has; give --layout"
        ):
            opened(path, format)
        assert opened(path, format, "coco17").layout == "coco17"


def test_ultralytics_ids_scores_of_boxes_and_json(tmp_path: Path) -> None:
    joints = " ".join(["0.5 0.25 0.75"] * 17)
    for name, extra in {"plain": "", "conf": " 0.875", "ids": " 4", "both": " 0.875 4"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "clip_12.txt").write_text(f"0 0.5 0.5 0.1 0.1 {joints}{extra}\n")
        (track,) = opened(tmp_path / name, "ultralytics").people(0)
        assert track.poses[0, 0].tolist() == [0.5, 0.25, 0.75]
        assert track.person == ("4" if name in ("ids", "both") else "0")
        assert track.frames.tolist() == [12]
    (tmp_path / "xy").mkdir()
    (tmp_path / "xy" / "clip_1.txt").write_text("0 0.5 0.5 0.1 0.1 " + " ".join(["0.5 0.25"] * 17))
    with pytest.raises(DataError, match=r"17 joints of 2 numbers.*give --layout"):
        opened(tmp_path / "xy", "ultralytics")
    assert not opened(tmp_path / "xy", "ultralytics", "coco17").scores
    entry = {"name": "person", "track_id": 9, "keypoints": {"x": [1.0] * 17, "y": [2.0] * 17, "visible": [0.5] * 17}}
    write_json(tmp_path / "clip.json", [[entry], [], [entry]])
    (track,) = opened(tmp_path / "clip.json", "ultralytics").people(0)
    assert (track.person, track.frames.tolist(), track.poses[0, 0].tolist()) == ("9", [0, 2], [1, 2, 0.5])
    write_json(tmp_path / "frames" / "clip_3.json", [entry])
    assert opened(tmp_path / "frames", "ultralytics").read(0).first_frame == 3


def landmarks(count: int, **other: float) -> list[dict[str, float]]:
    return [{"x": 0.1 * joint, "y": 0.5, "z": 0.25, **other} for joint in range(1, count + 1)]


@pytest.mark.parametrize(
    ("entry", "shape"),
    [
        ({"pose_landmarks": [landmarks(33, visibility=0.5)], "pose_world_landmarks": [landmarks(33, visibility=0.1)]}, (33, 4)),
        ({"landmarks": [landmarks(33, visibility=0.5)]}, (33, 4)),
        ({"pose_landmarks": {"landmark": landmarks(33, visibility=0.5)}}, (33, 4)),
        ({"landmark": landmarks(33, visibility=0.5)}, (33, 4)),
        (landmarks(33, visibility=0.5), (33, 4)),
        ([[0.1, 0.5, 0.25, 0.5]] * 33, (33, 4)),
        ([landmarks(33)], (33, 3)),
        ({"hand_landmarks": [landmarks(21, visibility=0.0)]}, (21, 3)),
        ({"worldLandmarks": [landmarks(21)]}, (21, 3)),
    ],
    ids=range(9),
)
def test_mediapipe_json_in_its_forms(entry: Any, shape: tuple[int, int], tmp_path: Path) -> None:
    write_json(tmp_path / "clip.json", [entry, None, [], entry])
    source = opened(tmp_path / "clip.json", "mediapipe")
    recording = source.read(0)
    assert recording.joints.shape == (4, 1, *shape)
    assert recording.joints.any((1, 2, 3)).tolist() == [True, False, False, True]
    assert recording.joints[0, 0, 0].tolist() == pytest.approx([0.1, 0.5, 0.25, 0.5][: shape[1]])
    assert (source.scores, source.layout) == (shape[1] == 4, "mediapipe33" if shape[0] == 33 else "hand21")


def test_mediapipe_arrays_and_tables(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pose = rng.uniform(0, 1, (5, 33, 4)).astype(np.float32)
    pose[2] = 0
    forms = {"three": pose, "flat": pose.reshape(5, 132), "people": np.stack([pose, pose[::-1]], axis=1)}
    for name, array in forms.items():
        np.save(tmp_path / f"{name}.npy", array)
        recording = opened(tmp_path / f"{name}.npy", "mediapipe").read(0)
        np.testing.assert_array_equal(recording.joints[:, 0], pose)
        assert recording.joints.shape[1] == (2 if name == "people" else 1)
    np.savetxt(tmp_path / "bare.csv", pose.reshape(5, 132), delimiter=",")
    head = ",".join(f"{axis}{joint}" for joint in range(33) for axis in ("x", "y", "z", "v"))
    np.savetxt(tmp_path / "head.csv", pose.reshape(5, 132), delimiter=",", header=head, comments="")
    head = ",".join(f"{axis}_{joint}" for axis in ("x", "y", "z", "visibility") for joint in range(1, 34))
    rows = np.concatenate([np.arange(3, 8)[:, None], pose.transpose(0, 2, 1).reshape(5, 132)], axis=1)
    np.savetxt(tmp_path / "axes.csv", rows, delimiter=",", header=f"frame,{head}", comments="")
    for name in ("bare", "head", "axes"):
        recording = opened(tmp_path / f"{name}.csv", "mediapipe").read(0)
        np.testing.assert_allclose(recording.joints[:, 0], pose, rtol=1e-6)
        assert recording.first_frame == (3 if name == "axes" else 0)


def test_mediapipe_tables_of_several_hands(tmp_path: Path) -> None:
    head = ",".join(["frame", "person", *(f"{axis}{joint}" for joint in range(21) for axis in "xyz")])
    lines = [head]
    for frame, who in ((0, 1), (0, 0), (1, 0), (1, 1)):
        lines.append(",".join([str(frame), str(who), *["0.5" if who else "0.25"] * 63]))
    lines.append(",".join(["2", "0", *[""] * 63]))
    (tmp_path / "hands.csv").write_text("\n".join(lines) + "\n")
    tracks = opened(tmp_path / "hands.csv", "mediapipe").people(0)
    assert {track.person: track.poses[:, 0, 0].tolist() for track in tracks} == {"1": [0.5, 0.5], "0": [0.25, 0.25]}
    without = "\n".join(line.partition(",")[2] for line in lines)
    (tmp_path / "hands.csv").write_text(without + "\n")
    with pytest.raises(DataError, match="column 'person' needs column 'frame'"):
        opened(tmp_path / "hands.csv", "mediapipe").people(0)


# BVH


def bvh_text(rows: list[list[float]], hierarchy: str = BVH_HIERARCHY) -> bytes:
    lines = "\n".join(" ".join(map(str, row)) for row in rows)
    return f"{hierarchy}Frames: {len(rows)}\nFrame Time: 0.04\n{lines}\n".encode()


def test_bvh_positions_follow_the_order_of_the_channels() -> None:
    row = [0.0] * 21
    row[:3] = [1.0, 2.0, 3.0]
    turned = list(row)
    turned[3:6] = [90.0, 90.0, 0.0]  # hips: Rz Rx, on (0, 20, 0): Rx gives (0, 0, 20), Rz leaves it
    bent = list(row)
    bent[9] = 90.0  # the left arm about z: the hand is above it
    hierarchy, motion = read_bvh(bvh_text([row, turned, bent]), Path("a.bvh"))
    assert hierarchy.names == ["Hips", "Spine", "LeftArm", "LeftHand", "RightArm", "RightHand"]
    assert hierarchy.parents == [0, 0, 1, 2, 1, 4]
    found = positions(hierarchy, motion)
    assert found[0].tolist() == [[1, 2, 3], [1, 22, 3], [16, 42, 3], [46, 42, 3], [-14, 42, 3], [-44, 42, 3]]
    np.testing.assert_allclose(found[1, 1], [1, 2, 23], atol=1e-9)
    np.testing.assert_allclose(found[2, 3], [16, 72, 3], atol=1e-9)


@pytest.mark.parametrize("order", list(permutations("XYZ")))
def test_bvh_positions_are_those_of_another_library(order: tuple[str, ...], tmp_path: Path) -> None:
    pybvh = pytest.importorskip("pybvh", reason="pybvh is not installed (the 'oracles' extra)")
    hierarchy = BVH_HIERARCHY.replace("Zrotation Xrotation Yrotation", " ".join(f"{axis}rotation" for axis in order))
    motion = np.random.default_rng(0).uniform(-60, 60, (5, 21)).round(6).tolist()
    (tmp_path / "a.bvh").write_bytes(bvh_text(motion, hierarchy))
    other = pybvh.read_bvh_file(str(tmp_path / "a.bvh"))
    names, found = [node.name for node in other.nodes], np.asarray(other.node_positions())
    ours = opened(tmp_path / "a.bvh", "bvh").read(0).joints[:, 0]
    joints = ("Hips", "Spine", "LeftArm", "LeftHand", "RightArm", "RightHand")
    np.testing.assert_allclose(ours, found[:, [names.index(joint) for joint in joints]], atol=1e-4)


def test_bvh_layouts_come_from_the_names(tmp_path: Path) -> None:
    (tmp_path / "a.bvh").write_bytes(bvh_text([[1.0] * 21]))
    layout = opened(tmp_path / "a.bvh", "bvh").layout
    assert isinstance(layout, Layout)
    assert layout.parts == {"trunk": (0, 1), "LeftArm": (2, 3), "RightArm": (4, 5)}
    assert layout.flips == (0, 1, 4, 5, 2, 3)
    assert layout.dimensions == (3,)


@pytest.mark.parametrize(
    ("left", "right"), [("lShldr", "rShldr"), ("L_Arm", "R_Arm"), ("arm.L", "arm.R"), ("Character:LeftArm", "Character:RightArm")]
)
def test_bvh_sides_in_the_usual_spellings(left: str, right: str) -> None:
    text = BVH_HIERARCHY.replace("LeftArm", left).replace("RightArm", right)
    hierarchy, _ = read_bvh(bvh_text([[1.0] * 21], text), Path("a.bvh"))
    assert hierarchy_layout(hierarchy, Path("a.bvh")).flips == (0, 1, 4, 5, 2, 3)


def test_bvh_joints_are_picked_by_a_given_layout(tmp_path: Path) -> None:
    (tmp_path / "a.bvh").write_bytes(bvh_text([[1.0] * 21]))
    text = """
name = "arms"
joints = ["RightHand", "Spine", "LeftHand"]
centre = "Spine"
[parents]
RightHand = "Spine"
LeftHand = "Spine"
[parts]
left = ["LeftHand", "Spine"]
right = ["RightHand"]
"""
    (tmp_path / "arms.toml").write_text(text)
    joints = opened(tmp_path / "a.bvh", "bvh", str(tmp_path / "arms.toml")).read(0).joints
    whole = opened(tmp_path / "a.bvh", "bvh").read(0).joints
    np.testing.assert_array_equal(joints, whole[:, :, [5, 1, 3]])
    assert parse_layout(text).num_joints == 3
    (tmp_path / "arms.toml").write_text(text.replace("RightHand", "RightHnd"))
    with pytest.raises(DataError, match="has no joint 'RightHnd' of layout 'arms'; did you mean 'RightHand'"):
        opened(tmp_path / "a.bvh", "bvh", str(tmp_path / "arms.toml"))


def test_bvh_files_have_one_hierarchy(tmp_path: Path) -> None:
    (tmp_path / "wave").mkdir()
    (tmp_path / "wave" / "a.bvh").write_bytes(bvh_text([[1.0] * 21]))
    (tmp_path / "wave" / "b.bvh").write_bytes(bvh_text([[1.0] * 21], BVH_HIERARCHY.replace("RightHand", "RightWrist")))
    source = opened(tmp_path, "bvh")
    with pytest.raises(DataError, match=r"b.bvh: joint 5 is 'RightWrist', which differs from .*a.bvh; give --layout"):
        source.read(1)


def test_bvh_names_without_sides_ask_for_a_layout(tmp_path: Path) -> None:
    text = BVH_HIERARCHY.replace("Left", "A").replace("Right", "B")
    (tmp_path / "a.bvh").write_bytes(bvh_text([[1.0] * 21], text))
    with pytest.raises(DataError, match=r"the joints' names give 1 body parts .* give --layout"):
        opened(tmp_path / "a.bvh", "bvh")


# Damaged files


def damaged_openpose(content: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_json(folder / "clip" / "clip_000000000007_keypoints.json", content)
        return folder / "clip"

    return write


def damaged(name: str, content: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        if isinstance(content, str):
            (folder / name).write_text(content)
        else:
            write_json(folder / name, content)
        return folder / name

    return write


BAD_POSE = [1.0] * 74
NOT_A_NUMBER = [1.0] * 10 + ["x"] + [1.0] * 64
GOOD_LANDMARKS = landmarks(33, visibility=0.5)
INSTANCE = {"keypoints": [[1.0, 2.0]] * 17, "keypoint_scores": [0.5] * 17}

DAMAGED = [
    (
        "openpose",
        damaged_openpose({"people": [{"pose_keypoints_2d": BAD_POSE}]}),
        "7_keypoints.json: frame 7, person 0: the pose is 74 values",
    ),
    (
        "openpose",
        damaged_openpose({"people": [{"pose_keypoints_2d": NOT_A_NUMBER}]}),
        "frame 7, person 0, joint 3: 'x' is not a number; write",
    ),
    (
        "openpose",
        damaged_openpose({"people": [{"pose_keypoints_2d": [1e300] * 75}]}),
        "frame 7, person 0, joint 0: a coordinate is not finite",
    ),
    ("openpose", damaged_openpose({"people": [{"face": []}]}), "frame 7, person 0: .* has no 'pose_keypoints_2d'"),
    ("openpose", damaged_openpose({"persons": []}), "frame 7: has no list 'people'"),
    ("openpose", damaged_openpose({"people": []}), "no frame holds a person"),
    ("openpose", damaged("clip_keypoints.json", {"people": []}), "'clip' does not end in a frame number"),
    (
        "alphapose",
        damaged("a.json", [{"image_id": "a.jpg", "keypoints": [1.0] * 51}]),
        "image 'a.jpg': 'a' does not end in a frame number",
    ),
    (
        "alphapose",
        damaged("a.json", [{"image_id": "1.jpg", "keypoints": [1.0] * 50}]),
        "result 0, image '1.jpg': the pose is 50 values",
    ),
    ("alphapose", damaged("a.json", [{"image_id": "1.jpg"}]), "result 0 is .* without 'keypoints'"),
    ("alphapose", damaged("a.json", {"1.jpg": {"bodies": [{}]}}), "frame 1, person 0: {} has no 'joints'"),
    ("alphapose", damaged("a.json", "[{"), "not valid JSON .*write it again with the pose tool"),
    (
        "mmpose",
        damaged("a.json", [{"frame_id": 4, "instances": [{"keypoints": [[1.0, 2.0]]}]}]),
        "frame 4, person 0: 'keypoint_scores' is None",
    ),
    ("mmpose", damaged("a.json", [{"frame_id": 4, "instances": [INSTANCE | {"keypoints": [[1.0]] * 17}]}]), "joints of 1 numbers"),
    (
        "mmpose",
        damaged("a.json", [{"frame_id": 4, "instances": [INSTANCE | {"keypoints": [[1.0, 2.0]] * 16 + [[1.0]]}]}]),
        r"frame 4, person 0, joint 16: \[1.0\] is not 2 numbers",
    ),
    (
        "mmpose",
        damaged("a.json", {"bboxes": [], "labels": [], "scores": []}),
        "boxes without keypoints, as MMDetection writes them",
    ),
    ("coco_results", damaged("a.json", [{"image_id": None, "keypoints": []}]), "result 0: 'image_id' is None"),
    (
        "coco_results",
        damaged("a.json", [{"image_id": f"{clip}/1.jpg", "keypoints": [1.0] * 51} for clip in "ab"]),
        "image 'b/1.jpg': the file also has images of 'a/'; give a folder with clips.csv",
    ),
    ("ultralytics", damaged("a_1.txt", "0 0.5 0.5 0.1 0.1 " + "0.1 " * 49), "line 1: 49 numbers after the box; 17 joints have 51"),
    ("ultralytics", damaged("a_1.txt", "0 0.5 0.5 x 0.1 " + "0.1 " * 51), "line 1: 'x' is not a number"),
    ("ultralytics", damaged("a_1.txt", "0 0.5 0.5 0.1 0.1 nan " + "0.1 " * 50), "line 1, joint 0: a coordinate is not finite"),
    ("ultralytics", damaged("a.json", [[{"box": {}}]]), "frame 0, person 0: .* has no 'keypoints'; use a pose model"),
    ("ultralytics", damaged("a.json", [[{"keypoints": {"x": [1.0], "y": []}}]]), "frame 0, person 0: 'keypoints' is"),
    (
        "mediapipe",
        damaged("a.json", [{"landmarks": [GOOD_LANDMARKS[:5]]}]),
        "frame 0, person 0: 5 landmarks, expected 33 of a pose or 21",
    ),
    ("mediapipe", damaged("a.json", [[*GOOD_LANDMARKS[:32], {"x": 1.0}]]), "frame 0, person 0, joint 32: .* is not a landmark"),
    ("mediapipe", damaged("a.json", {"frames": []}), "is not a list of frames"),
    ("mediapipe", damaged("a.csv", "x0,y0,z0,w0\n1,1,1,1\n"), "line 1: unknown column 'w0'"),
    ("mediapipe", damaged("a.csv", "x0,y0,z0\n1,1,1\n"), "line 1: the columns are not x, y, z"),
    ("mediapipe", damaged("a.csv", "1,2,3\n"), "line 1: 3 numbers, expected 132, 99, 63"),
    ("mediapipe", damaged("a.csv", "1," * 62 + "x\n"), "line 1: could not convert string to float: 'x'"),
    ("mediapipe", damaged("a.csv", "nose_x,nose_y,nose_z\n1,2,3\n"), "line 1: unknown column 'nose_x'; columns are frame"),
    ("mediapipe", damaged("a.csv", "frame,person\n0,0\n"), "line 1: no landmarks; columns are frame, person, x0"),
    ("mediapipe", damaged("a.npy", "nothing"), "not a valid NumPy file"),
    ("bvh", damaged("a.bvh", "HIERARCHY\nJOINT a"), "line 2: 'JOINT a' instead of ROOT"),
    (
        "bvh",
        damaged("a.bvh", BVH_HIERARCHY + "Frames: 2\nFrame Time: 0.1\n" + "0 " * 21),
        "line 43: the file ends after 1 of 2 frames",
    ),
    (
        "bvh",
        damaged("a.bvh", BVH_HIERARCHY + "Frames: 1\nFrame Time: 0.1\n0 0"),
        "line 43: frame 0 has 2 numbers, expected 1 frames of 21",
    ),
    ("bvh", damaged("a.bvh", BVH_HIERARCHY + "Frames: 1\nFrame Time: 0.1\n" + "x " * 21), "line 43: frame 0: could not convert"),
    (
        "bvh",
        damaged("a.bvh", BVH_HIERARCHY + "Frames: 1\nFrame Time: 0.1\n" + "nan " * 21),
        "line 43: frame 0 has a number that is not finite",
    ),
    (
        "bvh",
        damaged("a.bvh", BVH_HIERARCHY.replace("0.0 20.0 0.0", "0.0 20.0")),
        "line 8: the offset is '0.0 20.0', not three numbers",
    ),
    (
        "bvh",
        damaged("a.bvh", BVH_HIERARCHY.replace("3 Zrotation", "4 Zrotation", 1)),
        "line 9: joint 'Spine': the channels are not '4' of",
    ),
    ("bvh", damaged("a.bvh", BVH_HIERARCHY.replace("RightArm", "LeftArm")), "joint 'LeftArm' has no name of its own"),
    ("bvh", damaged("a.bvh", BVH_HIERARCHY[: BVH_HIERARCHY.index("  JOINT Left")]), "the file ends here"),
]


@pytest.mark.parametrize(("format", "write", "message"), DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_one_line_with_file_and_place(
    format: str, write: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path)
    with pytest.raises(DataError, match=message) as found:
        opened(path, format).read(0)
    assert str(tmp_path) in str(found.value)
    assert "\n" not in str(found.value)


def test_poses_of_two_models_are_refused(tmp_path: Path) -> None:
    frame_file(tmp_path / "a", "x", 0, [person()])
    frame_file(tmp_path / "a", "x", 1, [person(joints=18)])
    with pytest.raises(DataError, match=r"frame 1, person 0: 18 joints of 3 numbers, the other poses have 25 of 3; use one model"):
        opened(tmp_path / "a", "openpose").read(0)


def test_two_files_of_one_frame_are_refused(tmp_path: Path) -> None:
    for name in ("x", "y"):
        frame_file(tmp_path / "a", name, 3, [person()])
    with pytest.raises(
        DataError,
        match=r"frame 3 is also in x_000000000003_keypoints.json; give each clip a folder, or name the clips in clips.csv",
    ):
        opened(tmp_path / "a", "openpose").read(0)


def test_unknown_images_of_results_are_refused(tmp_path: Path) -> None:
    keypoints = person(joints=17)["pose_keypoints_2d"]
    write_json(tmp_path / "results.json", [{"image_id": 5, "keypoints": keypoints, "score": 1.0}])
    with pytest.raises(DataError, match=r"result 0, image 5: which clip the image belongs to is not known; put the COCO file"):
        opened(tmp_path, "coco_results")
    write_json(tmp_path / "images.json", {"images": [{"id": 5, "file_name": "a/1.jpg"}]})
    (tmp_path / "clips.csv").write_text("name,label\nb,wave\n")
    with pytest.raises(DataError, match=r"clips.csv: clip 'b': no image of it is in results.json; correct the name"):
        opened(tmp_path, "coco_results")
