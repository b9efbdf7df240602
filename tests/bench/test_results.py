"""The tables in the docs agree with the committed results files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

from bench import copy_speed
from bench.network import STEPS, memory_line, table

ROOT = Path(__file__).parents[2]


def results_file(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def test_the_speed_of_the_network_is_that_of_the_results_file() -> None:
    found = results_file("cpu_network")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert table(found) in page("speed")
    assert table(found) in readme
    assert memory_line(found)[1:] in page("speed")
    of_step = {isa: of["whole step"]["speed-up"] for isa, of in found["instruction sets"].items()}
    first_screen = " ".join(readme[:2000].split())
    assert f"{of_step['avx2']['float32']['p50']:.1f}x faster than the eager reference on a CPU with AVX2" in first_screen
    assert f"{of_step['avx512']['float32']['p50']:.1f}x with AVX-512" in first_screen
    assert f"{of_step['avx512']['bfloat16']['p50']:.1f}x there in bfloat16" in first_screen


def test_a_measurement_in_every_second_step_saves_a_tenth() -> None:
    assert "`every=2` saves a tenth of a step of the published network" in page("own_loop")
    for found in results_file("cpu_network")["instruction sets"].values():
        published, half = (found[name]["speed-up"]["float32"]["p50"] for name in STEPS)
        assert 0.08 < 1 - published / half < 0.13


def test_the_speed_of_single_ops_is_that_of_the_results_file() -> None:
    found, text = results_file("cpu_rows"), page("speed")
    assert copy_speed.table(found) in text
    assert {row["ops"] for run in found["runs"] for row in run["rows"]} == {case.ops for case in copy_speed.cases()}


def test_what_kept_memory_saves_is_that_of_the_results_file() -> None:
    found = results_file("freed_memory")["cases"]["a third of the published depth, batch 64"]
    faster, more = found["speed-up"]["median"], found["kept"]["peak MB"] / found["given back"]["peak MB"] - 1
    text = " ".join(page("speed").split())
    assert f"makes a step {faster:.2f}x faster for a network of 3 layers on batches of 64, at {more:.0%} more memory" in text


def test_steps_beside_other_programs_are_those_of_the_results_file() -> None:
    found, text = results_file("shared_machine")["conditions"], " ".join(page("speed").split())
    busy = found["beside a busy process"]
    assert (found["as the machine is"]["runnable"], busy["runnable"]) == (0, 1), "the machine was not quiet: measure again"
    for name, entry in busy.items():
        if name != "runnable":
            ms, ratio = entry["ms"], entry["times the default"]
            shown = f"{ms['median']:,.0f} ({ms['lowest']:,.0f} to {ms['highest']:,.0f})"
            ratios = f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"
            quiet = found["as the machine is"][name]
            without = f"{quiet['ms']['median']:,.0f}, {quiet['times the default']['median']:.2f}"
            assert f"| {name} | {shown} | {ratios} | {without} |" in text, name
    slower = found["as the machine is"]["all CPUs, waiting threads sleep"]["times the default"]["median"]
    assert f"takes {slower:.1f} times as long as with threads that spin" in text
    assert busy["one thread"]["ms"]["median"] < min(busy[name]["ms"]["median"] for name in busy if name.startswith("all CPUs"))


def test_the_reason_for_not_flushing_denormals_is_that_of_the_results_file() -> None:
    found, text = results_file("denormals"), " ".join(page("speed").split())
    for case in found["cases"].values():
        assert all(entry["denormal"] == 0 < entry["values"] for entry in case["denormals"].values())
        assert 0.99 <= case["seconds"]["kept / flushed"]["p50"] <= 1.01  # a hundredth is no reason to change results
    ratios = [found["cases"][name]["seconds"]["kept / flushed"]["p50"] for name in ("embedded recipe", "published optimizer")]
    assert f"takes {ratios[0]:.2f} and {ratios[1]:.2f} of its CPU time with flushing" in text
    assert 0.95 < found["product of denormals"]["kept / flushed"]["p50"] < 1.05


def test_the_cost_of_explanations_is_that_of_the_results_file() -> None:
    methods, text = results_file("explainers")["methods"], page("explain")
    rows = {
        "captum, exact": "captum exact",
        "shap, exact": "shap exact",
        "shapiq, exact": "shapiq exact",
        "captum, sampled (25 orders)": "captum sampling (25 orders)",
        "shap, permutations": "shap permutation",
        "shapiq, KernelSHAP": "shapiq KernelSHAP (16 coalitions)",
    }
    for shown, key in rows.items():
        method = methods[f"{key}, eager network"]
        ratio = method["times shapmix"]["p50"]
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {shown} |"))
        _, rows_a_clip, time, error = (cell.strip() for cell in line.strip("|").split("|"))
        assert rows_a_clip == f"{method['rows a clip']:.0f}", line
        assert float(time.removesuffix("x")) == float(f"{ratio:.2g}"), line
        assert float(error) == float(f"{method['error']:.{2 if method['error'] > 0.1 else 1}g}"), line


def test_the_readme_compares_explanations_with_the_fastest_others() -> None:
    methods = results_file("explainers")["methods"]
    assert "Exact Shapley values take a third of the time of shap and shapiq" in " ".join((ROOT / "README.md").read_text().split())
    for name in ("shap", "shapiq"):
        assert 0.3 < 1 / methods[f"{name} exact, eager network"]["times shapmix"]["p50"] < 0.37


def test_the_error_of_the_default_estimator_is_that_of_the_results_files() -> None:
    budgets = results_file("saliency_budgets")["budgets"]
    error, rows = (
        [budgets[name]["budget 2 every 1"][key]["mean"] for name in ("official", "exact_subset")]
        for key in ("error", "rows a sample")
    )
    assert f"{error[0] / error[1]:.1f} times smaller" in (text := " ".join(page("own_loop").split()))
    assert f"about {rows[1] / rows[0] - 1:.0%} more rows" in text
    published, exact = (
        results_file("saliency_estimators")["estimators"][name]["error"]["mean"] for name in ("official", "exact_subset")
    )
    ratio = f"{published / exact:.1f}"
    assert f"in batches of 16 it is {ratio} times smaller" in text
    assert f"has a {ratio} times smaller error of the class table in batches of 16" in " ".join(page("explain").split())


def test_the_evidence_of_mixes_is_that_of_the_results_file() -> None:
    text = page("experiments")
    for layout, means in results_file("mix_evidence")["mean"].items():
        for kind in ("pasted", "aligned"):
            row = " | ".join(f"{means[kind][name]:.2f}" for name in ("host", "partner", "neither", "label", "share"))
            assert f"| `{layout}` | {kind} | {row} |" in text, layout


def test_the_first_runs_are_those_of_the_results_file() -> None:
    found = results_file("embedded")["runs"]["shapmix"]["test"]
    names = {
        "shapmix": "Shap-Mix",
        "balanced": "no mixing, adjusted loss (`balanced`)",
        "plain": "no mixing, cross-entropy (`plain`)",
    }
    for run, name in names.items():
        figures = (f"{100 * found[f'{run} last'][column]:.1f}%" for column in ("top1", "class_mean", "many", "medium", "few"))
        assert f"| {name} | {' | '.join(figures)} |" in page("install"), run


def test_the_reasons_are_those_of_the_results_file() -> None:
    text = page("results")
    for name, means in (results_file("mixing_reasons")["mean"] | results_file("mixing_reasons_official")["mean"]).items():
        few = means["few classes"]
        kept = " | ".join(f"{few[key]:.0%}" for key in ("error", "kept_guided", "kept_random", "kept_best"))
        assert f"| {name} | {kept} | {few['share']:.2f} |" in text, name


def test_the_errors_on_a_budget_are_those_of_the_results_file() -> None:
    found, shown = results_file("saliency_budgets")["budgets"], page("own_loop")
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| (\d) \| (.*) \|$", shown, re.MULTILINE)
    assert len(rows) >= 6
    for estimator, budget, every, figures in rows:
        mean = {key: value["mean"] for key, value in found[estimator][f"budget {budget} every {every}"].items()}
        expected = f"{mean['rows a sample']:.2f} | {mean['share of the step']:.0%} | {mean['error']:.3f}"
        assert figures == expected, (estimator, budget, every)
    published = found["official"]["budget 2 every 1"]["error"]["mean"]
    assert 0.9 < found["exact_subset"]["budget 0.5 every 1"]["error"]["mean"] / published < 1.1  # "about as close"


def test_the_speed_of_readers_is_that_of_the_results_file() -> None:
    found, text = results_file("sources"), page("big_sets")
    rates = {"Kinetics-400": found["kinetics"]["rates"], "PKU-MMD": found["pku_mmd"]["rates"], **found["arrays"]["rates"]}
    for name, rate in rates.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {name}, ")]
        for other, shown in zip(("straightforward", "straightforward, people linked"), row.split("|")[2:], strict=False):
            if other in rate:
                assert shown.strip().startswith(f"{rate['shapmix']['p50'] / rate[other]['p50']:.1f}x"), name
    table = found["table"]
    ours, plain = table["shapmix"], table["pickle.load"]
    opened = f"({table['table MB']} MB) takes {ours['CPU seconds']} s of one core and {ours['MB kept']} MB of memory"
    assert opened in " ".join(text.split())
    assert f"`pickle.load` takes {plain['CPU seconds']} s and {plain['MB kept']:,} MB" in text
    assert ours["MB after 100 clips"] == ours["MB kept"]


def test_every_difference_that_is_claimed_is_in_a_table() -> None:
    text = page("results")
    tables = "\n".join(re.findall(r"<!-- (?:grid|fresh): \w+ -->.*?<!-- end -->", text, re.DOTALL))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = re.sub(r"<!-- (grid|summary|fresh): \w+ -->.*?<!-- end -->", "", text + readme, flags=re.DOTALL)
    claimed = re.findall(r"[-+]\d+\.\d ± \d+\.\d", prose)
    assert len(claimed) >= 10
    assert not [figure for figure in claimed if f"| {figure} |" not in tables]


def test_the_best_checkpoint_is_as_much_worse_as_the_page_says() -> None:
    tests = [json.loads(path.read_text())["test"] for path in (ROOT / "bench/results/nw_ucla_grid/cells").iterdir()]
    lost = mean(test["last"]["class_mean"] - test["best"]["class_mean"] for test in tests)
    assert f"its class mean is {100 * lost:.1f} points lower on average" in " ".join(page("results").split())


def test_accuracy_with_fewer_measurements_is_that_of_the_results_file() -> None:
    table, text = (ROOT / "bench" / "results" / "saliency_every" / "table.md").read_text(encoding="utf-8"), page("own_loop")
    for name, option in (("second", "every=2"), ("fourth", "every=4")):
        (line,) = re.findall(rf"^\| every {name} step \| .* \| ([-+][\d.]+ ± [\d.]+) \| 5 \|", table, re.MULTILINE)
        assert re.search(rf"{re.escape(line)} points\s+with `{option}`", text), name
