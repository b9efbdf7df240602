"""Error messages of the build without a compiler, and compilation of the CUDA kernels with nvcc."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from shutil import which

import pytest

ROOT = Path(__file__).parents[2]
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def build(tmp_path: Path, **environment: str) -> str:
    """Runs setup.py with an empty PATH and returns its error message."""
    (tmp_path / "bin").mkdir()
    compilers = ("CXX", "CUDACXX", "CUDA_HOME", "CUDA_PATH", "SHAPMIX_CUDA")
    clean = {key: value for key, value in os.environ.items() if key not in compilers}
    clean |= {"PATH": str(tmp_path / "bin"), "SHAPMIX_CUDA": "0"} | environment
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path / "lib")]
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True)
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "shapmix: no C++ compiler was found: install one, e.g. `apt-get install g++`, or set CXX to it"),
        ({"CXX": "g++-99"}, "shapmix: CXX is 'g++-99', which was not found: set CXX to a C++17 compiler, or unset it"),
        ({"CXX": sys.executable}, "shapmix: 'cmake' was not found: run `pip install cmake`, or install with build isolation"),
        ({"CXX": sys.executable, "SHAPMIX_WERROR": "on"}, "shapmix: SHAPMIX_WERROR is 'on'; set it to 0 or 1"),
        ({"SHAPMIX_CUDA": "yes"}, "shapmix: SHAPMIX_CUDA is 'yes'; set it to auto, 0 or 1"),
        (
            {"SHAPMIX_CUDA": "1", "CUDACXX": "no-nvcc"},
            "shapmix: SHAPMIX_CUDA=1 but nvcc was not found: install the CUDA toolkit, or set CUDACXX or CUDA_HOME to it",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(tmp_path: Path, environment: dict[str, str], message: str) -> None:
    assert build(tmp_path, **environment) == message


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("source", ["coalition.cu", "mix.cu"])
def test_cuda_kernels_compile_without_spills(tmp_path: Path, source: str) -> None:
    """Every dtype, with and without packs, on sm_80 and sm_90."""
    command = [str(NVCC), "-c", str(ROOT / "csrc" / source), "-o", str(tmp_path / "kernels.o"), "-O3", "-std=c++17", "-Xptxas=-v"]
    command += ["-Werror=all-warnings", "-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=sm_90"]
    done = subprocess.run(command, capture_output=True, text=True)
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    kernels = {"coalition.cu": 3 * 2, "mix.cu": 4 * 2}[source]
    assert len(spills) == 2 * kernels, report
    assert set(spills) == {("0", "0")}


def test_the_kernels_lie_in_the_package() -> None:
    """A relative link to kernels/ in a checkout; a source distribution has the files themselves."""
    folder = ROOT / "shapmix" / "kernels"
    assert (folder / "__init__.py").is_file()
    if folder.is_symlink():
        assert os.readlink(folder) == "../kernels"
        assert folder.resolve() == ROOT / "kernels"


def test_the_sdist_holds_what_the_readmes_commands_need(tmp_path: Path) -> None:
    """Every file of the repository but git's own: `pip install -c constraints.txt -e .` and the tests run from it."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is not a checkout")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path), "sdist", "--dist-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "SHAPMIX_CUDA": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("shapmix-*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    present = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    assert {re.sub("^kernels/", "shapmix/kernels/", name) for name in present} <= packed
    assert not [name for name in packed if name.endswith((".so", ".pyc")) or name.startswith("build/")]


COMPILERS = [name for name in ("g++", "clang++", *(f"{of}-{n}" for of in ("g++", "clang++") for n in range(11, 23))) if which(name)]


def arm_compiler() -> list[str] | None:
    """The command of a compiler for 64-bit Arm, None without one."""
    if gcc := which("aarch64-linux-gnu-g++"):
        return [gcc]
    target = "--target=aarch64-linux-gnu"
    if zig := which("zig"):
        return [zig, "c++", target]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "c++", target]
    return None


@pytest.mark.skipif(arm_compiler() is None, reason="no compiler for aarch64: install g++-aarch64-linux-gnu, or the package ziglang")
def test_the_ops_compile_for_arm(tmp_path: Path) -> None:
    """All sources but the bindings, which need Python's headers for Arm, without a warning."""
    sources = [path for path in sorted((ROOT / "csrc").glob("*.cpp")) if not path.name.startswith("bindings")]
    assert len(sources) >= 11
    options = ["-std=c++17", "-O1", "-fPIC", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
    for source in sources:
        command = [*(arm_compiler() or []), *options, "-c", str(source), "-o", str(tmp_path / f"{source.stem}.o")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        machine = int.from_bytes((tmp_path / f"{source.stem}.o").read_bytes()[18:20], "little")
        assert machine == 183, source  # EM_AARCH64 of the ELF header


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS)
def test_compilers_take_the_native_code_without_a_warning(tmp_path: Path, compiler: str) -> None:
    import pybind11

    configure = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), f"-DCMAKE_CXX_COMPILER={compiler}", "-DSHAPMIX_WERROR=ON"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    for command in (configure, ["cmake", "--build", str(tmp_path), "--target", "_native"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
