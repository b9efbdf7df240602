"""Computing on the CPU: threads, kept memory, and what a busy machine is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

import shapmix
from shapmix.kernels import installation
from shapmix.process import cpu
from shapmix.process.command import ComputeOptions, start_computing


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


def test_one_call_keeps_memory_and_sets_the_threads(kept: list[int]) -> None:
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


def load_of(monkeypatch: pytest.MonkeyPatch, load: float, cpus: int) -> None:
    monkeypatch.setattr(cpu.os, "getloadavg", lambda: (load, 99.0, 99.0))
    monkeypatch.setattr(cpu.os, "cpu_count", lambda: cpus)


def test_a_high_load_is_told_in_the_first_line_and_by_the_doctor(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kept: list[int]
) -> None:
    caplog.set_level(logging.INFO, "shapmix")
    load_of(monkeypatch, 13.04, 2)
    start_computing(ComputeOptions(device="cpu", threads=1))
    assert kept == [1]
    told = "high, 13.0 on 2 CPUs: other programs slow this one down; stop them, or use --threads 1"
    assert caplog.messages == [f"computing on cpu, 1 thread; the load of this machine is {told}"]
    assert installation.processor()["load"] == told
    caplog.clear()
    load_of(monkeypatch, 2.0, 2)
    start_computing(ComputeOptions(device="cpu", threads=1))
    assert caplog.messages == ["computing on cpu, 1 thread"]
    assert installation.processor()["load"] == "2.0 on 2 CPUs"


def test_a_machine_that_does_not_tell_its_load_is_not_called_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    def untold() -> None:
        raise OSError

    monkeypatch.setattr(cpu.os, "getloadavg", untold)
    assert cpu.machine_load() == cpu.Load("unknown", False)
