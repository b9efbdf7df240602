"""SHAPMIX_ISA pins the instruction set of every CPU kernel; the sets compute the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shapmix.kernels import cpp
from tests.proofs import OPS

ROOT = Path(__file__).parents[2]
FOUND = cpp.instruction_set()
SETS = FOUND.available if FOUND else ()

EXAMPLES = """
import hashlib, json
import torch
from shapmix import kernels
from shapmix.kernels import cpp, installation, unavailable
from shapmix.kernels.agreement import agrees
from shapmix.kernels.examples import EXAMPLES, Batch, Shape, example, results

cpu, found = torch.device("cpu"), {}
torch.set_num_threads(1)
for shape in (Shape("odd", None, (3, 2, 5, 3, 1), 6, width=16), Shape("small", "ntu25", (4, 3, 16, 25, 2), 9, width=16)):
    for op, kind in EXAMPLES.items():
        for dtype in kind.dtypes:
            if unavailable("cpp", cpu, dtype, op) is None:
                batch = Batch(shape, dtype, cpu)
                values = results(getattr(kernels, op), example(op, batch), backend="cpp")
                digest = hashlib.sha256(b"".join(value.contiguous().view(-1).view(torch.uint8).numpy() for value in values))
                found[f"{op} {shape.name} {dtype}"] = agrees(op, batch, "cpp"), digest.hexdigest()
print(json.dumps({"set": cpp.instruction_set(), "doctor": installation.processor(), "found": found}))
"""

# Ops that are bit-equal to the reference, and those of the loss, whose sums run in a fixed order.
SAME_BITS = ("coalition_inputs", "mix_clips", "sample_clips", "draw_plan", "balanced_mix_loss")


def python(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SHAPMIX_ISA": isa}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def pinned() -> dict[str, Any]:
    """What a process with each instruction set of this machine says."""
    if not SETS:
        pytest.skip("shapmix._native was not built")
    done = {isa: python(isa, "-c", EXAMPLES) for isa in SETS}
    assert {isa: run.stderr for isa, run in done.items() if run.returncode} == {}
    return {isa: json.loads(run.stdout) for isa, run in done.items()}


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.proves(*OPS, backend="cpp")
def test_a_pinned_set_computes_every_example_as_the_reference(pinned: dict[str, Any], isa: str) -> None:
    found = pinned[isa]
    assert found["set"] == [isa, True, list(SETS)]
    assert {name.split()[0] for name in found["found"]} == set(OPS)
    assert [name for name, (agrees, _) in found["found"].items() if not agrees] == []


def test_ops_without_products_of_their_own_have_the_same_bits_on_every_set(pinned: dict[str, Any]) -> None:
    first, *others = (run["found"] for run in pinned.values())
    names = [name for name in first if name.split()[0] in SAME_BITS]
    assert {name.split()[0] for name in names} == set(SAME_BITS)
    for other in others:
        assert [name for name in names if other[name] != first[name]] == []


def test_the_doctor_names_the_set(pinned: dict[str, Any]) -> None:
    for isa, run in pinned.items():
        assert run["doctor"]["kernels use"] == f"{isa}, pinned by SHAPMIX_ISA"
        assert run["doctor"]["instruction sets"] == ", ".join(SETS)


@pytest.mark.skipif(not SETS, reason="shapmix._native was not built")
def test_an_unknown_set_stops_a_command_in_one_line() -> None:
    done = python("sse9", "-m", "shapmix.doctor")
    told = "SHAPMIX_ISA is 'sse9', which is no instruction set of the kernels; give auto or one that it has"
    assert (done.returncode, done.stderr) == (2, f"error: {told}: {', '.join(SETS)}\n")


def test_the_set_is_chosen_in_one_place() -> None:
    """No function that the loader selects, which could not be pinned, and no second detection."""
    files = {path.name: path.read_text() for path in (ROOT / "csrc").iterdir()}
    chosen = [name for name, text in files.items() if "target_clones" in text or "cpu_supports" in text or "cpu_is" in text]
    assert chosen == ["isa.h"]
