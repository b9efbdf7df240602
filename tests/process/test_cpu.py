"""Computing on the CPU: threads, kept memory, and what a busy machine is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import shapmix
from shapmix.kernels import installation
from shapmix.process import command, cpu
from shapmix.process.command import ComputeOptions, start_computing
from shapmix.process.errors import ShapmixError


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    monkeypatch.setattr(cpu, "keep_freed_memory", lambda: calls.append(1))
    return calls


def test_one_call_keeps_memory_and_sets_the_threads(kept: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "usable_cpus", lambda: 2)
    shapmix.prepare_cpu(threads=2)
    assert torch.get_num_threads() == 2
    shapmix.prepare_cpu()
    assert torch.get_num_threads() == 2  # as they were
    assert kept == [1, 1]


@pytest.mark.parametrize("threads", [0, -1])
def test_fewer_threads_than_one_are_refused(threads: int, kept: list[int]) -> None:
    with pytest.raises(ValueError, match=f"threads is {threads}; give at least 1, or None"):
        shapmix.prepare_cpu(threads)
    assert kept == []


@pytest.mark.parametrize(
    ("threads", "asked", "expected"),
    [
        (8, None, 3),  # torch's default, from a machine with more CPUs than the process may use
        (2, None, 2),
        (8, "8", 8),  # what the user asked for
    ],
)
def test_by_default_threads_are_at_most_the_usable_cpus(
    threads: int, asked: str | None, expected: int, monkeypatch: pytest.MonkeyPatch, kept: list[int]
) -> None:
    monkeypatch.setattr(cpu, "usable_cpus", lambda: 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    torch.set_num_threads(threads)
    shapmix.prepare_cpu()
    assert torch.get_num_threads() == expected


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("OMP_DYNAMIC", "TRUE", "OMP_DYNAMIC is TRUE.*unset it, or use one thread"),
        ("OMP_THREAD_LIMIT", "1", "OMP_THREAD_LIMIT is 1.*unset it, or use one thread"),
    ],
)
def test_a_setting_under_which_convolutions_wait_for_ever_is_refused(
    name: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch, kept: list[int]
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=told):
        shapmix.prepare_cpu(threads=2)
    with pytest.raises(ShapmixError, match=told):
        start_computing(ComputeOptions(device="cpu", threads=2))
    assert kept == []
    shapmix.prepare_cpu(threads=1)
    monkeypatch.setenv(name, "false" if name == "OMP_DYNAMIC" else "2")
    shapmix.prepare_cpu(threads=2)
    assert kept == [1, 1]


@pytest.mark.parametrize(
    ("affinity", "limits", "usable"),
    [
        (8, {}, 8),
        (8, {"": "max 100000"}, 8),
        (8, {"": "250000 100000"}, 3),  # two and a half CPUs
        (2, {"": "800000 100000"}, 2),
        (8, {"pod": "400000 100000", "pod/task": "max 100000"}, 4),  # of the group around its own
        (8, {"pod": "max 100000", "pod/task": "50000 100000"}, 1),
    ],
)
def test_usable_cpus_are_those_of_affinity_and_quota(
    affinity: int, limits: dict[str, str], usable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "cpus_of_affinity", lambda: affinity)
    monkeypatch.setattr(cpu, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cpu, "OWN_CGROUP", tmp_path / "own")
    (tmp_path / "own").write_text(f"4:memory:/other\n0::/{max(limits, default='')}\n")
    for group, limit in limits.items():
        (tmp_path / "cgroup" / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / group / "cpu.max").write_text(f"{limit}\n")
    assert cpu.usable_cpus() == usable


def load_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, load: float, cpus: int, waited: float | None = None) -> None:
    monkeypatch.setattr(cpu.os, "getloadavg", lambda: (load, 99.0, 99.0))
    monkeypatch.setattr(cpu.os, "cpu_count", lambda: cpus)
    monkeypatch.setattr(cpu, "usable_cpus", lambda: cpus)
    monkeypatch.setattr(cpu, "SCHEDSTAT", tmp_path / "schedstat")
    if waited is not None:
        (tmp_path / "schedstat").write_text(f"{round(1e9 * (1 - waited))} {round(1e9 * waited)} 12\n")


def test_a_high_load_is_told_in_the_first_line_and_by_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kept: list[int]
) -> None:
    caplog.set_level(logging.INFO, "shapmix")
    monkeypatch.setattr(command, "THREADS_SLEEP", False)
    load_of(monkeypatch, tmp_path, 13.04, 2)
    start_computing(ComputeOptions(device="cpu", threads=1))
    assert kept == [1]
    told = "high, 13.0 on 2 CPUs: other programs slow this one down; stop them, or use --threads 1"
    assert caplog.messages == [f"computing on cpu, 1 thread; the load of this machine is {told}"]
    assert installation.processor()["load"] == told
    caplog.clear()
    load_of(monkeypatch, tmp_path, 2.0, 2)
    start_computing(ComputeOptions(device="cpu", threads=1))
    assert caplog.messages == ["computing on cpu, 1 thread"]
    assert installation.processor()["load"] == "2.0 on 2 CPUs"


def test_threads_that_sleep_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kept: list[int]
) -> None:
    caplog.set_level(logging.INFO, "shapmix")
    monkeypatch.setattr(command, "THREADS_SLEEP", True)
    load_of(monkeypatch, tmp_path, 1.0, 2)
    start_computing(ComputeOptions(device="cpu", threads=2))
    start_computing(ComputeOptions(device="cpu", threads=1))
    assert caplog.messages == [
        "computing on cpu, 2 threads that sleep while they wait, since other programs run",
        "computing on cpu, 1 thread",
    ]


def test_a_load_that_yields_is_not_called_high(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that run only where a CPU is idle, and those on other CPUs than this process's, count in the load."""
    load_of(monkeypatch, tmp_path, 9.0, 2, waited=0.02)
    assert cpu.machine_load() == cpu.Load("9.0 on 2 CPUs", False)
    load_of(monkeypatch, tmp_path, 9.0, 2, waited=0.4)
    told = "high, 9.0 on 2 CPUs, for one of which this process waited 40% of its time: other programs slow this one down"
    assert cpu.machine_load() == cpu.Load(f"{told}; stop them, or use --threads 1", True)
    monkeypatch.setattr(cpu, "usable_cpus", lambda: 1)
    assert cpu.machine_load().words.startswith("high, 9.0 on 2 CPUs, of which this process may use 1, for one of which")


def test_a_machine_that_does_not_tell_its_load_is_not_called_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    def untold() -> None:
        raise OSError

    monkeypatch.setattr(cpu.os, "getloadavg", untold)
    assert cpu.machine_load() == cpu.Load("unknown", False)
