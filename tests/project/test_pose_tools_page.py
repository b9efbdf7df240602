"""The page of the pose tools: every command works as it is written, on small files of each tool."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from shapmix import predict, prepare, train
from tests.data.pose_files import BUILDERS

PAGE = Path(__file__).parents[2] / "docs" / "pose_tools.md"
FOLDERS = {
    "openpose_clips": "openpose",
    "alphapose_clips": "alphapose",
    "mmpose_clips": "mmpose",
    "coco_clips": "coco_results",
    "yolo_clips": "ultralytics",
    "mediapipe_clips": "mediapipe",
    "bvh_clips": "bvh",
}
COMMANDS = {"prepare": prepare.main, "train": train.main, "predict": predict.main}
SHORT = [
    "--num-frames",
    "8",
    "--network.widths",
    "8",
    "--batch-size",
    "4",
    "--epochs",
    "1",
    "--saliency.warmup-epochs",
    "0",
    "--threads",
    "1",
    "--device",
    "cpu",
]


def commands() -> list[list[str]]:
    """Those of the page: predictions after every run, because one section comes before the run that it uses."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    return sorted(lines, key=lambda line: line[2] == "shapmix.predict")


def test_the_page_names_every_pose_tool() -> None:
    assert {line[3] for line in commands() if line[2] == "shapmix.prepare"} == set(FOLDERS)
    assert set(FOLDERS.values()) == set(BUILDERS)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_every_command_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, format in FOLDERS.items():
        Path(folder).mkdir()
        BUILDERS[format](Path(folder))
    for python, module, name, *arguments in commands():
        assert (python, module) == ("python", "-m")
        command = name.removeprefix("shapmix.")
        assert COMMANDS[command]([*arguments, *(SHORT if command == "train" else [])]) == 0, (name, arguments)
    assert Path("people.csv").read_text().startswith("name,person,begin,end,class,probability")
