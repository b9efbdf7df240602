"""Writes the tables of the committed grids, and inserts them into the README and docs/results.md.

    python -m bench.results_pages

The cells of a plan are in `bench/results/FOLDER/cells`: copy new ones there and run the command. A page has a table between two
comments, `<!-- grid: FOLDER -->` (the whole table), `<!-- summary: FOLDER -->` (one line a row) or `<!-- fresh: FOLDER -->` (the
pairs of the seeds that no row was chosen on), and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from shapmix import experiment
from shapmix.experiments.cells import read_results, with_pools
from shapmix.experiments.plan import read_plan
from shapmix.experiments.tables import COLUMNS, pair_table, summaries

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
PLACE = re.compile(r"(<!-- (grid|summary|fresh): (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NO_RESULT = "No cell has been trained yet.\n"


FRESH = 5  # rows of the rule plans were suggested by the seeds before
CONTROL = "two views, no mixing"


class Grid(NamedTuple):
    """A plan in `bench/plans`, and the rows that the others are compared with."""

    plan: str
    pairs: tuple[str, ...] = ()

    def options(self) -> list[str]:
        """Options of `python -m shapmix.experiment` that its table is made with."""
        pairs = ["--pairs", *self.pairs] if self.pairs else []
        columns = [name for name in COLUMNS if name not in ("macro_f1", "worst_class")]
        return [str(ROOT / "bench" / "plans" / f"{self.plan}.yaml"), *pairs, "--columns", *columns, "--only-table"]


GRIDS = {  # folder of bench/results -> grid
    "nw_ucla_grid": Grid("nw_ucla", ("Shap-Mix", CONTROL)),
    "nw_ucla_choice": Grid("nw_ucla_choice"),
    "nw_ucla_short": Grid("nw_ucla_short", ("Shap-Mix", CONTROL)),
    "penn_action": Grid("penn_action", ("Shap-Mix", CONTROL)),
    "utd_mhad": Grid("utd_mhad", ("Shap-Mix", CONTROL)),
    "rule_nw_ucla": Grid("rule_nw_ucla", ("Shap-Mix",)),
    "rule_penn_action": Grid("rule_penn_action", ("Shap-Mix",)),
    "rule_test_nw_ucla": Grid("rule_test_nw_ucla", ("Shap-Mix",)),
    "rule_test_penn_action": Grid("rule_test_penn_action", ("Shap-Mix",)),
    "saliency_every": Grid("saliency_every", ("every step",)),
}


def main(arguments: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(arguments)
    for folder in trained(RESULTS):
        write_table(folder, RESULTS)
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")


def trained(results: Path) -> list[str]:
    """The grids that have a cell."""
    return [folder for folder in GRIDS if (results / folder / "cells").is_dir()]


def write_table(folder: str, results: Path) -> None:
    """Writes `table.md` and `table.png` of a grid; the error of a grid that cannot be read is printed."""
    if experiment.main([*GRIDS[folder].options(), "--out", str(results / folder)]):
        raise SystemExit(f"bench.results_pages: the table of {results / folder} cannot be made")


def filled(page: str, results: Path) -> str:
    """A page with the tables of the folders below `results`.

    Raises:
        ValueError: a comment names a folder that is no grid.
    """

    def insert(place: re.Match[str]) -> str:
        begin, kind, folder, end = place.groups()
        if folder not in GRIDS:
            raise ValueError(f"'{begin.strip()}': the grids are {', '.join(GRIDS)}")
        there = folder in trained(results)
        content = {"grid": whole, "summary": summary, "fresh": fresh}[kind](folder, results) if there else NO_RESULT
        return f"{begin}\n{content}\n{end}"

    return PLACE.sub(insert, page)


def whole(folder: str, results: Path) -> str:
    """The grid's `table.md`."""
    return (results / folder / "table.md").read_text(encoding="utf-8").rstrip() + "\n"


def summary(folder: str, results: Path) -> str:
    """The class mean of each row with a result in each setting, the lead of the row that is compared, and the number of seeds."""
    grid = GRIDS[folder]
    plan = read_plan(ROOT / "bench" / "plans" / f"{grid.plan}.yaml")
    cells, found = with_pools(plan, read_results(plan, results / folder))
    every = [row for row in summaries(cells, found) if row.seeds]
    pairs = pair_table(cells, found, grid.pairs[0]) if grid.pairs else ""
    leads = {name: shown for name, *shown in (cells_of(line) for line in pairs.splitlines()[2:])}
    settings = list(dict.fromkeys(row.setting for row in every))
    heads = ["", *settings, f"lead of {grid.pairs[0]}" + (", mean of all settings" if len(settings) > 1 else ""), "higher in"]
    lines = [heads, ["---"] * len(heads)]
    for name in dict.fromkeys(row.row for row in every):
        of_setting = {row.setting: row.columns["class_mean"] for row in every if row.row == name}
        lead, _, ahead, _ = leads.get(name, [""] * 4)
        lines.append([name, *(in_percent(of_setting.get(setting)) for setting in settings), lead, ahead])
    seeds = sorted({row.seeds for row in every})
    counted = f"{seeds[0]} seed{'s' * (seeds[0] > 1)}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\nClass mean of the last checkpoint in percent, mean and 95% interval over {counted}.\n"


def fresh(folder: str, results: Path) -> str:
    """The pair table over the seeds from `FRESH` on."""
    grid = GRIDS[folder]
    plan = read_plan(ROOT / "bench" / "plans" / f"{grid.plan}.yaml")
    cells = [cell for cell in plan.cells if cell.seed >= FRESH]
    return pair_table(cells, read_results(plan, results / folder), grid.pairs[0])


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def in_percent(value: tuple[float, float | None] | None) -> str:
    if value is None:
        return ""
    return f"{100 * value[0]:.1f}" + ("" if value[1] is None else f" ± {100 * value[1]:.1f}")


if __name__ == "__main__":
    main()
