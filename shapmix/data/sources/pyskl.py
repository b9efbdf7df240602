"""Reader of pyskl pickles: NTU RGB+D in 3D and 2D, FineGYM, UCF101, HMDB51, Diving48 and others of the same format.

`{'split': {name: [ids]}, 'annotations': [...]}`; see `shapmix.data.sources.annotations` for an annotation.
"""

from __future__ import annotations

from pathlib import Path

from shapmix.data.sources.annotations import Annotated, check_splits
from shapmix.data.sources.registry import source
from shapmix.data.sources.restricted import begins_with_dictionaries, load_pickle, mentions
from shapmix.process.errors import DataError

TABLE_FIELD = "raw_file"  # of an annotation whose poses lie in another file


def is_pickle(path: Path) -> bool:
    """Whether a path is a file that is named like a pickle."""
    return path.suffix in (".pkl", ".pickle") and path.is_file()


@source(
    "pyskl",
    "a .pkl with annotations",
    fits=lambda path: is_pickle(path) and not begins_with_dictionaries(path) and not mentions(path, TABLE_FIELD),
    asks_layout=Path.is_file,
)
class Pyskl(Annotated):
    """Annotations of one pickle; see `Annotated`. Its lists keep their names: `train1` and `test1` of UCF101, for example.

    Raises:
        DataError: not such a pickle, or it requests anything but data.
    """

    def __init__(self, path: Path, *, layout: str | None = None, people: int | None = None) -> None:
        content = load_pickle(path)
        if not isinstance(content, dict) or not isinstance(content.get("annotations"), list) or not content["annotations"]:
            raise DataError(f"{path}: has no list 'annotations'; give a pickle in pyskl's format")
        annotations = content["annotations"]
        splits = check_splits(path, content.get("split"), len(annotations))
        super().__init__(path, annotations, splits, layout=layout, people=people)
