"""What a test proves, from its marker: `@pytest.mark.proves("mix_clips", backend="triton")`.

With a back end, the test compares the ops on that back end with something independent of it: if it passes on a GPU, the speed of
the ops may be shown. It is skipped where the back end cannot run. Without a back end, the test is about the ops everywhere. Either
way a failure speaks against the ops. The marker that is closest to a test counts, so that a test may narrow that of its file.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import pytest
import torch

from shapmix.kernels import BACKENDS, dispatch, unavailable

OPS = tuple(dispatch.OPS)
GPU_BACKENDS = ("cuda", "triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
DEVICE_OF = {"reference": CPU, "cpp": CPU, "triton": CPU if INTERPRETED else GPU, "cuda": GPU}


class Proof(NamedTuple):
    """The ops that a test is about, and the back end that it proves them on, if it does."""

    ops: tuple[str, ...] = ()
    backend: str | None = None


def proof_of(item: pytest.Item) -> Proof:
    """Reads a test's marker.

    Raises:
        pytest.UsageError: the marker names no op, an unknown op, an unknown back end, or something else.
    """
    marker = item.get_closest_marker("proves")
    if marker is None:
        return Proof()
    proof = Proof(marker.args, marker.kwargs.get("backend"))
    wrong = [f"'{op}' is no op; the ops are {', '.join(OPS)}" for op in proof.ops if op not in OPS]
    if not proof.ops:
        wrong.append("it names no op")
    if proof.backend not in (None, *BACKENDS):
        wrong.append(f"'{proof.backend}' is no back end; the back ends are {', '.join(BACKENDS)}")
    wrong += [f"it has no argument '{name}'; write backend=" for name in marker.kwargs if name != "backend"]
    if wrong:
        raise pytest.UsageError(f"{item.nodeid}: the marker 'proves' is wrong: {'; '.join(wrong)}")
    return proof


def pytest_configure(config: pytest.Config) -> None:
    """Registers a marker for every op and back end, which the tests get from `proves`."""
    for name in (*OPS, *BACKENDS):
        config.addinivalue_line("markers", f"{name}: added to tests by `proves`")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Adds what a test proves as markers, for `-m "triton and mix_clips"`; GPU back ends also as `gpu`."""
    for item in items:
        ops, backend = proof_of(item)
        for name in (*ops, *([backend] if backend else []), *(["gpu"] if backend in GPU_BACKENDS else [])):
            item.add_marker(name)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test where the back end that it proves cannot run."""
    backend = proof_of(item).backend
    if backend and (reason := unavailable(backend, DEVICE_OF[backend])):
        pytest.skip(f"{backend}: {reason}")
