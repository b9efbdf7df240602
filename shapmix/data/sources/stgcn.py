"""Reader of the ST-GCN format: `train_data.npy` [N, C, T, V, M] with `train_label.pkl`, and likewise `val`."""

from __future__ import annotations

from pathlib import Path

from shapmix.data.sources.msg3d import parts_of
from shapmix.data.sources.registry import source
from shapmix.data.sources.rows import PaddedRows

DATA = "_data.npy"


@source(
    "stgcn", f"a folder with train{DATA}", fits=lambda path: path.is_dir() and any(path.glob(f"*{DATA}")), asks_layout=Path.is_dir
)
class Stgcn(PaddedRows):
    """Every part (`train`, `val`) of a folder; see `PaddedRows`.

    NTU RGB+D has 25 joints in 3D. Kinetics-skeleton has OpenPose's 18 joints of (x, y, score), x and y from -0.5 to 0.5: give
    `--layout openpose18 --scores`. The label pickle contains (names, labels) in the order of the rows.
    """

    def __init__(self, folder: Path, *, layout: str | None = None, scores: bool = False, depth: bool = False) -> None:
        super().__init__(folder, parts_of(folder, DATA), layout=layout, scores=scores, depth=depth)
