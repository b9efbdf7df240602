"""Every Triton kernel in every element type, compiled ahead of time for every architecture: no GPU needed.

Run as a script it compiles and prints; the test starts it in a process where Triton's interpreter is off.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

KERNELS = ("coalition_kernel", "mix_kernel")
DTYPES = ("fp32", "fp64", "fp16", "bf16")
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block may use
Reports = dict[tuple[str, str, int], dict[str, object]]  # config -> shared memory, PTX and ptxas's report
CONFIGS = list(product(KERNELS, DTYPES, SHARED_LIMIT))


def compile_all() -> None:
    """Prints, for each config, ptxas's report and one line of JSON."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from shapmix.kernels import triton_ops

    of_clips = {"out", "clips", "mean_motion"}
    of_plan = {"lam": "*fp64", "blend": "*u8"}
    indices = {"coalitions", "part_of_joint", "partner", "parts", "start", "length", "source_start", "source_length"}
    constants = {"ROW": 50, "PEOPLE": 2, "BLOCK": triton_ops.BLOCK}
    for name, dtype, arch in CONFIGS:
        kernel = getattr(triton_ops, name)
        signature = {
            argument: f"*{dtype}"
            if argument in of_clips
            else of_plan.get(argument) or ("*i64" if argument in indices else "constexpr" if argument in constants else "i32")
            for argument in kernel.arg_names
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        options = {"num_warps": triton_ops.NUM_WARPS, "enable_fp_fusion": False}
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        report = {"config": [name, dtype, arch], "shared": compiled.metadata.shared, "ptx": compiled.asm["ptx"]}
        print(json.dumps(report), flush=True)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "TRITON_DUMP_PTXAS_LOG": "1"}
    done = subprocess.run([sys.executable, str(Path(__file__))], env=environment, capture_output=True, text=True)
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


@pytest.mark.parametrize(("kernel", "dtype", "arch"), CONFIGS)
def test_compiles_without_spills(reports: Reports, kernel: str, dtype: str, arch: int) -> None:
    report = reports[kernel, dtype, arch]
    spills = re.findall(r"(\d+) bytes spill", str(report["ptxas"]))
    assert len(spills) == 2, report["ptxas"]  # stores and loads
    assert spills == ["0", "0"]
    assert int(str(report["shared"])) <= SHARED_LIMIT[arch]


@pytest.mark.parametrize(("dtype", "arch"), list(product(DTYPES, SHARED_LIMIT)))
def test_blend_rounds_before_it_adds(reports: Reports, dtype: str, arch: int) -> None:
    """A fused multiply-add would not be the reference's bits.

    sm_80 has no other bfloat16 arithmetic than fma: there x * y is x * y + -0 and x + y is x * 1 + y, which round alike.
    """
    ptx = str(reports["mix_kernel", dtype, arch]["ptx"])
    neutral = set(re.findall(r"mov\.b16 \s*(%\w+), (?:0x8000|0x3F80);", ptx))
    for operands in re.findall(r"\bfma\.rn\.\w+ \s*%\w+, (.*);", ptx):
        assert (dtype, arch) == ("bf16", 80)
        assert neutral & set(operands.split(", ")[1:])


if __name__ == "__main__":
    compile_all()
