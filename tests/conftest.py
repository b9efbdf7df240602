"""Fixtures shared by all tests, among them the recordings and the NW-UCLA clips."""

from __future__ import annotations

import json
import os
import re
import signal
import tarfile
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from shapmix.data.clips import Splits
from tests.proofs import pytest_collection_modifyitems, pytest_configure, pytest_runtest_setup  # noqa: F401  hooks
from tests.small_run import leave_pictures_out, make_small, make_small_runs

try:
    from hypothesis import settings
except ModuleNotFoundError:
    pass  # the tests that need it are skipped by name, see below
else:
    # single examples can be slow on a shared machine
    settings.register_profile("shapmix", deadline=None)
    settings.load_profile("shapmix")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a shell; processes that tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

if os.environ.get("PYTEST_XDIST_WORKER"):  # as many workers as cores: each worker and its subprocesses use one thread
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """With `-m gpu`, skips files whose packages are missing by name, since a GPU machine may have few packages."""
    report = yield
    lacks = re.search(r"No module named '(?!shapmix|bench|tests)(\w+)", str(report.longrepr)) if report.failed else None
    if lacks and "gpu" in collector.config.option.markexpr:
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 1, f"Skipped: it needs {lacks[1]}, which is not installed")
    return report


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order(request: pytest.FixtureRequest) -> None:
    """A test draws the same numbers from its module's generator alone and in the suite."""
    if isinstance(generator := getattr(request.module, "RNG", None), np.random.Generator):
        generator.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture(scope="session")
def small_splits() -> Splits:
    """Data small enough to train on in seconds."""
    return make_small()


@pytest.fixture
def small_data(monkeypatch: pytest.MonkeyPatch, small_splits: Splits, tmp_path: Path) -> None:
    """The trainer uses the small data for any configuration, in a temporary working directory."""
    make_small_runs(monkeypatch.setattr, small_splits)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def no_pictures() -> Iterator[None]:
    """The pictures of a module's runs are files of four pixels."""
    with pytest.MonkeyPatch.context() as patch:
        leave_pictures_out(patch.setattr)
        yield


@pytest.fixture(scope="module")
def small_runs(small_splits: Splits, no_pictures: None) -> Iterator[None]:
    """Runs that a module's tests share: on the small data, without pictures."""
    with pytest.MonkeyPatch.context() as patch:
        make_small_runs(patch.setattr, small_splits)
        yield


@pytest.fixture(scope="session")
def nw_ucla_recordings() -> dict[str, torch.Tensor]:
    """Clip name -> [F, V, 3] float64 as recorded, from the folder in SHAPMIX_NW_UCLA."""
    folder = os.environ.get("SHAPMIX_NW_UCLA")
    if not folder:
        pytest.skip("SHAPMIX_NW_UCLA is not set: no NW-UCLA recordings")
    with tarfile.open(Path(folder) / "all_sqe.tar.xz") as archive:
        return {
            Path(member.name).stem: torch.tensor(json.load(archive.extractfile(member))["skeletons"], dtype=torch.float64)
            for member in archive
            if member.name.endswith(".json")
        }
