"""The walk-through of CONTRIBUTING: its blocks, added to a copy of the repository, give an op that agrees on every back end."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(?:python|cpp)\n(?:#|//) ((?:kernels|csrc)/[\w.]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODULE = """#include "job.h"

PYBIND11_MODULE(_native, module) {
  shapmix::Binding::run_all(module);
  module.def("cpu_info", [] {
    using namespace pybind11::literals;
    return pybind11::dict("isa"_a = "baseline", "isa_pinned"_a = false, "processor_sets"_a = pybind11::make_tuple("baseline"));
  });
}
"""

CHECK = """
import sys
import torch
from shapmix import kernels
from shapmix.kernels.agreement import agrees
from shapmix.kernels.examples import Batch, Shape

batch = Batch(Shape("odd", None, (4, 2, 5, 7, 2), 6, width=16), torch.float32, torch.device("cpu"))
assert agrees("scale_clips", batch, sys.argv[1])
clips, factor = batch.clips.clone().requires_grad_(), batch.mean_motion[:, 0, 0, 0].contiguous()
(found,) = torch.autograd.grad(kernels.scale_clips(clips, factor, backend=sys.argv[1]).sum(), clips)
assert torch.equal(found, factor.view(1, -1, 1, 1, 1).expand_as(found))
torch.library.opcheck(torch.ops.shapmix.scale_clips.default, (clips, factor, sys.argv[1]))
out = torch.empty_like(batch.clips)
assert kernels.scale_clips(batch.clips, factor, backend=sys.argv[1], out=out) is out
print("agrees")
"""


def blocks() -> dict[str, str]:
    """File -> its block, in the order of the page."""
    return dict(BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))


def test_an_op_is_at_most_six_files() -> None:
    assert 4 <= len(blocks()) <= 6
    assert {file for file in blocks() if (ROOT / file).exists()} == {"kernels/__init__.py", "kernels/examples.py"}


def build(folder: Path) -> None:
    """Compiles the op alone, as the copy's native module."""
    import pybind11

    (folder / "csrc" / "module.cpp").write_text(MODULE)
    includes = [pybind11.get_include(), sysconfig.get_path("include")]
    compiler = next(name for name in ("c++", "g++", "clang++") if shutil.which(name))
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    command += [*(f"-I{path}" for path in includes), "csrc/module.cpp", "csrc/bindings_scale.cpp", "-o", "shapmix/_native.so"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_walk_through_adds_an_op(tmp_path: Path) -> None:
    skipped = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("shapmix", "kernels", "csrc"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=skipped)
    for file, text in blocks().items():
        path = tmp_path / file
        path.write_text((path.read_text() if path.exists() else "") + text)
    build(tmp_path)
    for backend in ("cpp", "triton", "reference"):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TRITON_INTERPRET": "1" if backend == "triton" else "0"}
        done = subprocess.run([sys.executable, "-c", CHECK, backend], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout == "agrees\n", done.stderr
