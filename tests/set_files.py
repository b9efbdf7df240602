"""Small data sets in the formats of the big ones, written as their documentation describes them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np


def motion(rng: np.random.Generator, frames: int, joints: int, coordinates: int, label: int) -> np.ndarray:
    """[T, V, C] of a figure; one joint moves, another one in each class."""
    poses = np.tile(rng.uniform(0.2, 1, size=(joints, coordinates)), (frames, 1, 1))
    poses[:, label % joints, 0] += np.sin(np.arange(frames))
    return poses.astype(np.float32)


# PKU-MMD

PKU_VIDEOS = ("0002-L", "0003-M", "0004-R", "0005-L")


def pku_mmd(folder: Path, actions: tuple[int, ...] = (1, 2, 1, 2), frames: int = 12) -> dict[str, np.ndarray]:
    """Four recordings with an instance of each action, in phase I's folders; returns [T, 2, 25, 3] by recording."""
    rng = np.random.default_rng(0)
    skeletons, labels, split = folder / "Data/PKU_Skeleton_Renew", folder / "Label/Train_Label_PKU_final", folder / "Split"
    for path in (skeletons, labels, split):
        path.mkdir(parents=True)
    written = {}
    for video in PKU_VIDEOS:
        clips = [motion(rng, frames, 50, 3, action) for action in actions]
        poses = np.concatenate([np.zeros((2, 50, 3), np.float32), *clips]).reshape(-1, 2, 25, 3)
        poses[:, 1] = 0  # one person: the other 75 numbers are zero
        lines = [" ".join(f"{value:.6f}" for value in frame.ravel()) for frame in poses]
        (skeletons / f"{video}.txt").write_text("\n".join(lines) + "\n")
        rows = [f"{action},{2 + frames * at},{2 + frames * (at + 1)},2" for at, action in enumerate(actions)]
        (labels / f"{video}.txt").write_text("\r\n".join(rows) + "\n")
        written[video] = poses
    for name, training in (("cross-subject", PKU_VIDEOS[:3]), ("cross-view", PKU_VIDEOS[1:])):
        testing = [video for video in PKU_VIDEOS if video not in training]
        (split / f"{name}.txt").write_text(
            f"Training videos: \n{', '.join(training)}, \nValidataion videos: \n{', '.join(testing)}, \n"
        )
    return written


# UAV-Human


def uav_human(folder: Path, frames: int = 9) -> list[str]:
    """Two actions of subjects 0 and 1; the second action shows two people, whose order changes from frame to frame."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for person in (0, 0, 1, 1):
        for action in (0, 1):
            name = f"P{person:03d}S{len(names):02d}G10B10H10UC022000LC021000A{action:03d}R0_08241716"
            lines = [str(frames)]
            for frame, pose in enumerate(motion(rng, frames, 17, 2, action)):
                bodies = [100 + 20 * pose + frame]
                if action:
                    bodies.append(bodies[0] + 300)
                lines.append(str(len(bodies)))
                for body in bodies[:: (-1) ** frame]:
                    lines += ["000 0 0 0 0 0 0 0 0 0", "17"]
                    lines += [f"{x:.4f} {y:.4f} 0.7 0 0 0 0 0 0 0 0 2" for x, y in body]
            (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
            names.append(name)
    return names


# Toyota Smarthome


def smarthome(folder: Path, frames: int = 9) -> list[str]:
    """Two actions of subjects 3, 4 (training) and 2 (test) before cameras 1 and 2; the first and the last frame are empty."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for subject in (3, 4, 2):
        for camera in (1, 2):
            for label, action in enumerate(("Walk", "Drink.Fromcup")):
                name = f"{action}_p{subject:02d}_r00_v{label:02d}_c{camera:02d}"
                body = motion(rng, frames, 13, 3, label)
                people = [
                    [{"pose2d": (100 * pose[:, :2]).T.ravel().tolist(), "pose3d": pose.T.ravel().tolist()}]
                    for pose in body.astype(float)
                ]
                content = {"K": 10, "njts": 13, "frames": [[], *people, []]}
                (folder / f"{name}_pose3d.json").write_text(json.dumps(content))
                names.append(name)
    return names


# Arrays [N, C, T, V, M]


def stgcn(folder: Path, joints: int = 18, frames: int = 12) -> dict[str, np.ndarray]:
    """Kinetics-skeleton: (x, y, score) of two people, sorted by their score in every frame; returns rows by part."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for part, count in (("train", 8), ("val", 4)):
        rows = np.zeros((count, 3, frames + 3, joints, 2), np.float32)
        for row in range(count):
            people = [motion(rng, frames, joints, 2, row % 2) / 10 - 0.5 + 0.4 * who for who in (0, 1)]
            score = rng.uniform(0.3, 1, size=(2, frames))
            for frame in range(frames):
                for place, who in enumerate(np.argsort(-score[:, frame])):
                    rows[row, :2, frame, :, place] = people[who][frame].T
                    rows[row, 2, frame, :, place] = score[who, frame]
        np.save(folder / f"{part}_data.npy", rows)
        content = ([f"{part}_{row:02d}.json" for row in range(count)], [row % 2 for row in range(count)])
        (folder / f"{part}_label.pkl").write_bytes(pickle.dumps(content))
        written[part] = rows
    return written


def babel(folder: Path, classes: int = 60) -> dict[str, np.ndarray]:
    """BABEL's training and validation features; a chunk occurs twice, with another label. Returns rows by part."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for part, count in (("train", 8), ("val", 4)):
        rows = np.stack([motion(rng, 10, 25, 3, row % 2).transpose(2, 0, 1)[..., None] for row in range(count)])
        np.save(folder / f"{part}_ntu_sk_{classes}.npy", rows)
        segments = [f"{part}-{row // 2}" for row in range(count)]
        columns = ([row % 2 for row in range(count)], [np.int64(7)] * count, [0] * count, ["anna"] * count)
        (folder / f"{part}_label_{classes}.pkl").write_bytes(pickle.dumps((segments, columns)))
        written[part] = rows
    names = {f"action {number}": number for number in range(150)}
    (folder / "action_label_2_idx.json").write_text(json.dumps(names))
    return written


# Lists of annotations


def kinetics(folder: Path, clips: int = 12, frames: int = 9) -> dict[str, np.ndarray]:
    """pyskl's release: a table, and the poses in two files. Every clip shows two people, in any order; the second box is doubtful.

    Returns [n, 17, 3] by clip.
    """
    rng = np.random.default_rng(0)
    (folder / "kpfiles").mkdir(parents=True)
    poses_of: dict[str, np.ndarray] = {}
    annotations = []
    for number in range(clips):
        name, label = f"v{number:02d}", number % 2
        person = 100 + 20 * motion(rng, frames, 17, 2, label)
        frame_of = np.repeat(np.arange(frames), 2) * 2  # a frame without people between any two
        order = np.array([rng.permutation(2) for _ in range(frames)]).ravel()
        places = person[frame_of // 2] + 150 * order[:, None, None]
        score = np.where(order == 0, 0.9, 0.8)[:, None, None] * np.ones((1, 17, 1))
        poses_of[name] = np.concatenate([places, score], axis=2).astype(np.float16)
        box_score = np.where(order == 0, 0.95, 0.6).astype(np.float16)
        annotations.append(
            {
                "frame_dir": name, "label": label, "img_shape": (340, 400), "total_frames": 2 * frames,
                "frame_inds": frame_of.astype(np.int16), "box_score": box_score, "valid": {0.5: frames, 0.7: frames, 0.9: frames},
                "raw_file": f"data/k400/kpfiles/part_{number % 2}.pkl",
            }
        )  # fmt: skip
    for part in range(2):
        content = {f"v{number:02d}": {"keypoint": poses_of[f"v{number:02d}"]} for number in range(part, clips, 2)}
        (folder / "kpfiles" / f"part_{part}.pkl").write_bytes(pickle.dumps(content))
    names = list(poses_of)
    table = {"split": {"train": names[: clips * 2 // 3], "val": names[clips * 2 // 3 :]}, "annotations": annotations}
    (folder / "k400_hrnet.pkl").write_bytes(pickle.dumps(table))
    return poses_of


def mmaction(folder: Path, frames: int = 9) -> None:
    """NTU RGB+D in 2D as mmaction2 0.x has it: a list per file, with integers for coordinates."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 8), ("val", 4)):
        entries = [
            {
                "frame_dir": f"S001C001P{1 + row // 2:03d}R{1 + (part == 'val'):03d}A{1 + row % 2:03d}", "label": row % 2,
                "img_shape": (1080, 1920), "original_shape": (1080, 1920), "total_frames": frames,
                "keypoint": (500 + 100 * motion(rng, frames, 17, 2, row % 2)).astype(np.int32)[None],
                "keypoint_score": np.full((1, frames, 17), 0.9, np.float16),
            }
            for row in range(count)
        ]  # fmt: skip
        (folder / f"ntu60_xsub_{part}.pkl").write_bytes(pickle.dumps(entries, protocol=2))


def ucf101(path: Path, frames: int = 9) -> None:
    """A pyskl pickle in 2D with two of UCF101's splits; names have the folder of their class."""
    rng = np.random.default_rng(0)
    entries = [
        {
            "frame_dir": f"{('Archery', 'Biking')[row % 2]}/v_g{row:02d}", "label": row % 2, "img_shape": (240, 320),
            "original_shape": (240, 320), "total_frames": frames,
            "keypoint": (100 + 20 * motion(rng, frames, 17, 2, row % 2)).astype(np.float16)[None],
            "keypoint_score": np.full((1, frames, 17), 0.9, np.float16),
        }
        for row in range(12)
    ]  # fmt: skip
    names = [str(entry["frame_dir"]) for entry in entries]
    split = {"train1": names[:8], "test1": names[8:], "train2": names[4:], "test2": names[:4]}
    path.write_bytes(pickle.dumps({"split": split, "annotations": entries}))
