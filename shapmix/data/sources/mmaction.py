"""Reader of mmaction2 0.x pickles: a plain list of annotations, in one file per list (`ntu60_xsub_train.pkl`, ...)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shapmix.data.sources.annotations import Annotated
from shapmix.data.sources.bounded import MOST_SPLITS, show
from shapmix.data.sources.pyskl import is_pickle
from shapmix.data.sources.registry import source
from shapmix.data.sources.restricted import begins_with_dictionaries, load_pickle
from shapmix.process.errors import DataError


def _is_mmaction(path: Path) -> bool:
    if path.is_dir():
        files = sorted(path.glob("*.pkl"))
        return bool(files) and all(map(begins_with_dictionaries, files))
    return is_pickle(path) and begins_with_dictionaries(path)


@source(
    "mmaction", "a .pkl with a list of annotations, or a folder of such lists", fits=_is_mmaction, asks_layout=lambda path: True
)
class Mmaction(Annotated):
    """Annotations of one pickle, or of all pickles of a folder, which are the lists of the data under their file names.

    A clip that is in several files is read from the first one; see `Annotated` for an annotation.

    Raises:
        DataError: not such pickles, they request anything but data, or a clip with different labels in two files.
    """

    def __init__(self, path: Path, *, layout: str | None = None, people: int | None = None) -> None:
        files = sorted(path.glob("*.pkl")) if path.is_dir() else [path]
        if len(files) > MOST_SPLITS:
            raise DataError(f"{path}: {len(files)} .pkl files; the limit is {MOST_SPLITS}")
        annotations: list[Any] = []
        lists: dict[str, list[str]] = {}
        label_of: dict[str, Any] = {}
        for file in files:
            content = load_pickle(file)
            if not isinstance(content, list) or not content:
                raise DataError(f"{file}: is {show(content)}, not a list of annotations; give a pickle of mmaction2 0.x")
            names = lists.setdefault(file.stem, [])
            for number, entry in enumerate(content):
                if not isinstance(entry, dict) or not isinstance(entry.get("frame_dir"), str):
                    raise DataError(f"{file}: annotation {number} has no name 'frame_dir'; add it, or remove the annotation")
                name, label = entry["frame_dir"], entry.get("label")
                names.append(name)
                if path.is_dir() and name in label_of:
                    if show(label_of[name]) != show(label):
                        raise DataError(
                            f"{file}: annotation {number} ('{name}') has label {show(label)}, another file has "
                            f"{show(label_of[name])}; correct one"
                        )
                    continue
                label_of[name] = label
                annotations.append(entry)
        super().__init__(files[0], annotations, lists if path.is_dir() else {}, files=files[1:], layout=layout, people=people)
