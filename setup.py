"""Builds the native modules with CMake; everything else about the package is in pyproject.toml.

Environment:
    SHAPMIX_CUDA: `auto` (default) builds `shapmix._native_cuda` if nvcc is found, `0` never builds it, `1` fails without nvcc.
    SHAPMIX_CUDA_ARCHS: architectures in CMake's syntax; default `80-real;90-real;90-virtual` (sm_80, sm_90 and PTX).
    SHAPMIX_WERROR: `1` treats warnings as errors; default `0`, since other compilers have other warnings.
    CXX, CUDACXX: the compilers; default: the first ones on the PATH.
    SETUPTOOLS_SCM_PRETEND_VERSION: the version, if the tag cannot be read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from email.parser import HeaderParser
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
DEFAULT_CUDA_ARCHS = "80-real;90-real;90-virtual"
UNKNOWN_VERSION = "0+unknown"  # an archive without git and without a tag in .git_archival.txt


def find_nvcc() -> str | None:
    """Path of nvcc from CUDACXX, CUDA_HOME, the PATH or the default location."""
    if "CUDACXX" in os.environ:
        return shutil.which(os.environ["CUDACXX"])
    homes = [home for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    candidates = [f"{home}/bin/nvcc" for home in homes] + ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((found for candidate in candidates if (found := shutil.which(candidate))), None)


def wanted_nvcc() -> str | None:
    """The nvcc to build with, None to build without CUDA.

    Raises:
        SystemExit: SHAPMIX_CUDA is 1 but nvcc is missing, or it has an invalid value.
    """
    setting = os.environ.get("SHAPMIX_CUDA", "auto")
    if setting not in ("auto", "0", "1"):
        raise SystemExit(f"shapmix: SHAPMIX_CUDA is '{setting}'; set it to auto, 0 or 1")
    if setting == "0":
        return None
    nvcc = find_nvcc()
    if nvcc is None and setting == "1":
        remedy = "install the CUDA toolkit, or set CUDACXX or CUDA_HOME to it"
        raise SystemExit(f"shapmix: SHAPMIX_CUDA=1 but nvcc was not found: {remedy}")
    return nvcc


def warnings_are_errors() -> bool:
    """Reads SHAPMIX_WERROR.

    Raises:
        SystemExit: it has an invalid value.
    """
    setting = os.environ.get("SHAPMIX_WERROR", "0")
    if setting not in ("0", "1"):
        raise SystemExit(f"shapmix: SHAPMIX_WERROR is '{setting}'; set it to 0 or 1")
    return setting == "1"


def required_tool(name: str) -> str:
    """Path of cmake or ninja, which build isolation installs."""
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"shapmix: '{name}' was not found: run `pip install {name}`, or install with build isolation")
    return found


def check_cxx_compiler() -> None:
    """Ends the build with one sentence if there is no C++ compiler."""
    named = os.environ.get("CXX")
    if named:
        if shutil.which(named.split()[0]) is None:
            raise SystemExit(f"shapmix: CXX is '{named}', which was not found: set CXX to a C++17 compiler, or unset it")
    elif not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        raise SystemExit("shapmix: no C++ compiler was found: install one, e.g. `apt-get install g++`, or set CXX to it")


def version() -> str:
    """The version of the git tag, of the source distribution or of the archive.

    An offline installation with --no-build-isolation may lack setuptools-scm; then only the version in a source distribution is
    read.
    """
    try:
        from setuptools_scm import get_version
    except ImportError:
        carried = ROOT / "PKG-INFO"
        return HeaderParser().parsestr(carried.read_text(encoding="utf-8"))["Version"] if carried.exists() else UNKNOWN_VERSION
    try:
        return get_version(root=str(ROOT))
    except LookupError:
        return UNKNOWN_VERSION


class Build(build):
    """Starts from an empty package: setuptools would ship what earlier builds left there."""

    def run(self) -> None:
        shutil.rmtree(Path(self.build_lib) / "shapmix", ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Builds every extension in one CMake tree under build/, which later builds reuse."""

    def run(self) -> None:
        check_cxx_compiler()
        nvcc = wanted_nvcc()
        compilers = hashlib.sha256(f"{os.environ.get('CXX')} {nvcc}".encode()).hexdigest()[:8]  # CMake keeps those of a tree
        tree = ROOT / "build" / f"cmake-{sysconfig.get_config_var('SOABI')}-{compilers}"
        werror = warnings_are_errors()
        # With build isolation, the paths of the tools change at every build, so the cached ones are overwritten.
        cmake, ninja = required_tool("cmake"), required_tool("ninja")
        try:
            import pybind11
        except ImportError:
            raise SystemExit(
                "shapmix: 'pybind11' was not found: run `pip install pybind11`, or install with build isolation"
            ) from None

        configure = [
            cmake,
            *("-S", str(ROOT), "-B", str(tree), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DSHAPMIX_CUDA={'ON' if nvcc else 'OFF'}",
            f"-DSHAPMIX_WERROR={'ON' if werror else 'OFF'}",
        ]
        if nvcc:
            configure += [
                f"-DCMAKE_CUDA_COMPILER={nvcc}",
                f"-DSHAPMIX_CUDA_ARCHS={os.environ.get('SHAPMIX_CUDA_ARCHS', DEFAULT_CUDA_ARCHS)}",
            ]
        targets = [extension.name.rpartition(".")[2] for extension in self.extensions]
        for command in (configure, [configure[0], "--build", str(tree), "--target", *targets]):
            if subprocess.run(command).returncode:
                without = "; SHAPMIX_CUDA=0 builds without CUDA" if nvcc else ""
                raise SystemExit(f"shapmix: the native build failed; see the compiler's message above{without}")

        for extension, target in zip(self.extensions, targets, strict=True):
            destination = Path(self.get_ext_fullpath(extension.name))
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(next(tree.glob(f"{target}.*{Path(destination).suffix}")), destination)


native = [Extension("shapmix._native", sources=[])]
if wanted_nvcc():
    native.append(Extension("shapmix._native_cuda", sources=[]))

setup(
    version=version(),
    packages=find_packages(include=["shapmix", "shapmix.*"]),
    package_data={
        "shapmix": [
            "skeleton/layouts/*.toml",
            "training/presets/*.yaml",
            "training/presets/stage2/*.yaml",
            "pages/templates/*.html",
            "py.typed",
        ]
    },
    ext_modules=native,
    cmdclass={"build": Build, "build_ext": CMakeBuild},
)
