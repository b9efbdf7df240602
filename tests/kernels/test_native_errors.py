"""Errors of the native code give the value that is wrong and the limit."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
CXX = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")

FIXED = re.compile(r'throw [\w:]+\((?:line_, )?(?:std::string\()?"[^"]*"\)?\);')

DTYPES = """
#include <cstdio>
#include "element.h"
using namespace shapmix;
template <class Call> void told(Call call) {
  try { call(); } catch (const std::invalid_argument& error) { std::puts(error.what()); }
}
int main() {
  const auto size = [](auto element) { std::printf("%zu\\n", sizeof element); };
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64, Dtype::kFloat16, Dtype::kBfloat16}) {
    switch_dtype<float, double, Half, Bfloat16>(dtype, "x", size);
  }
  for (const int bytes : {2, 4, 8}) switch_element_size(bytes, "x", size);
  told([&] { switch_dtype<float, double>(Dtype::kBfloat16, "sample_clips on the CPU: frames", size); });
  told([&] { switch_element_size(3, "coalition_inputs on the CPU: clips", size); });
}
"""

INSTRUCTION_SETS = """
#include <cstdio>
#include "isa.h"
using namespace shapmix;
void told(const char* asked, const std::vector<Isa>& sets) {
  try {
    const IsaChoice choice = choose_isa(asked, sets);
    std::printf("%s %d\\n", name_of(choice.set), choice.pinned);
  } catch (const std::invalid_argument& error) { std::puts(error.what()); }
}
int main() {
  const std::vector<Isa> laptop = {Isa::kBaseline, Isa::kAvx2};
  for (const char* asked : {"auto", "baseline", "avx2", "avx512", "sse9", ""}) told(asked, laptop);
  told(nullptr, laptop);
  told("avx2", {Isa::kBaseline});
}
"""

LAUNCH = """
#include <cstdio>
#include "cuda_launch.h"
using namespace shapmix;
template <class Call> void told(Call call) {
  try { call(); } catch (const std::exception& error) { std::puts(error.what()); }
}
__global__ void kernel() {}
int main() {
  told([] { plane_grid({1, 3, 1 << 20, 1 << 10, 2}, 4); });
  told([] { kernel<<<1, 100000>>>(); check_launch("mix_clips", {64, 3, 100, 25, 2}); });
  told([] { DeviceGuard guard(99); });
}
"""


def run(compiler: str | None, source: str, code: str, folder: Path) -> list[str]:
    """The lines that a program prints which includes headers of csrc/."""
    if compiler is None:
        pytest.skip("there is no compiler")
    (folder / source).write_text(code)
    command = [compiler, "-std=c++17", f"-I{CSRC}", str(folder / source), "-o", str(folder / "program")]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    done = subprocess.run([folder / "program"], capture_output=True, text=True)
    assert done.returncode == 0
    return done.stdout.splitlines()


def test_no_error_is_a_fixed_sentence() -> None:
    fixed = {path.name: FIXED.findall(path.read_text()) for path in sorted(CSRC.iterdir())}
    assert {name: found for name, found in fixed.items() if found} == {}
    assert FIXED.search('throw std::invalid_argument("channels must be a multiple of 8");')


def test_a_dtype_switch_names_what_it_takes(tmp_path: Path) -> None:
    assert run(CXX, "dtypes.cpp", DTYPES, tmp_path) == [
        *("4", "8", "2", "2"),
        *("2", "4", "8"),
        "sample_clips on the CPU: frames is bfloat16; give one of float32, float64",
        "coalition_inputs on the CPU: clips has elements of 3 bytes; give 2, 4 or 8",
    ]


def test_an_instruction_set_is_the_widest_or_the_pinned_one_or_an_error(tmp_path: Path) -> None:
    lacks = "which this processor lacks; give auto or one that it has"
    unknown = "which is no instruction set of the kernels; give auto or one that it has"
    assert run(CXX, "sets.cpp", INSTRUCTION_SETS, tmp_path) == [
        *("avx2 0", "baseline 1", "avx2 1"),
        f"SHAPMIX_ISA is 'avx512', {lacks}: baseline, avx2",
        f"SHAPMIX_ISA is 'sse9', {unknown}: baseline, avx2",
        f"SHAPMIX_ISA is '', {unknown}: baseline, avx2",
        "avx2 0",
        f"SHAPMIX_ISA is 'avx2', {lacks}: baseline",
    ]


def test_a_failed_launch_gives_its_sizes(tmp_path: Path) -> None:
    limit, launch, device = run(NVCC, "launch.cu", LAUNCH, tmp_path)
    assert limit == "clips: T * V * M is 2147483648; give at most 2147481599"
    assert re.fullmatch(r"mix_clips: the launch on clips \[64, 3, 100, 25, 2\] failed: .+ \(cudaError\w+, \d+\)", launch)
    assert re.fullmatch(r"cuda(GetDevice|SetDevice\(99\)) failed: .+ \(cudaError\w+, \d+\)", device)


def test_only_one_switch_over_the_dtypes_of_cuda() -> None:
    sources = {path.name: path.read_text() for path in CSRC.iterdir() if path.suffix == ".cu" or "cuda" in path.name}
    assert [name for name, text in sources.items() if "case Dtype::" in text or "switch (" in text] == []
    assert [name for name, text in sources.items() if "switch_dtype<" in text] == ["cuda_rounding.h"]
