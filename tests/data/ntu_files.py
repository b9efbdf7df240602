"""Recordings in the format of NTU RGB+D."""

from __future__ import annotations

import numpy as np


def text_of(frames: list[list[tuple[int, np.ndarray]]], end: str = "\n") -> bytes:
    """Text of a recording: for each frame its bodies, (id, joints [25, 3])."""
    lines = [str(len(frames))]
    for bodies in frames:
        lines.append(str(len(bodies)))
        for body, joints in bodies:
            lines += [f"{body} 0 1 1 1 1 0 0.11 -0.01 2", "25"]
            lines += [
                " ".join([*(str(value) for value in joint), "1", "2.5", "3", "4", "0", "0", "0", "1", "2"]) for joint in joints
            ]
    return (end.join(lines) + end).encode()


def made(people: int, frames: int, seed: int = 0) -> list[list[tuple[int, np.ndarray]]]:
    """Upright, moving people."""
    generator = np.random.default_rng(seed)
    base = generator.normal(size=(people, 25, 3)) * [0.2, 1.0, 0.2]
    return [
        [(72057594037937185 + person, np.round(base[person] + 0.1 * generator.normal(size=(25, 3)), 6)) for person in range(people)]
        for _ in range(frames)
    ]
