"""The tests' own order: folders as the rooms of the package, and no test that imports another."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

from tests.gpu.suite import GPU_FILES

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
FILES = sorted(TESTS.rglob("test_*.py"))
OUTSIDE = {"bench", "commands", "project"}  # folders that mirror no package of shapmix


def imported(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, and of what it takes from them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_no_test_imports_a_test() -> None:
    modules = {path.stem for path in FILES} | {"conftest"}
    guilty = {str(path.relative_to(TESTS)): modules & set(".".join(imported(path)).split(".")) for path in TESTS.rglob("*.py")}
    assert {file: found for file, found in guilty.items() if found} == {}, "move what they share into a module beside them"


def test_every_test_lies_in_the_room_of_what_it_tests() -> None:
    rooms = {path.parent.name for path in ROOT.glob("shapmix/*/__init__.py")}
    assert {path.parent.relative_to(TESTS).as_posix() for path in FILES} <= rooms | OUTSIDE


def test_names_of_test_files_are_unique() -> None:
    """pytest imports them by their base names."""
    assert [name for name, count in Counter(path.name for path in FILES).items() if count > 1] == []


def test_the_gpu_suite_names_files_that_exist() -> None:
    assert [file for file in GPU_FILES if not (TESTS / file).is_file()] == []
