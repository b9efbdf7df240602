"""`python -m shapmix.doctor`: what this installation can run, and whether it computes what the reference computes.

Exits with 1 where a back end that can run disagrees with the reference. With `--layout` it shows a skeleton instead: its joints, a
picture, and what looks like a mistake, which also exits with 1. `--json` prints the same for machines.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shapmix.kernels import BackendError, installation
from shapmix.kernels.steps import tile_of_joints
from shapmix.pictures.skeletons import layout_svg
from shapmix.process.command import WRONG, read_options, run_command
from shapmix.process.errors import RunError
from shapmix.process.files import check_output_file, write_whole
from shapmix.skeleton.doubts import doubts
from shapmix.skeleton.layout import load_layout
from shapmix.skeleton.summary import joint_rows, summary
from shapmix.training import precision


@dataclass(frozen=True)
class DoctorConfig:
    """Show what this installation can run, and check every back end that can run against the reference; or show a skeleton."""

    layout: str | None = None
    """Skeleton layout to show instead: a built-in name or a .toml file."""
    picture: Path | None = None
    """File of the layout's picture, an .svg; None: NAME.svg in this folder."""
    json: bool = False
    """Print one JSON object."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code of `shapmix.process.command`, 1 where a back end disagrees with the reference."""
    return run_command(lambda: diagnose(read_options(DoctorConfig, argv, "doctor")))


def diagnose(config: DoctorConfig) -> int:
    """Prints the report; returns the exit code."""
    if config.layout is not None:
        return show_layout(config.layout, config.picture, as_json=config.json)
    if config.picture is not None:
        raise RunError("--picture belongs to --layout: give the layout to draw")
    report = installation.examine()
    report["processor"]["training on the CPU"] = recommended_precision()
    if config.json:
        print(json.dumps(report, indent=2))
    else:
        width = max(len(line) for lines in report.values() for line in lines)
        for section, lines in report.items():
            print(section)
            for line, text in lines.items():
                print(f"  {line:<{width}}  {text}")
    return WRONG if any(text.startswith(installation.WRONG) for text in report["back ends"].values()) else 0


def recommended_precision() -> str:
    """The recommendation of `shapmix.training.precision`, or why none could be measured: the doctor reports that, and goes on."""
    try:
        return precision.recommended()
    except BackendError as error:
        return f"not measured: {error}"


def show_layout(name: str, picture: Path | None, *, as_json: bool) -> int:
    """Draws a layout and prints its joints and what looks like a mistake; returns the exit code.

    Raises:
        LayoutError: the layout is invalid.
        RunError: the picture is not an .svg.
        OSError: it cannot be written.
    """
    layout = load_layout(name)
    file = picture or Path(f"{Path(name).stem}.svg")
    if file.suffix != ".svg":
        raise RunError(f"--picture {file}: the picture is an .svg; give a file with that ending")
    check_output_file(file)
    found, tile = doubts(layout), tile_of_joints(layout.num_joints)
    write_whole(file, layout_svg(layout))
    if as_json:
        joints = [dict(zip(("joint", "parent", "mirrored", "part"), row[1:], strict=True)) for row in joint_rows(layout)]
        about = {"name": layout.name, "dimensions": layout.dimensions, "up": layout.up, "joints": joints}
        print(json.dumps({**about, "fused layers": tile, "doubts": found, "picture": str(file)}, indent=2))
    else:
        print(summary(layout))
        print(f"fused layers on a GPU: {tile}")
        print(f"picture: {file}")
        print("\n".join(f"mistake? {doubt}" for doubt in found) or "no mistakes found")
    return WRONG if found else 0


if __name__ == "__main__":
    sys.exit(main())
