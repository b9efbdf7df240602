"""`python -m shapmix.doctor --layout`: a summary and a picture of a skeleton, and what looks like a mistake in it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from shapmix import doctor
from shapmix.kernels import steps
from shapmix.kernels.steps import tile_of_joints
from shapmix.pictures.skeletons import layout_svg
from shapmix.skeleton.layout import BUILT_IN, layout_text, load_layout

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_picture_has_every_bone_and_names_every_joint(name: str) -> None:
    layout = load_layout(name)
    picture = ElementTree.fromstring(layout_svg(layout))
    assert len(picture.findall(f".//{SVG}line")) == layout.num_joints - 1
    titles = [title.text for title in picture.findall(f".//{SVG}title")]
    part = layout.part_of_joint.tolist()
    assert titles == [f"{number} {joint} ({list(layout.parts)[part[number]]})" for number, joint in enumerate(layout.joints)]
    width, height = (float(picture.attrib[side]) for side in ("width", "height"))
    for circle in picture.findall(f".//{SVG}circle"):
        assert 0 < float(circle.attrib["cx"]) < width
        assert 0 < float(circle.attrib["cy"]) < height


def test_names_are_escaped() -> None:
    text = layout_text("coco17").replace("nose", "<nose> & co")
    Path("odd.toml").write_text(text)
    ElementTree.fromstring(layout_svg(load_layout("odd.toml")))


def test_the_doctor_draws_a_layout_and_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--layout", "h36m17"]) == 0
    said = capsys.readouterr().out
    assert "17 joints, 5 parts (20 combinations), 2 or 3 coordinates, z points up" in said
    assert " 1  right_hip" in said
    assert "fused layers on a GPU: 17 joints fit one tile\n" in said
    assert "picture: h36m17.svg" in said
    assert "no mistakes found" in said
    ElementTree.parse("h36m17.svg")
    assert doctor.main(["--layout", "coco17", "--picture", "mine.svg"]) == 0
    assert "y points down" in capsys.readouterr().out
    assert Path("mine.svg").read_text() == layout_svg(load_layout("coco17"))


def test_the_doctor_names_what_looks_like_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.toml").write_text(
        layout_text("coco17").replace('name = "coco17"', 'name = "own"').replace('["left_eye", "right_eye"], ', "")
    )
    assert doctor.main(["--layout", "own.toml"]) == 1
    said = capsys.readouterr().out
    assert "mistake? 'left_eye' and 'right_eye' are not a pair in 'flips'" in said
    assert doctor.main(["--layout", "own.toml", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["doubts"][0].startswith("'left_eye' and 'right_eye'")
    assert (found["name"], len(found["joints"]), found["dimensions"], found["picture"]) == ("own", 17, [2], "own.svg")
    Path("own.toml").write_text(layout_text("coco17").replace('left_knee = "left_hip"', 'left_knee = "left_hop"'))
    assert doctor.main(["--layout", "own.toml"]) == 2
    assert (
        "error: own.toml: [parents] left_knee names the unknown joint 'left_hop'; did you mean 'left_hip'"
        in capsys.readouterr().err
    )


def test_a_picture_without_a_layout_and_a_folder_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--picture", "a.svg"]) == 2
    assert "error: --picture belongs to --layout: give the layout to draw" in capsys.readouterr().err
    Path("folder").mkdir()
    assert doctor.main(["--layout", "coco17", "--picture", "folder"]) == 2
    assert "folder" in capsys.readouterr().err
    assert doctor.main(["--layout", "coco17", "--picture", "a.png"]) == 2
    assert "error: --picture a.png: the picture is an .svg" in capsys.readouterr().err


def test_the_doctor_says_where_fused_layers_are_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number of joints that a layout can have; one tile is one kernel of the graph unit's backward pass."""
    pytest.importorskip("triton", reason="triton is not installed")
    for joints in (2, 25, 32):
        assert tile_of_joints(joints) == f"{joints} joints fit one tile"
    for joints in (33, 133):
        assert tile_of_joints(joints).startswith(f"slower path: {joints} joints do not fit one tile of 32")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert tile_of_joints(25) == "25 joints fit one tile in bf16, but not in fp32, which is slower"
    monkeypatch.setattr(steps, "find_spec", lambda _name: None)
    assert tile_of_joints(25) == "not available: triton is not installed, so CTR-GCN runs op by op"
