"""The long-tail benchmark: a grid trains every cell once, resumes, isolates failures, and tabulates results."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from shapmix import evaluate, experiment
from shapmix.experiments import cells as grid
from shapmix.experiments import tables
from shapmix.experiments.cells import reached
from shapmix.experiments.plan import Cell, PlanError, only, read_plan
from shapmix.experiments.tables import interval, summaries, table
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
    ],
)
def test_a_wrong_plan_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=message):
        read_plan(written(tmp_path, text))


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
    assert (tmp_path / "table.md").read_text().count("No result yet: a, b") == 2
    assert (tmp_path / "table.png").stat().st_size > 1000
    assert experiment.main([str(plan), "--out", str(tmp_path), "--only-table", "--pairs", "c"]) == 2
    assert "the plan has no row 'c'; it has a, b" in capsys.readouterr().err


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
    assert text.splitlines()[2:] == ["| b | +5.0 | n/a | 1 of 1 seeds |"]
    cells += [Cell("x", "a", 1, {})]
    results[cells[-1].name] = {"test": {"last": {"class_mean": 0.7, "few": 0.7}}}
    cells += [Cell("x", "b", 1, {})]
    results[cells[-1].name] = {"test": {"last": {"class_mean": 0.3, "few": None}}}
    text = tables.pair_table(cells, results, "a")
    assert text.splitlines()[2:] == ["| b | +22.5 ± 222.4 | n/a | 2 of 2 seeds |"]  # of 0.05 and 0.4: 12.706 times 0.175


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
    assert content["members"] == ["joint-plain-seed-0", "bone-plain-seed-0"]
    evaluated = tmp_path / "evaluated"
    runs = [str(out / "runs" / name) for name in content["members"]]
    assert evaluate.main([*runs, "--out", str(evaluated)]) == 0
    expected = json.loads((evaluated / "result.json").read_text())
    assert content["test"]["last"]["class_mean"] == expected["class_mean"]
    assert "**both**" in (out / "table.md").read_text()
    assert json.loads((out / "cells" / "joint-plain-seed-0.json").read_text())["options"]["epochs"] == 1
    capsys.readouterr()
    plan.write_text(STREAMS.replace("[joint, bone]", "[bone, joint]"))
    assert experiment.main([str(plan), "--out", str(out), "--set", "epochs=1", "--only-table"]) == 2
    assert "has other members than the plan's 'both'" in capsys.readouterr().err


def test_a_dry_run_measures_steps_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_run.make_small_runs(monkeypatch.setattr, small_run.make_small())
    plan, out = written(tmp_path, STREAMS.replace("epochs: 2", "epochs: 100") + "seeds: [0, 1]\n"), tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert experiment.main([str(plan), "--out", str(out), "--dry-run", "--devices", "cpu", "cpu"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr().out
    assert said.startswith("4 of 4 cells have no result.\n")
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
