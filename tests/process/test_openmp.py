"""How the threads of OpenMP wait for each other, which is decided before torch is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shapmix.process import openmp

STARTED = """
import json, os, pathlib, sys
sys.orig_argv = json.loads(sys.argv[1])
os.getloadavg = lambda: (99.0, 0.0, 0.0)
read_text = pathlib.Path.read_text
pathlib.Path.read_text = lambda path, *rest, **named: (
    "99.0 0.0 0.0 100/200 4711" if str(path) == "/proc/loadavg" else read_text(path, *rest, **named)
)
import shapmix
print(json.dumps([shapmix.process.openmp.THREADS_SLEEP, os.environ.get("OMP_WAIT_POLICY")]))
"""
COMMAND = [sys.executable, "-m", "shapmix.train"]


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*openmp.WAITING, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(openmp, "cpus_of_affinity", lambda: 4)
    monkeypatch.setattr(openmp.os, "cpu_count", lambda: 4)


def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, load: float, runnable: int | None) -> None:
    monkeypatch.setattr(openmp.os, "getloadavg", lambda: (load, 99.0, 99.0))
    monkeypatch.setattr(openmp, "LOADAVG", tmp_path / "loadavg")
    if runnable is not None:
        (tmp_path / "loadavg").write_text(f"{load} 99.0 99.0 {runnable}/200 4711\n")


@pytest.mark.parametrize(
    ("load", "runnable", "competes"),
    [
        (0.1, 1, False),  # a quiet machine
        (3.0, 1, False),  # what loaded it has ended: the one that runs is this process
        (0.1, 5, False),  # others run for a moment
        (1.0, 2, True),
        (9.0, 10, True),
        (9.0, None, True),  # not Linux: the load alone tells
    ],
)
def test_other_programs_compete_where_too_few_cpus_are_free(
    load: float, runnable: int | None, competes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path, load, runnable)
    assert openmp.others_compete() is competes


def test_a_process_that_leaves_cpus_free_does_not_compete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, tmp_path, 2.0, 3)
    assert openmp.others_compete()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert not openmp.others_compete()
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")  # a list is one number for each level of nesting
    assert openmp.others_compete()


def test_a_machine_that_does_not_tell_its_load_is_not_called_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    def untold() -> None:
        raise OSError

    monkeypatch.setattr(openmp.os, "getloadavg", untold)
    assert not openmp.others_compete()


def start(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """What a process says that is started with these arguments on a busy machine."""
    before = {name: value for name, value in os.environ.items() if name not in {*openmp.WAITING, "OMP_NUM_THREADS"}}
    command = [sys.executable, "-c", STARTED, json.dumps(arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**before, **environment})


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (COMMAND, {}, [True, None]),  # children decide for themselves
        (COMMAND, {"OMP_WAIT_POLICY": "active"}, [False, "active"]),
        (COMMAND, {"GOMP_SPINCOUNT": "100"}, [False, None]),
        ([sys.executable, "loop.py"], {}, [False, None]),  # a program of the user's own
    ],
)
def test_threads_of_a_command_sleep_on_a_busy_machine(
    arguments: list[str], environment: dict[str, str], expected: list[object]
) -> None:
    assert json.loads(start(arguments, **environment).stdout) == expected


def test_openmp_reads_the_setting() -> None:
    """libgomp prints what it has read when torch loads it."""
    shown = start(COMMAND, OMP_DISPLAY_ENV="true").stderr
    if "OMP_WAIT_POLICY" not in shown:
        pytest.skip("this OpenMP runtime does not show its settings")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown
