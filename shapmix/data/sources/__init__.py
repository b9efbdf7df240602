"""Readers of the data formats, one module per format; each implements `Source`.

A source reads one recording at a time and is thread-safe, so memory use does not depend on the size of the data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypedDict

import numpy as np

from shapmix.skeleton.layout import Layout


class Numbers(TypedDict, total=False):
    """The numbers of a recording, as keyword arguments of `Recording`."""

    camera: int
    subject: int
    setup: int
    replication: int


@dataclass(frozen=True)
class Recording:
    """One clip.

    Attributes:
        joints: [T, M, V, C] float32 or float16; valid frames only, at least one; absent people are zero.
        label: class id from 0.
        camera, subject, setup, replication: numbers of the recording, 0 if the format does not record them.
        columns: what else the format records, such as a session; `--split` takes every column.
        first_frame: number that the format gives the first of these frames.
    """

    joints: np.ndarray
    label: int
    camera: int = 0
    subject: int = 0
    setup: int = 0
    replication: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)
    first_frame: int = 0


class Source(Protocol):
    """A data set in one format. `read` is thread-safe."""

    @property
    def layout(self) -> str | Layout:
        """Name of a built-in skeleton, path of a layout file that comes with the data, or the layout that the data describes."""
        ...

    @property
    def scores(self) -> bool:
        """Whether the last coordinate is the confidence score of a pose estimator."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """K names; the class numbers as text if the format has no names."""
        ...

    @property
    def labels(self) -> Sequence[int]:
        """Class id of every recording, in the order of `names`."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Unique names of the recordings, in the order of the source."""
        ...

    @property
    def splits(self) -> Mapping[str, Sequence[str]]:
        """Lists of names that come with the data, such as `train` and `test`; may be empty."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """Files that are read, recorded as the provenance of a store."""
        ...

    def read(self, index: int) -> Recording:
        """Recording `names[index]`.

        Raises:
            DataError: a damaged recording; the message names the file, the line, frame or joint, the reason and the remedy.
        """
        ...
