"""Every launch of CTR-GCN's fused layers, compiled ahead of time as a network launches it; needs no GPU.

A pass of a network on fake tensors yields the launches with their arguments. As a script, this file compiles them and prints a
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
MODULES = ("clips", "folded", "graph", "input", "norm", "product", "relations", "temporal", "weights")
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


def launches_of(network: Network) -> dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """The distinct launches of both passes: kernel, arguments and options, by a text that says what Triton compiles."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from shapmix.kernels import triton_unit
    from shapmix.networks.ctrgcn import CTRGCN
    from shapmix.skeleton.layout import load_layout

    found: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}

    def keep(kernel: Any, grid: object, *arguments: Any, reads: object, writes: object, flops: int = 0, **options: Any) -> None:
        constants, attributes, signature = compiled_as(kernel, arguments, options)
        found.setdefault(
            f"{kernel.fn.__name__} {signature} {constants} {sorted(attributes)} {options}", (kernel, arguments, options)
        )

    for name in MODULES:
        module = import_module(f"shapmix.kernels.triton_unit_{name}")
        module.launch = keep  # type: ignore[attr-defined]
        module.architecture = lambda _x: network.arch  # type: ignore[attr-defined]
    dtype = getattr(torch, network.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    torch.set_default_dtype(wide)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model: Any = CTRGCN(load_layout(network.layout), 60, widths=network.widths)
        model.steps_on = lambda _clips: triton_unit
        clips = torch.empty(64, *model.input_shape[:1], 64, *model.input_shape[1:], dtype=wide)
        for training in (True, False):
            model.train(training)
            with torch.set_grad_enabled(training), torch.autocast("cpu", dtype, enabled=dtype != wide):
                logits = model(clips)
            if training:
                logits.sum().backward()
    return found


def compiled_as(
    kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[dict[tuple[int, ...], Any], set[tuple[int, ...]], dict[str, Any]]:
    """Constants and positions of multiples of 16, by position, and types by name: what Triton's launcher would derive."""
    from torch import Tensor

    constants: dict[tuple[int, ...], Any] = {}
    sixteens: set[tuple[int, ...]] = set()

    def type_of(value: Any, at: tuple[int, ...]) -> Any:
        if isinstance(value, (tuple, list)):
            return tuple(type_of(element, (*at, index)) for index, element in enumerate(value))
        if isinstance(value, Tensor):
            sixteens.add(at)
            short = {"float32": "fp32", "float64": "fp64", "float16": "fp16", "bfloat16": "bf16", "int64": "i64"}
            return f"*{short[str(value.dtype).removeprefix('torch.')]}"
        if value is None or value == 1:
            constants[at] = value
            return "constexpr"
        if value % 16 == 0:
            sixteens.add(at)
        return "i64" if abs(value) >= 1 << 31 else "i32"

    signature: dict[str, Any] = {}
    for index, name in enumerate(kernel.arg_names):
        if index < len(arguments) and kernel.params[index].is_constexpr:
            signature[name], constants[(index,)] = "constexpr", arguments[index]
        elif index < len(arguments):
            signature[name] = type_of(arguments[index], (index,))
        else:
            signature[name], constants[(index,)] = "constexpr", options[name]
    return constants, sixteens, signature


def compile_all(network: Network) -> None:
    """Prints, for each launch, ptxas's report and a line of JSON."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for kernel, arguments, options in launches_of(network).values():
        constants, sixteens, signature = compiled_as(kernel, arguments, options)
        attributes = {at: [["tt.divisibility", 16]] for at in sixteens}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
        of_launch = {name: value for name, value in options.items() if name not in kernel.arg_names}
        compiled = triton.compile(source, target=GPUTarget("cuda", network.arch, 32), options=of_launch)
        ptx = compiled.asm["ptx"]
        report = {"kernel": kernel.fn.__name__, "shared": compiled.metadata.shared, "mma": len(TENSOR_CORE.findall(ptx))}
        print(json.dumps(report), flush=True)


def reports(network: Network, folder: Path) -> list[dict[str, Any]]:
    """Of each launch: kernel, shared memory, instructions of the tensor cores, and ptxas's report."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder), "TRITON_DUMP_PTXAS_LOG": "1"}
    command = [sys.executable, str(Path(__file__)), json.dumps(network)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
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
