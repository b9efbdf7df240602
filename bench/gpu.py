"""The GPU suite: `python -m bench.gpu --out FILE`, offline and within nine minutes, on a machine that does nothing else meanwhile.

Builds, runs every test on the device, runs each op under compute-sanitizer, measures the bandwidth of a copy, every op and the
step, and writes what it found as JSON, also where a stage fails or is cut off. A short table comes last; it shows no speed of an
op that a test or a sanitizer speaks against. Exits with 0 where all is green, 1 where not, 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from bench.machine import commit, machine
from bench.stages import GREEN, ROOT, Finished, Judged, Result, Stage, read_lines, run_command, run_commands, run_stages
from bench.tables import in_units, markdown, measured, shown_rows
from bench.verdicts import OPS, OPS_OF_FILE, count_tests, may_show

BUDGET = 530.0  # seconds
LIMITS = {"build": 110.0, "tests": 200.0, "sanitizer": 200.0, "ops": 80.0, "step": 60.0, "network": 60.0}
OPS_SECONDS = 45.0  # of measuring ops, then those that are left are left out
NETWORK = ("--clips", "64", "--seconds", "4")
WORKERS = max(2, (os.cpu_count() or 1) // 2)  # test files at a time, and beside them as many runs under a sanitizer
# memcheck looks at memory alone: torch and Triton ask the driver for symbols that it may lack, which is no error
TOOLS = {"memcheck": ("--report-api-errors", "no"), "racecheck": ()}
LONGEST = ("test_train_gpu.py", "test_triton_aot.py", "test_kernels_network.py", "test_faults.py")
FAULT = "a planted fault"
STEP_OPS = "sample_clips + draw_plan + mix_clips + coalition_inputs + saliency_update + balanced_mix_loss"
NETWORK_OPS = "graph_conv + batch_norm + join_branches"
TABLE_SHAPES = ("ntu", "large")


def build(result: Result, limit: float) -> Judged:
    """Installs the repository, CUDA insisted on, without the network."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "-e", "."]
    done = run_command(command, limit, {"SHAPMIX_CUDA": "1"})
    result["build"] = {"seconds": round(done.seconds, 1), "log": done.output[-4000:] if done.code else ""}
    return GREEN if done.code == 0 else Judged("red", ended(done))


def run_tests(result: Result, limit: float) -> Judged:
    """Every test file in a process of its own, the longest first, then those of the ops."""
    names = (path.name for path in (ROOT / "tests").glob("test_*.py"))
    files = sorted(names, key=lambda name: (name not in LONGEST, name not in OPS_OF_FILE, name))
    options = ["-q", "-W", "default", "-p", "no:cacheprovider", "-p", "bench.outcomes"]
    with tempfile.TemporaryDirectory() as folder:
        lines = {file: Path(folder) / f"{file}.jsonl" for file in files}
        commands = {
            file: [sys.executable, "-m", "pytest", f"tests/{file}", *options, "--outcomes", str(lines[file])] for file in files
        }
        finished = run_commands(commands, limit, workers=WORKERS, environment={"OMP_NUM_THREADS": "2"})
        outcomes = [outcome for file in files for outcome in with_crash(f"tests/{file}", read_lines(lines[file]), finished[file])]
    result["tests"] = count_tests(outcomes)
    failures, passed = result["tests"]["failures"], result["tests"]["passed"]
    if failures:
        return Judged("red", f"{len(failures)} failed, first {failures[0]}")
    return GREEN if passed else Judged("red", "no test passed")


def with_crash(file: str, outcomes: list[dict[str, str]], done: Finished) -> list[dict[str, str]]:
    """A file's outcomes, and a failure more where pytest ended otherwise than they say."""
    told = any(outcome["outcome"] in ("failed", "missing") for outcome in outcomes)
    if done.code in (0, 5) or (told and done.code in (1, 2)):  # 5: every test deselected; 2: the file could not be collected
        return outcomes
    return [*outcomes, {"test": f"{file}::{ended(done)}", "outcome": "failed"}]


def sanitize(result: Result, limit: float) -> Judged:
    """memcheck and racecheck of each op; memcheck is believed where it also finds a fault that was planted."""
    program = find_sanitizer()
    if program is None:
        return Judged("not run", "compute-sanitizer was not found")
    checks = [("memcheck", FAULT), *product(TOOLS, OPS)]
    target = [sys.executable, "-m", "bench.small_shapes"]
    commands = {
        f"{tool} {what}": [program, "--tool", tool, *TOOLS[tool], *target, "--fault" if what == FAULT else what]
        for tool, what in checks
    }
    # every tensor gets an allocation of its own, so that what lies beside it is not another tensor
    finished = run_commands(commands, limit, workers=WORKERS, environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    found = {tool: {op: sanitized(finished[f"{tool} {op}"])._asdict() for op in OPS} for tool in TOOLS}
    planted = sanitized(finished[f"memcheck {FAULT}"])
    if planted.verdict != "red":
        blind = Judged("not run", f"it did not find {FAULT}: {ended(finished[f'memcheck {FAULT}'])}")
        found["memcheck"] = {op: of_op if of_op["verdict"] == "red" else blind._asdict() for op, of_op in found["memcheck"].items()}
    result["sanitizer"] = found
    for verdict in ("red", "not run"):
        for tool, of_ops in found.items():
            for op, judged in of_ops.items():
                if judged["verdict"] == verdict:
                    return Judged(verdict, f"{tool} {op}: {judged['reason']}")
    return GREEN


def sanitized(done: Finished) -> Judged:
    """Green only where the sanitizer counted no error and the program ended well."""
    summaries = re.findall(r"SUMMARY: (\d+) (?:error|hazard)", done.output)
    errors = sum(map(int, summaries))
    if errors:
        reports = [line.lstrip("= ").strip() for line in done.output.splitlines() if line.startswith("=========")]
        telling = next((line for line in reports if line and not line.startswith("COMPUTE-SANITIZER")), "")
        return Judged("red", f"{errors} errors, first: {telling}")
    return GREEN if done.code == 0 and summaries else Judged("not run", ended(done))


def find_sanitizer() -> str | None:
    """compute-sanitizer on the PATH or in the toolkit."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("compute-sanitizer") or shutil.which(f"{home}/bin/compute-sanitizer")


def measure_ops(result: Result, limit: float) -> Judged:
    """Bandwidth of a copy, then every op."""
    lines, done = run_measurement("bench.measure", limit, "--seconds", str(OPS_SECONDS))
    result["left out"] = [line["left out"] for line in lines if "left out" in line]
    result["copy"] = next((line["copy"] for line in lines if "copy" in line), None)
    result["rows"] = [line["row"] for line in lines if "row" in line]
    failed = [row for row in result["rows"] if "error" in row]
    if failed:
        return Judged("red", f"{len(failed)} failed, first {failed[0]['ops']} on {failed[0]['shape']}: {failed[0]['error']}")
    return GREEN if done.code == 0 else Judged("red", f"{ended(done)}, after {len(result['rows'])} rows")


def measure_step(result: Result, limit: float) -> Judged:
    """The augment path and the resident step, in which the host may wait for nothing, and the training step."""
    lines, done = run_measurement("bench.step", limit)
    for kind in ("augment_path", "training_step", "resident_step"):
        result[kind] = [line[kind] for line in lines if kind in line]
    waits = [path for path in result["augment_path"] if path["seconds"].get("host_read")]
    if waits:
        return Judged("red", f"the augment path on {waits[0]['backend']} waits for the host: {waits[0]['seconds']['host_read']}")
    for step in result["resident_step"]:
        if step.get("host_read"):
            return Judged("red", f"the resident step waits for the host: {step['host_read']}")
    return GREEN if done.code == 0 else Judged("red", ended(done))


def measure_network(result: Result, limit: float) -> Judged:
    """The published network against the reference's formulas: forward, training, whole step, memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.json"
        done = run_command([sys.executable, "-m", "bench.network", *NETWORK, "--out", str(path)], limit)
        if done.code != 0:
            return Judged("red", ended(done))
        found = json.loads(path.read_text(encoding="utf-8"))
    result["network"] = {key: value for key, value in found.items() if key not in ("command", "commit", "machine")}
    return GREEN


def run_measurement(module: str, limit: float, *options: str) -> tuple[list[dict[str, Any]], Finished]:
    """The lines that a module wrote, however it ended."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.jsonl"
        done = run_command([sys.executable, "-m", module, "--out", str(path), *options], limit)
        return read_lines(path), done


def ended(done: Finished) -> str:
    """How a command ended, in a few words."""
    return "cut off at its time limit" if done.code is None else f"ended with code {done.code}: {done.last_line[:200]}"


STAGES = (  # the measurements that are only made here come before those of single ops, which end when their time is over
    Stage("build", LIMITS["build"], build),
    Stage("tests", LIMITS["tests"], run_tests, needs="build"),
    Stage("sanitizer", LIMITS["sanitizer"], sanitize, needs="build", beside=True),
    Stage("step", LIMITS["step"], measure_step, needs="build"),
    Stage("network", LIMITS["network"], measure_network, needs="build"),
    Stage("ops", LIMITS["ops"], measure_ops, needs="build"),
)


def all_green(result: Result) -> bool:
    return all(stage["verdict"] == "green" for stage in result["stages"].values())


def summary(result: Result) -> str:
    """A line a stage, the ops on the shapes that decide, and the step."""
    lines = [
        f"{name:<10} {stage['verdict']:<8} {stage['seconds']:6.1f} s  {stage['reason']}".rstrip()
        for name, stage in result["stages"].items()
    ]
    tests = result.get("tests")
    if tests:
        lines.append(f"tests: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped")
        lines += [f"{test}: {reason.partition(' | ')[0]}" for test, reason in tests["reasons"].items()]
        lines += [f"not run, it needs a package that is not installed: {file}" for file in tests["missing"]]
    if result.get("copy"):
        lines.append(f"a copy moves {result['copy']['gb_per_s']:.0f} GB/s")
    if result.get("left out"):
        lines.append(f"ops not measured for lack of time: {', '.join(result['left out'])}")
    rows = [row for row in shown_rows(result) if row["dtype"] == "float32" and row["shape"] in TABLE_SHAPES]
    if rows:
        lines += ["", markdown(measured(rows)), ""]
    lines += [path_line(result, path) for path in result.get("augment_path", [])]
    lines += [
        f"training step, {step['backend']}: {in_units(step['seconds']['p50'])}"
        for step in result.get("training_step", [])
        if step["backend"] == "reference" or may_show(result, STEP_OPS, step["backend"]) == "green"
    ]
    lines += [
        f"the same as one CUDA graph, sampling included, {step['precision']}: {in_units(step['seconds']['p50'])}"
        for step in result.get("resident_step", [])
        if may_show(result, f"{STEP_OPS} + {NETWORK_OPS}", "auto") == "green"
    ]
    if may_show(result, NETWORK_OPS, "auto") == "green":
        lines += [
            network_line(name, of) for name, of in result.get("network", {}).items() if isinstance(of, dict) and "seconds" in of
        ]
    return "\n".join(lines)


def network_line(name: str, of: dict[str, Any]) -> str:
    """One comparison of the network with the reference."""
    seconds = of["seconds"]
    shown = [
        f"{kind} {in_units(seconds[kind]['p50'])} ({seconds[f'speed-up {kind}']['p50']:.1f}x)" for kind in ("float32", "bfloat16")
    ]
    return f"network, {name}: reference {in_units(seconds['reference']['p50'])}, {', '.join(shown)}"


def path_line(result: Result, path: dict[str, Any]) -> str:
    """The augment path's device time beside its target, or why it is not shown."""
    shown, named = may_show(result, STEP_OPS, path["backend"]), f"augment path, {path['backend']}:"
    if shown != "green":
        return f"{named} {shown}"
    cold, hot = (path["seconds"][clock]["op"]["p50"] for clock in ("cold", "hot"))
    wall = path["seconds"]["wall"]["reference"]["p50"]
    met = "met" if hot <= path["target"] else "not met"
    return (
        f"{named} {in_units(cold)} cold, {in_units(hot)} hot on the device "
        f"(target {in_units(path['target'])} {met}); eager reference {in_units(wall)}"
    )


def main(arguments: Sequence[str] | None = None, stages: Sequence[Stage] = STAGES) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for everything that was found")
    parser.add_argument("--commit", help="of the tree, where it is not a git repository")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(
            f"bench.gpu: torch {torch.__version__} sees no CUDA device on this machine, so nothing was built or measured",
            file=sys.stderr,
        )
        return 2
    result: Result = {"suite": "gpu", "commit": options.commit or commit(), "machine": machine(), "limits": LIMITS}
    run_stages(stages, result, options.out, BUDGET)
    print(summary(result))
    return 0 if all_green(result) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what it started is ended with it
    sys.exit(main())
