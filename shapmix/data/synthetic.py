"""The embedded data set: synthetic clips from forward kinematics, with classes defined by known body parts.

A class is a conjunction: a given motion in each of its one or two defining parts, with everything else drawn independently of
the class. Classes come in blocks that cross two motions of both defining parts (2 x 2), so a single defining part never identifies
the class: another class of the block agrees on all other parts. The other parts perform idle motions, which define no class. Head
motions represent the trunk, because a motion of the spine would also move the shoulders and reveal the class through the arms.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from shapmix.data.clips import Splits, join_clips
from shapmix.data.longtail import longtail_counts
from shapmix.process.errors import DataError
from shapmix.skeleton.kinematics import JOINT, LAYOUT, Body, pose, rotations

FRAMES_PER_SECOND = 30
MIN_FRAMES, MAX_FRAMES = 30, 150
N_MAX = 150  # training clips of the largest class
SECOND_PERSON_SHARE = 0.2
SUBJECTS = {"train": 24, "val": 8, "test": 16}
PARTS = tuple(LAYOUT.parts)


@dataclass(frozen=True)
class Swing:
    """One angle of a motion: hold + reach * sin(phase + lag), in degrees, about axis 0, 1 or 2 (x, y, z) of the left side."""

    bone: str
    axis: int
    hold: float = 0.0
    reach: float = 0.0
    lag: float = 0.0


# Bones are named after the joint they end in. For hanging limbs, -x swings forward and +z outward.
MOTIONS: dict[str, dict[str, tuple[Swing, ...]]] = {
    "trunk": {
        "nod": (Swing("neck", 0, 26, 20), Swing("head", 0, 28, 24)),
        "look up": (Swing("neck", 0, -26, 18), Swing("head", 0, -28, 22)),
    },
    "arm": {
        "wave": (Swing("elbow", 2, 100, 5), Swing("wrist", 2, 60, 35)),
        "punch": (Swing("elbow", 0, -50, -35), Swing("wrist", 0, -65, 50)),
        "circle": (Swing("elbow", 0, -60, 35), Swing("elbow", 2, 25, 35, 90), Swing("wrist", 0, -15)),
    },
    "leg": {
        "kick": (Swing("knee", 0, -26, -26), Swing("ankle", 0, 10, 8)),
        "march": (Swing("knee", 0, -32, -30), Swing("ankle", 0, 48, 42)),
        "side": (Swing("knee", 2, 20, 18), Swing("ankle", 0, 5)),
    },
}
IDLE: dict[str, dict[str, tuple[Swing, ...]]] = {
    "trunk": {
        "still": (Swing("neck", 0, 2, 2), Swing("head", 2, 0, 3)),
        "tilt left": (Swing("neck", 2, -12, 6), Swing("head", 2, -14, 8)),
        "tilt right": (Swing("neck", 2, 12, 6), Swing("head", 2, 14, 8)),
    },
    "arm": {
        "hang": (Swing("elbow", 0, 0, 15), Swing("wrist", 0, -15, 6)),
        "fold": (Swing("elbow", 0, -5, 5), Swing("wrist", 0, -90, 12)),
        "reach": (Swing("elbow", 0, -55, 8), Swing("wrist", 0, -20, 8)),
        "rest on hip": (Swing("elbow", 2, 35, 6), Swing("wrist", 2, -60, 6)),
        "hold up": (Swing("elbow", 2, 85, 6), Swing("wrist", 2, 55, 8)),
    },
    "leg": {
        "stand": (Swing("knee", 0, 0, 3), Swing("ankle", 0, 4, 3)),
        "bend": (Swing("knee", 0, -12, -8), Swing("ankle", 0, 22, 14)),
        "back": (Swing("knee", 0, 10, 10), Swing("ankle", 0, 12, 6)),
        "perch": (Swing("knee", 0, -35, 6), Swing("ankle", 0, 50, 8)),
    },
}
# A block of two parts crosses their first two motions; a block of one part is one class with its third motion.
BLOCKS: tuple[tuple[str, ...], ...] = (
    ("right_arm", "left_leg"),
    ("right_arm", "left_arm"),
    ("trunk", "left_leg"),
    ("right_arm",),
    ("left_arm",),
    ("right_leg",),
    ("left_leg",),
    ("left_arm", "right_leg"),
    ("right_leg", "left_leg"),
)


def _kind(part: str) -> str:
    """`left_arm` -> `arm`: both sides share their (mirrored) motions."""
    return part.split("_")[-1]


def _block_classes(block: tuple[str, ...]) -> list[dict[str, str]]:
    choices = [list(MOTIONS[_kind(part)])[:2] if len(block) > 1 else [list(MOTIONS[_kind(part)])[2]] for part in block]
    return [dict(zip(block, motions, strict=True)) for motions in product(*choices)]


CLASSES: tuple[dict[str, str], ...] = tuple(definition for block in BLOCKS for definition in _block_classes(block))
"""For every class, the motion of each defining part: `{"right_arm": "wave", "left_leg": "kick"}`."""


def class_name(definition: dict[str, str]) -> str:
    """`"right_arm wave, left_leg kick"`."""
    return ", ".join(f"{part} {motion}" for part, motion in definition.items())


def make_synthetic(
    *,
    num_classes: int = len(CLASSES),
    n_max: int = N_MAX,
    imbalance: float = 50.0,
    val_per_class: int = 10,
    test_per_class: int = 20,
    seed: int = 0,
) -> Splits:
    """A long-tailed training set with balanced validation and test sets of different subjects, on `ntu25` with M = 2.

    Clips have 30 to 150 frames in metres, centred on joint `spine_mid` of person 1 in the first frame; an idle bystander (person 2)
    is present in a fifth of them and zero elsewhere. The sizes of the long-tailed profile are assigned to classes at random, so
    class ids are sorted neither by size nor by difficulty. The clips are a deterministic function of the arguments.

    Args:
        num_classes: 4, 8, 12 to 16, 20 or 24: complete blocks, because in a partial one a single part could identify the class.
        n_max: training clips of the largest class.
        imbalance: largest class / smallest class; 1 for a balanced training set.
        val_per_class: validation clips per class.
        test_per_class: test clips per class.
        seed: of all random draws.

    Raises:
        DataError: a partial block of classes, no validation or test clips, or an invalid profile.
    """
    ends = np.cumsum([len(_block_classes(block)) for block in BLOCKS]).tolist()
    if num_classes not in ends:
        raise DataError(
            f"num_classes is {num_classes}; because classes come in blocks, it must be one of {', '.join(map(str, ends))}"
        )
    if val_per_class < 1 or test_per_class < 1:
        raise DataError(f"val_per_class {val_per_class} and test_per_class {test_per_class} must be at least 1")
    profile = np.array(longtail_counts(num_classes, n_max, imbalance))
    sizes = {
        "train": np.random.default_rng(seed).permutation(profile),
        "val": np.full(num_classes, val_per_class),
        "test": np.full(num_classes, test_per_class),
    }
    clips: list[torch.Tensor] = []
    labels: list[int] = []
    names: list[str] = []
    members: dict[str, torch.Tensor] = {}
    for number, (split, counts) in enumerate(sizes.items()):
        bodies = [Body.draw(_generator(seed, number, subject)) for subject in range(SUBJECTS[split])]
        first = len(clips)
        for label, count in enumerate(counts.tolist()):
            for index in range(count):
                # One random stream per clip, so that a clip does not depend on the number of clips.
                stream = np.random.SeedSequence(seed, spawn_key=(number, label, index))
                subject = int(np.random.default_rng(stream).integers(len(bodies)))
                clips.append(torch.from_numpy(make_clip(CLASSES[label], bodies[subject], stream)))
                labels.append(label)
                names.append(f"{split}_c{label:02d}_s{subject:02d}_n{index:03d}")
        members[split] = torch.arange(first, len(clips))
    store = join_clips(clips, labels, names, LAYOUT, [class_name(definition) for definition in CLASSES[:num_classes]])
    defining = torch.tensor([sum(1 << PARTS.index(part) for part in definition) for definition in CLASSES[:num_classes]])
    return Splits(store, members["train"], members["val"], members["test"], defining)


def make_clip(definition: dict[str, str], body: Body, stream: np.random.SeedSequence) -> np.ndarray:
    """[T, 2, V, 3] float32 clip of the class `definition`.

    Each part, the scene and the noise draw from separate random streams: with the same `stream`, changing the motion of one part
    leaves the other parts bitwise identical.
    """
    scene_seed, noise_seed, bystander_seed, *part_seeds = stream.spawn(3 + len(PARTS))
    scene = np.random.default_rng(scene_seed)
    num_frames = int(scene.integers(MIN_FRAMES, MAX_FRAMES + 1))
    tempo = scene.uniform(0.8, 1.25)
    people = [_act(definition, body, num_frames, tempo, scene, part_seeds)]
    if scene.random() < SECOND_PERSON_SHARE:
        people.append(_bystander(num_frames, tempo, bystander_seed))
    camera = rotations(np.array([0.0, scene.uniform(-0.8, 0.8), 0.0]))
    noise = np.random.default_rng(noise_seed)
    sensor_error = noise.uniform(0.003, 0.01)
    clip = np.zeros((num_frames, 2, LAYOUT.num_joints, 3), dtype=np.float32)
    origin = np.zeros(3)
    for number, person in enumerate(people):
        seen = person @ camera.T + sensor_error * noise.standard_normal(person.shape)
        if number == 0:
            origin = seen[0, JOINT["spine_mid"]].copy()
        clip[:, number] = seen - origin
    return clip


def _bystander(num_frames: int, tempo: float, stream: np.random.SeedSequence) -> np.ndarray:
    """[T, V, 3] metres: an idle second person with different proportions, about a metre to one side."""
    scene_seed, *part_seeds = stream.spawn(1 + len(PARTS))
    scene = np.random.default_rng(scene_seed)
    aside = np.array([scene.choice([-1.0, 1.0]) * scene.uniform(0.8, 1.4), 0.0, scene.normal(0.0, 0.3)])
    person = _act({}, Body.draw(scene), num_frames, tempo, scene, part_seeds)
    person += aside
    return person


def _act(
    definition: dict[str, str],
    body: Body,
    num_frames: int,
    tempo: float,
    scene: np.random.Generator,
    part_seeds: list[np.random.SeedSequence],
) -> np.ndarray:
    """[T, V, 3] metres: a person performing the defining motions, and idle motions in every other part."""
    angles = np.zeros((num_frames, LAYOUT.num_joints, 3))
    for part, seed in zip(PARTS, part_seeds, strict=True):
        _animate(angles, part, definition.get(part), tempo, np.random.default_rng(seed))
    seconds = np.arange(num_frames) / FRAMES_PER_SECOND
    angles[:, JOINT["pelvis"], 1] = scene.normal(0.0, 0.15)
    for axis in (0, 2):  # leaning moves trunk and arms together
        angles[:, JOINT["spine_shoulder"], axis] = np.radians(scene.normal(0, 3)) + np.radians(3) * _wander(seconds, scene)
    drift = scene.normal(0.0, [0.05, 0.0, 0.05]) * seconds[:, None]
    drift[:, 1] += 0.01 * _wander(seconds, scene)
    positions = pose(body, angles)
    positions += drift[:, None]
    return positions


def _wander(seconds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[T] slow sine of random frequency and phase."""
    wave: np.ndarray = np.sin(2 * np.pi * (rng.uniform(0.1, 0.5) * seconds + rng.random()))
    return wave


def _animate(angles: np.ndarray, part: str, motion: str | None, tempo: float, rng: np.random.Generator) -> None:
    """Writes the motion of one part, or an idle one drawn from `rng`, into angles [T, V, 3] (radians)."""
    kind = _kind(part)
    side = "" if kind == "trunk" else part.split("_")[0] + "_"
    mirror = np.array([1.0, -1.0, -1.0]) if side == "right_" else np.ones(3)
    idle = list(IDLE[kind].values())
    drawn_idle = idle[int(rng.integers(len(idle)))]
    swings = MOTIONS[kind][motion] if motion else drawn_idle

    num_frames = len(angles)
    duration = num_frames / FRAMES_PER_SECOND
    # Short clips still contain 1.5 cycles; otherwise the motion would degenerate to a pose.
    cycles = max(tempo * rng.uniform(0.7, 1.3) * duration, 1.5)
    time = np.linspace(0.0, 1.0, num_frames)
    phase = 2 * np.pi * (cycles * time + rng.random())
    start, end = rng.uniform(0.0, 0.25), rng.uniform(0.75, 1.0)
    active = np.clip((time - start) / 0.12, 0, 1) * np.clip((end - time) / 0.12, 0, 1)
    size = rng.uniform(0.65, 1.15)
    for swing in swings:
        joint = JOINT[side + swing.bone]
        wobble = rng.normal(0.0, 4.0)
        degrees = wobble + size * active * (swing.hold + swing.reach * np.sin(phase + np.radians(swing.lag)))
        angles[:, joint, swing.axis] += mirror[swing.axis] * np.radians(degrees)


def _generator(seed: int, split: int, subject: int) -> np.random.Generator:
    """Random generator of a subject; its four-element key keeps it distinct from the clips' streams, which have three."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(split, subject, 0, 1)))
