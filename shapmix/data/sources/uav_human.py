"""Reader of UAV-Human: text files in the arrangement of NTU RGB+D's, with 17 joints."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np

from shapmix.data.sources import Numbers, Recording
from shapmix.data.sources.bounded import MOST_CLIPS, no_body, read_file, show
from shapmix.data.sources.people import MOST_IN_FRAME, link_people, seat_people
from shapmix.data.sources.registry import source
from shapmix.process.errors import DataError

ENDING = ".txt"
JOINTS = 17
PEOPLE = 2
LARGEST_FILE = 256 << 20  # bytes
DAMAGED = "the file is damaged, download it again"
LAST_SUBJECT = 118  # subjects are numbered from 0
TRAINING = {
    "csv1": (
        0, 2, 5, 6, 7, 8, *range(10, 22), *range(25, 31), *range(32, 41), *range(42, 54), 55, 56, 57, 59, 61, 62, 63, 64, 65,
        67, 68, 69, 70, 71, 73, *range(76, 91), 98, 100, 102, 103, 105, 106, 110, 111, 112, 114, 115, 116, 117, 118,
    ),
    "csv2": (
        0, 3, 4, 5, 6, 8, 10, 11, 12, 14, 16, 18, 19, 20, 21, 22, 24, 26, 29, 30, 31, 32, *range(35, 41), 43, 44, 45, 46, 47,
        49, 52, 54, 56, 57, 59, 60, 61, 62, 63, 64, 66, 67, 69, 70, 71, 72, 73, 74, 75, 77, 78, 79, 80, 81, 83, 84, 86, 87, 88, 89,
        *range(91, 98), 99, 100, 101, 102, 103, 104, *range(106, 116), 117, 118,
    ),
}  # fmt: skip
ACTIONS = (
    "drink", "eat snacks", "brush hair", "drop something", "pick up something", "throw away something", "sit down", "stand up",
    "applaud", "read", "write", "put on a coat", "take off a coat", "put on glasses", "take off glasses", "put on a hat",
    "take off a hat", "throw away a hat", "cheer", "wave hands", "kick something", "reach into pockets", "jump on one leg",
    "jump on two legs", "make a phone call", "play with cell phones", "point somewhere", "look at the watch", "rub hands", "bow",
    "shake head", "salute", "cross palms together", "cross arms in front to say no", "wear headphones", "take off headphones",
    "make a shh sign", "touch the hair", "thumb up", "thumb down", "make an OK sign", "make a victory sign", "punch with fists",
    "snap fingers", "open the bottle", "smell", "squat", "apply cream to face", "apply cream to hands", "grasp a bag",
    "put down a bag", "put something into a bag", "take something out of a bag", "open a box", "move a box", "put up hands",
    "put hands on hips", "wrap arms around", "shake arms", "step on the spot", "kick aside", "kick backward", "cough", "sneeze",
    "yawn", "blow nose", "stagger", "headache", "chest discomfort", "backache", "neck-ache", "vomit", "use a fan", "stretch body",
    "punch someone", "kick someone", "push someone", "slap someone on the back", "point at someone", "hug",
    "give something to someone", "steal something from another's pocket", "rob something from someone", "shake hands",
    "walk toward someone", "walk away from someone", "hit someone with something", "threaten someone with a knife",
    "bump into someone", "walk side by side", "high five", "drink a toast", "move something with someone",
    "take a photo of someone", "stalk someone", "whisper in an ear", "exchange something with someone",
    "lend an arm to support someone", "rock paper scissors", "hover", "land", "land at designated locations", "move forward",
    "move backward", "move left", "move right", "ascend", "descend", "accelerate", "decelerate", "come over here",
    "stay where you are", "rear right turn", "rear left turn", "abandon landing", "all clear", "not clear", "have command",
    "follow me", "turn left", "turn right", "throw litter", "dig a hole", "mow", "set on fire", "smoke", "cut the tree", "fish",
    "pick a lock", "pollute walls", "hold someone hostage", "threaten someone with a gun", "wave goodbye", "chase someone",
    "comfort someone", "drag someone", "sweep the floor", "mop the floor", "bounce the ball", "shoot at the basket",
    "swing the racket", "leg press", "escape", "call for help", "wear a mask", "take off a mask",
    "bend arms around someone's shoulder", "run", "stab someone with a knife", "throw a frisbee", "carry a carrying pole",
    "use a lever to lift something", "walk", "open an umbrella", "close an umbrella",
)  # fmt: skip

_NAME = re.compile(
    r"P(?P<person>\d{3})S(?P<setup>\d{2})G\d{2}B\d{2}H\d{2}UC\d{6}LC\d{6}A(?P<action>\d{3})R(?P<replication>\d{1,2})_\d{8}"
)


def _is_uav_human(path: Path) -> bool:
    return path.is_dir() and any(_NAME.fullmatch(file.stem) for deep in ("", "*/") for file in path.glob(f"{deep}P*{ENDING}"))


@source("uav_human", "a folder with the .txt skeletons of UAV-Human", fits=_is_uav_human)
class UavHuman:
    """The files of a folder (or its subfolders), sorted by name; at most two people, linked from frame to frame by their joints.

    Joints are x and y. The files hold a third number per joint that the data set does not document: `coordinates=3` reads it as
    a depth, `scores` as a score. Frames without a body are removed.

    The lists are `csv1_train`, `csv1_test`, `csv2_train` and `csv2_test`. Subjects, set-ups and replications are numbered from 1
    in `Recording`, so person P000 is subject 1.

    Raises:
        DataError: no such files, an invalid name, or a number of coordinates other than 2 and 3.
    """

    def __init__(self, folder: Path, *, layout: str | None = None, coordinates: int | None = None, scores: bool = False) -> None:
        self.layout = layout or "uav17"
        self.scores = scores
        self._columns = 3 if scores else coordinates or 2
        if self._columns not in (2, 3) or (scores and coordinates not in (None, 2)):
            raise DataError(f"{folder}: joints of UAV-Human have 2 or 3 numbers; give --coordinates 2 or 3, or --scores alone")
        self.files = sorted([*folder.glob(f"P*{ENDING}"), *folder.glob(f"*/P*{ENDING}")], key=lambda file: file.name)
        self.names = [file.stem for file in self.files]
        self.class_names = [f"A{action:03d} {name}" for action, name in enumerate(ACTIONS)]
        self.labels: list[int] = []
        self._numbers: list[Numbers] = []
        if not 1 <= len(self.files) <= MOST_CLIPS:
            raise DataError(f"{folder}: contains {len(self.files) or 'no'} files P*{ENDING}; expected 1 to {MOST_CLIPS}")
        lists: dict[str, list[str]] = {f"{name}_{part}": [] for name in TRAINING for part in ("train", "test")}
        for file in self.files:
            found = _NAME.fullmatch(file.stem)
            if found is None or int(found["action"]) >= len(ACTIONS) or int(found["person"]) > LAST_SUBJECT:
                raise DataError(
                    f"{file}: not a name of UAV-Human (P070S01G10B00H10UC102000LC092000A031R0_09131758), P000 to P118, "
                    "A000 to A154; rename or remove it"
                )
            person = int(found["person"])
            self.labels.append(int(found["action"]))
            self._numbers.append(
                {"subject": person + 1, "setup": int(found["setup"]) + 1, "replication": int(found["replication"]) + 1}
            )
            for name, training in TRAINING.items():
                lists[f"{name}_{'train' if person in training else 'test'}"].append(file.stem)
        self.splits = {name: names for name, names in lists.items() if names}

    def read(self, index: int) -> Recording:
        """Recording `names[index]`; see `Source`."""
        path = self.files[index]
        frame_of, poses = _parse(read_file(path, LARGEST_FILE), path, self._columns)
        with np.errstate(over="ignore"):  # rejected below
            poses = poses.astype(np.float32)
        bad = np.argwhere(~np.isfinite(poses))
        if len(bad):
            raise DataError(f"{path}: frame {frame_of[bad[0][0]]}, joint {bad[0][1]} is not finite; {DAMAGED}")
        there = poses.any((1, 2))
        frame_of, poses = frame_of[there], poses[there]
        if not len(poses):
            raise no_body(str(path))
        seen = np.asarray(poses.any(2))
        person = link_people(frame_of, poses[..., :2], seen)
        seat = seat_people(frame_of, person, seen.sum(1).astype(np.float64), PEOPLE)
        frames, place = np.unique(frame_of, return_inverse=True)
        joints = np.zeros((len(frames), PEOPLE, JOINTS, self._columns), np.float32)
        joints[place[seat >= 0], seat[seat >= 0]] = poses[seat >= 0]
        return Recording(joints, self.labels[index], **self._numbers[index])


def _parse(content: bytes, path: Path, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Frame [n] and joints [n, 17, columns] of every body of a file."""
    lines = content.splitlines()
    at = 0

    def count(what: str, most: int) -> int:
        nonlocal at
        text = lines[at].strip() if at < len(lines) else b"the end of the file"
        at += 1
        if not re.fullmatch(rb"\d{1,9}", text) or int(text) > most:
            raise DataError(f"{path}, line {at}: {show(text)} is not {what} from 0 to {most}; {DAMAGED}")
        return int(text)

    frame_of: list[int] = []
    begins: list[int] = []
    for frame in range(count("the number of frames", len(lines))):
        for _ in range(count("the number of bodies", MOST_IN_FRAME)):
            at += 1  # the line of the body: its id and nine fields of a Kinect, all zero
            joints = count("the number of joints", JOINTS)
            if joints != JOINTS or at + JOINTS > len(lines):
                reason = f"a body of {joints} joints, expected {JOINTS}" if joints != JOINTS else "the file ends inside a body"
                raise DataError(f"{path}, line {at}: {reason}; {DAMAGED}")
            frame_of.append(frame)
            begins.append(at)
            at += JOINTS
    if not begins:
        return np.empty(0, np.int64), np.empty((0, JOINTS, columns))
    rows = [line for begin in begins for line in lines[begin : begin + JOINTS]]
    try:
        values = np.loadtxt(io.BytesIO(b"\n".join(rows)), usecols=range(columns), ndmin=2, comments=None)
    except ValueError:
        values = np.empty((0, columns))
    if len(values) != len(rows):
        for number, line in zip((begin + joint for begin in begins for joint in range(JOINTS)), rows, strict=True):
            fields = line.split()[:columns]
            if len(fields) < columns or not all(re.fullmatch(rb"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", field) for field in fields):
                raise DataError(f"{path}, line {number + 1}: {show(line)} does not begin with {columns} numbers; {DAMAGED}")
        raise DataError(f"{path}: joints that are not numbers; {DAMAGED}")
    return np.array(frame_of), values.reshape(-1, JOINTS, columns)
