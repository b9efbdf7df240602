"""Freed memory is retained: the next tensor of the same size causes no page faults."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from bench import freed_memory
from shapmix import train
from shapmix.process import cpu, memory

FAULTS = """
import json, resource, sys
import torch
from shapmix.process.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "kept" else None
def allocate():
    torch.ones(64 << 20, dtype=torch.uint8)
for _ in range(20):  # warm-up of the heap
    allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    allocate()
print(json.dumps([kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_tensors_reuse_the_memory_of_freed_ones() -> None:
    found = {}
    for kind in ("given back", "kept"):
        done = subprocess.run([sys.executable, "-c", FAULTS, kind], capture_output=True, text=True, check=True)
        found[kind] = json.loads(done.stdout)
    assert found["kept"][0] is True
    assert found["kept"][1] < 100
    assert found["given back"][1] > 10 * found["kept"][1]  # 64 MB are 16,384 pages


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False


def test_the_trainer_keeps_memory_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(cpu, "keep_freed_memory", lambda: calls.append(1))
    monkeypatch.setattr(train, "run_with_baselines", lambda config, request: None)
    assert train.main(["--device", "cpu", "--run-dir", str(tmp_path / "run")]) == 0
    assert calls == [1]


def test_the_benchmark_measures_a_step() -> None:
    options = ["--n-max", "8", "--imbalance", "2", "--num-frames", "8", "--network.widths", "8", "--batch-size", "8"]
    found = freed_memory.measure(options, False, 1)
    assert found["ms"] > 0
    assert found["peak MB"] > 50
