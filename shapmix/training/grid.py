"""A grid of runs: reads a plan, trains its cells, reads their results."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

import yaml
from tqdm import tqdm

from shapmix.process.errors import RunError, ShapmixError
from shapmix.process.files import write_whole
from shapmix.process.signals import PARENT, Interruption, StopRequest
from shapmix.training.config import as_arguments, parse_config, parser_errors
from shapmix.training.options import plain
from shapmix.training.run_folder import commit, read_metrics, versions

ALWAYS = ("top1", "class_mean", "many", "medium", "few")  # the columns of every result; older ones have no other

log = logging.getLogger("shapmix")


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
)  # options that do not affect the result of a run


class Cell(NamedTuple):
    """One run of the grid."""

    setting: str
    row: str
    seed: int
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return re.sub(r"[^\w.]+", "-", f"{self.setting} {self.row} seed {self.seed}".lower())


class PlanError(ShapmixError, ValueError):
    """A plan cannot be run; the message names the key."""


def read_plan(path: Path, data_root: Path | None = None) -> list[Cell]:
    """The cells of a plan, ordered by seed, so that an interrupted grid has complete tables of fewer seeds.

    Args:
        path: YAML file.
        data_root: overrides the data root of the plan.

    Raises:
        PlanError: the file is not a plan, or two cells have the same name.
        ConfigError: an option is invalid for the trainer.
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
        with parser_errors(f"{path}: setting '{cell.setting}', row '{cell.row}'"):
            parse_config(list(as_arguments(cell.options)))
    return cells


def only(cells: list[Cell], rows: Sequence[str]) -> list[Cell]:
    """The cells of these rows, or all cells if no row is given.

    Raises:
        PlanError: the plan does not have a row.
    """
    names = list(dict.fromkeys(cell.row for cell in cells))
    for row in rows:
        if row not in names:
            raise PlanError(f"the plan has no row '{row}'; it has {', '.join(names)}")
    return [cell for cell in cells if not rows or cell.row in rows]


def run_cells(cells: list[Cell], out: Path, devices: Sequence[str], request: StopRequest) -> list[Cell]:
    """Trains the cells without a result, one at a time per device; returns the failed cells.

    Raises:
        Interruption: stopped by a signal; the running cells have saved their state.
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
        raise Interruption(request.signal, f"{out}: stopped after {sum(done)} of {len(waiting)} cells; the same command resumes")
    return [cell for cell, worked in zip(waiting, done, strict=True) if not worked]


def run_cell(cell: Cell, out: Path, device: str, threads: int, request: StopRequest) -> bool:
    """Trains or resumes a cell and writes its result; returns False if it failed, with the reason in its log."""
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

    A requested stop is forwarded to the command, which may need time to save.
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
    """The results of the finished cells, by name.

    Raises:
        PlanError: a cell was trained with different options.
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
                    f"{path} was trained with {key} {then[key]}, but the plan has {now[key]}; rename the row or the setting, or "
                    "move the cell and its run"
                )
    return results


def read_cell(path: Path) -> dict[str, Any]:
    """The result of a cell, as written by `run_cell`.

    Raises:
        PlanError: the file is not the result of a cell.
    """
    content = _read_object(path)
    known = isinstance(content.get("options"), dict) and isinstance(content.get("device", ""), str)
    if not known or not isinstance(content.get("seconds"), (int, float, type(None))):
        raise PlanError(f"{path}: not the result of a cell; move it away to train the cell again")
    return {**content, "test": reached(path)}


def reached(path: Path) -> dict[str, Any]:
    """Checkpoint -> column -> accuracy, from a run's `result.json` or the file of a cell.

    Raises:
        PlanError: the file is not a result.
    """
    test = _read_object(path).get("test")
    if not isinstance(test, dict) or not test:
        raise PlanError(f"{path}: not a result: it has no test accuracy; move it away to measure it again")
    for name, row in test.items():
        if not isinstance(row, dict) or not all(isinstance(value, (int, float, type(None))) for value in row.values()):
            raise PlanError(f"{path}: not a result: '{name:.40}' has a value that is no number")
        if lacking := [column for column in ALWAYS if column not in row]:
            raise PlanError(f"{path}: not a result: '{name:.40}' lacks {', '.join(lacking)}")
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
    """All trainer options that affect the result of a run, with their values."""
    every = asdict(parse_config(list(as_arguments(options))))
    return {key: value for key, value in every.items() if key not in IRRELEVANT}


def _is_data_root(key: str) -> bool:
    return key.replace("-", "_") == "data_root"
