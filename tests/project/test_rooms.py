"""The rooms of the package: which imports which, and what may stand at the top."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from tests.import_graph import ROOT, import_graph

COMMANDS = {"train", "prepare", "evaluate", "predict", "explain", "report", "export", "experiment", "doctor"}
FLOORS = 9
LONGEST = 50  # lines of a function, without its docstring


def test_a_package_imports_only_downward() -> None:
    graph = import_graph()
    places = {f"{upper} -> {lower}": graph.arrows[upper, lower] for upper, lower in graph.backward}
    assert places == {}, "python tests/import_graph.py shows all arrows"
    assert len(set(graph.floors.values())) <= FLOORS


def test_verbs_are_commands_and_nouns_are_packages() -> None:
    top = {path.stem for path in (ROOT / "shapmix").glob("*.py")} - {"__init__", "__main__"}
    assert top == COMMANDS
    for name in COMMANDS:
        body = ast.parse((ROOT / "shapmix" / f"{name}.py").read_text(encoding="utf-8")).body
        assert any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in body), name


def test_no_package_imports_a_command() -> None:
    arrows = import_graph().arrows
    assert {ends: places for ends, places in arrows.items() if ends[1] in COMMANDS and ends[0] not in {*COMMANDS, "__main__"}} == {}


def test_an_arrow_that_points_up_is_found(tmp_path: Path) -> None:
    for package in ("shapmix", "shapmix/low", "shapmix/high"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "shapmix/high/roof.py").write_text("from shapmix.low import floor\n")
    (tmp_path / "shapmix/low/floor.py").write_text("def late():\n    from shapmix.high.roof import tile\n")
    command = [sys.executable, str(ROOT / "tests" / "import_graph.py"), str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "2 backward" in shown
    assert "backward: low -> high: shapmix/low/floor.py:2" in shown


def test_functions_fit_on_a_screen() -> None:
    """Kernels apart, whose loops and argument checks are one piece."""
    long = {}
    for path in {*(ROOT / "shapmix").rglob("*.py")} - {*(ROOT / "shapmix" / "kernels").rglob("*.py")}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                if lines > LONGEST:
                    long[f"{path.relative_to(ROOT)}: {node.name}"] = lines
    assert long == {}
