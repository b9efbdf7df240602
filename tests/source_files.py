"""A small data set of every format of clips, as its documentation describes it, that a network can be trained on in a second.

`BUILDERS[format](path)` writes it to the file or folder `path`: two classes of eight clips, six of them in a training list where
the format has lists.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests import set_files
from tests.data import pose_files

FRAMES, PER_CLASS, TRAINING = 8, 8, 6
Builder = Callable[[Path], None]

BUILDERS: dict[str, Builder] = {}


def builder(format: str) -> Callable[[Builder], Builder]:
    """Registers the builder of a format."""

    def register(build: Builder) -> Builder:
        BUILDERS[format] = build
        return build

    return register


def motion(joints: int, coordinates: int, label: int, number: int, people: int = 1) -> np.ndarray:
    """[T, M, V, C] of people that move one joint up and down, another one in each class."""
    rng = np.random.default_rng([label, number])
    clip = np.tile(rng.uniform(0.1, 0.9, size=(people, joints, coordinates)) - 0.5, (FRAMES, 1, 1, 1))
    clip[:, :, 1 + label, 1] += np.sin(np.arange(FRAMES))[:, None]
    return clip.astype(np.float32)


def each() -> list[tuple[int, int]]:
    """(label, number) of every clip."""
    return [(label, number) for number in range(PER_CLASS) for label in range(2)]


def split_of(number: int) -> str:
    return "train" if number < TRAINING else "test"


@builder("plain")
def plain(path: Path, joints: int = 20, classes: tuple[str, str] = ("wave", "kick")) -> None:
    path.mkdir(parents=True)
    rows = ["name,label,split,subject,session"]
    for label, number in each():
        name = f"{classes[label]}_{number}"
        np.save(path / f"{name}.npy", motion(joints, 3, label, number, people=1 + number % 2))
        rows.append(f"{name},{classes[label]},{split_of(number)},{1 + number // 2},s{number % 3}")
    (path / "labels.csv").write_text("\n".join(rows) + "\n")


@builder("pyskl")
def pyskl(path: Path) -> None:
    rows = []
    for label, number in each():
        pixels = (60 + 40 * motion(17, 2, label, number)).transpose(1, 0, 2, 3)
        score = np.full(pixels.shape[:3], 0.9, np.float32)
        row = {"frame_dir": f"v{label}_{number}", "label": label, "total_frames": FRAMES, "img_shape": (240, 320)}
        rows.append(row | {"keypoint": pixels, "keypoint_score": score})
    lists = {split: [f"v{label}_{number}" for label, number in each() if split_of(number) == split] for split in ("train", "test")}
    path.write_bytes(pickle.dumps({"split": {"train1": lists["train"], "test1": lists["test"]}, "annotations": rows}))


@builder("msg3d")
def msg3d(path: Path) -> None:
    path.mkdir(parents=True)
    for split, part in (("train", "train"), ("test", "val")):
        clips = [(label, number) for label, number in each() if split_of(number) == split]
        rows = np.stack([motion(25, 3, label, number, people=2).transpose(3, 0, 2, 1) for label, number in clips])
        np.save(path / f"{part}_data_joint.npy", rows)
        names = [f"clip{label}_{number}.skeleton" for label, number in clips]
        (path / f"{part}_label.pkl").write_bytes(pickle.dumps((names, [label for label, _ in clips])))


@builder("ntu_npz")
def ntu_npz(path: Path) -> None:
    arrays = {}
    for split in ("train", "test"):
        clips = [(label, number) for label, number in each() if split_of(number) == split]
        rows = np.zeros((len(clips), FRAMES + 2, 150), np.float32)
        for row, (label, number) in enumerate(clips):
            rows[row, :FRAMES] = motion(25, 3, label, number, people=2).reshape(FRAMES, 150)
        arrays |= {f"x_{split}": rows, f"y_{split}": np.eye(2)[[label for label, _ in clips]]}
    np.savez(path, **arrays)


@builder("nw_ucla")
def nw_ucla(path: Path) -> None:
    (path / "all_sqe").mkdir(parents=True)
    for label, number in each():
        name = f"a{label + 1:02d}_s{number + 1:02d}_e00_v{1 + number % 3:02d}"
        content = {"file_name": name, "skeletons": motion(20, 3, label, number)[:, 0].tolist(), "label": label + 1}
        (path / "all_sqe" / f"{name}.json").write_text(json.dumps(content))


@builder("ntu_raw")
def ntu_raw(path: Path) -> None:
    path.mkdir(parents=True)
    for label, number in each():
        lines = [str(FRAMES)]
        for pose in motion(25, 3, label, number)[:, 0]:
            lines += ["1", "72057594037931101 0 0 0 0 0 0 0 0 2", "25"]
            lines += [f"{x} {y} {z} 0 0 0 0 0 0 0 0 2" for x, y, z in pose]
        name = f"S001C{1 + number % 3:03d}P{number + 1:03d}R001A{label + 1:03d}"
        (path / f"{name}.skeleton").write_text("\n".join(lines) + "\n")


for name in ("pku_mmd", "uav_human", "smarthome", "stgcn", "babel", "kinetics", "mmaction"):
    BUILDERS[name] = getattr(set_files, name)
BUILDERS.update(pose_files.BUILDERS)
