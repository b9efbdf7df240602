"""Ahead-of-time compilation of a layer's kernels at the sizes of the published layers: spills, shared memory, tensor cores.

The launches of each function are recorded on meta tensors and compiled as a GPU would compile them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

SHARED_LIMIT = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes per block; consumer cards run what sm_80 does
SHARED_LIMIT_OF_DOUBLE = SHARED_LIMIT | {80: 163 * 1024}  # on other cards float64 runs op by op
PUBLISHED = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp32 in three products": torch.float32}  # TF32, and TF32 thrice
DTYPES = PUBLISHED | {"fp16": torch.float16, "fp64": torch.float64}
NAMES = {torch.float32: "fp32", torch.float64: "fp64", torch.float16: "fp16", torch.bfloat16: "bf16"}
PRODUCTS = {"graph_unit_kernel", "graph_unit_gradient_kernel"}
TEMPORAL_PRODUCTS = {"reduce_branches_kernel", "reduce_branches_backward_kernel", "folded_temporal_unit_kernel"}
TEMPORAL_PRODUCTS |= {"temporal_branches_kernel", "temporal_branches_backward_kernel"}
RESIDUAL_PRODUCTS = {"row_product_kernel", "row_product_backward_kernel"}
Report = dict[str, Any]


class Layer(NamedTuple):
    """Sizes of a layer."""

    frames: int
    inputs: int
    channels: int
    relations: int
    stride: int = 1


LAYERS = {
    "l1": Layer(64, 3, 64, 8),
    "l2": Layer(64, 64, 64, 8),
    "l5": Layer(64, 64, 128, 8, 2),
    "l6": Layer(32, 128, 128, 16),
    "l8": Layer(32, 128, 256, 16, 2),
    "l9": Layer(16, 256, 256, 32),
}


class Config(NamedTuple):
    """What is compiled together."""

    layer: str
    joints: int
    dtype: str
    arch: int


QUICK = [Config("l2", 25, "bf16", 90)]
SLOW = [Config(*of) for of in product(LAYERS, [25], PUBLISHED, SHARED_LIMIT)]
SLOW += [Config(*of) for of in product(["l2", "l9"], [25], ["fp16", "fp64"], SHARED_LIMIT)]
SLOW += [Config(*of) for of in product(["l2", "l9"], [17, 133], ["bf16"], [90])]
SLOW = [config for config in SLOW if config not in QUICK]


def launches(config: Config) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Kernel, arguments and options of each launch of a layer."""
    yield from graph_launches(config)
    yield from temporal_launches(config)


def temporal_launches(config: Config) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Launches of a layer's temporal unit and of the 1x1 convolutions of shortcut and residual."""
    from shapmix.kernels import triton_unit_folded as folded
    from shapmix.kernels import triton_unit_product as product_of
    from shapmix.kernels import triton_unit_temporal as temporal

    found: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def record(kernel: Any, grid: Any, *arguments: Any, reads: Any, writes: Any, flops: int = 0, **options: Any) -> None:
        found.append((kernel, arguments, options))

    (frames, inputs, channels, _, stride), joints, dtype = LAYERS[config.layer], config.joints, DTYPES[config.dtype]
    wide = partial(torch.empty, dtype=torch.promote_types(dtype, torch.float32), device="meta")
    narrow = partial(torch.empty, dtype=dtype, device="meta")
    width, frames_out = channels // 4, frames // stride
    x, y, o = narrow(256, frames, joints, inputs), narrow(256, frames, joints, channels), narrow(256, frames_out, joints, channels)
    z, taps = narrow(256, frames, joints, 3 * width), narrow(5, width, width).permute(1, 2, 0)
    norm, summed, z_norm, z_summed = wide(6, channels), wide(2, channels), wide(6, 3 * width), wide(2, 3 * width)
    is_same = inputs == channels
    unit_input = (y, norm, y, None if is_same else norm, narrow(channels, channels))
    weights: dict[str, Any] = {"residual": x}
    if not is_same:
        weights |= {"residual_weight": narrow(channels, inputs), "residual_norm": norm}
    with pytest.MonkeyPatch.context() as patch:
        for module in (folded, product_of, temporal):
            patch.setattr(module, "launch", record)
            patch.setattr(module, "architecture", lambda _x: config.arch)
        patch.setattr(torch.backends.cudnn, "allow_tf32", config.dtype != "fp32 in three products")
        product_of.reduce_branches(*unit_input, stride=stride)
        product_of.reduce_branches_backward(z, z, z_norm, z_summed, o, o, norm, summed, *unit_input, stride=stride)
        if not is_same:
            product_of.row_product(x, narrow(channels, inputs), stride=stride)
            product_of.row_product_backward(o, o, norm, summed, x, narrow(channels, inputs), stride=stride)
        temporal.temporal_branches(o, z, z_norm, taps, taps)
        temporal.temporal_branches_backward(o, o, norm, summed, z, z_norm, taps, taps)
        folded.folded_temporal_unit(y, narrow(channels, channels), z_norm, taps, taps, norm, stride=stride, **weights)
    return found


def graph_launches(config: Config) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Launches of a layer's graph unit."""
    from shapmix.kernels import triton_unit_graph as unit
    from shapmix.kernels import triton_unit_relations as relations

    found: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def record(kernel: Any, grid: Any, *arguments: Any, reads: Any, writes: Any, flops: int = 0, **options: Any) -> None:
        found.append((kernel, arguments, options))

    (frames, inputs, channels, count, _), joints, dtype = LAYERS[config.layer], config.joints, DTYPES[config.dtype]
    wide = partial(torch.empty, dtype=torch.promote_types(dtype, torch.float32), device="meta")
    narrow = partial(torch.empty, dtype=dtype, device="meta")
    x, y = narrow(256, frames, joints, inputs), narrow(256, frames, joints, channels)
    factors = narrow(256, 3, joints, joints, count)
    parameters = (narrow(3, channels, inputs), wide(3, channels), narrow(3, channels, count), wide(3, channels))
    arguments = (x, factors, *parameters, wide(1), wide(3, joints, joints))
    norm = wide(6, channels)
    down = {} if inputs == channels else {"down": narrow(channels, inputs), "down_norm": norm}
    pooled, weight = wide(256, joints, inputs), wide(2, 3, count, inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unit, "launch", record)
        patch.setattr(relations, "launch", record)
        patch.setattr(unit, "architecture", lambda _x: config.arch)
        patch.setattr(torch.backends.cudnn, "allow_tf32", config.dtype != "fp32 in three products")
        unit.graph_unit(*arguments)
        unit.folded_graph_unit(*arguments, norm, **down)
        unit.graph_unit_backward(y, y, norm, wide(2, channels), *arguments)
        relations.relations(pooled, weight, wide(2, 3, count), dtype)
        relations.relations_backward(wide(*factors.shape), factors, pooled, weight)
    yield from found


def source(kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Source of a launch, specialised as Triton does at run time, and compile options."""
    from triton.compiler import ASTSource

    given = dict(zip(kernel.arg_names, arguments, strict=False)) | options
    signature, constants, attributes = {}, {}, {}
    for index, (name, parameter) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
        value = given.pop(name)
        if isinstance(value, torch.Tensor):
            signature[name] = f"*{NAMES[value.dtype]}"
        elif parameter.is_constexpr or value is None or value == 1:
            signature[name], constants[name] = "constexpr", value
        else:
            signature[name] = "i32"
        if isinstance(value, torch.Tensor) or (signature[name] == "i32" and value % 16 == 0):
            attributes[index,] = [["tt.divisibility", 16]]
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes), given


def compile_all(quick: bool) -> None:
    """Prints, for each launch, ptxas's report and one line of JSON."""
    import triton
    from triton.backends.compiler import GPUTarget

    for config in QUICK if quick else SLOW:
        for kernel, arguments, options in launches(config):
            made, left = source(kernel, arguments, options)
            compiled = triton.compile(made, target=GPUTarget("cuda", config.arch, 32), options=left)
            ptx = compiled.asm["ptx"]
            products = len(re.findall(r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)", ptx))
            report = {"config": config, "kernel": kernel.fn.__name__, "shared": compiled.metadata.shared, "products": products}
            print(json.dumps(report), flush=True)


@cache
def reports(quick: bool, folder: Path) -> dict[Config, list[Report]]:
    """Reports of all configs that are as quick or not."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder), "TRITON_DUMP_PTXAS_LOG": "1"}
    environment["TRITON_ALWAYS_COMPILE"] = "1"  # a kernel of an earlier layer has no report otherwise
    command = [sys.executable, str(Path(__file__)), "quick" if quick else "slow"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[Config, list[Report]] = {}
    log = ""
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            report = json.loads(line)
            found.setdefault(Config(*report["config"]), []).append({**report, "ptxas": log})
            log = ""
        else:
            log += line + "\n"
    return found


@pytest.fixture(scope="module")
def reports_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Config], list[Report]]:
    """The reports of a config."""
    pytest.importorskip("triton", reason="triton is not installed")
    folder = tmp_path_factory.mktemp("triton")
    return lambda config: reports(config in QUICK, folder)[config]


def may_spill(kernel: str, config: Config) -> int:
    """Bytes that a kernel may spill: none in half precision, but for graphs; in float32, addresses that do not fit."""
    thrice = config.dtype == "fp32 in three products"
    if kernel == "relations_gradient_kernel":
        return 32
    if kernel in TEMPORAL_PRODUCTS | RESIDUAL_PRODUCTS:
        return 0 if config.dtype in ("bf16", "fp16") else 128 if thrice else {80: 48, 90: 16, 100: 24}[config.arch]
    if (config.dtype, config.arch) == ("bf16", 90):
        spilled = 52 if config.layer == "l5" else 16  # addresses that are read once a row
        return spilled if kernel == "graph_unit_gradient_kernel" else 0
    return {"graph_unit_kernel": 12, "graph_unit_gradient_kernel": 6144 if thrice else 512}.get(kernel, 0)


def params(configs: Iterable[Config], slow: bool) -> list[Any]:
    marks = pytest.mark.slow if slow else ()
    return [pytest.param(config, marks=marks, id="-".join(map(str, config))) for config in configs]


@pytest.mark.parametrize("config", [*params(QUICK, slow=False), *params(SLOW, slow=True)])
def test_kernels_compile_to_tensor_cores(reports_of: Callable[[Config], list[Report]], config: Config) -> None:
    found = reports_of(config)
    assert {report["kernel"] for report in found} >= PRODUCTS | TEMPORAL_PRODUCTS
    for report in found:
        limit = SHARED_LIMIT_OF_DOUBLE if config.dtype == "fp64" else SHARED_LIMIT
        assert report["shared"] <= limit[config.arch], report["kernel"]
        if config.dtype == "fp64":  # is for checks of gradients: it must run, and need not be fast
            continue
        spills = [int(count) for count in re.findall(r"(\d+) bytes spill", report["ptxas"])]
        assert spills, report["ptxas"]
        assert max(spills) <= may_spill(report["kernel"], config), report["kernel"]
        if report["kernel"] in PRODUCTS | TEMPORAL_PRODUCTS | RESIDUAL_PRODUCTS:
            assert report["products"] > 0, report["kernel"]


if __name__ == "__main__":
    compile_all(sys.argv[1] == "quick")
