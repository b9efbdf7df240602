"""What every source has in common: labels that are known before anything is read, and one error for a clip of zeros."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from shapmix.data.nw_ucla import load_nw_ucla
from shapmix.data.sources import Source
from shapmix.data.sources.find import find_source
from shapmix.data.sources.registry import SourceOptions
from shapmix.process.errors import DataError

ZEROS = "no frame holds a body, all coordinates are zero; remove the clip"


def joints(number: int, count: int, coordinates: int = 3) -> np.ndarray:
    """[4, V, C]: the second clip is zero."""
    return np.full((4, count, coordinates), 0.5 if number == 0 else 0.0, np.float32)


def plain(folder: Path) -> Path:
    (folder / "labels.csv").write_text("name,label\na,0\nb,1\n")
    for number, name in enumerate("ab"):
        np.save(folder / f"{name}.npy", joints(number, 20))
    return folder


def pyskl(folder: Path) -> Path:
    entries = [
        {"frame_dir": name, "label": number, "total_frames": 4, "keypoint": joints(number, 25)[None]}
        for number, name in enumerate("ab")
    ]
    (folder / "data.pkl").write_bytes(pickle.dumps({"annotations": entries}))
    return folder / "data.pkl"


def msg3d(folder: Path) -> Path:
    rows = np.stack([joints(number, 25).transpose(2, 0, 1)[..., None] for number in range(2)])
    np.save(folder / "train_data_joint.npy", rows)
    (folder / "train_label.pkl").write_bytes(pickle.dumps((["a", "b"], [0, 1])))
    return folder


def ntu_npz(folder: Path) -> Path:
    rows = np.zeros((2, 4, 150), np.float32)
    rows[0] = 0.5
    np.savez(folder / "ntu.npz", x_train=rows, y_train=np.eye(2), x_test=rows, y_test=np.eye(2))
    return folder / "ntu.npz"


def nw_ucla(folder: Path) -> Path:
    (folder / "all_sqe").mkdir()
    for number, action in enumerate(("01", "02")):
        content = {"skeletons": joints(number, 20).tolist(), "label": number + 1}
        (folder / "all_sqe" / f"a{action}_s01_e00_v01.json").write_text(json.dumps(content))
    return folder


def ntu_raw(folder: Path) -> Path:
    for number, action in enumerate(("001", "002")):
        body = ["72057594037931101 0 0 0 0 0 0 0 0 2", "25"]
        body += [f"{0.1 * joint * (1 - number)} 0 0 0 0 0 0 0 0 0 0 2" for joint in range(25)]
        lines = ["4", *(line for _ in range(4) for line in ["1", *body])]
        (folder / f"S001C001P001R001A{action}.skeleton").write_text("\n".join(lines) + "\n")
    return folder


MAKERS = (plain, pyskl, msg3d, ntu_npz, nw_ucla, ntu_raw)


def opened(make: object, folder: Path) -> Source:
    path = make(folder)  # type: ignore[operator]
    return find_source(path, options=SourceOptions(layout="ucla20")) if make is plain else find_source(path)


@pytest.mark.parametrize("make", MAKERS)
def test_labels_are_known_before_anything_is_read(make: object, tmp_path: Path) -> None:
    source = opened(make, tmp_path)
    assert list(source.labels) == [0, 1] * (len(source.names) // 2)
    assert source.read(0).label == source.labels[0]


@pytest.mark.parametrize("make", MAKERS)
def test_every_source_names_a_clip_of_zeros_alike(make: object, tmp_path: Path) -> None:
    source = opened(make, tmp_path)
    with pytest.raises(DataError, match=ZEROS):
        source.read(1)


def test_nw_ucla_without_a_store_names_it_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"a02_s01_e00_v01: {ZEROS}"):
        load_nw_ucla(nw_ucla(tmp_path))
