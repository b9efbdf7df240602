"""NTU RGB+D: names of recordings (`SsssCcccPpppRrrrAaaa`) and of actions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from shapmix.data.sources import Numbers

# Shortened from the data set's list (Liu et al., TPAMI 2019); the first 60 are those of NTU RGB+D 60.
ACTIONS = (
    "drink water", "eat a meal", "brush teeth", "brush hair", "drop", "pick up", "throw", "sit down", "stand up", "clap",
    "read", "write", "tear up paper", "put on a jacket", "take off a jacket", "put on a shoe", "take off a shoe",
    "put on glasses", "take off glasses", "put on a hat", "take off a hat", "cheer up", "wave a hand", "kick something",
    "reach into a pocket", "hop on one foot", "jump up", "phone call", "play with a phone", "type on a keyboard",
    "point with a finger", "take a selfie", "check the time", "rub hands", "nod or bow", "shake head", "wipe face", "salute",
    "put palms together", "cross hands, say stop", "sneeze or cough", "stagger", "fall", "touch head, headache",
    "touch chest, heart pain", "touch back, backache", "touch neck, neckache", "nausea", "use a fan", "punch someone",
    "kick someone", "push someone", "pat someone's back", "point at someone", "hug", "give something", "touch someone's pocket",
    "shake hands", "walk towards each other", "walk apart", "put on headphones", "take off headphones", "shoot at a basket",
    "bounce a ball", "swing a tennis bat", "juggle table tennis balls", "hush", "flick hair", "thumb up", "thumb down",
    "make an OK sign", "make a victory sign", "staple a book", "count money", "cut nails", "cut paper", "snap fingers",
    "open a bottle", "sniff", "squat down", "toss a coin", "fold paper", "ball up paper", "play with a magic cube",
    "cream on the face", "cream on the back of a hand", "put on a bag", "take off a bag", "put into a bag", "take out of a bag",
    "open a box", "move heavy objects", "shake a fist", "throw up a cap", "hands up", "cross arms", "circle arms", "swing arms",
    "run on the spot", "kick backward", "cross toe touch", "kick sideways", "yawn", "stretch", "blow nose",
    "hit someone with a thing", "threaten with a knife", "knock someone over", "grab someone's things", "threaten with a gun",
    "step on a foot", "high-five", "cheers and drink", "carry together", "take someone's photo", "follow someone",
    "whisper in an ear", "exchange things", "support someone", "rock paper scissors",
)  # fmt: skip

_NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})")


class NtuName(NamedTuple):
    """The numbers in a name; `label` is the action minus 1."""

    setup: int
    camera: int
    subject: int
    replication: int
    label: int

    def numbers(self) -> Numbers:
        """Keyword arguments of `Recording`."""
        return {"setup": self.setup, "camera": self.camera, "subject": self.subject, "replication": self.replication}


def parse_ntu_name(name: str) -> NtuName | None:
    """The numbers in a name, or None if it is not an NTU name or its action is not 1 to 120."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    setup, camera, subject, replication, action = map(int, found.groups())
    return NtuName(setup, camera, subject, replication, action - 1) if 1 <= action <= 120 else None


def class_names_of(names: Sequence[str], labels: Sequence[int]) -> list[str]:
    """Those of NTU RGB+D if every recording's name is of that data set and says its label; otherwise the class numbers."""
    parsed = map(parse_ntu_name, names)
    if all(name is not None and name.label == label for name, label in zip(parsed, labels, strict=True)):
        return ntu_classes(max(labels) + 1)
    return [str(label) for label in range(max(labels) + 1)]


def ntu_classes(labels: int) -> list[str]:
    """Class names such as `A001 drink water`: the 60 of NTU RGB+D 60 if `labels` is at most 60, else all 120."""
    return [f"A{action:03d} {name}" for action, name in enumerate(ACTIONS[: 60 if labels <= 60 else 120], start=1)]
