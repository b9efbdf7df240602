"""Tables and plot of the results of a grid: means over seeds, intervals, paired differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from shapmix.experiments.cells import ALWAYS, comparable, lists_known
from shapmix.experiments.plan import Cell
from shapmix.pictures.plots import save_figure
from shapmix.shapley.interval import Interval, interval, values_needed
from shapmix.training.metrics import HEADS, Column

# of a table, where no others are asked for
COLUMNS: tuple[Column, ...] = ("top1", "class_mean", "many", "medium", "few", "macro_f1", "worst_class", "ece")


MANY_SEEDS = 1000  # more are not counted


class Summary(NamedTuple):
    """Statistics of a row over its seeds: each column, and the paired difference of the class mean to the first row."""

    setting: str
    row: str
    seeds: int
    columns: dict[str, Interval]
    gain: Interval
    minutes: dict[str, float]  # per run, by type of device


def summaries(cells: list[Cell], results: Mapping[str, dict[str, Any]], checkpoint: str = "last") -> Iterator[Summary]:
    """One summary per setting and row, in the order of the plan."""
    first: dict[str, dict[int, dict[str, Any]]] = {}  # per setting, the results of its first row by seed
    for setting, row in dict.fromkeys((cell.setting, cell.row) for cell in cells):
        mine = [cell for cell in cells if (cell.setting, cell.row) == (setting, row) and cell.name in results]
        reached = {cell.seed: results[cell.name] for cell in mine}
        found = list(reached.values())
        columns = {column: interval([cell["test"][checkpoint].get(column) for cell in found]) for column in HEADS}
        base = first.setdefault(setting, reached)
        paired = [seed for seed in reached if seed in base and comparable(reached[seed], base[seed])]
        both = [(reached[seed]["test"][checkpoint], base[seed]["test"][checkpoint]) for seed in paired]
        gain = None if base is reached else interval([cell["class_mean"] - other["class_mean"] for cell, other in both])
        seconds: dict[str, list[float]] = {}
        for cell in found:
            if cell["seconds"] is not None:
                seconds.setdefault(cell["device"].partition(":")[0], []).append(cell["seconds"])
        minutes = {device: mean(each) / 60 for device, each in seconds.items()}
        yield Summary(setting, row, len(found), columns, gain, minutes)


def table(
    cells: list[Cell],
    results: Mapping[str, dict[str, Any]],
    checkpoint: str = "last",
    columns: Sequence[str] = COLUMNS,
    *,
    published: Mapping[str, Mapping[str, float]] | None = None,
    source: str | None = None,
) -> str:
    """Markdown, one table per setting, without columns that no row has; rows without a result are listed below it.

    A cell is empty where a result lacks the figure, as results of older versions may.

    Args:
        published: setting -> row -> published top-1 accuracy in percent: a column of the settings that have one, in which rows
            without a result stand too.
        source: where the published figures stand, which a line below the tables says.
    """
    published = published or {}
    lines: list[str] = []
    every = list(summaries(cells, results, checkpoint))
    for setting in dict.fromkeys(summary.setting for summary in every):
        rows = [summary for summary in every if summary.setting == setting]
        stated = published.get(setting, {})
        missing = [row.row for row in rows if not row.seeds and row.row not in stated]
        shown = [name for name in columns if any(row.columns[name] for row in rows)] or columns
        heads = ["", *(["published top-1"] if stated else []), *(HEADS[name] for name in shown)]
        heads += [f"class mean less {rows[0].row}'s", "seeds", "minutes a run"]
        found = [row for row in rows if row.row not in missing]
        lines += [f"**{setting}**", ""]
        lines += [_line(heads), "|---" * len(heads) + "|"] if found else []
        for row in found:
            theirs = [f"{stated[row.row]:.1f}" if row.row in stated else ""] if stated else []
            values = [_shown(row.columns[name], missing="" if name not in ALWAYS else "n/a") for name in shown]
            gain = "" if row.gain is None else _shown(row.gain, "+.1f")
            times = row.minutes.items()
            minutes = ", ".join(f"{minutes:.{0 if minutes >= 1 else 1}f} ({device})" for device, minutes in times)
            lines.append(_line([row.row, *theirs, *values, gain, str(row.seeds), minutes]))
        if missing:
            lines += [*([""] if found else []), f"No result yet: {'; '.join(missing)}"]
        lines.append("")
    if any(published.values()):
        lines += [f"Published: {source}", ""]
    return "\n".join(lines)


def pair_table(cells: list[Cell], results: Mapping[str, dict[str, Any]], row: str, checkpoint: str = "last") -> str:
    """Markdown: paired differences between `row` and each other row, mean and 95% interval over seeds.

    The difference of a seed is the mean over the settings in which both rows have results: settings of one seed share test clips
    and first weights, so they are no independent pairs. A seed counts once both rows have a result in each of these settings, and
    only results that are `comparable` are compared. The last column is the number of seeds at which the interval of the class
    mean excludes zero, if the mean and the spread of the differences stay as they are.
    """
    reached: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}  # per row, by setting and seed
    for cell in cells:
        if cell.name in results:
            reached.setdefault(cell.row, {})[cell.setting, cell.seed] = results[cell.name]
    columns = ("class_mean", "few")
    heads = [f"{row} less", *(HEADS[name] for name in columns), "class mean is higher in", "seeds needed"]
    lines = [_line(heads), "|---" * len(heads) + "|"]
    ours = reached.pop(row, {})
    for other, theirs in reached.items():
        both = [key for key in ours if key in theirs and comparable(ours[key], theirs[key])]
        settings = {setting for setting, _ in both}
        of_seed: dict[str, dict[int, list[float]]] = {name: {} for name in columns}
        for setting, seed in both:
            if any((each, seed) not in both for each in settings):
                continue
            mine, its = (row[setting, seed]["test"][checkpoint] for row in (ours, theirs))
            for name in columns:
                if None not in (mine[name], its[name]):
                    of_seed[name].setdefault(seed, []).append(mine[name] - its[name])
        differences = {name: [mean(each) for each in seeds.values()] for name, seeds in of_seed.items()}
        if not differences["class_mean"]:
            continue
        ahead = sum(difference > 0 for difference in differences["class_mean"])
        shown = [_shown(interval(differences[name]), "+.1f") for name in columns]
        needed = values_needed(differences["class_mean"])
        counted = "n/a" if needed is None else str(needed) if needed <= MANY_SEEDS else f"more than {MANY_SEEDS}"
        lines.append(_line([other, *shown, f"{ahead} of {len(differences['class_mean'])} seeds", counted]))
    return "\n".join(lines) + "\n"


def version_note(cells: list[Cell], results: Mapping[str, dict[str, Any]]) -> str:
    """Markdown: the versions that trained the cells' results and how many each; empty if it is one."""
    runs = Counter(str(results[cell.name].get("commit") or "unknown")[:7] for cell in cells if cell.name in results)
    if len(runs) < 2:
        return ""
    return f"\nTrained by {len(runs)} versions (runs): {', '.join(f'{name} ({count})' for name, count in runs.items())}.\n"


def list_note(cells: list[Cell], results: Mapping[str, dict[str, Any]]) -> str:
    """Markdown: how many of the cells' results do not name their training list; empty if all do."""
    done = [results[cell.name] for cell in cells if cell.name in results]
    unknown = sum(not lists_known(result) for result in done)
    if not unknown:
        return ""
    return (
        f"\nTraining list not recorded: {unknown} of {len(done)} runs. "
        "Whether all rows of a seed share it is not checked for these.\n"
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plot(path: Path, rows: Sequence[Summary], columns: Sequence[str] = ("class_mean", "few")) -> None:
    """Plots mean and 95% interval of each row with a result, one panel per setting and column."""
    settings = list(dict.fromkeys(row.setting for row in rows))
    rows = [row for row in rows if row.seeds]
    heights = [0.8 + 0.35 * max(sum(row.setting == setting for row in rows), 2) for setting in settings]
    figure = Figure(figsize=(4.5 * len(columns), sum(heights)), layout="constrained")
    axes = figure.subplots(len(settings), len(columns), squeeze=False, height_ratios=heights)
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
    save_figure(figure, path)


def _shown(value: Interval, form: str = ".1f", missing: str = "n/a") -> str:
    if value is None:
        return missing
    middle, half = value
    return f"{100 * middle:{form}}" + ("" if half is None else f" ± {100 * half:.1f}")
