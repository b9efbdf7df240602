"""The tables of the README and of docs/results.md are those of the committed cells."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from bench import results_pages
from bench.results_pages import GRIDS, NO_RESULT, PAGES, RESULTS, filled, trained, write_table
from shapmix.experiments.plan import read_plan


@pytest.mark.parametrize("folder", trained(RESULTS))
def test_a_grids_table_is_that_of_its_cells(folder: str, tmp_path: Path) -> None:
    shutil.copytree(RESULTS / folder / "cells", tmp_path / folder / "cells")
    write_table(folder, tmp_path)
    table = (tmp_path / folder / "table.md").read_text()
    assert table == (RESULTS / folder / "table.md").read_text(), "run python -m bench.results_pages"
    for path in (RESULTS / folder / "cells").iterdir():
        assert '"/' not in json.dumps(json.loads(path.read_text())["options"]), f"{path}: a path of the machine it ran on"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_pages_show_the_tables(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == filled(text, RESULTS), "run python -m bench.results_pages"
    assert text.count("<!-- end -->") == len(results_pages.PLACE.findall(text)) > 0


def test_every_grid_has_its_place_on_the_page_of_results() -> None:
    text = (results_pages.ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"<!-- grid: (\w+) -->", text)) == sorted(GRIDS)


PAGE = "Before\n\n<!-- grid: utd_mhad -->\nold\n<!-- end -->\n\nbetween\n\n<!-- summary: utd_mhad -->\n<!-- end -->\n\nafter\n"


def test_new_cells_come_into_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = filled(PAGE, tmp_path)
    assert text.count(NO_RESULT) == 2
    assert "old" not in text
    folder = tmp_path / "utd_mhad" / "cells"
    folder.mkdir(parents=True)
    reached = {"plain": (0.5, 0.6), "Mixup": (0.55, 0.7), "Shap-Mix": (0.6, 0.62)}
    for cell in read_plan(results_pages.ROOT / "bench" / "plans" / "utd_mhad.yaml").cells:
        if cell.row in reached and cell.seed < 2:
            value = reached[cell.row][cell.seed]
            test = {"last": {"clips": 4, "top1": value, "class_mean": value, "many": None, "medium": None, "few": value}}
            content = {"options": cell.options, "test": test, "seconds": 60, "device": "cpu", "training_list": str(cell.seed)}
            (folder / f"{cell.name}.json").write_text(json.dumps(content))
    write_table("utd_mhad", tmp_path)
    text = filled(text, tmp_path)
    whole, _, short = text.partition("\nbetween\n")
    assert "| plain | 55.0 ± 63.5 | 55.0 ± 63.5 | 55.0 ± 63.5 |  | 2 | 1 (cpu) |" in whole
    assert "| Mixup | -1.5 ± 82.6 | -1.5 ± 82.6 | 1 of 2 seeds |" in whole
    assert "| Mixup | 62.5 ± 95.3 | -1.5 ± 82.6 | 1 of 2 seeds |" in short
    assert "| Shap-Mix | 61.0 ± 12.7 |  |  |" in short
    assert "over 2 seeds." in short
    monkeypatch.setattr(results_pages, "FRESH", 1)
    later = filled("<!-- fresh: utd_mhad -->\n<!-- end -->", tmp_path)
    assert "| plain | +2.0 | +2.0 | 1 of 1 seeds |" in later
    assert "| Mixup | -8.0 | -8.0 | 0 of 1 seeds |" in later
    for path in folder.glob("*seed-1.json"):
        path.unlink()
    assert "over 1 seed." in filled(text, tmp_path)
    with pytest.raises(ValueError, match="'<!-- grid: elsewhere -->': the grids are nw_ucla_grid"):
        filled("<!-- grid: elsewhere -->\n<!-- end -->", tmp_path)
