"""The long-tail benchmark: a grid trains every cell once, resumes, isolates failures, and tabulates results."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from shapmix import evaluate, experiment
from shapmix.experiments import cells as grid
from shapmix.experiments import plan as plans
from shapmix.experiments import tables
from shapmix.experiments.cells import reached
from shapmix.experiments.plan import Cell, PlanError, only, read_plan
from shapmix.experiments.tables import interval, summaries, table
from shapmix.process.signals import StopRequest
from shapmix.shapley.interval import STUDENT, values_needed
from shapmix.training.options import ConfigError
from tests import small_run

PLAN = """
base: {network: {widths: [8]}, num_frames: 8, batch_size: 8, n_max: 8, imbalance: 4, epochs: 2, saliency: {warmup_epochs: 1}}
rows:
  plain: {mix: none, loss: ce}
  odd one: {mix: none, network: {backbone: "nowhere:network"}}
seeds: [0, 1]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are trained on the small data, in processes as ever."""
    run_child = grid.run_child

    def train_small(command: Sequence[str], *given: Any) -> int:
        assert command[1:3] == ["-m", "shapmix.train"]
        return run_child([command[0], str(Path(small_run.__file__)), *command[3:]], *given)

    monkeypatch.setattr(grid, "run_child", train_small)


@pytest.mark.usefixtures("small_cells")
def test_a_grid_trains_once_and_keeps_failures_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, out = written(tmp_path, PLAN), tmp_path / "out"
    assert experiment.main([str(plan), "--out", str(out), "--devices", "cpu", "cpu"]) == 1
    cells = sorted(path.name for path in (out / "cells").iterdir())
    assert cells == ["all-plain-seed-0.json", "all-plain-seed-1.json"]
    assert "network.backbone 'nowhere:network'" in (out / "logs" / "all-odd-one-seed-0.txt").read_text()
    content = json.loads((out / "cells" / cells[0]).read_text())
    assert set(content["test"]) == {"last", "best"}
    assert content["epochs"] == 2
    assert content["training_list"] == small_run.make_small().list_sha256
    text = (out / "table.md").read_text()
    assert capsys.readouterr().out == text + "\n"
    assert "|  | top-1 | class mean | medium | few |" in text  # no class has more than 100 clips: there is no many
    assert "| odd one" not in text
    assert "\nNo result yet: odd one\n" in text
    assert (out / "table.png").stat().st_size > 1000
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    plan.write_text(PLAN.replace('  odd one: {mix: none, network: {backbone: "nowhere:network"}}\n', ""))
    assert experiment.main([str(plan), "--out", str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()} == before
    # a run that was cut off goes on: its result is measured again from its checkpoint; one that had not begun begins again
    (out / "cells" / cells[0]).unlink()
    (out / "cells" / cells[1]).unlink()
    shutil.rmtree(out / "runs" / "all-plain-seed-1")
    (out / "runs" / "all-plain-seed-1").mkdir()
    assert experiment.main([str(plan), "--out", str(out), "--devices", "cpu", "cpu"]) == 0
    again = [json.loads((out / "cells" / cell).read_text()) for cell in cells]
    assert again[0]["test"] == content["test"]
    assert [cell["seconds"] is None for cell in again] == [True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a plan is a mapping"),
        ("rows: {}", "a plan is a mapping"),
        ("rows: {a: {}}\ncolumns: 3", "a plan is a mapping"),
        ("rows: {a: 3}", "'a' is a int, not options"),
        ("rows: {a b: {}, a-b: {}}", "two cells would have the name 'all-a-b-seed-0'"),
        ("rows: [", "cannot be read"),
        ("rows: {a: {}}\nseeds: [0, one]", r"seeds: a list of whole numbers, such as \[0, 1, 2\], not \[0, 'one'\]"),
        ("rows: {a: {}}\nseeds: 5", "seeds: a list of whole numbers"),
        ("rows: {a: {}}\nseeds: [-1]", "seeds: a list of whole numbers"),
        ("rows: [a, b]", "rows: a mapping of names to options of the trainer, not a list"),
        ("settings: [a]\nrows: {a: {}}", "settings: a mapping of names to options of the trainer, not a list"),
        ("settings: {a: 3}\nrows: {a: {}}", "'a' is a int, not options"),
        ("rows: {0.1: {}, 0.5: {}}", "rows: the name 0.1 is read as a float; put it in quotes"),
        ("rows: {on: {}}", "rows: the name True is read as a bool; put it in quotes"),
        (
            "settings: {apart: {}, x: {n-max: 4}, y: {n-max: 5}}\nrows: {a: {mix: none}}\npools: {Apart: [x, y]}",
            "two cells would have the name 'apart-a-seed-0'",
        ),
    ],
)
def test_a_wrong_plan_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=message):
        read_plan(written(tmp_path, text))


def test_what_is_no_cell_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="row 'a': baselines: a cell is one run; make each baseline a row of its own"):
        read_plan(written(tmp_path, "rows: {a: {baselines: [plain]}}"))
    with pytest.raises(PlanError, match=r"set: the value of 'network.widths=\[8' is no YAML"):
        read_plan(written(tmp_path, "rows: {a: {}}"), changes=["network.widths=[8"])
    path = tmp_path / "latin.yaml"
    path.write_bytes("rows: {gr\u00f6\u00dfer: {}}".encode("latin-1"))
    with pytest.raises(PlanError, match="cannot be read"):
        read_plan(path)
    plan = str(written(tmp_path, "rows: {a: {mix: none}}"))
    assert experiment.main([plan, "--out", str(tmp_path), "--devices"]) == 2
    assert "devices: give at least one" in capsys.readouterr().err


def test_a_cell_records_its_presets_and_keeps_its_paths(tmp_path: Path) -> None:
    options = {"preset": "nw-ucla", "data-root": "somewhere", "train-list": "lists/mine.txt", "mix": "none"}
    found = grid.recorded(options)
    assert found["batch_size"] == 16
    assert found["schedule"]["lr"] == 0.1
    assert found["train_list"] == "lists/mine.txt"
    assert "data_root" not in found
    assert json.loads(json.dumps(found)) == found
    assert plans.settled({"data-root": "elsewhere", **found}) == plans.settled(options)


def test_an_unfinished_run_of_other_options_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(grid, "run_child", lambda *_: pytest.fail("the run was resumed"))
    (cell,) = read_plan(written(tmp_path, "rows: {a: {mix: none, epochs: 4}}")).cells
    run = tmp_path / "runs" / cell.name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("mix: none\nepochs: 3\n")
    assert not grid.train_cell(cell, tmp_path, "cpu", 1, StopRequest())
    assert f"all-a-seed-0: its run was begun with epochs 3, but the plan has 4; move {run} away to train it anew" in caplog.text
    (run / "config.yaml").write_text("mix: none\nepochs: 4\nthreads: 7\n")
    assert grid.begun_otherwise(cell, run) == ""


def test_a_cell_of_options_that_are_gone_is_named(tmp_path: Path) -> None:
    plan = finished(tmp_path, "rows: {a: {mix: none}}", {("all", "a", 0): None})
    path = tmp_path / "cells" / "all-a-seed-0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"options": {"protocol": "xsub"}}))
    with pytest.raises(ConfigError, match=rf"{path}: .*protocol"):
        grid.read_results(read_plan(plan), tmp_path)


def test_an_unknown_option_stops_the_grid_before_it_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"plan.yaml: setting 'all', row 'a': .*--mixx.*--mix"):
        read_plan(written(tmp_path, "rows: {a: {mixx: none}}"))
    assert capsys.readouterr().err == ""


def test_folds_are_settings(tmp_path: Path) -> None:
    plan = """
base: {dataset: store, data_root: gestures.store}
settings:
  fold 1: {fold: 1/2}
  fold 2: {fold: 2/2}
  subject 3: {split: subject, test-values: [3]}
rows: {a: {mix: none}}
"""
    cells = read_plan(written(tmp_path, plan)).cells
    assert [cell.setting for cell in cells] == ["fold 1", "fold 2", "subject 3"]
    assert cells[2].options["test-values"] == [3]
    with pytest.raises(ConfigError, match="setting 'fold 2', row 'a': fold: i/k such as 1/5"):
        read_plan(written(tmp_path, plan.replace("2/2", "3/2")))


def test_cells_are_ordered_seed_by_seed(tmp_path: Path) -> None:
    cells = read_plan(written(tmp_path, "settings: {x: {epochs: 7}, y: {}}\nrows: {a: {mix: none}, b: {}}\nseeds: [3, 4]")).cells
    assert [cell.name for cell in cells] == [f"{s}-{r}-seed-{n}" for n in (3, 4) for s in "xy" for r in "ab"]
    assert cells[0].options == {"epochs": 7, "mix": "none", "seed": 3}


def test_rows_can_be_trained_before_others(tmp_path: Path) -> None:
    cells = read_plan(written(tmp_path, "rows: {a: {mix: none}, b: {mix: none}}\nseeds: [3, 4]")).cells
    assert [cell.name for cell in only(cells, ["b"])] == ["all-b-seed-3", "all-b-seed-4"]
    assert only(cells, ()) == cells
    with pytest.raises(PlanError, match="the plan has no row 'c'; it has a, b"):
        only(cells, ["a", "c"])


def test_the_data_may_lie_elsewhere(tmp_path: Path) -> None:
    plan = written(tmp_path, "base: {dataset: nw-ucla, data_root: there}\nrows: {a: {mix: none}}")
    assert read_plan(plan).cells[0].options["data_root"] == "there"
    (cell,) = read_plan(plan, Path("here")).cells
    assert cell.options == {"dataset": "nw-ucla", "data-root": "here", "mix": "none", "seed": 0}


def test_intervals_are_students() -> None:
    middle, half = interval([0.5, 0.6, 0.7]) or (0, 0)
    assert middle == pytest.approx(0.6)
    assert half == pytest.approx(4.303 * 0.1 / 3**0.5)  # of three values; tables of Student's t
    assert interval([0.5]) == (0.5, None)
    assert interval([0.5, None]) is None
    assert interval([]) is None


def test_the_table_counts_what_is_there() -> None:
    cells = [Cell("one", "a", seed, {}) for seed in range(3)]
    row = OLD
    each = [{"test": {"last": row}, "seconds": 120, "device": "cpu"}, {"test": {"last": row}, "seconds": None, "device": "cpu"}]
    each.append({"test": {"last": row}, "seconds": 60, "device": "cuda:1"})
    results = {cell.name: result for cell, result in zip(cells, each, strict=True)}
    (summary,) = summaries(cells, results)
    assert (summary.seeds, summary.minutes) == (3, {"cpu": 2.0, "cuda": 1.0})
    short = {**results, cells[2].name: {**results[cells[2].name], "seconds": 21}}
    assert "| 2 (cpu), 0.3 (cuda) |" in table(cells, short)
    assert "| a | 50.0 ± 0.0 | 40.0 ± 0.0 | 30.0 ± 0.0 | 20.0 ± 0.0 |  | 3 | 2 (cpu), 1 (cuda) |" in table(cells, results)


OLD = {"top1": 0.5, "class_mean": 0.4, "many": None, "medium": 0.3, "few": 0.2}
NEW = {**OLD, "macro_f1": 0.45, "worst_class": 0.1, "ece": 0.25, "ece_many": None, "ece_medium": 0.2, "ece_few": 0.3}


def test_figures_that_older_cells_lack_are_empty() -> None:
    cells = [Cell("one", row, seed, {}) for seed in range(2) for row in "ab"]
    old, new = OLD, NEW

    def rows(*tests: dict[str, float | None], columns: tuple[str, ...] = tables.COLUMNS) -> list[str]:
        results = {cell.name: {"test": {"last": test}, "seconds": None} for cell, test in zip(cells, tests, strict=True)}
        return table(cells, results, columns=columns).splitlines()[2:6]

    head, _, first, second = rows(old, new, old, new)  # seed by seed
    assert head.startswith("|  | top-1 | class mean | medium | few | macro F1 | worst class | ECE | class mean less a's |")
    assert first == "| a | 50.0 ± 0.0 | 40.0 ± 0.0 | 30.0 ± 0.0 | 20.0 ± 0.0 |  |  |  |  | 2 |  |"
    assert second.startswith(
        "| b | 50.0 ± 0.0 | 40.0 ± 0.0 | 30.0 ± 0.0 | 20.0 ± 0.0 | 45.0 ± 0.0 | 10.0 ± 0.0 | 25.0 ± 0.0 | +0.0"
    )
    for missing in ((old, old, old, old), (old, old, old, new)):  # no row has the figure for all of its seeds
        head, _, *both = rows(*missing)
        assert "macro F1" not in head
        assert [row.count("|") for row in both] == [head.count("|")] * 2
    assert rows(old, new, old, new, columns=("few", "ece_few"))[0].startswith("|  | few | ECE few |")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**NEW, "ece": "low"}, "'shapmix last' has a value that is no number"),
        ({**NEW, "many": [1]}, "'shapmix last' has a value that is no number"),
        ({key: value for key, value in OLD.items() if key not in ("many", "few")}, "'shapmix last' lacks many, few"),
    ],
)
def test_a_result_without_its_figures_is_refused(row: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"test": {"shapmix last": row}}))
    with pytest.raises(PlanError, match=f"result.json: not a result: {message}"):
        reached(tmp_path / "result.json")
    (tmp_path / "result.json").write_text(json.dumps({"test": {"shapmix last": OLD}}))
    assert reached(tmp_path / "result.json") == {"shapmix last": OLD}


def test_the_table_has_the_columns_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cell,) = read_plan(written(tmp_path, "rows: {a: {mix: none}}")).cells
    (tmp_path / "cells").mkdir()
    result = {"options": {"mix": "none", "seed": 0}, "test": {"last": NEW}, "seconds": 1, "device": "cpu"}
    (tmp_path / "cells" / f"{cell.name}.json").write_text(json.dumps(result))
    command = [str(tmp_path / "plan.yaml"), "--out", str(tmp_path), "--only-table", "--columns"]
    assert experiment.main([*command, "few", "ece_few"]) == 0
    assert "|  | few | ECE few | class mean less a's" in (tmp_path / "table.md").read_text()
    with pytest.raises(SystemExit):
        experiment.main([*command, "fwe"])
    assert "fwe" in capsys.readouterr().err


def test_a_grid_without_results_has_a_table_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = written(tmp_path, "settings: {x: {}, y: {}}\nrows: {a: {mix: none}, b: {mix: none}}")
    assert experiment.main([str(plan), "--out", str(tmp_path), "--only-table"]) == 0
    text = "**x**\n\nNo result yet: a; b\n\n**y**\n\nNo result yet: a; b\n"
    assert (tmp_path / "table.md").read_text() == text
    assert (tmp_path / "table.png").stat().st_size > 1000
    assert experiment.main([str(plan), "--out", str(tmp_path), "--only-table", "--pairs", "c"]) == 2
    assert "the plan has no row 'c'; it has a, b" in capsys.readouterr().err


def test_results_of_several_versions_are_said() -> None:
    cells = [Cell("one", row, 0, {}) for row in "abc"]
    results = {cell.name: {"commit": commit} for cell, commit in zip(cells, ["0123456789", "0123456789", None], strict=True)}
    assert tables.version_note(cells, results) == "\nTrained by 2 versions (runs): 0123456 (2), unknown (1).\n"
    assert tables.version_note(cells[:2], results) == ""


def test_rows_are_compared_at_the_same_seeds() -> None:
    reached = {("a", 0): 0.2, ("a", 1): 0.6, ("a", 2): 0.9, ("b", 0): 0.3, ("b", 1): 0.72}
    cells = [Cell("one", row, seed, {}) for seed in range(3) for row in "ab"]
    results = {
        cell.name: {"test": {"last": dict.fromkeys(tables.COLUMNS, reached[cell.row, cell.seed])}, "seconds": None}
        for cell in cells
        if (cell.row, cell.seed) in reached
    }
    first, second = summaries(cells, results)
    assert first.gain is None
    assert second.gain == pytest.approx(interval([0.1, 0.12]))
    assert "class mean less a's" in table(cells, results)
    assert "| +11.0 ± 12.7 | 2 |" in table(cells, results)


def test_a_row_is_paired_with_each_other_one_over_all_settings() -> None:
    reached = {("a", "x", 0): 0.5, ("a", "y", 0): 0.5, ("b", "x", 0): 0.3, ("b", "y", 0): 0.6, ("b", "y", 1): 0.9}
    reached["c", "y", 1] = 0.1
    cells = [Cell(setting, row, seed, {}) for row, setting, seed in reached]
    tests = [{"last": {"class_mean": value, "few": None if row == "b" else value}} for (row, *_), value in reached.items()]
    results = {cell.name: {"test": test} for cell, test in zip(cells, tests, strict=True)}
    text = tables.pair_table(cells, results, "a")
    # the settings of a seed are no pairs of their own: one seed has no interval, and c shares no seed with a
    assert text.splitlines()[2:] == ["| b | +5.0 | n/a | 1 of 1 seeds | n/a |"]
    cells += [Cell("x", "a", 1, {})]
    results[cells[-1].name] = {"test": {"last": {"class_mean": 0.7, "few": 0.7}}}
    cells += [Cell("x", "b", 1, {})]
    results[cells[-1].name] = {"test": {"last": {"class_mean": 0.3, "few": None}}}
    text = tables.pair_table(cells, results, "a")
    assert text.splitlines()[2:] == ["| b | +5.0 | n/a | 1 of 1 seeds | n/a |"]  # seed 1 lacks y, in which seed 0 is compared
    cells += [Cell("y", "a", 1, {})]
    results[cells[-1].name] = {"test": {"last": {"class_mean": 1.3, "few": None}}}
    text = tables.pair_table(cells, results, "a")
    assert text.splitlines()[2:] == [
        "| b | +22.5 ± 222.4 | n/a | 2 of 2 seeds | 8 |",  # of 0.05 and 0.4: 12.706 times 0.175
        "| c | +120.0 | n/a | 1 of 1 seeds | n/a |",
    ]


def test_a_result_with_a_list_is_no_pair_of_one_without() -> None:
    cells = [Cell("x", row, seed, {}) for row in "ab" for seed in (0, 1)]
    values = {cell.name: {"test": {"last": {**NEW, "class_mean": 0.25 * at}}, "seconds": None} for at, cell in enumerate(cells)}
    values["x-a-seed-1"]["training_list"] = "11"
    (line,) = tables.pair_table(cells, values, "b").splitlines()[2:]
    assert line.startswith("| a | +50.0 | ")
    assert line.endswith("| 1 of 1 seeds | n/a |")
    assert [row.gain for row in summaries(cells, values)][1] == (0.5, None)


def test_a_cell_of_other_options_is_no_result_of_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "rows: {a: {epochs: 7, mix: none, picture-every: 3}}\n"
    (cell,) = read_plan(written(tmp_path, rows)).cells
    options = {"epochs": 7, "mix": "none", "seed": 0}
    test = {"last": dict.fromkeys(tables.COLUMNS, 0.5)}
    (tmp_path / "cells").mkdir()
    path = tmp_path / "cells" / f"{cell.name}.json"
    path.write_text(json.dumps({"options": options, "test": test, "seconds": 1, "device": "cpu"}))
    assert experiment.main([str(tmp_path / "plan.yaml"), "--out", str(tmp_path), "--only-table"]) == 0
    path.write_text(json.dumps({"options": {**options, "epochs": 8}, "test": test, "seconds": 1, "device": "cpu"}))
    assert experiment.main([str(tmp_path / "plan.yaml"), "--out", str(tmp_path)]) == 2
    assert f"{path} was trained with epochs 8, but the plan has 7; rename the row" in capsys.readouterr().err


def finished(folder: Path, plan: str, lists: dict[tuple[str, str, int], str | None], **test: float) -> Path:
    """A folder with a cell of each (setting, row, seed), trained with the list of this hash."""
    (folder / "cells").mkdir(exist_ok=True)
    for cell in read_plan(written(folder, plan)).cells:
        if (cell.setting, cell.row, cell.seed) in lists:
            of_list = lists[cell.setting, cell.row, cell.seed]
            content = {"options": cell.options, "test": {"last": {**NEW, "clips": 10, **test}}, "seconds": 1, "device": "cpu"}
            content |= {} if of_list is None else {"training_list": of_list}
            (folder / "cells" / f"{cell.name}.json").write_text(json.dumps(content))
    return folder / "plan.yaml"


def test_rows_of_one_seed_share_their_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "settings: {x: {}, y: {n-max: 4}}\nrows: {a: {mix: none}, b: {mix: mixup}}\nseeds: [0, 1]"
    same = {("x", "a", 0): "11", ("x", "b", 0): "11", ("y", "a", 0): "22", ("x", "a", 1): "33", ("x", "b", 1): None}
    plan = finished(tmp_path, text, same)
    command = [str(plan), "--out", str(tmp_path), "--only-table"]
    assert experiment.main(command) == 0
    unknown = "Training list not recorded: 1 of 5 runs. Whether all rows of a seed share it is not checked for these."
    assert (tmp_path / "table.md").read_text().rstrip().splitlines()[-1] == unknown
    finished(tmp_path, text, same | {("x", "b", 1): "33"})
    assert experiment.main(command) == 0
    assert "not recorded" not in (tmp_path / "table.md").read_text()
    finished(tmp_path, text, same | {("x", "b", 1): "44"})
    capsys.readouterr()
    assert experiment.main(command) == 2
    said = capsys.readouterr().err
    assert "x-b-seed-1.json was trained with another list of clips than" in said
    assert "x-a-seed-1.json" in said
    assert "move one of them and its run away to train it again" in said


def test_the_options_of_many_seeds_are_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parse takes longer than the reading of a hundred cells."""
    text = "rows: {a: {mix: none, epochs: 41}, b: {mix: mixup, epochs: 41}}\nseeds: [0, 1, 2, 3, 4]"
    plan = read_plan(finished(tmp_path, text, {("all", row, seed): None for row in "ab" for seed in range(5)}))
    parsed, parse = [], plans.parse_config
    monkeypatch.setattr(plans, "parse_config", lambda argv: (parsed.append(argv), parse(argv))[1])
    assert len(grid.read_results(plan, tmp_path)) == 10
    assert not parsed, "read_plan has parsed these options"
    assert [plans.settled(cell.options)["seed"] for cell in plan.cells if cell.row == "a"] == [0, 1, 2, 3, 4]
    plans.settled({"mix": "none", "epochs": 42})["epochs"] = 7
    assert plans.settled({"mix": "none", "epochs": 42, "seed": 1})["epochs"] == 42
    assert len(parsed) == 1


@pytest.mark.parametrize("wrong", [3, ["11"]])
def test_a_cell_whose_list_is_no_hash_is_no_result(wrong: Any, tmp_path: Path) -> None:
    finished(tmp_path, "rows: {a: {mix: none}}", {("all", "a", 0): wrong})
    with pytest.raises(PlanError, match="not the result of a cell"):
        grid.read_cell(tmp_path / "cells" / "all-a-seed-0.json")


POOLED = """
settings: {one: {}, other: {n-max: 4}, apart: {n-max: 5}}
pools: {both: [one, other]}
rows: {a: {mix: none}, b: {mix: mixup}}
"""


def test_a_pool_is_one_setting_of_all_its_clips(tmp_path: Path) -> None:
    every = [(setting, row, 0) for setting in ("one", "other", "apart") for row in "ab"]
    plan = finished(tmp_path, POOLED, dict.fromkeys(every))
    reached = {"one-a": (30, 0.5), "other-a": (10, 0.9), "apart-a": (7, 0.2), "one-b": (30, 0.6), "other-b": (10, 0.6)}
    for name, (clips, value) in reached.items():
        path = tmp_path / "cells" / f"{name}-seed-0.json"
        test = {"last": {**dict.fromkeys(NEW, value), "many": None, "clips": clips}}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"test": test, "seconds": None if name == "one-a" else 60}))
    (tmp_path / "cells" / "apart-b-seed-0.json").unlink()
    command = [str(plan), "--out", str(tmp_path), "--only-table", "--pairs", "b", "--columns", "top1", "many", "few"]
    assert experiment.main(command) == 0
    text = (tmp_path / "table.md").read_text()
    assert re.findall(r"^\*\*(\w+)\*\*", text, re.MULTILINE) == ["apart", "both"]
    assert "| a | 60.0 | 60.0 |  | 1 | 1 (cpu) |" in text  # (30 * 0.5 + 10 * 0.9) / 40
    assert "| b | 60.0 | 60.0 | +0.0 | 1 | 1 (cpu) |" in text
    assert "| a | +0.0 | +0.0 | 0 of 1 seeds | n/a |" in text  # of the pool: the pairs know no members
    (tmp_path / "cells" / "other-b-seed-0.json").unlink()  # an incomplete pool has no result
    assert experiment.main(command) == 0
    assert "No result yet: b" in (tmp_path / "table.md").read_text().partition("**both**")[2]
    path = tmp_path / "cells" / "one-a-seed-0.json"
    content = json.loads(path.read_text())
    del content["test"]["last"]["clips"]
    path.write_text(json.dumps(content))
    with pytest.raises(PlanError, match="pools: a result of 'both-a-seed-0' does not say how many clips tested it"):
        grid.with_pools(read_plan(plan), grid.read_results(read_plan(plan), tmp_path))


@pytest.mark.parametrize(
    ("pools", "message"),
    [
        ("[one, other]", "pools: a mapping of names to lists of settings"),
        ("{one: [one, other]}", "pools: 'one' is the name of a setting; rename one"),
        ("{all of them: [one, other]}", "pools: 'all of them' is the name of an ensemble; rename one"),
        ("{both: [one]}", "pools: 'both' is a list of two settings or more"),
        ("{both: [one, two]}", "pools: 'both' has no setting 'two'; the plan has one, other, apart"),
        ("{both: [one, other], more: [other, apart]}", "pools: 'other' is named twice; a setting is part of one pool"),
    ],
)
def test_pools_are_of_settings(pools: str, message: str, tmp_path: Path) -> None:
    text = POOLED.replace("{both: [one, other]}", pools) + "ensembles: {all of them: [one, other]}\n"
    with pytest.raises(PlanError, match=re.escape(message)):
        read_plan(written(tmp_path, text))


def test_the_seeds_needed_are_those_that_part_the_interval_from_zero() -> None:
    for values in ([0.05, 0.4], [0.01, 0.02, -0.015, 0.03], [0.1, 0.11, 0.12], [-0.02, 0.01, 0.004, -0.005, 0.001]):
        needed, middle, spread = values_needed(values), abs(mean(values)), stdev(values)
        assert needed is not None
        for count, apart in ((needed, True), (needed - 1, False)):
            quantile = STUDENT[min(count - 1, len(STUDENT)) - 1] if count > 1 else math.inf
            assert (quantile * spread / count**0.5 < middle) is apart, (values, count)
    assert values_needed([0.1]) is values_needed([0.1, -0.1]) is None
    assert values_needed([0.1, 0.1]) == 2


STREAMS = """
base: {network: {widths: [8]}, num_frames: 8, batch_size: 8, mix: none, epochs: 2}
settings: {joint: {}, bone: {stream: bone}}
rows: {plain: {loss: ce}}
ensembles: {both: [joint, bone]}
"""


@pytest.mark.usefixtures("small_cells")
def test_an_ensemble_is_measured_once_its_runs_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_run.make_small_runs(monkeypatch.setattr, small_run.make_small())
    plan, out = written(tmp_path, STREAMS), tmp_path / "out"
    assert experiment.main([str(plan), "--out", str(out), "--devices", "cpu", "--set", "epochs=1"]) == 0
    content = json.loads((out / "cells" / "both-plain-seed-0.json").read_text())
    assert list(content["members"]) == ["joint-plain-seed-0", "bone-plain-seed-0"]
    evaluated = tmp_path / "evaluated"
    runs = [str(out / "runs" / name) for name in content["members"]]
    assert evaluate.main([*runs, "--out", str(evaluated)]) == 0
    expected = json.loads((evaluated / "result.json").read_text())
    assert content["test"]["last"]["class_mean"] == expected["class_mean"]
    assert "**both**" in (out / "table.md").read_text()
    assert json.loads((out / "cells" / "joint-plain-seed-0.json").read_text())["options"]["epochs"] == 1
    member = out / "cells" / "joint-plain-seed-0.json"
    member.write_text(member.read_text() + "\n")  # as if it had been trained again
    assert experiment.main([str(plan), "--out", str(out), "--devices", "cpu", "--set", "epochs=1"]) == 0
    again = json.loads((out / "cells" / "both-plain-seed-0.json").read_text())
    assert again["members"]["joint-plain-seed-0"] != content["members"]["joint-plain-seed-0"]
    capsys.readouterr()
    plan.write_text(STREAMS.replace("[joint, bone]", "[bone, joint]"))
    assert experiment.main([str(plan), "--out", str(out), "--set", "epochs=1", "--only-table"]) == 2
    assert "has other members than the plan's 'both'" in capsys.readouterr().err


def test_a_dry_run_measures_steps_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_run.make_small_runs(monkeypatch.setattr, small_run.make_small())
    guided = "guided: {mix: shapmix, saliency: {every: 2}}"
    text = STREAMS.replace("epochs: 2", "epochs: 100").replace("{plain: {loss: ce}}", f"{{plain: {{loss: ce}}, {guided}}}")
    plan, out = written(tmp_path, text + "seeds: [0, 1]\n"), tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert experiment.main([str(plan), "--out", str(out), "--dry-run", "--devices", "cpu", "cpu"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr().out
    assert said.startswith("8 of 8 cells have no result.\n")
    assert "| joint | guided | 2 | cpu |" in said
    clips = len(small_run.make_small().train)
    (row,) = [line for line in said.splitlines() if line.startswith("| joint | plain |")]
    _, _, _, runs, device, steps, milliseconds, hours, _ = (cell.strip() for cell in row.split("|"))
    assert (runs, device, int(steps)) == ("2", "cpu", 100 * (clips // 8))
    assert float(milliseconds) > 0
    assert float(hours) >= round(int(steps) * float(milliseconds) / 3.6e6, 2) - 0.01
    assert "All on one cpu: " in said
    assert "On cpu, cpu together: about " in said


ENDLESS = """
base: {network: {widths: [8]}, num_frames: 8, batch_size: 8, n_max: 8, imbalance: 4, epochs: 100000, checkpoint: {every_steps: 1}}
rows: {plain: {mix: none, loss: ce}}
"""


def started(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """A grid whose cell is behind a new checkpoint, and the process that trains it."""
    run = folder / "out/runs/all-plain-seed-0"
    last, begin = run / "checkpoints/last.pt", time.time()
    command = [sys.executable, "-m", "shapmix.experiment", "plan.yaml", "--out", "out", "--devices", "cpu"]
    grid = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 300
    while not (last.exists() and last.stat().st_mtime > begin):
        assert grid.poll() is None, grid.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)
    return grid, json.loads((run / "lock").read_text())["pid"]


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_grid_takes_its_trainers_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = written(tmp_path, ENDLESS)
    grid, trainer = started(tmp_path)
    assert experiment.main([str(plan), "--out", str(tmp_path / "out")]) == 2  # a second grid in its folder
    assert f"out: process {grid.pid} on " in capsys.readouterr().err
    grid.send_signal(signal.SIGTERM)
    said = grid.communicate(timeout=300)[1]
    assert grid.returncode == 143, said
    assert "out: stopped after 0 of 1 cells; the same command resumes" in said
    assert not is_alive(trainer)
    assert "; resume with --resume out/runs" in (tmp_path / "out/logs/all-plain-seed-0.txt").read_text()
    grid, trainer = started(tmp_path)
    grid.send_signal(signal.SIGKILL)
    grid.communicate()
    until = time.monotonic() + 300
    while is_alive(trainer):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert not (tmp_path / "out/runs/all-plain-seed-0/lock").exists()  # it was asked to stop, and saved


def test_a_trainer_whose_grid_is_gone_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "_SHAPMIX_PARENT": "1" if os.getppid() != 1 else "2"}
    command = [sys.executable, "-m", "shapmix.train", "--run-dir", "run"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 143
    assert "has ended; nothing was started" in process.stderr
    assert not (tmp_path / "run").exists()
