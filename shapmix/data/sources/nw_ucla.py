"""NW-UCLA as a source: the JSON clips of `shapmix.data.nw_ucla`, by name."""

from __future__ import annotations

from pathlib import Path

from shapmix.data.bounded import read_table
from shapmix.data.nw_ucla import CLASS_NAMES, find_clips, read_clips
from shapmix.data.sources import Recording

TABLES = {"train": "train.csv", "test": "test.csv"}


class NwUcla:
    """All clips of `all_sqe/` or its archive, sorted by name; `camera` is the view. Lists that lie beside it become splits.

    The whole set is 40 MB and is read at once.

    Raises:
        DataError: missing or damaged files, with the file, the frame and the reason.
    """

    layout = "ucla20"
    scores = False

    def __init__(self, root: Path) -> None:
        found = find_clips(root)
        clips = read_clips(found)
        self.names = sorted(clips)
        self._clips = [clips[name] for name in self.names]
        self.class_names = list(CLASS_NAMES)
        tables = {split: found.parent / table for split, table in TABLES.items() if (found.parent / table).is_file()}
        self.splits = {split: _names(table) for split, table in tables.items()}
        self.files = [*(sorted(found.glob("*.json")) if found.is_dir() else [found]), *tables.values()]

    def read(self, index: int) -> Recording:
        """Recording `names[index]`; see `Source`."""
        clip = self._clips[index]
        subject, replication = int(clip.name[5:7]), int(clip.name[9:11])
        return Recording(clip.frames.numpy(), clip.label, camera=clip.view, subject=subject, replication=replication)


def _names(table: Path) -> list[str]:
    return [row["name"] for _, row in read_table(table, ("name",))]
