"""Every big data set, from its files to a prediction: prepare, train an epoch, predict, through the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shapmix import predict, prepare, train
from tests import set_files

TRAIN = ["--num-frames", "8", "--network.widths", "8", "--batch-size", "2", "--epochs", "1", "--mix", "none", "--threads", "1"]
SETS: dict[str, tuple[Callable[[Path], object], list[str], str | None]] = {  # writer, options of prepare, split
    "pku_mmd": (set_files.pku_mmd, [], "xsub"),
    "uav_human": (set_files.uav_human, [], "csv2"),
    "smarthome": (set_files.smarthome, [], "cs"),
    "kinetics": (set_files.kinetics, ["--box-threshold", "0.5"], None),
    "mmaction": (set_files.mmaction, [], "ntu60_xsub"),
    "stgcn": (set_files.stgcn, ["--layout", "openpose18", "--scores"], None),
    "babel": (set_files.babel, [], None),
    "smarthome in 2D": (set_files.smarthome, ["--coordinates", "2"], "cv2"),
}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", SETS)
def test_a_big_set_is_prepared_trained_and_predicted(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, options, split = SETS[name]
    write(tmp_path / "data")
    store, run = str(tmp_path / "store"), str(tmp_path / "run")
    assert prepare.main([str(tmp_path / "data"), store, *options]) == 0
    trained = [
        "--dataset",
        "store",
        "--data-root",
        store,
        *(["--split", split] if split else []),
        "--drop-empty-classes",
        "--run-dir",
        run,
    ]
    assert train.main([*trained, *TRAIN]) == 0
    capsys.readouterr()
    assert predict.main([run, str(tmp_path / "data"), "--top", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 8
