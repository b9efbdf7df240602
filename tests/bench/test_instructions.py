"""Instructions counted in a disassembly, and their limits, which every change that lowers them lowers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench import instruction_counts, sass

LISTING = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   ULDC UR4, c[0x0][0x218] ;
        /*0020*/                   CS2R R2, SRZ ;
.L_x_0:
        /*0030*/                   LDG.E R8, desc[UR6][R4.64] ;
        /*0040*/                   VIADD R2, R2, 0x10 ;
        /*0050*/                   ISETP.GE.AND P0, PT, R2, UR4, PT ;
        /*0060*/              @!P0 BRA `(.L_x_0) ;
        /*0070*/                   EXIT ;
        /*0080*/                   NOP ;
"""
MOST = {"graph_unit_gradient_kernel": 1700, "graph_unit_kernel": 760}  # million warp instructions of a training pass of 128 clips


def test_a_loop_is_counted_as_often_as_it_runs() -> None:
    words = sass.constants_of([(8, 1 << 40), (4, 100)], 4, (1,))
    counts = sass.issued(sass.Listing.read(LISTING), words)
    assert counts == Counter({"LDC": 1, "ULDC": 1, "CS2R": 1, "LDG.E": 7, "VIADD": 7, "ISETP.GE.AND": 7, "BRA": 7, "EXIT": 1})


def test_a_branch_on_memory_is_an_error() -> None:
    listing = LISTING.replace("R2, UR4, PT", "R8, UR4, PT")
    with pytest.raises(ValueError, match="not known ahead of time"):
        sass.issued(sass.Listing.read(listing), sass.constants_of([(8, 1 << 40), (4, 100)], 4, (1,)))


def test_the_committed_counts_are_of_the_present_kernels() -> None:
    counts = instruction_counts.read()
    assert {shape.kernel for shape in counts} == set(MOST)


def test_counts_of_other_sources_are_an_error(tmp_path: Path) -> None:
    content = json.loads(instruction_counts.FILE.read_text(encoding="utf-8"))
    path = tmp_path / "counts.json"
    path.write_text(json.dumps(content | {"sha256": "0" * 64}), encoding="utf-8")
    with pytest.raises(instruction_counts.StaleCountsError, match=r"counts\.json .* count again with"):
        instruction_counts.read(path)


@pytest.mark.slow
def test_graph_units_keep_within_their_instructions() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    program = """
import json, torch
from bench import instructions
found = {}
for call, counts in instructions.count(torch.bfloat16, 128, True, "graph_unit"):
    name = call.kernel.fn.__name__
    found[name] = found.get(name, 0) + counts.total()  # an error where it is None
print(json.dumps(found))
"""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == set(MOST)
    for name, most in MOST.items():
        assert found[name] <= most * 1e6, (name, found[name])
