"""What is told of the committed grids is what their cells hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from shapmix import experiment

ROOT = Path(__file__).parent.parent
GRIDS = {"nw_ucla_grid": ["nw_ucla.yaml", "--pairs", "Shap-Mix"], "nw_ucla_choice": ["nw_ucla_choice.yaml"]}


@pytest.mark.parametrize("folder", GRIDS)
def test_a_grids_table_is_that_of_its_cells(folder: str, tmp_path: Path) -> None:
    committed = ROOT / "bench" / "results" / folder
    shutil.copytree(committed / "cells", tmp_path / "cells")
    plan, *options = GRIDS[folder]
    assert experiment.main([str(ROOT / "bench" / "plans" / plan), *options, "--out", str(tmp_path), "--only-table"]) == 0
    assert (tmp_path / "table.md").read_text() == (committed / "table.md").read_text()
    for path in (committed / "cells").iterdir():
        assert "/" not in json.dumps(json.loads(path.read_text())["options"]), f"{path}: a path of the machine it ran on"


@pytest.mark.parametrize("folder", GRIDS)
def test_the_page_of_results_shows_the_whole_table(folder: str) -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for line in (ROOT / "bench" / "results" / folder / "table.md").read_text(encoding="utf-8").splitlines():
        assert line.startswith("**") or line in page, line
