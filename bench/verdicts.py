"""Whether the speed of an op is shown: hidden if a test of it failed, marked if no test of it passed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from shapmix.kernels import dispatch

OPS = tuple(dispatch.OPS)
SANITIZERS = {"memcheck", "racecheck"}
GPU_BACKENDS = ("cuda", "triton")


def count_tests(outcomes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Counts of outcomes, in total and per op, with the number of passed tests that prove the op on each GPU back end.

    Args:
        outcomes: per test its id as `test`, its `outcome`, the `ops` that it is about, and the `backend` that it proves them on.
    """
    outcomes = list(outcomes)
    total = Counter(outcome["outcome"] for outcome in outcomes)
    of_op = {op: Counter[str]() for op in OPS}
    for outcome in outcomes:
        for op in outcome["ops"]:
            of_op[op][outcome["outcome"]] += 1
            if outcome["outcome"] == "passed" and outcome["backend"] in GPU_BACKENDS:
                of_op[op][outcome["backend"]] += 1
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
    """Converts a run of a GPU suite's results file for the tables: tests, sanitizer, copy, rows and augment path."""
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
