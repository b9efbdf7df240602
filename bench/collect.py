"""Collects finished training runs into a results file: `python -m bench.collect RUN... --out bench/results/NAME.json`.

Copies the records of the runs (configuration, test accuracy, epochs) and adds the commit and machine on which they were collected.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from bench.machine import commit, machine


def collect(run: Path) -> dict[str, Any]:
    """The records of one run directory."""
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    config = yaml.safe_load((run / "config.yaml").read_text())
    config.pop("data_root")
    return {"config": config, "test": json.loads((run / "result.json").read_text())["test"], "epochs": epochs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    command = f"python -m bench.collect {' '.join(run.name for run in arguments.runs)}"
    content = {
        "command": command,
        "commit": commit(),
        "machine": machine(),
        "runs": {run.name: collect(run) for run in arguments.runs},
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
