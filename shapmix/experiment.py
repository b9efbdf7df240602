"""Long-tail benchmark: `python -m shapmix.experiment PLAN.yaml --out FOLDER` trains a grid of runs and tabulates their results.

A plan defines the rows of the table, the settings in which each row is trained, and the seeds, as options of
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

Every cell is a run in a separate process. Results are stored in `FOLDER/cells/`, one small file per cell; a restarted grid trains
only cells without a result, and resumes interrupted runs. A cell that was trained with different options than the plan is an error.
Failed cells are listed with the end of their log and do not stop the others.

The table has means over the seeds with 95% intervals, and the paired difference of each row's class mean to the first row: rows of
one seed share their training clips, so these differences vary less than the accuracies.
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
from shapmix.training.grid_table import COLUMNS, pair_table, plot, summaries, table
from shapmix.training.metrics import Column


@dataclass(frozen=True)
class ExperimentConfig:
    """Train a grid of runs, or tabulate its results."""

    plan: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PLAN.yaml")]
    """YAML file of the grid."""
    out: Path
    """Folder of cells, runs, table and plot; may contain an unfinished run of the same grid."""
    data_root: Path | None = None
    """Folder of the data set; overrides the plan."""
    devices: tuple[str, ...] = ("auto",)
    """Devices, each with one run at a time; `cpu cpu` runs two, with half of the cores each."""
    rows: tuple[str, ...] = ()
    """Train only these rows; the table has all rows."""
    checkpoint: str = "last"
    """Checkpoint whose test accuracy is tabulated: last, or best on validation."""
    columns: tuple[Column, ...] = COLUMNS
    """Columns of the table; ece is the expected calibration error. A column that no result has is left out."""
    pairs: str | None = None
    """Add a table of paired differences between this row and each other row."""
    only_table: bool = False
    """Only write the table; train nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code of `shapmix.process.command`, 1 if a cell failed."""
    with stop_requests() as request:
        return run_command(lambda: WRONG if run_experiment(read_options(ExperimentConfig, argv, "experiment"), request) else 0)


def run_experiment(config: ExperimentConfig, request: StopRequest) -> list[Cell]:
    """Trains the missing cells, writes and prints the table; returns the failed cells.

    Raises:
        PlanError, ConfigError, OSError: the plan or results cannot be used.
        InUseError: another process trains a grid in this folder.
        Interruption: stopped by a signal.
    """
    cells = read_plan(config.plan, config.data_root)
    read_results(cells, config.out)  # checks existing results against the plan before hours of training
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
            raise PlanError(f"checkpoint: cell '{name}' has no result of '{config.checkpoint}', only of {', '.join(found['test'])}")
    text = table(cells, results, config.checkpoint, config.columns)
    if config.pairs is not None:
        text += "\n" + pair_table(cells, results, config.pairs, config.checkpoint)
    write_whole(config.out / "table.md", text)
    plot(config.out / "table.png", list(summaries(cells, results, config.checkpoint)))
    print(text)
    return failed


if __name__ == "__main__":
    sys.exit(main())
