"""Reader of the MS-G3D format: `train_data_joint.npy` [N, C, T, V, M] with `train_label.pkl`, and likewise `val`."""

from __future__ import annotations

from pathlib import Path

from shapmix.data.sources.registry import source
from shapmix.data.sources.rows import PaddedRows, Part, named_rows
from shapmix.process.errors import DataError

DATA, LABEL = "_data_joint.npy", "_label.pkl"


@source(
    "msg3d", f"a folder with train{DATA}", fits=lambda path: path.is_dir() and any(path.glob(f"*{DATA}")), asks_layout=Path.is_dir
)
class Msg3d(PaddedRows):
    """Every part (`train`, `val`, `test`) of a folder; see `PaddedRows`.

    The label pickle contains (names, labels) in the order of the rows; file name extensions are removed.
    """

    def __init__(self, folder: Path, *, layout: str | None = None, scores: bool = False, depth: bool = False) -> None:
        super().__init__(folder, parts_of(folder, DATA), layout=layout, scores=scores, depth=depth)


def parts_of(folder: Path, ending: str) -> list[Part]:
    """The parts of a folder: an array `PART` + `ending` and a pickle `PART_label.pkl` each.

    Raises:
        DataError: no arrays, or an invalid pickle.
    """
    found = []
    for data in sorted(folder.glob(f"*{ending}")):
        name = data.name.removesuffix(ending)
        label = data.with_name(name + LABEL)
        found.append(Part(name, data, label, *named_rows(label)))
    if not found:
        raise DataError(f"{folder}: contains no *{ending}")
    return found
