"""Results of a grid: trains its cells, measures its ensembles, and reads what was reached."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from shapmix.experiments.plan import Cell, Plan, PlanError, settled
from shapmix.process.errors import RunError, ShapmixError
from shapmix.process.files import write_whole
from shapmix.process.signals import PARENT, StopRequest
from shapmix.training.config import as_arguments, parse_config, parser_errors
from shapmix.training.ensemble import score_runs
from shapmix.training.metrics import HEADS
from shapmix.training.options import plain
from shapmix.training.run_folder import last_start, read_metrics
from shapmix.training.scores import accuracy_of
from shapmix.training.trained import Checkpoint

ALWAYS = ("top1", "class_mean", "many", "medium", "few")  # the columns of every result; older ones have no other

log = logging.getLogger("shapmix")


def result_of(cell: Cell, out: Path) -> Path:
    """File of a cell's result; it exists once the cell is done."""
    return out / "cells" / f"{cell.name}.json"


def log_of(cell: Cell, out: Path) -> Path:
    """What a cell's training said."""
    return out / "logs" / f"{cell.name}.txt"


def train_cell(cell: Cell, out: Path, device: str, threads: int, request: StopRequest) -> bool:
    """Trains or resumes a cell and writes its result; returns False if it failed, with the reason in its log."""
    run, logged = out / "runs" / cell.name, log_of(cell, out)
    begun = (run / "config.yaml").exists()
    if begun and (changed := begun_otherwise(cell, run)):
        log.warning("%s: its run was begun with %s; move %s away to train it anew", cell.name, changed, run)
        return False
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
        test, rows, start = reached(run / "result.json"), read_metrics(run / "metrics.jsonl"), last_start(run / "environment.jsonl")
    except (PlanError, RunError) as error:
        log.warning("%s has no result: %s", cell.name, error)
        return False
    content = {
        "setting": cell.setting,
        "row": cell.row,
        "seed": cell.seed,
        "options": recorded(cell.options),
        "training_list": _read_object(run / "result.json").get("training_list"),
        "data_sha256": start["data_sha256"],
        "test": {name.split()[-1]: accuracy for name, accuracy in test.items()},
        "epochs": len(rows),
        "seconds": None if begun else round(time.monotonic() - begin),
        "device": ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device,
        "threads": threads,
        "commit": start["commit"],
        "versions": start["versions"],
    }
    write_whole(result_of(cell, out), json.dumps(content, indent=1) + "\n")
    return True


def recorded(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a cell with the values of presets and defaults, which may change later; paths as the plan has them."""
    given = {key.replace("-", "_"): value for key, value in options.items()}
    resolved = settled(options).items()
    found: dict[str, Any] = plain({key: given[key] if isinstance(value, Path) else value for key, value in resolved})
    return found


def begun_otherwise(cell: Cell, run: Path) -> str:
    """The options in which a begun run differs from the plan, in words; empty if there are none."""
    try:
        with parser_errors(str(run / "config.yaml")):
            before = plain(asdict(parse_config(["--config", str(run / "config.yaml")])))
    except ShapmixError as error:
        return f"options that cannot be read ({error})"
    now = plain(settled(cell.options))
    return "; ".join(f"{key} {before[key]}, but the plan has {now[key]}" for key in now if before[key] != now[key])


def run_child(command: Sequence[str], logged: Path, request: StopRequest) -> int:
    """Runs a command, which ends with this process, and appends what it says to a file; returns its exit code.

    A requested stop is forwarded to the command, which may need time to save.
    """
    environment = {**os.environ, PARENT: str(os.getpid())}
    with logged.open("a", encoding="utf-8") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    asked = False
    try:
        while True:
            try:
                return child.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                if request.signal and not asked:
                    child.terminate()
                    asked = True
    finally:  # an engine that cancels or requeues a cell raises in here
        if child.poll() is None:
            child.terminate()
            child.wait()


def _end(path: Path, lines: int = 5) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def measure_ensembles(plan: Plan, out: Path, checkpoint: Checkpoint, device: torch.device) -> None:
    """Writes the result of each ensemble whose runs have ended and that has none yet, for each row and seed.

    Raises:
        ConfigError, CheckpointError, DataError, RunError: the runs cannot be read, or are not of the same clips.
    """
    for average, cells in ensembles(plan):
        path = result_of(average, out)
        runs = [out / "runs" / cell.name for cell in cells]
        ended = all(result_of(cell, out).exists() and run.exists() for cell, run in zip(cells, runs, strict=True))
        if not ended:
            continue
        members, old = _members(cells, out), _read_object(path) if path.exists() else {}
        before = old["test"] if old.get("members") == members else {}
        if checkpoint in before:
            continue
        log.info("measuring the ensemble '%s' of %s, seed %d", average.setting, average.row, average.seed)
        found = accuracy_of(score_runs(runs, checkpoint, device).whole)
        content = {
            "setting": average.setting,
            "row": average.row,
            "seed": average.seed,
            "options": {},
            "members": members,
            "test": {**before, checkpoint: found.as_dict()},
            "seconds": None,
            "device": str(device),
        }
        write_whole(path, json.dumps(content, indent=1) + "\n")


def _members(cells: Sequence[Cell], out: Path) -> dict[str, str]:
    """Name of each cell -> SHA-256 of its result: an ensemble is of these results, and measured again once one is another."""
    return {cell.name: hashlib.sha256(result_of(cell, out).read_bytes()).hexdigest() for cell in cells}


def ensembles(plan: Plan) -> list[tuple[Cell, list[Cell]]]:
    """Each ensemble of a row and seed, as a cell of its own without options, with the cells that it averages."""
    return _joined(plan, plan.ensembles)


def _joined(plan: Plan, groups: Mapping[str, list[str]]) -> list[tuple[Cell, list[Cell]]]:
    index = {(cell.setting, cell.row, cell.seed): cell for cell in plan.cells}
    pairs = dict.fromkeys((cell.row, cell.seed) for cell in plan.cells)
    return [
        (Cell(name, row, seed, {}), [index[setting, row, seed] for setting in settings])
        for name, settings in groups.items()
        for row, seed in pairs
    ]


def read_results(plan: Plan, out: Path) -> dict[str, dict[str, Any]]:
    """The results of the finished cells and of the measured ensembles, by name.

    Raises:
        PlanError: a cell was trained with different options, two rows of a setting and seed with different training lists, or an
            ensemble has other members.
    """
    results = {}
    for ensemble, members in ensembles(plan):
        path = result_of(ensemble, out)
        if path.exists():
            found = results[ensemble.name] = read_cell(path)
            if list(found.get("members", ())) != [cell.name for cell in members]:
                raise PlanError(f"{path} has other members than the plan's '{ensemble.setting}'; move it away to measure it again")
    for cell in plan.cells:
        path = result_of(cell, out)
        if not path.exists():
            continue
        found = results[cell.name] = read_cell(path)
        now = settled(cell.options)
        with parser_errors(str(path)):
            then = settled({**{key: value for key, value in cell.options.items() if _is_data_root(key)}, **found["options"]})
        for key in now:
            if now[key] != then[key]:
                raise PlanError(
                    f"{path} was trained with {key} {then[key]}, but the plan has {now[key]}; rename the row or the setting, or "
                    "move the cell and its run"
                )
    _check_shared_lists(plan, out, results)
    return results


def _check_shared_lists(plan: Plan, out: Path, results: Mapping[str, dict[str, Any]]) -> None:
    """Rows are compared seed by seed, which is only fair on the same training clips; older cells do not name theirs."""
    first: dict[tuple[str, int], Cell] = {}
    for cell in plan.cells:
        if cell.name in results and lists_known(results[cell.name]):
            other = first.setdefault((cell.setting, cell.seed), cell)
            for key, what in (("training_list", "another list of clips"), ("data_sha256", "other data")):
                mine, theirs = (results[each.name].get(key) for each in (cell, other))
                if None not in (mine, theirs) and mine != theirs:
                    raise PlanError(
                        f"{result_of(cell, out)} was trained with {what} than {result_of(other, out)}, so the rows cannot be "
                        "compared; move one of them and its run away to train it again"
                    )


def lists_known(result: Mapping[str, Any]) -> bool:
    """Whether a cell's result names its training list; those of older versions do not."""
    return result.get("training_list") is not None


def comparable(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two results of a setting and seed may be a pair: not if only one of them names its training list."""
    return lists_known(one) == lists_known(other)


def with_pools(plan: Plan, results: dict[str, dict[str, Any]]) -> tuple[list[Cell], dict[str, dict[str, Any]]]:
    """The cells of the plan with each pool in place of its settings, and the results with those of complete pools.

    A figure of a pool is the mean over its settings, weighted by their test clips: for top-1 the accuracy over all of their clips.

    Raises:
        PlanError: a result of a pool's setting does not say how many clips tested it.
    """
    members = {setting for settings in plan.pools.values() for setting in settings}
    found = _joined(plan, plan.pools)
    complete = {pool.name: [results[cell.name] for cell in cells] for pool, cells in found if all(c.name in results for c in cells)}
    cells = [cell for cell in plan.cells if cell.setting not in members]
    return [*cells, *(pool for pool, _ in found)], results | {name: _pooled(name, each) for name, each in complete.items()}


def _pooled(name: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    test = {}
    for checkpoint in set.intersection(*(set(result["test"]) for result in results)):
        rows = [result["test"][checkpoint] for result in results]
        clips = [row.get("clips") or 0 for row in rows]
        if 0 in clips:
            raise PlanError(f"pools: a result of '{name}' does not say how many clips tested it, as clips; train that cell again")
        test[checkpoint] = {"clips": sum(clips)}
        for column in HEADS:
            values = [row.get(column) for row in rows]
            known = None not in values
            test[checkpoint][column] = sum(n * v for n, v in zip(clips, values, strict=True)) / sum(clips) if known else None
    timed = [result for result in results if result["seconds"] is not None]
    seconds = mean(result["seconds"] for result in timed) if timed else None
    lists = " ".join(result["training_list"] for result in results) if all(map(lists_known, results)) else None
    return {"test": test, "seconds": seconds, "device": timed[0]["device"] if timed else "", "training_list": lists}


def read_cell(path: Path) -> dict[str, Any]:
    """The result of a cell, as written by `train_cell`.

    Raises:
        PlanError: the file is not the result of a cell.
    """
    content = _read_object(path)
    known = isinstance(content.get("options"), dict) and isinstance(content.get("device", ""), str)
    known &= isinstance(content.get("training_list"), (str, type(None)))
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


def _is_data_root(key: str) -> bool:
    return key.replace("-", "_") == "data_root"
