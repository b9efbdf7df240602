"""`python -m shapmix.doctor`: what this installation can run, and whether it computes what the reference computes.

Exits with 1 where a back end that can run disagrees with the reference. `--json` prints the same for machines.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from shapmix.kernels import installation
from shapmix.process.command import WRONG, read_options, run_command


@dataclass(frozen=True)
class DoctorConfig:
    """Show what this installation can run, and check every back end that can run against the reference."""

    json: bool = False
    """Print one JSON object."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code of `shapmix.process.command`, 1 where a back end disagrees with the reference."""
    return run_command(lambda: diagnose(read_options(DoctorConfig, argv, "doctor")))


def diagnose(config: DoctorConfig) -> int:
    """Prints the report; returns the exit code."""
    report = installation.examine()
    if config.json:
        print(json.dumps(report, indent=2))
    else:
        width = max(len(line) for lines in report.values() for line in lines)
        for section, lines in report.items():
            print(section)
            for line, text in lines.items():
                print(f"  {line:<{width}}  {text}")
    return WRONG if any(text.startswith(installation.WRONG) for text in report["back ends"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
