"""Tests and benchmarks on a GPU within a time budget, most important first: `python -m tests.gpu --minutes M --out FILE`.

Runs the headline (`bench.headline`), the tests that need a GPU, memcheck, the op table and racecheck. The C++ and CUDA code is
built in the background, offline; items that need only torch and Triton do not wait for it. Each item is saved when it finishes and
starts only if its estimated time fits; with `--resume FILE`, items that the file has for this version and card are skipped. The
final table hides the speed of ops with a failed test or sanitizer report, and marks ops whose tests could not run as "unverified".
racecheck sees hazards in shared memory only; races in global memory are for the tests that a step repeats to the bit.

Exit code: 0 if everything was measured without failures; 1 if something failed; 2 without a GPU or for invalid arguments; 3 if
items are left to measure.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import ROOT, headline
from bench.stages import (
    GREEN,
    Background,
    CannotRunError,
    Content,
    Finished,
    Item,
    Judged,
    Record,
    in_background,
    read_lines,
    run_command,
    run_commands,
    walk,
)
from bench.step import PUBLISHED
from bench.tables import in_units, markdown, measured, shown_rows
from bench.verdicts import as_result, count_tests, may_show
from shapmix.kernels import unavailable
from tests.gpu.small_shapes import LAYERS
from tests.proofs import OPS

MINUTES = 9.0
WORKERS = max(2, (os.cpu_count() or 1) // 2)  # test files, or runs under a sanitizer, at a time
BUILD = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "-e", "."]
BUILD_ENVIRONMENT = {"SHAPMIX_CUDA": "1", "CMAKE_BUILD_PARALLEL_LEVEL": str(WORKERS)}
# memcheck checks memory only: torch and Triton query the driver for symbols that it may lack, which is not an error
TOOLS = {"memcheck": ("--report-api-errors", "no"), "racecheck": ()}
NETWORK_OPS = ("graph_conv", "batch_norm", "join_branches")
GROUPS = {"of the network": (*NETWORK_OPS, LAYERS), "of the step": tuple(op for op in OPS if op not in NETWORK_OPS)}
TESTS = ROOT / "tests"
MARKER, BACKEND = re.compile(r"mark\.proves|on_backends\("), re.compile('"(triton|cuda)"')
FIRST = "training/test_train_gpu.py"  # the whole path, before the ops one by one


def files_with_gpu_tests() -> tuple[str, ...]:
    """Files below tests/ with tests marked `gpu`, found without importing them; those of this suite only speak of such tests."""
    about_suite = {"bench/test_gpu_suite.py", "project/test_proofs.py"}
    texts = {str(path.relative_to(TESTS)): path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py")}
    found = {file for file, text in texts.items() if "mark.gpu" in text or (MARKER.search(text) and BACKEND.search(text))}
    return (FIRST, *sorted(found - about_suite - {FIRST}))


GPU_FILES = files_with_gpu_tests()
FAULT = "a planted fault"
STEP_OPS = "sample_clips + draw_plan + mix_clips + coalition_inputs + saliency_update + balanced_mix_loss"
TABLE_SHAPES = ("ntu", "large")


def items(record: Record, building: Background | None) -> list[Item]:
    """Items to measure, most important first; estimates are for an H100 with 16 cores."""

    def sanitizer(tool: str, group: str, estimate: float) -> Item:
        return Item(f"{tool} {group}", estimate, partial(sanitize, tool, GROUPS[group]))

    found = [
        Item("headline", 60, partial(run_headline, record)),
        Item("build", 1, partial(wait_for_build, building)),
        Item("tests", 90, run_tests),
        sanitizer("memcheck", "of the network", 60),
        sanitizer("memcheck", "of the step", 60),
        Item("augment path", 20, measure_augment_path),
        Item("ops", 60, measure_ops),
        sanitizer("racecheck", "of the network", 60),
        sanitizer("racecheck", "of the step", 60),
    ]
    return [item for item in found if item.name != "build" or building is not None]


def run_headline(record: Record, left: float) -> Content:
    """Runs `bench.headline`, which adds its items to this file."""
    command = [sys.executable, "-m", "bench.headline", "--resume", str(record.path), "--commit", record.run["commit"]]
    done = run_command([*command, "--seconds", f"{min(headline.SECONDS, left - 5):.0f}"], left)
    record.reload()
    if not headline.is_complete(record):
        raise CannotRunError(f"incomplete: {describe_end(done)}")
    return {"code": done.code}


def wait_for_build(building: Background | None, left: float) -> Content:
    """Waits for the background build and returns its outcome."""
    assert building is not None
    deadline = time.monotonic() + left
    while not building.has_ended():
        if time.monotonic() > deadline:
            raise CannotRunError("it was still building at the time limit")
        time.sleep(0.05)
    done = building.end()
    found: Content = {"seconds": round(done.seconds, 1)}
    return found if done.code == 0 else {**found, "log": done.output[-4000:], "error": describe_end(done)}


def run_tests(left: float) -> Content:
    """Runs the tests that need a GPU, one process per file."""
    options = ["-q", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", "-p", "tests.gpu.outcomes"]
    with tempfile.TemporaryDirectory() as folder:
        lines = {file: Path(folder) / f"{Path(file).name}.jsonl" for file in GPU_FILES}
        commands = {
            file: [sys.executable, "-m", "pytest", f"tests/{file}", *options, "--outcomes", str(lines[file])] for file in GPU_FILES
        }
        finished = run_commands(commands, left, workers=WORKERS, environment={"OMP_NUM_THREADS": "2"})
        outcomes = [outcome for file in GPU_FILES for outcome in with_end(f"tests/{file}", read_lines(lines[file]), finished[file])]
    killed = [file for file, done in finished.items() if done.code is None]
    found: Content = {"counts": count_tests(outcomes)}
    return found | ({"not run": f"killed at the time limit: {', '.join(killed)}"} if killed else {})


def with_end(file: str, lines: list[Content], done: Finished) -> list[Content]:
    """The outcomes among a file's lines, plus one if they do not explain the exit code of pytest.

    A crashed process counts as a failure of the first test that did not end. A process that timed out, or that pytest could not
    start (a conftest.py that cannot be imported), leaves its tests unverified.
    """
    outcomes = [line for line in lines if "outcome" in line]
    reported = any(outcome["outcome"] in ("failed", "missing") for outcome in outcomes)
    if done.code in (0, 5) or (reported and done.code in (1, 2)):  # 5: every test deselected; 2: the file could not be collected
        return outcomes
    inconclusive = done.code in (None, 4) or (not outcomes and done.code is not None and done.code > 0)
    ended = {outcome["test"] for outcome in outcomes}
    nothing: Content = {"ops": [], "backend": None}
    crashed = next((line for line in lines if "outcome" not in line and line["test"] not in ended), nothing)
    outcome = "missing" if inconclusive else "failed"
    return [*outcomes, {**crashed, "test": f"{file}::{describe_end(done)}", "outcome": outcome}]


def sanitize(tool: str, ops: Sequence[str], left: float) -> Content:
    """Runs a compute-sanitizer tool on ops; memcheck is trusted only if it also finds a planted fault."""
    program = find_sanitizer()
    if program is None:
        raise CannotRunError("compute-sanitizer was not found")
    names = ([FAULT] if tool == "memcheck" else []) + list(ops)
    base = [program, "--tool", tool, *TOOLS[tool], sys.executable, "-m", "tests.gpu.small_shapes"]
    commands = {name: [*base, "--fault" if name == FAULT else name] for name in names}
    # separate allocations, so that out-of-bounds accesses do not hit another tensor
    finished = run_commands(commands, left, workers=WORKERS, environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    found = {op: sanitized(finished[op]) for op in ops}
    if tool == "memcheck" and sanitized(finished[FAULT]).verdict != "red":
        blind = Judged("not run", f"it did not find {FAULT}: {describe_end(finished[FAULT])}")
        found = {op: judged if judged.verdict == "red" else blind for op, judged in found.items()}
    content: Content = {tool: {op: judged._asdict() for op, judged in found.items()}}
    skipped = [f"{op}: {judged.reason}" for op, judged in found.items() if judged.verdict == "not run"]
    return content | ({"not run": "; ".join(skipped)} if skipped else {})


def sanitized(done: Finished) -> Judged:
    """Green only if the sanitizer reports no error and the program exits with 0."""
    summaries = re.findall(r"SUMMARY: (\d+) (?:error|hazard)", done.output)
    errors = sum(map(int, summaries))
    if errors:
        reports = [line.lstrip("= ").strip() for line in done.output.splitlines() if line.startswith("=========")]
        telling = next((line for line in reports if line and not line.startswith("COMPUTE-SANITIZER")), "")
        return Judged("red", f"{errors} errors, first: {telling}")
    return GREEN if done.code == 0 and summaries else Judged("not run", describe_end(done))


def find_sanitizer() -> str | None:
    """Path of compute-sanitizer, on the PATH or in the toolkit."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("compute-sanitizer") or shutil.which(f"{home}/bin/compute-sanitizer")


def measure_ops(left: float) -> Content:
    """Measures the bandwidth of a copy, then every op."""
    lines, done = run_measurement("bench.measure", left, "--seconds", f"{left / 1.5:.0f}")
    found: Content = {
        "skipped": [line["skipped"] for line in lines if "skipped" in line],
        "copy": next((line["copy"] for line in lines if "copy" in line), None),
        "rows": [line["row"] for line in lines if "row" in line],
    }
    failed = [row for row in found["rows"] if "error" in row]
    if failed:
        found["error"] = f"{len(failed)} failed, first {failed[0]['ops']} on {failed[0]['shape']}: {failed[0]['error']}"
    elif done.code != 0:
        found["not run"] = f"{describe_end(done)}, after {len(found['rows'])} rows"
    return found


def measure_augment_path(left: float) -> Content:
    """Measures the ops that Shap-Mix adds to a step; a synchronisation with the host is an error."""
    lines, done = run_measurement("bench.step", left)
    paths = [line["augment_path"] for line in lines]
    found: Content = {"augment_path": paths}
    waits = [path for path in paths if path["seconds"].get("host_read")]
    if waits:
        found["error"] = f"on {waits[0]['backend']} it synchronises with the host: {waits[0]['seconds']['host_read']}"
    elif done.code != 0:
        found["not run"] = describe_end(done)
    return found


def run_measurement(module: str, limit: float, *options: str) -> tuple[list[dict[str, Any]], Finished]:
    """Runs a benchmark module and returns the lines that it wrote, even if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.jsonl"
        done = run_command([sys.executable, "-m", module, "--out", str(path), *options], limit)
        return read_lines(path), done


def describe_end(done: Finished) -> str:
    """How a command ended, in one line."""
    return "killed at its time limit" if done.code is None else f"exited with code {done.code}: {done.last_line[:200]}"


def failures(record: Record) -> list[str]:
    """All failures: errors, a red verdict, failed tests and sanitizer reports."""
    found = [f"{name}: {of['error']}" for name, of in record.items.items() if "error" in of]
    if record.run["verdict"]["word"] == "red":
        found.append(record.run["verdict"]["reason"])
    result = as_result(record.run)
    found += result["tests"].get("failures", [])
    found += [
        f"{tool} {op}: {judged['reason']}"
        for tool, ops in result["sanitizer"].items()
        for op, judged in ops.items()
        if judged["verdict"] == "red"
    ]
    return found


def summary(record: Record, names: Sequence[str]) -> str:
    """The headline table, failures, items left, and the speeds of ops without failures."""
    result = as_result(record.run)
    lines = [headline.table(record), ""]
    lines += [f"failed: {what}" for what in failures(record)]
    lines += [
        f"{name}: {headline.reason_of(record.items.get(name, {'not run': 'interrupted'}))}"
        for name in names
        if not record.has(name)
    ]
    if counts := result["tests"]:
        lines.append(f"tests: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
        lines += [f"could not run: {test}" for test in counts["missing"]]
    lines += [path_line(result, path) for path in result["augment_path"]]
    rows = [row for row in shown_rows(result) if row["shape"] in TABLE_SHAPES and row["dtype"] == "float32"]
    return "\n".join([*lines, *(["", markdown(measured(rows))] if rows else [])])


def path_line(result: Content, path: dict[str, Any]) -> str:
    """The augment path's device time and target, or why it is not shown."""
    shown, named = may_show(result, STEP_OPS, path["backend"]), f"augment path, {path['backend']}:"
    if shown == "red":
        return f"{named} red"
    cold, hot = (path["seconds"][clock]["op"]["p50"] for clock in ("cold", "hot"))
    wall = path["seconds"]["wall"]["reference"]["p50"]
    met = "met" if hot <= path["target"] else "not met"
    return (
        f"{named} {in_units(cold)} cold, {in_units(hot)} hot on the device "
        f"(target {in_units(path['target'])} {met}); eager reference {in_units(wall)}" + (f" ({shown})" if shown != "green" else "")
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="results file; default: the resumed file")
    parser.add_argument("--resume", type=Path, help="results file of tests.gpu or bench.headline; its items are not measured again")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time budget in minutes")
    parser.add_argument("--commit", help="commit of the tree if it is not a git repository")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(
            f"tests.gpu: torch {torch.__version__} finds no CUDA device on this machine; nothing was built or measured",
            file=sys.stderr,
        )
        return 2
    deadline = time.monotonic() + 60 * options.minutes
    try:
        record = headline.open_record(options, "python -m tests.gpu", PUBLISHED)
    except ValueError as error:
        print(f"tests.gpu: {error}", file=sys.stderr)
        return 2
    record.write()
    built = unavailable("cuda", torch.device("cuda:0")) is None
    names: list[str] = []
    try:
        with nullcontext() if built else in_background(BUILD, BUILD_ENVIRONMENT) as building:
            walked = items(record, building)
            names = [item.name for item in walked]
            walk(walked, record, deadline, after=partial(headline.judge, record))
    finally:
        print(summary(record, names), flush=True)
    return 1 if failures(record) else 0 if all(map(record.has, names)) else 3
