"""The version is read from the git tag or, without git, from the metadata of a source distribution or archive."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import setuptools

import shapmix

ROOT = Path(__file__).parents[2]
BUILD_FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
UNKNOWN = "0+unknown"


@pytest.fixture
def built_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], str]:
    """The version that setup.py determines in a copy of the build files; setup itself does not run."""
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setenv("SHAPMIX_CUDA", "0")
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **keywords: given.update(keywords))

    def run() -> str:
        runpy.run_path(str(tmp_path / "setup.py"))
        return given["version"]

    return run


@pytest.fixture(params=["with setuptools-scm", "without"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With setuptools-scm, and without it, as in an offline build."""
    if request.param == "without":
        monkeypatch.setitem(sys.modules, "setuptools_scm", None)
    else:
        pytest.importorskip("setuptools_scm")


def git(folder: Path, *arguments: str) -> None:
    names = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_installed_version_is_the_one_that_the_package_reports() -> None:
    assert shapmix.__version__ == metadata.version("shapmix")


def test_a_checkout_that_is_not_installed_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert shapmix._installed_version() == UNKNOWN


def test_the_tag_is_the_version(tmp_path: Path, built_version: Callable[[], str]) -> None:
    pytest.importorskip("setuptools_scm")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    assert re.fullmatch(r"0\.1\.dev1\+g[0-9a-f]+", built_version()), "of a repository without tags"
    git(tmp_path, "tag", "v1.2.3")
    assert built_version() == "1.2.3"


def test_an_archive_of_a_tag_keeps_its_version(tmp_path: Path, built_version: Callable[[], str]) -> None:
    pytest.importorskip("setuptools_scm")
    assert ".git_archival.txt export-subst" in (ROOT / ".gitattributes").read_text()
    template = (ROOT / ".git_archival.txt").read_text()
    filled = {"%(describe:tags=true,match=v[0-9]*)": "v1.2.3", "%H": "a" * 40, "%cI": "2026-01-01T00:00:00+00:00"}
    for placeholder, value in filled.items():
        assert f"$Format:{placeholder}$" in template
        template = template.replace(f"$Format:{placeholder}$", value)
    (tmp_path / ".git_archival.txt").write_text(template)
    assert built_version() == "1.2.3"


@pytest.mark.usefixtures("both_ways")
def test_a_source_distribution_keeps_its_version(tmp_path: Path, built_version: Callable[[], str]) -> None:
    (tmp_path / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: shapmix\nVersion: 4.5.6\n")
    assert built_version() == "4.5.6"


@pytest.mark.usefixtures("both_ways")
def test_a_folder_without_git_builds(built_version: Callable[[], str]) -> None:
    assert built_version() == UNKNOWN
