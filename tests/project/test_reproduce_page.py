"""docs/reproduce.md: every command runs its plan from end to end, on made-up stores of the data sets' shapes."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from shapmix import experiment, prepare, train
from shapmix.data.clips import list_hash
from shapmix.data.sources.bounded import line_of_name
from shapmix.experiments import cells
from shapmix.experiments.plan import read_plan
from tests.set_files import motion
from tests.small_run import leave_pictures_out

ROOT = Path(__file__).parents[2]
PLANS = ROOT / "bench" / "plans"
PAGE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
COMMANDS = {
    name: shlex.split(block.replace("\\\n", ""))
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for name in re.findall(r"plans/(\w+)\.yaml", block)
}
BATCH = {"kinetics_lt": 160}
ELSEWHERE = {"nw_ucla", "nw_ucla_choice", "nw_ucla_short", "penn_action", "utd_mhad", "saliency_every"}  # docs/results.md
ELSEWHERE |= {"rule_nw_ucla", "rule_penn_action", "rule_test_nw_ucla", "rule_test_penn_action"}  # and docs/experiments.md
SHORT = ["epochs=2", "saliency.warmup-epochs=1", "schedule.warmup-epochs=0", "num-frames=8", "precision=fp32", "threads=1"]
SHORT += ["test-clips=2"]
SMALL = ["network.widths=[8]", "network.halve=[]"]  # of CTR-GCN


def ntu_annotations(classes: int) -> list[dict[str, Any]]:
    """Two training clips and one test clip of every class, by every protocol."""
    rng = np.random.default_rng(0)
    numbers = [("S002C002P001", 0), ("S002C003P002", 1), ("S001C001P003", 2)]
    return [
        {
            "frame_dir": f"{number}R{1 + repeat:03d}A{label + 1:03d}",
            "label": label,
            "total_frames": 10,
            "keypoint": np.stack([motion(rng, 10, 25, 3, label)] * 2),
        }
        for label in range(classes)
        for number, repeat in numbers
    ]


def poses_2d(classes: int, joints: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "frame_dir": f"clip{label:03d}_{number}",
            "label": label,
            "img_shape": (340, 400),
            "original_shape": (340, 400),
            "total_frames": 10,
            "keypoint": (100 + 50 * motion(rng, 10, joints, 2, label)).astype(np.float16)[None].repeat(2, 0),
            "keypoint_score": np.full((2, 10, joints), 0.9, np.float16),
        }
        for label in range(classes)
        for number in range(6 if classes < 100 else 3)
    ]


def write_store(folder: Path, name: str, annotations: list[dict[str, Any]], *options: str) -> None:
    names = [str(each["frame_dir"]) for each in annotations]
    split = {"train": [each for at, each in enumerate(names) if at % 3 < 2], "test": names[2::3]}
    (folder / f"{name}.pkl").write_bytes(pickle.dumps({"split": split, "annotations": annotations}))
    assert prepare.main([str(folder / f"{name}.pkl"), str(folder / f"{name}.store"), *options]) == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's stores and lists lie."""
    folder = tmp_path_factory.mktemp("stores")
    write_store(folder, "ntu60", ntu_annotations(60))
    write_store(folder, "ntu120", ntu_annotations(120))
    write_store(folder, "k400", poses_2d(400, 17))
    for classes, imbalances in ((60, (100, 50)), (120, (100,))):
        training = [each["frame_dir"] for each in ntu_annotations(classes) if not each["frame_dir"].startswith("S001")]
        for imbalance in imbalances:
            (folder / f"NTU{classes}_xsub_exp_{imbalance}.txt").write_text("\n".join(training) + "\n")
    return folder


def test_the_page_has_a_command_for_every_plan() -> None:
    assert {path.stem for path in PLANS.glob("*.yaml")} - ELSEWHERE == set(COMMANDS)
    for name in COMMANDS:
        if name != "two_stages":  # reads the run that it starts from
            read_plan(PLANS / f"{name}.yaml")


def test_the_plans_name_the_published_lists() -> None:
    folder = os.environ.get("SHAPMIX_LISTS")
    if folder is None:
        pytest.skip("SHAPMIX_LISTS is not set to a folder with the published training lists")
    lists = Path(folder).glob("*_exp_*.txt")
    hashes = {path.name: list_hash(line_of_name(path)) for path in lists}
    found = 0
    for name in COMMANDS:
        text = yaml.safe_load((PLANS / f"{name}.yaml").read_text())
        for setting, digest in text.get("lists", {}).items():
            options = {**text["base"], **text["settings"][setting]}
            assert hashes[options["train-list"]] == digest
            found += 1
    assert found >= 15


def one_row(text: dict[str, Any], command: Sequence[str]) -> dict[str, Any]:
    """Every setting and ensemble with the row that the command pairs with the others, or the first one."""
    row = command[command.index("--pairs") + 1] if "--pairs" in command else next(iter(text["rows"]))
    return {**text, "rows": {row: text["rows"][row]}, "published": {}}


def first_setting(text: dict[str, Any]) -> dict[str, Any]:
    """Every row with the first setting."""
    kept = {key: value for key, value in text.items() if key not in ("ensembles", "pools", "published")}
    return {**kept, "settings": dict([next(iter(text.get("settings", {"all": {}}).items()))])}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_runs_its_plan(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each setting with the first row and each row with the first setting, in two epochs; the cells train in this process."""

    def train_here(command: Sequence[str], logged: Path, request: object) -> int:
        assert command[1:3] == ["-m", "shapmix.train"]
        code = train.main(list(command[3:]))
        logged.write_text(capsys.readouterr().err)
        return code

    monkeypatch.setattr(cells, "run_child", train_here)
    leave_pictures_out(monkeypatch.setattr)
    monkeypatch.chdir(data)
    command, text = COMMANDS[name][3:], yaml.safe_load((PLANS / f"{name}.yaml").read_text())
    changes = [*SHORT, *(SMALL if name != "backbones" else []), f"batch-size={BATCH.get(name, 40)}"]
    if name == "two_stages":
        command = command[: command.index("--set")]
        stage1 = ["--preset", "ntu60-lt", "--data-root", "ntu60.store", "--run-dir", str(tmp_path / "stage1"), "--mix", "none"]
        stage1 += ["--epochs", "1", "--batch-size", "40", "--num-frames", "8", "--network.widths", "8", "--threads", "1"]
        assert train.main(stage1) == 0
        changes = [f"init-from={tmp_path / 'stage1'}", "epochs=2", "threads=1"]
    for number, part in enumerate((one_row(text, command), first_setting(text))):
        part = {key: value for key, value in part.items() if key != "lists"} | {"seeds": [0]}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(part, sort_keys=False))
        out = tmp_path / str(number)
        arguments = [str(tmp_path / f"{name}.yaml") if each.startswith("bench/") else each for each in command]
        arguments[arguments.index("--out") + 1] = str(out)
        assert experiment.main([*arguments, "--devices", "cpu", "--set", *changes]) == 0, capsys.readouterr().err
        done = [json.loads(path.read_text()) for path in (out / "cells").iterdir()]
        settings, rows = part.get("settings", {"all": {}}), part["rows"]
        assert len(done) == len(settings) * len(rows) + len(part.get("ensembles", {})) * len(rows)
        assert "No result yet" not in (out / "table.md").read_text()
