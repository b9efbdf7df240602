"""Draws the packages of shapmix by floor, from their imports: `python docs/rooms.py` writes docs/rooms.svg."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from textwrap import wrap
from xml.sax.saxutils import escape

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.import_graph import import_graph  # noqa: E402  (the repository's top is not on the path before)

PICTURE = ROOT / "docs" / "rooms.svg"
WIDTH, MARGIN, GAP = 900, 16, 14
LINE, CHARACTER = 15, 6.3  # height of a line of text, width of a letter
COMMAND, PACKAGE = "#fdebd3", "#e3eef9"


def draw() -> str:
    """The picture: a room stands above every room that it imports."""
    floors = import_graph().floors
    boxes: list[str] = []
    y = MARGIN
    for level in sorted(set(floors.values()), reverse=True):
        rooms = sorted((name for name, at in floors.items() if at == level), key=lambda name: (not is_command(name), name))
        width = (WIDTH - 2 * MARGIN - GAP * (len(rooms) - 1)) / len(rooms)
        texts = [wrap(about(name), int((width - 20) / CHARACTER)) for name in rooms]
        height = 32 + LINE * max(map(len, texts))
        for number, (name, lines) in enumerate(zip(rooms, texts, strict=True)):
            boxes += box(MARGIN + number * (width + GAP), y, width, height, name, lines)
        y += height + GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y - GAP + MARGIN}" font-family="system-ui, sans-serif">'
    title = "<title>Packages and commands of shapmix: each imports only from floors below its own</title>"
    return "\n".join([head, title, '<rect width="100%" height="100%" rx="8" fill="#ffffff"/>', *boxes, "</svg>\n"])


def box(x: float, y: float, width: float, height: float, name: str, lines: list[str]) -> list[str]:
    """One room."""
    fill = COMMAND if is_command(name) else PACKAGE
    text = [
        f'<text x="{x + 10:.0f}" y="{y + 36 + LINE * number:.0f}" font-size="11.5" fill="#33475b">{escape(line)}</text>'
        for number, line in enumerate(lines)
    ]
    return [
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="6" fill="{fill}" stroke="#33516e"/>',
        f'<text x="{x + 10:.0f}" y="{y + 20:.0f}" font-size="14" font-weight="600" fill="#16283a">{escape(name)}</text>',
        *text,
    ]


def is_command(name: str) -> bool:
    """Whether a room is a module at the package's top."""
    return (ROOT / "shapmix" / f"{name}.py").exists()


def about(name: str) -> str:
    """First sentence of a package's docstring; nothing for a command, whose name says it."""
    if is_command(name):
        return ""
    docstring = ast.get_docstring(ast.parse((ROOT / "shapmix" / name / "__init__.py").read_text(encoding="utf-8"))) or ""
    return docstring.split("\n")[0].rstrip(".").replace("`", "")


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
