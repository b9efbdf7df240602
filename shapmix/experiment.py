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

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from statistics import mean
from typing import Annotated, Any, NamedTuple

import tyro
import yaml
from matplotlib.figure import Figure
from tqdm import tqdm

from shapmix.config import ConfigError, as_arguments, parse_config, plain
from shapmix.files import InUseError, only_writer, write_whole
from shapmix.interruption import PARENT, Interruption, StopRequest, stop_requests
from shapmix.interval import Interval, interval
from shapmix.run import RunError, commit, read_metrics, versions

HEADS = {"top1": "top-1", "class_mean": "class mean", "many": "many", "medium": "medium", "few": "few"}
COLUMNS = tuple(HEADS)
IRRELEVANT = (
    "data_root",
    "preset",
    "config",
    "run_dir",
    "picture_every",
    "device",
    "threads",
    "checkpoint",
    "cuda_graph",
)  # to what a run reaches

log = logging.getLogger("shapmix")


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


class Cell(NamedTuple):
    """A run of the grid."""

    setting: str
    row: str
    seed: int
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return re.sub(r"[^\w.]+", "-", f"{self.setting} {self.row} seed {self.seed}".lower())


class PlanError(ValueError):
    """A plan that cannot be run; the message names the key."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code, 1 where a cell failed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    config = tyro.cli(ExperimentConfig, args=argv, prog="python -m shapmix.experiment", description=ExperimentConfig.__doc__)
    try:
        with stop_requests() as request:
            failed = run_experiment(config, request)
    except Interruption as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    except (PlanError, ConfigError, InUseError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 1 if failed else 0


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


def read_plan(path: Path, data_root: Path | None = None) -> list[Cell]:
    """The cells of a plan, seed by seed, so that a grid that is cut off has whole tables of fewer seeds.

    Args:
        path: YAML file.
        data_root: where the data lies, in place of what the plan says.

    Raises:
        PlanError: not a plan, or two cells that would share a name.
        ConfigError, SystemExit: options that the trainer does not take.
    """
    try:
        plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise PlanError(f"{path}: cannot be read: {error}") from error
    if not isinstance(plan, dict) or set(plan) - {"base", "settings", "rows", "seeds"} or not plan.get("rows"):
        raise PlanError(f"{path}: a plan is a mapping of base, settings, rows and seeds")
    settings = plan.get("settings") or {"all": {}}
    base = plan.get("base") or {}
    if data_root is not None and isinstance(base, dict):
        base = {key: value for key, value in base.items() if not _is_data_root(key)} | {"data-root": str(data_root)}
    for name, options in {"base": base, **settings, **plan["rows"]}.items():
        if not isinstance(options, dict):
            raise PlanError(f"{path}: '{name}' is a {type(options).__name__}, not options of the trainer")
    cells = [
        Cell(setting, row, seed, {**base, **of_setting, **of_row, "seed": seed})
        for seed in plan.get("seeds") or [0]
        for setting, of_setting in settings.items()
        for row, of_row in plan["rows"].items()
    ]
    names = [cell.name for cell in cells]
    for cell in cells:
        if names.count(cell.name) > 1:
            raise PlanError(f"{path}: two cells would have the name '{cell.name}'; rename a row or a setting")
        parse_config(list(as_arguments(cell.options)))
    return cells


def only(cells: list[Cell], rows: Sequence[str]) -> list[Cell]:
    """The cells of these rows, all where none is named.

    Raises:
        PlanError: a row that the plan lacks.
    """
    names = list(dict.fromkeys(cell.row for cell in cells))
    for row in rows:
        if row not in names:
            raise PlanError(f"the plan has no row '{row}'; it has {', '.join(names)}")
    return [cell for cell in cells if not rows or cell.row in rows]


def run_cells(cells: list[Cell], out: Path, devices: Sequence[str], request: StopRequest) -> list[Cell]:
    """Trains the cells that have no result yet, one at a time on each device; returns those that failed.

    Raises:
        Interruption: a signal asked for a stop; the cells that were training have saved their state.
    """
    for folder in ("cells", "runs", "logs"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    waiting = [cell for cell in cells if not (out / "cells" / f"{cell.name}.json").exists()]
    log.info("%d of %d cells are done; training %d on %s", len(cells) - len(waiting), len(cells), len(waiting), ", ".join(devices))
    free: Queue[str] = Queue()
    for device in devices:
        free.put(device)
    threads = max(1, (os.cpu_count() or 1) // len(devices))

    def train(cell: Cell) -> bool:
        device = free.get()
        try:
            return not request.signal and run_cell(cell, out, device, threads, request)
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(devices)) as pool:
        done = list(tqdm(pool.map(train, waiting), total=len(waiting), unit="cell", disable=None))
    if request.signal and not all(done):
        raise Interruption(request.signal, f"{out}: stopped after {sum(done)} of {len(waiting)} cells; the same command goes on")
    return [cell for cell, worked in zip(waiting, done, strict=True) if not worked]


def run_cell(cell: Cell, out: Path, device: str, threads: int, request: StopRequest) -> bool:
    """Trains a cell, or goes on with it, and writes what it reached; False where it failed, which its log tells."""
    run, logged = out / "runs" / cell.name, out / "logs" / f"{cell.name}.txt"
    begun = (run / "config.yaml").exists()
    where = ["--resume", str(run)] if begun else ["--run-dir", str(run)]
    here = ["--device", device, "--threads", str(threads)]
    command = [sys.executable, "-m", "shapmix.train", *as_arguments(cell.options), *where, *here]
    begin = time.monotonic()
    code = run_child(command, logged, request)
    if code and request.signal:
        return False
    if code:
        log.warning("%s failed with exit code %d; the end of %s:\n%s", cell.name, code, logged, _end(logged))
        return False
    try:
        test, rows = reached(run / "result.json"), read_metrics(run / "metrics.jsonl")
    except (PlanError, RunError) as error:
        log.warning("%s has no result: %s", cell.name, error)
        return False
    content = {
        "setting": cell.setting,
        "row": cell.row,
        "seed": cell.seed,
        "options": {key: value for key, value in plain(cell.options).items() if not _is_data_root(key)},
        "test": {name.split()[-1]: accuracy for name, accuracy in test.items()},
        "epochs": len(rows),
        "seconds": None if begun else round(time.monotonic() - begin),
        "device": device,
        "threads": threads,
        "commit": commit(),
        "versions": versions(),
    }
    write_whole(out / "cells" / f"{cell.name}.json", json.dumps(content, indent=1) + "\n")
    return True


def run_child(command: Sequence[str], logged: Path, request: StopRequest) -> int:
    """Runs a command, which ends with this process, and appends what it says to a file; returns its exit code.

    A stop that is asked for is asked of the command too, which may take its time to save.
    """
    environment = {**os.environ, PARENT: str(os.getpid())}
    with logged.open("a", encoding="utf-8") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    asked = False
    while True:
        try:
            return child.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            if request.signal and not asked:
                child.terminate()
                asked = True


def _end(path: Path, lines: int = 5) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def read_results(cells: list[Cell], out: Path) -> dict[str, dict[str, Any]]:
    """What the cells that are done reached, by their names.

    Raises:
        PlanError: a cell that was trained with other options.
    """
    results = {}
    for cell in cells:
        path = out / "cells" / f"{cell.name}.json"
        if not path.exists():
            continue
        found = results[cell.name] = read_cell(path)
        now = settled(cell.options)
        then = settled({**{key: value for key, value in cell.options.items() if _is_data_root(key)}, **found["options"]})
        for key in now:
            if now[key] != then[key]:
                raise PlanError(
                    f"{path} was trained with {key} {then[key]}, and the plan has {now[key]}; rename the row or the setting, or "
                    "move the cell and its run away"
                )
    return results


def read_cell(path: Path) -> dict[str, Any]:
    """What a cell reached, as `run_cell` wrote it.

    Raises:
        PlanError: it is not that.
    """
    content = _read_object(path)
    known = isinstance(content.get("options"), dict) and isinstance(content.get("device", ""), str)
    if not known or not isinstance(content.get("seconds"), (int, float, type(None))):
        raise PlanError(f"{path}: not what a cell reached; move it away, and the cell is measured again")
    return {**content, "test": reached(path)}


def reached(path: Path) -> dict[str, Any]:
    """Checkpoint -> column -> accuracy, of a run's `result.json` or a cell's file.

    Raises:
        PlanError: it is not that.
    """
    test = _read_object(path).get("test")
    if not isinstance(test, dict) or not test:
        raise PlanError(f"{path}: not a result: it has no test accuracy; move it away, and it is measured again")
    for name, row in test.items():
        if not isinstance(row, dict) or not all(isinstance(row.get(column, ""), (int, float, type(None))) for column in COLUMNS):
            raise PlanError(f"{path}: not a result: the accuracies of '{name:.40}' are not those of {', '.join(COLUMNS)}")
    return test


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise PlanError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise PlanError(f"{path}: not a result: a {type(content).__name__}")
    return content


def settled(options: dict[str, Any]) -> dict[str, Any]:
    """All options of the trainer that bear on what a run reaches, with the values that these options give them."""
    every = asdict(parse_config(list(as_arguments(options))))
    return {key: value for key, value in every.items() if key not in IRRELEVANT}


def _is_data_root(key: str) -> bool:
    return key.replace("-", "_") == "data_root"


class Summary(NamedTuple):
    """Of the seeds of a row: how many, each column, and the difference of the class mean from the first row's at the same seeds."""

    setting: str
    row: str
    seeds: int
    columns: dict[str, Interval]
    gain: Interval
    minutes: dict[str, float]  # a run, by the kind of device


def summaries(cells: list[Cell], results: Mapping[str, dict[str, Any]], checkpoint: str = "last") -> Iterator[Summary]:
    """One for each setting and row, in the plan's order."""
    first: dict[str, dict[int, dict[str, Any]]] = {}  # of each setting, what the seeds of its first row reached
    for setting, row in dict.fromkeys((cell.setting, cell.row) for cell in cells):
        mine = [cell for cell in cells if (cell.setting, cell.row) == (setting, row) and cell.name in results]
        reached = {cell.seed: results[cell.name] for cell in mine}
        found = list(reached.values())
        columns = {column: interval([cell["test"][checkpoint][column] for cell in found]) for column in COLUMNS}
        base = first.setdefault(setting, reached)
        both = [(reached[seed]["test"][checkpoint], base[seed]["test"][checkpoint]) for seed in reached if seed in base]
        gain = None if base is reached else interval([cell["class_mean"] - other["class_mean"] for cell, other in both])
        seconds: dict[str, list[float]] = {}
        for cell in found:
            if cell["seconds"] is not None:
                seconds.setdefault(cell["device"].partition(":")[0], []).append(cell["seconds"])
        minutes = {device: mean(each) / 60 for device, each in seconds.items()}
        yield Summary(setting, row, len(found), columns, gain, minutes)


def table(cells: list[Cell], results: Mapping[str, dict[str, Any]], checkpoint: str = "last") -> str:
    """Markdown, one table a setting, without buckets that the setting leaves empty; rows without a result are named below it."""
    lines: list[str] = []
    every = list(summaries(cells, results, checkpoint))
    for setting in dict.fromkeys(summary.setting for summary in every):
        rows = [summary for summary in every if summary.setting == setting]
        missing = [row.row for row in rows if not row.seeds]
        columns = [name for name in COLUMNS if any(row.columns[name] for row in rows)] or COLUMNS
        heads = ["", *(HEADS[name] for name in columns), f"class mean less {rows[0].row}'s", "seeds", "minutes a run"]
        lines += [f"**{setting}**", "", _line(heads), "|---" * len(heads) + "|"]
        for row in rows:
            if not row.seeds:
                continue
            shown = [_shown(row.columns[name]) for name in columns]
            gain = "" if row.gain is None else _shown(row.gain, "+.1f")
            minutes = ", ".join(f"{minutes:.0f} ({device})" for device, minutes in row.minutes.items())
            lines.append(_line([row.row, *shown, gain, str(row.seeds), minutes]))
        if missing:
            lines += ["", f"No result yet: {', '.join(missing)}"]
        lines.append("")
    return "\n".join(lines)


def pair_table(cells: list[Cell], results: Mapping[str, dict[str, Any]], row: str, checkpoint: str = "last") -> str:
    """Markdown: how far `row` lies from each other row, mean and 95% interval over the pairs of one setting and seed."""
    reached: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}  # of each row, by setting and seed
    for cell in cells:
        if cell.name in results:
            reached.setdefault(cell.row, {})[cell.setting, cell.seed] = results[cell.name]["test"][checkpoint]
    columns = ("class_mean", "few")
    lines = [_line([f"{row} less", *(HEADS[name] for name in columns), "class mean is higher in"]), "|---" * 4 + "|"]
    ours = reached.pop(row, {})
    for other, theirs in reached.items():
        same = [(ours[pair], theirs[pair]) for pair in ours if pair in theirs]
        if not same:
            continue
        differences = {
            name: [mine[name] - its[name] for mine, its in same if None not in (mine[name], its[name])] for name in columns
        }
        ahead = sum(difference > 0 for difference in differences["class_mean"])
        shown = [_shown(interval(differences[name]), "+.1f") for name in columns]
        lines.append(_line([other, *shown, f"{ahead} of {len(same)} pairs"]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plot(path: Path, rows: Sequence[Summary], columns: Sequence[str] = ("class_mean", "few")) -> None:
    """Mean and 95% interval of each row that has a result, one panel for each setting and column."""
    settings = list(dict.fromkeys(row.setting for row in rows))
    rows = [row for row in rows if row.seeds]
    figure = Figure(figsize=(4.5 * len(columns), 0.8 + 0.35 * max(len(rows), 4)), layout="constrained")
    axes = figure.subplots(len(settings), len(columns), squeeze=False)
    for line, setting in zip(axes, settings, strict=True):
        shown = [row for row in rows if row.setting == setting]
        for axis, column in zip(line, columns, strict=True):
            for place, row in enumerate(shown):
                value = row.columns[column]
                if value is not None:
                    axis.errorbar(100 * value[0], place, xerr=100 * (value[1] or 0), fmt="o", color="#1f4e6b", capsize=3)
            axis.set_yticks(range(len(shown)), [row.row for row in shown])
            axis.set_ylim(max(len(shown), 1) - 0.5, -0.5)
            axis.set_xlabel(f"{column.replace('_', ' ')} accuracy, %")
            axis.set_title(setting, fontsize="medium")
            axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _shown(value: Interval, form: str = ".1f") -> str:
    if value is None:
        return "n/a"
    middle, half = value
    return f"{100 * middle:{form}}" + ("" if half is None else f" ± {100 * half:.1f}")


if __name__ == "__main__":
    sys.exit(main())
