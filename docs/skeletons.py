"""Sections of the page about layouts: the picture, the source of the order and the joints of each, from its file."""

from __future__ import annotations

from itertools import takewhile

from shapmix.pictures.skeletons import layout_svg
from shapmix.skeleton.layout import BUILT_IN, layout_text, load_layout
from shapmix.skeleton.summary import heading, joint_rows

MARK = "<!-- layouts -->"


def pictures() -> dict[str, str]:
    """File among the site's sources -> SVG, of every built-in layout."""
    return {f"layouts/{name}.svg": layout_svg(load_layout(name)) for name in BUILT_IN}


def sections() -> str:
    """Markdown of all built-in layouts."""
    return "\n".join(map(_section, BUILT_IN))


def _section(name: str) -> str:
    layout = load_layout(name)
    comment = takewhile(lambda line: line.startswith("#"), layout_text(name).splitlines())
    rows = "\n".join(f"| {' | '.join(row)} |" for row in joint_rows(layout))
    about = " ".join(line.removeprefix("#").strip() for line in comment)
    table = f"| | joint | parent | mirrored | part |\n|---|---|---|---|---|\n{rows}\n"
    return (
        f"## {name}\n\n{about}\n\n{heading(layout)}.\n\n![Joints, bones and parts of {name}](layouts/{name}.svg)\n\n"
        f'<details markdown="1"><summary>Joints</summary>\n\n{table}\n</details>\n'
    )
