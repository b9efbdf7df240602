"""Every large data set, from its files to a prediction, by the commands of docs/big_sets.md."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from shapmix import predict, prepare, train
from tests import set_files

PAGE = (Path(__file__).parents[2] / "docs" / "big_sets.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^## (.*?)\n.*?```bash\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
SOURCES: dict[str, Callable[[Path], object]] = {
    "k400": set_files.kinetics,
    "ucf101_hrnet.pkl": set_files.ucf101,
    "ntu60_2d": set_files.mmaction,
    "kinetics_skeleton": set_files.stgcn,
    "PKUMMD": set_files.pku_mmd,
    "uav_human": set_files.uav_human,
    "smarthome": set_files.smarthome,
    "babel": set_files.babel,
}
SHORT = ["--num-frames", "8", "--network.widths", "8", "--batch-size", "2", "--epochs", "1", "--mix", "none", "--threads", "1"]
SHORT += ["--schedule.warmup-epochs", "0", "--device", "cpu"]

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_every_source_of_the_page_has_a_section() -> None:
    assert [shlex.split(block)[3] for block in BLOCKS.values()] == list(SOURCES)


@pytest.mark.parametrize("title", BLOCKS)
def test_the_commands_of_a_section_run(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [shlex.split(line) for line in BLOCKS[title].splitlines()]
    assert [line[:3] for line in lines] == [["python", "-m", f"shapmix.{name}"] for name in ("prepare", "train", "predict")]
    SOURCES[lines[0][3]](Path(lines[0][3]))
    for _, _, module, *arguments in lines:
        capsys.readouterr()
        more = SHORT if module == "shapmix.train" else []
        assert import_module(module).main([*arguments, *more]) == 0, capsys.readouterr().err
    assert len(capsys.readouterr().out.splitlines()) >= 8


def test_other_coordinates_and_lists_of_smarthome(tmp_path: Path) -> None:
    set_files.smarthome(tmp_path / "data")
    store, run = str(tmp_path / "store"), str(tmp_path / "run")
    assert prepare.main([str(tmp_path / "data"), store, "--coordinates", "2"]) == 0
    options = ["--dataset", "store", "--data-root", store, "--split", "cv2", "--drop-empty-classes", "--run-dir", run]
    assert train.main([*options, *SHORT]) == 0
    assert predict.main([run, str(tmp_path / "data")]) == 0
