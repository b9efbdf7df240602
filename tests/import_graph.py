"""Which package of shapmix imports which: `python tests/import_graph.py [FOLDER]` prints rooms, floors and arrows.

A room is a package below `shapmix/` or a module at its top; an arrow is one room that imports another. A room's floor is one
above the highest room that it imports. An arrow is backward where it points up or sideways inside a circle of rooms, so that
no order of floors explains it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Graph(NamedTuple):
    """Arrows between rooms, each with the imports that make it (`file:line`), and the floor of every room."""

    arrows: dict[tuple[str, str], list[str]]
    floors: dict[str, int]
    backward: list[tuple[str, str]]


def import_graph(root: Path = ROOT) -> Graph:
    """Reads the imports of every module of the package, also those inside functions and under TYPE_CHECKING."""
    modules = dict(sorted(find_modules(root)))
    arrows: dict[tuple[str, str], list[str]] = {}
    for name, path in modules.items():
        for line, target in imported(name, path, set(modules)):
            ends = room(name, modules), room(target, modules)
            if ends[0] != ends[1]:
                arrows.setdefault(ends, []).append(f"{path.relative_to(root)}:{line}")
    rooms = {room(name, modules) for name in modules} - {"shapmix"}
    arrows = {ends: places for ends, places in arrows.items() if "shapmix" not in ends}  # the package's own front door
    backward = sorted(ends for ends in arrows if reaches(ends[1], ends[0], arrows))
    floors: dict[str, int] = {}
    for name in sorted(rooms):
        floor(name, {ends for ends in arrows if ends not in backward}, floors)
    return Graph(arrows, floors, backward)


def find_modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Dotted names of all modules, also of `shapmix/kernels`, which is a link and so is not entered by `Path.rglob`."""
    for file in glob("shapmix/**/*.py", root_dir=root, recursive=True):
        yield ".".join(part for part in Path(file).with_suffix("").parts if part != "__init__"), root / file


def imported(name: str, path: Path, modules: set[str]) -> Iterator[tuple[int, str]]:
    """(line, module of the package) of every import of a module."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                deeper = f"{base}.{alias.name}"
                if deeper in modules or base in modules:
                    yield node.lineno, deeper if deeper in modules else base


def room(name: str, modules: dict[str, Path]) -> str:
    """The package that holds a module (`data/sources` is one of its own), or the module itself at the top."""
    parts = name.split(".")[1:]
    if not parts:
        return "shapmix"
    packages = [".".join(["shapmix", *parts[:depth]]) for depth in range(1, len(parts) + 1)]
    inside = [package for package in packages if modules.get(package, Path()).name == "__init__.py"]
    return (inside[-1] if inside else name).removeprefix("shapmix.").replace(".", "/")


def reaches(start: str, end: str, arrows: dict[tuple[str, str], list[str]]) -> bool:
    """Whether arrows lead from `start` to `end`."""
    seen, waiting = set[str](), [start]
    while waiting:
        here = waiting.pop()
        if here == end:
            return True
        if here not in seen:
            seen.add(here)
            waiting.extend(target for source, target in arrows if source == here)
    return False


def floor(name: str, arrows: set[tuple[str, str]], floors: dict[str, int]) -> int:
    """Floor of a room, 0 for one that imports no other; fills `floors`."""
    if name not in floors:
        floors[name] = 1 + max((floor(target, arrows, floors) for source, target in arrows if source == name), default=-1)
    return floors[name]


def main() -> None:
    graph = import_graph(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT)
    levels = sorted(set(graph.floors.values()), reverse=True)
    for level in levels:
        print(f"floor {level}: {', '.join(sorted(name for name, at in graph.floors.items() if at == level))}")
    print(f"{len(graph.floors)} rooms on {len(levels)} floors, {len(graph.arrows)} arrows, {len(graph.backward)} backward")
    for ends in graph.backward:
        print(f"backward: {ends[0]} -> {ends[1]}: {', '.join(graph.arrows[ends])}")


if __name__ == "__main__":
    main()
