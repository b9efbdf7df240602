"""Maps tests to ops, and decides whether an op's speed is shown: hidden after a failure, marked if unverified."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any, Literal

OPS = (
    "sample_clips",
    "coalition_inputs",
    "normalised_coalition_inputs",
    "mix_clips",
    "draw_plan",
    "saliency_update",
    "balanced_mix_loss",
    "graph_conv",
    "batch_norm",
    "join_branches",
)
# Files in tests/kernels that cover these ops only; a test whose name contains an op covers just that op. Tests in other files
# cover the ops, or the files, in their names.
OPS_OF_FILE = {
    "test_coalitions_and_mixing.py": ("coalition_inputs", "normalised_coalition_inputs", "mix_clips"),
    "test_sample_clips.py": ("sample_clips",),
    "test_draw_plan.py": ("draw_plan",),
    "test_saliency_update.py": ("saliency_update",),
    "test_balanced_mix_loss.py": ("balanced_mix_loss",),
    "test_network_ops.py": ("graph_conv", "batch_norm"),
    "test_join_branches.py": ("join_branches",),
}
SANITIZERS = {"memcheck", "racecheck"}
GPU_BACKENDS = ("cuda", "triton")


def ops_of(test: str) -> tuple[str, ...]:
    """The ops covered by a pytest id."""
    of_file = next((ops for file, ops in OPS_OF_FILE.items() if file in test), None)
    named = tuple(op for op in of_file or OPS if op in test)
    return named or of_file or ()


def verified_backends(test: str) -> tuple[str, ...]:
    """The GPU back ends that a passing test verifies: those in its name, if it is in an op's test file.

    Tests in other files may name a back end but run in Triton's interpreter or only compile.
    """
    file, _, name = test.partition("::")
    return tuple(backend for backend in GPU_BACKENDS if backend in name) if PurePosixPath(file).name in OPS_OF_FILE else ()


def count_tests(outcomes: Iterable[dict[str, str]]) -> dict[str, Any]:
    """Counts of outcomes, in total and per op, with the number of passed tests that verify each GPU back end."""
    outcomes = list(outcomes)
    total = Counter(outcome["outcome"] for outcome in outcomes)
    of_op = {op: Counter[str]() for op in OPS}
    for outcome in outcomes:
        for op in ops_of(outcome["test"]):
            of_op[op][outcome["outcome"]] += 1
            if outcome["outcome"] == "passed":
                of_op[op].update(verified_backends(outcome["test"]))
    return {
        **{kind: total[kind] for kind in ("passed", "failed", "skipped")},
        "missing": [outcome["test"] for outcome in outcomes if outcome["outcome"] == "missing"],
        "failures": [outcome["test"] for outcome in outcomes if outcome["outcome"] == "failed"],
        "reasons": {outcome["test"]: outcome["reason"] for outcome in outcomes if "reason" in outcome},
        "ops": {
            op: {kind: counts[kind] for kind in ("passed", "failed", "skipped", *GPU_BACKENDS)} for op, counts in of_op.items()
        },
    }


def as_result(run: dict[str, Any]) -> dict[str, Any]:
    """Converts a run of a `bench.gpu` results file for the tables: tests, sanitizer, copy, rows and augment path."""
    items = run["items"]
    sanitizer: dict[str, dict[str, Any]] = {}
    for content in items.values():
        for tool in SANITIZERS & content.keys():
            sanitizer.setdefault(tool, {}).update(content[tool])
    return {
        "tests": items.get("tests", {}).get("counts", {}),
        "sanitizer": sanitizer,
        "copy": items.get("ops", {}).get("copy"),
        "rows": items.get("ops", {}).get("rows", []),
        "augment_path": items.get("augment path", {}).get("augment_path", []),
    }


def may_show(result: dict[str, Any], ops: str, backend: str) -> Literal["green", "red", "unverified"]:
    """The verdict for ops (joined by ` + `) on a back end; `red` hides the speed, `unverified` is printed with it.

    Red: a test of the op failed, or a sanitizer found an error. Unverified: no test of the op on that back end passed.
    """
    verdict: Literal["green", "unverified"] = "green"
    for op in ops.split(" + "):
        counts = result.get("tests", {}).get("ops", {}).get(op, {})
        sanitized = (found.get(op, {}).get("verdict") for found in result.get("sanitizer", {}).values())
        if counts.get("failed") or "red" in sanitized:
            return "red"
        passed = sum(counts.get(name, 0) for name in GPU_BACKENDS) if backend == "auto" else counts.get(backend, 0)
        if not passed:
            verdict = "unverified"
    return verdict
