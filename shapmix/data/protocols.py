"""Published protocols: which subjects, cameras or setups of a data set train and test."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

# Training subjects of NTU RGB+D 120; those up to 40 are the training subjects of NTU RGB+D 60.
NTU_SUBJECTS = (
    1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38, 45, 46, 47, 49, 50, 52, 53,
    54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89, 91, 92, 93, 94, 95, 97, 98, 100, 103,
)  # fmt: skip


class Protocol(NamedTuple):
    """A published protocol of one data set.

    Attributes:
        name: the value of `--split`; several data sets may use the same one.
        dataset: whose protocol it is.
        recordings: what the names of the data set's recordings look like. Numbers of other data sets mean other people, so the
            protocol is offered to no others.
        column: what is divided: `subject`, `camera` or `setup`.
        trains, tests: its values that train and test; None: all others.
    """

    name: str
    dataset: str
    recordings: re.Pattern[str]
    column: str
    trains: tuple[int, ...]
    tests: tuple[int, ...] | None = None


NTU, NW_UCLA = re.compile(r"S\d{3}C\d{3}P\d{3}R\d{3}A\d{3}"), re.compile(r"a\d\d_s\d\d_e\d\d_v\d\d")

PROTOCOLS = (
    Protocol("xsub", "NTU RGB+D", NTU, "subject", NTU_SUBJECTS),
    Protocol("xview", "NTU RGB+D", NTU, "camera", (2, 3)),
    Protocol("xset", "NTU RGB+D", NTU, "setup", tuple(range(2, 33, 2))),
    Protocol("cross-view", "NW-UCLA", NW_UCLA, "camera", (1, 2)),
    # for model selection: the test view is not used
    Protocol("cross-view-val", "NW-UCLA", NW_UCLA, "camera", (1,), (2,)),
    Protocol("cross-subject", "NW-UCLA", NW_UCLA, "subject", tuple(range(1, 10))),  # subject 10 tests
)


def protocols_of(names: Sequence[str]) -> dict[str, Protocol]:
    """The protocols of the data set whose recordings have these names, by `--split` value."""
    fitting = {pattern for pattern in {one.recordings for one in PROTOCOLS} if all(map(pattern.fullmatch, names))}
    return {one.name: one for one in PROTOCOLS if one.recordings in fitting}
