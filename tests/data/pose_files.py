"""Small data sets of pose tools, as the tools document their files: one function per format of `--format`.

Each writes two classes of clips with one person, most of them also with a second one, into a new folder. `prepare` reads it with
`--format` alone. The labels are in `clips.csv`, for BVH in class folders.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CLASSES = ("wave", "kick")
SPLITS = {"train": 4, "val": 1, "test": 1}  # clips per class
FRAMES = 10


class Person(NamedTuple):
    """A person of a clip: [frames, joints, 2] pixels, and [frames, joints] confidences."""

    places: np.ndarray
    scores: np.ndarray


class Made(NamedTuple):
    """A clip that a test can compare with what is read."""

    name: str
    label: str
    split: str
    people: list[Person]


def make_clips(joints: int) -> list[Made]:
    """The clips of a data set; the second class moves other joints. Every second clip has two people, the first one on the left."""
    rng = np.random.default_rng(joints)
    rest = rng.uniform(0, 100, (joints, 2))
    clips = []
    for split, count in SPLITS.items():
        for number in range(count):
            for label, name in enumerate(CLASSES):
                people = []
                for person in range(1 + number % 2):
                    places = rest + np.array([100 + 300 * person, 50]) + rng.normal(0, 1, (FRAMES, joints, 2))
                    places[:, label::2] += 20 * np.sin(np.arange(FRAMES) / 2)[:, None, None]
                    people.append(Person(places, rng.uniform(0.5, 1, (FRAMES, joints))))
                clips.append(Made(f"{split}_{name}_{number}", name, split, people))
    return clips


def write_table(folder: Path, clips: list[Made]) -> None:
    """`clips.csv`."""
    lines = ["name,label,split", *(f"{clip.name},{clip.label},{clip.split}" for clip in clips)]
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")


def flat(person: Person, frame: int) -> list[float]:
    """x0, y0, c0, x1, ... with three decimals, as tools write them."""
    rows = np.concatenate([person.places[frame], person.scores[frame][:, None]], axis=1)
    return [float(value) for value in rows.round(3).ravel()]


def write_json(file: Path, content: Any) -> None:
    """The content, in a folder that is made for it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def openpose(folder: Path) -> list[Made]:
    """A folder per clip, a file per frame; the order of the people changes from frame to frame."""
    clips = make_clips(25)
    for clip in clips:
        for frame in range(FRAMES):
            people = [{"person_id": [-1], "pose_keypoints_2d": flat(person, frame)} for person in clip.people]
            content = {"version": 1.3, "people": people[:: -1 if frame % 2 else 1]}
            write_json(folder / clip.name / f"{clip.name}_{frame:012d}_keypoints.json", content)
    write_table(folder, clips)
    return clips


def alphapose(folder: Path) -> list[Made]:
    """`alphapose-results.json` in a folder per clip, with track ids."""
    clips = make_clips(17)
    for clip in clips:
        results = [
            {"image_id": f"{frame}.jpg", "category_id": 1, "keypoints": flat(person, frame), "score": 2.5, "idx": 1 + number}
            for frame in range(FRAMES)
            for number, person in enumerate(clip.people)
        ]
        write_json(folder / clip.name / "alphapose-results.json", results)
    write_table(folder, clips)
    return clips


def mmpose(folder: Path) -> list[Made]:
    """The inferencer's file of a video, one per clip."""
    clips = make_clips(17)
    for clip in clips:
        content = [
            {"frame_id": frame, "instances": [mmpose_instance(one, frame) for one in clip.people]} for frame in range(FRAMES)
        ]
        write_json(folder / f"{clip.name}.json", content)
    write_table(folder, clips)
    return clips


def mmpose_instance(person: Person, frame: int) -> dict[str, Any]:
    """One person of MMPose."""
    low, high = person.places[frame].min(0).tolist(), person.places[frame].max(0).tolist()
    return {
        "keypoints": person.places[frame].tolist(),
        "keypoint_scores": person.scores[frame].tolist(),
        "bbox": [[*low, *high]],
        "bbox_score": 0.9,
    }


def coco_results(folder: Path) -> list[Made]:
    """One list of results for all clips, and the COCO file of their images."""
    clips = make_clips(17)
    images, results = [], []
    for clip in clips:
        for frame in range(FRAMES):
            images.append({"id": len(images) + 1, "file_name": f"{clip.name}/{frame:06d}.jpg", "width": 640, "height": 480})
            results += [
                {"image_id": len(images), "category_id": 1, "keypoints": flat(person, frame), "score": 0.9}
                for person in clip.people
            ]
    write_json(folder / "results.json", results)
    write_json(folder / "images.json", {"images": images, "annotations": [], "categories": []})
    write_table(folder, clips)
    return clips


def ultralytics(folder: Path) -> list[Made]:
    """`save_txt=True`: a text file per frame in a clip's `labels/`, counted from 1; images of 640 x 480."""
    clips = make_clips(17)
    for clip in clips:
        labels = folder / clip.name / "labels"
        labels.mkdir(parents=True)
        for frame in range(FRAMES):
            rows = [np.array(flat(person, frame)).reshape(-1, 3) / [640, 480, 1] for person in clip.people]
            lines = [" ".join(["0 0.5 0.5 0.2 0.4", *(f"{value:g}" for value in row.ravel())]) for row in rows]
            (labels / f"{clip.name}_{frame + 1}.txt").write_text("\n".join(lines) + "\n")
    write_table(folder, clips)
    return clips


def mediapipe(folder: Path) -> list[Made]:
    """A list of Pose Landmarker results per clip; x and y relative to the image, z 0.1 for all."""
    clips = make_clips(33)
    for clip in clips:
        content = []
        for frame in range(FRAMES):
            people = [
                [
                    {"x": x / 640, "y": y / 480, "z": 0.1, "visibility": score, "presence": 0.9}
                    for (x, y), score in zip(person.places[frame].tolist(), person.scores[frame].tolist(), strict=True)
                ]
                for person in clip.people
            ]
            content.append({"pose_landmarks": people, "pose_world_landmarks": []})
        write_json(folder / f"{clip.name}.json", content)
    write_table(folder, clips)
    return clips


BVH_HIERARCHY = """HIERARCHY
ROOT Hips
{
  OFFSET 0.0 0.0 0.0
  CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
  JOINT Spine
  {
    OFFSET 0.0 20.0 0.0
    CHANNELS 3 Zrotation Xrotation Yrotation
    JOINT LeftArm
    {
      OFFSET 15.0 20.0 0.0
      CHANNELS 3 Zrotation Xrotation Yrotation
      JOINT LeftHand
      {
        OFFSET 30.0 0.0 0.0
        CHANNELS 3 Zrotation Xrotation Yrotation
        End Site
        {
          OFFSET 8.0 0.0 0.0
        }
      }
    }
    JOINT RightArm
    {
      OFFSET -15.0 20.0 0.0
      CHANNELS 3 Zrotation Xrotation Yrotation
      JOINT RightHand
      {
        OFFSET -30.0 0.0 0.0
        CHANNELS 3 Zrotation Xrotation Yrotation
        End Site
        {
          OFFSET -8.0 0.0 0.0
        }
      }
    }
  }
}
MOTION
"""
BVH_COLUMNS = 6 + 5 * 3


def bvh(folder: Path) -> list[Made]:
    """A file per clip in class folders, in the folders train, val and test; the left arm waves, the right one kicks."""
    rng = np.random.default_rng(0)
    clips = make_clips(6)
    for clip in clips:
        motion = rng.normal(0, 3, (FRAMES, BVH_COLUMNS))
        motion[:, 9 if clip.label == "wave" else 15] += 40 * np.sin(np.arange(FRAMES) / 2)
        rows = "\n".join(" ".join(f"{value:.6f}" for value in row) for row in motion)
        file = folder / clip.split / clip.label / f"{clip.name}.bvh"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{BVH_HIERARCHY}Frames: {FRAMES}\nFrame Time: 0.033333\n{rows}\n")
    return clips


BUILDERS: dict[str, Callable[[Path], list[Made]]] = {
    "openpose": openpose,
    "alphapose": alphapose,
    "mmpose": mmpose,
    "coco_results": coco_results,
    "ultralytics": ultralytics,
    "mediapipe": mediapipe,
    "bvh": bvh,
}
