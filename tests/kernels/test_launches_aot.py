"""Every launch of CTR-GCN's fused layers, compiled ahead of time as a network launches it; needs no GPU.

A pass of a network on fake tensors yields the launches with their arguments. As a program, this module compiles them and prints a
line of JSON for each; the tests start it in a process without Triton's interpreter. By default two layers in bfloat16 are compiled
for sm_90; `-m slow` compiles float32 and the other architectures. `test_unit_aot.py` has the sizes of the published layers.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes per block
PRODUCTS = (  # kernels whose time is that of matrix products, so that they must use the tensor cores
    "graph_unit_kernel",
    "graph_unit_gradient_kernel",
    "layer_input_kernel",
    "reduce_branches_kernel",
    "reduce_branches_backward_kernel",
    "row_product_kernel",
    "row_product_backward_kernel",
    "temporal_branches_kernel",
    "temporal_branches_backward_kernel",
    "folded_temporal_unit_kernel",
)
TENSOR_CORE = re.compile(r"\b(wgmma\.mma_async|mma\.sync|tcgen05\.mma)\b")


class Network(NamedTuple):
    """A network whose launches are compiled, in training and in eval mode."""

    layout: str
    widths: tuple[int, ...]
    dtype: str
    arch: int


QUICK = Network("ntu25", (64, 128), "bfloat16", 90)
SLOW = [
    Network("ntu25", (64, 128), "float32", 90),
    Network("ntu25", (64, 128), "bfloat16", 80),
    Network("ntu25", (64, 128), "bfloat16", 100),
    Network("ntu25", (8, 24), "bfloat16", 90),
]
MAY_SPILL = {QUICK: 64}  # bytes that a kernel may store, and load again; a few that lie outside of its loops
MAY_SPILL_ELSEWHERE = 1024


def launches_of(network: Network) -> list[Any]:
    """The distinct launches of both passes, as calls of `bench.instructions`."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from bench import instructions
    from shapmix.kernels import triton_unit
    from shapmix.networks.ctrgcn import CTRGCN
    from shapmix.skeleton.layout import load_layout

    for name in instructions.MODULES:
        vars(import_module(f"shapmix.kernels.triton_unit_{name}"))["architecture"] = lambda _x: network.arch
    dtype = getattr(torch, network.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    torch.set_default_dtype(wide)
    with FakeTensorMode(allow_non_fake_inputs=True), instructions.calls_kept() as calls:
        model: Any = CTRGCN(load_layout(network.layout), 60, widths=network.widths)
        model.steps_on = lambda _clips: triton_unit
        clips = torch.empty(64, *model.input_shape[:1], 64, *model.input_shape[1:], dtype=wide)
        for training in (True, False):
            model.train(training)
            with torch.set_grad_enabled(training), torch.autocast("cpu", dtype, enabled=dtype != wide):
                logits = model(clips)
            if training:
                logits.sum().backward()
    return list({call.compiled_as(): call for call in calls}.values())


def compile_all(network: Network) -> None:
    """Prints, for each launch, ptxas's report and a line of JSON."""
    from bench.instructions import compiled

    for call in launches_of(network):
        code = compiled(call, network.arch)
        report = {"kernel": call.declared.name, "shared": code.metadata.shared, "mma": len(TENSOR_CORE.findall(code.asm["ptx"]))}
        print(json.dumps(report), flush=True)


def reports(network: Network, folder: Path) -> list[dict[str, Any]]:
    """Of each launch: kernel, shared memory, instructions of the tensor cores, and ptxas's report."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder), "TRITON_DUMP_PTXAS_LOG": "1"}
    command = [sys.executable, "-m", "tests.kernels.test_launches_aot", json.dumps(network)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: list[dict[str, Any]] = []
    log = ""
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found.append({**json.loads(line), "ptxas": log})
            log = ""
        else:
            log += line + "\n"
    return found


@pytest.mark.parametrize("network", [QUICK, *(pytest.param(network, marks=pytest.mark.slow) for network in SLOW)], ids=str)
def test_every_launch_compiles_and_fits(network: Network, tmp_path: Path) -> None:
    """Registers and shared memory suffice, and half-precision products use the tensor cores."""
    pytest.importorskip("triton", reason="triton is not installed")
    found = reports(network, tmp_path)  # an own cache: what is found in it has no report
    assert {report["kernel"] for report in found} >= set(PRODUCTS)
    for report in found:
        spilled = re.findall(r"(\d+) bytes spill", report["ptxas"])
        assert len(spilled) >= 2, report["ptxas"]
        assert max(map(int, spilled)) <= MAY_SPILL.get(network, MAY_SPILL_ELSEWHERE), report
        assert report["shared"] <= SHARED_LIMIT[network.arch], report
        if report["kernel"] in PRODUCTS and network.dtype in ("bfloat16", "float16"):
            assert report["mma"] > 0, report["kernel"]


if __name__ == "__main__":
    compile_all(Network(*(tuple(value) if isinstance(value, list) else value for value in json.loads(sys.argv[1]))))
