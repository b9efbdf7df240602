"""Names of NTU RGB+D recordings: `SsssCcccPpppRrrrAaaa`."""

from __future__ import annotations

import re
from typing import NamedTuple

_NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})")


class NtuName(NamedTuple):
    """The numbers of a name; `label` is the action less one."""

    setup: int
    camera: int
    subject: int
    replication: int
    label: int

    def numbers(self) -> dict[str, int]:
        """Keywords of a `Recording`."""
        return {"setup": self.setup, "camera": self.camera, "subject": self.subject, "replication": self.replication}


def parse_ntu_name(name: str) -> NtuName | None:
    """The numbers of a name, None where it is none or its action is not 1 to 120."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    setup, camera, subject, replication, action = map(int, found.groups())
    return NtuName(setup, camera, subject, replication, action - 1) if 1 <= action <= 120 else None


def ntu_classes(labels: int) -> list[str]:
    """`A001` and on: 60 of NTU RGB+D 60, or 120, whichever holds label `labels - 1`."""
    return [f"A{action:03d}" for action in range(1, (60 if labels <= 60 else 120) + 1)]
