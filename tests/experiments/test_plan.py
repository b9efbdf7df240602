"""What a plan may say beside its grid: changes from the command line, ensembles, published figures, hashes of lists."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from shapmix import experiment
from shapmix.experiments.cells import ensembles
from shapmix.experiments.plan import PlanError, check_lists, read_plan
from shapmix.experiments.tables import Summary, plot, table
from shapmix.training.metrics import HEADS

PLAN = """
base: {network: {widths: [8, 16]}, mix: none}
settings:
  joint: {stream: joint}
  bone: {stream: bone}
rows: {a: {loss: ce}, b: {network: {graph_gain: 1.0}}}
seeds: [0, 1]
ensembles: {two streams: [joint, bone]}
published:
  source: A paper, table 1
  joint: {a: 81.25}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text)
    return path


def test_a_row_adds_to_the_group_of_the_base(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, PLAN))
    assert next(cell for cell in plan.cells if cell.row == "b").options["network"] == {"widths": [8, 16], "graph_gain": 1.0}


def test_options_of_the_command_line_win_over_the_plan(tmp_path: Path) -> None:
    changes = ["epochs=7", "network.widths=[8]", "graph-gain=2", "mix=mixup"]
    with pytest.raises(Exception, match="graph-gain"):
        read_plan(written(tmp_path, PLAN), changes=changes)
    plan = read_plan(written(tmp_path, PLAN), changes=[change for change in changes if "gain" not in change])
    for cell in plan.cells:
        assert (cell.options["epochs"], cell.options["network"]["widths"], cell.options["mix"]) == (7, [8], "mixup")
    for wrong in ("epochs", "=3"):
        with pytest.raises(PlanError, match=f"set: '{wrong}' is no KEY=VALUE"):
            read_plan(written(tmp_path, PLAN), changes=[wrong])


def test_an_ensemble_is_a_setting_of_the_table(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, PLAN))
    found = ensembles(plan)
    assert [cell.name for cell, _ in found] == [f"two-streams-{row}-seed-{seed}" for seed in (0, 1) for row in "ab"]
    assert [cell.name for cell in found[0][1]] == ["joint-a-seed-0", "bone-a-seed-0"]


def test_published_figures_stand_beside_empty_cells(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, PLAN))
    text = table(plan.cells, {}, published=plan.published, source=plan.source)
    assert "|  | published top-1 |" in text
    assert "| a | 81.2 | n/a |" in text
    assert text.count("No result yet: b") == 1
    assert text.count("No result yet: a; b") == 1
    assert text.endswith("Published: A paper, table 1\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "two streams: [joint, bone]",
            "two streams: [joint, bones]",
            "'two streams' has no setting 'bones'; the plan has joint, bone",
        ),
        ("two streams: [joint, bone]", "two streams: [joint]", "'two streams' is a list of two settings or more"),
        ("two streams: [joint, bone]", "joint: [joint, bone]", "ensembles: 'joint' is the name of a setting"),
        ("  source: A paper, table 1\n", "", "say where the figures stand, as source"),
        ("joint: {a: 81.25}", "joints: {a: 81.25}", "'joints' is no setting with percentages"),
        ("joint: {a: 81.25}", "joint: {c: 81.25}", "'c: 81.25' is no row of the plan"),
        ("joint: {a: 81.25}", "joint: {a: 812.5}", "'a: 812.5' is no row of the plan with a percentage"),
        ("seeds:", "lists: {joints: '00'}\nseeds:", "lists: SHA-256 of training lists by setting; the settings are joint, bone"),
    ],
)
def test_what_a_plan_does_not_have_is_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in PLAN
    with pytest.raises(PlanError, match=message):
        read_plan(written(tmp_path, PLAN.replace(old, new)))


def test_another_list_than_the_plans_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = tmp_path / "list.txt"
    names.write_text("two\none\n")  # in any order
    text = "base: {dataset: store, data-root: a.store, train-list: LIST}\nrows: {a: {mix: none}}\nlists: {all: 'HASH'}\n"
    text = text.replace("LIST", str(names))
    check_lists(read_plan(written(tmp_path, text.replace("HASH", hashlib.sha256(b"one\ntwo").hexdigest()))))
    assert experiment.main([str(written(tmp_path, text)), "--out", str(tmp_path / "out")]) == 2
    assert "setting 'all': " in (said := capsys.readouterr().err)
    assert "is another list: its names have SHA-256 " in said
    with pytest.raises(PlanError, match="setting 'all' has no train-list"):
        check_lists(read_plan(written(tmp_path, text.replace(f", train-list: {names}", ""))))


def test_the_plot_has_room_for_many_settings(tmp_path: Path) -> None:
    """A warning is an error here: axes without room have one."""
    columns = dict.fromkeys(HEADS, (0.5, 0.1))
    plot(tmp_path / "table.png", [Summary(f"setting {at}", "a", 2, columns, None, {}) for at in range(12)])
    assert (tmp_path / "table.png").stat().st_size > 1000
