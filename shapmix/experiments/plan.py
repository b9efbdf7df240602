"""A plan of experiments: settings, rows and seeds of a grid, ensembles of its settings, published results, and lists of clips."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from shapmix.data.clips import list_hash
from shapmix.data.sources.bounded import line_of_name
from shapmix.process.errors import ShapmixError
from shapmix.training.config import as_arguments, parse_config, parser_errors
from shapmix.training.options import ConfigError

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
KEYS = ("base", "settings", "rows", "seeds", "ensembles", "pools", "published", "lists")


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


@dataclass(frozen=True)
class Plan:
    """A grid of runs and what its table adds to their results.

    Attributes:
        cells: ordered by seed, so that an interrupted grid has complete tables of fewer seeds.
        ensembles: name -> settings whose runs of one row and seed are averaged.
        pools: name -> settings whose test results of one row and seed are averaged, and that the table shows as one.
        published: setting or ensemble -> row -> top-1 accuracy in percent, as its authors published it.
        source: where the published figures stand.
        lists: setting -> SHA-256 of its training list (sorted names, one a line).
    """

    cells: list[Cell]
    ensembles: dict[str, list[str]] = field(default_factory=dict)
    pools: dict[str, list[str]] = field(default_factory=dict)
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    source: str | None = None
    lists: dict[str, str] = field(default_factory=dict)


def read_plan(path: Path, data_root: Path | None = None, changes: Sequence[str] = ()) -> Plan:
    """Reads a plan from a YAML file.

    Args:
        data_root: overrides the data root of the plan.
        changes: `key=value` options of the trainer that every cell gets, such as `epochs=2`.

    Raises:
        PlanError: the file is not a plan, two cells have the same name, or a part of it names what it does not have.
        ConfigError: an option is invalid for the trainer.
    """
    try:
        plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PlanError(f"{path}: cannot be read: {error}") from error
    if not isinstance(plan, dict) or set(plan) - set(KEYS) or not plan.get("rows"):
        raise PlanError(f"{path}: a plan is a mapping of rows and optionally {', '.join(key for key in KEYS if key != 'rows')}")
    settings, rows = plan.get("settings") or {"all": {}}, plan["rows"]
    _check_names(path, {"settings": settings, "rows": rows, **{key: plan.get(key) or {} for key in ("ensembles", "pools")}})
    for name, options in (("base", plan.get("base") or {}), *settings.items(), *rows.items()):
        if not isinstance(options, dict):
            raise PlanError(f"{path}: '{name}' is a {type(options).__name__}, not options of the trainer")
    seeds = plan.get("seeds") or [0]
    if not isinstance(seeds, list) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise PlanError(f"{path}: seeds: a list of whole numbers, such as [0, 1, 2], not {seeds}")
    given = _changes(changes) | ({} if data_root is None else {"data-root": str(data_root)})
    cells = [
        Cell(setting, row, seed, _merged(plan.get("base") or {}, of_setting, of_row, {"seed": seed}, given))
        for seed in seeds
        for setting, of_setting in settings.items()
        for row, of_row in rows.items()
    ]
    ensembles = _groups(path, "ensembles", plan, settings, settings)
    pools = _groups(path, "pools", plan, settings, {**settings, **ensembles})
    _check_cells(path, cells, [Cell(name, row, seed, {}) for name in (*ensembles, *pools) for row in rows for seed in seeds])
    members = Counter(setting for of_pool in pools.values() for setting in of_pool)
    if twice := [setting for setting, times in members.items() if times > 1]:
        raise PlanError(f"{path}: pools: '{twice[0]}' is named twice; a setting is part of one pool")
    published, source = _published(path, plan.get("published") or {}, {**settings, **ensembles, **pools}, rows)
    lists = plan.get("lists") or {}
    if not isinstance(lists, dict) or not set(lists) <= set(settings):
        raise PlanError(f"{path}: lists: SHA-256 of training lists by setting; the settings are {', '.join(settings)}")
    return Plan(cells, ensembles, pools, published, source, lists)


def _merged(*parts: dict[str, Any]) -> dict[str, Any]:
    """Options of all parts, the later wins; a group (such as `network`) keeps the options that a later part does not name."""
    merged: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            other = key.replace("-", "_") if "-" in key else key.replace("_", "-")
            before = merged.pop(other, merged.get(key))
            merged[key] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _changes(changes: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for change in changes:
        key, sign, value = change.partition("=")
        if not sign or not key:
            raise PlanError(f"set: '{change}' is no KEY=VALUE, such as epochs=2 or network.widths=[16,32]")
        group, dot, name = key.rpartition(".")
        try:
            content = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise PlanError(f"set: the value of '{change}' is no YAML: {error}") from error
        found = _merged(found, {group: {name: content}} if dot else {key: content})
    return found


def _check_names(path: Path, parts: Mapping[str, Any]) -> None:
    for key, part in parts.items():
        if not isinstance(part, dict):
            what = "lists of settings" if key in ("ensembles", "pools") else "options of the trainer"
            raise PlanError(f"{path}: {key}: a mapping of names to {what}, not a {type(part).__name__}")
        for name in part:
            if not isinstance(name, str):
                raise PlanError(f"{path}: {key}: the name {name!r} is read as a {type(name).__name__}; put it in quotes")


def _check_cells(path: Path, cells: list[Cell], of_groups: list[Cell]) -> None:
    """Checks the options of all cells, and that no two cells, also of ensembles and pools, have the same file."""
    names = Counter(cell.name for cell in [*cells, *of_groups])
    for cell in [*cells, *of_groups]:
        if names[cell.name] > 1:
            raise PlanError(f"{path}: two cells would have the name '{cell.name}'; rename a row, a setting or a group of settings")
    for cell in {(cell.setting, cell.row): cell for cell in cells}.values():  # seeds differ in nothing else
        with parser_errors(f"{path}: setting '{cell.setting}', row '{cell.row}'"):
            if settled(cell.options)["baselines"]:
                raise ConfigError("baselines: a cell is one run; make each baseline a row of its own")


def _groups(
    path: Path, key: str, plan: Mapping[str, Any], settings: Mapping[str, Any], taken: Mapping[str, Any]
) -> dict[str, list[str]]:
    """Name -> settings, of the plan's ensembles or pools; a name that is `taken` is an error."""
    groups = plan.get(key) or {}
    for name, members in groups.items():
        if name in taken:
            owner = "a setting" if name in settings else "an ensemble"
            raise PlanError(f"{path}: {key}: '{name}' is the name of {owner}; rename one")
        if not isinstance(members, list) or len(members) < 2:
            raise PlanError(f"{path}: {key}: '{name}' is a list of two settings or more")
        for member in members:
            if member not in settings:
                raise PlanError(f"{path}: {key}: '{name}' has no setting '{member}'; the plan has {', '.join(settings)}")
    return groups


def _published(
    path: Path, published: Any, settings: Mapping[str, Any], rows: Mapping[str, Any]
) -> tuple[dict[str, dict[str, float]], str | None]:
    """Setting -> row -> percent, and the source."""
    if not isinstance(published, dict):
        raise PlanError(f"{path}: published: a mapping of settings to rows and percentages, with their source")
    source = published.get("source")
    if published and not isinstance(source, str):
        raise PlanError(f"{path}: published: say where the figures stand, as source")
    found = {name: value for name, value in published.items() if name != "source"}
    for setting, figures in found.items():
        if setting not in settings or not isinstance(figures, dict):
            raise PlanError(
                f"{path}: published: '{setting}' is no setting with percentages by row; settings: {', '.join(settings)}"
            )
        for row, figure in figures.items():
            if row not in rows or not isinstance(figure, (int, float)) or not 0 <= figure <= 100:
                raise PlanError(f"{path}: published: {setting}: '{row}: {figure}' is no row of the plan with a percentage")
    return found, source


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


def settled(options: dict[str, Any]) -> dict[str, Any]:
    """All trainer options that affect the result of a run, with their values."""
    seeded = {key: value for key, value in options.items() if key == "seed"}
    return _settled(json.dumps({key: value for key, value in options.items() if key != "seed"}, default=str)) | seeded


@cache
def _settled(options: str) -> dict[str, Any]:
    """Of options as JSON without the seed; cached, since a parse takes as long as reading a hundred cells."""
    every = asdict(parse_config(list(as_arguments(json.loads(options)))))
    return {key: value for key, value in every.items() if key not in IRRELEVANT}


def check_lists(plan: Plan) -> None:
    """Checks the training list of every setting whose hash the plan names.

    Raises:
        PlanError: a setting without a list, or another list.
        DataError: a list that cannot be read.
    """
    for setting, wanted in plan.lists.items():
        options = next(cell.options for cell in plan.cells if cell.setting == setting)
        path = parse_config(list(as_arguments(options))).train_list
        if path is None:
            raise PlanError(f"lists: setting '{setting}' has no train-list")
        found = list_hash(line_of_name(path))
        if found != wanted:
            raise PlanError(f"lists: setting '{setting}': {path} is another list: its names have SHA-256 {found}, not {wanted}")
