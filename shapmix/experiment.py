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

Every cell is a run in a separate process: on this machine, as a SLURM job or as a task of a Ray cluster (`--on`). Results are
stored in `FOLDER/cells/`, one small file per cell; a restarted grid trains only cells without a result and resumes interrupted
runs. A cell that was trained with different options than the plan is an error. Failed cells are listed with the end of their log;
the others go on. A plan may also name ensembles and pools of its settings, published
results, and the hashes of its training lists.

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

from shapmix.experiments.cells import ensembles, measure_ensembles, read_results, with_pools
from shapmix.experiments.engines import ENGINES, EngineOptions, train_cells
from shapmix.experiments.forecast import forecast
from shapmix.experiments.plan import Cell, PlanError, check_lists, only, read_plan
from shapmix.experiments.tables import COLUMNS, list_note, pair_table, plot, summaries, table, version_note
from shapmix.process.command import WRONG, RegisteredName, read_options, run_command
from shapmix.process.device import choose_device
from shapmix.process.files import only_writer, write_whole
from shapmix.process.signals import StopRequest, stop_requests
from shapmix.training.metrics import Column
from shapmix.training.trained import CheckpointOptions


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig(EngineOptions, CheckpointOptions):
    """Train a grid of runs, or tabulate its results."""

    plan: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PLAN.yaml")]
    """YAML file of the grid."""
    out: Path
    """Folder of cells, runs, table and plot; may contain an unfinished run of the same grid."""
    data_root: Path | None = None
    """Folder of the data set; overrides the plan."""
    set: tuple[str, ...] = ()
    """KEY=VALUE options of the trainer that every cell gets, such as epochs=2 network.widths=[8,16]."""
    on: Annotated[str, RegisteredName(ENGINES)] = "local"
    """Where cells are trained: in processes on this machine, as SLURM jobs, or as tasks of a Ray cluster."""
    rows: tuple[str, ...] = ()
    """Train only these rows; the table has all rows."""
    columns: tuple[Column, ...] = COLUMNS
    """Columns of the table; ece is the expected calibration error. A column that no result has is left out."""
    pairs: tuple[str, ...] = ()
    """Rows that each other row is compared with, seed by seed; a table for each."""
    only_table: bool = False
    """Only write the table; train nothing."""
    dry_run: bool = False
    """Measure a few steps of each kind of cell on each of --devices, print the hours of the grid, and write nothing."""


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
    if not config.devices:
        raise PlanError("devices: give at least one")
    plan = read_plan(config.plan, config.data_root, config.set)
    results = read_results(plan, config.out)  # checks existing results against the plan before hours of training
    only(plan.cells, list(config.pairs))
    wanted = only(plan.cells, config.rows)
    if not config.only_table:
        check_lists(plan)
    if config.dry_run:
        print(forecast(plan, [cell for cell in wanted if cell.name not in results], config.devices, request))
        return []
    failed: list[Cell] = []
    if not config.only_table:
        config.out.mkdir(parents=True, exist_ok=True)
        with only_writer(config.out, config.out / "lock"):
            failed = train_cells(wanted, config.out, config.on, config, request)
            measure_ensembles(plan, config.out, config.checkpoint, choose_device(config.devices[0]))
    results = read_results(plan, config.out)
    for name, found in results.items():
        if config.checkpoint not in found["test"]:
            raise PlanError(f"checkpoint: cell '{name}' has no result of '{config.checkpoint}', only of {', '.join(found['test'])}")
    apart, results = with_pools(plan, results)
    cells = [*apart, *(cell for cell, _ in ensembles(plan))]
    text = table(cells, results, config.checkpoint, config.columns, published=plan.published, source=plan.source)
    for row in config.pairs:
        text += "\n" + pair_table(apart, results, row, config.checkpoint)
    text += version_note(plan.cells, results) + list_note(plan.cells, results)
    write_whole(config.out / "table.md", text)
    plot(config.out / "table.png", list(summaries(cells, results, config.checkpoint)))
    print(text)
    return failed


if __name__ == "__main__":
    sys.exit(main())
