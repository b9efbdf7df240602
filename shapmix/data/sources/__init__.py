"""Readers of recordings on disk, one module per format, each a `Source`.

A source reads one recording at a time, from several threads, so that a data set of any size passes through a little memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Recording:
    """One clip.

    Attributes:
        joints: [T, M, V, C] float32 or float16; valid frames only, at least one; zero where nobody stands.
        label: class id from 0.
        camera, subject, setup, replication: numbers of the recording, 0 where the format does not say.
    """

    joints: np.ndarray
    label: int
    camera: int = 0
    subject: int = 0
    setup: int = 0
    replication: int = 0


class Source(Protocol):
    """A data set in one format. Reading is safe from several threads."""

    @property
    def layout(self) -> str:
        """Name of the skeleton (`ntu25`, `coco17`, `ucla20`), or the path of a layout file that lies with the data."""
        ...

    @property
    def scores(self) -> bool:
        """Whether the last coordinate is the score of a pose's estimator."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """K names; numbers as text where the format has none."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Of the recordings, without repeats, in the source's own order."""
        ...

    @property
    def splits(self) -> Mapping[str, Sequence[str]]:
        """Lists of names that the data brings along, such as `train` and `test`; may be empty."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """What is read, for the record of where a store came from."""
        ...

    def read(self, index: int) -> Recording:
        """Recording `names[index]`.

        Raises:
            DataError: a damaged recording; the message says file, place in it (line, frame, joint), reason and what to do.
        """
        ...
