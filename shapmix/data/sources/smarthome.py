"""Reader of Toyota Smarthome (trimmed): one JSON file of LCR-Net's poses per clip."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from shapmix.data.sources import Numbers, Recording
from shapmix.data.sources.bounded import MOST_CLIPS, no_body, numbers, parse_json, read_file, show
from shapmix.data.sources.people import MOST_IN_FRAME, link_people, seat_people
from shapmix.data.sources.registry import source
from shapmix.process.errors import DataError

JOINTS = 13
PEOPLE = 2
LARGEST_FILE = 128 << 20  # bytes
DAMAGED = "the file is damaged, download it again"
ACTIONS = (
    "Cook.Cleandishes", "Cook.Cleanup", "Cook.Cut", "Cook.Stir", "Cook.Usestove", "Cutbread", "Drink.Frombottle", "Drink.Fromcan",
    "Drink.Fromcup", "Drink.Fromglass", "Eat.Attable", "Eat.Snack", "Enter", "Getup", "Laydown", "Leave", "Makecoffee.Pourgrains",
    "Makecoffee.Pourwater", "Maketea.Boilwater", "Maketea.Insertteabag", "Pour.Frombottle", "Pour.Fromcan", "Pour.Fromkettle",
    "Readbook", "Sitdown", "Takepills", "Uselaptop", "Usetablet", "Usetelephone", "Walk", "WatchTV",
)  # fmt: skip
CROSS_VIEW = (
    "Cutbread", "Drink.Frombottle", "Drink.Fromcan", "Drink.Fromcup", "Drink.Fromglass", "Eat.Attable", "Eat.Snack", "Enter",
    "Getup", "Leave", "Pour.Frombottle", "Pour.Fromcan", "Readbook", "Sitdown", "Takepills", "Uselaptop", "Usetablet",
    "Usetelephone", "Walk",
)  # fmt: skip
TRAINING_SUBJECTS = (3, 4, 6, 7, 9, 12, 13, 15, 17, 19, 25)
CAMERAS: dict[str, dict[str, tuple[int, ...]]] = {
    "cv1": {"train": (1,), "val": (5,), "test": (2,)},
    "cv2": {"train": (1, 3, 4, 6, 7), "val": (5,), "test": (2,)},
}

_NAME = re.compile(
    r"(?P<name>(?P<action>[A-Za-z.]+)_p(?P<subject>\d\d)_r(?P<run>\d\d)_v(?P<video>\d\d)_c(?P<camera>\d\d))(_pose3d)?"
)


def _is_smarthome(path: Path) -> bool:
    return path.is_dir() and any(_NAME.fullmatch(file.stem) for file in path.glob("*_p[0-9][0-9]_r*_v*_c*.json"))


@source("smarthome", "a folder with the JSON skeletons of Toyota Smarthome", fits=_is_smarthome)
class Smarthome:
    """The files of a folder, sorted by name; at most two people, linked from frame to frame by their joints in the image.

    Joints are `pose3d` (x, y, z), or with `coordinates=2` `pose2d` (x, y) in pixels. A clip runs from the first frame with a person
    to the last; frames between them without a person are zero.

    The lists are `cs_train`, `cs_test` (by subject) and `cv1_train`, `cv1_val`, `cv1_test`, `cv2_train`, `cv2_val`, `cv2_test`
    (by camera, 19 of the 31 classes: train with `--drop-empty-classes`).

    Raises:
        DataError: no such files, an invalid name, or a number of coordinates other than 2 and 3.
    """

    scores = False

    def __init__(self, folder: Path, *, layout: str | None = None, coordinates: int | None = None) -> None:
        self.layout = layout or "smarthome13"
        self._columns = coordinates or 3
        if self._columns not in (2, 3):
            raise DataError(f"{folder}: Toyota Smarthome has poses of 2 or 3 coordinates, not {coordinates}; correct --coordinates")
        self.files = sorted(folder.glob("*.json"))
        self.class_names = list(ACTIONS)
        self.names: list[str] = []
        self.labels: list[int] = []
        self.splits: dict[str, list[str]] = {}
        self._numbers: list[Numbers] = []
        if not 1 <= len(self.files) <= MOST_CLIPS:
            raise DataError(f"{folder}: contains {len(self.files) or 'no'} .json files; expected 1 to {MOST_CLIPS}")
        for file in self.files:
            found = _NAME.fullmatch(file.stem)
            if found is None or found["action"] not in ACTIONS:
                raise DataError(
                    f"{file}: not a name of Toyota Smarthome (such as {ACTIONS[0]}_p02_r00_v02_c03) with one of its 31 actions; "
                    "rename or remove it"
                )
            name, subject, camera = found["name"], int(found["subject"]), int(found["camera"])
            self.names.append(name)
            self.labels.append(ACTIONS.index(found["action"]))
            self._numbers.append(
                {"subject": subject, "camera": camera, "setup": int(found["run"]), "replication": int(found["video"])}
            )
            self._enter(f"cs_{'train' if subject in TRAINING_SUBJECTS else 'test'}", name)
            if found["action"] in CROSS_VIEW:
                for protocol, parts in CAMERAS.items():
                    for part, cameras in parts.items():
                        if camera in cameras:
                            self._enter(f"{protocol}_{part}", name)

    def _enter(self, part: str, name: str) -> None:
        self.splits.setdefault(part, []).append(name)

    def read(self, index: int) -> Recording:
        """Recording `names[index]`; see `Source`."""
        path = self.files[index]
        frame_of, flat, image = _poses(parse_json(read_file(path, LARGEST_FILE), str(path), DAMAGED), path, self._columns)
        if not len(frame_of):
            raise no_body(str(path))
        with np.errstate(over="ignore"):  # rejected below
            poses, places = (
                values.reshape(len(values), -1, JOINTS).transpose(0, 2, 1).astype(np.float32) for values in (flat, image)
            )
        bad = np.argwhere(~(np.isfinite(poses).all(2) & np.isfinite(places).all(2)))
        if len(bad):
            raise DataError(f"{path}: frame {frame_of[bad[0][0]]}, joint {bad[0][1]} is not finite; {DAMAGED}")
        there = poses.any((1, 2))
        frame_of, poses, places = frame_of[there], poses[there], places[there]
        if not len(poses):
            raise no_body(str(path))
        seen = places.any(2)
        person = link_people(frame_of, places, seen)
        seat = seat_people(frame_of, person, np.ones(len(person)), PEOPLE)
        joints = np.zeros((frame_of[-1] - frame_of[0] + 1, PEOPLE, JOINTS, self._columns), np.float32)
        joints[frame_of[seat >= 0] - frame_of[0], seat[seat >= 0]] = poses[seat >= 0]
        return Recording(joints, self.labels[index], **self._numbers[index])


def _poses(content: Any, path: Path, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frame [n] int64, the poses read [n, columns x 13] and those in the image [n, 2 x 13]: all x, then all y (then all z)."""
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list):
        raise DataError(f"{path}: has no list 'frames'; give the JSON skeletons of Toyota Smarthome")
    frame_of: list[int] = []
    wanted: list[list[float]] = []
    image: list[list[float]] = []
    for frame, people in enumerate(frames):
        if not isinstance(people, list) or len(people) > MOST_IN_FRAME:
            raise DataError(f"{path}: frame {frame} is {show(people)}, not a list of at most {MOST_IN_FRAME} people; {DAMAGED}")
        for number, person in enumerate(people):
            for key, into, axes in ((f"pose{columns}d", wanted, columns), ("pose2d", image, 2)):
                pose = person.get(key) if isinstance(person, dict) else None
                if not isinstance(pose, list) or len(pose) != axes * JOINTS or not numbers([pose]):
                    raise DataError(
                        f"{path}: frame {frame}, person {number}: '{key}' is {show(pose)}, not {axes * JOINTS} numbers; {DAMAGED}"
                    )
                into.append(pose)
            frame_of.append(frame)
    return np.array(frame_of, np.int64), np.array(wanted, np.float64), np.array(image, np.float64)
