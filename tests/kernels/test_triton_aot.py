"""Every Triton kernel in every dtype, compiled ahead of time for every architecture; needs no GPU.

As a script, this file compiles and prints; the tests start it in a process without Triton's interpreter. By default, float32 and
bfloat16 are compiled for sm_90; `-m slow` compiles the rest.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

DTYPES = ("fp32", "fp64", "fp16", "bf16")
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes per block
Config = tuple[Any, ...]  # kernel, dtype and architecture, or the last two
Report = dict[str, object]  # shared memory, PTX and ptxas's report


class Kernel(NamedTuple):
    """Launch signature of a kernel: the arguments in the element dtype, those in the accumulation dtype, and the others."""

    module: str
    elements: tuple[str, ...] = ()
    sums: tuple[str, ...] = ()
    others: Mapping[str, str] = MappingProxyType({})  # default: pointers to int64, numbers i32
    numbers: tuple[str, ...] = ()
    constants: Mapping[str, object] = MappingProxyType({})
    dtypes: tuple[str, ...] = DTYPES
    fuse: bool = True
    absent: tuple[str, ...] = ()  # arguments that are None
    function: str = ""  # name of the kernel if it is compiled in several variants
    graph: bool = False  # graph convolution: the launch depends on the element dtype
    widths: tuple[str, ...] = ()  # numbers that are multiples of 16; tensors are then aligned to 16 bytes, as in torch
    ones: bool = False  # every number is 1, which Triton compiles as a constant
    archs: tuple[int, ...] = (80, 90, 100)
    joints: int = 25  # of a graph convolution


CLIPS = {"ROW": 50, "PEOPLE": 2, "BLOCK": 1024}
STRIDES = ("clip_sample_stride", "clip_channel_stride", "mean_channel_stride", "set_stride", "coalition_sample_stride")
ROWS = {"SUM": "sums", "BLOCK": 64}
SAMPLED = {"ROW": 50, "PEOPLE": 2, "CHANNELS": 3, "BONE": True, "MOTION": True, "SUM": "sums", "BLOCK": 256}
KERNELS = {
    "coalition_kernel": Kernel(
        "triton_mixing",
        elements=("out", "clips", "mean_motion"),
        numbers=("channels", "sets", "set_size", "plane", "restored", *STRIDES),
        constants=CLIPS,
        fuse=False,
    ),
    "mix_kernel": Kernel(
        "triton_mixing",
        elements=("out", "clips"),
        others={"lam": "*fp64", "blend": "*u8"},
        numbers=("channels", "half_size", "plane", *STRIDES[:2]),
        constants=CLIPS,
        fuse=False,
    ),
    "sample_kernel": Kernel(
        "triton_clips",
        elements=("out", "frames"),
        sums=("angles",),
        numbers=("num_frames",),
        constants=SAMPLED,
        absent=("reversed", "pace", "source", "linear", "jitter", "jitter_key", "kept"),
    ),
    **{
        f"sample_kernel, {dimension} coordinates augmented": Kernel(
            "triton_clips",
            function="sample_kernel",
            elements=("out", "frames"),
            sums=("angles", "pace", "linear", "jitter"),
            others={"reversed": "*u8", "kept": "*u8"},
            numbers=("num_frames",),
            constants=SAMPLED | {"CHANNELS": dimension},
        )
        for dimension in (2, 3)
    },
    "draw_kernel": Kernel(
        "triton_plan",
        elements=("saliency",),
        others={"lam": "*fp64", "blend": "*u8", "seed_low": "i64", "seed_high": "i64", "step": "i64"},
        numbers=("samples", "columns", "joints", "num_frames", "shortest", "longest"),
        constants={"STEP_ON_DEVICE": True, "GUIDED": True, "TEMPERATURE": 0.2, "BLEND_PROBABILITY": 0.25, "BLOCK": 64},
        dtypes=("fp32", "fp64"),
        fuse=False,
    ),
    "marginal_kernel": Kernel(
        "triton_saliency",
        elements=("logits",),
        sums=("marginal", "weights"),
        numbers=("classes", "contexts"),
        constants={**ROWS, "WEIGHTED": True},
    ),
    "average_kernel": Kernel(
        "triton_saliency",
        sums=("table", "marginal", "decay", "scale"),
        numbers=("updates", "combinations"),
        constants={"SUM": "sums", "BLOCK": 128},
        dtypes=("fp32", "fp64"),
    ),
    "join_kernel": Kernel(
        "triton_branches",
        elements=("out", "narrow", "wide", "middle", "skip", "shortcut"),
        sums=("scale", "offset"),
        numbers=(
            *("rows", "frames", "frames_out", "frame_stride", "joints", "width"),
            *("of_narrow", "of_wide", "of_middle", "of_skip", "of_shortcut"),
        ),
        constants={"SUM": "sums", "BLOCK_R": 16, "BLOCK_C": 64},
    ),
    "row_kernel": Kernel(
        "triton_loss",
        elements=("logits",),
        sums=("row_losses", "row_sums", "lam", "log_prior"),
        numbers=("samples", "classes"),
        constants=ROWS,
    ),
    "mean_kernel": Kernel(
        "triton_loss",
        sums=("losses", "row_losses"),
        numbers=("samples", "rows"),
        constants={"SUM": "sums", "BLOCK": 1024},
        dtypes=("fp32", "fp64"),
    ),
    "gradient_kernel": Kernel(
        "triton_loss",
        elements=("to_logits", "logits"),
        sums=("grad", "row_sums", "lam", "log_prior"),
        numbers=("samples", "classes"),
        constants=ROWS,
    ),
}
GRAPH = Kernel(
    "triton_graph",
    function="aggregate_kernel",
    elements=("out", "features", "shortcut"),
    sums=("graphs", "offset"),
    numbers=("first", "clips", "frames", "joints", "channels", "feature_stride", "shortcut_stride"),
    graph=True,
    widths=("channels", "feature_stride", "shortcut_stride"),
)
GRAPH_GRADIENT = Kernel(
    "triton_graph",
    function="aggregate_gradient_kernel",
    elements=("to_features", "grad", "features"),
    sums=("graphs",),
    numbers=("first", "clips", "frames", "joints", "channels", "feature_stride"),
    graph=True,
    widths=("channels", "feature_stride"),
)
OF_CHANNELS = ("mean", "variance", "weight", "bias", "lowest", "eps", "to_weight", "to_bias")
NORM = Kernel(
    "triton_norm",
    elements=("x", "out", "shortcut", "grad", "to_x", "to_shortcut"),
    sums=(*OF_CHANNELS, "rest", "sums", "products"),
    others={"means": "*fp64", "deviations": "*fp64"},
    numbers=("rows", "rows_each", "runs", "channels", "shortcut_stride"),
    constants={"SUM": "sums", "BLOCK_R": 32, "BLOCK_C": 64},
)
JOIN = NORM._replace(constants={"BLOCK_P": 64, "BLOCK_C": 16}, dtypes=("fp32", "fp64"))
# CTR-GCN's widths are runtime numbers; 17 to 32 joints are one block.
KERNELS |= {
    "relation_kernel": Kernel(
        "triton_graph",
        sums=("factors", "relation_terms", "shared"),
        numbers=("first", "clips", "joints"),
        constants={"SUBSETS": 3, "RELATIONS": 8, "COLUMNS": 12, "BLOCK": 512},
        dtypes=("fp32", "fp64"),
    ),
    "aggregate_kernel": GRAPH._replace(absent=("offset", "shortcut")),
    "aggregate_kernel, folded": GRAPH,
    "aggregate_gradient_kernel": GRAPH_GRADIENT,
    "aggregate_kernel, 133 joints": GRAPH._replace(joints=133),
    "aggregate_gradient_kernel, 133 joints": GRAPH_GRADIENT._replace(joints=133),
    "moments_kernel": NORM,
    "join_moments_kernel": JOIN,
    "normalise_kernel": NORM,
    "gradient_sums_kernel": NORM,
    "join_gradients_kernel": JOIN,
    "gradient_rows_kernel": NORM,
}
# The most frequent launches of these: CTR-GCN's channels are multiples of 16.
KERNELS |= {
    f"{name}, aligned": kernel._replace(
        function=name, widths=("channels", "shortcut_stride"), dtypes=tuple(of for of in kernel.dtypes if of in ("fp32", "bf16"))
    )
    for name, kernel in KERNELS.items()
    if kernel.module == "triton_norm"
}
KERNELS |= {
    f"{name} of ones": kernel._replace(function=kernel.function or name, ones=True, dtypes=("fp32",), archs=(90,))
    for name, kernel in KERNELS.items()
    # the only number of sample_kernel is not specialised, so it would be the same kernel; a width is 1 or a multiple of 16
    if not name.startswith("sample_kernel") and not name.endswith((", aligned", "133 joints"))
}
CONFIGS = [(name, dtype, arch) for name, kernel in KERNELS.items() for dtype, arch in product(kernel.dtypes, kernel.archs)]


def is_quick(dtype: str, arch: int) -> bool:
    """Whether a config is compiled by default."""
    return arch == 90 and dtype in ("fp32", "bf16")


def params(configs: Iterable[Config]) -> list[Any]:
    """Parameters of a test, of which those that take long are marked."""
    return [pytest.param(*config, marks=() if is_quick(*config[-2:]) else pytest.mark.slow) for config in configs]


def compile_all(quick: bool) -> None:
    """Prints, for each config that is quick or not, ptxas's report and one line of JSON."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for name, dtype, arch in CONFIGS:
        if is_quick(dtype, arch) != quick:
            continue
        kernel = KERNELS[name]
        module = import_module(f"shapmix.kernels.{kernel.module}")
        function = getattr(module, kernel.function or name)
        of_sums = "fp64" if dtype == "fp64" else "fp32"
        types = dict.fromkeys(kernel.elements, f"*{dtype}") | dict.fromkeys(kernel.sums, f"*{of_sums}")
        given = dict(kernel.constants) | dict.fromkeys(kernel.absent)
        num_warps = getattr(module, "NUM_WARPS", 4)
        if kernel.graph:
            given |= graph_blocks(kernel, dtype)
            num_warps = given.pop("num_warps")
        if kernel.ones:
            given |= dict.fromkeys(set(kernel.numbers) - {name for name in function.arg_names if unspecialised(function, name)}, 1)
        given = {key: value for key, value in given.items() if key in function.arg_names}
        types |= dict.fromkeys(kernel.numbers, "i32") | dict(kernel.others) | dict.fromkeys(given, "constexpr")
        signature = {argument: types.get(argument, "*i64") for argument in function.arg_names}
        sum_type = tl.float64 if dtype == "fp64" else tl.float32
        constants = {key: sum_type if value == "sums" else value for key, value in given.items()}
        pointers = [key for key, of in signature.items() if of[0] == "*" and kernel.widths]
        aligned = [*pointers, *(key for key in kernel.widths if signature.get(key) == "i32")]
        attributes = {(function.arg_names.index(key),): [["tt.divisibility", 16]] for key in aligned}
        source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
        options = {"num_warps": num_warps, "enable_fp_fusion": kernel.fuse}
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        report = {"config": [name, dtype, arch], "shared": compiled.metadata.shared, "ptx": compiled.asm["ptx"]}
        print(json.dumps(report), flush=True)


def unspecialised(function: Any, argument: str) -> bool:
    """Whether a kernel has an argument in do_not_specialize."""
    return bool(function.params[function.arg_names.index(argument)].do_not_specialize)


def graph_blocks(kernel: Kernel, dtype: str) -> dict[str, object]:
    """Compile-time constants of a graph convolution over 64 frames."""
    import torch

    from shapmix.kernels import triton_graph

    of = {"fp32": torch.float32, "fp64": torch.float64, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    features = torch.empty(1, 3 * 64, 64, kernel.joints, dtype=of, device="meta")
    if kernel.function == "aggregate_kernel":
        launch = triton_graph.FORWARD[of]
        blocks = {
            "BLOCK_U": min(launch.joints, triton_graph.block_of(kernel.joints)),
            "BLOCK_V": triton_graph.block_of(kernel.joints),
        }
    else:
        launch = triton_graph.BACKWARD[of]
        blocks = {
            "BLOCK_U": triton_graph.block_of(kernel.joints),
            "BLOCK_V": min(launch.joints, triton_graph.block_of(kernel.joints)),
        }
    return {**triton_graph.constants(features, 3, launch), **blocks}


@pytest.fixture(scope="module")
def report_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, int], Report]:
    """The report of a config, which is compiled with all others that are as quick or not."""
    pytest.importorskip("triton", reason="triton is not installed")
    compiled = cache(lambda quick: reports(quick, tmp_path_factory.mktemp("triton")))
    return lambda *config: compiled(is_quick(*config[-2:]))[config]


def reports(quick: bool, folder: Path) -> dict[Config, Report]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder), "TRITON_DUMP_PTXAS_LOG": "1"}
    command = [sys.executable, str(Path(__file__)), "quick" if quick else "slow"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found, log = {}, ""
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            report = json.loads(line)
            found[tuple(report["config"])] = {**report, "ptxas": log}
            log = ""
        else:
            log += line + "\n"
    return found


@pytest.mark.parametrize(("kernel", "dtype", "arch"), params(CONFIGS))
def test_compiles_without_spills(report_of: Callable[[str, str, int], Report], kernel: str, dtype: str, arch: int) -> None:
    report = report_of(kernel, dtype, arch)
    spills = re.findall(r"(\d+) bytes spill", str(report["ptxas"]))
    assert len(spills) >= 2, report["ptxas"]  # spill stores and loads, of the kernel and of the functions it calls
    if KERNELS[kernel].joints == 25:  # more joints fit, but spill
        assert set(spills) == {"0"}
    assert int(str(report["shared"])) <= SHARED_LIMIT[arch]


@pytest.mark.parametrize(("dtype", "arch"), params(product(DTYPES, SHARED_LIMIT)))
def test_products_are_rounded_before_they_are_added(report_of: Callable[[str, str, int], Report], dtype: str, arch: int) -> None:
    """A fused multiply-add would not be bit-equal to the reference.

    sm_80 has only fma for bfloat16: there x * y is x * y + -0 and x + y is x * 1 + y, which round the same.
    """
    ptx = str(report_of("mix_kernel", dtype, arch)["ptx"])
    neutral = set(re.findall(r"mov\.b16 \s*(%\w+), (?:0x8000|0x3F80);", ptx))
    for operands in re.findall(r"\bfma\.rn\.\w+ \s*%\w+, (.*);", ptx):
        assert (dtype, arch) == ("bf16", 80)
        assert neutral & set(operands.split(", ")[1:])


if __name__ == "__main__":
    compile_all(sys.argv[1] == "quick")
