"""The long-tail bench: `python -m shapmix.experiment PLAN.yaml --out FOLDER` trains a grid of runs and tables what they reach.

A plan names the rows of the table, the settings that each row is trained in, and the seeds; what a name means are options of
`python -m shapmix.train`:

```yaml
base: {preset: nw-ucla-lt, data-root: DIR}
settings:
  imbalance 10: {imbalance: 10, epochs: 250}
rows:
  plain: {mix: none, loss: ce}
  Shap-Mix: {mix: shapmix}
seeds: [0, 1, 2]
```

Every cell is a run of its own process. What it reached stands in `FOLDER/cells/`, one small file a cell; a grid that is started
again trains only the cells that have none, and goes on with runs that were cut off. A cell that was trained with other options than
the plan now has is an error. Cells that fail are listed with the end of their log and keep no other from running.

The table has means over the seeds with 95% intervals, and how far each row's class mean lies from the first row's at the same
seeds: rows of a seed share their training clips, so that these differences vary less than the accuracies do.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from shapmix.process.command import WRONG, read_options, run_command
from shapmix.process.files import only_writer, write_whole
from shapmix.process.signals import StopRequest, stop_requests
from shapmix.training.grid import Cell, PlanError, only, read_plan, read_results, run_cells
from shapmix.training.grid_table import pair_table, plot, summaries, table


@dataclass(frozen=True)
class ExperimentConfig:
    """Train a grid of runs, or table what is there of it."""

    plan: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PLAN.yaml")]
    """YAML file of the grid."""
    out: Path
    """Folder of cells, runs, table and plot; may hold an earlier part of the same grid."""
    data_root: Path | None = None
    """Folder of the data set, in place of the plan's."""
    devices: tuple[str, ...] = ("auto",)
    """One run at a time on each; `cpu cpu` runs two, each on its share of the cores."""
    rows: tuple[str, ...] = ()
    """Train these rows alone, where some are wanted before others; the table has all."""
    checkpoint: str = "last"
    """Whose test accuracy is tabled: last, or best on validation."""
    pairs: str | None = None
    """Add a table of how far this row lies from each other one, at the same seeds of all settings together."""
    only_table: bool = False
    """Train nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code of `shapmix.process.command`, 1 where a cell failed."""
    with stop_requests() as request:
        return run_command(lambda: WRONG if run_experiment(read_options(ExperimentConfig, argv, "experiment"), request) else 0)


def run_experiment(config: ExperimentConfig, request: StopRequest) -> list[Cell]:
    """Trains what is missing, writes and prints the table; returns the cells that failed.

    Raises:
        PlanError, ConfigError, OSError: a plan or results that cannot be used.
        InUseError: another process trains the grid in this folder.
        Interruption: a signal asked for a stop.
    """
    cells = read_plan(config.plan, config.data_root)
    read_results(cells, config.out)  # before hours of training: what is there fits the plan
    if config.pairs is not None:
        only(cells, [config.pairs])
    failed: list[Cell] = []
    if not config.only_table:
        config.out.mkdir(parents=True, exist_ok=True)
        with only_writer(config.out, config.out / "lock"):
            failed = run_cells(only(cells, config.rows), config.out, config.devices, request)
    results = read_results(cells, config.out)
    for name, found in results.items():
        if config.checkpoint not in found["test"]:
            raise PlanError(f"checkpoint: cell '{name}' has no result of '{config.checkpoint}', but of {', '.join(found['test'])}")
    text = table(cells, results, config.checkpoint)
    if config.pairs is not None:
        text += "\n" + pair_table(cells, results, config.pairs, config.checkpoint)
    write_whole(config.out / "table.md", text)
    plot(config.out / "table.png", list(summaries(cells, results, config.checkpoint)))
    print(text)
    return failed


if __name__ == "__main__":
    sys.exit(main())
